"""The tests and intervals of the monitor: pure functions of numbers."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toolkit.monitoring.distributions import (
    chi_square_survival,
    hypergeometric_survival,
    kolmogorov_survival,
    normal_quantile,
    normal_survival,
)

FEWEST_EXPECTED = 5  # expected counts below this make chi-square p-values unreliable (Cochran 1954)

Numbers = NDArray[np.floating[Any]]
Counts = NDArray[np.integer[Any]]


class Outcome(NamedTuple):
    """What a test says: its statistic and the chance of one at least as extreme without drift."""

    statistic: float
    p_value: float


class Interval(NamedTuple):
    """The two ends of a confidence interval."""

    low: float
    high: float


def kolmogorov_smirnov(window: Numbers, reference: Numbers) -> Outcome:
    """Two-sample Kolmogorov-Smirnov test: the largest gap between two cumulative distributions.

    Ties are handled exactly, within and between the samples: a saturated softmax gives thousands
    of confidences of exactly 1. The p-value is Kolmogorov's limit with Stephens' correction for
    small samples; ties make it larger than it need be, never smaller.

    Parameters
    ----------
    window
        (n,), the recent values.
    reference
        (m,), the values they are compared with; a sorted array is compared fastest.

    Returns
    -------
    Outcome
        D in [0, 1], and its two-sided p-value.

    Examples
    --------
    >>> import numpy as np
    >>> same = np.array([1.0, 1.0, 1.0, 0.5])
    >>> kolmogorov_smirnov(same, same).statistic
    0.0
    >>> kolmogorov_smirnov(np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.0, 4.0, 5.0, 6.0])).statistic
    0.5

    References
    ----------
    Stephens, M. A. (1970). Use of the Kolmogorov-Smirnov, Cramer-von Mises and related statistics
    without extensive tables. Journal of the Royal Statistical Society B 32, 115-122.
    """
    n, m = len(window), len(reference)
    reference = np.sort(reference)
    values, counts = np.unique(window, return_counts=True)
    upto = np.cumsum(counts)
    # Between two values of the window its own curve is flat, so the gap is widest at a limit from the
    # right of one value or from the left of the next.
    right = np.abs(upto / n - np.searchsorted(reference, values, side="right") / m)
    left = np.abs((upto - counts) / n - np.searchsorted(reference, values, side="left") / m)
    gap = float(max(right.max(), left.max()))
    root = math.sqrt(n * m / (n + m))
    return Outcome(gap, kolmogorov_survival((root + 0.12 + 0.11 / root) * gap))


def chi_square(window: Counts, reference: Counts) -> Outcome:
    """Chi-square test that two samples of classes come from one distribution.

    Classes with fewer than 5 expected cases are merged into one. Where even that one has too few,
    Fisher's exact test says whether the window shows it too often, and the smaller of the two
    p-values counts, doubled: a class that the reference never showed cannot slip through.

    Parameters
    ----------
    window, reference
        (K,), how often each class occurs.

    Examples
    --------
    >>> import numpy as np
    >>> outcome = chi_square(np.array([30, 70]), np.array([50, 50]))
    >>> round(outcome.statistic, 4), round(outcome.p_value, 6)
    (8.3333, 0.003892)
    >>> chi_square(np.array([3, 0]), np.array([400, 0]))
    Outcome(statistic=0.0, p_value=1.0)

    References
    ----------
    Cochran, W. G. (1954). Some methods for strengthening the common chi-square tests. Biometrics 10.
    """
    table = np.stack([window, reference]).astype(np.float64)  # (2, K)
    table = table[:, table.sum(axis=0) > 0]
    columns = table[:, np.argsort(table.sum(axis=0), kind="stable")]
    expected = columns.sum(axis=0) * table.sum(axis=1).min() / table.sum()
    rare = int((expected < FEWEST_EXPECTED).sum())
    too_few = 0 < rare < len(expected) and expected[:rare].sum() < FEWEST_EXPECTED
    merged = rare + too_few  # then the next rarest class takes them in
    pool = columns[:, :merged].sum(axis=1, keepdims=True)
    outcome = _homogeneity(np.hstack([pool, columns[:, merged:]]) if merged else columns)
    if too_few:
        seen, usual = (int(cases) for cases in columns[:, :rare].sum(axis=1))
        exact = hypergeometric_survival(seen, seen + usual, int(window.sum()), int(reference.sum()))
        return outcome._replace(p_value=min(1.0, 2 * min(outcome.p_value, exact)))
    return outcome


def _homogeneity(table: NDArray[np.float64]) -> Outcome:
    """Pearson's chi-square of a table of two rows."""
    cells = table.shape[1]
    if cells < 2:
        return Outcome(0.0, 1.0)
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    return Outcome(statistic, chi_square_survival(statistic, cells - 1))


def total_variation(window: Counts, reference: Counts) -> float:
    """Share of cases that would have to change class to turn one distribution into the other.

    Examples
    --------
    >>> import numpy as np
    >>> round(total_variation(np.array([30, 70]), np.array([100, 100])), 10)
    0.2
    """
    return float(np.abs(window / window.sum() - reference / reference.sum()).sum() / 2)


def mean_shift(window: Numbers, reference: Numbers, resolution: float = 0.0) -> tuple[Outcome, float]:
    """z test that two samples have the same mean, with the uncertainty of both.

    Parameters
    ----------
    window, reference
        (n,) and (m,), at least two values each.
    resolution
        Smallest step of the values; a standard deviation below it counts as this much, so that two
        constant samples which differ by one rounding step are not infinitely far apart.

    Returns
    -------
    tuple[Outcome, float]
        z with its two-sided p-value, and the shift in standard deviations of the reference.

    Examples
    --------
    >>> import numpy as np
    >>> outcome, shift = mean_shift(np.array([2.0, 4.0]), np.array([1.0, 3.0]))
    >>> round(outcome.statistic, 4), round(outcome.p_value, 4), round(shift, 4)
    (0.7071, 0.4795, 0.7071)
    """
    difference = float(np.mean(window, dtype=np.float64) - np.mean(reference, dtype=np.float64))
    spread = max(float(np.std(window, ddof=1, dtype=np.float64)), resolution)
    usual = max(float(np.std(reference, ddof=1, dtype=np.float64)), resolution)
    error = math.sqrt(spread**2 / len(window) + usual**2 / len(reference))
    if difference == 0:
        return Outcome(0.0, 1.0), 0.0
    z = difference / error if error else math.copysign(math.inf, difference)
    return Outcome(z, 2 * normal_survival(abs(z))), difference / usual if usual else z


def proportion_drop(right: int, n: int, reference_right: int, m: int) -> Outcome:
    """One-sided z test that a share is lower than in the reference, with pooled variance.

    Examples
    --------
    >>> outcome = proportion_drop(80, 100, 900, 1000)
    >>> round(outcome.statistic, 4), round(outcome.p_value, 6)
    (3.0584, 0.001113)
    """
    pooled = (right + reference_right) / (n + m)
    error = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    z = (reference_right / m - right / n) / error if error else 0.0
    return Outcome(z, normal_survival(z))


def wilson(right: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a share, sensible down to no cases at all.

    Parameters
    ----------
    right
        How many of the ``n`` cases count.
    confidence
        Chance that the interval holds the true share.

    Examples
    --------
    >>> low, high = wilson(90, 100)
    >>> round(low, 4), round(high, 4)
    (0.8256, 0.9448)
    >>> wilson(0, 0)
    Interval(low=0.0, high=1.0)

    References
    ----------
    Wilson, E. B. (1927). Probable inference, the law of succession, and statistical inference.
    Journal of the American Statistical Association 22, 209-212.
    """
    if n == 0:
        return Interval(0.0, 1.0)
    z2 = normal_quantile((1 + confidence) / 2) ** 2
    centre = (right + z2 / 2) / (n + z2)
    half = math.sqrt(z2 * (right * (n - right) / n + z2 / 4)) / (n + z2)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def drop_lower_bound(right: int, n: int, reference_right: int, m: int, confidence: float = 0.99) -> float:
    """The relative drop of a share that is certain at the given confidence (one-sided).

    The upper limit of the ratio of the two shares, from their Wilson intervals by the method of
    variance estimates recovery; it stays sensible where every answer is right, or wrong.

    Returns
    -------
    float
        At most ``1 - ratio``; negative while the share may just as well have risen.

    Examples
    --------
    >>> round(drop_lower_bound(720, 1000, 9000, 10000), 4)  # a drop of 0.2 with 1,000 labels
    0.1641
    >>> drop_lower_bound(72, 100, 9000, 10000) < 0.1  # with 100 labels even 0.1 is not sure
    True

    References
    ----------
    Donner, A. and Zou, G. Y. (2012). Closed-form confidence intervals for functions of the normal
    mean and standard deviation. Statistical Methods in Medical Research 21, 347-359.
    """
    two_sided = 2 * confidence - 1
    share, reference = right / n, reference_right / m
    high = wilson(right, n, two_sided).high
    low = wilson(reference_right, m, two_sided).low
    denominator = low * (2 * reference - low)
    if denominator <= 0:  # the reference itself may be nought: nothing is certain
        return -math.inf
    product = share * reference
    return 1 - (product + math.sqrt(max(0.0, product**2 - high * (2 * share - high) * denominator))) / denominator


def labels_needed(accuracy: float, drop: float = 0.2, threshold: float = 0.05, confidence: float = 0.99) -> int:
    """Labels that prove a drop above ``threshold`` nine times out of ten when the true drop is ``drop``.

    Examples
    --------
    >>> labels_needed(0.9)
    107
    >>> labels_needed(0.9, drop=0.1)
    863
    """
    allowed, actual = accuracy * (1 - threshold), accuracy * (1 - drop)
    power = normal_quantile(0.9) * math.sqrt(actual * (1 - actual))
    certainty = normal_quantile(confidence) * math.sqrt(allowed * (1 - allowed))
    return math.ceil(((power + certainty) / (allowed - actual)) ** 2) if accuracy > 0 else 0


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for having made several tests, so that any false alarm stays below alpha.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    References
    ----------
    Holm, S. (1979). A simple sequentially rejective multiple test procedure. Scandinavian Journal of
    Statistics 6, 65-70.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
