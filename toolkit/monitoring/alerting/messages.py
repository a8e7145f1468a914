"""Texts of alerts, made of the numbers that they state: one line for pagers, and details below it.

The line has the subject, since when and of how many, how bad and how certain, what changed, and the command to type
next. It quotes a window only where the window shows the change; before that, the alarm.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from toolkit.cli.commands import command_line
from toolkit.monitoring.base import formatting
from toolkit.monitoring.base.thresholds import Thresholds

MAX_LINE = 200  # characters of a line: as much as a pager or a phone's notification shows
NEXT = ". Next: "  # before the command
WORST_CLASSES = 3  # listed in the details

LABEL, REPORT = command_line("monitoring", "labels"), command_line("monitoring", "report")
ROLLBACK = command_line("model_registry", "rollback")
DIRECTIONS = {
    "lower": "lower",
    "higher": "higher",
    "wider": "more often very high or very low",
    "narrower": "less often very high or very low",
}


@dataclass(frozen=True)
class Text:
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


@dataclass(frozen=True)
class Period:
    """The predictions that an alert is about: how many, from when to when in seconds since 1970."""

    n: int
    since: float
    until: float

    @property
    def clock(self) -> str:
        """Local time of the first one."""
        return formatting.clock_time(self.since, self.until)

    def __str__(self) -> str:
        since, until = map(formatting.local_time, (self.since, self.until))
        return f"the last {self.n:,} predictions, {since} to {until}"


@dataclass(frozen=True)
class ClassRecall:
    """Recall of a class, before and now, and its labelled images."""

    name: str
    before: float
    now: float
    cases: int

    def __str__(self) -> str:
        return f"{formatting.class_name(self.name)}, recall {formatting.percent_change(self.before, self.now)}"


@dataclass(frozen=True)
class AccuracyChange:
    """Accuracy in a window against the reference.

    Parameters
    ----------
    period
        The predictions of the window.
    accuracy, n_labels
        By the labels, and their number; None and 0 without any.
    reference_accuracy, reference_n
        Accuracy on the held-out images, and their number.
    certain
        Lower bound of the relative drop; None when unknown, below 0 when there may be none.
    level, status
        Those of the window; ``ok`` when it shows no drop that matters.
    fallen
        Classes whose recall fell, largest drop first.
    alarm
        Labels since the change began, by the alarm that has just fired; None without one.
    note
        A remark on the labels; empty for none.
    fair
        Whether the labels look like a fair sample.
    """

    period: Period
    accuracy: float | None
    n_labels: int
    reference_accuracy: float
    reference_n: int
    certain: float | None
    level: str
    status: str
    fallen: Sequence[ClassRecall] = ()
    alarm: int | None = None
    note: str = ""
    fair: bool = True


@dataclass(frozen=True)
class AccuracyImpact:
    """Accuracy under a change that was found without labels; shares in [0, 1], None where unknown.

    Parameters
    ----------
    reference_accuracy
        Accuracy on the held-out images.
    n_labels, effective_n
        Labels in the window, and the independent labels that they are worth.
    measured
        By the labels, when there are enough of them.
    estimated
        Without labels.
    labels_needed
        Labels that would confirm or refute the harm.
    """

    reference_accuracy: float
    n_labels: int
    measured: float | None
    estimated: float | None
    labels_needed: int
    effective_n: float

    def __str__(self) -> str:
        before = f"(before {formatting.percent(self.reference_accuracy)})"
        if self.measured is not None:
            return f"accuracy {formatting.percent(self.measured)} by {self.n_labels:,} labels {before}"
        labels = f"{self.n_labels:,} labels are too few" if self.n_labels else "no labels"
        if self.effective_n < self.n_labels / 2:  # bursts of near-identical images
            labels = f"{self.n_labels:,} labels that repeat each other are too few"
        if self.estimated is None:
            return f"harm unknown, {labels}"
        return f"accuracy maybe {formatting.percent(self.estimated)} {before}, {labels}"

    @property
    def command(self) -> str:
        """Shell command that shows more."""
        return LABEL if self.measured is None else REPORT


@dataclass(frozen=True)
class DistributionChange:
    """A distribution in a window against the reference.

    Parameters
    ----------
    heading
        Its name in capitals.
    period
        The predictions of the window.
    changes
        Changes that the window shows, largest first; empty when none of them matters.
    images
        Changes of the images: a statistic of theirs, and how it changed.
    impact
        What the change may mean for accuracy; None when that is unknown.
    alarm
        The change found by the alarm that has just fired; empty without one.
    alarm_length
        Predictions since that change began.
    """

    heading: str
    period: Period
    changes: Sequence[str]
    images: Sequence[tuple[str, str]]
    impact: AccuracyImpact | None
    alarm: str = ""
    alarm_length: int = 0


def accuracy(change: AccuracyChange, thresholds: Thresholds) -> Text:
    """Text about an accuracy that fell.

    Examples
    --------
    >>> hour = Period(1000, 0.0, 3600.0)
    >>> change = AccuracyChange(hour, 65 / 99, 99, 0.84, 2000, 0.125, "critical", "confirmed")
    >>> accuracy(change, Thresholds()).headline.replace(hour.clock, "13:52")
    'ACCURACY 84 -> 66 % since 13:52 (99 labels), at least 10 points certain'
    """
    details = _accuracy_details(change, thresholds)
    if change.level == "ok" or change.accuracy is None:
        last = formatting.pluralise(change.alarm or 0, "label")
        headline = f"ACCURACY below {formatting.percent(change.reference_accuracy)} in the last {last}, suspected"
        unseen = [f"the window since {change.period.clock} does not show it yet"] if change.period.n else []
        return Text(_joined(headline, *unseen), details)
    headline = (
        f"ACCURACY {formatting.percent_change(change.reference_accuracy, change.accuracy)} since {change.period.clock} "
        f"({formatting.pluralise(change.n_labels, 'label')}), {_certainty(change)}"
    )
    more = [
        *([] if change.fair else ["the labels are no fair sample"]),
        *(f"worst: {recall}" for recall in change.fallen[:1]),
    ]
    return Text(_joined(headline, *more), details)


def _certainty(change: AccuracyChange) -> str:
    points = formatting.percentage_points((change.certain or 0.0) * change.reference_accuracy)
    if change.status == "confirmed":
        return f"at least {points} points certain" if points else "certain"
    return f"suspected, at least {points} points certain" if points else "suspected, not yet certain"


def _accuracy_details(change: AccuracyChange, thresholds: Thresholds) -> str:
    lines = [f"Window: {change.period}." if change.period.n else "Window: no predictions."]
    held_out = formatting.pluralise(change.reference_n, "held-out image")
    before = f"before: {formatting.percent(change.reference_accuracy)} of {held_out}"
    if change.accuracy is not None:
        drop = 1 - change.accuracy / change.reference_accuracy
        size = f"a drop of {formatting.percent(drop)} of that" if drop >= formatting.MIN_SHARE else "no drop"
        certain = change.certain or 0.0
        sure = f", at least {formatting.percent_floor(certain)} certain" if certain >= formatting.MIN_SHARE else ""
        labels = formatting.pluralise(change.n_labels, "label")
        lines.append(f"Right: {formatting.percent(change.accuracy)} of {labels}; {before}; {size}{sure}.")
    else:
        lines.append(f"Right: no labels in the window; {before}.")
    if change.note:
        lines.append(f"Labels: {change.note}.")
    levels = (
        f"{level} above {100 * thresholds.threshold(level):g} %" for level in ("warning", "critical", "immediate")
    )
    lines.append(f"Levels of the drop: {', '.join(levels)}.")
    if change.alarm is not None:
        lines.append(f"Began about {formatting.pluralise(change.alarm, 'label')} ago, by the alarm.")
    worst = [f"{recall} ({formatting.pluralise(recall.cases, 'label')})" for recall in change.fallen[:WORST_CLASSES]]
    if worst and change.level != "ok":
        lines.append(f"Classes that lost most: {'; '.join(worst)}.")
    return "\n".join(lines)


def drift(change: DistributionChange) -> Text:
    """Text about a distribution that changed.

    Examples
    --------
    >>> hour = Period(1000, 0.0, 3600.0)
    >>> impact = AccuracyImpact(0.9, 0, None, 0.8, 107, 0.0)
    >>> change = DistributionChange("CONFIDENCE", hour, ["median 0.8 -> 0.55"], [], impact)
    >>> print(drift(change).headline.replace(hour.clock, "13:52").replace("; ", ";\\n"))
    CONFIDENCE changed since 13:52 (1,000 predictions): median 0.8 -> 0.55;
    accuracy maybe 80 % (before 90 %), no labels
    """
    period, clauses = change.period, [str(change.impact)] if change.impact else []
    clauses += [f"the images changed too: {', '.join(metric for metric, _ in change.images[:2])}"] * bool(change.images)
    ago = formatting.pluralise(change.alarm_length, "prediction")
    if change.changes:
        start = f"{change.heading} changed since {period.clock} ({formatting.pluralise(period.n, 'prediction')})"
        headline = _joined(f"{start}: {change.changes[0]}", *clauses)
    elif period.n and change.alarm_length <= period.n:
        start = f"{change.heading}: {change.alarm} in the last {ago} (after {period.clock}) than before"
        headline = _joined(start, *clauses, "the window does not show it yet")
    else:
        headline = _joined(f"{change.heading}: {change.alarm} in the last {ago} than before", *clauses)
    lines = [f"Window: {period}." if period.n else "Window: no predictions."]
    lines += [f"Changed: {each}." for each in change.changes] or ["The window does not show a change that matters."]
    if change.alarm:
        lines.append(f"By the alarm: {change.alarm}, for about {ago}.")
    if change.images:
        lines.append(f"The images changed too: {'; '.join(map(' '.join, change.images))}.")
    if change.impact:
        needed = f"; label about {change.impact.labels_needed:,} such predictions to know"
        lines.append(f"Harm: {change.impact}{needed * (change.impact.measured is None)}.")
    return Text(headline, "\n".join(lines))


def non_finite(period: Period, broken: int) -> Text:
    """Text about predictions that are not numbers.

    Examples
    --------
    >>> hour = Period(1000, 0.0, 3600.0)
    >>> non_finite(hour, 51).headline.replace(hour.clock, "13:52")
    'BROKEN ANSWERS: 51 of 1,000 predictions since 13:52 are NaN or infinite (5.1 %)'
    """
    share = formatting.percent(broken / period.n, 1)
    headline = f"BROKEN ANSWERS: {broken:,} of {period.n:,} predictions since {period.clock} are NaN or infinite"
    details = [f"Window: {period}.", "They are left out of all other metrics. Check the model and its input."]
    return Text(f"{headline} ({share})", "\n".join(details))


def _joined(first: str, *more: str) -> str:
    """Clauses, the weightiest first, as many as fit beside the longest command."""
    limit = MAX_LINE - len(NEXT) - max(map(len, (LABEL, REPORT, ROLLBACK)))
    text = first
    for clause in more:
        if len(text) + len(clause) + 2 <= limit:
            text = f"{text}; {clause}"
    return text


def largest_changes(names: Sequence[str], before: Iterable[float], now: Iterable[float], n: int) -> str:
    """The classes whose share changed most, as a clause.

    >>> largest_changes(["cat", "dog", "cow"], [0.5, 0.3, 0.2], [0.1, 0.5, 0.4], 2)
    'cat 50 -> 10 %, dog 30 -> 50 %'
    """
    rows = sorted(zip(names, before, now, strict=True), key=lambda row: -abs(row[2] - row[1]))
    return ", ".join(
        f"{formatting.class_name(name)} {formatting.percent_change(old, new)}" for name, old, new in rows[:n]
    )
