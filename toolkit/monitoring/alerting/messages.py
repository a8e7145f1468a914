"""What an alert says, from the figures that it states: one line for pagers, and details below.

The line says what, since when and of how many, how bad and how sure, what changed, and what to type next. It
quotes a window only where the window shows the change; before that, what the alarm itself knows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from toolkit.cli.commands import command_line
from toolkit.monitoring import report
from toolkit.monitoring.base.thresholds import Thresholds

MAX_LINE = 200  # characters of a line: what a pager or the notification of a phone shows
NEXT = ". Next: "  # before what to type
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
    """A headline, without what to type next, and lines of details."""

    headline: str = ""
    details: str = ""

    def with_command(self, command: str) -> str:
        """The line for pagers.

        >>> Text("ACCURACY 84 -> 66 %").with_command("python monitoring.py labels")
        'ACCURACY 84 -> 66 %. Next: python monitoring.py labels'
        """
        end = f"{NEXT}{command}"
        return report.shortened(self.headline, MAX_LINE - len(end)) + end


@dataclass(frozen=True)
class Period:
    """Predictions that an alert speaks of: how many, from when to when in seconds since 1970."""

    n: int
    since: float
    until: float

    @property
    def clock(self) -> str:
        """When they began, by the clock on the wall."""
        return report.clock(self.since, self.until)

    def __str__(self) -> str:
        return f"the last {self.n:,} predictions, {report.local(self.since)} to {report.local(self.until)}"


@dataclass(frozen=True)
class ClassRecall:
    """How much of a class is found, before and now, and in how many labelled images of it."""

    name: str
    before: float
    now: float
    cases: int

    def __str__(self) -> str:
        return f"{report.name(self.name)}, recall {report.change(self.before, self.now)}"


@dataclass(frozen=True)
class AccuracyFigures:
    """What is known of the accuracy in a window.

    Parameters
    ----------
    accuracy, n_labels
        By the labels, and how many there are; None without any.
    usual, reference_n
        Accuracy on the held-out images, and how many there are.
    certain
        Relative drop that is certain; None when unknown, below 0 when there may be none.
    level, status
        What the window shows; ``ok`` when it shows no drop that matters.
    fallen
        Classes whose recall fell, most first.
    alarm
        How many labels ago the change began by the alarm that has just fired; None without one.
    note
        What is special about the labels; empty for nothing.
    fair
        Whether the labels look like a fair sample.
    """

    period: Period
    accuracy: float | None
    n_labels: int
    usual: float
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
    """What is known of the accuracy beside a change that no label told of; shares, None where unknown.

    Parameters
    ----------
    measured
        By the labels, when there are enough of them.
    estimated
        Without labels.
    needed
        How many labels would settle it.
    worth
        How many independent labels those of the window tell as much as.
    """

    usual: float
    n_labels: int
    measured: float | None
    estimated: float | None
    needed: int
    worth: float

    def __str__(self) -> str:
        before = f"(before {report.share(self.usual)})"
        if self.measured is not None:
            return f"accuracy {report.share(self.measured)} by {self.n_labels:,} labels {before}"
        labels = f"{self.n_labels:,} labels are too few" if self.n_labels else "no labels"
        if self.worth < self.n_labels / 2:  # bursts of one image, or images of one class after the other
            labels = f"{self.n_labels:,} labels that repeat each other are too few"
        if self.estimated is None:
            return f"harm unknown, {labels}"
        return f"accuracy maybe {report.share(self.estimated)} {before}, {labels}"

    @property
    def command(self) -> str:
        """What to type to know more."""
        return LABEL if self.measured is None else REPORT


@dataclass(frozen=True)
class DriftFigures:
    """What is known of a distribution that may have changed.

    Parameters
    ----------
    what
        Its name in capitals.
    changes
        What the window shows, largest first; empty when it shows nothing that matters.
    images
        What changed about the images: a statistic of theirs, and how.
    alarm
        What the alarm that has just fired says has changed; empty without one.
    alarm_length
        How many predictions ago that began.
    """

    what: str
    period: Period
    changes: Sequence[str]
    images: Sequence[tuple[str, str]]
    harm: AccuracyImpact | None
    alarm: str = ""
    alarm_length: int = 0


def accuracy(figures: AccuracyFigures, limits: Thresholds) -> Text:
    """What is said of an accuracy that fell.

    Examples
    --------
    >>> hour = Period(1000, 0.0, 3600.0)
    >>> figures = AccuracyFigures(hour, 65 / 99, 99, 0.84, 2000, 0.125, "critical", "confirmed")
    >>> accuracy(figures, Limits()).headline.replace(hour.clock, "13:52")
    'ACCURACY 84 -> 66 % since 13:52 (99 labels), at least 10 points certain'
    """
    details = _accuracy_details(figures, limits)
    if figures.level == "ok" or figures.accuracy is None:
        last = report.pluralise(figures.alarm or 0, "label")
        headline = f"ACCURACY below {report.share(figures.usual)} in the last {last}, suspected"
        unseen = [f"the window since {figures.period.clock} does not show it yet"] if figures.period.n else []
        return Text(_joined(headline, *unseen), details)
    headline = (
        f"ACCURACY {report.change(figures.usual, figures.accuracy)} since {figures.period.clock} "
        f"({report.pluralise(figures.n_labels, 'label')}), {_certainty(figures)}"
    )
    more = [
        *([] if figures.fair else ["the labels are no fair sample"]),
        *(f"worst: {recall}" for recall in figures.fallen[:1]),
    ]
    return Text(_joined(headline, *more), details)


def _certainty(figures: AccuracyFigures) -> str:
    points = report.percentage_points((figures.certain or 0.0) * figures.usual)
    if figures.status == "confirmed":
        return f"at least {points} points certain" if points else "certain"
    return f"suspected, at least {points} points certain" if points else "suspected, not yet certain"


def _accuracy_details(figures: AccuracyFigures, limits: Thresholds) -> str:
    lines = [f"Window: {figures.period}." if figures.period.n else "Window: no predictions."]
    usual = f"{report.share(figures.usual)} of {report.pluralise(figures.reference_n, 'held-out image')}"
    if figures.accuracy is not None:
        drop = 1 - figures.accuracy / figures.usual
        size = f"a drop of {report.share(drop)} of that" if drop >= report.LEAST_SHARE else "no drop"
        certain = figures.certain or 0.0
        sure = f", at least {report.share_below(certain)} certain" if certain >= report.LEAST_SHARE else ""
        labels = report.pluralise(figures.n_labels, "label")
        lines.append(f"Right: {report.share(figures.accuracy)} of {labels}; before: {usual}; {size}{sure}.")
    else:
        lines.append(f"Right: no labels in the window; before: {usual}.")
    if figures.note:
        lines.append(f"Labels: {figures.note}.")
    levels = (f"{level} above {100 * limits.threshold(level):g} %" for level in ("warning", "critical", "immediate"))
    lines.append(f"Levels of the drop: {', '.join(levels)}.")
    if figures.alarm is not None:
        lines.append(f"Began about {report.pluralise(figures.alarm, 'label')} ago, by the alarm.")
    worst = [f"{recall} ({report.pluralise(recall.cases, 'label')})" for recall in figures.fallen[:WORST_CLASSES]]
    if worst and figures.level != "ok":
        lines.append(f"Classes that lost most: {'; '.join(worst)}.")
    return "\n".join(lines)


def drift(figures: DriftFigures) -> Text:
    """What is said of a distribution that changed.

    Examples
    --------
    >>> hour = Period(1000, 0.0, 3600.0)
    >>> figures = DriftFigures("CONFIDENCE", hour, ["median 0.8 -> 0.55"], [], Harm(0.9, 0, None, 0.8, 107, 0.0))
    >>> print(drift(figures).headline.replace(hour.clock, "13:52").replace("; ", ";\\n"))
    CONFIDENCE changed since 13:52 (1,000 predictions): median 0.8 -> 0.55;
    accuracy maybe 80 % (before 90 %), no labels
    """
    period, harm = figures.period, [str(figures.harm)] if figures.harm else []
    harm += [f"the images changed too: {', '.join(metric for metric, _ in figures.images[:2])}"] * bool(figures.images)
    ago = report.pluralise(figures.alarm_length, "prediction")
    if figures.changes:
        start = f"{figures.what} changed since {period.clock} ({report.pluralise(period.n, 'prediction')})"
        headline = _joined(f"{start}: {figures.changes[0]}", *harm)
    elif period.n and figures.alarm_length <= period.n:
        start = f"{figures.what}: {figures.alarm} in the last {ago} (after {period.clock}) than before"
        headline = _joined(start, *harm, "the window does not show it yet")
    else:
        headline = _joined(f"{figures.what}: {figures.alarm} in the last {ago} than before", *harm)
    lines = [f"Window: {period}." if period.n else "Window: no predictions."]
    lines += [f"Changed: {change}." for change in figures.changes] or [
        "The window does not show a change that matters."
    ]
    if figures.alarm:
        lines.append(f"By the alarm: {figures.alarm}, for about {ago}.")
    if figures.images:
        lines.append(f"The images changed too: {'; '.join(map(' '.join, figures.images))}.")
    if figures.harm:
        more = f"; label about {figures.harm.needed:,} such predictions to know" * (figures.harm.measured is None)
        lines.append(f"Harm: {figures.harm}{more}.")
    return Text(headline, "\n".join(lines))


def non_finite(period: Period, broken: int) -> Text:
    """What is said of answers that are no numbers.

    Examples
    --------
    >>> hour = Period(1000, 0.0, 3600.0)
    >>> non_finite(hour, 51).headline.replace(hour.clock, "13:52")
    'BROKEN ANSWERS: 51 of 1,000 predictions since 13:52 are NaN or infinite (5.1 %)'
    """
    share = report.share(broken / period.n, 1)
    headline = f"BROKEN ANSWERS: {broken:,} of {period.n:,} predictions since {period.clock} are NaN or infinite"
    details = [f"Window: {period}.", "They are left out of all other figures. Check the model and its input."]
    return Text(f"{headline} ({share})", "\n".join(details))


def _joined(first: str, *more: str) -> str:
    """Clauses in the order of their weight, as many as fit beside the longest command."""
    room = MAX_LINE - len(NEXT) - max(map(len, (LABEL, REPORT, ROLLBACK)))
    text = first
    for clause in more:
        if len(text) + len(clause) + 2 <= room:
            text = f"{text}; {clause}"
    return text


def largest_changes(names: Sequence[str], before: Iterable[float], now: Iterable[float], n: int) -> str:
    """The classes whose share changed most, as a clause.

    >>> largest_changes(["cat", "dog", "cow"], [0.5, 0.3, 0.2], [0.1, 0.5, 0.4], 2)
    'cat 50 -> 10 %, dog 30 -> 50 %'
    """
    rows = sorted(zip(names, before, now, strict=True), key=lambda row: -abs(row[2] - row[1]))
    return ", ".join(f"{report.name(name)} {report.change(old, new)}" for name, old, new in rows[:n])
