"""Estimates of accuracy without labels.

Two methods turn a prediction into a score between 0 and 1; the mean score of the held-out images is exactly the
accuracy there. The mean scores of a window are two estimates of its accuracy, and the higher one counts. Where
confidence falls without harm (less contrast, blur) both are too low, and where a model is wrong with confidence
both are too high. So an estimate never raises more than a warning, and is no all-clear; a few labels decide
(``toolkit.monitoring.stats.label_sampling``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toolkit.bundle.baseline import Baseline
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.stats.performance import Degradation
from toolkit.statistics.intervals import wilson

METHODS = ("thresholded_confidence", "calibrated_confidence")
ENTROPY_DECIMALS = 6  # the sum depends on the order of the classes only beyond these
STEP = 2.0**-20  # scores are multiples of it, so that sums are exact in any order


class Estimate(NamedTuple):
    """An estimate of accuracy, its 95 % interval, the one of ``METHODS`` it comes from, and the number of predictions.

    The interval is that of chance in the window and on the held-out images, without a systematic error of the methods.
    """

    accuracy: float
    low: float
    high: float
    method: str
    n: int


@dataclass(frozen=True, kw_only=True)
class EstimatedAccuracy(Degradation):
    """An estimate of accuracy without labels with its 95 % interval, and its drop below the reference.

    The level is ``warning`` when even the upper end of the interval is that much lower, else ``ok``. ``note`` is the
    reason where the data is insufficient: too few predictions or held-out images, or too wide an interval.
    """

    accuracy: float | None = None
    accuracy_interval: Sequence[float] | None = None
    method: str | None = None
    n: int = 0
    note: str | None = None


class PerformanceEstimator:
    """Estimator of the accuracy in a window from the probabilities alone, made from at least one held-out image.

    ``thresholded_confidence`` (ATC) counts predictions with a negative entropy above a threshold, chosen so that
    the share of held-out images above it is the accuracy there. Images that equal the threshold count in part, so
    that this share is met exactly; a saturated softmax gives thousands of them. ``calibrated_confidence`` takes the
    accuracy of held-out images of the same confidence, by isotonic regression.

    Scores add up, so the sums over a window are enough.

    Measured on digits and Fashion-MNIST with a linear model, a perceptron and a small convolutional network of
    accuracy 0.83 to 0.96, in 1,092 windows of 1,000: with noise, rotation, blur, lower contrast or moved images on
    10, 50 or 100 % of a window, the estimate is off by 10.2 points on average (12.3 if no change is assumed, 11.4
    by the lower estimate); with a class left out, by 0.9. Its lower bound of the drop was a level too bad in 5 % of
    the windows (9 % by the lower estimate), most of them blurred or of low contrast. It warned of 56 % of the drops
    above 5 %, and in 4 % of the windows without one.

    Examples
    --------
    >>> baseline = Baseline(("cat", "dog"), np.array([[0.9, 0.1]] * 8 + [[0.6, 0.4]] * 2), [0] * 8 + [0, 1])
    >>> estimator = PerformanceEstimator(baseline)
    >>> estimator.score([[0.1, 0.9], [0.4, 0.6]]).tolist()  # half of those with 0.6 were right
    [[1.0, 1.0], [0.5, 0.5]]
    >>> estimator.estimate([[0.9, 0.1]] * 60 + [[0.4, 0.6]] * 40).accuracy
    0.8

    References
    ----------
    Garg, S., Balakrishnan, S., Lipton, Z. C., Neyshabur, B. and Sedghi, H. (2022). Leveraging
    unlabeled data to predict out-of-distribution performance. ICLR.
    Zadrozny, B. and Elkan, C. (2002). Transforming classifier scores into accurate multiclass
    probability estimates. KDD, 694-699.
    """

    def __init__(self, baseline: Baseline) -> None:
        right = baseline.predicted == baseline.labels
        self.reference_accuracy, self.reference_n = baseline.accuracy, baseline.size
        self._threshold, self._tied = _threshold(_negative_entropy(baseline.probabilities), int(right.sum()))
        self._edges, self._levels = isotonic_regression(baseline.confidence, right)

    def score(self, probabilities: ArrayLike) -> NDArray[np.float64]:
        """(n, 2) scores of (n, K) probabilities in [0, 1], one for each of ``METHODS``; 0 for rows not finite."""
        rows = np.asarray(probabilities, np.float16)
        finite = np.asarray(np.isfinite(rows).all(axis=1))
        rows = rows[finite]
        entropy = _negative_entropy(rows)
        confidence = rows.max(axis=1).astype(np.float32)
        scores = np.zeros((len(finite), 2))
        scores[finite, 0] = (entropy > self._threshold) + self._tied * (entropy == self._threshold)
        scores[finite, 1] = self._levels[np.maximum(np.searchsorted(self._edges, confidence, side="right") - 1, 0)]
        return np.round(scores / STEP) * STEP

    def from_sums(self, sums: ArrayLike, n: int, effective_n: float | None = None) -> Estimate | None:
        """The estimate from the (2,) sums of the scores of ``n`` finite predictions; None for none."""
        if n < 1:
            return None
        means = (np.asarray(sums, np.float64) / n).tolist()
        milder = int(np.argmax(means))
        # The held-out accuracy is uncertain too.
        total = 1 / (1 / min(n, effective_n or n) + 1 / self.reference_n)
        interval = wilson(*(np.array([means[milder], 1.0]) * total).tolist())
        return Estimate(means[milder], *interval, METHODS[milder], n)

    def estimate(self, probabilities: ArrayLike) -> Estimate | None:
        """The estimate of (n, K) probabilities, without rows that are not finite."""
        rows = np.asarray(probabilities, np.float16)
        scores = self.score(rows)
        return self.from_sums(scores.sum(axis=0), int(np.isfinite(rows).all(axis=1).sum()))

    def degradation(self, estimate: Estimate | None, thresholds: Thresholds) -> EstimatedAccuracy:
        """The relative drop of an estimate below the reference.

        Examples
        --------
        >>> probabilities = np.array([[0.9, 0.1]] * 800 + [[0.6, 0.4]] * 200)
        >>> estimator = PerformanceEstimator(Baseline(("cat", "dog"), probabilities, [0] * 900 + [1] * 100))
        >>> worse = estimator.degradation(estimator.estimate([[0.4, 0.6]] * 500), Thresholds())
        >>> worse.accuracy, round(worse.degradation, 3), worse.level, worse.status
        (0.5, 0.444, 'warning', 'estimate')
        """
        usual, size = self.reference_accuracy, self.reference_n
        found = EstimatedAccuracy(reference_accuracy=usual, reference_n=size, note="there is no prediction")
        if estimate is not None:
            accuracy, low, high, method, n = estimate
            found = replace(found, accuracy=accuracy, accuracy_interval=[low, high], method=method, n=n)
        if not usual:
            return replace(found, note="the model was never right on the held-out images")
        if estimate is None:
            return found
        certain, half = 1 - high / usual, (high - low) / 2
        found = replace(found, degradation=1 - accuracy / usual, degradation_lower_bound=certain)
        if min(n, size) < thresholds.minimum_predictions:
            return replace(found, note=f"{n} predictions and {size} held-out images are too few")
        if certain <= thresholds.warning and half > thresholds.warning * usual:
            note = f"chance alone may move the estimate by {half:.1%}: too much to see a warning"
            return replace(found, note=note)
        level = "warning" if certain > thresholds.warning else "ok"
        return replace(found, level=level, status="estimate", note=None)


def _negative_entropy(probabilities: NDArray[Any]) -> NDArray[Any]:
    """(n,), 0 for a probability of 1, less for others."""
    p = probabilities.astype(np.float32)  # (n, K)
    rounded: NDArray[Any] = np.round(
        np.sum(p * np.log(np.maximum(p, np.finfo(np.float32).tiny)), axis=1), ENTROPY_DECIMALS
    )
    return rounded


def _threshold(scores: NDArray[Any], right: int) -> tuple[float, float]:
    """The threshold above which ``right`` of the scores lie, and the weight of scores that equal it."""
    if not right:
        return np.inf, 0.0
    threshold = np.sort(scores)[-right]
    above, equal = (scores > threshold).sum(), (scores == threshold).sum()
    return float(threshold), float((right - above) / equal)


def isotonic_regression(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The non-decreasing step function with the least squared distance to ``y``, by pooling adjacent violators.

    Returns the start of each step (B,) and its height, the mean of its ``y``; cases of equal ``x`` get one value.

    Examples
    --------
    >>> [part.tolist() for part in isotonic_regression(np.array([1, 2, 3, 4]), np.array([0, 1, 0, 1]))]
    [[1.0, 2.0, 4.0], [0.0, 0.5, 1.0]]

    References
    ----------
    Ayer, M., Brunk, H. D., Ewing, G. M., Reid, W. T. and Silverman, E. (1955). An empirical
    distribution function for sampling with incomplete information. Annals of Mathematical
    Statistics 26, 641-647.
    """
    values, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    steps: list[tuple[float, float, int]] = []  # where it begins, sum of y, cases
    for step in zip(values.tolist(), np.bincount(place, y).tolist(), counts.tolist(), strict=True):
        steps.append(step)
        while len(steps) > 1 and steps[-2][1] * steps[-1][2] >= steps[-1][1] * steps[-2][2]:  # no rise between them
            (start, total, cases), (_, more, further) = steps[-2:]
            steps[-2:] = [(start, total + more, cases + further)]
    starts, sums, sizes = np.array(steps, np.float64).T
    return starts, sums / sizes
