"""Metrics of a window, from its counts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.stats import performance
from toolkit.monitoring.windows.label_bias import LabelBias, effective_labels, label_bias
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.monitoring.windows.summary import STEPS, WindowSummary
from toolkit.statistics.calibration import CalibrationBins


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """The relative drop of accuracy by labels; see ``performance.degradation``.

    Parameters
    ----------
    reference_accuracy, reference_n
        Accuracy on the held-out images, and their number.
    degradation
        ``(reference_accuracy - accuracy) / reference_accuracy``.
    degradation_lower_bound
        Its lower confidence bound.
    level
        ``ok``, ``warning``, ``critical`` or ``immediate``, by the observed drop; None with too few labels.
    status
        ``none``, ``suspected``, ``confirmed`` or ``insufficient_data``.
    """

    reference_accuracy: float | None
    reference_n: int
    degradation: float | None
    degradation_lower_bound: float | None
    level: str | None
    status: str


@dataclass(frozen=True, kw_only=True)
class EstimatedAccuracy(Degradation):
    """The estimate of accuracy without labels, and its drop; see ``PerformanceEstimator``.

    Parameters
    ----------
    accuracy, accuracy_interval
        The estimate and its 95 % interval.
    method
        The one of ``performance_estimation.METHODS`` that it comes from.
    n
        Number of predictions.
    note
        The reason when ``status`` is ``insufficient_data``.
    """

    accuracy: float | None
    accuracy_interval: Sequence[float] | None
    method: str | None
    n: int
    note: str | None


@dataclass(frozen=True, kw_only=True)
class LabelsUsed:
    """The labels that accuracy is measured by; see ``label_bias.LabelBias``.

    Parameters
    ----------
    kind
        ``drawn`` by the monitor at random; ``all`` of the predictions; ``chosen`` in another way.
    fair
        Whether their predictions are distributed like all predictions of the window.
    n, n_drawn
        Number of labels, and of those of the window that are of a sample drawn at random.
    effective_n
        Number of independent labels that they are equivalent to.
    unweighted_accuracy
        Share of them that was right.
    may_confirm
        The worst level that they can confirm.
    note
        Restrictions of the labels; empty for a fair sample.
    """

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
class WindowMetrics:
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
    reference_accuracy, reference_n
        Accuracy on the held-out images, and their number.
    degradation, degradation_lower_bound, level, status
        The relative drop of accuracy below that; see ``Degradation``.
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
    reference_accuracy: float | None
    reference_n: int
    degradation: float | None
    degradation_lower_bound: float | None
    level: str | None
    status: str
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
    """The metrics of a window.

    Parameters
    ----------
    counts
        Of the window, made with ``bins``.
    bins
        With the reference, without which degradation is unknown.
    thresholds
        Of degradation.
    window, model_version, evidence
        As in ``WindowMetrics``.

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
    del labelled["calibration_curve"]
    if sample is not None:
        labelled |= {"accuracy": sample.accuracy, "accuracy_interval": list(sample.interval)}
    return WindowMetrics(
        model_version=model_version,
        window=window,
        n=counts.n,
        since=counts.since if counts.n else None,
        until=counts.until if counts.n else None,
        **labelled,
        labels_used=_labels_used(sample, counts) if sample else None,
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


def _labels_used(sample: LabelBias, counts: WindowSummary) -> LabelsUsed:
    return LabelsUsed(
        kind=sample.kind,
        fair=sample.fair,
        n=sample.n,
        n_drawn=int(counts.strata[3].sum()),
        effective_n=sample.effective_n,
        unweighted_accuracy=sample.unweighted_accuracy,
        may_confirm=sample.may_confirm,
        note=sample.note,
    )


def degradation(counts: WindowSummary, bins: ReferenceBins, thresholds: Thresholds) -> Degradation:
    """The relative drop of accuracy in a window, by its labels."""
    reference = bins.reference
    right, n = (reference.n_correct, reference.n) if reference else (0, 0)
    sample = label_bias(counts, reference, thresholds)
    if sample is None:
        return Degradation(**performance.degradation(0, 0, right, n, thresholds))
    found = performance.degradation(
        sample.accuracy * sample.n, sample.n, right, n, thresholds, sample.effective_n,
        weighted=None if sample.fair else sample, may_confirm=sample.may_confirm,
    )  # fmt: skip
    return Degradation(**found)


def estimated_accuracy(counts: WindowSummary, bins: ReferenceBins, thresholds: Thresholds) -> EstimatedAccuracy | None:
    """The accuracy in a window, estimated without labels; None without a reference."""
    estimator = bins.estimator
    if estimator is None:
        return None
    found = estimator.from_sums(counts.score_sums, counts.n_finite, counts.effective_n)
    return EstimatedAccuracy(**estimator.degradation(found, thresholds))


def calibration_of(counts: WindowSummary) -> CalibrationBins:
    """The labelled predictions in bins of confidence."""
    n, right, total = counts.calibration
    among = np.where(n, n, np.nan)
    return CalibrationBins(total / STEPS / among, right / among, n)
