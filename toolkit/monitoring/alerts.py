"""What a window shows of each metric, how bad that is, and the sentence that says so.

Nothing here looks at a store or decides whether anybody is told: see ``states``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from toolkit.monitoring import statistics
from toolkit.monitoring.counts import Counts
from toolkit.monitoring.detectors import ACCURACY, CONFIDENCE, PREDICTIONS
from toolkit.monitoring.drift import DriftResult, compare, p_text
from toolkit.monitoring.figures import degradation, estimate
from toolkit.monitoring.limits import LEVELS, Limits
from toolkit.monitoring.sampling import label_sample
from toolkit.monitoring.sequential import Alarm
from toolkit.monitoring.states import Grade
from toolkit.monitoring.windows import WINDOWS
from toolkit.monitoring.yardstick import Yardstick

# The windows that are watched, and how many predictions or labels lie between two looks: a tenth of each.
BLOCKS = {name: size // 10 for name, size in WINDOWS.items() if size is not None}
FEWEST_OF_A_CLASS = 10  # labels of a class below which its recall is not worth naming
MOST_REPEATED = 2  # predictions to one independent one, above which an alarm by labels may come of bursts
NON_FINITE = "non_finite"

WHAT_TO_DO = {
    "ok": "",
    "warning": "look at recent pictures and label some of them",
    "critical": "consider going back to the version before, and retraining",
    "immediate": "go back to the version before now",
}


@dataclass(frozen=True)
class Sighting(Grade):
    """What one look saw of one metric in one window.

    Parameters
    ----------
    message
        What happened, how sure that is, since when and what changed.
    what_to_do
        Advice to whoever reads it.
    explained
        Whether an alarm may come of the choice of the labels, or of bursts among them, so that it vouches
        for nothing that the window does not show.
    """

    metric: str = ""
    window: str = ""
    message: str = ""
    explained: bool = False

    @property
    def what_to_do(self) -> str:
        """Advice for this level."""
        return WHAT_TO_DO[self.level]

    def told(self, level: str) -> str:
        """What an alert of a level says: the message, and what to do.

        >>> Sighting(message="Accuracy fell.").told("immediate")
        'Accuracy fell. Go back to the version before now.'
        """
        advice = WHAT_TO_DO[level]
        return f"{self.message} {advice[:1].upper()}{advice[1:]}."


def look(
    counts: Counts, yardstick: Yardstick, limits: Limits, window: str, alarms: Mapping[str, Alarm] | None = None
) -> list[Sighting]:
    """See what a window shows.

    Parameters
    ----------
    counts, yardstick
        The window, and what it was counted with.
    alarms
        By metric, the sequential alarm that has just fired: a change that is certain, though a window that is
        mostly of the time before may not show it yet. It makes the least of an alert.

    Examples
    --------
    >>> from toolkit.baseline import Baseline
    >>> from toolkit.monitoring.windows import Window
    >>> rows = np.tile(np.array([0.9, 0.1], np.float16), (2000, 1))
    >>> yardstick = Yardstick(("cat", "dog"), Baseline(("cat", "dog"), rows, np.repeat([0, 0, 0, 1], 500)))
    >>> now = Window(("cat", "dog"), np.zeros(1000), np.zeros(1000, int), rows[:1000, 0].astype(np.float32),
    ...              np.repeat([0, 1], 500), probabilities=rows[:1000])
    >>> for sighting in look(yardstick.count(now), yardstick, Limits(), "short"):
    ...     print(sighting.metric, sighting.level, sighting.status)
    non_finite ok
    accuracy immediate confirmed
    confidence_distribution ok
    prediction_distribution ok
    """
    alarms = alarms or {}
    results = {result.metric: result for result in compare(counts, yardstick, limits, window)}
    changed = [result for result in results.values() if result.family == "input" and result.drifted]
    seen = [_non_finite(counts, limits, window), _accuracy(counts, yardstick, limits, window)]
    supposed = _supposed(counts, yardstick, limits)
    for metric, others in ((CONFIDENCE, ("mean_confidence", "softmax_distribution")), (PREDICTIONS, ())):
        also = [results[name] for name in others if results[name].drifted]
        seen.append(_drift(results[metric], also, changed, counts, supposed))
    return [_alarmed(sighting, alarms.get(sighting.metric)) for sighting in seen]


def _alarmed(sighting: Sighting, alarm: Alarm | None) -> Sighting:
    """A sighting that an alarm vouches for."""
    if alarm is None or (sighting.explained and sighting.level == LEVELS[0]):
        return sighting
    since = f"An alarm says that this began about {alarm.length:,} {_unit(sighting)} ago."
    message = f"{sighting.message or f'{_named(sighting)} changed.'} {since}"
    status = "suspected" if sighting.metric == ACCURACY else "estimate"
    if sighting.level == LEVELS[0]:
        sighting = replace(sighting, level="warning", status=status, value=sighting.value or 0.0)
    return replace(sighting, message=message, like_before=False)


def _unit(sighting: Sighting) -> str:
    return "labels" if sighting.metric == ACCURACY else "predictions"


def _named(sighting: Sighting) -> str:
    return sighting.metric.replace("_", " ").capitalize()


def _levels(limits: Limits) -> dict[str, float]:
    return {level: limits.threshold(level) for level in LEVELS[1:]}


def _non_finite(counts: Counts, limits: Limits, window: str) -> Sighting:
    """A prediction that is not a number helps nobody: each counts as lost accuracy, with or without labels."""
    if counts.n < limits.minimum_predictions:
        return Sighting(metric=NON_FINITE, window=window)
    share = counts.non_finite / counts.n
    level = limits.level(share)
    message = (
        f"{share:.1%} of {_period(counts)} held NaN or infinite probabilities, which are left out of all other "
        "figures; check the model and its input."
    )
    status = "confirmed" if level != LEVELS[0] else ""
    return Sighting(level, status, share, _levels(limits), metric=NON_FINITE, window=window, message=message)


def _accuracy(counts: Counts, yardstick: Yardstick, limits: Limits, window: str) -> Sighting:
    figures = degradation(counts, yardstick, limits)
    sample = label_sample(counts, yardstick.reference, limits)
    drop, level, status = figures["degradation"], figures["level"], figures["status"]
    explained = counts.effective < counts.finite / MOST_REPEATED or (sample is not None and sample.fair is False)
    if level is None or sample is None or yardstick.reference is None:
        return Sighting(metric=ACCURACY, window=window, threshold=_levels(limits), explained=explained)
    certain = figures["degradation_lower_bound"]
    if status == "suspected" and certain is not None:
        sure = min(limits.level(certain), sample.may_confirm, key=limits.severity)
        if sure != LEVELS[0] and limits.level(certain) != level:
            level, status = sure, "confirmed"  # of a milder level
    proven = status == "confirmed" or (certain is not None and limits.level(certain) == level)
    known = f"at least {certain:.1%} of it certain" if proven else "how much of it is not yet certain"
    known += " if they are a fair sample" if proven and status == "suspected" else ""
    message = (
        f"Accuracy fell from {figures['reference_accuracy']:.1%} to {sample.accuracy:.1%} in "
        f"{_period(counts)}, by the {sample.n:,} labels told so far: a drop of {drop:.1%}, {known}"
        f"{_worst_class(counts, yardstick.reference, yardstick.classes)}{f'; {sample.note}' if sample.note else ''}."
    )
    status = "" if status == "none" else status
    return Sighting(
        level, status, drop, _levels(limits), metric=ACCURACY, window=window, message=message, explained=explained
    )


def _drift(
    result: DriftResult, also: Sequence[DriftResult], inputs: Sequence[DriftResult], counts: Counts, supposed: str
) -> Sighting:
    """Without labels nobody knows the harm, so this is never more than a warning."""
    threshold = {"warning": result.minimum_effect}
    if result.effect is None or result.p_value is None:
        return Sighting(metric=result.metric, window=result.window, threshold=threshold)
    level, status = ("warning", "estimate") if result.drifted or also else (LEVELS[0], "")
    evidence = f"effect {result.effect:.3f}, {result.minimum_effect:g} would matter, p {p_text(result.p_value)}"
    more = "".join(f"; {entry.metric.replace('_', ' ')}: {entry.detail}" for entry in also)
    pictures = ", ".join(f"{entry.metric} ({entry.detail})" for entry in inputs)
    message = (
        f"{result.metric.replace('_', ' ').capitalize()} changed in {_period(counts)}: {result.detail} ({evidence})"
        f"{more}{f'; the pictures changed too: {pictures}' if pictures else ''}{supposed}."
    )
    # The largest of the effects, in units of what would matter: what shows in one only keeps the alert standing.
    value = max(entry.effect / entry.minimum_effect for entry in (result, *also) if entry.effect is not None)
    return Sighting(
        level, status, value * result.minimum_effect, threshold,
        # At the edge of noise D hovers around the minimum effect; "no drift" even without correction is calm.
        like_before=result.p_value > 0.05 and not also,
        metric=result.metric, window=result.window, message=message,
    )  # fmt: skip


def _supposed(counts: Counts, yardstick: Yardstick, limits: Limits) -> str:
    """What accuracy may be by now, and how many labels would settle it."""
    guess = estimate(counts, yardstick, limits)
    if guess is None:
        return ""
    needed = statistics.labels_needed(guess["reference_accuracy"])
    settle = f"label about {needed:,} of these predictions to know"
    if guess["degradation"] is None:
        return f"; whether that does harm cannot be told without labels: {settle}"
    low, high = guess["accuracy_interval"]
    estimated = f"{guess['accuracy']:.1%} ({low:.1%} to {high:.1%})"
    return f"; accuracy is estimated at {estimated}, which no label confirms: {settle}"


def _period(counts: Counts) -> str:
    since = datetime.fromtimestamp(counts.since, UTC)
    return f"the last {counts.n:,} predictions (since {since:%Y-%m-%d %H:%M} UTC)"


def _worst_class(counts: Counts, reference: Counts, classes: Sequence[str]) -> str:
    """The class whose recall fell most, as a clause; nothing when none fell, as far as labels tell."""
    now, before = counts.confusion_matrix, reference.confusion_matrix
    cases, usual_cases = now.sum(axis=1), before.sum(axis=1)
    if not (enough := (cases >= FEWEST_OF_A_CLASS) & (usual_cases >= FEWEST_OF_A_CLASS)).any():
        return ""
    recall, usual = (np.diagonal(each) / np.maximum(each.sum(axis=1), 1) for each in (now, before))
    worst = int(np.where(enough, usual - recall, -np.inf).argmax())
    if recall[worst] >= usual[worst]:
        return ""
    return f"; worst is {classes[worst]!r}, found {recall[worst]:.0%} of the time instead of {usual[worst]:.0%}"
