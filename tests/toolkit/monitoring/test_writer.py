"""The writer: nothing waits, nothing is lost without being counted, and it ends when it should."""

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from toolkit.monitoring.writer import Writer


@pytest.fixture
def gate():
    """A write function that blocks until it is let go."""

    class Gate:
        def __init__(self):
            self.open, self.entered, self.items = threading.Event(), threading.Event(), []

        def write(self, batch):
            self.entered.set()
            assert self.open.wait(30)
            self.items += batch

    gate = Gate()
    yield gate
    gate.open.set()


def test_a_full_queue_drops_and_counts_while_the_store_hangs(gate):
    writer = Writer(gate.write, capacity=10)
    writer.put(0)
    assert gate.entered.wait(30)
    accepted = [writer.put(i) for i in range(1, 16)]
    assert accepted == [True] * 10 + [False] * 5
    assert writer.flush(timeout=0.01) is False
    assert writer.stats() == {"queued": 11, "written": 0, "dropped": 5, "lost": 0, "write_errors": 0}
    gate.open.set()
    assert writer.flush(timeout=30)
    assert gate.items == list(range(11))
    writer.close()


def test_a_failing_store_is_counted_and_logged_once_and_recovery_too(caplog):
    broken = threading.Event()
    broken.set()
    stored = []

    def write(batch):
        if broken.is_set():
            raise OSError("disk full")
        stored.extend(batch)

    writer = Writer(write)
    with caplog.at_level(logging.WARNING):
        for item in range(3):
            writer.put(item)
            writer.flush(timeout=30)
        broken.clear()
        writer.put(3)
        writer.close()
    assert stored == [3]
    assert writer.stats() == {"queued": 0, "written": 1, "dropped": 0, "lost": 3, "write_errors": 3}
    assert [record.getMessage() for record in caplog.records] == [
        "the store fails, predictions are being lost: disk full",
        "the store works again after 3 predictions were lost",
    ]


def test_items_of_one_thread_stay_in_order_and_none_is_lost():
    stored = []
    writer = Writer(stored.extend, capacity=100_000)

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
    writer = Writer(batches.append)
    writer.poke()
    assert writer.flush(timeout=30)
    assert batches == [[]]
    writer.close()


def test_close_may_be_repeated_and_put_starts_again():
    stored = []
    writer = Writer(stored.extend)
    writer.close()
    for item in "ab":
        writer.put(item)
        writer.close()
        writer.close()
    assert stored == ["a", "b"]


def test_flush_within_the_writers_own_thread_does_not_wait_for_itself():
    answers = []
    writer = Writer(lambda _: answers.append(writer.flush(timeout=30)))
    writer.put("a")
    writer.close()
    assert answers == [False]


def test_a_process_that_just_ends_still_writes_what_waits(tmp_path):
    program = (
        "from toolkit.monitoring.writer import Writer\n"
        "import pathlib\n"
        "Writer(lambda batch: pathlib.Path('out').write_text(' '.join(batch))).put('kept')\n"
    )
    root = str(Path(__file__).parents[3])
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": root})
    assert (tmp_path / "out").read_text() == "kept"
