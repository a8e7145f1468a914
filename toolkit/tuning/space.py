"""What is searched: named dimensions, and how Hyperopt is told about them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hyperopt import hp


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    options: tuple[Any, ...]

    def expression(self, name: str) -> Any:
        return hp.choice(name, self.options)

    def __str__(self) -> str:
        return "one of " + ", ".join(map(str, self.options))


@dataclass(frozen=True)
class Uniform:
    """A number between two bounds."""

    low: float
    high: float

    def expression(self, name: str) -> Any:
        return hp.uniform(name, self.low, self.high)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class LogUniform:
    """A number between two bounds, each order of magnitude as likely as the next."""

    low: float
    high: float

    def expression(self, name: str) -> Any:
        return hp.loguniform(name, math.log(self.low), math.log(self.high))

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}, logarithmic"


@dataclass(frozen=True)
class Integers:
    """A whole number between two bounds, both included."""

    low: int
    high: int

    def expression(self, name: str) -> Any:
        return hp.uniformint(name, self.low, self.high)

    def __str__(self) -> str:
        return f"{self.low} to {self.high}, whole"


Space = Mapping[str, Choice | Uniform | LogUniform | Integers]

FULL: Space = {
    "learning_rate": LogUniform(1e-5, 1e-3),
    "batch_size": Choice((16, 32, 64, 128)),
    "epochs": Integers(10, 50),
    "image_size": Choice((128, 224, 256)),
    "model_type": Choice(("simple_cnn", "resnet18", "resnet18_backbone")),
    "optimizer": Choice(("adam", "sgd")),
    "weight_decay": Choice((0.0, 1e-4, 1e-3)),
    "momentum": Uniform(0.9, 0.99),  # under sgd only
    "dropout": Uniform(0.1, 0.5),
    "augmentation": Uniform(0.1, 0.5),
    "patience": Integers(3, 10),
    "min_delta": Uniform(1e-4, 1e-3),
}

# Minutes on a laptop: one small network on small pictures, few epochs.
QUICK: Space = {
    **FULL,
    "learning_rate": LogUniform(3e-4, 1e-2),
    "batch_size": Choice((32, 64)),
    "epochs": Integers(3, 6),
    "image_size": Choice((32,)),
    "model_type": Choice(("simple_cnn",)),
    "dropout": Uniform(0.1, 0.3),
    "augmentation": Uniform(0.1, 0.2),
    "patience": Choice((3,)),
}

PRESETS: Mapping[str, Space] = {"full": FULL, "quick": QUICK}


def expression(space: Space) -> dict[str, Any]:
    """The space in Hyperopt's terms, with momentum nested under sgd, where alone it means something."""
    searched = {
        name: dimension.expression(name) for name, dimension in space.items() if name not in ("optimizer", "momentum")
    }
    optimizers = [
        {"optimizer": name, **({"momentum": space["momentum"].expression("momentum")} if name == "sgd" else {})}
        for name in getattr(space["optimizer"], "options", ())
    ]
    return {**searched, "optimizer": hp.choice("optimizer", optimizers)}


def flatten(point: Mapping[str, Any]) -> dict[str, Any]:
    """A point of the expression as plain hyperparameters."""
    return {name: value for name, value in point.items() if name != "optimizer"} | dict(point["optimizer"])
