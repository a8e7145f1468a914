"""Old predictions go, once they are counted; what is needed stays, and so does the order of what comes."""

import sqlite3

import numpy as np
import pytest

from toolkit.errors import SettingsError
from toolkit.monitoring import blocks, retention
from toolkit.monitoring.blocks import fold, read_blocks
from toolkit.monitoring.models import Model
from toolkit.monitoring.retention import SECONDS_A_DAY, forget
from toolkit.monitoring.schema import labels, predictions

CLASSES = ("cat", "dog")
MODEL = Model("1", CLASSES)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 4)
    monkeypatch.setattr(retention, "LEAST_ROWS", 6)


def make(window):
    return np.packbits(window.labels == 1).tobytes()


def test_rows_go_by_age_or_number_but_never_what_a_window_needs(store, prediction):
    store.write([prediction(i, MODEL, time=i * SECONDS_A_DAY) for i in range(20)])
    fold(store, MODEL, make)
    assert forget(store, now=100.0 * SECONDS_A_DAY) == 0
    assert forget(store, keep_days=10, now=17.0 * SECONDS_A_DAY) == 4  # day 7 is just not older than ten days
    assert store.window(MODEL).ids.tolist() == list(range(4, 20))
    assert forget(store, keep_rows=11, now=0.0) == 4
    assert store.window(MODEL).ids.tolist() == list(range(8, 20))
    assert forget(store, keep_days=1, now=100.0 * SECONDS_A_DAY) == 4
    assert store.window(MODEL).ids.tolist() == list(range(12, 20))
    assert len(read_blocks(store, MODEL)) == 5


def test_so_many_at_a_time(store, prediction):
    store.write([prediction(i, MODEL) for i in range(20)])
    fold(store, MODEL, make)
    assert [forget(store, keep_rows=6, at_most=2) for _ in range(3)] == [8, 4, 0]


def test_rows_that_are_not_counted_or_have_a_label_that_is_not_stay(store, prediction):
    store.write([prediction(i, MODEL) for i in range(20)])
    assert forget(store, keep_rows=6) == 0
    fold(store, MODEL, make)
    store.labels.insert({1: "dog"}, "user", 0.0)
    assert forget(store, keep_rows=6) == 0
    fold(store, MODEL, make)
    assert forget(store, keep_rows=6) == 12
    assert read_blocks(store, MODEL)[0].counts == bytes([0b01000000])


def test_a_label_that_comes_at_the_last_moment_is_not_lost(store, prediction, monkeypatch):
    store.write([prediction(i, MODEL) for i in range(20)])
    fold(store, MODEL, make)
    chosen = retention._oldest

    def too_late(store, model):
        block = chosen(store, model)
        store.labels.insert({2: "dog"}, "user", 0.0)
        return block

    monkeypatch.setattr(retention, "_oldest", too_late)
    assert forget(store, keep_rows=6) == 0
    assert store.window(MODEL).labels.tolist()[2] == 1


def test_labels_go_with_their_rows_and_those_of_other_versions_stay(store, prediction):
    other = Model("2", CLASSES)
    store.write([prediction(i, other if i % 2 else MODEL) for i in range(40)])
    store.labels.insert(dict.fromkeys(range(40), "dog"), "user", 0.0)
    for model in (MODEL, other):
        fold(store, model, make)
    monitored = store.labels.since(other, 0, 100).ids.tolist()
    assert forget(store, keep_rows=6, at_most=3) == 12
    assert store.labels.since(MODEL, 0, 100).ids.tolist() == list(range(24, 40, 2))
    assert store.labels.since(other, 0, 100).ids.tolist() == monitored
    assert store.window(other).n == 20


def test_numbers_are_never_given_twice(store, prediction):
    """Whoever keeps up with the store would take a new row for one that it has."""
    store.write([prediction(i, MODEL) for i in range(20)])
    store.labels.insert({19: "dog", 0: "dog"}, "user", 0.0)
    fold(store, MODEL, make)
    sequence, number = int(store.window(MODEL).sequence[-1]), store.labels.last()
    with store.database.writing() as connection:
        for table in (labels, predictions):
            connection.execute(table.delete())
    store.write([prediction(20, MODEL)])
    store.labels.insert({20: "dog"}, "user", 0.0)
    assert store.window(MODEL).sequence.tolist() == [sequence + 1]
    assert store.labels.last() == number + 1


def test_a_file_gives_the_room_back(file_store, prediction):
    many = {f"s{i}": 0.5 for i in range(5000)}  # so that a row takes twenty kilobytes
    file_store.write([prediction(i, MODEL, statistics=many) for i in range(40)])
    fold(file_store, MODEL, make)

    def pages():
        with sqlite3.connect(str(file_store)) as connection:
            found = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count")]
        connection.close()
        return found

    before = pages()[0]
    assert forget(file_store, keep_rows=8) == 32
    after, free = pages()
    assert after < before / 3
    assert free == 0


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"keep_days": 0}, "keep_days must be more than 0, got 0"),
        ({"keep_days": float("nan")}, "keep_days must be more than 0, got nan"),
        ({"keep_rows": 5}, "keep_rows must be at least 6, the size of a window, got 5"),
    ],
)
def test_limits_that_are_too_small_are_refused(store, limits, message):
    with pytest.raises(SettingsError, match=message):
        forget(store, **limits)
