"""The metrics of a set of predictions, from its counts: what people and programs ask for."""

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
    """The relative drop of accuracy by the labels: see ``performance.degradation``.

    Parameters
    ----------
    reference_accuracy, reference_n
        Accuracy on the held-out images, and how many there are.
    degradation
        ``(reference_accuracy - accuracy) / reference_accuracy``, as it was measured.
    degradation_lower_bound
        What of it is certain.
    level
        ``ok``, ``warning``, ``critical`` or ``immediate``, by the measured drop; None with too few labels.
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
    """The accuracy that no label has confirmed, and its drop: see ``estimates.Estimator``.

    Parameters
    ----------
    accuracy, accuracy_interval
        The estimate and its 95 % interval.
    method
        Which of ``estimates.METHODS`` it comes from.
    n
        Predictions it was made from.
    note
        Why nothing can be said, when ``status`` is ``insufficient_data``.
    """

    accuracy: float | None
    accuracy_interval: Sequence[float] | None
    method: str | None
    n: int
    note: str | None


@dataclass(frozen=True, kw_only=True)
class LabelsUsed:
    """The labels that accuracy is measured by; see ``sampling.LabelBias``.

    Parameters
    ----------
    kind
        ``drawn`` by the monitor at random; ``all`` of the predictions; ``chosen`` in another way.
    fair
        Whether they look like the predictions of the window; None where that is not known.
    n, n_drawn
        How many they are, and how many labels of the window are of a sample drawn at random.
    effective_n
        How many independent labels they are worth.
    told
        Share of them that was right.
    may_confirm
        The worst level that they can confirm.
    note
        What a reader must know of them; empty when they are a fair sample.
    """

    kind: str
    fair: bool | None
    n: int
    n_drawn: int
    effective_n: float
    unweighted_accuracy: float
    may_confirm: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long answers took: the median, and what 95 % of them stayed below, in milliseconds."""

    median: float | None
    p95: float | None


@dataclass(frozen=True, kw_only=True)
class WindowMetrics:
    """The metrics of a set of predictions. What is not known is None, never NaN; intervals are of 95 %.

    Parameters
    ----------
    model_version
        The version that made the predictions; None when nothing was ever logged.
    window
        ``short``, ``medium`` or ``long``.
    n, since, until
        How many predictions, and the times of the first and the last, in seconds since 1970.
    n_labels
        How many of them have a label.
    accuracy, accuracy_interval
        Share of right predictions; weighted where the labels are no fair sample.
    precision_weighted, recall_weighted, f1_weighted, and their intervals
        Of the labelled predictions, weighted by how often each true class occurs.
    labels_used
        What the labels can bear; None without labels.
    reference_accuracy, reference_n
        Accuracy on the held-out images, and how many there are.
    degradation, degradation_lower_bound
        The relative drop of accuracy below that, and what of it is certain.
    level, status
        How bad and how certain the drop is: see ``Degradation``.
    calibration_error, calibration_error_interval
        Expected calibration error of the labelled predictions.
    estimate
        What accuracy may be, by no label; None without a reference.
    mean_confidence, confidence_std
        Mean and standard deviation of the confidence.
    class_shares
        How often each class was predicted, from 0 to 1.
    non_finite
        Predictions that are no numbers.
    latency_ms
        How long answers took.
    predictions_per_second
        Between the first and the last.
    evidence
        How far each sequential alarm has come, from 0 to 1, by metric.
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
    """Measure a set of predictions.

    Parameters
    ----------
    bins
        With which they were counted; nothing is said of degradation when it has no reference.
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
    worth = effective_labels(counts)
    sample = label_bias(counts, bins.reference, thresholds)
    labelled = performance.classification_metrics(counts.confusion_matrix, worth)
    labelled |= performance.calibration(calibration_of(counts), worth)
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
    """The relative drop of accuracy by the labels of a set of predictions."""
    usual = bins.reference
    right, n = (usual.n_correct, usual.n) if usual else (0, 0)
    sample = label_bias(counts, usual, thresholds)
    if sample is None:
        return Degradation(**performance.degradation(0, 0, right, n, thresholds))
    found = performance.degradation(
        sample.accuracy * sample.n, sample.n, right, n, thresholds, sample.effective_n,
        weighted=sample if sample.fair is False else None, may_confirm=sample.may_confirm,
    )  # fmt: skip
    return Degradation(**found)


def estimated_accuracy(counts: WindowSummary, bins: ReferenceBins, thresholds: Thresholds) -> EstimatedAccuracy | None:
    """The accuracy of a set of predictions that no label has confirmed; None without a reference."""
    estimator = bins.estimator
    if estimator is None:
        return None
    found = estimator.from_sums(counts.score_sums, counts.n_finite, counts.effective_n)
    return EstimatedAccuracy(**estimator.degradation(found, thresholds))


def calibration_of(counts: WindowSummary) -> CalibrationBins:
    """How often labelled predictions of each confidence were right."""
    n, right, total = counts.calibration
    among = np.where(n, n, np.nan)
    return CalibrationBins(total / STEPS / among, right / among, n)
