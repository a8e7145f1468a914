"""Which predictions to label, so that their labels tell the accuracy of a whole window.

Labels that somebody happens to send are biased: people complain about what is wrong. Labels of a
random list are not, whatever the pictures look like.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toolkit.errors import SettingsError
from toolkit.monitoring.limits import Limits
from toolkit.monitoring.statistics import labels_needed, wilson


@dataclass(frozen=True, eq=False)
class Audit:
    """Predictions to label, drawn at random from a window.

    Parameters
    ----------
    ids
        int64 (n,), in the order in which to label them: whoever stops early still has a random list.
    strata
        int64 (n,), the predicted class of each, or 0 where the window was drawn from as one.
    sizes
        int64 (n,), how many predictions of the window are in the stratum of each.
    """

    ids: NDArray[np.int64]
    strata: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @property
    def weights(self) -> NDArray[np.float64]:
        """float64 (n,), how many predictions of the window each one stands for (Horvitz and Thompson)."""
        _, place, drawn = np.unique(self.strata, return_inverse=True, return_counts=True)
        return np.asarray(self.sizes / drawn[place])


@dataclass(frozen=True)
class AuditedAccuracy:
    """The accuracy of the window that an audit was drawn from, its 95 % interval and the labels behind it.

    Without any label ``accuracy`` is None and the interval is 0 to 1.
    """

    accuracy: float | None
    low: float
    high: float
    n: int


def audit(ids: ArrayLike, n: int, seed: int = 0, predicted: ArrayLike | None = None) -> Audit:
    """Draw predictions to label, without replacement and each with the same chance.

    A prediction's place on the list follows from its id and the seed alone. So every process draws
    the same list from the same window, a longer list begins with the shorter one, and a window that
    has moved on keeps those that are still in it: labels told meanwhile go on counting. Predictions
    that have a label already must be in ``ids`` too, else the list is no fair sample of the window.

    Parameters
    ----------
    ids
        int64 (N,), all different, of all predictions of the window, in any order.
    n
        How many to draw; all when there are fewer.
    seed
        Another one gives another list.
    predicted
        (N,), the predicted classes. When given, the classes are drawn from apart, each in proportion to
        the square root of its size but at least once: rare classes get labels too, and the weights
        mend the shares.

    Raises
    ------
    SettingsError
        When ids repeat, or ``n`` is not enough for one label a class.

    Examples
    --------
    >>> audit(range(1000), 3).ids.tolist()
    [286, 250, 781]
    >>> drawn = audit(range(1000), 10, predicted=[0] * 900 + [1] * 100)
    >>> np.unique(drawn.strata, return_counts=True)[1].tolist(), sorted(set(drawn.weights.round().tolist()))
    ([7, 3], [33.0, 129.0])

    References
    ----------
    Ohlsson, E. (1995). Coordination of samples using permanent random numbers. In: Business Survey
    Methods, Wiley, 153-169.
    Bankier, M. D. (1988). Power allocations: determining sample sizes for subnational areas. The
    American Statistician 42, 174-177.
    """
    numbers = np.asarray(ids, np.int64)
    strata = np.zeros(len(numbers), np.int64) if predicted is None else np.asarray(predicted, np.int64)
    if len(strata) != len(numbers):
        raise SettingsError(f"{len(numbers)} ids were given, but {len(strata)} predicted classes")
    if len(np.unique(numbers)) != len(numbers):
        raise SettingsError("ids to draw from must all be different")
    _, place, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    if n < max(1, len(sizes)):
        raise SettingsError(f"an audit needs at least {max(1, len(sizes))} labels, one a predicted class, got {n}")
    order = np.lexsort((random_numbers(numbers, seed), place))
    rank = np.empty(len(numbers), np.int64)  # 1, 2, ... within its stratum
    rank[order] = np.arange(1, len(numbers) + 1) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # The highest averages of Sainte-Lague: whole numbers in proportion, one prediction at a time.
    claim = np.where(rank == 1, np.inf, np.sqrt(sizes[place]) / (rank - 0.5))
    drawn = np.lexsort((place, rank, -claim))[:n]
    return Audit(numbers[drawn], strata[drawn], sizes[place][drawn])


def audited_accuracy(drawn: Audit, right: ArrayLike) -> AuditedAccuracy:
    """What the labels of an audit say about the whole window: without bias, with a 95 % interval.

    Each stratum counts with its share of the window. The interval is Wilson's, for the number of labels
    of a plain random list that would be as certain; for a window drawn from as one these are the labels.
    It speaks of the stream that the window comes from, as the intervals of all other figures do.

    Parameters
    ----------
    right
        (n,), 1 where the prediction was right, 0 where it was wrong, NaN where there is no label yet.
        Those without one should be the last of the list, not the hardest.

    Examples
    --------
    >>> drawn = audit(range(1000), 10, predicted=[0] * 900 + [1] * 100)
    >>> told = audited_accuracy(drawn, drawn.strata == 0)  # all of class 0 were right, none of class 1
    >>> round(told.accuracy, 4), told.n  # where 7 of 10 labels are right
    (0.9, 10)

    References
    ----------
    Horvitz, D. G. and Thompson, D. J. (1952). A generalization of sampling without replacement from a
    finite universe. Journal of the American Statistical Association 47, 663-685.
    Korn, E. L. and Graubard, B. I. (1998). Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data. Survey Methodology 24, 193-201.
    """
    answers = np.asarray(right, np.float64)
    if answers.shape != drawn.ids.shape:
        raise SettingsError(f"an audit of {len(drawn.ids)} predictions got {answers.size} answers")
    told = ~np.isnan(answers)
    if not told.any():
        return AuditedAccuracy(None, 0.0, 1.0, 0)
    _, first, place = np.unique(drawn.strata, return_index=True, return_inverse=True)
    shares = drawn.sizes[first] / drawn.sizes[first].sum()  # (H,) of the window
    labels = np.bincount(place[told], minlength=len(first))
    rights = np.bincount(place[told], answers[told], minlength=len(first))
    # A stratum without a label is taken to be as good as the others, and as uncertain as with a single one.
    accuracy = shares @ np.where(labels > 0, rights / np.maximum(labels, 1), rights.sum() / labels.sum())
    likely = (rights + 1) / (labels + 2)  # Laplace's rule: a stratum without errors still varies
    variance = shares**2 @ (likely * (1 - likely) / np.maximum(labels, 1))
    plain = (shares @ likely) * (1 - shares @ likely) / variance
    interval = wilson(*(np.array([accuracy, 1.0]) * plain).tolist())
    return AuditedAccuracy(float(accuracy), *interval, int(labels.sum()))


def labels_to_settle(reference_accuracy: float, drop: float, limits: Limits) -> int:
    """How many labels would most probably prove that accuracy fell by more than a warning.

    Parameters
    ----------
    reference_accuracy
        On the held-out pictures.
    drop
        The relative drop that is suspected, from an estimate. One below ``limits.critical`` counts as
        that much: to prove less takes thousands of labels.

    Examples
    --------
    >>> labels_to_settle(0.9, 0.3, Limits()), labels_to_settle(0.9, 0.02, Limits())
    (41, 863)
    """
    return labels_needed(reference_accuracy, max(drop, limits.critical), limits.warning, limits.confidence)


def random_numbers(ids: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A number of 64 random bits for each id, always the same one.

    Examples
    --------
    >>> random_numbers(np.array([1, 2]), seed=0).tolist() == random_numbers(np.array([2, 1]), seed=0).tolist()[::-1]
    True

    References
    ----------
    Steele, G. L., Lea, D. and Flood, C. H. (2014). Fast splittable pseudorandom number generators.
    OOPSLA, 453-472.
    """
    key = splitmix64(np.array([seed % 2**64], np.uint64))
    return splitmix64(ids.astype(np.uint64) ^ key)


def splitmix64(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output that follows each state of the SplitMix64 generator.

    >>> f"{splitmix64(np.array([0], np.uint64))[0]:x}"
    'e220a8397b1dcdaf'
    """
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
