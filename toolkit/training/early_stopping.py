"""Early stopping: which epoch is the best, and when training stops for want of improvement."""

import math
from typing import Any

from toolkit.training.hyperparameters import Hyperparameters


class EarlyStopping:
    """Remembers the best epoch and counts epochs without improvement.

    The best epoch has the highest validation accuracy, among equals the lowest validation loss. An
    epoch improves if accuracy rose, or loss fell, by at least ``min_delta`` from the value that last
    counted as an improvement; after ``patience`` epochs without improvement, training stops.

    Parameters
    ----------
    hparams
        Give ``patience`` and ``min_delta``.

    Examples
    --------
    >>> stopping = EarlyStopping(Hyperparameters(patience=1))
    >>> [stopping.should_stop(accuracy, loss) for accuracy, loss in ((0.5, 1.2), (0.6, 1.0), (0.6, 1.1))]
    [False, False, True]
    """

    def __init__(self, hparams: Hyperparameters) -> None:
        self._patience, self._min_delta = hparams.patience, hparams.min_delta
        self._best = (-math.inf, -math.inf)  # accuracy, then minus loss
        self._accuracy, self._loss, self._waited = -math.inf, math.inf, 0

    def is_best(self, accuracy: float, loss: float) -> bool:
        """Whether no earlier epoch was as good."""
        score = (accuracy, -loss)
        if score <= self._best:
            return False
        self._best = score
        return True

    def should_stop(self, accuracy: float, loss: float) -> bool:
        """Count an epoch; whether ``patience`` has run out."""
        rose = self._accuracy < accuracy >= self._accuracy + self._min_delta
        fell = self._loss > loss <= self._loss - self._min_delta
        self._waited = 0 if rose or fell else self._waited + 1
        if rose:
            self._accuracy = accuracy
        if fell:
            self._loss = loss
        return self._waited >= self._patience

    def state(self) -> list[Any]:
        """Everything that ``restore`` needs, as JSON can hold it."""
        return [list(self._best), self._accuracy, self._loss, self._waited]

    def restore(self, state: list[Any]) -> None:
        """Set what ``state`` returned."""
        best, self._accuracy, self._loss, self._waited = state
        self._best = (best[0], best[1])
