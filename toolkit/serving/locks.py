"""One after the other: a lock between threads and processes that the system gives back when its holder dies."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl

GLANCE_SECONDS = 0.05  # between two looks whether the lock is free


@contextmanager
def alone(path: Path, seconds: float, stopping: threading.Event | None = None) -> Iterator[bool]:
    """Hold a lock while others wait for it, and go on without it rather than not at all.

    What is done under it must be right without it too, if dearer: a folder that may not be written
    to has no lock, and a holder that hangs is not waited for without end.

    Parameters
    ----------
    path
        The lock's file. It stays: to remove it would let two hold what they take for the same lock.
    seconds
        Longest wait.
    stopping
        Ends the wait when it is set.

    Yields
    ------
    bool
        Whether the lock is held.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, alone(Path(folder, "lock"), 0) as first:
    ...     with alone(Path(folder, "lock"), 0) as second:
    ...         first, second
    (True, False)
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError:
        yield False
        return
    with file:  # which gives the lock back
        yield _taken(file, seconds, stopping or threading.Event())


def _taken(file: IO[bytes], seconds: float, stopping: threading.Event) -> bool:
    if sys.platform == "win32":
        return False
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end or stopping.wait(GLANCE_SECONDS):
                return False
        except OSError:  # a file system without locks
            return False
        else:
            return True
