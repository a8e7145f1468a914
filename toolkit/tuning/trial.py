"""One point of the space and what came of it, fold by fold; plain values, fit for JSON."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Literal


@dataclass(frozen=True)
class Fold:
    """The training on one fold.

    Parameters
    ----------
    epochs
        The figures of each epoch, by their names in MLflow, and its number, from 1, as ``epoch``.
    best_epoch
        The one whose weights count, from 1.
    seconds
        That it took.
    images
        Passed through training, each as often as it was.
    """

    epochs: tuple[Mapping[str, float], ...]
    best_epoch: int
    seconds: float
    images: int

    @property
    def curve(self) -> tuple[float, ...]:
        """The validation accuracy after each epoch."""
        return tuple(epoch["val_accuracy"] for epoch in self.epochs)

    @property
    def accuracy(self) -> float:
        """The highest validation accuracy."""
        return max(self.curve)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Fold":
        """The fold whose plain values these are, also after a round through text."""
        return cls(**{**values, "epochs": tuple(values["epochs"])})


@dataclass(frozen=True)
class Trial:
    """A point of the space and what came of it.

    Parameters
    ----------
    number
        From 0, in the order of proposal.
    settings
        The hyperparameters.
    state
        ``complete`` with all folds; ``cut`` when it could no longer matter; or ``failed``.
    folds
        Those that were begun; of a cut trial the last one may be unfinished.
    seconds
        From its start to its end.
    reason
        Why it was cut or failed; of a complete one, that it was not run because its settings were known.

    Examples
    --------
    >>> folds = tuple(Fold(({"epoch": 1, "val_accuracy": accuracy},), 1, 2.0, 80) for accuracy in (0.75, 0.25))
    >>> trial = Trial(0, {"epochs": 1}, "complete", folds, seconds=4.5)
    >>> trial.mean_accuracy, trial.images, trial == Trial.from_json(trial.json())
    (0.5, 160, True)
    """

    number: int
    settings: Mapping[str, Any]
    state: Literal["complete", "cut", "failed"]
    folds: tuple[Fold, ...] = ()
    seconds: float = 0.0
    reason: str = ""

    @property
    def accuracies(self) -> tuple[float, ...]:
        """The highest validation accuracy of each fold that was begun."""
        return tuple(fold.accuracy for fold in self.folds)

    @property
    def mean_accuracy(self) -> float:
        """Their mean; not a number when there is none."""
        return fmean(self.accuracies) if self.folds else math.nan

    @property
    def std_accuracy(self) -> float:
        """Their sample standard deviation; not a number when there are fewer than two."""
        return stdev(self.accuracies) if len(self.folds) > 1 else math.nan

    @property
    def images(self) -> int:
        """Images passed through training: what the trial cost, exactly."""
        return sum(fold.images for fold in self.folds)

    def json(self) -> dict[str, Any]:
        """Plain values, from which ``from_json`` makes an equal trial."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Trial":
        """The trial that ``json`` was of, also after a round through text."""
        folds = tuple(Fold.from_json(fold) for fold in values["folds"])
        return cls(**{**values, "folds": folds})
