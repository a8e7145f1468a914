"""When a training ends before its last epoch: patience, Ctrl-C, SIGTERM."""

import math
import signal
import sys
import threading
from types import FrameType
from typing import Any, Protocol

from toolkit.cli.settings import EXIT_TERMINATED
from toolkit.training.hyperparameters import Hyperparameters

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class HasValidation(Protocol):
    """What is looked at: the validation figures of an epoch."""

    @property
    def val_accuracy(self) -> float: ...
    @property
    def val_loss(self) -> float: ...


class EarlyStopping:
    """Remembers the best epoch and counts those without improvement.

    The best epoch has the highest validation accuracy, of equals the lowest validation loss. An
    epoch improves when accuracy rose, or loss fell, by at least ``min_delta`` from the value that
    last counted as an improvement; after ``patience`` epochs without, training stops.
    """

    def __init__(self, recipe: Hyperparameters) -> None:
        self._patience, self._min_delta = recipe.patience, recipe.min_delta
        self._best = (-math.inf, -math.inf)  # accuracy, then minus loss
        self._accuracy, self._loss, self._waited = -math.inf, math.inf, 0

    def is_best(self, epoch: HasValidation) -> bool:
        """Whether no earlier epoch was as good."""
        score = (epoch.val_accuracy, -epoch.val_loss)
        if score <= self._best:
            return False
        self._best = score
        return True

    def should_stop(self, epoch: HasValidation) -> bool:
        """Count this epoch, and tell whether patience has run out."""
        rose = self._accuracy < epoch.val_accuracy >= self._accuracy + self._min_delta
        fell = self._loss > epoch.val_loss <= self._loss - self._min_delta
        self._waited = 0 if rose or fell else self._waited + 1
        if rose:
            self._accuracy = epoch.val_accuracy
        if fell:
            self._loss = epoch.val_loss
        return self._waited >= self._patience

    def state(self) -> list[Any]:
        """What it remembers, fit for JSON."""
        return [list(self._best), self._accuracy, self._loss, self._waited]

    def restore(self, state: list[Any]) -> None:
        """Remember a ``state``."""
        best, self._accuracy, self._loss, self._waited = state
        self._best = (best[0], best[1])


class DeferredSignals:
    """Holds Ctrl-C and SIGTERM back while in context, so that a step can be finished and saved.

    A second Ctrl-C is not held back. Outside the main thread, where Python delivers no signals,
    it does nothing.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "DeferredSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None and self.asked is not None:  # by a signal after the last look
            self.leave()

    def leave(self) -> None:
        """Do now what the signal asked for."""
        if self.asked == signal.SIGTERM:
            sys.exit(EXIT_TERMINATED)
        raise KeyboardInterrupt

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number
