"""Calibration: the accuracy of predictions by their confidence."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CALIBRATION_BINS = 15


@dataclass(frozen=True, eq=False)
class CalibrationBins:
    """Predictions by their confidence, in B bins of equal width from 0 to 1.

    Parameters
    ----------
    confidence
        float64 (B,), the mean confidence in each bin; NaN where nothing is.
    accuracy
        float64 (B,), the share of right predictions in each bin; NaN where nothing is.
    count
        int64 (B,), how many predictions are in each bin.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Mean distance of confidence and accuracy over the bins, weighted by their sizes; 0 for no predictions.

        References
        ----------
        Naeini, Cooper, Hauskrecht: Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015.
        """
        distance = np.nan_to_num(np.abs(self.confidence - self.accuracy))
        return float(distance @ self.count / max(self.count.sum(), 1))


def calibration_bins(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], bins: int = CALIBRATION_BINS
) -> CalibrationBins:
    """Accuracy by confidence of (N, K) probabilities, as a reliability diagram shows it.

    A confidence on an edge belongs to the bin above it, and 1 to the last.

    Examples
    --------
    >>> bins = calibration_bins(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1]), bins=5)
    >>> bins.count.tolist()
    [0, 0, 0, 0, 2]
    >>> print(bins.confidence[4], bins.accuracy[4], round(bins.error, 3))
    0.8 0.5 0.3
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    count, confident, accurate = (np.bincount(place, weights, minlength=bins) for weights in (None, confidence, right))
    among = np.where(count, count, np.nan)
    return CalibrationBins(confident / among, accurate / among, count)
