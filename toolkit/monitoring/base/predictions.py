"""Consecutive predictions as columns, the windows, and the sources of labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import SettingsError, suggest

# How many of the latest predictions of one model version each window holds; None is all of them.
WINDOWS: dict[str, int | None] = {"short": 1_000, "medium": 10_000, "long": None}

NO_CLASS = -1  # class of a prediction that is not finite; label of one without a label

# Sources of labels.
BIASED_SOURCES = ("complaint",)  # people complain about what is wrong
DRAWN_SOURCE = "audit"  # of a sample drawn at random; "audit: ada" when a person is named


@dataclass(frozen=True)
class Predictions:
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
        (n,), index of the true class; -1 where there is no label.
    latency
        (n,), milliseconds; NaN where not given.
    statistics
        (n,) for each input statistic; NaN where not given.
    probabilities
        (n, K), rounded to float16 as they are stored; empty when not read.
    sequence
        (n,), number of each prediction in the store; empty when not read.
    ids
        (n,), number of each prediction's id; empty when not read.
    drawn
        (n,), whether the label is of a sample drawn at random; empty when not read.

    Examples
    --------
    >>> import numpy as np
    >>> window = Predictions(("cat", "dog"), np.arange(4.0), np.array([0, 1, 1, -1]),
    ...                 np.array([0.9, 0.8, 0.7, np.nan]), np.array([0, 1, 0, -1]))
    >>> window.n, window.n_labels, window.n_correct, window.non_finite
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
    probabilities: NDArray[np.float16] = field(default_factory=lambda: np.zeros((0, 0), np.float16))
    sequence: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    drawn: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    @classmethod
    def empty(cls, classes: tuple[str, ...] = ()) -> Self:
        """No predictions."""
        none = np.zeros(0, np.int64)
        return cls(classes, np.zeros(0), none, np.zeros(0, np.float32), none)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Predictions that follow each other as one object; a statistic that a part lacks is NaN there."""
        parts = [part for part in parts if part.n] or parts[:1]
        columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
        names = dict.fromkeys(name for part in parts for name in part.statistics)
        columns["statistics"] = {
            name: np.concatenate([part.statistics.get(name, np.full(part.n, np.nan, np.float32)) for part in parts])
            for name in names
        }
        return cls(parts[0].classes, **columns)

    @property
    def n(self) -> int:
        """Number of predictions, including those that are not finite."""
        return len(self.time)

    @property
    def finite(self) -> NDArray[np.bool_]:
        """(n,), whether the probabilities were finite."""
        return np.not_equal(self.predicted, NO_CLASS)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(n,), whether the prediction is finite and has a label."""
        return np.asarray(self.finite & np.not_equal(self.labels, NO_CLASS))

    @property
    def non_finite(self) -> int:
        """Number of predictions with NaN or infinity."""
        return self.n - int(self.finite.sum())

    @property
    def n_labels(self) -> int:
        """Number of finite predictions with a label."""
        return int(self.labelled.sum())

    @property
    def n_correct(self) -> int:
        """Number of labelled predictions that were right."""
        return int((self.predicted == self.labels)[self.labelled].sum())

    @property
    def counts(self) -> NDArray[np.int64]:
        """(K,), how often each class was predicted."""
        return np.bincount(self.predicted[self.finite], minlength=len(self.classes)).astype(np.int64)

    def last(self, n: int | None) -> Self:
        """The latest ``n`` predictions; all when None."""
        return self.slice(max(0, self.n - n) if n is not None else 0, self.n)

    def slice(self, start: int, stop: int) -> Self:
        """The predictions from position ``start`` up to, not including, ``stop``."""
        columns: dict[str, Any] = {name: getattr(self, name)[start:stop] for name in _COLUMNS}
        statistics = {name: values[start:stop] for name, values in self.statistics.items()}
        return type(self)(classes=self.classes, statistics=statistics, **columns)


_COLUMNS = [column.name for column in fields(Predictions) if column.name not in ("classes", "statistics")]


def window_size(name: str) -> int | None:
    """Number of predictions in the window ``name``; None for all.

    >>> window_size("medium")
    10000
    """
    if name not in WINDOWS:
        raise SettingsError(f"there is no window {name!r}; the windows are {suggest(WINDOWS, name)}")
    return WINDOWS[name]


def is_drawn(source: str) -> bool:
    """Whether a source is that of labels of a sample drawn at random.

    >>> is_drawn("audit"), is_drawn("audit: ada"), is_drawn("auditor")
    (True, True, False)
    """
    return source == DRAWN_SOURCE or source.startswith(f"{DRAWN_SOURCE}: ")


def drawn_source(source: str) -> str:
    """The source under which a label of a drawn prediction is kept.

    >>> drawn_source("unspecified"), drawn_source("ada"), drawn_source("audit")
    ('audit', 'audit: ada', 'audit')
    """
    if is_drawn(source):
        return source
    return DRAWN_SOURCE if source == "unspecified" else f"{DRAWN_SOURCE}: {source}"
