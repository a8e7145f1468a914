"""A timeline loses nothing, is short, and never bridges a pause."""

import functools
import operator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.prediction_fixtures import baseline_of, names, window_of
from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.plots.timeline import MAX_POINTS, Timeline, timeline
from toolkit.monitoring.windows.reference import ReferenceBins

BINS = ReferenceBins(names(3), baseline_of(200, np.random.default_rng(0)))
ROWS = window_of(9_000, np.random.default_rng(1))
HOUR = 3600.0


def at(time, rows=ROWS):
    """The first rows, at other times."""
    return replace(rows.slice(0, len(time)), time=np.asarray(time, np.float64))


def blocks_of(window, size):
    return [BINS.count(window.slice(start, start + size)) for start in range(0, window.n, size)]


def bare(times):
    """Rows without anything in them but their time."""
    n = len(times)
    return Predictions(
        ("cat", "dog"), np.asarray(times, np.float64), np.zeros(n, int), np.ones(n, np.float32), np.full(n, -1)
    )


PLAIN = ReferenceBins(("cat", "dog"))


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=12),
    st.lists(st.integers(1, 400), min_size=12, max_size=12),
    st.sampled_from([1.0, 1e4, 1e7]),
    st.integers(0, 4),
)
@settings(max_examples=25, deadline=None)
def test_all_is_counted_once_in_few_points_in_order(starts, numbers, span, blocks):
    times = [start * span + np.arange(n) * 0.01 for start, n in zip(sorted(starts), numbers, strict=False)]
    window = at(np.sort(np.concatenate(times)))
    cut = window.n * blocks // 4
    older = blocks_of(window.slice(0, cut), 150)
    line = timeline(iter(older), [window.slice(cut, window.n)], BINS)
    assert functools.reduce(operator.add, line.points) == BINS.count(window)
    assert len(line) <= MAX_POINTS
    assert (np.diff(line.starts) >= 0).all()
    assert (line.ends >= line.starts).all()


@pytest.mark.parametrize(
    ("n", "expected"), [(49, [49]), (120, [50, 70]), (3_000, [50] * 60), (3_040, [100] * 29 + [140])]
)
def test_points_are_round_numbers_of_predictions_without_a_rest(n, expected):
    line = timeline([], [bare(np.zeros(n))], PLAIN)
    assert [point.n for point in line.points] == expected
    assert line.ends.tolist() == np.cumsum(expected).tolist()


def test_a_long_history_stays_short_and_even():
    block = PLAIN.count(bare(np.zeros(1_000)))
    older = (replace(block, since=1e9 + HOUR * k, until=1e9 + HOUR * (k + 0.99)) for k in range(2_000))
    line = timeline(older, [bare(1e9 + HOUR * np.linspace(2_000, 2_001, 700))], PLAIN)
    assert line.n == 2_000_700
    assert 30 <= len(line) <= MAX_POINTS
    numbers = [point.n for point in line.points[:-1]]
    assert 51_200 <= min(numbers) <= max(numbers) <= 2 * 51_200  # 50 doubled until 60 of them hold all
    assert not line.gaps.any()


def test_what_came_at_once_after_a_quiet_month_is_one_point():
    month, burst = np.linspace(0, 30 * 24 * HOUR, 1_000), np.linspace(0, 60, 2_000) + 30 * 24 * HOUR
    line = timeline([], [bare(np.concatenate([month, burst]))], PLAIN)
    narrowest = 30 * 24 * HOUR / (2 * MAX_POINTS)
    assert ((line.ends - line.starts)[:-1] >= narrowest).all()
    assert line.points[-1].n >= 2_000


def test_a_pause_is_a_gap_and_is_never_in_a_point():
    busy = np.arange(0, 10 * HOUR, 60)  # 600 predictions
    line = timeline([], [bare(np.concatenate([busy, 12 * HOUR + busy]))], PLAIN)
    assert np.flatnonzero(line.gaps).tolist() == [len(line) // 2 - 1]
    assert (line.ends - line.starts).max() < 2 * HOUR
    x, y = line.path(np.arange(len(line), dtype=float))
    assert np.isnan(y).sum() == 2  # after each of two runs
    assert np.isnan(x).tolist() == np.isnan(y).tolist()
    first = x[: np.flatnonzero(np.isnan(x))[0]]
    assert (first[0], first[-1]) == (0, busy[-1])


def test_pauses_between_blocks_are_gaps_too():
    block = PLAIN.count(bare(np.zeros(1_000)))
    days = [0, 1, 2, 9, 10]
    line = timeline([replace(block, since=24 * HOUR * d, until=24 * HOUR * (d + 1)) for d in days], [bare([])], PLAIN)
    assert line.gaps.tolist() == [False, False, True, False]


def test_chance_makes_no_gaps():
    rng = np.random.default_rng(3)
    for n in (2, 5, 30, 100):
        assert not timeline([], [bare(np.cumsum(rng.exponential(HOUR, n)))], PLAIN).gaps.any()


def test_predictions_of_a_few_minutes_are_placed_by_number():
    rows = bare(1e9 + np.linspace(0, 500, 200))
    line = timeline([], [rows], PLAIN)
    assert not line.by_time
    assert line.starts.tolist() == [0, 50, 100, 150]
    assert line.ends.tolist() == [50, 100, 150, 200]
    assert line.place(rows.time[120]) == pytest.approx(120, abs=1)
    assert (line.place(0), line.place(2e9)) == (0, 200)


def test_hours_are_placed_by_time():
    line = timeline([], [bare(np.linspace(0, HOUR, 200))], PLAIN)
    assert line.by_time
    assert line.place(1234.5) == 1234.5
    assert line.starts[0] == 0
    assert line.ends[-1] == HOUR


def test_a_clock_that_was_set_back_does_no_harm():
    line = timeline([], [bare(np.concatenate([np.linspace(1000, 5000, 100), np.linspace(4000, 9000, 100)]))], PLAIN)
    assert line.n == 200
    assert (line.ends >= line.starts).all()


def test_nothing_is_a_timeline_without_points():
    line = timeline([PLAIN.empty()], [bare([])], PLAIN)
    assert (line, line.n, line.by_time, line.gaps.tolist()) == (Timeline(()), 0, False, [])
