"""The figures of a set of predictions, from its counts: what people and programs ask for."""

from typing import Any

import numpy as np

from toolkit.baseline import CalibrationBins
from toolkit.monitoring import performance
from toolkit.monitoring.counts import STEPS, Counts
from toolkit.monitoring.limits import Limits
from toolkit.monitoring.sampling import LabelSample, label_sample, labels_worth
from toolkit.monitoring.yardstick import Yardstick


def measure(counts: Counts, yardstick: Yardstick, limits: Limits) -> dict[str, Any]:
    """All figures, ready for JSON: what is not known is None, never NaN.

    Parameters
    ----------
    yardstick
        With which they were counted; nothing is said of degradation when it has no reference.

    Examples
    --------
    >>> from toolkit.monitoring.windows import Window
    >>> yardstick = Yardstick(("cat", "dog"))
    >>> window = Window(("cat", "dog"), np.arange(4.0), np.array([0, 1, 1, 1]),
    ...                 np.array([0.875, 0.75, 0.75, 0.625]), np.array([0, 1, 0, -1]))
    >>> figures = measure(yardstick.count(window), yardstick, Limits())
    >>> figures["n"], figures["n_labels"], round(figures["accuracy"], 3), figures["class_shares"]
    (4, 3, 0.667, {'cat': 0.25, 'dog': 0.75})
    >>> figures["mean_confidence"], figures["predictions_per_second"]
    (0.75, 1.0)
    """
    answered, confidence = counts.finite, counts.confidence
    shares = counts.classes / max(answered, 1)
    span = counts.until - counts.since
    worth = labels_worth(counts)
    calibration = performance.calibration(calibration_of(counts), worth)
    del calibration["calibration_curve"]
    return {
        "n": counts.n,
        "since": counts.since if counts.n else None,
        "until": counts.until if counts.n else None,
        **performance.quality(counts.confusion_matrix, worth),
        **_sample(label_sample(counts, yardstick.reference, limits), counts),
        **degradation(counts, yardstick, limits),
        **calibration,
        "estimate": estimate(counts, yardstick, limits),
        "mean_confidence": confidence.mean if answered else None,
        "confidence_std": confidence.deviation if answered > 1 else None,
        "class_shares": dict(zip(yardstick.classes, shares.tolist(), strict=True)) if answered else {},
        "non_finite": counts.non_finite,
        "latency_ms": {"median": counts.latency_quantile(0.5), "p95": counts.latency_quantile(0.95)},
        "predictions_per_second": (counts.n - 1) / span if span > 0 else None,
    }


def _sample(sample: LabelSample | None, counts: Counts) -> dict[str, Any]:
    """Accuracy as the labels can bear it, and what is known of them."""
    if sample is None:
        return {"label_sample": None}
    about = {
        "kind": sample.kind,
        "fair": sample.fair,
        "n": sample.n,
        "n_drawn": int(counts.strata[3].sum()),
        "effective_n": sample.effective_n,
        "told": sample.told,
        "may_confirm": sample.may_confirm,
        "note": sample.note,
    }
    return {"accuracy": sample.accuracy, "accuracy_interval": list(sample.interval), "label_sample": about}


def degradation(counts: Counts, yardstick: Yardstick, limits: Limits) -> dict[str, Any]:
    """The relative drop of accuracy by the labels that were told: see ``performance.degradation``."""
    usual = yardstick.reference
    right, n = (usual.right, usual.n) if usual else (0, 0)
    sample = label_sample(counts, usual, limits)
    if sample is None:
        return performance.degradation(0, 0, right, n, limits)
    return performance.degradation(
        sample.accuracy * sample.n, sample.n, right, n, limits, sample.effective_n,
        weighted=sample if sample.fair is False else None, may_confirm=sample.may_confirm,
    )  # fmt: skip


def estimate(counts: Counts, yardstick: Yardstick, limits: Limits) -> dict[str, Any] | None:
    """The accuracy that no label has confirmed: see ``estimates.Estimator``; None without a reference."""
    estimator = yardstick.estimator
    if estimator is None:
        return None
    return estimator.degradation(estimator.summary(counts.scored, counts.finite, counts.effective), limits)


def calibration_of(counts: Counts) -> CalibrationBins:
    """How often labelled predictions of each confidence were right."""
    n, right, total = counts.calibration
    among = np.where(n, n, np.nan)
    return CalibrationBins(total / STEPS / among, right / among, n)
