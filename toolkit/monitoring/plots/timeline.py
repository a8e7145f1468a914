"""Timelines: the predictions of a model version as a few dozen points."""

import functools
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.monitoring.windows.summary import WindowSummary

MAX_POINTS = 60  # more cannot be seen
MIN_PER_POINT = 50
MIN_SPAN_S = 600.0  # predictions within less are placed by number and not by time
MIN_WIDTH = 1 / (2 * MAX_POINTS)  # of the span: points closer together would hide each other
GAP = 1 / 20  # of the span without a prediction: a gap that can be seen
UNUSUAL = 10  # times the mean interval; chance makes an interval so long between 1 in 22,000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Timeline:
    """Predictions of one model version in order, counted in pieces: the points of a line.

    A piece holds about as many predictions as any other, so that points are equally certain, and is wide enough to
    be seen. Points are placed by time where the whole took ten minutes or more; else, as after a batch job or a test,
    by the number of predictions. No point is empty.

    Examples
    --------
    >>> bins = ReferenceBins(("cat", "dog"))
    >>> hours = np.repeat([0.0, 1.0, 9.0], 50) * 3600 + np.tile(np.arange(50.0), 3)
    >>> rows = Predictions(("cat", "dog"), hours, np.zeros(150, int), np.ones(150), np.full(150, -1))
    >>> line = timeline([], [rows], bins)
    >>> [point.n for point in line.points], line.by_time, (line.starts / 3600).tolist(), line.gaps.tolist()
    ([50, 50, 50], True, [0.0, 1.0, 9.0], [True, True])
    """

    points: tuple[WindowSummary, ...]

    def __len__(self) -> int:
        return len(self.points)

    @property
    def n(self) -> int:
        """All predictions."""
        return sum(point.n for point in self.points)

    @property
    def by_time(self) -> bool:
        """Whether places are seconds since 1970, and not numbers of predictions."""
        return _span(self.points) >= MIN_SPAN_S

    @property
    def starts(self) -> Floats:
        """(P,), where each point begins."""
        if self.by_time:
            return np.array([point.since for point in self.points])
        return self.ends - [point.n for point in self.points]

    @property
    def ends(self) -> Floats:
        """(P,), where each point ends."""
        if self.by_time:
            return np.array([point.until for point in self.points])
        return np.cumsum([float(point.n) for point in self.points])

    @property
    def middles(self) -> Floats:
        """(P,), where each point is drawn."""
        return (self.starts + self.ends) / 2

    @property
    def gaps(self) -> NDArray[np.bool_]:
        """(P - 1,), whether there was no prediction for long between a point and the next."""
        longest = _longest(self.points)
        return np.array([_gap_between(*pair) > longest for pair in itertools.pairwise(self.points)], bool)

    def place(self, time: float) -> float:
        """Place of a time, which is in seconds since 1970."""
        if self.by_time:
            return time
        times = np.maximum.accumulate([end for point in self.points for end in (point.since, point.until)])
        return float(np.interp(time, times, np.column_stack([self.starts, self.ends]).ravel()))

    def path(self, *columns: Floats) -> tuple[Floats, ...]:
        """Places and values as they are drawn: NaN at each gap, lines and bands as long as their predictions took.

        Parameters
        ----------
        columns
            (P,) each; NaN where nothing is known, which is a gap too.

        Examples
        --------
        >>> bins = ReferenceBins(("cat", "dog"))
        >>> rows = Predictions(("cat", "dog"), np.zeros(150), np.zeros(150, int), np.ones(150), np.full(150, -1))
        >>> [column.tolist() for column in timeline([], [rows], bins).path(np.array([0.5, np.nan, 1.0]))]
        [[0.0, 25.0, 50.0, nan, 100.0, 125.0, 150.0, nan], [0.5, 0.5, 0.5, nan, 1.0, 1.0, 1.0, nan]]
        """
        known: NDArray[np.bool_] = np.asarray(np.isfinite(np.stack(columns)).all(axis=0))
        breaks = self.gaps | (known[1:] != known[:-1])
        runs = [run for run in np.split(np.arange(len(self)), np.flatnonzero(breaks) + 1) if known[run].all()]
        gap = [np.nan]
        places = [[self.starts[run[:1]], self.middles[run], self.ends[run[-1:]], gap] for run in runs]
        values = [[[each[run[:1]], each[run], each[run[-1:]], gap] for run in runs] for each in columns]
        return tuple(
            np.concatenate([part for run in parts for part in run]) if runs else np.zeros(0)
            for parts in (places, *values)
        )


def timeline(older: Iterable[WindowSummary], recent: Iterable[Predictions], bins: ReferenceBins) -> Timeline:
    """A timeline of at most 60 points, of any number of predictions.

    ``older`` are counts of consecutive predictions, oldest first, at most 120 of them held at a time; ``recent`` are
    the predictions that follow, with their statistics and probabilities, a page of rows at a time.

    Examples
    --------
    >>> bins = ReferenceBins(("cat", "dog"))
    >>> rows = Predictions(("cat", "dog"), np.arange(1000.0), np.zeros(1000, int), np.ones(1000), np.full(1000, -1))
    >>> blocks = [bins.count(rows)] * 3
    >>> line = timeline(blocks, [rows], bins)
    >>> line.n, [point.n for point in line.points][:5]
    (4000, [1000, 1000, 1000, 100, 100])
    """
    points: list[WindowSummary] = []
    pieces = (counts for rows in recent for counts in _slices(rows, bins))
    for counts in itertools.chain(older, pieces):
        if counts.n:
            points.append(counts)
        if len(points) >= 2 * MAX_POINTS:
            points = _downsample(points)
    return Timeline(tuple(_downsample(points)))


def _slices(recent: Predictions, bins: ReferenceBins) -> Iterator[WindowSummary]:
    """Counts of a few rows each, split at gaps."""
    if not recent.n:
        return
    span = float(np.ptp(recent.time))
    pauses = np.flatnonzero(np.diff(recent.time) > _pause(span, recent.n)) + 1
    size = _size(recent.n)
    for start, stop in itertools.pairwise([0, *pauses.tolist(), recent.n]):
        for place in range(start, stop, size):
            yield bins.count(recent.slice(place, min(place + size, stop)))


def _downsample(points: Sequence[WindowSummary]) -> list[WindowSummary]:
    """Neighbours added up until there are few enough points, each of enough predictions."""
    size = _size(_n(points))
    while len(groups := _groups(points, size)) > MAX_POINTS:
        size *= 2
    return [functools.reduce(operator.add, group) for group in groups]


def _groups(points: Sequence[WindowSummary], size: int) -> list[list[WindowSummary]]:
    """Neighbours that make a point of at least ``size`` predictions and of a width that can be seen."""
    span = _span(points)
    longest, width = _longest(points), MIN_WIDTH * span if span >= MIN_SPAN_S else 0.0
    groups = [list(points[:1])] if points else []
    for before, point in itertools.pairwise(points):
        pause = _gap_between(before, point) > longest
        if pause or (_n(groups[-1]) >= size and _span(groups[-1]) >= width):
            groups.append([])
        groups[-1].append(point)
    return _merge_remainders(groups, size, longest)


def _merge_remainders(groups: Sequence[list[WindowSummary]], size: int, longest: float) -> list[list[WindowSummary]]:
    """Groups with a small remainder before a gap or at the end added to the group before it: it would be noise."""
    kept = list(groups[:1])
    for group in groups[1:]:
        if 2 * _n(group) < size and _gap_between(kept[-1][-1], group[0]) <= longest:
            kept[-1] = kept[-1] + group
        else:
            kept.append(group)
    return kept


def _size(n: int) -> int:
    """Predictions in a point: at least 50, and so many that there are few enough points."""
    size = MIN_PER_POINT
    while size * MAX_POINTS < n:
        size *= 2
    return size


def _n(points: Sequence[WindowSummary]) -> int:
    return sum(point.n for point in points)


def _span(points: Sequence[WindowSummary]) -> float:
    """Seconds from the first prediction to the last."""
    if not points:
        return 0.0
    return max(point.until for point in points) - min(point.since for point in points)


def _gap_between(before: WindowSummary, after: WindowSummary) -> float:
    """Seconds between two points in which there was no prediction."""
    return after.since - before.until


def _longest(points: Sequence[WindowSummary]) -> float:
    """Longest time without a prediction that is no gap, in seconds."""
    return _pause(_span(points), _n(points))


def _pause(span: float, n: int) -> float:
    return span * max(GAP, UNUSUAL / max(n, 1)) if span >= MIN_SPAN_S else float("inf")
