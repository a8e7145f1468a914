"""How good the predictions with known labels were: figures with 95 % intervals, ready for JSON.

Everything is worked out from sums (a confusion matrix, calibration bins), and what is not known is None.
Predictions that came in bursts are worth fewer independent ones: ``effective_n`` says how many, and widens
every interval.
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
    """An accuracy estimated from labels that are no fair sample; see ``sampling.LabelBias``."""

    @property
    def accuracy_n(self) -> float:
        """How many labels would be as certain of it."""

    @property
    def best_case(self) -> float:
        """The accuracy if all that the labels do not tell was right."""

    @property
    def best_case_n(self) -> float:
        """How many labels would be as certain of that."""


def classification_metrics(confusion: Confusion, effective_n: float | None = None) -> dict[str, Any]:
    """Accuracy, and precision, recall and F1 weighted by how often each true class occurs.

    Accuracy and weighted recall are one number, a share, with Wilson's interval. The other two are
    smooth functions of the shares of the confusion matrix: the delta method gives their variance, and
    with it the number of cases of a plain share that would be as certain, for Wilson's interval again.

    Parameters
    ----------
    confusion
        (K, K), rows are true classes and columns predicted ones.
    effective_n
        How many independent labels they are worth; all when None.

    Returns
    -------
    dict
        ``n_labels``, and ``accuracy``, ``precision_weighted``, ``recall_weighted``, ``f1_weighted``,
        each with its ``..._interval``. A class that was never predicted has a precision of 0 in them.

    Examples
    --------
    >>> figures = classification_metrics(np.array([[40, 10], [5, 45]]))
    >>> figures["n_labels"], figures["accuracy"], [round(end, 3) for end in figures["accuracy_interval"]]
    (100, 0.85, [0.767, 0.907])
    >>> round(figures["precision_weighted"], 4), [round(end, 3) for end in figures["precision_weighted_interval"]]
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
    worth = _effective_n(n, effective_n)
    cells = matrix / n
    figures: dict[str, Any] = {"n_labels": n}
    for name, (value, variance) in zip(
        names, [(accuracy, 0.0), _precision(cells), (accuracy, 0.0), _f1(cells)], strict=True
    ):
        # Without an error the slope is the same everywhere: then it is as certain as any other share.
        cases = worth * value * (1 - value) / variance if variance > ROUNDING else worth
        figures |= {name: value, f"{name}_interval": _interval(value, cases)}
    return figures


def _precision(cells: NDArray[np.float64]) -> tuple[float, float]:
    """Weighted precision of the shares of a confusion matrix, and its variance with a single label."""
    true, predicted, hit = cells.sum(axis=1), cells.sum(axis=0), np.diagonal(cells)
    seen = np.where(predicted > 0, predicted, 1.0)
    precision = class_scores(hit, predicted, true).precision
    variance = _variance(cells, precision, -true * hit / seen**2, true / seen)
    return float(true @ precision), variance


def _f1(cells: NDArray[np.float64]) -> tuple[float, float]:
    """Weighted F1 of the shares of a confusion matrix, and its variance with a single label."""
    true, predicted, hit = cells.sum(axis=1), cells.sum(axis=0), np.diagonal(cells)
    both = np.where(true + predicted > 0, true + predicted, 1.0)
    f1 = class_scores(hit, predicted, true).f1
    falling = -2 * true * hit / both**2
    return float(true @ f1), _variance(cells, f1 + falling, falling, 2 * true / both)


def _variance(
    cells: NDArray[np.float64], by_true: NDArray[np.float64], by_predicted: NDArray[np.float64], by_hit: NDArray[Any]
) -> float:
    """Delta method: the variance over the cells of a function's slope, the sum of three slopes.

    Parameters
    ----------
    by_true, by_predicted, by_hit
        (K,), how the function grows with each row, each column and each diagonal cell.
    """
    true, predicted, hit = cells.sum(axis=1), cells.sum(axis=0), np.diagonal(cells)
    plain = by_true + by_predicted  # of a diagonal cell, but for its being a hit
    mean = true @ by_true + predicted @ by_predicted + hit @ by_hit
    square = true @ by_true**2 + predicted @ by_predicted**2 + 2 * by_true @ cells @ by_predicted
    square += hit @ ((plain + by_hit) ** 2 - plain**2)
    return max(0.0, float(square - mean**2))


def calibration(bins: CalibrationBins, effective_n: float | None = None) -> dict[str, Any]:
    """Expected calibration error, and the curve of a reliability diagram.

    The error as it is counted is too large: chance parts confidence and accuracy in each bin, whatever
    the model does. It misses the true one by no more than the sum of these parts, whose distribution
    is known well enough; so the interval holds the true error 95 times in 100 or more.

    Returns
    -------
    dict
        ``calibration_error``, ``calibration_error_interval``, ``n_labels``, and ``calibration_curve``:
        for each bin that holds anything its ``confidence``, ``accuracy``, ``accuracy_interval``, ``n``.

    Examples
    --------
    >>> from toolkit.statistics.calibration import calibration_bins
    >>> figures = calibration(calibration_bins(np.full((200, 2), [0.75, 0.25]), np.arange(200) % 2))
    >>> figures["calibration_error"], [round(end, 3) for end in figures["calibration_error_interval"]]
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
    # The absolute value of a normal one has the mean sqrt(2 / pi), in its standard deviations.
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
    """The relative drop of accuracy, what of it is certain, and how bad that is.

    ``level`` follows from the drop that was seen. ``status`` is ``confirmed`` when the lower confidence
    bound passes the threshold of that level as well, ``suspected`` when it does not, ``none`` when
    there is no drop to speak of, and ``insufficient_data`` when there are too few labels to say
    anything; then ``level`` is None.

    Parameters
    ----------
    right, n
        How many of the labelled predictions were right.
    reference_right, reference_n
        The same of the held-out images; 0 and 0 without a reference.
    effective_n
        How many independent labels they are worth; all when None.
    weighted
        The accuracy that labels speak for which are no fair sample, see ``sampling``: the bound is that of
        the accuracy at best, and a drop that chance explains is of no level.
    may_confirm
        The worst level that these labels can confirm.

    Examples
    --------
    >>> figures = degradation(700, 1000, 1800, 2000, Thresholds())
    >>> round(figures["degradation"], 3), round(figures["degradation_lower_bound"], 3)
    (0.222, 0.183)
    >>> figures["level"], figures["status"]
    ('immediate', 'suspected')
    """
    accuracy = reference_right / reference_n if reference_n else None
    figures: dict[str, Any] = {
        "reference_accuracy": accuracy,
        "reference_n": reference_n,
        "degradation": None,
        "degradation_lower_bound": None,
        "level": None,
        "status": "insufficient_data",
    }
    if not accuracy or not n:
        return figures
    drop, worth = 1 - right / n / accuracy, _effective_n(n, effective_n)
    usual = reference_right, reference_n, thresholds.confidence
    share, counted = (weighted.best_case, weighted.best_case_n) if weighted else (right / n, worth)
    bound = degradation_lower_bound(share * counted, counted, *usual)
    figures |= {"degradation": drop, "degradation_lower_bound": bound if math.isfinite(bound) else None}
    if worth < thresholds.minimum_labels:
        return figures
    level = thresholds.level(drop)
    if weighted and degradation_lower_bound(right / n * weighted.accuracy_n, weighted.accuracy_n, *usual) <= 0:
        level = LEVELS[0]
    provable = min(thresholds.severity(thresholds.level(bound)), thresholds.severity(may_confirm))
    confirmed = provable >= thresholds.severity(level)
    status = "none" if level == "ok" else "confirmed" if confirmed else "suspected"
    return figures | {"level": level, "status": status}


def _require_square(confusion: Confusion) -> NDArray[Any]:
    matrix: NDArray[Any] = np.asarray(confusion)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise SettingsError(f"a confusion matrix must be square, got the shape {matrix.shape}")
    return matrix


def _effective_n(n: int, effective_n: float | None) -> float:
    """How many independent labels ``n`` are worth: never more than there are."""
    return n if effective_n is None else min(effective_n, n)


def _proportion(name: str, right: int, n: int, scale: float = 1.0) -> dict[str, Any]:
    """A share and its interval, both None when there is no case."""
    return (
        {name: right / n, f"{name}_interval": _interval(right / n, n * scale)}
        if n
        else {name: None, f"{name}_interval": None}
    )


def _interval(share: float, n: float) -> list[float]:
    """Wilson's interval of a share of ``n`` cases, a number that need not be whole."""
    return list(wilson(*(np.array([share, 1.0]) * n).tolist()))
