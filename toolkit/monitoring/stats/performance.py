"""Metrics of labelled predictions with 95 % intervals, ready for JSON.

They are computed from sums (a confusion matrix, calibration bins); unknown values are None. Predictions in bursts are
equivalent to fewer independent ones: ``effective_n`` is their number, and widens every interval.
"""

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import SettingsError
from toolkit.monitoring.base.thresholds import LEVELS, Thresholds
from toolkit.monitoring.stats.distributions import normal_quantile
from toolkit.monitoring.stats.hypothesis_tests import degradation_lower_bound
from toolkit.statistics.calibration import CalibrationBins
from toolkit.statistics.classification_metrics import class_scores
from toolkit.statistics.intervals import wilson

ROUNDING = 1e-12  # a variance below this is none: one error among a million labels makes about 1e-6

Confusion = NDArray[np.integer[Any]]  # (K true, K predicted)


class WeightedAccuracy(Protocol):
    """An accuracy estimated from a biased sample of labels, such as ``windows.label_bias.LabelBias``."""

    @property
    def accuracy_n(self) -> float:
        """Number of independent labels with the same standard error."""

    @property
    def best_case(self) -> float:
        """The accuracy if all that is unknown was right."""

    @property
    def best_case_n(self) -> float:
        """Number of independent labels with the standard error of ``best_case``."""


def classification_metrics(confusion: Confusion, effective_n: float | None = None) -> dict[str, Any]:
    """Accuracy, and precision, recall and F1 weighted by how often each true class occurs.

    Accuracy and weighted recall are the same share, with Wilson's interval. The other two are smooth functions of
    the confusion matrix: the delta method gives their variance, which is converted to the number of cases of a
    share with that variance, for Wilson's interval.

    Parameters
    ----------
    confusion
        (K, K), rows are true classes and columns predicted ones.
    effective_n
        Number of independent labels that they are equivalent to; all when None.

    Returns
    -------
    dict
        ``n_labels``, and ``accuracy``, ``precision_weighted``, ``recall_weighted``, ``f1_weighted``,
        each with its ``..._interval``. A class that was never predicted counts with a precision of 0.

    Raises
    ------
    SettingsError
        When the matrix is not square.

    Examples
    --------
    >>> metrics = classification_metrics(np.array([[40, 10], [5, 45]]))
    >>> metrics["n_labels"], metrics["accuracy"], [round(end, 3) for end in metrics["accuracy_interval"]]
    (100, 0.85, [0.767, 0.907])
    >>> round(metrics["precision_weighted"], 4), [round(end, 3) for end in metrics["precision_weighted_interval"]]
    (0.8535, [0.773, 0.909])

    References
    ----------
    Takahashi, K., Yamamoto, K., Kuchiba, A. and Koyama, T. (2022). Confidence interval for
    micro-averaged F1 and macro-averaged F1 scores. Applied Intelligence 52, 4961-4972.
    """
    matrix = _require_square(confusion)
    n = int(matrix.sum())
    names = ("accuracy", "precision_weighted", "recall_weighted", "f1_weighted")
    if not n:
        return {"n_labels": 0, **dict.fromkeys(key for name in names for key in (name, f"{name}_interval"))}
    accuracy = float(np.trace(matrix)) / n
    total = _effective_n(n, effective_n)
    cells = matrix / n
    metrics: dict[str, Any] = {"n_labels": n}
    for name, (value, variance) in zip(
        names, [(accuracy, 0.0), _precision(cells), (accuracy, 0.0), _f1(cells)], strict=True
    ):
        # Without an error the slope is the same everywhere, and the variance that of a plain share.
        cases = total * value * (1 - value) / variance if variance > ROUNDING else total
        metrics |= {name: value, f"{name}_interval": _interval(value, cases)}
    return metrics


def _precision(cells: NDArray[np.float64]) -> tuple[float, float]:
    """Weighted precision from the shares of a confusion matrix, and its variance with a single label."""
    true, predicted, hit = cells.sum(axis=1), cells.sum(axis=0), np.diagonal(cells)
    seen = np.where(predicted > 0, predicted, 1.0)
    precision = class_scores(hit, predicted, true).precision
    variance = _variance(cells, precision, -true * hit / seen**2, true / seen)
    return float(true @ precision), variance


def _f1(cells: NDArray[np.float64]) -> tuple[float, float]:
    """Weighted F1 from the shares of a confusion matrix, and its variance with a single label."""
    true, predicted, hit = cells.sum(axis=1), cells.sum(axis=0), np.diagonal(cells)
    both = np.where(true + predicted > 0, true + predicted, 1.0)
    f1 = class_scores(hit, predicted, true).f1
    falling = -2 * true * hit / both**2
    return float(true @ f1), _variance(cells, f1 + falling, falling, 2 * true / both)


def _variance(
    cells: NDArray[np.float64], by_true: NDArray[np.float64], by_predicted: NDArray[np.float64], by_hit: NDArray[Any]
) -> float:
    """Variance by the delta method, from the slopes (K,) of a function by row, column and diagonal cell."""
    true, predicted, hit = cells.sum(axis=1), cells.sum(axis=0), np.diagonal(cells)
    plain = by_true + by_predicted  # slope of a diagonal cell without ``by_hit``
    mean = true @ by_true + predicted @ by_predicted + hit @ by_hit
    square = true @ by_true**2 + predicted @ by_predicted**2 + 2 * by_true @ cells @ by_predicted
    square += hit @ ((plain + by_hit) ** 2 - plain**2)
    return max(0.0, float(square - mean**2))


def calibration(bins: CalibrationBins, effective_n: float | None = None) -> dict[str, Any]:
    """Expected calibration error, and the curve of a reliability diagram.

    The error is biased upwards, since chance separates confidence and accuracy in each bin. It misses the true one by
    no more than the sum of these differences; the interval follows from the distribution of that sum and holds the
    true error 95 times in 100 or more.

    Parameters
    ----------
    bins
        Of the labelled predictions.
    effective_n
        Number of independent labels that they are equivalent to; all when None.

    Returns
    -------
    dict
        ``calibration_error``, ``calibration_error_interval``, ``n_labels``, and ``calibration_curve``:
        for each bin that is not empty its ``confidence``, ``accuracy``, ``accuracy_interval``, ``n``.

    Examples
    --------
    >>> from toolkit.statistics.calibration import calibration_bins
    >>> metrics = calibration(calibration_bins(np.full((200, 2), [0.75, 0.25]), np.arange(200) % 2))
    >>> metrics["calibration_error"], [round(end, 3) for end in metrics["calibration_error_interval"]]
    (0.25, [0.18, 0.32])
    """
    n = int(bins.count.sum())
    if not n:
        nothing = dict.fromkeys(("calibration_error", "calibration_error_interval"))
        return {"n_labels": 0, **nothing, "calibration_curve": []}
    scale = _effective_n(n, effective_n) / n
    filled = bins.count > 0
    count, accuracy, confidence = bins.count[filled], bins.accuracy[filled], bins.confidence[filled]
    likely = (accuracy * count + 1) / (count + 2)  # Laplace's rule: a bin without errors still varies
    parts = count / n * np.sqrt(likely * (1 - likely) / (count * scale))  # standard deviations, (B,)
    # The absolute value of a standard normal has the mean sqrt(2 / pi).
    spread = math.sqrt((1 - 2 / math.pi) * float(parts @ parts))
    noise = math.sqrt(2 / math.pi) * float(parts.sum()) + normal_quantile(0.975) * spread
    curve = [
        {"confidence": sure, **_proportion("accuracy", round(share * cases), cases, scale), "n": cases}
        for sure, share, cases in zip(confidence.tolist(), accuracy.tolist(), count.tolist(), strict=True)
    ]
    return {
        "n_labels": n,
        "calibration_error": bins.error,
        "calibration_error_interval": [max(0.0, bins.error - noise), min(1.0, bins.error + noise)],
        "calibration_curve": curve,
    }


def degradation(
    right: float,
    n: int,
    reference_right: int,
    reference_n: int,
    thresholds: Thresholds,
    effective_n: float | None = None,
    *,
    weighted: WeightedAccuracy | None = None,
    may_confirm: str = "immediate",
) -> dict[str, Any]:
    """The relative drop of accuracy, its lower confidence bound, its level and its status.

    ``level`` follows from the observed drop. ``status`` is ``confirmed`` when the lower confidence bound passes the
    threshold of that level as well, ``suspected`` when it does not, ``none`` when the level is ``ok``, and
    ``insufficient_data`` when there are too few labels; then ``level`` is None.

    Parameters
    ----------
    right, n
        Number of labelled predictions that were right, and of all.
    reference_right, reference_n
        The same of the held-out images; 0 and 0 without a reference.
    thresholds
        Of the levels; ``confidence`` is that of the bound.
    effective_n
        Number of independent labels that they are equivalent to; all when None.
    weighted
        The accuracy when the labels are a biased sample: the bound is that of its best case, and a drop that chance
        explains has the level ``ok``.
    may_confirm
        The worst level that these labels can confirm.

    Examples
    --------
    >>> metrics = degradation(700, 1000, 1800, 2000, Thresholds())
    >>> round(metrics["degradation"], 3), round(metrics["degradation_lower_bound"], 3)
    (0.222, 0.183)
    >>> metrics["level"], metrics["status"]
    ('immediate', 'suspected')
    """
    accuracy = reference_right / reference_n if reference_n else None
    metrics: dict[str, Any] = {
        "reference_accuracy": accuracy,
        "reference_n": reference_n,
        "degradation": None,
        "degradation_lower_bound": None,
        "level": None,
        "status": "insufficient_data",
    }
    if not accuracy or not n:
        return metrics
    drop, total = 1 - right / n / accuracy, _effective_n(n, effective_n)
    reference = reference_right, reference_n, thresholds.confidence
    share, counted = (weighted.best_case, weighted.best_case_n) if weighted else (right / n, total)
    bound = degradation_lower_bound(share * counted, counted, *reference)
    metrics |= {"degradation": drop, "degradation_lower_bound": bound if math.isfinite(bound) else None}
    if total < thresholds.minimum_labels:
        return metrics
    level = thresholds.level(drop)
    if weighted and degradation_lower_bound(right / n * weighted.accuracy_n, weighted.accuracy_n, *reference) <= 0:
        level = LEVELS[0]
    provable = min(thresholds.severity(thresholds.level(bound)), thresholds.severity(may_confirm))
    confirmed = provable >= thresholds.severity(level)
    status = "none" if level == "ok" else "confirmed" if confirmed else "suspected"
    return metrics | {"level": level, "status": status}


def _require_square(confusion: Confusion) -> NDArray[Any]:
    matrix: NDArray[Any] = np.asarray(confusion)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise SettingsError(f"a confusion matrix must be square, got the shape {matrix.shape}")
    return matrix


def _effective_n(n: int, effective_n: float | None) -> float:
    """Number of independent labels, at most ``n``."""
    return n if effective_n is None else min(effective_n, n)


def _proportion(name: str, right: int, n: int, scale: float = 1.0) -> dict[str, Any]:
    """A share and its interval, None without cases."""
    return (
        {name: right / n, f"{name}_interval": _interval(right / n, n * scale)}
        if n
        else {name: None, f"{name}_interval": None}
    )


def _interval(share: float, n: float) -> list[float]:
    """Wilson's interval of a share of ``n`` cases, not always a whole number."""
    return list(wilson(*(np.array([share, 1.0]) * n).tolist()))
