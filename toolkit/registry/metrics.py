"""Metrics of one version, each with a 95 % interval."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from toolkit.bundle.baseline import Baseline
from toolkit.registry.mcnemar import CONFIDENCE
from toolkit.statistics.classification_metrics import weighted_scores
from toolkit.statistics.intervals import wilson

RESAMPLES = 1000  # enough for the second digit of an interval's bounds
SCORES = ("precision_weighted", "recall_weighted", "f1_weighted")
Counts = NDArray[np.float64]  # (resamples, cells)


class Score(NamedTuple):
    """A metric and the bounds of its 95 % interval; all NaN where nothing was measured."""

    value: float
    low: float
    high: float


NOT_MEASURED = Score(math.nan, math.nan, math.nan)


def share_score(correct: int, images: int) -> Score:
    """A proportion with its Wilson interval.

    Examples
    --------
    >>> [round(value, 4) for value in share_score(8, 10)]
    [0.8, 0.4902, 0.9433]
    """
    return Score(correct / images, *wilson(correct, images, CONFIDENCE)) if images else NOT_MEASURED


def accuracy_of(baseline: Baseline) -> Score:
    """Accuracy on the baseline's images."""
    return share_score(int((baseline.predicted == baseline.labels).sum()), baseline.size)


def scores_of(baseline: Baseline) -> dict[str, Score]:
    """Precision, recall and F1, each averaged over the classes by their number of images.

    A class that was never predicted has a precision of 0. The intervals are percentiles over
    resamples of the images with replacement.

    References
    ----------
    B. Efron: Bootstrap methods: another look at the jackknife. Annals of Statistics 7, 1979.

    Examples
    --------
    >>> import numpy as np
    >>> baseline = Baseline(("cat", "dog"), np.eye(2)[[0, 0, 0, 1]], np.array([0, 0, 1, 1]))
    >>> {name: round(score.value, 4) for name, score in scores_of(baseline).items()}
    {'precision_weighted': 0.8333, 'recall_weighted': 0.75, 'f1_weighted': 0.7333}
    """
    if not baseline.size:
        return dict.fromkeys(SCORES, NOT_MEASURED)
    # Only the true and the predicted class of an image matter, so cells of the confusion matrix are drawn.
    pairs = np.stack([baseline.labels, baseline.predicted], axis=1)  # (N, 2)
    cells, counts = np.unique(pairs, axis=0, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(baseline.size, counts / baseline.size, RESAMPLES)
    values = _weighted(np.vstack([counts, drawn]).astype(np.float64), cells, len(baseline.classes))
    tails = [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)]  # percent
    low, high = np.percentile(values[:, 1:], tails, axis=1)
    return {
        name: Score(float(value), float(below), float(above))
        for name, value, below, above in zip(SCORES, values[:, 0], low, high, strict=True)
    }


def _weighted(counts: Counts, cells: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """(3, resamples): precision, recall and F1 of confusion matrices given by the counts of their cells."""
    true, predicted = cells[:, 0], cells[:, 1]
    support = counts @ _membership(true, classes)  # (resamples, K)
    chosen = counts @ _membership(predicted, classes)
    correct = (counts * (true == predicted)) @ _membership(true, classes)
    return np.stack(weighted_scores(correct, chosen, support))


def _membership(classes_of: NDArray[np.int64], classes: int) -> csr_array:
    """(cells, K), 1 where a cell belongs to a class."""
    return csr_array((np.ones(len(classes_of)), (np.arange(len(classes_of)), classes_of)), (len(classes_of), classes))
