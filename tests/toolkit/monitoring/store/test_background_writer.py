"""The writer: a full queue waits or drops, lost items are counted, and the thread ends in time."""

import itertools
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.errors import StoreError
from toolkit.monitoring.store import background_writer as module
from toolkit.monitoring.store import database
from toolkit.monitoring.store.background_writer import BackgroundWriter
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.predictions import LoggedPrediction, PredictionStore

ROOT = str(Path(__file__).parents[4])


@pytest.fixture
def blocking_store():
    """A write function that blocks until it is let go."""

    class BlockingStore:
        def __init__(self):
            self.open, self.entered, self.items = threading.Event(), threading.Event(), []

        def write(self, batch):
            self.entered.set()
            assert self.open.wait(30)
            self.items += batch

    blocking_store = BlockingStore()
    yield blocking_store
    blocking_store.open.set()


def test_a_full_queue_drops_and_logs_once_while_the_store_hangs(blocking_store, caplog):
    writer = BackgroundWriter(blocking_store.write, capacity=10, drop=True)
    writer.put(0)
    assert blocking_store.entered.wait(30)
    accepted = [writer.put(i) for i in range(1, 16)]
    assert accepted == [True] * 10 + [False] * 5
    assert writer.flush(timeout=0.01) is False
    assert writer.stats() == {"queued": 11, "written": 0, "dropped": 5, "lost": 0, "write_errors": 0}
    blocking_store.open.set()
    assert writer.flush(timeout=30)
    assert blocking_store.items == list(range(11))
    assert [record.getMessage() for record in caplog.records] == [
        "predictions arrive faster than they are stored: some are dropped"
    ]
    assert writer.put_many(range(11, 31)) == 10  # as many as there are free slots, if none was written meanwhile
    writer.close()
    assert blocking_store.items == list(range(21))
    assert writer.stats()["dropped"] == 15


def test_a_tight_loop_waits_for_a_slow_store_and_loses_nothing(blocking_store, caplog):
    writer = BackgroundWriter(blocking_store.write, capacity=10)
    thread = threading.Thread(target=lambda: [writer.put(i) for i in range(2000)])
    thread.start()
    assert blocking_store.entered.wait(30)
    while writer.stats()["queued"] < 11:
        time.sleep(0.001)
    assert thread.is_alive()
    blocking_store.open.set()
    thread.join(60)
    assert writer.put_many(range(2000, 4000)) == 2000
    writer.close()
    assert blocking_store.items == list(range(4000))
    assert writer.stats() == {"queued": 0, "written": 4000, "dropped": 0, "lost": 0, "write_errors": 0}
    assert not caplog.records


def test_waiting_for_a_store_that_takes_nothing_ends_with_one_line(monkeypatch):
    monkeypatch.setattr(module, "PUT_TIMEOUT_S", 0.05)
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.0)
    store = Store()
    store.error = StoreError("disk full")
    writer = BackgroundWriter(store.write, capacity=4)
    writer.put(0)
    writer.flush(timeout=30)
    assert writer.stats()["write_errors"] == 1
    said = r"4 of 9 predictions were logged: 4 wait to be stored, and the store has taken nothing for 0.05 s: disk full"
    with pytest.raises(StoreError, match=said):
        writer.put_many(range(1, 10))
    with pytest.raises(StoreError, match="0 of 1 predictions were logged"):
        writer.put(10)
    writer.close()
    assert writer.stats()["lost"] == 5
    assert writer.stats()["dropped"] == 0


def test_what_the_writers_own_work_puts_in_does_not_wait_for_it():
    stored = []

    def write(batch):
        stored.extend(batch)
        if batch == ["first"]:
            writer.put_many(["second"] * 20)

    writer = BackgroundWriter(write, capacity=3)
    writer.put("first")
    writer.close()
    assert stored == ["first", *["second"] * 20]


class Store:
    """A list that can be broken and mended."""

    def __init__(self):
        self.items, self.tries, self.error = [], 0, None

    def write(self, batch):
        self.tries += 1
        if self.error:
            raise self.error
        self.items += batch


def test_write_is_called_when_due_without_items():
    batches, done = [], threading.Event()

    def write(batch):
        batches.append(list(batch))
        if len(batches) == 3:
            done.set()
        return 0.01 if len(batches) < 3 else None

    writer = BackgroundWriter(write)
    writer.put(1)
    assert done.wait(30)
    time.sleep(0.1)  # in which it would have been called ten times
    writer.close()
    assert batches == [[1], [], []]
    assert writer.stats()["written"] == 1


def test_a_late_due_time_delays_neither_items_nor_close():
    batches = []

    def write(batch):
        batches.append(list(batch))
        return 1e6

    writer = BackgroundWriter(write)
    writer.put(1)
    assert writer.flush(timeout=30)
    writer.put(2)
    assert writer.flush(timeout=30)
    writer.close()
    assert batches == [[1], [2]]


@pytest.mark.parametrize("error", [StoreError("database is locked"), OSError("disk full")])
def test_a_failed_batch_is_written_when_the_store_works_again(caplog, monkeypatch, error):
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    store = Store()
    store.error = error
    writer = BackgroundWriter(store.write)
    with caplog.at_level(logging.WARNING):
        for item in range(3):
            writer.put(item)
        assert not writer.flush(timeout=30)  # and does not wait that long
        while store.tries < 5:
            time.sleep(0.01)
        assert writer.stats() | {"write_errors": 0} == {
            "queued": 3, "written": 0, "dropped": 0, "lost": 0, "write_errors": 0,
        }  # fmt: skip
        store.error = None
        while not writer.flush(timeout=30):
            time.sleep(0.01)
    assert store.items == [0, 1, 2]
    assert writer.stats()["written"] == 3
    writer.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"the store fails, predictions may be lost: {error}",
        "the store works again after 0 predictions were lost",
    ]


def test_a_store_that_keeps_failing_loses_the_oldest_and_counts_them(monkeypatch, caplog):
    monkeypatch.setattr(module, "BATCH", 2)
    store = Store()
    store.error = StoreError("disk full")
    writer = BackgroundWriter(store.write, capacity=4, drop=True)
    for item in range(1000):
        writer.put(item)
        time.sleep(0.0001)
    store.error = None
    writer.put(1000)
    writer.close()
    stats = writer.stats()
    assert stats["written"] == len(store.items) <= 4 + 2 + 1
    assert store.items == sorted(store.items)
    assert store.items[0] > 100
    assert stats["written"] + stats["lost"] + stats["dropped"] == 1001
    assert stats["queued"] == 0


def test_a_batch_with_another_error_is_lost_without_a_retry(caplog):
    store = Store()
    store.error = TypeError("no number")
    writer = BackgroundWriter(store.write)
    writer.put("a")
    writer.flush(timeout=30)
    store.error = None
    writer.put("b")
    writer.close()
    assert store.items == ["b"]
    assert writer.stats() == {"queued": 0, "written": 1, "dropped": 0, "lost": 1, "write_errors": 1}
    assert "the store works again after 1 predictions were lost" in caplog.text


ACTIONS = st.one_of(st.integers(1, 12), st.sampled_from(["flush", "close", "fail", "wake"]))


@given(st.lists(ACTIONS, max_size=20))
@settings(max_examples=30, deadline=None)
def test_whatever_happens_in_between_all_is_written_in_order(actions):
    store, items = Store(), iter(range(10_000))
    failures = itertools.count()
    wanted = []

    def write(batch):
        if store.error and next(failures) % 3 < 2:  # two times of three, and then it works again
            raise store.error
        store.error = None
        store.items += batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RETRY_S", 0.001)
        patch.setattr(module, "BATCH_DELAY_S", 0.001)
        writer = BackgroundWriter(write, capacity=5)
        for action in actions:
            if isinstance(action, int):
                more = list(itertools.islice(items, action))
                wanted += more
                assert writer.put_many(more) == action
                wanted.append(next(items))
                assert writer.put(wanted[-1])
            elif action == "fail":
                store.error = StoreError("database is locked")
            else:
                getattr(writer, action)()
        writer.close()
    assert store.items == wanted
    stats = writer.stats()
    assert (stats["queued"], stats["written"], stats["dropped"], stats["lost"]) == (0, len(wanted), 0, 0)


def test_close_tries_a_store_that_fails_a_little_longer(monkeypatch, caplog):
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    store = Store()
    store.error = StoreError("database is locked")
    writer = BackgroundWriter(store.write)
    writer.put_many(range(5000))
    closing = threading.Thread(target=writer.close)
    closing.start()
    while store.tries < 5:
        time.sleep(0.01)
    store.error = None
    closing.join(30)
    assert store.items == list(range(5000))
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.1)
    store.error = StoreError("disk full")
    writer.put_many(range(3000))
    writer.close()
    assert len(store.items) == 5000
    assert writer.stats()["lost"] == 3000
    assert caplog.messages[-1] == "the store did not take 3000 predictions before the end: they are lost"


def test_close_of_a_dropping_queue_does_not_wait_for_a_failing_store(caplog):
    store = Store()
    store.error = StoreError("database is locked")
    writer = BackgroundWriter(store.write, drop=True)
    for item in range(5000):
        writer.put(item)
    writer.close()
    assert writer.stats() | {"write_errors": 0} == {
        "queued": 0, "written": 0, "dropped": 0, "lost": 5000, "write_errors": 0,
    }  # fmt: skip
    assert store.tries <= 3
    store.error = None
    writer.put("a")
    writer.close()
    assert store.items == ["a"]


def test_a_store_locked_by_another_process_gets_all_items_later(file_store, prediction, monkeypatch, caplog):
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.01)
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    store, model = PredictionStore(str(file_store)), ModelVersion("1", ("cat", "dog"))
    store.versions.register(model)
    writer = BackgroundWriter(store.write)
    with sqlite3.connect(str(store), isolation_level=None) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for number in range(100):
            writer.put(prediction(number, model))
        while writer.stats()["write_errors"] < 3:
            time.sleep(0.01)
        connection.execute("ROLLBACK")
    connection.close()
    while not writer.flush(timeout=30):
        time.sleep(0.01)
    writer.close()
    assert store.window(model).ids.tolist() == list(range(100))
    assert writer.stats()["written"] == 100
    store.close()


PREDICT = """
import sys, time
import numpy as np
from toolkit.monitoring.base.ids import new_prediction_id, parse_prediction_id
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.predictions import LoggedPrediction, PredictionStore
from toolkit.monitoring.store.background_writer import BackgroundWriter

store, model = PredictionStore(sys.argv[1]), ModelVersion("1", ("cat", "dog"))
writer = BackgroundWriter(store.write)
while True:
    number = parse_prediction_id(new_prediction_id())
    writer.put(LoggedPrediction(number, time.time(), model, np.array([0.5, 0.5], np.float16)))
    print(number, flush=True)
    time.sleep(0.001)
"""


def test_a_killed_process_loses_only_its_last_moment(tmp_path):
    """The delay of a batch, 100 ms, and one transaction; with a margin for a slow machine."""
    path, model = str(tmp_path / "m.db"), ModelVersion("1", ("cat", "dog"))
    process = subprocess.Popen([sys.executable, "-c", PREDICT, path], stdout=subprocess.PIPE, text=True)
    given = [int(process.stdout.readline()) for _ in range(500)]
    process.kill()
    given += [int(line) for line in process.communicate()[0].split("\n") if len(line) > 15]
    store = PredictionStore(path)
    window = store.window(model)
    assert window.n > 0
    assert window.ids.tolist() == given[: window.n]
    milliseconds = (np.array(given) >> 21) - (given[-1] >> 21)
    assert (milliseconds[window.n :] > -2000).all()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert store.write([LoggedPrediction(1, 0.0, model, np.array([0.5, 0.5], np.float16))]) == 1
    store.close()


def test_items_of_one_thread_stay_in_order_and_none_is_lost():
    stored = []
    writer = BackgroundWriter(stored.extend, capacity=100_000)

    def put(thread):
        for i in range(3000):
            writer.put((thread, i))

    threads = [threading.Thread(target=put, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert len(stored) == 12_000
    for name in range(4):
        assert [i for thread, i in stored if thread == name] == list(range(3000))


def test_a_poke_calls_write_with_nothing():
    batches = []
    writer = BackgroundWriter(batches.append)
    writer.wake()
    assert writer.flush(timeout=30)
    assert batches == [[]]
    writer.close()


def test_close_may_be_repeated_and_put_starts_again():
    stored = []
    writer = BackgroundWriter(stored.extend)
    writer.close()
    for item in "ab":
        writer.put(item)
        writer.close()
        writer.close()
    assert stored == ["a", "b"]


def test_flush_within_the_writers_own_thread_does_not_wait_for_itself():
    answers = []
    writer = BackgroundWriter(lambda _: answers.append(writer.flush(timeout=30)))
    writer.put("a")
    writer.close()
    assert answers == [False]


def test_a_process_that_just_ends_still_writes_what_waits(tmp_path):
    program = (
        "from toolkit.monitoring.store.background_writer import BackgroundWriter\n"
        "import pathlib\n"
        "BackgroundWriter(lambda batch: pathlib.Path('out').write_text(' '.join(batch))).put('kept')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ROOT})
    assert (tmp_path / "out").read_text() == "kept"


AT_THE_END = """
import multiprocessing, sys, time
from toolkit.monitoring.store.background_writer import BackgroundWriter

def write(batch):
    time.sleep(0.3)  # ten batches: longer than a queue that drops is granted
    with open(f"out{multiprocessing.current_process().name}", "a") as file:
        file.writelines(f"{item}\\n" for item in batch)

def log():
    BackgroundWriter(write).put_many(range(10_000))

multiprocessing.set_start_method("fork")
child = multiprocessing.Process(target=log, name="child")
child.start()
log()
child.join()
"""


def test_processes_that_end_right_after_a_tight_loop_write_all_of_it(tmp_path):
    environment = os.environ | {"PYTHONPATH": ROOT}
    subprocess.run([sys.executable, "-c", AT_THE_END], check=True, cwd=tmp_path, env=environment)
    wanted = "".join(f"{item}\n" for item in range(10_000))
    assert {path.name: path.read_text() == wanted for path in tmp_path.iterdir()} == {
        "outMainProcess": True, "outchild": True,
    }  # fmt: skip
