"""Ids of predictions: unique, in the order of time, and refused when they cannot be one."""

import threading

import pytest

from toolkit.errors import UnknownPrediction
from toolkit.monitoring.ids import new_prediction_id, parse_prediction_id, show


def test_ids_grow_even_while_the_clock_stands_still_or_goes_back():
    times = iter([2e9, 2e9, 2e9, 1e9, 2e9 + 1])
    ids = [new_prediction_id(lambda: next(times)) for _ in range(5)]
    assert ids == sorted(set(ids))
    assert parse_prediction_id(ids[0]) >> 21 == 2_000_000_000_000


def test_ids_made_by_many_threads_differ():
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.extend(new_prediction_id() for _ in range(2000))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8000


@pytest.mark.parametrize("number", [0, 1, 2**63 - 1])
def test_an_id_is_read_back(number):
    assert parse_prediction_id(show(number)) == number


@pytest.mark.parametrize("text", ["", "12", "g" * 16, "f" * 16, "0x00000000000001", " 00000000000001a", "-" * 16, None])
def test_what_cannot_be_an_id_is_unknown(text):
    with pytest.raises(UnknownPrediction, match=r"there is no prediction .*16 hex digits"):
        parse_prediction_id(text)
