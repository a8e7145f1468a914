"""Ids of predictions: unique, growing with time, and refused when invalid."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from toolkit.errors import UnknownPrediction
from toolkit.monitoring.base.ids import format_id, new_id_numbers, new_prediction_id, parse_prediction_id

ROOT = str(Path(__file__).parents[4])


def test_ids_grow_when_the_clock_stops_or_goes_back():
    times = iter([2e9, 2e9, 2e9, 1e9, 2e9 + 1])
    ids = [new_prediction_id(lambda: next(times)) for _ in range(5)]
    assert ids == sorted(set(ids))
    assert parse_prediction_id(ids[0]) >> 21 == 2_000_000_000_000


def test_ids_made_by_many_threads_differ():
    made = []
    threads = [threading.Thread(target=lambda: made.extend(new_prediction_id() for _ in range(2000))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8000


IN_TWO_PROCESSES = """
import os
from toolkit.monitoring.base.ids import new_id_numbers
new_id_numbers(0.0, 1)
child = os.fork()
made = {number for millisecond in range(200) for number in new_id_numbers(2e9 + millisecond / 1000, 300)}
with open("child" if child == 0 else "parent", "w") as file:
    print(*made, file=file)
if child:
    os.waitpid(child, 0)
"""


def test_ids_of_two_processes_differ(tmp_path):
    command = [sys.executable, "-c", IN_TWO_PROCESSES]
    subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ROOT})
    made = [{int(word) for word in (tmp_path / name).read_text().split()} for name in ("parent", "child")]
    assert [len(numbers) for numbers in made] == [60_000] * 2
    assert not made[0] & made[1]
    assert all(number >> 21 in range(2_000_000_000_000, 2_000_000_000_200) for number in made[0])
    assert not made[0] & {parse_prediction_id(new_prediction_id(lambda: 2e9)) for _ in range(1000)}


def test_id_numbers_grow_when_the_clock_stops_or_goes_back():
    made = [number for seconds in (3e9, 3e9, 1e9, 3e9 + 0.001, 4e9) for number in new_id_numbers(seconds, 1500)]
    assert made == sorted(set(made))
    assert new_id_numbers(5e9, 0) == []


@pytest.mark.parametrize("number", [0, 1, 2**63 - 1])
def test_an_id_is_read_back(number):
    assert parse_prediction_id(format_id(number)) == number


@pytest.mark.parametrize("text", ["", "12", "g" * 16, "f" * 16, "0x00000000000001", " 00000000000001a", "-" * 16, None])
def test_invalid_ids_are_unknown_predictions(text):
    with pytest.raises(UnknownPrediction, match=r"there is no prediction .*16 hex digits"):
        parse_prediction_id(text)
