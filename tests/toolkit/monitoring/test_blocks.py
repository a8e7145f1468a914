"""Blocks: each prediction in one, each label in the end, and nothing lost when two make them at once."""

import json
from itertools import pairwise

import pytest

from toolkit.errors import UnknownPrediction
from toolkit.monitoring import blocks as module
from toolkit.monitoring import retention
from toolkit.monitoring.blocks import fold, read_blocks, roll_up
from toolkit.monitoring.models import Model
from toolkit.monitoring.store import PredictionStore

CLASSES = ("cat", "dog")
MODEL = Model("1", CLASSES)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)
    monkeypatch.setattr(module, "TOGETHER", 3)
    monkeypatch.setattr(module, "KEPT", 2)
    monkeypatch.setattr(retention, "LEAST_ROWS", 2)


def make(window):
    """Ids, predicted classes and labels of a window, as JSON."""
    return json.dumps([window.ids.tolist(), window.predicted.tolist(), window.labels.tolist()]).encode()


def add(one, other):
    return json.dumps([a + b for a, b in zip(json.loads(one), json.loads(other), strict=True)]).encode()


def contents(store, model=MODEL, **more):
    return [json.loads(block.counts) for block in read_blocks(store, model, **more)]


def test_rows_become_blocks_when_there_are_enough(store, prediction):
    other = Model("2", CLASSES)
    store.write([prediction(i, other if i % 3 == 0 else MODEL, time=100.0 - i) for i in range(16)])
    assert fold(store, MODEL, make) == 2
    assert fold(store, MODEL, make) == 0
    assert fold(store, other, make) == 1
    assert [ids for ids, _, _ in contents(store)] == [[1, 2, 4, 5], [7, 8, 10, 11]]
    first, second = read_blocks(store, MODEL)
    assert (first.number, first.n, first.first, first.last, first.since, first.until) == (0, 4, 2, 6, 95, 99)
    assert (second.number, second.first, second.last) == (1, 8, 12)
    assert contents(store, since=94.0) == contents(store)[:1]
    store.write([prediction(16, MODEL), prediction(17, MODEL)])
    assert fold(store, MODEL, make) == 1
    assert contents(store)[2][0] == [13, 14, 16, 17]


def test_so_many_at_a_time(store, prediction):
    store.write([prediction(i, MODEL) for i in range(12)])
    assert [fold(store, MODEL, make, at_most=2) for _ in range(3)] == [2, 1, 0]


def test_a_label_reaches_its_block_however_late(store, prediction):
    store.write([prediction(i, MODEL) for i in range(9)])
    store.labels.insert({1: "dog"}, "user", 0.0)
    fold(store, MODEL, make)
    assert [labels for _, _, labels in contents(store)] == [[-1, 1, -1, -1], [-1, -1, -1, -1]]
    store.labels.insert({6: "cat", 1: "cat", 8: "dog"}, "user", 0.0)
    assert [block.last_label for block in read_blocks(store, MODEL)] == [1, 1]  # what both of them do not know yet
    assert fold(store, MODEL, make) == 2
    assert [labels for _, _, labels in contents(store)] == [[-1, 0, -1, -1], [-1, -1, 0, -1]]
    assert [block.last_label for block in read_blocks(store, MODEL)] == [4, 4]


def test_a_label_that_comes_while_its_block_is_made_makes_it_stale(store, prediction):
    store.write([prediction(i, MODEL) for i in range(4)])
    late = iter([{2: "dog"}, {3: "cat"}])

    def slow(window):
        store.labels.insert(next(late, {}), "user", 0.0)
        return make(window)

    assert fold(store, MODEL, slow, at_most=1) == 1
    assert contents(store)[0][2] == [-1, -1, -1, -1]
    assert fold(store, MODEL, slow) == 2  # one more came in between
    assert contents(store)[0][2] == [-1, -1, 1, 0]
    assert fold(store, MODEL, slow) == 0


def test_two_that_fold_at_once_do_no_harm(address, prediction):
    """One overtakes the other at each step: what the slower one saw earlier never replaces what is known later."""
    slow, quick = PredictionStore(address), PredictionStore(address)
    slow.write([prediction(i, MODEL) for i in range(8)])

    def overtaken(window):
        quick.labels.insert({2: "dog"}, "user", 0.0)
        fold(quick, MODEL, make)
        return make(window)

    fold(slow, MODEL, overtaken)
    assert [ids for ids, _, _ in contents(slow)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert contents(slow)[0][2] == [-1, -1, 1, -1]
    assert fold(slow, MODEL, make) == 0
    slow.close()
    quick.close()


def test_several_old_blocks_become_one_and_add_up_to_the_same(store, prediction):
    store.write([prediction(i, MODEL) for i in range(4 * 30)])
    store.labels.insert({17: "dog"}, "user", 0.0)
    assert fold(store, MODEL, make) == 30
    before = contents(store)
    assert roll_up(store, MODEL, add) == 0  # their rows are still there, so labels may come
    assert retention.forget(store, keep_rows=8) == 4 * 28
    assert roll_up(store, MODEL, add) == 10
    found = read_blocks(store, MODEL)
    assert [block.n for block in found] == [36, 36, 12, 12, 4, 4, 4, 4, 4, 4]
    assert [block.number for block in found] == [0, 9, 18, 21, 24, 25, 26, 27, 28, 29]
    for block, following in pairwise(found):
        assert block.last + 1 == following.first
        assert block.until < following.since
    for column in range(3):
        whole = [value for block in before for value in block[column]]
        assert [value for block in contents(store) for value in block[column]] == whole
    assert roll_up(store, MODEL, add) == 0
    store.write([prediction(i, MODEL) for i in range(120, 124)])
    fold(store, MODEL, make)
    assert read_blocks(store, MODEL)[-1].number == 30


def test_a_label_for_rows_that_are_gone_is_refused_and_not_lost_silently(store, prediction):
    store.write([prediction(i, MODEL) for i in range(12)])
    fold(store, MODEL, make)
    retention.forget(store, keep_rows=8)
    with pytest.raises(UnknownPrediction, match="there is no prediction 0000000000000001"):
        store.labels.insert({1: "dog"}, "user", 0.0)
