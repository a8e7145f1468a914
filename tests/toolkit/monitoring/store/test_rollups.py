"""Rollups: each prediction in one, each label in the end, and nothing lost when two processes write them at once.

Old predictions are deleted once they are counted; what is needed stays, and so does the order of what comes.
"""

import json
import sqlite3
from itertools import pairwise

import pytest

from toolkit.errors import SettingsError, UnknownPrediction
from toolkit.monitoring.store import rollups as module
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.predictions import PredictionStore
from toolkit.monitoring.store.rollups import (
    SECONDS_PER_DAY,
    delete_expired,
    merge_old_rollups,
    read_rollups,
    write_due_rollups,
)
from toolkit.monitoring.store.schema import labels, predictions

CLASSES = ("cat", "dog")
MODEL = ModelVersion("1", CLASSES)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(module, "ROLLUP_SIZE", 4)
    monkeypatch.setattr(module, "MERGE_FACTOR", 3)
    monkeypatch.setattr(module, "KEPT_PER_SIZE", 2)
    monkeypatch.setattr(module, "MIN_ROWS", 6)


def make(window):
    """Ids, predicted classes and labels of a window, as JSON."""
    return json.dumps([window.ids.tolist(), window.predicted.tolist(), window.labels.tolist()]).encode()


def add(one, other):
    return json.dumps([a + b for a, b in zip(json.loads(one), json.loads(other), strict=True)]).encode()


def contents(store, model=MODEL):
    return [json.loads(rollup.counts) for rollup in read_rollups(store, model)]


def test_rows_become_rollups_when_there_are_enough(store, prediction):
    other = ModelVersion("2", CLASSES)
    store.write([prediction(i, other if i % 3 == 0 else MODEL, time=100.0 - i) for i in range(16)])
    assert write_due_rollups(store, MODEL, make) == 2
    assert write_due_rollups(store, MODEL, make) == 0
    assert write_due_rollups(store, other, make) == 1
    assert [ids for ids, _, _ in contents(store)] == [[1, 2, 4, 5], [7, 8, 10, 11]]
    first, second = read_rollups(store, MODEL)
    assert (first.number, first.n, first.first, first.last, first.since, first.until) == (0, 4, 2, 6, 95, 99)
    assert (second.number, second.first, second.last) == (1, 8, 12)
    store.write([prediction(16, MODEL), prediction(17, MODEL)])
    assert write_due_rollups(store, MODEL, make) == 1
    assert contents(store)[2][0] == [13, 14, 16, 17]


def test_so_many_are_written_and_deleted_at_a_time(store, prediction):
    store.write([prediction(i, MODEL) for i in range(20)])
    assert [write_due_rollups(store, MODEL, make, at_most=2) for _ in range(4)] == [2, 2, 1, 0]
    assert [delete_expired(store, keep_rows=6, at_most=2) for _ in range(3)] == [8, 4, 0]


def test_a_label_reaches_its_rollup_however_late(store, prediction):
    store.write([prediction(i, MODEL) for i in range(9)])
    store.labels.insert({1: "dog"}, "user", 0.0)
    write_due_rollups(store, MODEL, make)
    assert [labels for _, _, labels in contents(store)] == [[-1, 1, -1, -1], [-1, -1, -1, -1]]
    store.labels.insert({6: "cat", 1: "cat", 8: "dog"}, "user", 0.0)
    assert [rollup.last_label for rollup in read_rollups(store, MODEL)] == [1, 1]  # what both of them do not know yet
    assert write_due_rollups(store, MODEL, make) == 2
    assert [labels for _, _, labels in contents(store)] == [[-1, 0, -1, -1], [-1, -1, 0, -1]]
    assert [rollup.last_label for rollup in read_rollups(store, MODEL)] == [4, 4]


def test_a_label_that_comes_while_its_rollup_is_made_makes_it_stale(store, prediction):
    store.write([prediction(i, MODEL) for i in range(4)])
    late = iter([{2: "dog"}, {3: "cat"}])

    def slow(window):
        store.labels.insert(next(late, {}), "user", 0.0)
        return make(window)

    assert write_due_rollups(store, MODEL, slow, at_most=1) == 1
    assert contents(store)[0][2] == [-1, -1, -1, -1]
    assert write_due_rollups(store, MODEL, slow) == 2  # one more came in between
    assert contents(store)[0][2] == [-1, -1, 1, 0]
    assert write_due_rollups(store, MODEL, slow) == 0


def test_two_that_write_at_once_do_no_harm(address, prediction):
    """One overtakes the other at each step: what the slower one saw earlier never replaces what is known later."""
    slow, quick = PredictionStore(address), PredictionStore(address)
    slow.write([prediction(i, MODEL) for i in range(8)])

    def overtaken(window):
        quick.labels.insert({2: "dog"}, "user", 0.0)
        write_due_rollups(quick, MODEL, make)
        return make(window)

    write_due_rollups(slow, MODEL, overtaken)
    assert [ids for ids, _, _ in contents(slow)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert contents(slow)[0][2] == [-1, -1, 1, -1]
    assert write_due_rollups(slow, MODEL, make) == 0
    slow.close()
    quick.close()


def test_several_old_rollups_become_one_and_add_up_to_the_same(store, prediction):
    store.write([prediction(i, MODEL) for i in range(4 * 30)])
    store.labels.insert({17: "dog"}, "user", 0.0)
    assert write_due_rollups(store, MODEL, make) == 30
    before = contents(store)
    assert merge_old_rollups(store, MODEL, add) == 0  # their rows are still there, so labels may come
    assert delete_expired(store, keep_rows=8) == 4 * 28
    assert merge_old_rollups(store, MODEL, add) == 10
    found = read_rollups(store, MODEL)
    assert [rollup.n for rollup in found] == [36, 36, 12, 12, 4, 4, 4, 4, 4, 4]
    assert [rollup.number for rollup in found] == [0, 9, 18, 21, 24, 25, 26, 27, 28, 29]
    for rollup, following in pairwise(found):
        assert rollup.last + 1 == following.first
        assert rollup.until < following.since
    for column in range(3):
        whole = [value for rollup in before for value in rollup[column]]
        assert [value for rollup in contents(store) for value in rollup[column]] == whole
    assert merge_old_rollups(store, MODEL, add) == 0
    store.write([prediction(i, MODEL) for i in range(120, 124)])
    write_due_rollups(store, MODEL, make)
    assert read_rollups(store, MODEL)[-1].number == 30


def test_rows_go_by_age_or_number_but_never_what_a_window_needs(store, prediction):
    store.write([prediction(i, MODEL, time=i * SECONDS_PER_DAY) for i in range(20)])
    write_due_rollups(store, MODEL, make)
    assert delete_expired(store, now=100.0 * SECONDS_PER_DAY) == 0
    assert delete_expired(store, keep_days=10, now=17.0 * SECONDS_PER_DAY) == 4  # day 7 is just not older than ten days
    assert store.window(MODEL).ids.tolist() == list(range(4, 20))
    assert delete_expired(store, keep_rows=11, now=0.0) == 4
    assert store.window(MODEL).ids.tolist() == list(range(8, 20))
    assert delete_expired(store, keep_days=1, now=100.0 * SECONDS_PER_DAY) == 4
    assert store.window(MODEL).ids.tolist() == list(range(12, 20))
    assert len(read_rollups(store, MODEL)) == 5


def test_rows_that_are_not_counted_or_have_a_label_that_is_not_stay(store, prediction):
    store.write([prediction(i, MODEL) for i in range(20)])
    assert delete_expired(store, keep_rows=6) == 0
    write_due_rollups(store, MODEL, make)
    store.labels.insert({1: "dog"}, "user", 0.0)
    assert delete_expired(store, keep_rows=6) == 0
    write_due_rollups(store, MODEL, make)
    assert delete_expired(store, keep_rows=6) == 12
    assert contents(store)[0][2] == [-1, 1, -1, -1]
    with pytest.raises(UnknownPrediction, match="there is no prediction 0000000000000001"):
        store.labels.insert({1: "cat"}, "user", 0.0)


def test_a_label_that_comes_at_the_last_moment_is_not_lost(store, prediction, monkeypatch):
    store.write([prediction(i, MODEL) for i in range(20)])
    write_due_rollups(store, MODEL, make)
    chosen = module._oldest_with_rows

    def too_late(store, model):
        rollup = chosen(store, model)
        store.labels.insert({2: "dog"}, "user", 0.0)
        return rollup

    monkeypatch.setattr(module, "_oldest_with_rows", too_late)
    assert delete_expired(store, keep_rows=6) == 0
    assert store.window(MODEL).labels.tolist()[2] == 1


def test_labels_go_with_their_rows_and_those_of_other_versions_stay(store, prediction):
    other = ModelVersion("2", CLASSES)
    store.write([prediction(i, other if i % 2 else MODEL) for i in range(40)])
    store.labels.insert(dict.fromkeys(range(40), "dog"), "user", 0.0)
    for model in (MODEL, other):
        write_due_rollups(store, model, make)
    monitored = store.labels.since(other, 0, 100).ids.tolist()
    assert delete_expired(store, keep_rows=6, at_most=3) == 12
    assert store.labels.since(MODEL, 0, 100).ids.tolist() == list(range(24, 40, 2))
    assert store.labels.since(other, 0, 100).ids.tolist() == monitored
    assert store.window(other).n == 20


def test_numbers_are_never_given_twice(store, prediction):
    """A follower would otherwise skip the new row."""
    store.write([prediction(i, MODEL) for i in range(20)])
    store.labels.insert({19: "dog", 0: "dog"}, "user", 0.0)
    write_due_rollups(store, MODEL, make)
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
    write_due_rollups(file_store, MODEL, make)

    def pages():
        with sqlite3.connect(str(file_store)) as connection:
            found = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count")]
        connection.close()
        return found

    before = pages()[0]
    assert delete_expired(file_store, keep_rows=8) == 32
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
        delete_expired(store, **limits)
