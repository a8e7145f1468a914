"""The writer: a full queue waits or drops, lost items are counted, and the thread ends in time."""

import itertools
import logging
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import MAX_WAIT_S, ROOT, wait_until
from toolkit.errors import PredictionStoreError
from toolkit.monitoring.store import background_writer as module
from toolkit.monitoring.store import database
from toolkit.monitoring.store.background_writer import BackgroundWriter
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.predictions import LoggedPrediction, PredictionStore

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
NONE = {"queued": 0, "written": 0, "dropped": 0, "lost": 0, "write_errors": 0}


class Store:
    """A list that can be blocked, broken and mended."""

    def __init__(self):
        self.items, self.tries, self.error = [], 0, None
        self.open, self.entered = threading.Event(), threading.Event()
        self.open.set()

    def write(self, batch):
        self.tries += 1
        self.entered.set()
        assert self.open.wait(MAX_WAIT_S)
        if self.error:
            raise self.error
        self.items += batch


@pytest.fixture
def blocked():
    """A store that blocks until it is opened."""
    store = Store()
    store.open.clear()
    yield store
    store.open.set()


def test_a_full_queue_drops_and_logs_once_while_the_store_hangs(blocked, caplog):
    writer = BackgroundWriter(blocked.write, capacity=10, drop=True)
    writer.put(0)
    assert blocked.entered.wait(MAX_WAIT_S)
    accepted = [writer.put(i) for i in range(1, 16)]
    assert accepted == [True] * 10 + [False] * 5
    assert writer.flush(timeout=0.01) is False
    assert writer.stats() == NONE | {"queued": 11, "dropped": 5}
    blocked.open.set()
    assert writer.flush(MAX_WAIT_S)
    assert blocked.items == list(range(11))
    assert [record.getMessage() for record in caplog.records] == [
        "predictions arrive faster than they are stored: some are dropped"
    ]
    assert writer.put_many(range(11, 31)) == 10  # as many as there are free slots, if none was written meanwhile
    writer.close()
    assert blocked.items == list(range(21))
    assert writer.stats()["dropped"] == 15


def test_a_tight_loop_waits_for_a_slow_store_and_loses_nothing(blocked, caplog):
    writer = BackgroundWriter(blocked.write, capacity=10)
    thread = threading.Thread(target=lambda: [writer.put(i) for i in range(2000)])
    thread.start()
    assert blocked.entered.wait(MAX_WAIT_S)
    wait_until(lambda: writer.stats()["queued"] >= 11)
    assert thread.is_alive()
    blocked.open.set()
    thread.join(MAX_WAIT_S)
    assert writer.put_many(range(2000, 4000)) == 2000
    writer.close()
    assert blocked.items == list(range(4000))
    assert writer.stats() == NONE | {"written": 4000}
    assert not caplog.records


def test_waiting_for_a_store_that_takes_nothing_ends_with_one_line(monkeypatch):
    monkeypatch.setattr(module, "PUT_TIMEOUT_S", 0.05)
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.0)
    store = Store()
    store.error = PredictionStoreError("disk full")
    writer = BackgroundWriter(store.write, capacity=4)
    writer.put(0)
    writer.flush(MAX_WAIT_S)
    assert writer.stats()["write_errors"] == 1
    said = r"4 of 9 predictions were logged: 4 wait to be stored, and the store has taken nothing for 0.05 s: disk full"
    with pytest.raises(PredictionStoreError, match=said):
        writer.put_many(range(1, 10))
    with pytest.raises(PredictionStoreError, match="0 of 1 predictions were logged"):
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


def test_write_is_called_when_due_without_items():
    batches, done = [], threading.Event()

    def write(batch):
        batches.append(list(batch))
        if len(batches) == 3:
            done.set()
        return 0.01 if len(batches) < 3 else None

    writer = BackgroundWriter(write)
    writer.put(1)
    assert done.wait(MAX_WAIT_S)
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
    assert writer.flush(MAX_WAIT_S)
    writer.put(2)
    assert writer.flush(MAX_WAIT_S)
    writer.close()
    assert batches == [[1], [2]]


@pytest.mark.parametrize("error", [PredictionStoreError("database is locked"), OSError("disk full")])
def test_a_failed_batch_is_written_when_the_store_works_again(caplog, monkeypatch, error):
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    store = Store()
    store.error = error
    writer = BackgroundWriter(store.write)
    with caplog.at_level(logging.WARNING):
        for item in range(3):
            writer.put(item)
        assert not writer.flush(MAX_WAIT_S)  # and does not wait that long
        wait_until(lambda: store.tries >= 5)
        assert writer.stats() | {"write_errors": 0} == NONE | {"queued": 3}
        store.error = None
        wait_until(lambda: writer.flush(MAX_WAIT_S))
    assert store.items == [0, 1, 2]
    assert writer.stats()["written"] == 3
    writer.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"the store fails, predictions may be lost: {error}",
        "the store works again after 0 predictions were lost",
    ]


def test_a_store_that_keeps_failing_loses_the_oldest_and_counts_them(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    store, items = Store(), itertools.count()
    store.error = PredictionStoreError("disk full")
    writer = BackgroundWriter(store.write, capacity=4, drop=True)
    while writer.stats()["lost"] <= 100:
        writer.put(next(items))
    store.error = None
    writer.close()
    stats = writer.stats()
    assert stats["written"] == len(store.items) <= 4 + 2
    assert store.items == sorted(store.items)
    assert store.items[0] > 100
    assert stats["written"] + stats["lost"] + stats["dropped"] == next(items)
    assert stats["queued"] == 0


def test_a_batch_with_another_error_is_lost_without_a_retry(caplog):
    store = Store()
    store.error = TypeError("no number")
    writer = BackgroundWriter(store.write)
    writer.put("a")
    writer.flush(MAX_WAIT_S)
    store.error = None
    writer.put("b")
    writer.close()
    assert store.items == ["b"]
    assert writer.stats() == NONE | {"written": 1, "lost": 1, "write_errors": 1}
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
        patch.setattr(module, "CLOSE_TIMEOUT_S", MAX_WAIT_S)
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
                store.error = PredictionStoreError("database is locked")
            else:
                getattr(writer, action)()
        writer.close()
    assert store.items == wanted
    stats = writer.stats()
    assert (stats["queued"], stats["written"], stats["dropped"], stats["lost"]) == (0, len(wanted), 0, 0)


def test_close_tries_a_store_that_fails_a_little_longer(monkeypatch, caplog):
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", MAX_WAIT_S)
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    store = Store()
    store.error = PredictionStoreError("database is locked")
    writer = BackgroundWriter(store.write)
    writer.put_many(range(5000))
    closing = threading.Thread(target=writer.close)
    closing.start()
    wait_until(lambda: store.tries >= 5)
    store.error = None
    closing.join(MAX_WAIT_S)
    assert store.items == list(range(5000))
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.1)
    store.error = PredictionStoreError("disk full")
    writer.put_many(range(3000))
    writer.close()
    assert len(store.items) == 5000
    assert writer.stats()["lost"] == 3000
    assert caplog.messages[-1] == "the store did not take 3000 predictions before the end: they are lost"


def test_close_of_a_dropping_queue_does_not_wait_for_a_failing_store(caplog):
    store = Store()
    store.error = PredictionStoreError("database is locked")
    writer = BackgroundWriter(store.write, drop=True)
    for item in range(5000):
        writer.put(item)
    writer.close()
    assert writer.stats() | {"write_errors": 0} == NONE | {"lost": 5000}
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
        wait_until(lambda: writer.stats()["write_errors"] >= 3)
        connection.execute("ROLLBACK")
    connection.close()
    wait_until(lambda: writer.flush(MAX_WAIT_S))
    writer.close()
    assert store.window(model).ids.tolist() == list(range(100))
    assert writer.stats()["written"] == 100
    store.close()


def log_endlessly(path, model):
    writer = BackgroundWriter(PredictionStore(path).write)
    for number in itertools.count():
        writer.put(LoggedPrediction(number, time.time(), model, np.array([0.5, 0.5], np.float16)))
        time.sleep(0.001)


def test_a_killed_process_loses_nothing_that_was_seen_in_the_store(tmp_path):
    """Batches are written while it runs, after a delay, without a call of flush."""
    path, model = str(tmp_path / "m.db"), ModelVersion("1", ("cat", "dog"))
    process = multiprocessing.get_context("fork").Process(target=log_endlessly, args=(path, model), daemon=True)
    process.start()
    store = PredictionStore(path)
    seen = wait_until(lambda: (n := store.window(model).n) > 200 and n)
    process.kill()
    process.join()
    ids = store.window(model).ids.tolist()
    assert ids == list(range(len(ids)))
    assert len(ids) >= seen
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert store.write([LoggedPrediction(10**6, 0.0, model, np.array([0.5, 0.5], np.float16))]) == 1
    store.close()


def test_items_of_one_thread_stay_in_order_and_none_is_lost():
    stored = []
    writer = BackgroundWriter(stored.extend, capacity=100_000)
    threads = [
        threading.Thread(target=lambda name=name: [writer.put((name, i)) for i in range(3000)]) for name in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    for name in range(4):
        assert [i for thread, i in stored if thread == name] == list(range(3000))


def test_wake_calls_write_without_items():
    batches = []
    writer = BackgroundWriter(batches.append)
    writer.wake()
    assert writer.flush(MAX_WAIT_S)
    assert batches == [[]]
    writer.close()


def test_flush_within_the_writers_own_thread_does_not_wait_for_itself():
    answers = []
    writer = BackgroundWriter(lambda _: answers.append(writer.flush(MAX_WAIT_S)))
    writer.put("a")
    writer.close()
    assert answers == [False]


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
    subprocess.run([sys.executable, "-c", AT_THE_END], check=True, cwd=tmp_path, env=ENVIRONMENT)
    wanted = "".join(f"{item}\n" for item in range(10_000))
    found = {path.name: path.read_text() == wanted for path in tmp_path.iterdir()}
    assert found == {"outMainProcess": True, "outchild": True}
