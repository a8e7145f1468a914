"""Hypothesis tests, effect sizes and bounds of the monitor: pure functions of numbers."""

import math
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toolkit.monitoring.stats.distributions import (
    chi_square_survival,
    hypergeometric,
    kolmogorov_survival,
    normal_survival,
)
from toolkit.statistics.intervals import wilson

MIN_EXPECTED = 5  # expected counts below this make chi-square p-values unreliable (Cochran 1954)
MAX_Z = 60  # cases above the mean of a class with fewer than 5 expected
MANY_RARE = 30  # as many rare classes are not merged, which would hide changes among them
PSI_BINS = 10  # as usual; its rules of thumb (0.1 some change, 0.25 much) are meant for these
SURE_AUTOCORRELATION = 2.326  # standard errors above 0, which chance exceeds once in a hundred times

Numbers = NDArray[np.floating[Any]]
Cases = NDArray[np.integer[Any]] | NDArray[np.floating[Any]]  # whole numbers, unless scaled to an effective sample


class HypothesisTestResult(NamedTuple):
    """Statistic of a test, and the chance of one at least as extreme without a change."""

    statistic: float
    p_value: float


class Moments(NamedTuple):
    """Size, mean and standard deviation of a sample."""

    n: float
    mean: float
    deviation: float


def ks_p_value(statistic: float, n: float, m: float) -> float:
    """P-value of the two-sample Kolmogorov-Smirnov test of samples of sizes ``n`` and ``m``, not always whole.

    Kolmogorov's limit with Stephens' correction for small samples; conservative with ties.

    Examples
    --------
    >>> round(ks_p_value(0.1, 500, 500), 4)
    0.0124

    References
    ----------
    Stephens, M. A. (1970). Use of the Kolmogorov-Smirnov, Cramer-von Mises and related statistics
    without extensive tables. Journal of the Royal Statistical Society B 32, 115-122.
    """
    root = math.sqrt(n * m / (n + m))
    return kolmogorov_survival((root + 0.12 + 0.11 / root) * statistic)


def ks_statistics(differences: Numbers, starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Kolmogorov-Smirnov statistics (Q,) of several quantities at once.

    ``differences`` (T,) are the shares of the window minus those of the reference in each bin, quantity after quantity;
    ``starts`` (Q,) are the first bins of the quantities.

    Examples
    --------
    >>> ks_statistics(np.array([0.25, -0.25, -0.5, 0.0, 0.5]), np.array([0, 2])).tolist()
    [0.25, 0.5]
    """
    return np.asarray(np.maximum.reduceat(np.abs(np.cumsum(differences)), starts), np.float64)


def chi_square(window: Cases, reference: Cases) -> HypothesisTestResult:
    """Chi-square test that two samples of classes, counts (K,), come from one distribution.

    Classes with fewer than 5 expected cases are merged into one. If that one still has too few, Fisher's exact test
    is made of it and chi-square of the others, and the smaller of the two p-values counts, corrected exactly for
    the choice (``_one_rare``); so classes that the reference never showed are tested too. With 30 or more such
    classes nothing is merged (``sparse_chi_square``).

    Examples
    --------
    >>> outcome = chi_square(np.array([30, 70]), np.array([50, 50]))
    >>> round(outcome.statistic, 4), round(outcome.p_value, 6)
    (8.3333, 0.003892)
    >>> chi_square(np.array([3, 0]), np.array([400, 0]))
    HypothesisTestResult(statistic=0.0, p_value=1.0)

    References
    ----------
    Cochran, W. G. (1954). Some methods for strengthening the common chi-square tests. Biometrics 10.
    """
    table = _table(window, reference)
    columns = table[:, np.argsort(table.sum(axis=0), kind="stable")]
    expected = columns.sum(axis=0) * table.sum(axis=1).min() / table.sum()
    rare = int((expected < MIN_EXPECTED).sum())
    if rare >= MANY_RARE:
        return sparse_chi_square(window, reference)
    pool = columns[:, :rare].sum(axis=1, keepdims=True)
    if 0 < rare < len(expected) and expected[:rare].sum() < MIN_EXPECTED:
        return _one_rare(pool[:, 0], columns[:, rare:])
    return _homogeneity(np.hstack([pool, columns[:, rare:]]) if rare else columns)


def _table(window: Cases, reference: Cases) -> NDArray[np.float64]:
    """(2, k), the classes that occur."""
    table = np.stack([window, reference]).astype(np.float64)
    return np.asarray(table[:, table.sum(axis=0) > 0])


def _one_rare(rare: NDArray[np.float64], others: NDArray[np.float64]) -> HypothesisTestResult:
    """Test of a rare class (2,) that may occur too often, and of the others (2, k) among themselves.

    Given its total, the number of the rare class in the window is hypergeometric and independent of the others. So
    the chance that the smaller of the two p-values is at most t is t + f - t f, where f is the chance that the exact
    one is at most t: far below t where few numbers are possible, hence more power than doubling the smaller one.

    References
    ----------
    Tippett, L. H. C. (1931). The Methods of Statistics. Williams and Norgate.
    Lancaster, H. O. (1949). The derivation and partition of chi-square in certain discrete
    distributions. Biometrika 36, 117-129.
    """
    seen, total = round(rare[0]), round(rare.sum())
    n, m = (round(cases) for cases in (rare + others.sum(axis=1)).tolist())
    largest = max(seen, round(total * n / (n + m))) + MAX_Z  # beyond it the chance is nil
    chances = [hypergeometric(x, total, n, m) for x in range(min(total, n, largest) + 1)]
    tails = np.cumsum(chances[::-1])[::-1]  # of at least as many
    among = _homogeneity(others)
    smaller = min(among.p_value, float(tails[seen]))
    possible = float(tails[tails <= smaller * (1 + 1e-9)].max(initial=0.0))
    varied = smaller if others.shape[1] > 1 else 0.0  # a single other class cannot change
    statistic = _homogeneity(np.column_stack([rare, others])).statistic
    return HypothesisTestResult(statistic, min(1.0, varied + possible - varied * possible))


def _homogeneity(table: NDArray[np.float64]) -> HypothesisTestResult:
    """Pearson's chi-square of a table of two rows."""
    cells = table.shape[1]
    if cells < 2:
        return HypothesisTestResult(0.0, 1.0)
    statistic = _pearson(table)
    return HypothesisTestResult(statistic, chi_square_survival(statistic, cells - 1))


def _pearson(table: NDArray[np.float64]) -> float:
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    return float(((table - expected) ** 2 / expected).sum())


def sparse_chi_square(window: Cases, reference: Cases) -> HypothesisTestResult:
    """Chi-square test for many classes (K,) with few cases each, and at least four cases together.

    When the cases of both samples are dealt to them at random, the mean and the variance of Pearson's statistic are
    known exactly. A gamma distribution with the same two gives the p-value, close to that of a permutation test.

    Examples
    --------
    >>> outcome = sparse_chi_square(np.arange(200) % 3, np.full(200, 3))
    >>> round(outcome.statistic, 2), round(outcome.p_value, 3)
    (106.86, 1.0)

    References
    ----------
    Haldane, J. B. S. (1940). The mean and variance of chi-square, when used as a test of homogeneity,
    when expectations are small. Biometrika 31, 346-355.

    Dawson, R. B. (1954). A simplified expression for the variance of the chi-square function on a
    contingency table. Biometrika 41, 280.
    """
    table = _table(window, reference)
    rows, columns, total = table.sum(axis=1), table.sum(axis=0), float(table.sum())
    if len(columns) < 2 or rows.min() <= 0:
        return HypothesisTestResult(0.0, 1.0)
    statistic = _pearson(table)
    mean = total / (total - 1) * (len(columns) - 1)
    spread = [(total - len(sums)) * (len(sums) - 1) / (total - 1) for sums in (rows, columns)]
    uneven = [(total * float((1 / sums).sum()) - len(sums) ** 2) / (total - 2) for sums in (rows, columns)]
    variance = 2 * total / (total - 3) * (spread[0] - uneven[0]) * (spread[1] - uneven[1])
    variance += total**2 / (total - 1) * uneven[0] * uneven[1]
    if variance <= 0:  # every deal gives the same statistic
        return HypothesisTestResult(statistic, 1.0)
    return HypothesisTestResult(statistic, _gamma_survival(statistic / mean, mean**2 / variance))


def _gamma_survival(x: float, shape: float) -> float:
    """P(X > x) of a gamma distribution of mean 1, by the Wilson-Hilferty cube root.

    References
    ----------
    Wilson, E. B. and Hilferty, M. M. (1931). The distribution of chi-square. Proceedings of the
    National Academy of Sciences 17, 684-688.
    """
    ninth = 1 / (9 * shape)
    return normal_survival((x ** (1 / 3) - (1 - ninth)) / math.sqrt(ninth))


def population_stability_index(window: Cases, reference: Cases) -> float:
    """Population stability index (PSI), a distance of two distributions known from credit scoring.

    The sum over the bins of the difference of shares times the difference of their logarithms. Half a case is
    added to each count, so that empty bins give finite values. With the usual ten bins of equal reference share, less
    than 0.1 is called stable and more than 0.25 a large change; more bins and fewer cases give larger values.

    Examples
    --------
    >>> round(population_stability_index(np.array([30, 70]), np.array([500, 500])), 4)
    0.1659

    References
    ----------
    Siddiqi, N. (2006). Credit Risk Scorecards. Wiley.
    """
    p, q = ((cases + 0.5) / (cases.sum() + len(cases) / 2) for cases in (window, reference))
    return float(((p - q) * np.log(p / q)).sum())


def quantile_groups(reference: Cases, groups: int = PSI_BINS) -> NDArray[np.int64]:
    """The group of each of many ordered bins, with about the same number of reference cases in each group.

    >>> quantile_groups(np.array([1, 1, 5, 1, 1, 1]), 2).tolist()
    [0, 0, 0, 1, 1, 1]
    """
    middle = np.cumsum(reference) - reference / 2
    ids = np.minimum(middle * groups // max(reference.sum(), 1), groups - 1)
    return np.asarray(np.unique(ids, return_inverse=True)[1], np.int64)


def effective_sample_size(n: float, autocorrelation: float, pairs: float) -> float:
    """Number of independent cases with the same standard error of the mean as ``n`` autocorrelated ones.

    The autocorrelation, at lag 1 and of this many pairs, is assumed to decay geometrically; within chance it counts as
    0.

    Examples
    --------
    >>> effective_sample_size(1000, 0.5, 999), effective_sample_size(1000, 0.05, 999)
    (333.3333333333333, 1000)

    References
    ----------
    Bayley, G. V. and Hammersley, J. M. (1946). The effective number of independent observations in an
    autocorrelated time series. Journal of the Royal Statistical Society, Supplement 8, 184-197.
    """
    if pairs <= 0 or autocorrelation <= SURE_AUTOCORRELATION / math.sqrt(pairs):
        return n
    r = min(autocorrelation, 1.0)
    return max(n * (1 - r) / (1 + r), 1.0)


def total_variation(window: Cases, reference: Cases) -> float:
    """Total variation distance: share of cases that differ in class between two distributions (K,) of counts.

    Examples
    --------
    >>> round(total_variation(np.array([30, 70]), np.array([100, 100])), 10)
    0.2
    """
    return float(np.abs(window / window.sum() - reference / reference.sum()).sum() / 2)


def mean_shift(window: Moments, reference: Moments, resolution: float = 0.0) -> tuple[HypothesisTestResult, float]:
    """z test that two samples have the same mean; and the shift in standard deviations of the reference.

    ``resolution``, the smallest step of the values, is a lower bound of the standard deviations: two constant samples
    that differ by a rounding step are not infinitely far apart.

    Examples
    --------
    >>> outcome, shift = mean_shift(Moments(100, 0.8, 0.1), Moments(100, 0.85, 0.1))
    >>> round(outcome.statistic, 4), round(outcome.p_value, 6), round(shift, 4)
    (-3.5355, 0.000407, -0.5)
    """
    difference = window.mean - reference.mean
    spread, scale = max(window.deviation, resolution), max(reference.deviation, resolution)
    error = math.sqrt(spread**2 / window.n + scale**2 / reference.n)
    if difference == 0:
        return HypothesisTestResult(0.0, 1.0), 0.0
    z = difference / error if error else math.copysign(math.inf, difference)
    return HypothesisTestResult(z, 2 * normal_survival(abs(z))), difference / scale if scale else z


def accuracy_drop_test(right: float, n: float, reference_right: float, m: float) -> HypothesisTestResult:
    """One-sided z test with pooled variance: ``right`` of ``n`` against ``reference_right`` of ``m``.

    Examples
    --------
    >>> outcome = accuracy_drop_test(80, 100, 900, 1000)
    >>> round(outcome.statistic, 4), round(outcome.p_value, 6)
    (3.0584, 0.001113)
    """
    pooled = (right + reference_right) / (n + m)
    error = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    z = (reference_right / m - right / n) / error if error else 0.0
    return HypothesisTestResult(z, normal_survival(z))


def degradation_lower_bound(
    right: float, n: float, reference_right: float, m: float, confidence: float = 0.99
) -> float:
    """One-sided lower confidence bound of the relative drop of a share; minus infinity when the reference may be 0.

    It follows from the upper limit of the ratio of the two shares, from their Wilson intervals by the method of
    variance estimates recovery; valid also where every answer is right, or wrong.

    Examples
    --------
    >>> round(degradation_lower_bound(720, 1000, 9000, 10000), 4)  # a drop of 0.2 with 1,000 labels
    0.1641
    >>> degradation_lower_bound(72, 100, 9000, 10000) < 0.1  # with 100 labels even 0.1 is uncertain
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
    if denominator <= 0:  # the reference itself may be 0
        return -math.inf
    product = share * reference
    return 1 - (product + math.sqrt(max(0.0, product**2 - high * (2 * share - high) * denominator))) / denominator


def required_labels(accuracy: float, drop: float = 0.2, threshold: float = 0.05, confidence: float = 0.99) -> int:
    """Number of labels that confirm a drop above ``threshold`` nine times out of ten when the true drop is ``drop``.

    Examples
    --------
    >>> required_labels(0.9)
    107
    >>> required_labels(0.9, drop=0.1)
    863
    """
    allowed, actual = accuracy * (1 - threshold), accuracy * (1 - drop)
    power = NormalDist().inv_cdf(0.9) * math.sqrt(actual * (1 - actual))
    certainty = NormalDist().inv_cdf(confidence) * math.sqrt(allowed * (1 - allowed))
    return math.ceil(((power + certainty) / (allowed - actual)) ** 2) if accuracy > 0 else 0
