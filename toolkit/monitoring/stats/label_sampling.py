"""Random samples of predictions to label, so that the labels estimate the accuracy of a whole window.

Labels that happen to be sent are biased: complaints are about mistakes. Labels of a random sample are not.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toolkit.errors import SettingsError
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
        How many to draw, at least 1; all when there are fewer.
    seed
        Another one gives another sample.

    Returns
    -------
    int64 (n,)
        The ids in the order in which to label them; the first few are a random sample as well.

    Raises
    ------
    SettingsError
        When ids repeat, or ``n`` is less than 1.

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
    if len(np.unique(numbers)) != len(numbers):
        raise SettingsError("ids to draw from must all be different")
    if n < 1:
        raise SettingsError(f"at least 1 prediction must be drawn, got {n}")
    return numbers[np.argsort(random_numbers(numbers, seed))[:n]]


def labels_to_confirm(reference_accuracy: float, drop: float, thresholds: Thresholds) -> int:
    """Number of labels that confirm, nine times in ten, a drop of accuracy above the warning level.

    Parameters
    ----------
    reference_accuracy
        On the held-out images.
    drop
        The relative drop that is suspected, raised to ``thresholds.critical`` where it is less: a smaller one takes
        thousands of labels.
    thresholds
        ``warning``, ``critical`` and ``confidence`` are used.

    Examples
    --------
    >>> labels_to_confirm(0.9, 0.3, Thresholds()), labels_to_confirm(0.9, 0.02, Thresholds())
    (41, 863)
    """
    return required_labels(
        reference_accuracy, max(drop, thresholds.critical), thresholds.warning, thresholds.confidence
    )


def random_numbers(ids: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """64 random bits for each id, which follow from it and the seed.

    Examples
    --------
    >>> random_numbers(np.array([1, 2]), seed=0).tolist() == random_numbers(np.array([2, 1]), seed=0).tolist()[::-1]
    True
    """
    key = splitmix64(np.array([seed % 2**64], np.uint64))
    return splitmix64(ids.astype(np.uint64) ^ key)
