"""Locks between processes, each a file; the system frees the lock of a process that ends.

``acquire`` and ``hold`` fail at once when another process has the lock, ``wait_for`` waits without limit, and
``try_lock`` continues without the lock.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from toolkit.cli.terminal import echo
from toolkit.errors import SettingsError

SILENT_SECONDS = 1.0  # of waiting, before a line is printed


def acquire(path: Path, what: str) -> FileLock:
    """Take a lock at once, or raise a SettingsError that says what happens under it: ``run 4 is being trained``.

    A missing folder is created. The file holds the id of the process that has the lock.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with acquire(Path(folder, "run.lock"), "run 4 is being trained"):
    ...         int(Path(folder, "run.lock").read_text()) == os.getpid()
    True
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SettingsError(f"{what} by {_owner(path)}; wait for it or stop it") from None
    with suppress(OSError):  # where a lock forbids its own process to write
        path.write_text(str(os.getpid()))
    return lock


@contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Hold a lock of ``acquire`` and remove its file; continue without it if no file can be written."""
    lock = None
    with suppress(OSError):
        lock = acquire(path, what)
    try:
        yield
    finally:
        if lock:
            _remove(lock)


@contextmanager
def wait_for(path: Path, message: str) -> Iterator[None]:
    """Hold a lock once no other process has it, and remove its file; a longer wait prints the message."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=SILENT_SECONDS)
    except Timeout:
        echo(message)
        lock.acquire()
    try:
        yield
    finally:
        _remove(lock)


@contextmanager
def try_lock(path: Path, seconds: float, stop: threading.Event | None = None) -> Iterator[bool]:
    """Hold a lock, or continue without it: if no file can be written, or another process does not free it in time.

    The file stays; a missing folder is created. The wait ends when ``stop`` is set. Yields whether the lock is held.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, try_lock(Path(folder, "lock"), 0) as first:
    ...     with try_lock(Path(folder, "lock"), 0) as second:
    ...         first, second
    (True, False)
    """
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock would outlive a process that is killed
    with suppress(OSError):  # as which filelock's Timeout counts
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=seconds, cancel_check=(stop or threading.Event()).is_set)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def is_free(path: Path) -> bool:
    """Whether no process holds the lock now."""
    try:
        if path.exists():
            acquire(path, "").release()
    except SettingsError:
        return False
    except OSError:
        return True
    return True


def _remove(lock: FileLock) -> None:
    with suppress(OSError):
        Path(lock.lock_file).unlink()  # before the release: processes that wait notice, and lock a file of their own
    lock.release()


def _owner(path: Path) -> str:
    """The process that has a lock, in words."""
    try:
        number = int(path.read_text())
    except (OSError, ValueError):
        return "another process"
    return "this process" if number == os.getpid() else f"process {number}"
