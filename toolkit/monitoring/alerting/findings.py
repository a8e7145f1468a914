"""Levels of each metric in a window, with the text of the alert; whether one is raised is decided in ``state``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from toolkit.monitoring.alerting import messages
from toolkit.monitoring.alerting.messages import (
    AccuracyChange,
    AccuracyImpact,
    ClassRecall,
    DistributionChange,
    Period,
    Text,
)
from toolkit.monitoring.alerting.state import Evaluation, evaluations_to_clear
from toolkit.monitoring.base.formatting import class_name
from toolkit.monitoring.base.predictions import WINDOWS
from toolkit.monitoring.base.thresholds import LEVELS, Thresholds
from toolkit.monitoring.stats import hypothesis_tests
from toolkit.monitoring.stats.detector_set import ACCURACY, CONFIDENCE, PREDICTIONS
from toolkit.monitoring.stats.e_detectors import Alarm
from toolkit.monitoring.windows.drift import DriftResult, run_tests
from toolkit.monitoring.windows.label_bias import label_bias
from toolkit.monitoring.windows.metrics import degradation, estimated_accuracy
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.monitoring.windows.summary import WindowSummary

# Predictions or labels between two evaluations of a window: a tenth of it.
EVALUATION_INTERVALS = {name: size // 10 for name, size in WINDOWS.items() if size is not None}
MIN_PER_CLASS = 10  # labels of a class below which its recall is not worth naming
MAX_REPEATED = 2  # predictions to one independent one, above which an alarm by labels may come of bursts
MAX_CHANGES_SHOWN = 2  # classes whose share changed most, in a sentence
NON_FINITE = "non_finite"
NO_FINDINGS = Text()

ADVICE = {
    "ok": "",
    "warning": "check recent images and label some of them",
    "critical": "consider a rollback to the version before, and retraining",
    "immediate": "roll back to the version before now",
}
HEADINGS = {CONFIDENCE: "CONFIDENCE", PREDICTIONS: "PREDICTED CLASSES"}
PROBABILITIES = "softmax_distribution"


@dataclass(frozen=True)
class Finding(Evaluation):
    """The evaluation of one metric in one window, with the text of an alert about it.

    Parameters
    ----------
    metric, window
        What was evaluated.
    text
        Headline and details.
    command
        Shell command that shows more.
    """

    metric: str = ""
    window: str = ""
    text: Text = NO_FINDINGS
    command: str = messages.REPORT

    @property
    def advice(self) -> str:
        """Advice at this level, in a sentence."""
        return ADVICE[self.level]

    @property
    def details(self) -> str:
        """The numbers behind the message, a line each."""
        return self.text.details

    def alert_text(self, level: str) -> str:
        """The message of an alert: one line that ends with the command to type next.

        >>> Finding(text=Text("ACCURACY 84 -> 66 %"), status="confirmed").alert_text("immediate")
        'ACCURACY 84 -> 66 %. Next: python model_registry.py rollback'
        """
        certain = self.status == "confirmed" and Thresholds.severity(level) > Thresholds.severity("warning")
        return self.text.with_command(messages.ROLLBACK if certain else self.command)


def evaluate_window(
    counts: WindowSummary,
    bins: ReferenceBins,
    thresholds: Thresholds,
    window: str,
    alarms: Mapping[str, Alarm] | None = None,
) -> list[Finding]:
    """Findings on the alerted metrics of a window: not finite, accuracy, confidence, predicted classes.

    Parameters
    ----------
    counts, bins
        The window, and the bins that it was counted in.
    thresholds
        Sizes at which levels begin, and the ignored metrics.
    window
        ``short`` or ``medium``.
    alarms
        Metric to the detector alarm that has just fired: a change that is certain, though a window that is mostly of
        the time before may not show it yet. The finding is a warning at least.

    Examples
    --------
    >>> from toolkit.bundle.baseline import Baseline
    >>> from toolkit.monitoring.base.predictions import Predictions
    >>> rows = np.tile(np.array([0.9, 0.1], np.float16), (2000, 1))
    >>> bins = ReferenceBins(("cat", "dog"), Baseline(("cat", "dog"), rows, np.repeat([0, 0, 0, 1], 500)))
    >>> now = Predictions(("cat", "dog"), np.zeros(1000), np.zeros(1000, int), rows[:1000, 0].astype(np.float32),
    ...              np.repeat([0, 1], 500), probabilities=rows[:1000])
    >>> for finding in evaluate_window(bins.count(now), bins, Thresholds(), "short"):
    ...     print(finding.metric, finding.level, finding.status)
    non_finite ok
    accuracy immediate confirmed
    confidence_distribution ok
    prediction_distribution ok
    """
    alarms = alarms or {}
    results = {result.metric: result for result in run_tests(counts, bins, thresholds, window)}
    images = [result for result in results.values() if result.family == "input" and result.drifted]
    findings = [
        _non_finite(counts, thresholds, window),
        _accuracy(counts, bins, thresholds, window, alarms.get(ACCURACY)),
    ]
    impact = _impact(counts, bins, thresholds)
    for metric, others in ((CONFIDENCE, ("mean_confidence", PROBABILITIES)), (PREDICTIONS, ())):
        tested = [results[metric], *(results[other] for other in others)]
        findings.append(_drift(tested, images, counts, bins, thresholds, alarms.get(metric), impact))
    return [_ignored(finding) if thresholds.ignores(finding.metric, window) else finding for finding in findings]


def _ignored(finding: Finding) -> Finding:
    """A finding that raises nothing, and clears an alert raised before the metric was ignored."""
    return Finding(value=1.0, threshold={"warning": 1.0}, unchanged=True, metric=finding.metric, window=finding.window)


def _levels(thresholds: Thresholds) -> dict[str, float]:
    return {level: thresholds.threshold(level) for level in LEVELS[1:]}


def _period(counts: WindowSummary) -> Period:
    return Period(counts.n, counts.since, counts.until)


def _non_finite(counts: WindowSummary, thresholds: Thresholds, window: str) -> Finding:
    """Predictions that are not numbers: each counts as lost accuracy, with or without labels."""
    if counts.n < thresholds.minimum_predictions:
        return Finding(metric=NON_FINITE, window=window)
    share = counts.non_finite / counts.n
    level = thresholds.level(share)
    text = messages.non_finite(_period(counts), counts.non_finite)
    status = "confirmed" if level != LEVELS[0] else ""
    return Finding(level, status, share, _levels(thresholds), metric=NON_FINITE, window=window, text=text)


def _accuracy(
    counts: WindowSummary, bins: ReferenceBins, thresholds: Thresholds, window: str, alarm: Alarm | None
) -> Finding:
    measured = degradation(counts, bins, thresholds)
    sample = label_bias(counts, bins.reference, thresholds)
    drop, level, status = measured.degradation, measured.level, measured.status
    certain, reference = measured.degradation_lower_bound, bins.reference
    repeated = counts.effective_n < counts.n_finite / MAX_REPEATED
    if (repeated or (sample is not None and sample.fair is False)) and level in (None, LEVELS[0]):
        alarm = None  # it may come of the choice of the labels, or of bursts among them
    if reference is None or not reference.n_correct or (level is None and alarm is None):
        return Finding(metric=ACCURACY, window=window, threshold=_levels(thresholds))
    if status == "suspected" and certain is not None and sample is not None:
        sure = min(thresholds.level(certain), sample.may_confirm, key=thresholds.severity)
        if sure != LEVELS[0] and thresholds.level(certain) != level:
            level, status = sure, "confirmed"  # of a milder level
    enough = level is not None
    shown, usual = level or LEVELS[0], reference.n_correct / reference.n
    summary = AccuracyChange(
        _period(counts), sample.accuracy if sample else None, sample.n if sample else 0,
        usual, reference.n, certain, shown, status,
        _fallen(counts, reference, bins.classes), alarm.length if alarm else None,
        sample.note if sample else "", sample is None or sample.fair is not False,
    )  # fmt: skip
    value = max(0.0, drop) if enough and drop is not None else None
    if shown == LEVELS[0]:
        shown, status = ("warning", "suspected") if alarm else (LEVELS[0], "")
        value = 0.0 if alarm and value is None else value
    return Finding(
        shown, status, value, _levels(thresholds),
        to_clear=_intervals_to_clear(usual, sample.effective_n if sample else 0.0, thresholds),
        metric=ACCURACY, window=window, text=messages.accuracy(summary, thresholds),
        command=messages.REPORT if status == "confirmed" else messages.LABEL,
    )  # fmt: skip


def _intervals_to_clear(reference_accuracy: float, n_labels: float, thresholds: Thresholds) -> int:
    """Calm intervals needed with so many independent labels in a window, were accuracy at the mildest threshold."""
    fallen = reference_accuracy * (1 - thresholds.warning)
    deviation = math.sqrt(fallen * (1 - fallen) / max(n_labels, 1.0)) / reference_accuracy  # of the relative drop
    return evaluations_to_clear(thresholds.warning, deviation, thresholds.confidence)


def _drift(
    tested: Sequence[DriftResult], images: Sequence[DriftResult], counts: WindowSummary, bins: ReferenceBins,
    thresholds: Thresholds, alarm: Alarm | None, impact: AccuracyImpact | None,
) -> Finding:  # fmt: skip
    """A change of a distribution: without labels its harm is unknown, so it is a warning at most.

    Parameters
    ----------
    tested
        Tests of the metric itself, then of others that stand for it.
    """
    result = tested[0]
    found = [one for one in tested if one.drifted]
    blank = Finding(metric=result.metric, window=result.window, threshold={"warning": result.minimum_effect})
    known = result.effect is not None and result.p_value is not None
    if not known and alarm is None:
        return blank
    text = messages.drift(
        DistributionChange(
            HEADINGS[result.metric],
            _period(counts),
            [_what_changed(one, counts, bins) for one in found],
            [(class_name(one.metric), one.detail) for one in images],
            impact,
            _direction(alarm, bins) if alarm else "",
            alarm.length if alarm else 0,
        )
    )
    level, status = ("warning", "estimate") if found or alarm else (LEVELS[0], "")
    command = impact.command if impact else messages.REPORT
    if not known:
        return replace(blank, level=level, status=status, value=0.0, text=text, command=command)
    # The largest effect, in units of the least that matters: one that remains keeps the alert active.
    sizes = [one.effect / one.minimum_effect for one in (result, *found) if one.effect is not None]
    deviation = 0.5 / math.sqrt(max(counts.effective_n, 1.0))  # of a share, at most
    return replace(
        blank, level=level, status=status, value=max(sizes) * result.minimum_effect,
        # Near the noise level the effect hovers around the least; "no drift" even uncorrected is calm.
        unchanged=(result.p_value or 0.0) > 0.05 and not found and alarm is None,
        to_clear=evaluations_to_clear(result.minimum_effect, deviation, thresholds.confidence),
        text=text, command=command,
    )  # fmt: skip


def _what_changed(result: DriftResult, counts: WindowSummary, bins: ReferenceBins) -> str:
    """The change that a test found, as a clause."""
    if result.metric != PREDICTIONS or bins.reference is None:
        return f"{'probabilities, ' if result.metric == PROBABILITIES else ''}{result.detail}"
    before, now = (each.classes / each.classes.sum() for each in (bins.reference, counts))
    return messages.largest_changes(bins.classes, before.tolist(), now.tolist(), MAX_CHANGES_SHOWN)


def _direction(alarm: Alarm, bins: ReferenceBins) -> str:
    """The change that an alarm found."""
    if alarm.label is not None:
        return f"{class_name(bins.classes[alarm.label])} {alarm.change}"
    return messages.DIRECTIONS[alarm.change]


def _impact(counts: WindowSummary, bins: ReferenceBins, thresholds: Thresholds) -> AccuracyImpact | None:
    """Accuracy by the labels, or estimated without them, and how many labels would confirm it."""
    guess = estimated_accuracy(counts, bins, thresholds)
    if guess is None or not guess.reference_accuracy:
        return None
    sample = label_bias(counts, bins.reference, thresholds)
    enough = degradation(counts, bins, thresholds).level is not None
    return AccuracyImpact(
        guess.reference_accuracy,
        counts.n_labels,
        sample.accuracy if sample and enough else None,
        guess.accuracy if guess.status == "estimate" else None,
        hypothesis_tests.required_labels(guess.reference_accuracy),
        sample.effective_n if sample else 0.0,
    )


def _fallen(counts: WindowSummary, reference: WindowSummary, classes: Sequence[str]) -> list[ClassRecall]:
    """The classes whose recall fell, largest drop first."""
    now, before = counts.confusion_matrix, reference.confusion_matrix
    cases, cases_before = now.sum(axis=1), before.sum(axis=1)
    enough = (cases >= MIN_PER_CLASS) & (cases_before >= MIN_PER_CLASS)
    recall, recall_before = (np.diagonal(each) / np.maximum(each.sum(axis=1), 1) for each in (now, before))
    order = [
        k
        for k in np.argsort(recall - recall_before, kind="stable").tolist()
        if enough[k] and recall[k] < recall_before[k]
    ]
    return [ClassRecall(classes[k], float(recall_before[k]), float(recall[k]), int(cases[k])) for k in order]
