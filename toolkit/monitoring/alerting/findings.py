"""Levels of each metric in a window, with the text of the alert; whether one is raised is decided in ``state``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from toolkit.monitoring.alerting import messages
from toolkit.monitoring.alerting.messages import ClassRecall, Text
from toolkit.monitoring.alerting.state import Evaluation, evaluations_to_clear
from toolkit.monitoring.base.formatting import class_name, percent_change
from toolkit.monitoring.base.predictions import WINDOWS
from toolkit.monitoring.base.thresholds import LEVELS, Thresholds
from toolkit.monitoring.stats.detector_set import ACCURACY, CONFIDENCE, PREDICTIONS
from toolkit.monitoring.stats.e_detectors import Alarm
from toolkit.monitoring.stats.hypothesis_tests import required_labels
from toolkit.monitoring.stats.performance import Degradation
from toolkit.monitoring.windows.drift import DriftResult, run_tests
from toolkit.monitoring.windows.label_bias import LabelBias, label_bias
from toolkit.monitoring.windows.metrics import degradation, estimated_accuracy
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.monitoring.windows.summary import WindowSummary

# Predictions or labels between two evaluations of a window: a tenth of it.
EVALUATION_INTERVALS = {name: size // 10 for name, size in WINDOWS.items() if size is not None}
MIN_PER_CLASS = 10  # labels of a class below which its recall is not worth naming
MAX_REPEATED = 2  # predictions to one independent one, above which an alarm by labels may come of bursts
MAX_CHANGES_SHOWN = 2  # classes with the largest change of share, in a sentence
NON_FINITE = "non_finite"
NO_TEXT = Text()

ADVICE = {
    "ok": "",
    "warning": "check recent images and label some of them",
    "critical": "consider a rollback to the version before, and retraining",
    "immediate": "roll back to the version before now",
}
PROBABILITIES = "softmax_distribution"
TESTED_TOGETHER = {CONFIDENCE: ("mean_confidence", PROBABILITIES), PREDICTIONS: ()}  # with each metric, for one alert
HEADINGS = {CONFIDENCE: "CONFIDENCE", PREDICTIONS: "PREDICTED CLASSES"}
DIRECTIONS = {"wider": "more often very high or very low", "narrower": "less often very high or very low"}


@dataclass(frozen=True)
class Finding(Evaluation):
    """The evaluation of one metric in one window, with the text of an alert, and a shell command that shows more."""

    metric: str = ""
    window: str = ""
    text: Text = NO_TEXT
    command: str = messages.REPORT

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

    A metric of which an alarm has just fired has certainly changed, though a window that is mostly of the time before
    may not show it yet: the finding is a warning at least.

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
    measured, sample = degradation(counts, bins, thresholds), label_bias(counts, bins.reference, thresholds)
    impact = _impact(counts, bins, thresholds, measured, sample)
    images = [
        (class_name(result.metric), result.detail)
        for result in results.values()
        if result.family == "input" and result.drifted
    ]
    findings = [
        _non_finite(counts, thresholds),
        _accuracy(counts, bins, thresholds, measured, sample, alarms.get(ACCURACY)),
    ]
    for metric, others in TESTED_TOGETHER.items():
        tested = [results[metric], *(results[other] for other in others)]
        findings.append(_drift(tested, images, counts, bins, thresholds, alarms.get(metric), impact))
    # An ignored metric raises nothing, and clears an alert raised before it was ignored.
    return [
        Finding(value=1.0, threshold=1.0, unchanged=True, metric=finding.metric, window=window)
        if thresholds.ignores(finding.metric, window)
        else replace(finding, window=window)
        for finding in findings
    ]


def _non_finite(counts: WindowSummary, thresholds: Thresholds) -> Finding:
    """Predictions that are not numbers: each counts as lost accuracy, with or without labels."""
    if counts.n < thresholds.minimum_predictions:
        return Finding(metric=NON_FINITE)
    share = counts.non_finite / counts.n
    level = thresholds.level(share)
    status = "confirmed" if level != LEVELS[0] else ""
    return Finding(level, status, share, thresholds.warning, metric=NON_FINITE, text=messages.non_finite(counts))


def _accuracy(
    counts: WindowSummary, bins: ReferenceBins, thresholds: Thresholds, measured: Degradation,
    sample: LabelBias | None, alarm: Alarm | None,
) -> Finding:  # fmt: skip
    drop, level, status = measured.degradation, measured.level, measured.status
    certain, reference = measured.degradation_lower_bound, bins.reference
    repeated = counts.effective_n < counts.n_finite / MAX_REPEATED
    if (repeated or (sample is not None and sample.fair is False)) and level in (None, LEVELS[0]):
        alarm = None  # it may come of the choice of the labels, or of bursts among them
    blank = Finding(threshold=thresholds.warning, metric=ACCURACY)
    if reference is None or not reference.n_correct or (level is None and alarm is None):
        return blank
    if status == "suspected" and certain is not None and sample is not None:
        sure = min(thresholds.level(certain), sample.may_confirm, key=thresholds.severity)
        if sure != LEVELS[0] and thresholds.level(certain) != level:
            level, status = sure, "confirmed"  # of a milder level
    shown, usual = level or LEVELS[0], reference.n_correct / reference.n
    text = messages.accuracy(
        counts, reference, sample, shown, status, certain or 0.0,
        _fallen(counts, reference, bins.classes), alarm.length if alarm else None, thresholds,
    )  # fmt: skip
    value = max(0.0, drop) if level is not None and drop is not None else None
    if shown == LEVELS[0]:
        shown, status = ("warning", "suspected") if alarm else (LEVELS[0], "")
        value = 0.0 if alarm and value is None else value
    # Calm intervals that this many independent labels need to show a drop at the mildest threshold.
    fallen = usual * (1 - thresholds.warning)
    deviation = math.sqrt(fallen * (1 - fallen) / max(sample.effective_n if sample else 0.0, 1.0)) / usual
    to_clear = evaluations_to_clear(thresholds.warning, deviation, thresholds.confidence)
    command = messages.REPORT if status == "confirmed" else messages.LABEL
    return replace(blank, level=shown, status=status, value=value, to_clear=to_clear, text=text, command=command)


def _fallen(counts: WindowSummary, reference: WindowSummary, classes: Sequence[str]) -> list[ClassRecall]:
    """The classes that lost recall, largest drop first."""
    now, before = counts.confusion_matrix, reference.confusion_matrix
    cases, cases_before = now.sum(axis=1), before.sum(axis=1)
    recall, recall_before = (np.diagonal(each) / np.maximum(each.sum(axis=1), 1) for each in (now, before))
    fallen = (cases >= MIN_PER_CLASS) & (cases_before >= MIN_PER_CLASS) & (recall < recall_before)
    order = [k for k in np.argsort(recall - recall_before, kind="stable").tolist() if fallen[k]]
    return [
        ClassRecall(f"{class_name(classes[k])}, recall {percent_change(recall_before[k], recall[k])}", int(cases[k]))
        for k in order
    ]


def _impact(
    counts: WindowSummary, bins: ReferenceBins, thresholds: Thresholds, measured: Degradation, sample: LabelBias | None
) -> tuple[str, int | None]:
    """Effect of a drift on accuracy, empty when unknown; and the labels that would confirm it, None when known."""
    guess = estimated_accuracy(counts, bins, thresholds)
    if guess is None or not guess.reference_accuracy:
        return "", None
    by_labels = sample.accuracy if sample and measured.level is not None else None
    clause = messages.impact(counts, guess, by_labels, sample.effective_n if sample else 0.0)
    return clause, required_labels(guess.reference_accuracy) if by_labels is None else None


def _drift(
    tested: Sequence[DriftResult], images: Sequence[tuple[str, str]], counts: WindowSummary, bins: ReferenceBins,
    thresholds: Thresholds, alarm: Alarm | None, impact: tuple[str, int | None],
) -> Finding:  # fmt: skip
    """A change of a distribution: without labels its harm is unknown, so it is a warning at most.

    ``tested`` has the test of the metric itself, then those of others that stand for it.
    """
    result, found = tested[0], [one for one in tested if one.drifted]
    blank = Finding(threshold=result.minimum_effect, metric=result.metric)
    known = result.effect is not None and result.p_value is not None
    if not known and alarm is None:
        return blank
    change, length, (harm, n_labels) = "", 0, impact
    if alarm:
        name = [class_name(bins.classes[alarm.label])] if alarm.label is not None else []
        change, length = " ".join([*name, DIRECTIONS.get(alarm.change, alarm.change)]), alarm.length
    changes = [_what_changed(one, counts, bins) for one in found]
    blank = replace(
        blank,
        level="warning" if found or alarm else LEVELS[0],
        status="estimate" if found or alarm else "",
        text=messages.drift(HEADINGS[result.metric], counts, changes, images, harm, n_labels, change, length),
        command=messages.LABEL if n_labels is not None else messages.REPORT,
    )
    if not known:
        return replace(blank, value=0.0)
    # The largest effect, in units of the least that matters: one that remains keeps the alert active.
    sizes = [one.effect / one.minimum_effect for one in (result, *found) if one.effect is not None]
    deviation = 0.5 / math.sqrt(max(counts.effective_n, 1.0))  # of a share, at most
    return replace(
        blank,
        value=max(sizes) * result.minimum_effect,
        # Near the noise level the effect hovers around the least; "no drift" even uncorrected is calm.
        unchanged=(result.p_value or 0.0) > 0.05 and not found and alarm is None,
        to_clear=evaluations_to_clear(result.minimum_effect, deviation, thresholds.confidence),
    )


def _what_changed(result: DriftResult, counts: WindowSummary, bins: ReferenceBins) -> str:
    """The change that a test found, as a clause."""
    if result.metric != PREDICTIONS or bins.reference is None:
        return f"{'probabilities, ' if result.metric == PROBABILITIES else ''}{result.detail}"
    before, now = (each.classes / each.classes.sum() for each in (bins.reference, counts))
    largest = np.argsort(-np.abs(now - before), kind="stable")[:MAX_CHANGES_SHOWN].tolist()
    return ", ".join(f"{class_name(bins.classes[k])} {percent_change(before[k], now[k])}" for k in largest)
