"""Metrics of labelled predictions with 95 % intervals, ready for JSON.

They are computed from sums (a confusion matrix, calibration bins); unknown values are None. Predictions in bursts are
equivalent to fewer independent ones: ``effective_n`` is their number, and widens every interval.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.statistics.calibration import CalibrationBins
from toolkit.statistics.classification_metrics import class_scores
from toolkit.statistics.intervals import wilson

ROUNDING = 1e-12  # a variance below this is none: one error among a million labels makes about 1e-6

Confusion = NDArray[np.integer[Any]]  # (K true, K predicted)


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """A relative drop of accuracy below the reference; unknown values are None.

    Parameters
    ----------
    reference_accuracy, reference_n
        Accuracy on the held-out images, and their number.
    degradation
        ``(reference_accuracy - accuracy) / reference_accuracy``.
    degradation_lower_bound
        Its lower confidence bound.
    level
        ``ok``, ``warning``, ``critical`` or ``immediate``, by the observed drop; None with too little data.
    status
        ``none`` at the level ``ok``; ``confirmed`` when the lower bound passes the threshold of the level as well,
        ``suspected`` when it does not; ``estimate`` without labels; ``insufficient_data``.
    """

    reference_accuracy: float | None = None
    reference_n: int = 0
    degradation: float | None = None
    degradation_lower_bound: float | None = None
    level: str | None = None
    status: str = "insufficient_data"


def classification_metrics(confusion: Confusion, effective_n: float | None = None) -> dict[str, Any]:
    """Accuracy, and precision, recall and F1 weighted by how often each true class occurs.

    Accuracy and weighted recall are the same share, with Wilson's interval. The other two are smooth functions of
    the confusion matrix: the delta method gives their variance, which is converted to the number of cases of a
    share with that variance, for Wilson's interval. A class that was never predicted counts with a precision of 0.

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
    n = int(confusion.sum())
    names = ("accuracy", "precision_weighted", "recall_weighted", "f1_weighted")
    if not n:
        return {"n_labels": 0, **dict.fromkeys(key for name in names for key in (name, f"{name}_interval"))}
    accuracy = float(np.trace(confusion)) / n, 0.0
    total = min(effective_n or n, n)
    cells = confusion / n
    metrics: dict[str, Any] = {"n_labels": n}
    for name, (value, variance) in zip(names, [accuracy, _precision(cells), accuracy, _f1(cells)], strict=True):
        # Without an error the slope is the same everywhere, and the variance that of a plain share.
        cases = total * value * (1 - value) / variance if variance > ROUNDING else total
        metrics |= {name: value, f"{name}_interval": _interval(value, cases)}
    return metrics


def _precision(cells: NDArray[np.float64]) -> tuple[float, float]:
    """Weighted precision from the shares of a confusion matrix, and its variance with a single label."""
    true, predicted, hit = cells.sum(axis=1), cells.sum(axis=0), np.diagonal(cells)
    seen = np.where(predicted > 0, predicted, 1.0)
    precision = class_scores(hit, predicted, true).precision
    return float(true @ precision), _variance(cells, precision, -true * hit / seen**2, true / seen)


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
    """Expected calibration error of labelled predictions and its interval, None without any.

    The error is biased upwards, since chance separates confidence and accuracy in each bin. It misses the true one by
    no more than the sum of these differences; the interval follows from the distribution of that sum and holds the
    true error 95 times in 100 or more.

    Examples
    --------
    >>> from toolkit.statistics.calibration import calibration_bins
    >>> metrics = calibration(calibration_bins(np.full((200, 2), [0.75, 0.25]), np.arange(200) % 2))
    >>> metrics["calibration_error"], [round(end, 3) for end in metrics["calibration_error_interval"]]
    (0.25, [0.18, 0.32])
    """
    n = int(bins.count.sum())
    if not n:
        return {"calibration_error": None, "calibration_error_interval": None}
    count, accuracy = (part[bins.count > 0] for part in (bins.count, bins.accuracy))
    likely = (accuracy * count + 1) / (count + 2)  # Laplace's rule: a bin without errors still varies
    scale = min(effective_n or n, n) / n
    parts = count / n * np.sqrt(likely * (1 - likely) / (count * scale))  # standard deviations, (B,)
    # The absolute value of a standard normal has the mean sqrt(2 / pi).
    spread = math.sqrt((1 - 2 / math.pi) * float(parts @ parts))
    noise = math.sqrt(2 / math.pi) * float(parts.sum()) + NormalDist().inv_cdf(0.975) * spread
    interval = [max(0.0, bins.error - noise), min(1.0, bins.error + noise)]
    return {"calibration_error": bins.error, "calibration_error_interval": interval}


def _interval(share: float, n: float) -> list[float]:
    """Wilson's interval of a share of ``n`` cases, not always a whole number."""
    return list(wilson(*(np.array([share, 1.0]) * n).tolist()))
