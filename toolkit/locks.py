"""Locks that are files: one process at a time, which the others can name, and free as soon as it is gone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from toolkit.errors import SettingsError


def take(path: Path, what: str) -> FileLock:
    """A lock, taken at once.

    Parameters
    ----------
    path
        Its file; the folder is made when it is missing. It holds the number of the process that has the lock.
    what
        What goes on while it is held, for the error: ``run 4 is being trained``, say.

    Raises
    ------
    SettingsError
        Another process has it, or this one already.
    OSError
        The file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with take(Path(folder, "run.lock"), "run 4 is being trained"):
    ...         int(Path(folder, "run.lock").read_text()) == os.getpid()
    True
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SettingsError(f"{what} by {_holder(path)}; wait for it or stop it") from None
    with suppress(OSError):  # where a lock forbids its own process to write
        path.write_text(str(os.getpid()))
    return lock


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold a lock, as ``take`` does, and remove its file afterwards; without one where no file can be written."""
    lock = None
    with suppress(OSError):
        lock = take(path, what)
    try:
        yield
    finally:
        if lock:
            with suppress(OSError):
                path.unlink()
            lock.release()


def is_free(path: Path) -> bool:
    """Whether no process holds the lock now."""
    try:
        if path.exists():
            take(path, "").release()
    except SettingsError:
        return False
    except OSError:
        return True
    return True


def _holder(path: Path) -> str:
    """The process that holds a lock, in words."""
    try:
        number = int(path.read_text())
    except (OSError, ValueError):
        return "another process"
    return "this process" if number == os.getpid() else f"process {number}"
