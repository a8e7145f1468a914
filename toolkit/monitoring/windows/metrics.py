"""Metrics of a window, from its counts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from toolkit.monitoring.base.thresholds import LEVELS, Thresholds
from toolkit.monitoring.stats import performance
from toolkit.monitoring.stats.hypothesis_tests import degradation_lower_bound
from toolkit.monitoring.stats.performance import Degradation
from toolkit.monitoring.stats.performance_estimation import EstimatedAccuracy
from toolkit.monitoring.windows.label_bias import effective_labels, label_bias
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.monitoring.windows.summary import STEPS, WindowSummary
from toolkit.statistics.calibration import CalibrationBins


@dataclass(frozen=True, kw_only=True)
class LabelsUsed:
    """The labels that accuracy is measured by, as in ``LabelBias``."""

    kind: str
    fair: bool
    n: int
    n_drawn: int
    effective_n: float
    unweighted_accuracy: float
    may_confirm: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Median and 95th percentile of the time of an answer, in milliseconds."""

    median: float | None
    p95: float | None


@dataclass(frozen=True, kw_only=True)
class WindowMetrics(Degradation):
    """Metrics of a window. Unknown values are None, never NaN; intervals are of 95 %.

    Parameters
    ----------
    model_version
        The version that made the predictions; None without predictions.
    window
        ``short``, ``medium`` or ``long``.
    n, since, until
        Number of predictions, and the times of the first and the last, in seconds since 1970.
    n_labels
        Number of labelled predictions.
    accuracy, accuracy_interval
        Share of right predictions; weighted where the labels are not a fair sample.
    precision_weighted, recall_weighted, f1_weighted, and their intervals
        Of the labelled predictions, weighted by how often each true class occurs.
    labels_used
        The labels behind these metrics; None without labels.
    reference_accuracy, reference_n, degradation, degradation_lower_bound, level, status
        The relative drop of accuracy below the reference; see ``Degradation``.
    calibration_error, calibration_error_interval
        Expected calibration error of the labelled predictions.
    estimate
        Accuracy estimated without labels; None without a reference.
    mean_confidence, confidence_std
        Mean and standard deviation of the confidence.
    class_shares
        Share of predictions of each class.
    non_finite
        Number of predictions with NaN or infinity.
    latency_ms
        Time of an answer.
    predictions_per_second
        Between the first and the last.
    evidence
        Evidence of each detector, from 0 to 1 (an alarm), by metric.
    """

    model_version: str | None = None
    window: str = ""
    n: int
    since: float | None
    until: float | None
    n_labels: int
    accuracy: float | None
    accuracy_interval: Sequence[float] | None
    precision_weighted: float | None
    precision_weighted_interval: Sequence[float] | None
    recall_weighted: float | None
    recall_weighted_interval: Sequence[float] | None
    f1_weighted: float | None
    f1_weighted_interval: Sequence[float] | None
    labels_used: LabelsUsed | None
    calibration_error: float | None
    calibration_error_interval: Sequence[float] | None
    estimate: EstimatedAccuracy | None
    mean_confidence: float | None
    confidence_std: float | None
    class_shares: Mapping[str, float]
    non_finite: int
    latency_ms: Latency
    predictions_per_second: float | None
    evidence: Mapping[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


def window_metrics(
    counts: WindowSummary,
    bins: ReferenceBins,
    thresholds: Thresholds,
    window: str = "",
    model_version: str | None = None,
    evidence: Mapping[str, float | None] | None = None,
) -> WindowMetrics:
    """The metrics of a window that was counted in ``bins``.

    Examples
    --------
    >>> from toolkit.monitoring.base.predictions import Predictions
    >>> bins = ReferenceBins(("cat", "dog"))
    >>> window = Predictions(("cat", "dog"), np.arange(4.0), np.array([0, 1, 1, 1]),
    ...                 np.array([0.875, 0.75, 0.75, 0.625]), np.array([0, 1, 0, -1]))
    >>> metrics = window_metrics(bins.count(window), bins, Thresholds())
    >>> metrics.n, metrics.n_labels, round(metrics.accuracy, 3), metrics.class_shares
    (4, 3, 0.667, {'cat': 0.25, 'dog': 0.75})
    >>> metrics.mean_confidence, metrics.predictions_per_second
    (0.75, 1.0)
    """
    answered, confidence = counts.n_finite, counts.confidence
    shares = counts.classes / max(answered, 1)
    span = counts.until - counts.since
    effective_n = effective_labels(counts)
    sample = label_bias(counts, bins.reference, thresholds)
    labelled = performance.classification_metrics(counts.confusion_matrix, effective_n)
    labelled |= performance.calibration(calibration_of(counts), effective_n)
    if sample is not None:
        labelled |= {"accuracy": sample.accuracy, "accuracy_interval": list(sample.interval)}
    return WindowMetrics(
        model_version=model_version,
        window=window,
        n=counts.n,
        since=counts.since if counts.n else None,
        until=counts.until if counts.n else None,
        **labelled,
        labels_used=LabelsUsed(**{entry.name: getattr(sample, entry.name) for entry in fields(LabelsUsed)})
        if sample
        else None,
        **asdict(degradation(counts, bins, thresholds)),
        estimate=estimated_accuracy(counts, bins, thresholds),
        mean_confidence=confidence.mean if answered else None,
        confidence_std=confidence.deviation if answered > 1 else None,
        class_shares=dict(zip(bins.classes, shares.tolist(), strict=True)) if answered else {},
        non_finite=counts.non_finite,
        latency_ms=Latency(median=counts.latency_quantile(0.5), p95=counts.latency_quantile(0.95)),
        predictions_per_second=(counts.n - 1) / span if span > 0 else None,
        evidence=evidence or {},
    )


def degradation(counts: WindowSummary, bins: ReferenceBins, thresholds: Thresholds) -> Degradation:
    """The relative drop of accuracy in a window, by its labels.

    If they are a biased sample, the bound is that of the best case, and a drop that chance explains is ``ok``.
    """
    reference, sample = bins.reference, label_bias(counts, bins.reference, thresholds)
    if reference is None:
        return Degradation()
    found = Degradation(reference_accuracy=reference.n_correct / reference.n, reference_n=reference.n)
    if sample is None or not found.reference_accuracy:
        return found
    drop, usual = 1 - sample.accuracy / found.reference_accuracy, (reference.n_correct, reference.n)
    best, likely = (
        degradation_lower_bound(accuracy * n, n, *usual, thresholds.confidence)
        for accuracy, n in ((sample.best_case, sample.best_case_n), (sample.accuracy, sample.accuracy_n))
    )
    found = replace(found, degradation=drop, degradation_lower_bound=best if math.isfinite(best) else None)
    if sample.effective_n < thresholds.minimum_labels:
        return found
    level = thresholds.level(drop) if sample.fair or likely > 0 else LEVELS[0]
    provable = min(map(thresholds.severity, (thresholds.level(best), sample.may_confirm)))
    status = "confirmed" if provable >= thresholds.severity(level) else "suspected"
    return replace(found, level=level, status="none" if level == LEVELS[0] else status)


def estimated_accuracy(counts: WindowSummary, bins: ReferenceBins, thresholds: Thresholds) -> EstimatedAccuracy | None:
    """The accuracy in a window, estimated without labels; None without a reference."""
    if bins.estimator is None:
        return None
    found = bins.estimator.from_sums(counts.score_sums, counts.n_finite, counts.effective_n)
    return bins.estimator.degradation(found, thresholds)


def calibration_of(counts: WindowSummary) -> CalibrationBins:
    """The labelled predictions in bins of confidence."""
    n, right, total = counts.calibration
    among = np.where(n, n, np.nan)
    return CalibrationBins(total / STEPS / among, right / among, n)
