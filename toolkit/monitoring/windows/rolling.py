"""The last 1,000, the last 10,000 and all predictions of a model version, counted as they come."""

from dataclasses import fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toolkit.monitoring.base.predictions import NO_CLASS, WINDOWS, Predictions, window_size
from toolkit.monitoring.windows.reference import ROWS_AT_ONCE, BinnedPredictions, ReferenceBins
from toolkit.monitoring.windows.summary import STEPS, WindowSummary

LONGEST_WINDOW = max(size for size in WINDOWS.values() if size is not None)
RING_SIZE = LONGEST_WINDOW + ROWS_AT_ONCE  # what falls out of a window is looked up after what pushes it out came in


class RollingWindows:
    """Counts of the windows, kept up to date by adding what comes in and taking away what falls out.

    With 10 classes and 6 statistics it takes 1.1 MB, with 1,000 classes 15 MB, however many
    predictions there are. One thread at a time may add or label; what ``counts`` gives to others
    never changes.

    Parameters
    ----------
    bins
        The bins to count in.
    before
        Counts of still older predictions, so that the window of all holds them too.

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
        self._ring: BinnedPredictions | None = None  # the latest rows, row number i at place i % ROOM
        self._added = 0  # rows ever put into the ring

    def counts(self, window: str) -> WindowSummary:
        """What is in the ``short``, ``medium`` or ``long`` window."""
        window_size(window)
        return self._counts[window]

    def add(self, rows: Predictions) -> None:
        """Take in newer predictions, oldest first, with the labels that they have already.

        Parameters
        ----------
        rows
            Their sequence numbers must grow, and exceed those of all before; without any, they are
            numbered from 0 in the order in which they came.
        """
        if not len(rows.sequence):
            rows = replace(rows, sequence=self._added + np.arange(rows.n))
        for part in self.bins.bin(rows):
            self._add(part)

    def _add(self, rows: BinnedPredictions) -> None:
        """At most 1,000 rows, so that what they push out is still in the ring."""
        if self._ring is None:
            self._ring = rows.take(
                np.zeros(RING_SIZE, np.intp)
            )  # of the right types; what is in them does not matter yet
        places = (self._added + np.arange(len(rows))) % RING_SIZE
        for entry in fields(rows):
            getattr(self._ring, entry.name)[places] = getattr(rows, entry.name)
        self._added += len(rows)
        came = self.bins.count_binned(rows)
        for name, size in WINDOWS.items():
            counts = self._counts[name] + came
            self._counts[name] = counts if size is None else self._shortened(self._ring, counts, size)

    def _shortened(self, ring: BinnedPredictions, counts: WindowSummary, size: int) -> WindowSummary:
        """The last ``size`` of these predictions, all of which are in the ring."""
        over = counts.n - size
        if over <= 0:
            return counts
        gone = self.bins.count_binned(ring.take(self._places(counts.n)[:over]))
        places = self._places(size)
        time = ring.time[places]
        finite = places[ring.predicted[places] != NO_CLASS]
        return counts.minus_head(gone, ring.take(finite[:1]).edge(0), float(time.min()), float(time.max()))

    def _places(self, last: int) -> NDArray[np.int64]:
        """Where the latest rows are in the ring, oldest first."""
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
        """Take in labels that were told, changed or taken back after their predictions had been added.

        Each is credited to the window of all, and to the others as far as they still hold its prediction.

        Parameters
        ----------
        sequence
            (m,), sequence numbers of the predictions; one may come several times, in the order of its labels.
        old, new
            (m,), index of the true class as it was counted until now, and as it is from now on; -1 for none.
        predicted, confidence
            (m,), what was predicted, and how surely: for those that the ring no longer holds.
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
        """Note labels in the ring; return how many rows came after each prediction, more than fit when it is gone."""
        age = np.full(len(sequence), RING_SIZE)
        if self._ring is None:
            return age
        places = self._places(min(self._added, LONGEST_WINDOW))
        numbers = self._ring.sequence[places]
        index = np.minimum(np.searchsorted(numbers, sequence), len(numbers) - 1)
        found = numbers[index] == sequence
        self._ring.labels[places[index[found]]] = labels[found]
        self._ring.drawn[places[index[found]]] = drawn[found]
        age[found] = len(numbers) - 1 - index[found]
        return age
