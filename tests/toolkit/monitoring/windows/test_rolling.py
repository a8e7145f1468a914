"""Rolling windows equal windows counted from scratch, for any order of predictions and labels."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from support.prediction_fixtures import baseline_of, names, window_of
from toolkit.monitoring.base.predictions import WINDOWS, Predictions
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.monitoring.windows.rolling import RollingWindows

BINS = ReferenceBins(names(3), baseline_of(400, np.random.default_rng(0)))
LONG = window_of(11_500, np.random.default_rng(1))


def from_scratch(window):
    return {name: BINS.count(window.last(size)) for name, size in WINDOWS.items()}


def assert_counts(rolling, window):
    for name, expected in from_scratch(window).items():
        assert rolling.counts(name) == expected, name


def fed(window, edges):
    rolling = RollingWindows(BINS)
    for start, stop in zip([0, *edges], [*edges, window.n], strict=True):
        rolling.add(window.slice(start, stop))
    return rolling


@given(st.lists(st.integers(0, 2_500), max_size=6))
@settings(max_examples=15, deadline=None)
def test_short_window_for_any_batches(edges):
    window = LONG.last(2_500)
    assert_counts(fed(window, sorted(edges)), window)


@given(st.lists(st.integers(0, LONG.n), max_size=6))
@settings(max_examples=5, deadline=None)
def test_medium_window_for_any_batches(edges):
    assert_counts(fed(LONG, sorted(edges)), LONG)


def test_one_prediction_at_a_time():
    window = LONG.last(1_040)
    assert_counts(fed(window, range(1, window.n)), window)


def test_windows_without_finite_predictions():
    broken = window_of(1_300, np.random.default_rng(2), broken=1.0)
    assert_counts(fed(broken, [700]), broken)
    joined = Predictions.concatenate([LONG.last(900), broken])
    joined = replace(joined, sequence=np.arange(joined.n))
    assert_counts(fed(joined, [10, 950]), joined)


@given(st.data())
@settings(max_examples=10, deadline=None)
def test_labels_may_come_at_any_time_and_change(data):
    window = LONG.last(2_000)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    first_part, now = data.draw(st.integers(1, 2_000)), np.full(2_000, -1)
    rolling = RollingWindows(BINS)
    rolling.add(replace(window.slice(0, first_part), labels=now[:first_part]))
    for _ in range(3):
        rows = rng.integers(0, first_part, rng.integers(0, 300))
        new = rng.integers(-1, 3, len(rows))
        for row in np.unique(rows):  # the last of several counts
            new[rows == row] = new[rows == row][-1]
        rows, first = np.unique(rows, return_index=True)
        predictions = {name: getattr(window, name)[rows] for name in ("predicted", "confidence")}
        rolling.label(window.sequence[rows], old=now[rows], new=new[first], **predictions)
        now[rows] = new[first]
    rolling.add(replace(window.slice(first_part, 2_000), labels=now[first_part:]))
    assert_counts(rolling, replace(window, labels=now))


def test_of_two_labels_in_one_call_the_last_counts():
    window = LONG.last(1_000)
    rolling = fed(replace(window, labels=np.full(1_000, -1)), [])
    rows, labels = np.array([500, 500]), np.full(1_000, -1)
    rolling.label(window.sequence[rows], old=[-1, 2], new=[2, 0], predicted=window.predicted[rows],
                  confidence=window.confidence[rows])  # fmt: skip
    labels[500] = 0
    assert_counts(rolling, replace(window, labels=labels))


def test_a_late_label_counts_in_the_long_window_only():
    rolling = fed(LONG, [])
    before = {name: rolling.counts(name).n_labels for name in WINDOWS}
    row = int(np.flatnonzero((LONG.labels < 0) & (LONG.predicted >= 0))[0])
    rolling.label(row, old=-1, new=1, predicted=LONG.predicted[row], confidence=LONG.confidence[row])
    after = {name: rolling.counts(name).n_labels for name in WINDOWS}
    assert after == before | {"long": before["long"] + 1}


def test_earlier_counts_belong_to_the_long_window():
    older, newer = LONG.slice(0, 3_000), LONG.slice(3_000, 4_500)
    rolling = RollingWindows(BINS, before=BINS.count(older))
    rolling.add(newer)
    assert rolling.counts("long") == BINS.count(LONG.slice(0, 4_500))
    assert rolling.counts("medium") == BINS.count(newer)


def test_rolling_windows_take_little_memory():
    rng = np.random.default_rng(3)
    bins = ReferenceBins(names(10), baseline_of(2_000, rng, k=10))
    rolling = RollingWindows(bins)
    rolling.add(window_of(3_000, rng, k=10))
    held = [bins, bins.reference, rolling._ring, *(rolling.counts(name) for name in WINDOWS)]
    arrays = [value for each in held for value in vars(each).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) < 2e6


def test_returned_summaries_never_change():
    rolling = fed(LONG.last(1_500), [])
    given_out, again = rolling.counts("short"), BINS.count(LONG.last(1_000))
    rolling.add(replace(LONG.last(300), sequence=LONG.n + np.arange(300)))
    assert given_out == again
