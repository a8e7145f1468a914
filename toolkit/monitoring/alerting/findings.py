"""What a window shows of each metric, how bad that is, and the figures of the sentence that says so.

Nothing here looks at a store or decides whether anybody is told: see ``states``; the sentences are in ``sentences``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from toolkit.monitoring.alerting import messages
from toolkit.monitoring.alerting.messages import (
    AccuracyFigures,
    AccuracyImpact,
    ClassRecall,
    DriftFigures,
    Period,
    Text,
)
from toolkit.monitoring.alerting.state import Evaluation, evaluations_to_clear
from toolkit.monitoring.base.predictions import WINDOWS
from toolkit.monitoring.base.thresholds import LEVELS, Thresholds
from toolkit.monitoring.report import name
from toolkit.monitoring.stats import hypothesis_tests
from toolkit.monitoring.stats.detector_set import ACCURACY, CONFIDENCE, PREDICTIONS
from toolkit.monitoring.stats.e_detectors import Alarm
from toolkit.monitoring.windows.drift import DriftResult, run_tests
from toolkit.monitoring.windows.label_bias import label_bias
from toolkit.monitoring.windows.metrics import degradation, estimated_accuracy
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.monitoring.windows.summary import WindowSummary

# The windows that are watched, and how many predictions or labels lie between two looks: a tenth of each.
EVALUATION_INTERVALS = {name: size // 10 for name, size in WINDOWS.items() if size is not None}
MIN_PER_CLASS = 10  # labels of a class below which its recall is not worth naming
MAX_REPEATED = 2  # predictions to one independent one, above which an alarm by labels may come of bursts
MAX_CHANGES_SHOWN = 2  # classes whose share changed most, in a sentence
NON_FINITE = "non_finite"
NO_FINDINGS = Text()

ADVICE = {
    "ok": "",
    "warning": "look at recent images and label some of them",
    "critical": "consider going back to the version before, and retraining",
    "immediate": "go back to the version before now",
}


LEVEL_NAMES = {CONFIDENCE: "CONFIDENCE", PREDICTIONS: "PREDICTED CLASSES"}
PROBABILITIES = "softmax_distribution"


@dataclass(frozen=True)
class Finding(Evaluation):
    """What one look saw of one metric in one window.

    Parameters
    ----------
    text
        What is said of it.
    command
        What to type to know more.
    """

    metric: str = ""
    window: str = ""
    text: Text = NO_FINDINGS
    command: str = messages.REPORT

    @property
    def what_to_do(self) -> str:
        """Advice for this level."""
        return ADVICE[self.level]

    @property
    def details(self) -> str:
        """The figures behind the message, a line each."""
        return self.text.details

    def alert_text(self, level: str) -> str:
        """What an alert of a level says, in one line that ends with what to type next.

        >>> Sighting(text=Text("ACCURACY 84 -> 66 %"), status="confirmed").told("immediate")
        'ACCURACY 84 -> 66 %. Next: python model_registry.py rollback'
        """
        certain = self.status == "confirmed" and Thresholds.severity(level) > Thresholds.severity("warning")
        return self.text.with_command(messages.ROLLBACK if certain else self.command)


def evaluate_window(
    counts: WindowSummary,
    yardstick: ReferenceBins,
    limits: Thresholds,
    window: str,
    alarms: Mapping[str, Alarm] | None = None,
) -> list[Finding]:
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
    >>> from toolkit.bundle.baseline import Baseline
    >>> from toolkit.monitoring.base.predictions import Window
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
    results = {result.metric: result for result in run_tests(counts, yardstick, limits, window)}
    images = [result for result in results.values() if result.family == "input" and result.drifted]
    seen = [
        _non_finite(counts, limits, window),
        _accuracy(counts, yardstick, limits, window, alarms.get(ACCURACY)),
    ]
    harm = _harm(counts, yardstick, limits)
    for metric, others in ((CONFIDENCE, ("mean_confidence", PROBABILITIES)), (PREDICTIONS, ())):
        tested = [results[metric], *(results[other] for other in others)]
        seen.append(_drift(tested, images, counts, yardstick, limits, alarms.get(metric), harm))
    return [_ignored(sighting) if limits.ignores(sighting.metric, window) else sighting for sighting in seen]


def _ignored(sighting: Finding) -> Finding:
    """A sighting that raises nothing, and clears what stood before it was ignored."""
    return Finding(
        value=1.0, threshold={"warning": 1.0}, unchanged=True, metric=sighting.metric, window=sighting.window
    )


def _levels(limits: Thresholds) -> dict[str, float]:
    return {level: limits.threshold(level) for level in LEVELS[1:]}


def _period(counts: WindowSummary) -> Period:
    return Period(counts.n, counts.since, counts.until)


def _non_finite(counts: WindowSummary, limits: Thresholds, window: str) -> Finding:
    """A prediction that is not a number helps nobody: each counts as lost accuracy, with or without labels."""
    if counts.n < limits.minimum_predictions:
        return Finding(metric=NON_FINITE, window=window)
    share = counts.non_finite / counts.n
    level = limits.level(share)
    text = messages.non_finite(_period(counts), counts.non_finite)
    status = "confirmed" if level != LEVELS[0] else ""
    return Finding(level, status, share, _levels(limits), metric=NON_FINITE, window=window, text=text)


def _accuracy(
    counts: WindowSummary, yardstick: ReferenceBins, limits: Thresholds, window: str, alarm: Alarm | None
) -> Finding:
    figures = degradation(counts, yardstick, limits)
    sample = label_bias(counts, yardstick.reference, limits)
    drop, level, status = figures.degradation, figures.level, figures.status
    certain, usual = figures.degradation_lower_bound, yardstick.reference
    repeated = counts.effective_n < counts.n_finite / MAX_REPEATED
    if (repeated or (sample is not None and sample.fair is False)) and level in (None, LEVELS[0]):
        alarm = None  # it may come of the choice of the labels, or of bursts among them
    if usual is None or not usual.n_correct or (level is None and alarm is None):
        return Finding(metric=ACCURACY, window=window, threshold=_levels(limits))
    if status == "suspected" and certain is not None and sample is not None:
        sure = min(limits.level(certain), sample.may_confirm, key=limits.severity)
        if sure != LEVELS[0] and limits.level(certain) != level:
            level, status = sure, "confirmed"  # of a milder level
    enough = level is not None
    seen = level or LEVELS[0]
    told = AccuracyFigures(
        _period(counts), sample.accuracy if sample else None, sample.n if sample else 0,
        usual.n_correct / usual.n, usual.n, certain, seen, status,
        _fallen(counts, usual, yardstick.classes), alarm.length if alarm else None,
        sample.note if sample else "", sample is None or sample.fair is not False,
    )  # fmt: skip
    value = max(0.0, drop) if enough and drop is not None else None
    if seen == LEVELS[0]:
        seen, status = ("warning", "suspected") if alarm else (LEVELS[0], "")
        value = 0.0 if alarm and value is None else value
    return Finding(
        seen, status, value, _levels(limits),
        to_clear=_blocks_to_clear(usual.n_correct / usual.n, sample.effective_n if sample else 0.0, limits),
        metric=ACCURACY, window=window, text=messages.accuracy(told, limits),
        command=messages.REPORT if status == "confirmed" else messages.LABEL,
    )  # fmt: skip


def _blocks_to_clear(usual: float, n_labels: float, limits: Thresholds) -> int:
    """How long it must be calm with so many independent labels in a window, were accuracy at the mildest threshold."""
    fallen = usual * (1 - limits.warning)
    deviation = math.sqrt(fallen * (1 - fallen) / max(n_labels, 1.0)) / usual  # of the relative drop
    return evaluations_to_clear(limits.warning, deviation, limits.confidence)


def _drift(
    tested: Sequence[DriftResult], images: Sequence[DriftResult], counts: WindowSummary, yardstick: ReferenceBins,
    limits: Thresholds, alarm: Alarm | None, harm: AccuracyImpact | None,
) -> Finding:  # fmt: skip
    """Without labels nobody knows the harm, so this is never more than a warning.

    Parameters
    ----------
    tested
        The metric itself, and others that speak for it.
    """
    result = tested[0]
    found = [one for one in tested if one.drifted]
    blank = Finding(metric=result.metric, window=result.window, threshold={"warning": result.minimum_effect})
    known = result.effect is not None and result.p_value is not None
    if not known and alarm is None:
        return blank
    text = messages.drift(
        DriftFigures(
            LEVEL_NAMES[result.metric],
            _period(counts),
            [_what_changed(one, counts, yardstick) for one in found],
            [(name(one.metric), one.detail) for one in images],
            harm,
            _direction(alarm, yardstick) if alarm else "",
            alarm.length if alarm else 0,
        )
    )
    level, status = ("warning", "estimate") if found or alarm else (LEVELS[0], "")
    command = harm.command if harm else messages.REPORT
    if not known:
        return replace(blank, level=level, status=status, value=0.0, text=text, command=command)
    # The largest of the effects, in units of what would matter: what shows in one only keeps the alert standing.
    sizes = [one.effect / one.minimum_effect for one in (result, *found) if one.effect is not None]
    deviation = 0.5 / math.sqrt(max(counts.effective_n, 1.0))  # of a share, at most
    return replace(
        blank, level=level, status=status, value=max(sizes) * result.minimum_effect,
        # At the edge of noise the effect hovers around the least; "no drift" even without correction is calm.
        unchanged=(result.p_value or 0.0) > 0.05 and not found and alarm is None,
        to_clear=evaluations_to_clear(result.minimum_effect, deviation, limits.confidence), text=text, command=command,
    )  # fmt: skip


def _what_changed(result: DriftResult, counts: WindowSummary, yardstick: ReferenceBins) -> str:
    """The change that a test found, as a clause."""
    if result.metric != PREDICTIONS or yardstick.reference is None:
        return f"{'probabilities, ' if result.metric == PROBABILITIES else ''}{result.detail}"
    before, now = (each.classes / each.classes.sum() for each in (yardstick.reference, counts))
    return messages.largest_changes(yardstick.classes, before.tolist(), now.tolist(), MAX_CHANGES_SHOWN)


def _direction(alarm: Alarm, yardstick: ReferenceBins) -> str:
    """What an alarm says has changed."""
    if alarm.label is not None:
        return f"{name(yardstick.classes[alarm.label])} {alarm.change}"
    return messages.DIRECTIONS[alarm.change]


def _harm(counts: WindowSummary, yardstick: ReferenceBins, limits: Thresholds) -> AccuracyImpact | None:
    """What accuracy is by the labels, or may be without, and how many labels would settle it."""
    guess = estimated_accuracy(counts, yardstick, limits)
    if guess is None or not guess.reference_accuracy:
        return None
    sample = label_bias(counts, yardstick.reference, limits)
    enough = degradation(counts, yardstick, limits).level is not None
    return AccuracyImpact(
        guess.reference_accuracy,
        counts.n_labels,
        sample.accuracy if sample and enough else None,
        guess.accuracy if guess.status == "estimate" else None,
        hypothesis_tests.required_labels(guess.reference_accuracy),
        sample.effective_n if sample else 0.0,
    )


def _fallen(counts: WindowSummary, reference: WindowSummary, classes: Sequence[str]) -> list[ClassRecall]:
    """The classes whose recall fell, most first, as far as labels tell."""
    now, before = counts.confusion_matrix, reference.confusion_matrix
    cases, usual_cases = now.sum(axis=1), before.sum(axis=1)
    enough = (cases >= MIN_PER_CLASS) & (usual_cases >= MIN_PER_CLASS)
    recall, usual = (np.diagonal(each) / np.maximum(each.sum(axis=1), 1) for each in (now, before))
    order = [k for k in np.argsort(recall - usual, kind="stable").tolist() if enough[k] and recall[k] < usual[k]]
    return [ClassRecall(classes[k], float(usual[k]), float(recall[k]), int(cases[k])) for k in order]
