"""Locks that name their holder and go with it."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from toolkit.errors import SettingsError
from toolkit.locks import held, is_free, take

WHAT = "run 4 is being trained"


def test_a_second_process_is_refused_by_the_number_of_the_first_until_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "made" / "run.lock"
    context = multiprocessing.get_context("fork")
    taken = context.Event()

    def hold() -> None:
        with held(path, WHAT):
            taken.set()
            signal.pause()

    holder = context.Process(target=hold)
    assert is_free(path)
    holder.start()
    assert taken.wait(60)
    with pytest.raises(SettingsError) as caught, held(path, WHAT):
        pass
    assert str(caught.value) == f"run 4 is being trained by process {holder.pid}; wait for it or stop it"
    assert not is_free(path)
    holder.kill()
    holder.join()
    assert is_free(path)
    with held(path, WHAT):
        assert path.read_text() == str(os.getpid())
    assert not path.exists()


def test_a_process_does_not_take_a_lock_twice(tmp_path: Path) -> None:
    lock = take(tmp_path / "run.lock", WHAT)
    with pytest.raises(SettingsError, match=r"^run 4 is being trained by this process; "):
        take(tmp_path / "run.lock", WHAT)
    lock.release()
    take(tmp_path / "run.lock", WHAT).release()


def test_an_error_within_is_not_taken_for_one_of_the_lock(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^mine$"), held(tmp_path / "run.lock", WHAT):
        raise OSError("mine")
    assert is_free(tmp_path / "run.lock")


def test_where_no_file_can_be_written_nobody_else_can_write_a_checkpoint_either(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with held(tmp_path / "file" / "run.lock", WHAT):
        assert is_free(tmp_path / "file" / "run.lock")
