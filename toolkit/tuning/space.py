"""Search spaces: named dimensions, and their form in Hyperopt."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hyperopt import hp

from toolkit.errors import SettingsError

ROUNDING = 1e-12  # relative error of exp(log(x)); at most a little over 750 * 2**-53


@dataclass(frozen=True)
class Choice:
    """One of several values.

    Parameters
    ----------
    options
        Numbers or words, all different.

    Examples
    --------
    >>> sizes = Choice((16, 32))
    >>> sizes.contains(32), sizes.position(32), sizes.json()
    (True, 1, [16, 32])
    """

    options: tuple[Any, ...]

    def expression(self, name: str) -> Any:
        """The dimension in Hyperopt's terms."""
        return hp.choice(name, self.options)

    def contains(self, value: Any) -> bool:
        """Whether the value is one of the options."""
        return value in self.options

    def position(self, value: Any) -> int:
        """The form of a value in Hyperopt's documents: its index among the options."""
        return self.options.index(value)

    def json(self) -> list[Any]:
        """The options."""
        return list(self.options)

    def __str__(self) -> str:
        return "one of " + ", ".join(map(str, self.options))


@dataclass(frozen=True)
class _Interval:
    """Numbers between two bounds, both included."""

    low: float
    high: float

    def contains(self, value: Any) -> bool:
        """Whether the value is a number from one bound to the other."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def position(self, value: float) -> float:
        """The form of a value in Hyperopt's documents: the number as a float."""
        return float(value)

    def json(self) -> dict[str, Any]:
        """The bounds, with a decimal point."""
        return {"low": float(self.low), "high": float(self.high)}


class Uniform(_Interval):
    """A number between two bounds.

    Parameters
    ----------
    low, high
        The bounds, low less than high.

    Examples
    --------
    >>> dropout = Uniform(0, 0.5)
    >>> dropout.contains(0.5), dropout.position(0.25), dropout.json()
    (True, 0.25, {'low': 0.0, 'high': 0.5})
    """

    def expression(self, name: str) -> Any:
        """The dimension in Hyperopt's terms."""
        return hp.uniform(name, self.low, self.high)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


class LogUniform(_Interval):
    """A number between two bounds, each order of magnitude as likely as the next.

    Parameters
    ----------
    low, high
        The bounds themselves, not their logarithms; low more than 0 and less than high.

    Examples
    --------
    >>> rate = LogUniform(0.001, 1)
    >>> rate.contains(0.5), rate.position(0.5), rate.json()
    (True, 0.5, {'low': 0.001, 'high': 1.0, 'log': True})
    """

    def expression(self, name: str) -> Any:
        """The dimension in Hyperopt's terms."""
        return hp.loguniform(name, math.log(self.low), math.log(self.high))

    def contains(self, value: Any) -> bool:
        """Whether the value is a number from one bound to the other, up to the rounding of their logarithms."""
        return _Interval(self.low * (1 - ROUNDING), self.high * (1 + ROUNDING)).contains(value)

    def json(self) -> dict[str, Any]:
        """The bounds, with a decimal point, and the mark of a logarithmic scale."""
        return {**super().json(), "log": True}

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}, logarithmic"


@dataclass(frozen=True)
class Integers(_Interval):
    """A whole number between two bounds, both included.

    Hyperopt rounds a number between the bounds, so the two ends are half as likely as the others.

    Parameters
    ----------
    low, high
        Whole numbers, low less than high.

    Examples
    --------
    >>> epochs = Integers(10, 50)
    >>> epochs.contains(50), epochs.contains(10.5), epochs.position(12), epochs.json()
    (True, False, 12.0, {'low': 10, 'high': 50})
    """

    low: int
    high: int

    def expression(self, name: str) -> Any:
        """The dimension in Hyperopt's terms."""
        return hp.uniformint(name, self.low, self.high)

    def contains(self, value: Any) -> bool:
        """Whether the value is a whole number from one bound to the other."""
        return super().contains(value) and value == int(value)

    def json(self) -> dict[str, Any]:
        """The bounds, without a decimal point."""
        return {"low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.low} to {self.high}, whole"


Dimension = Choice | Uniform | LogUniform | Integers
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
    """A point in the form of ``misc["vals"]`` in Hyperopt's trial documents.

    Parameters
    ----------
    space
        The search space.
    settings
        Plain hyperparameters, as ``flatten`` gives them.

    Returns
    -------
    dict
        For each label of the expression a list with the position of its value, empty where it is not active.

    Raises
    ------
    SettingsError
        The space does not contain the point.

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
    """Plain values for JSON, from which ``space_from_json`` makes an equal space.

    Examples
    --------
    >>> space_json({"epochs": Integers(10, 50), "batch_size": Choice((16, 32))})
    {'epochs': {'low': 10, 'high': 50}, 'batch_size': [16, 32]}
    """
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
