"""A point of the space and its results, fold by fold, in plain values for JSON."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Literal

State = Literal["complete", "pruned", "failed", "paused"]  # the last one waits for its promotion
STATES: tuple[State, ...] = ("complete", "pruned", "failed")  # of trials that have ended


@dataclass(frozen=True)
class Fold:
    """The training on one fold."""

    epochs: tuple[Mapping[str, float], ...]  # metrics of each, named as in MLflow, and its number, from 1, as ``epoch``
    best_epoch: int  # from 1
    seconds: float
    images: int  # passed through training, repetitions included
    multiply_adds: float = 0.0  # of training and validation
    validation_images: int = 0  # 0: not known

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
        """Rebuild a fold from its plain values."""
        return cls(**{**values, "epochs": tuple(values["epochs"])})


@dataclass(frozen=True)
class Trial:
    """A point of the space and its results.

    Examples
    --------
    >>> folds = tuple(Fold(({"epoch": 1, "val_accuracy": accuracy},), 1, 2.0, 80) for accuracy in (0.75, 0.25))
    >>> trial = Trial(0, {"epochs": 1}, "complete", folds, seconds=4.5)
    >>> trial.mean_accuracy, trial.images, trial == Trial.from_json(trial.json())
    (0.5, 160, True)
    """

    number: int  # from 0, in the order of proposal
    settings: Mapping[str, Any]
    state: State  # pruned when it could no longer become the best
    folds: tuple[Fold, ...] = ()  # all that were started; the last one of a pruned or paused trial may be unfinished
    seconds: float = 0.0
    reason: str = ""  # why it was pruned or failed; of a complete one, that its settings were known
    rung: int = 0  # number of rungs that it has finished
    full_cost: float = 0.0  # multiply-adds of all epochs of all folds

    @property
    def accuracies(self) -> tuple[float, ...]:
        """The highest validation accuracy of each fold."""
        return tuple(fold.accuracy for fold in self.folds)

    @property
    def mean_accuracy(self) -> float:
        """Mean of the accuracies; NaN without a fold."""
        return fmean(self.accuracies) if self.folds else math.nan

    @property
    def std_accuracy(self) -> float:
        """Sample standard deviation of the accuracies; NaN with fewer than two folds."""
        return stdev(self.accuracies) if len(self.folds) > 1 else math.nan

    @property
    def noise(self) -> float:
        """The random variation of a fold's accuracy.

        The standard deviation over the folds stands in for that between equal trials in the same fold, which is
        unknown. It is at least the share of one image: folds may happen to be alike.
        """
        return max([self.std_accuracy, *(1 / fold.validation_images for fold in self.folds if fold.validation_images)])

    @property
    def standard_error(self) -> float:
        """The random variation of the mean accuracy."""
        return self.noise / math.sqrt(len(self.folds))

    @property
    def images(self) -> int:
        """Images passed through training: the exact cost of the trial."""
        return sum(fold.images for fold in self.folds)

    @property
    def cost(self) -> float:
        """Multiply-adds so far: the same on every machine, and comparable between networks and image sizes."""
        return sum(fold.multiply_adds for fold in self.folds)

    def json(self) -> dict[str, Any]:
        """Plain values, from which ``from_json`` makes an equal trial."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Trial":
        """Rebuild a trial from ``json``."""
        if values.keys() != cls.__dataclass_fields__.keys():
            raise ValueError("the fields differ")
        folds = tuple(Fold.from_json(fold) for fold in values["folds"])
        return cls(**{**values, "folds": folds})
