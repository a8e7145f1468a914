"""Texts of alerts, made of the numbers that they state: one line for pagers, and details below it.

The line has the subject, since when and of how many, how bad and how certain, what changed, and the command to type
next. It quotes a window only where the window shows the change; before that, the alarm.
"""

from collections.abc import Sequence
from typing import NamedTuple

from toolkit.cli.script_commands import command_line
from toolkit.monitoring.base import formatting
from toolkit.monitoring.base.formatting import percent, pluralise
from toolkit.monitoring.base.thresholds import LEVELS, Thresholds
from toolkit.monitoring.stats.performance_estimation import EstimatedAccuracy
from toolkit.monitoring.windows.label_bias import LabelBias
from toolkit.monitoring.windows.summary import WindowSummary

MAX_LINE = 200  # characters of a line: as much as a pager or a phone's notification shows
NEXT = ". Next: "  # before the command
WORST_CLASSES = 3  # listed in the details

LABEL, REPORT = command_line("monitoring", "labels"), command_line("monitoring", "report")
ROLLBACK = command_line("model_registry", "rollback")


class Text(NamedTuple):
    """A headline without a command, and lines of details."""

    headline: str = ""
    details: str = ""

    def with_command(self, command: str) -> str:
        """The headline and the command to type next, at most 200 characters.

        >>> Text("ACCURACY 84 -> 66 %").with_command("python monitoring.py labels")
        'ACCURACY 84 -> 66 %. Next: python monitoring.py labels'
        """
        end = f"{NEXT}{command}"
        return formatting.truncate(self.headline, MAX_LINE - len(end)) + end


class ClassRecall(NamedTuple):
    """The recall of a class, before and now, as a clause; and its labels in the window."""

    clause: str
    n_labels: int


def accuracy(
    counts: WindowSummary, reference: WindowSummary, sample: LabelBias | None, level: str, status: str,
    certain: float, fallen: Sequence[ClassRecall], alarm_length: int | None, thresholds: Thresholds,
) -> Text:  # fmt: skip
    """Text about an accuracy that fell.

    ``certain`` is the lower bound of the relative drop, ``alarm_length`` how many labels ago the change began by the
    alarm that has just fired. The level is ``ok`` when the window shows no drop that matters.
    """
    before = reference.n_correct / reference.n
    lines = [
        _window(counts),
        _accuracy_line(sample, before, reference.n, certain),
        *([f"Labels: {sample.note}."] if sample and sample.note else []),
        f"Levels of the drop: {', '.join(f'{one} above {100 * thresholds.threshold(one):g} %' for one in LEVELS[1:])}.",
        *([f"Began about {pluralise(alarm_length, 'label')} ago, by the alarm."] if alarm_length is not None else []),
    ]
    if level == LEVELS[0] or sample is None:
        headline = f"ACCURACY below {percent(before)} in the last {pluralise(alarm_length or 0, 'label')}, suspected"
        unseen = [f"the window since {_clock(counts)} does not show it yet"] if counts.n else []
        return Text(_joined(headline, *unseen), "\n".join(lines))
    if fallen:
        worst = "; ".join(f"{one.clause} ({pluralise(one.n_labels, 'label')})" for one in fallen[:WORST_CLASSES])
        lines.append(f"Classes that lost most: {worst}.")
    points = formatting.percentage_points(certain * before)
    sure = f"at least {points} points certain" if points else "certain" if status == "confirmed" else "not yet certain"
    headline = (
        f"ACCURACY {formatting.percent_change(before, sample.accuracy)} since {_clock(counts)} "
        f"({pluralise(sample.n, 'label')}), {'' if status == 'confirmed' else 'suspected, '}{sure}"
    )
    more = [
        *([] if sample.fair else ["the labels are no fair sample"]),
        *(f"worst: {one.clause}" for one in fallen[:1]),
    ]
    return Text(_joined(headline, *more), "\n".join(lines))


def _accuracy_line(sample: LabelBias | None, before: float, n_before: int, certain: float) -> str:
    usual = f"before: {percent(before)} of {pluralise(n_before, 'held-out image')}"
    if sample is None:
        return f"Right: no labels in the window; {usual}."
    drop = 1 - sample.accuracy / before
    size = f"a drop of {percent(drop)} of that" if drop >= formatting.MIN_SHARE else "no drop"
    sure = f", at least {formatting.percent_floor(certain)} certain" if certain >= formatting.MIN_SHARE else ""
    return f"Right: {percent(sample.accuracy)} of {pluralise(sample.n, 'label')}; {usual}; {size}{sure}."


def impact(counts: WindowSummary, guess: EstimatedAccuracy, measured: float | None, effective_n: float) -> str:
    """Clause on the effect of a drift on accuracy: measured by the labels if there are enough, otherwise estimated."""
    before, n = f"(before {percent(guess.reference_accuracy or 0.0)})", counts.n_labels
    if measured is not None:
        return f"accuracy {percent(measured)} by {n:,} labels {before}"
    repeated = " that repeat each other" if effective_n < n / 2 else ""  # bursts of near-identical images
    labels = f"{n:,} labels{repeated} are too few" if n else "no labels"
    if guess.status != "estimate" or guess.accuracy is None:
        return f"harm unknown, {labels}"
    return f"accuracy maybe {percent(guess.accuracy)} {before}, {labels}"


def drift(
    heading: str, counts: WindowSummary, changes: Sequence[str], images: Sequence[tuple[str, str]],
    harm: str, n_labels: int | None, alarm: str = "", alarm_length: int = 0,
) -> Text:  # fmt: skip
    """Text about a distribution that changed.

    ``changes`` are those that the window shows, ``images`` statistics of the images and how they changed, ``harm`` the
    clause of ``impact``, ``n_labels`` how many would confirm it, ``alarm`` the change found by the alarm that has just
    fired.

    Examples
    --------
    >>> from toolkit.monitoring.base.predictions import Predictions
    >>> from toolkit.monitoring.windows.reference import ReferenceBins
    >>> none = ReferenceBins(("cat", "dog")).empty()
    >>> print(drift("CONFIDENCE", none, [], [], "harm unknown, no labels", 107, "lower", 30).headline)
    CONFIDENCE: lower in the last 30 predictions than before; harm unknown, no labels
    """
    clauses = [harm] * bool(harm)
    clauses += [f"the images changed too: {', '.join(metric for metric, _ in images[:2])}"] * bool(images)
    ago = pluralise(alarm_length, "prediction")
    if changes:
        start = f"{heading} changed since {_clock(counts)} ({pluralise(counts.n, 'prediction')}): {changes[0]}"
    elif counts.n and alarm_length <= counts.n:
        start = f"{heading}: {alarm} in the last {ago} (after {_clock(counts)}) than before"
        clauses.append("the window does not show it yet")
    else:
        start = f"{heading}: {alarm} in the last {ago} than before"
    lines = [_window(counts)]
    lines += [f"Changed: {each}." for each in changes] or ["The window does not show a change that matters."]
    if alarm:
        lines.append(f"By the alarm: {alarm}, for about {ago}.")
    if images:
        lines.append(f"The images changed too: {'; '.join(map(' '.join, images))}.")
    if harm:
        needed = f"; label about {n_labels:,} such predictions to know" if n_labels is not None else ""
        lines.append(f"Harm: {harm}{needed}.")
    return Text(_joined(start, *clauses), "\n".join(lines))


def non_finite(counts: WindowSummary) -> Text:
    """Text about predictions that are not numbers."""
    broken, n = counts.non_finite, counts.n
    headline = f"BROKEN ANSWERS: {broken:,} of {n:,} predictions since {_clock(counts)} are NaN or infinite"
    details = [_window(counts), "They are left out of all other metrics. Check the model and its input."]
    return Text(f"{headline} ({percent(broken / n, 1)})", "\n".join(details))


def _clock(counts: WindowSummary) -> str:
    """Local time of the first prediction."""
    return formatting.clock_time(counts.since, counts.until)


def _window(counts: WindowSummary) -> str:
    since, until = map(formatting.local_time, (counts.since, counts.until))
    return f"Window: the last {counts.n:,} predictions, {since} to {until}." if counts.n else "Window: no predictions."


def _joined(first: str, *more: str) -> str:
    """Clauses, the weightiest first, as many as fit with the longest command."""
    limit = MAX_LINE - len(NEXT) - max(map(len, (LABEL, REPORT, ROLLBACK)))
    text = first
    for clause in more:
        if len(text) + len(clause) + 2 <= limit:
            text = f"{text}; {clause}"
    return text
