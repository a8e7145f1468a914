"""Bins in which predictions are counted; each holds about the same share of the reference."""

import functools
import hashlib
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.baseline import Baseline
from toolkit.errors import SettingsError
from toolkit.monitoring.base.predictions import NO_CLASS, Predictions
from toolkit.monitoring.stats.hypothesis_tests import quantile_groups
from toolkit.monitoring.stats.performance_estimation import STEP, PerformanceEstimator
from toolkit.monitoring.windows.summary import (
    BANDS,
    LATENCY_BINS,
    LATENCY_EDGES,
    STEPS,
    STRATA_ROWS,
    Edge,
    WindowSummary,
    count_strata,
    inner_product,
)

MAX_BINS = 1_024  # of one quantity
MIN_BINS = 16
MAX_CELLS = 2**17  # bins of all classes together: 1 MB of counts
OTHER_BINS = 256  # at least, of confidence and statistics; their numbers fit a byte
GRID = 40  # additional equal steps, for values where the reference has none
ROWS_AT_ONCE = 1_000  # bounds the memory with many classes

_LARGEST = 0x7F7FFFFF  # the largest finite float32, in order
_MISSING = 0x7FFFFFFF  # what is not finite comes after it

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class BinnedPredictions:
    """Predictions as small whole numbers, from which they are counted.

    Parameters
    ----------
    bins
        (n, Q), the bin of each quantity.
    predicted, labels
        (n,), index of the class; -1 for none.
    confidence
        (n,), in steps of 2^-24; 0 where not finite.
    latency
        (n,), bin of the latency.
    scores
        (n, 2), of ``PerformanceEstimator.score`` in steps of 2^-20.
    time, sequence
        (n,), seconds since 1970, and the number in the store.
    drawn
        (n,), whether the label is of a drawn sample.
    """

    bins: NDArray[np.unsignedinteger[Any]]
    predicted: NDArray[np.int32]
    labels: NDArray[np.int32]
    confidence: NDArray[np.int32]
    latency: NDArray[np.uint8]
    scores: NDArray[np.int32]
    time: NDArray[np.float64]
    sequence: NDArray[np.int64]
    drawn: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.time)

    def take(self, places: Any) -> Self:
        """The rows at these positions."""
        return type(self)(**{entry.name: getattr(self, entry.name)[places] for entry in fields(self)})

    def edge(self, place: int) -> Edge | None:
        """The first (0) or the last (-1) finite prediction."""
        finite = np.flatnonzero(self.predicted != NO_CLASS)
        if not len(finite):
            return None
        return Edge(int(self.confidence[finite[place]]), int(self.predicted[finite[place]]))


class ReferenceBins:
    """Bins of each quantity that is counted, and the counts of the reference in them.

    The quantities are the confidence, the probability of each class, and each input statistic of the baseline. Bins
    end at quantiles of the reference; those of confidence and statistics also at equal steps. A value on which two
    quantiles fall, such as a softmax of exactly 1, has a bin of its own. The last two bins of a quantity are for
    values beyond all edges, and for missing ones: NaN, infinite, or not given.

    A quantity has 1,024 bins. Classes share 131,072: with more than 128 classes each has fewer, 131 with 1,000
    classes, and at least 16; then confidence and statistics have at least 256.

    The Kolmogorov-Smirnov statistic in these bins is at most the exact one, and less by no more than the largest share
    of the reference in one bin of several values: about 0.001 to 0.002 with 1,024 bins, and 0.008 to 0.015 for the
    classes of a thousand.

    Parameters
    ----------
    classes
        Class names in output order, K of them.
    baseline
        The reference. Without images, the bins of the probabilities are of equal width and no statistics are
        counted.

    Raises
    ------
    SettingsError
        When the baseline has other classes.

    Examples
    --------
    >>> import numpy as np
    >>> sure = Baseline(("cat", "dog"), np.array([[0.75, 0.25], [1.0, 0.0]]), np.array([0, 0]))
    >>> bins = ReferenceBins(("cat", "dog"), sure)
    >>> bins.quantities
    ('confidence', 'probability of cat', 'probability of dog')
    >>> bins.reference.mean_confidence, bins.quantile(bins.reference, 0, 0.5)
    (0.875, 0.75)
    """

    def __init__(self, classes: Sequence[str], baseline: Baseline | None = None) -> None:
        self.classes = tuple(classes)
        self.baseline = baseline if baseline is not None and baseline.size else None
        if self.baseline is not None and self.baseline.classes != self.classes:
            raise SettingsError(f"a baseline of the classes {self.baseline.classes} is no reference for {self.classes}")
        self.statistics = tuple(self.baseline.statistics) if self.baseline else ()
        # The names of the Q quantities, in the order of the bins.
        self.quantities = ("confidence", *(f"probability of {name}" for name in self.classes), *self.statistics)
        scales = [*self._probability_scales(), *self._statistic_scales()]
        sizes = np.array([len(scale) + 2 for scale in scales])
        self.starts = np.concatenate([[0], np.cumsum(sizes)])  # (Q + 1,), index of the first cell of each quantity
        self._first = self.starts[:-1]
        self.missing = self.starts[1:] - 1  # (Q,), the cell of missing values
        keys = [np.append(_ordered(scale), [_LARGEST, _MISSING]) for scale in scales]
        self._edges = np.concatenate([key + (q << 32) for q, key in enumerate(keys)])  # (T,), upper ends, inclusive
        self._values = np.concatenate([np.append(scale, [scale[-1], np.nan]) for scale in scales])
        self._type = np.uint8 if sizes.max() <= 2**8 else np.uint16
        self.estimator = PerformanceEstimator(self.baseline) if self.baseline is not None else None
        self.fingerprint = hashlib.sha256(self._edges.tobytes()).hexdigest()[:16]
        self.reference = self.count(self._held_out(self.baseline)) if self.baseline is not None else None

    def bin_slice(self, quantity: int) -> slice:
        """The cells of a quantity, without that of missing values."""
        return slice(int(self._first[quantity]), int(self.missing[quantity]))

    def values(self, quantity: int) -> NDArray[np.float32]:
        """The inclusive upper end of each bin of a quantity; of the last bin the lower end."""
        return np.asarray(self._values[self.bin_slice(quantity)], np.float32)

    def quantile(self, counts: WindowSummary, quantity: int, share: float) -> float:
        """A quantile of a quantity in a summary, to the width of a bin; NaN without values."""
        reached = np.cumsum(counts.cells[self.bin_slice(quantity)])
        place = np.searchsorted(reached, max(1, share * reached[-1]))
        return float(self.values(quantity)[place]) if reached[-1] else math.nan

    @functools.cached_property
    def deciles(self) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]:
        """For each quantity, the tenth of the reference that each bin is in, and the number of cases of each tenth."""
        counts = (self.reference or self.empty()).cells
        cells = [counts[self.bin_slice(quantity)] for quantity in range(len(self.quantities))]
        return tuple((group := quantile_groups(each), np.bincount(group, each).astype(np.int64)) for each in cells)

    def empty(self) -> WindowSummary:
        """The summary of no predictions."""
        k = len(self.classes)
        strata = np.zeros((STRATA_ROWS, len(BANDS) * k), np.int64)
        return WindowSummary(self.fingerprint, np.zeros(k, np.int64), np.zeros(len(self._edges), np.int64), strata)

    def count(self, window: Predictions) -> WindowSummary:
        """The summary of predictions, oldest first."""
        return functools.reduce(operator.add, map(self.count_binned, self.bin(window)), self.empty())

    def bin(self, window: Predictions) -> Iterator[BinnedPredictions]:
        """Predictions as whole numbers, at most 1,000 at a time; numbered from 0 if without sequence numbers."""
        sequence = window.sequence if len(window.sequence) else np.arange(window.n)
        for start in range(0, window.n, ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            predicted = window.predicted[part]
            confidence = np.where(predicted == NO_CLASS, 0, window.confidence[part]).astype(np.float64)
            latency = window.latency[part] if len(window.latency) else np.full(len(predicted), np.nan)
            scores = np.zeros((len(predicted), 2))
            if self.estimator is not None and len(window.probabilities):
                scores = self.estimator.score(window.probabilities[part])
                scores[predicted == NO_CLASS] = 0
            yield BinnedPredictions(
                bins=self._bins(window, part),
                predicted=predicted.astype(np.int32),
                labels=window.labels[part].astype(np.int32),
                confidence=np.rint(confidence * STEPS).astype(np.int32),
                latency=np.searchsorted(LATENCY_EDGES, np.asarray(latency, np.float64)).astype(np.uint8),
                scores=np.asarray(scores / STEP, np.int32),
                time=window.time[part],
                sequence=sequence[part],
                drawn=window.drawn[part] if len(window.drawn) else np.zeros(len(predicted), np.bool_),
            )

    def _bins(self, window: Predictions, part: slice) -> NDArray[np.unsignedinteger[Any]]:
        finite, k = window.finite[part], len(self.classes)
        values = np.full((len(finite), len(self._first)), np.nan, np.float32)
        values[:, 0] = window.confidence[part]
        if len(window.probabilities):
            values[:, 1 : k + 1] = window.probabilities[part]
        values[~finite, : k + 1] = np.nan
        for column, name in enumerate(self.statistics, start=k + 1):
            if name in window.statistics:
                values[:, column] = window.statistics[name][part]
        keys = _ordered(values) + (np.arange(len(self._first)) << 32)
        return np.asarray(np.searchsorted(self._edges, keys) - self._first, self._type)

    def count_binned(self, rows: BinnedPredictions) -> WindowSummary:
        """The summary of binned predictions."""
        everything, steps, labels = (
            column.astype(np.int64) for column in (rows.predicted, rows.confidence, rows.labels)
        )
        finite = everything != NO_CLASS
        predicted, confidence = everything[finite], steps[finite]
        made = count_strata(predicted, confidence, len(self.classes))
        strata = np.stack([made, *np.zeros((STRATA_ROWS - 1, len(made)), np.int64)])
        return WindowSummary(
            fingerprint=self.fingerprint,
            classes=np.bincount(predicted, minlength=len(self.classes)),
            cells=np.bincount((rows.bins + self._first).ravel(), minlength=len(self._edges)),
            latency=np.bincount(rows.latency, minlength=LATENCY_BINS),
            scores=rows.scores.sum(axis=0, dtype=np.int64),
            n=len(rows),
            non_finite=len(rows) - len(predicted),
            confidence_sum=int(confidence.sum()),
            confidence_sum_sq=inner_product(confidence, confidence),
            pairs=max(0, len(predicted) - 1),
            products=inner_product(confidence[1:], confidence[:-1]),
            repeats=int((predicted[1:] == predicted[:-1]).sum()),
            since=float(rows.time.min(initial=np.inf)),
            until=float(rows.time.max(initial=-np.inf)),
            head=rows.edge(0),
            tail=rows.edge(-1),
            strata=strata,
        ).with_labels(everything, steps, np.full(len(rows), NO_CLASS), labels, (rows.drawn, rows.drawn))

    @staticmethod
    def _held_out(baseline: Baseline) -> Predictions:
        """The held-out images as labelled predictions."""
        statistics = {name: np.asarray(values, np.float32) for name, values in baseline.statistics.items()}
        columns = np.zeros(baseline.size), baseline.predicted, baseline.confidence, baseline.labels
        return Predictions(baseline.classes, *columns, statistics=statistics, probabilities=baseline.probabilities)

    def _probability_scales(self) -> Iterator[Floats]:
        """Upper ends of the bins of the confidence and of each class."""
        each = min(MAX_BINS, max(MIN_BINS, MAX_CELLS // max(len(self.classes), 1)))
        if self.baseline is None:
            yield from (
                np.linspace(0, 1, size - 1)[1:] for size in (max(each, OTHER_BINS), *[each] * len(self.classes))
            )
            return
        grid = np.linspace(0, 1, GRID + 1).astype(np.float16)
        yield _scale(self.baseline.confidence.astype(np.float16), max(each, OTHER_BINS) - 2, grid)
        for column in self.baseline.probabilities.T:
            yield _scale(column, each - 2)

    def _statistic_scales(self) -> Iterator[Floats]:
        bins = max(OTHER_BINS, min(MAX_BINS, MAX_CELLS // max(len(self.classes), 1)))
        for name in self.statistics:
            values = np.asarray(self.baseline.statistics[name] if self.baseline else [], np.float32)
            given = values[np.isfinite(values)]
            low, high = (float(given.min()), float(given.max())) if len(given) else (0.0, 1.0)
            yield _scale(values, bins - 2, _round_numbers(low, high))


def _scale(values: Floats, n_bins: int, grid: Floats | None = None) -> Floats:
    """At most ``n_bins`` upper ends of bins with equally many values; one that fills two bins has its own."""
    values = np.sort(values[np.isfinite(values)])
    grid = values[:0] if grid is None else grid
    n_bins -= len(grid)
    if not len(values):
        return np.unique(grid)
    last = (np.arange(1, n_bins + 1) * len(values) + n_bins - 1) // n_bins - 1  # of each bin, rounded up
    ends, hits = np.unique(values[last], return_counts=True)
    below = np.nextafter(ends[hits > 1], values.dtype.type(-np.inf))
    return np.unique(np.concatenate([ends, below, grid]))


def _round_numbers(low: float, high: float) -> NDArray[np.float32]:
    """Equal steps such as 0, 0.05, 0.1 over three times the range of the values."""
    span = high - low or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(3 * span / GRID))
    step = unit * next(many for many in (1, 2, 5, 10) if unit * many >= 3 * span / GRID)
    numbers = step * np.arange(math.floor((low - span) / step), math.ceil((high + span) / step) + 1)
    limit = float(np.finfo(np.float32).max)
    return np.asarray(np.clip(numbers, -limit, limit), np.float32)


def _ordered(values: Floats) -> NDArray[np.int64]:
    """Whole numbers in the order of float32 numbers; values that are not finite come last."""
    single = np.asarray(values, np.float32) + np.float32(0)  # -0 and 0 are one value
    bits = single.view(np.int32)
    return np.where(np.isfinite(single), np.where(bits < 0, bits ^ 0x7FFFFFFF, bits), _MISSING).astype(np.int64)
