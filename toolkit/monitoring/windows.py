"""One window of predictions as columns, and what can be measured in it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from toolkit.baseline import Baseline
from toolkit.errors import SettingsError, known
from toolkit.monitoring import statistics
from toolkit.monitoring.limits import Limits

# How many of the latest predictions of one model version each window holds; None is all of them.
WINDOWS: dict[str, int | None] = {"short": 1_000, "medium": 10_000, "long": None}

NOTHING = -1  # the class of a prediction that was not finite, the label of one that has none


@dataclass(frozen=True)
class Window:
    """Consecutive predictions of one model version, oldest first.

    Parameters
    ----------
    classes
        Class names in output order.
    time
        (n,), seconds since 1970.
    predicted
        (n,), index of the predicted class; -1 where the probabilities were not finite.
    confidence
        (n,), the largest probability as it was stored, rounded to float16; NaN where not finite.
    labels
        (n,), index of the true class; -1 where nobody has told it.
    latency
        (n,), milliseconds; NaN where not given.
    statistics
        (n,) for each input statistic; NaN where not given.

    Examples
    --------
    >>> import numpy as np
    >>> window = Window(("cat", "dog"), np.arange(4.0), np.array([0, 1, 1, -1]),
    ...                 np.array([0.9, 0.8, 0.7, np.nan]), np.array([0, 1, 0, -1]))
    >>> window.n, window.n_labels, window.right, window.non_finite
    (4, 3, 2, 1)
    >>> window.last(2).n
    2
    """

    classes: tuple[str, ...]
    time: NDArray[np.float64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]
    labels: NDArray[np.int64]
    latency: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    statistics: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @classmethod
    def empty(cls, classes: tuple[str, ...] = ()) -> Self:
        """A window in which nothing happened."""
        nothing = np.zeros(0)
        whole = nothing.astype(np.int64)
        return cls(classes, nothing, whole, nothing.astype(np.float32), whole)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Windows that follow each other as one; a statistic that a part lacks is NaN there."""
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in cls._column_names()
        }
        names = dict.fromkeys(name for part in parts for name in part.statistics)
        columns["statistics"] = {
            name: np.concatenate([part.statistics.get(name, np.full(part.n, np.nan, np.float32)) for part in parts])
            for name in names
        }
        return cls(parts[0].classes, **columns)

    @classmethod
    def _column_names(cls) -> list[str]:
        return [column.name for column in fields(cls) if column.name not in ("classes", "statistics")]

    @property
    def n(self) -> int:
        """How many predictions there are, those that were not finite included."""
        return len(self.time)

    @property
    def finite(self) -> NDArray[np.bool_]:
        """(n,), whether the prediction can be counted."""
        return np.not_equal(self.predicted, NOTHING)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(n,), whether prediction and truth are both known."""
        told: NDArray[np.bool_] = self.finite & np.not_equal(self.labels, NOTHING)
        return told

    @property
    def non_finite(self) -> int:
        """How many predictions held NaN or infinity."""
        return self.n - int(self.finite.sum())

    @property
    def n_labels(self) -> int:
        """How many predictions can be checked."""
        return int(self.labelled.sum())

    @property
    def right(self) -> int:
        """How many of the checked predictions were right."""
        return int((self.predicted == self.labels)[self.labelled].sum())

    @property
    def counts(self) -> NDArray[np.int64]:
        """(K,), how often each class was predicted."""
        return np.bincount(self.predicted[self.finite], minlength=len(self.classes)).astype(np.int64)

    def last(self, n: int | None) -> Self:
        """The latest ``n`` predictions of this window, or all of them."""
        first = max(0, self.n - n) if n is not None else 0
        columns: dict[str, Any] = {name: getattr(self, name)[first:] for name in self._column_names()}
        kept = {name: values[first:] for name, values in self.statistics.items()}
        return type(self)(classes=self.classes, statistics=kept, **columns)


def window_size(name: str) -> int | None:
    """How many predictions the window called ``name`` holds.

    >>> window_size("medium")
    10000
    """
    if name not in WINDOWS:
        raise SettingsError(f"there is no window {name!r}; the windows are {known(WINDOWS, name)}")
    return WINDOWS[name]


def measure(window: Window, reference: Baseline | None, limits: Limits) -> dict[str, Any]:
    """All figures of one window, ready for JSON: what is not known is None, never NaN.

    Parameters
    ----------
    reference
        What the model did on pictures it had never seen; without it nothing is said of degradation.

    Examples
    --------
    >>> import numpy as np
    >>> window = Window(("cat", "dog"), np.arange(4.0), np.array([0, 1, 1, 1]),
    ...                 np.array([0.9, 0.8, 0.7, 0.6]), np.array([0, 1, 0, -1]))
    >>> figures = measure(window, None, Limits())
    >>> figures["n"], figures["n_labels"], round(figures["accuracy"], 3), figures["class_shares"]
    (4, 3, 0.667, {'cat': 0.25, 'dog': 0.75})
    """
    finite = window.finite
    confidence = window.confidence[finite]
    answered = len(confidence)
    shares = window.counts / max(answered, 1)
    span = float(window.time.max() - window.time.min()) if window.n else 0.0
    return {
        "n": window.n,
        "n_labels": window.n_labels,
        "since": float(window.time.min()) if window.n else None,
        "until": float(window.time.max()) if window.n else None,
        **_quality(window),
        **degradation(window, reference, limits),
        "mean_confidence": float(confidence.mean(dtype=np.float64)) if answered else None,
        "confidence_std": float(confidence.std(ddof=1, dtype=np.float64)) if answered > 1 else None,
        "class_shares": dict(zip(window.classes, shares.tolist(), strict=True)) if answered else {},
        "non_finite": window.non_finite,
        "latency_ms": _quantiles(window.latency),
        "predictions_per_second": (window.n - 1) / span if span > 0 else None,
    }


def _quality(window: Window) -> dict[str, Any]:
    """Accuracy, and precision, recall and F1 weighted by how often each true class occurs."""
    names = ("accuracy", "accuracy_interval", "precision_weighted", "recall_weighted", "f1_weighted")
    if not window.n_labels:
        return dict.fromkeys(names)
    k = len(window.classes)
    pairs = window.labels[window.labelled] * k + window.predicted[window.labelled]
    confusion = np.bincount(pairs, minlength=k * k).reshape(k, k)  # (K true, K predicted)
    hits, true, predicted = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    weights = true / true.sum()
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(true, 1)
    f1 = 2 * hits / np.maximum(true + predicted, 1)
    values = (
        window.right / window.n_labels,
        list(statistics.wilson(window.right, window.n_labels)),
        *(float(weights @ score) for score in (precision, recall, f1)),
    )
    return dict(zip(names, values, strict=True))


def degradation(window: Window, reference: Baseline | None, limits: Limits) -> dict[str, Any]:
    """The relative drop of accuracy, what of it is certain, and how bad that is.

    ``level`` follows from the drop that was seen. ``status`` is ``confirmed`` when the lower
    confidence bound passes the threshold of that level as well, ``suspected`` when it does not,
    ``none`` when there is no drop to speak of, and ``insufficient_data`` when there are too few
    labels to say anything; then ``level`` is None.
    """
    accuracy = reference.accuracy if reference is not None and reference.size else None
    figures: dict[str, Any] = {
        "reference_accuracy": accuracy,
        "reference_n": reference.size if reference is not None else 0,
        "degradation": None,
        "degradation_lower_bound": None,
        "level": None,
        "status": "insufficient_data",
    }
    if reference is None or not accuracy or not window.n_labels:
        return figures
    drop = 1 - window.right / window.n_labels / accuracy
    bound = statistics.drop_lower_bound(
        window.right, window.n_labels, reference_right(reference), reference.size, limits.confidence
    )
    figures |= {"degradation": drop, "degradation_lower_bound": bound if math.isfinite(bound) else None}
    if window.n_labels < limits.minimum_labels:
        return figures
    level = limits.level(drop)
    confirmed = limits.severity(limits.level(bound)) >= limits.severity(level)
    status = "none" if level == "ok" else "confirmed" if confirmed else "suspected"
    return figures | {"level": level, "status": status}


def reference_right(reference: Baseline) -> int:
    """How many held-out pictures the model classified rightly."""
    return int((reference.predicted == reference.labels).sum())


def _quantiles(latency: NDArray[np.float32]) -> dict[str, float | None]:
    given = latency[np.isfinite(latency)]
    if not len(given):
        return {"median": None, "p95": None}
    median, p95 = np.quantile(given, (0.5, 0.95))
    return {"median": float(median), "p95": float(p95)}
