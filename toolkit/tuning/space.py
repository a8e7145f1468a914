"""Search spaces: named dimensions, and their form in Hyperopt.

Each dimension gives its ``expression`` in Hyperopt's terms, the ``position`` of a value as in Hyperopt's documents, and
its plain values for JSON.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hyperopt import hp

from toolkit.errors import SettingsError

ROUNDING = 1e-12  # relative error of exp(log(x)); at most a little over 750 * 2**-53


@dataclass(frozen=True)
class Choice:
    """One of several numbers or words, all different.

    Examples
    --------
    >>> sizes = Choice((16, 32))
    >>> sizes.contains(32), sizes.position(32), sizes.json()
    (True, 1, [16, 32])
    """

    options: tuple[Any, ...]

    def expression(self, name: str) -> Any:
        return hp.choice(name, self.options)

    def contains(self, value: Any) -> bool:
        return value in self.options

    def position(self, value: Any) -> int:
        return self.options.index(value)

    def json(self) -> list[Any]:
        return list(self.options)

    def __str__(self) -> str:
        return "one of " + ", ".join(map(str, self.options))


@dataclass(frozen=True)
class Uniform:
    """A number between two bounds, both included.

    Examples
    --------
    >>> dropout = Uniform(0, 0.5)
    >>> dropout.contains(0.5), dropout.position(0.25), dropout.json()
    (True, 0.25, {'low': 0.0, 'high': 0.5})
    """

    low: float
    high: float

    def expression(self, name: str) -> Any:
        return hp.uniform(name, self.low, self.high)

    def contains(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def position(self, value: float) -> float:
        return float(value)

    def json(self) -> dict[str, Any]:
        return {"low": float(self.low), "high": float(self.high)}  # the decimal point marks it in JSON

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


class LogUniform(Uniform):
    """A number between two bounds, each order of magnitude as likely as the next; low is more than 0."""

    def expression(self, name: str) -> Any:
        return hp.loguniform(name, math.log(self.low), math.log(self.high))

    def contains(self, value: Any) -> bool:  # up to the rounding of the bounds' logarithms
        return Uniform(self.low * (1 - ROUNDING), self.high * (1 + ROUNDING)).contains(value)

    def json(self) -> dict[str, Any]:
        return {**super().json(), "log": True}

    def __str__(self) -> str:
        return f"{super().__str__()}, logarithmic"


class Integers(Uniform):
    """A whole number between two whole bounds, both included.

    Hyperopt rounds a number between the bounds, so the two ends are half as likely as the others.
    """

    def expression(self, name: str) -> Any:
        return hp.uniformint(name, self.low, self.high)

    def contains(self, value: Any) -> bool:
        return super().contains(value) and value == int(value)

    def json(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.low} to {self.high}, whole"


Dimension = Choice | Uniform
Space = Mapping[str, Dimension]

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

# Minutes on a laptop: one small network on small images, few epochs.
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
    """The space in Hyperopt's terms, with momentum nested under sgd, the only optimizer that has it."""
    others = {
        name: dimension.expression(name) for name, dimension in space.items() if name not in ("optimizer", "momentum")
    }
    optimizers = [
        {"optimizer": name, **({"momentum": space["momentum"].expression("momentum")} if name == "sgd" else {})}
        for name in getattr(space["optimizer"], "options", ())
    ]
    return {**others, "optimizer": hp.choice("optimizer", optimizers)}


def flatten(point: Mapping[str, Any]) -> dict[str, Any]:
    """A point of the expression as plain hyperparameters."""
    return {name: value for name, value in point.items() if name != "optimizer"} | dict(point["optimizer"])


def contains(space: Space, settings: Mapping[str, Any]) -> bool:
    """Whether plain hyperparameters are a point of the space: all its names, no other, each value inside.

    Examples
    --------
    >>> space = {"optimizer": Choice(("adam", "sgd")), "momentum": Uniform(0.9, 0.99)}
    >>> contains(space, {"optimizer": "sgd", "momentum": 0.95}), contains(space, {"optimizer": "adam"})
    (True, True)
    >>> contains(space, {"optimizer": "sgd"}), contains(space, {"optimizer": "adam", "momentum": 0.95})
    (False, False)
    """
    return set(settings) == set(active(space, settings)) and all(
        space[name].contains(value) for name, value in settings.items()
    )


def positions(space: Space, settings: Mapping[str, Any]) -> dict[str, list[float]]:
    """A point in the form of ``misc["vals"]`` in Hyperopt's documents: the position under each label, if it is active.

    Examples
    --------
    >>> space = {"optimizer": Choice(("adam", "sgd")), "momentum": Uniform(0.9, 0.99)}
    >>> positions(space, {"optimizer": "sgd", "momentum": 0.95})
    {'optimizer': [1], 'momentum': [0.95]}
    >>> positions(space, {"optimizer": "adam"})
    {'optimizer': [0], 'momentum': []}
    """
    if not contains(space, settings):
        raise SettingsError(f"the search space does not contain the point {dict(settings)}")
    labels = [name for name in space if name != "momentum" or space["optimizer"].contains("sgd")]
    return {name: [space[name].position(settings[name])] if name in settings else [] for name in labels}


def active(space: Space, settings: Mapping[str, Any]) -> list[str]:
    """The names of the hyperparameters that apply with these settings."""
    return [name for name in space if name != "momentum" or settings.get("optimizer") == "sgd"]


def space_json(space: Space) -> dict[str, Any]:
    """Plain values for JSON, from which ``space_from_json`` makes an equal space."""
    return {name: dimension.json() for name, dimension in space.items()}


def space_from_json(values: Mapping[str, Any]) -> Space:
    """Rebuild a space from ``space_json``."""
    return {name: dimension_from_json(value) for name, value in values.items()}


def dimension_from_json(value: Any) -> Dimension:
    """Rebuild a dimension from its ``json``."""
    if isinstance(value, list):
        return Choice(tuple(value))
    low, high = value["low"], value["high"]
    if value.get("log"):
        return LogUniform(low, high)
    return Integers(low, high) if isinstance(low, int) else Uniform(low, high)
