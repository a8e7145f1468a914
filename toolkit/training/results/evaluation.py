"""Metrics of a model on held-out images, its most confident mistakes, and its temperature."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from toolkit.statistics.calibration import calibration_bins
from toolkit.statistics.classification_metrics import class_scores, confusion_matrix, weighted_scores

TEMPERATURES = (0.05, 20.0)  # a fit outside this range means that the logits are useless


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Metrics of N predictions over K classes.

    References
    ----------
    Naeini, Cooper, Hauskrecht: Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015.
    """

    accuracy: float
    weighted: dict[str, float]  # precision, recall and F1 (``..._weighted``): means over classes, by their sizes
    calibration_error: float  # mean distance of confidence and accuracy over 15 equal bins, by their sizes
    per_class: list[dict[str, Any]]  # the name, precision, recall, F1 and number of images of each class
    confusion: NDArray[np.int64]  # (K, K), rows are the true classes
    images: int  # N


def evaluate(probabilities: NDArray[np.float32], labels: NDArray[np.int64], classes: Sequence[str]) -> Evaluation:
    """Measure probabilities, float32 (N, K), against the true classes, int64 (N,).

    Examples
    --------
    >>> result = evaluate(np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), np.array([0, 1, 1]), ["cat", "dog"])
    >>> round(result.accuracy, 3), result.confusion.tolist()
    (0.667, [[1, 0], [1, 1]])
    """
    predicted = probabilities.argmax(axis=1)
    confusion = confusion_matrix(labels, predicted, len(classes))
    sums = np.diagonal(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    weighted = weighted_scores(*sums)
    return Evaluation(
        accuracy=float((predicted == labels).mean()),
        weighted={f"{name}_weighted": float(getattr(weighted, name)) for name in ("precision", "recall", "f1")},
        calibration_error=calibration_bins(probabilities, labels).error,
        per_class=[
            {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "images": int(n)}
            for name, p, r, f, n in zip(classes, *class_scores(*sums), sums[-1], strict=True)
        ],
        confusion=confusion,
        images=len(labels),
    )


def most_confident_mistakes(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], count: int = 24
) -> NDArray[np.int64]:
    """Indices of wrong predictions by falling confidence: often a wrong label, or an unusual image.

    Examples
    --------
    >>> sure = np.array([[0.7, 0.3], [0.9, 0.1], [0.2, 0.8]])
    >>> most_confident_mistakes(sure, np.array([1, 1, 1])).tolist()
    [1, 0]
    """
    mistakes = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    by_confidence = np.argsort(-probabilities[mistakes].max(axis=1), kind="stable")
    return mistakes[by_confidence[:count]]


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature of maximum likelihood for softmax(logits / temperature); 1 if there is nothing to fit.

    The target of the true class is (n + 1) / (n + 2) instead of 1, as if it had been missed once:
    n images that were all classified rightly do not prove certainty, and would otherwise give a
    temperature of 0.

    The logits (n, K) are of images that the network was not trained on.

    References
    ----------
    Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017.
    Platt: Probabilistic Outputs for Support Vector Machines, 1999, for the smoothed targets.

    Examples
    --------
    >>> two_of_three = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]]), np.array([0, 0, 0])
    >>> 2 < fit_temperature(*two_of_three) < 5
    True
    """
    count, classes = logits.shape
    if count == 0:
        return 1.0
    targets = np.full((count, classes), 1 / (count + 2) / (classes - 1))
    targets[np.arange(count), labels] = (count + 1) / (count + 2)

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits.astype(np.float64) / np.exp(log_temperature), axis=1)
        return float(-(targets * scaled).sum(axis=1).mean())

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))
