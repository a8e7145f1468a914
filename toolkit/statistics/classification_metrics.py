"""Precision, recall and F1 from counts of right predictions, predictions and true classes."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.integer[Any]] | NDArray[np.floating[Any]]


class ClassScores(NamedTuple):
    """Precision, recall and F1, each an array of one shape; 0 where there is no case."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]


def confusion_matrix(
    labels: NDArray[np.integer[Any]], predicted: NDArray[np.integer[Any]], k: int
) -> NDArray[np.int64]:
    """int64 (K true, K predicted), how often each of ``k`` classes was predicted as each.

    Examples
    --------
    >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 1, 0]), 2).tolist()
    [[1, 0], [1, 1]]
    """
    return np.bincount(labels * k + predicted, minlength=k * k).reshape(k, k)


def class_scores(right: Counts, predicted: Counts, true: Counts) -> ClassScores:
    """Precision, recall and F1 of each class.

    The arguments (..., K) are how often each class was predicted rightly, was predicted, and was the true one.

    Examples
    --------
    >>> class_scores(np.array([2, 1]), np.array([3, 1]), np.array([2, 2])).recall.tolist()
    [1.0, 0.5]
    """
    return ClassScores(_share(right, predicted), _share(right, true), _share(2 * right, predicted + true))


def weighted_scores(right: Counts, predicted: Counts, true: Counts) -> ClassScores:
    """Means of precision, recall and F1 over the classes, weighted by how often each is the true one.

    The arguments are those of ``class_scores``, with at least one case.

    Examples
    --------
    >>> [round(float(score), 4) for score in weighted_scores(np.array([2, 1]), np.array([3, 1]), np.array([2, 2]))]
    [0.8333, 0.75, 0.7333]
    """
    weights = true / true.sum(axis=-1, keepdims=True)
    return ClassScores(*((weights * scores).sum(axis=-1) for scores in class_scores(right, predicted, true)))


def _share(part: Counts, whole: Counts) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros(np.shape(part), np.float64), where=whole > 0)
