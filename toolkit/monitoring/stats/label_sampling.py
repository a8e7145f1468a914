"""Random samples of predictions to label, so that the labels estimate the accuracy of a whole window.

Labels that happen to be sent are biased: complaints are about mistakes. Labels of a random sample are not.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.stats.hypothesis_tests import required_labels
from toolkit.monitoring.stats.splitmix import splitmix64


def sample_for_labelling(ids: ArrayLike, n: int, seed: int = 0) -> NDArray[np.int64]:
    """Draw predictions to label, without replacement and each with the same chance.

    The order of the predictions follows from their ids and the seed. So every process draws the same sample from
    the same window, a larger sample begins with the smaller one, and a sample of a later window keeps the
    predictions that are still in it. Labelled predictions must be in ``ids`` too, otherwise the sample is biased.

    Parameters
    ----------
    ids
        int64 (N,), all different, of all predictions of the window, in any order.
    n
        How many to draw; all when there are fewer. The first few of them are a random sample as well.
    seed
        Another one gives another sample.

    Examples
    --------
    >>> sample_for_labelling(range(1000), 3).tolist()
    [286, 250, 781]

    References
    ----------
    Ohlsson, E. (1995). Coordination of samples using permanent random numbers. In: Business Survey
    Methods, Wiley, 153-169.
    """
    numbers = np.asarray(ids, np.int64)
    return numbers[np.argsort(random_numbers(numbers, seed))[:n]]


def labels_to_confirm(reference_accuracy: float, drop: float, thresholds: Thresholds) -> int:
    """Number of labels that confirm, nine times in ten, a drop of accuracy above the warning level.

    A suspected relative drop of less than ``thresholds.critical`` is raised to it: it takes thousands of labels.

    >>> labels_to_confirm(0.9, 0.3, Thresholds()), labels_to_confirm(0.9, 0.02, Thresholds())
    (41, 863)
    """
    return required_labels(
        reference_accuracy, max(drop, thresholds.critical), thresholds.warning, thresholds.confidence
    )


def random_numbers(ids: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """64 random bits for each id, which follow from it and the seed.

    >>> random_numbers(np.array([1, 2]), seed=0).tolist() == random_numbers(np.array([2, 1]), seed=0).tolist()[::-1]
    True
    """
    key = splitmix64(np.array([seed % 2**64], np.uint64))
    return splitmix64(ids.astype(np.uint64) ^ key)
