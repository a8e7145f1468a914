"""Normal, Kolmogorov, chi-square and hypergeometric distributions, made of the standard library.

``scipy.special`` has the same functions, but its import would take a third of the time to open the monitor.
"""

import math

THETA_BELOW = 1.18  # where both series of Kolmogorov's distribution need four terms
TERMS = 8  # more than either series needs there in double precision


def normal_survival(z: float) -> float:
    """P(Z > z) of a standard normal Z.

    >>> round(normal_survival(1.959964), 6)
    0.025
    """
    return math.erfc(z / math.sqrt(2)) / 2


def kolmogorov_survival(x: float) -> float:
    """P(K > x) of Kolmogorov's limiting distribution.

    References
    ----------
    Kolmogorov, A. N. (1933). Sulla determinazione empirica di una legge di distribuzione. Giornale
    dell'Istituto Italiano degli Attuari 4, 83-91.

    Examples
    --------
    >>> round(kolmogorov_survival(1.3580986), 6)
    0.05
    """
    if x <= 0:
        return 1.0
    if x < THETA_BELOW:
        tail = sum(math.exp(-(((2 * k - 1) * math.pi / x) ** 2) / 8) for k in range(1, TERMS))
        return 1 - math.sqrt(2 * math.pi) / x * tail
    return 2 * sum((1 if k % 2 else -1) * math.exp(-2 * (k * x) ** 2) for k in range(1, TERMS))


def chi_square_survival(x: float, degrees: int) -> float:
    """P(X > x) of a chi-square distribution: a finite sum, since the degrees of freedom are whole.

    >>> round(chi_square_survival(3.841459, 1), 6), round(chi_square_survival(18.307038, 10), 6)
    (0.05, 0.05)
    """
    half, odd = x / 2, degrees % 2
    if half <= 0:
        return 1.0
    powers = [j + odd / 2 for j in range(degrees // 2)]
    terms = (math.exp(power * math.log(half) - half - math.lgamma(power + 1)) for power in powers)
    return min(1.0, math.fsum(terms) + (math.erfc(math.sqrt(half)) if odd else 0.0))


def hypergeometric(seen: int, rare: int, n: int, m: int) -> float:
    """Chance that exactly ``seen`` of ``rare`` cases are among ``n`` drawn from ``n + m``.

    >>> [round(hypergeometric(seen, 2, 5, 5), 4) for seen in range(3)]
    [0.2222, 0.5556, 0.2222]
    """
    if not max(0, rare - m) <= seen <= min(rare, n):
        return 0.0
    return math.exp(_log_choose(n, seen) + _log_choose(m, rare - seen) - _log_choose(n + m, rare))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
