"""What a set of predictions is worth: precision, recall, F1, confusion, calibration."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from toolkit.statistics.calibration import calibration_bins
from toolkit.statistics.classification_metrics import class_scores, confusion_matrix, weighted_scores

TEMPERATURES = (0.05, 20.0)  # a fit outside would only say that the logits are useless


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Figures of N predictions over K classes; precision, recall and F1 are weighted by class size."""

    accuracy: float
    precision_weighted: float
    recall_weighted: float
    f1_weighted: float
    calibration_error: float
    per_class: list[dict[str, Any]]
    confusion: NDArray[np.int64]  # (K, K), rows are the true classes
    images: int

    @property
    def weighted(self) -> dict[str, float]:
        """The figures by the names that runs and cards use."""
        return {
            "precision_weighted": self.precision_weighted,
            "recall_weighted": self.recall_weighted,
            "f1_weighted": self.f1_weighted,
        }


def evaluate(probabilities: NDArray[np.float32], labels: NDArray[np.int64], classes: Sequence[str]) -> Evaluation:
    """Measure predictions.

    Parameters
    ----------
    probabilities
        float32 (N, K).
    labels
        int64 (N,), the true classes.
    classes
        K names.

    Examples
    --------
    >>> figures = evaluate(np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), np.array([0, 1, 1]), ["cat", "dog"])
    >>> round(figures.accuracy, 3), figures.confusion.tolist()
    (0.667, [[1, 0], [1, 1]])
    """
    predicted = probabilities.argmax(axis=1)
    confusion = confusion_matrix(labels, predicted, len(classes))
    sums = np.diagonal(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    weighted = weighted_scores(*sums)
    return Evaluation(
        accuracy=float((predicted == labels).mean()),
        precision_weighted=float(weighted.precision),
        recall_weighted=float(weighted.recall),
        f1_weighted=float(weighted.f1),
        calibration_error=expected_calibration_error(probabilities, labels),
        per_class=[
            {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "images": int(n)}
            for name, p, r, f, n in zip(classes, *class_scores(*sums), sums[-1], strict=True)
        ],
        confusion=confusion,
        images=len(labels),
    )


def expected_calibration_error(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Mean distance of confidence and accuracy over 15 equal bins of confidence, weighted by their sizes.

    References
    ----------
    Naeini, Cooper, Hauskrecht: Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015.

    Examples
    --------
    >>> round(expected_calibration_error(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1])), 3)
    0.3
    """
    return calibration_bins(probabilities, labels).error


def most_confident_mistakes(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], count: int = 24
) -> NDArray[np.int64]:
    """Which predictions are wrong and surest of it: often a wrong label, or an image worth a look.

    Parameters
    ----------
    probabilities
        float32 (N, K).
    labels
        int64 (N,), the true classes.
    count
        How many at most.

    Returns
    -------
    int64 (M,), indices of mistakes by falling confidence; M is at most ``count``.

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
    """The temperature that makes softmax(logits / temperature) likeliest; 1 when there is nothing to fit on.

    The true class is given the probability (n + 1) / (n + 2) instead of 1, as if it had been missed
    once: n images that were all classified rightly are no proof of certainty, and would otherwise
    ask for a temperature of 0.

    Parameters
    ----------
    logits
        float32 (n, K), of images that the network was not trained on.
    labels
        int64 (n,).

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
