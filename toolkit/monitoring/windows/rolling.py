"""Summaries of the last 1,000, the last 10,000 and all predictions of a model version."""

from dataclasses import fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toolkit.monitoring.base.predictions import NO_CLASS, WINDOWS, Predictions, window_size
from toolkit.monitoring.windows.reference import ROWS_AT_ONCE, BinnedPredictions, ReferenceBins
from toolkit.monitoring.windows.summary import STEPS, WindowSummary

MAX_WINDOW = max(size for size in WINDOWS.values() if size is not None)
RING_SIZE = MAX_WINDOW + ROWS_AT_ONCE  # rows leave a window after a batch has been added


class RollingWindows:
    """Summaries of the three windows, updated by adding new predictions and subtracting old ones.

    Takes 1.1 MB with 10 classes and 6 statistics, 15 MB with 1,000 classes. One thread at a time may add or label;
    the summaries that ``counts`` returns never change.

    Parameters
    ----------
    bins
        The bins to count in.
    before
        Summary of older predictions, which belong to the ``long`` window too.

    Examples
    --------
    >>> rolling = RollingWindows(ReferenceBins(("cat", "dog")))
    >>> rolling.add(Predictions(("cat", "dog"), np.arange(1500.0), np.arange(1500) % 2, np.full(1500, 0.75),
    ...                    np.full(1500, -1), sequence=np.arange(1500)))
    >>> [rolling.counts(name).n for name in ("short", "medium", "long")]
    [1000, 1500, 1500]
    >>> rolling.label([3, 1499], old=[-1, -1], new=[1, 0], predicted=[1, 1], confidence=[0.75, 0.75])
    >>> [rolling.counts(name).n_labels for name in ("short", "medium", "long")]
    [1, 2, 2]
    """

    def __init__(self, bins: ReferenceBins, before: WindowSummary | None = None) -> None:
        self.bins = bins
        self._counts = {name: bins.empty() for name in WINDOWS}
        if before is not None:
            self._counts |= {name: before + self._counts[name] for name, size in WINDOWS.items() if size is None}
        self._ring: BinnedPredictions | None = None  # the latest rows, number i at position i % RING_SIZE
        self._added = 0  # number of rows ever added

    def counts(self, window: str) -> WindowSummary:
        """The summary of the ``short``, ``medium`` or ``long`` window."""
        window_size(window)
        return self._counts[window]

    def add(self, rows: Predictions) -> None:
        """Add newer predictions, in the order of their sequence numbers, with the labels that they have."""
        for part in self.bins.bin(rows):
            self._add(part)

    def _add(self, rows: BinnedPredictions) -> None:
        """Add at most 1,000 rows, so that those that leave a window are still in the ring."""
        if self._ring is None:
            self._ring = rows.take(np.zeros(RING_SIZE, np.intp))  # of the right types
        places = (self._added + np.arange(len(rows))) % RING_SIZE
        for entry in fields(rows):
            getattr(self._ring, entry.name)[places] = getattr(rows, entry.name)
        self._added += len(rows)
        came = self.bins.count_binned(rows)
        for name, size in WINDOWS.items():
            counts = self._counts[name] + came
            self._counts[name] = counts if size is None else self._shortened(self._ring, counts, size)

    def _shortened(self, ring: BinnedPredictions, counts: WindowSummary, size: int) -> WindowSummary:
        """The summary of the last ``size`` of these predictions, all of which are in the ring."""
        over = counts.n - size
        if over <= 0:
            return counts
        gone = self.bins.count_binned(ring.take(self._places(counts.n)[:over]))
        places = self._places(size)
        time = ring.time[places]
        finite = places[ring.predicted[places] != NO_CLASS]
        return counts.minus_head(gone, ring.take(finite[:1]).edge(0), float(time.min()), float(time.max()))

    def _places(self, last: int) -> NDArray[np.int64]:
        """Positions of the latest rows in the ring, oldest first."""
        return np.arange(self._added - last, self._added) % RING_SIZE

    def label(
        self,
        sequence: ArrayLike,
        *,
        old: ArrayLike,
        new: ArrayLike,
        predicted: ArrayLike,
        confidence: ArrayLike,
        drawn_before: ArrayLike = False,
        drawn: ArrayLike = False,
    ) -> None:
        """Update labels that were added, changed or removed after their predictions had been added.

        They count in the ``long`` window, and in the others as far as these still hold the prediction.

        Parameters
        ----------
        sequence
            (m,), sequence numbers of the predictions; may repeat, in the order of the labels.
        old, new
            (m,), index of the true class as counted so far and from now on; -1 for none.
        predicted, confidence
            (m,), predicted class and its probability.
        drawn_before, drawn
            (m,), whether the old and the new label are of a sample drawn at random.
        """
        sequence, old, new, predicted = (
            np.atleast_1d(np.asarray(c, np.int64)) for c in (sequence, old, new, predicted)
        )
        sure = np.nan_to_num(np.atleast_1d(np.asarray(confidence, np.float64)))
        steps = np.rint(sure * STEPS).astype(np.int64)
        sampled = tuple(np.broadcast_to(np.asarray(c, np.bool_), len(sequence)) for c in (drawn_before, drawn))
        age = self._relabel(sequence, new, sampled[1])
        for name, size in WINDOWS.items():
            held = np.full(len(sequence), True) if size is None else age < size
            was, now = (column[held] for column in sampled)
            self._counts[name] = self._counts[name].with_labels(
                predicted[held], steps[held], old[held], new[held], (was, now)
            )

    def _relabel(
        self, sequence: NDArray[np.int64], labels: NDArray[np.int64], drawn: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """Set labels in the ring; return the number of rows after each prediction, ``RING_SIZE`` if it has left."""
        age = np.full(len(sequence), RING_SIZE)
        if self._ring is None:
            return age
        places = self._places(min(self._added, MAX_WINDOW))
        numbers = self._ring.sequence[places]
        index = np.minimum(np.searchsorted(numbers, sequence), len(numbers) - 1)
        found = numbers[index] == sequence
        self._ring.labels[places[index[found]]] = labels[found]
        self._ring.drawn[places[index[found]]] = drawn[found]
        age[found] = len(numbers) - 1 - index[found]
        return age
