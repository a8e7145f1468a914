"""Locks name their process, end with it, are waited for, or done without."""

import multiprocessing
import os
import signal
import threading

import pytest

from support import MAX_WAIT_S
from toolkit.errors import SettingsError
from toolkit.system import file_locks
from toolkit.system.file_locks import acquire, hold, is_free, try_lock, wait_for

WHAT = "run 4 is being trained"


def process_with(lock):
    """Another process that holds a lock until it is killed."""
    context = multiprocessing.get_context("fork")
    taken = context.Event()

    def work():
        with lock:
            taken.set()
            signal.pause()

    process = context.Process(target=work)
    process.start()
    assert taken.wait(MAX_WAIT_S)
    return process


def test_a_second_process_is_refused_until_the_first_ends(tmp_path):
    path = tmp_path / "made" / "run.lock"
    assert is_free(path)
    owner = process_with(hold(path, WHAT))
    with pytest.raises(SettingsError) as caught, hold(path, WHAT):
        pass
    assert str(caught.value) == f"run 4 is being trained by process {owner.pid}; wait for it or stop it"
    assert not is_free(path)
    owner.kill()
    owner.join()
    assert is_free(path)
    with hold(path, WHAT):
        assert path.read_text() == str(os.getpid())
    assert not path.exists()


def test_a_process_does_not_take_a_lock_twice(tmp_path):
    lock = acquire(tmp_path / "run.lock", WHAT)
    with pytest.raises(SettingsError, match=r"^run 4 is being trained by this process; "):
        acquire(tmp_path / "run.lock", WHAT)
    lock.release()
    acquire(tmp_path / "run.lock", WHAT).release()


def test_an_error_within_is_not_taken_for_one_of_the_lock(tmp_path):
    with pytest.raises(OSError, match=r"^mine$"), hold(tmp_path / "run.lock", WHAT):
        raise OSError("mine")
    assert is_free(tmp_path / "run.lock")


def test_hold_continues_where_no_file_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with hold(tmp_path / "file" / "run.lock", WHAT):
        assert is_free(tmp_path / "file" / "run.lock")


def test_wait_for_gets_the_lock_of_a_killed_process(tmp_path, monkeypatch):
    path, said = tmp_path / "build.lock", []
    with wait_for(path, "waiting"):
        assert path.exists()
    assert not path.exists()
    owner = process_with(wait_for(path, "waiting"))

    def kill_owner(line):
        said.append(line)
        owner.kill()

    monkeypatch.setattr(file_locks, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(file_locks, "echo", kill_owner)
    with wait_for(path, "another process builds; waiting for it"):
        owner.join(MAX_WAIT_S)
        assert owner.exitcode == -signal.SIGKILL
    assert said == ["another process builds; waiting for it"]
    assert is_free(path)


def test_try_lock_gets_the_lock_of_a_killed_process(tmp_path):
    path = tmp_path / "new" / "lock"
    owner = process_with(try_lock(path, 0))
    with try_lock(path, 0.1) as held:
        assert not held
    owner.kill()
    with try_lock(path, MAX_WAIT_S) as held:
        assert held
    owner.join()


def test_threads_wait_for_each_other(tmp_path):
    inside, most = [], []

    def work():
        with try_lock(tmp_path / "lock", MAX_WAIT_S) as held:
            inside.append(held)
            most.append(inside.copy())
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [[True]] * 8


def test_without_a_lock_the_work_goes_on(tmp_path):
    (tmp_path / "file").touch()
    with try_lock(tmp_path / "file" / "lock", MAX_WAIT_S) as held:
        assert not held
    stop = threading.Event()
    stop.set()
    with try_lock(tmp_path / "lock", MAX_WAIT_S), try_lock(tmp_path / "lock", MAX_WAIT_S, stop) as held:
        assert not held
    with pytest.raises(OSError, match=r"^mine$"), try_lock(tmp_path / "lock", MAX_WAIT_S):
        raise OSError("mine")
