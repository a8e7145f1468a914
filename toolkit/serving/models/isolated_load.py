"""Isolated load: a child process loads, converts and tests a version before the service loads it.

Loading a program holds Python's lock for most of a second, converting it takes seconds, and a library that crashes
ends its process. In a child process requests are hardly affected; the service then finds the conversion in the cache.

The child is entitled to a share of a core, so that a promotion takes a bounded time under any load: while it has had
less, threads of the service pause. At a low priority, such a process gets no time for minutes while all cores are busy.
A thread with a low priority could hold Python's lock while the system does not run it, and so block all others.
"""

import math
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from toolkit.bundle.program import Bundle, open_bundle_lazily
from toolkit.errors import BundleError, ToolkitError, first_line
from toolkit.serving.models.engines import Choice, select_engine
from toolkit.serving.models.openvino_cache import is_cached
from toolkit.system.file_locks import try_lock
from toolkit.system.subprocesses import Child, Parent, exit_reason

CPU_SHARE = 0.5  # of a core, that the child is entitled to
DEFICIT_S = 0.25  # of a core's time behind that share, for each thread that pauses
TIMEOUT_S = 900.0
POLL_S = 0.05


class IsolatedLoader:
    """Prepare bundles in a child process; ``choice``, ``threads`` and ``cache`` are those of ``select_engine``."""

    def __init__(self, choice: Choice, threads: int | None, cache: Path) -> None:
        self._choice = choice
        self._threads = threads
        self._cache = cache

    def __call__(self, bundle: Bundle, stopping: threading.Event, pause: Callable[[int], None]) -> None:
        """Convert and test a bundle, unless it is in the cache or its engine needs no conversion.

        Of several processes that call this with the same bundle one does it, and the others find it in the cache.
        ``stopping`` ends the child when it is set. ``pause`` is called with the number of threads that are to pause,
        with 0 at the end.

        Raises
        ------
        BundleError
            No engine runs the bundle, or the child crashed or took longer than ``TIMEOUT_S``.
        """
        if bundle.folder is None or self._choice == "torch" or torch.cuda.is_available():
            return
        with try_lock(self._cache.with_suffix(".loading.lock"), TIMEOUT_S, stopping):
            if not is_cached(bundle, self._cache):
                self._load(bundle, bundle.folder, stopping, pause)

    def _load(self, bundle: Bundle, folder: Path, stopping: threading.Event, pause: Callable[[int], None]) -> None:
        child = Child(__name__, {"OMP_NUM_THREADS": "1"}, discard_stderr=True)
        words = [str(folder.resolve()), bundle.digest, self._choice, self._threads, str(self._cache.resolve())]
        child.send(words)
        try:
            _wait(child, stopping, pause)
            problem = next(child.messages(), None)
        finally:
            status = child.close()
            pause(0)
        if status:
            raise BundleError(problem or f"the process that loaded it {exit_reason(status)}")


def _wait(child: Child, stopping: threading.Event, pause: Callable[[int], None]) -> None:
    began, pausing = time.monotonic(), 0
    while child.process.poll() is None:
        seconds = time.monotonic() - began
        if stopping.wait(POLL_S):
            raise BundleError("the service is stopping")
        if seconds > TIMEOUT_S:
            raise BundleError(f"not ready after {TIMEOUT_S:g} s")
        if (wanted := _to_pause(seconds, _cpu_seconds(child.process.pid))) != pausing:
            pausing = wanted
            pause(pausing)


def _to_pause(seconds: float, cpu_seconds: float) -> int:
    """Number of threads that are to pause for a child that has run for ``seconds`` and had ``cpu_seconds`` of a core.

    >>> [_to_pause(4.0, cpu_seconds) for cpu_seconds in (4.0, 2.0, 1.9, 1.5, 0.0)]
    [0, 0, 0, 2, 8]
    """
    return max(0, math.floor((CPU_SHARE * seconds - cpu_seconds) / DEFICIT_S))


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process; infinite if it has ended."""
    with suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return math.inf


def main() -> int:
    """Load, convert and test a bundle; runs in the child process."""
    parent = Parent()
    folder, digest, choice, threads, cache = parent.receive()
    try:
        select_engine(open_bundle_lazily(Path(folder), digest), choice, threads=threads, cache=Path(cache)).close()
    except ToolkitError as error:
        parent.send(first_line(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
