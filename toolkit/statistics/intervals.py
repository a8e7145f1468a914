"""Wilson's interval of a share, Holm's correction of several p-values, and McNemar's test."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """The two ends of a confidence interval."""

    low: float
    high: float


def wilson(right: float, n: float, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of the share ``right / n``, numbers that need not be whole; (0, 1) without cases.

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
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    centre = (right + z2 / 2) / (n + z2)
    half = math.sqrt(z2 * (right * (n - right) / n + z2 / 4)) / (n + z2)
    share = right / n  # inside also after rounding
    return Interval(min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def holm(p_values: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """P-values corrected by Holm's method: the chance of any false alarm among the tests stays below alpha.

    ``weights`` are the parts of alpha that the tests may spend, in any unit; equal when None.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    >>> holm([0.02, 0.02], weights=[3, 1])  # 0.02 * 4 / 3, and no less for the second
    [0.02666666666666667, 0.02666666666666667]

    References
    ----------
    Holm, S. (1979). A simple sequentially rejective multiple test procedure. Scandinavian Journal of
    Statistics 6, 65-70.
    """
    weights = [1.0] * len(p_values) if weights is None else weights
    corrected, left, largest = [0.0] * len(p_values), math.fsum(weights), 0.0
    for index in sorted(range(len(p_values)), key=lambda index: p_values[index] / weights[index]):
        largest = max(largest, min(1.0, left * p_values[index] / weights[index]))
        corrected[index] = largest
        left -= weights[index]
    return corrected


def mcnemar(lost: int, gained: int) -> float:
    """The exact two-sided p-value of McNemar's test.

    It uses the cases that only the first of two classifiers has right (lost), and only the second (gained): if both are
    equally good, either is right in half of them.

    Examples
    --------
    >>> mcnemar(0, 5), mcnemar(3, 3)
    (0.0625, 1.0)

    References
    ----------
    McNemar, Q. (1947). Note on the sampling error of the difference between correlated proportions or
    percentages. Psychometrika 12, 153-157.
    """
    from scipy.stats import binomtest  # takes a second to import

    disagreements = lost + gained
    return float(binomtest(lost, disagreements).pvalue) if disagreements else 1.0
