"""A version is loaded, converted and tested in a child process before the service touches it.

Loading a program holds Python's lock for most of a second, converting it takes seconds, and a library that
crashes on it takes its process along. In another process little of this is felt by requests; the service
then finds in the cache what it needs.

The child is granted a share of a core, so that a promotion is in service within a time that does not depend on
the load: when it gets less, workers of the service pause until it has caught up. A low priority would not
do: beside busy cores such a process stands still for minutes.

A thread could not do the same: one that the system holds back while it holds Python's lock holds back all.
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

CPU_SHARE = 0.5  # of a core, that the child is granted
DEFICIT_S = 0.25  # of a core's time, by which the child may be behind for each worker that pauses
TIMEOUT_S = 900.0
POLL_S = 0.05


class IsolatedLoader:
    """Prepares bundles in a child process for an engine that runs converted programs.

    Parameters
    ----------
    choice, threads, cache
        As ``engines.prepare`` will be given.
    """

    def __init__(self, choice: Choice, threads: int | None, cache: Path) -> None:
        self._choice = choice
        self._threads = threads
        self._cache = cache

    def __call__(self, bundle: Bundle, stopping: threading.Event, pause: Callable[[int], None]) -> None:
        """Wait until the bundle is converted and tested; nothing to do when it was before, or will not be converted.

        Of several processes that come with the same bundle one does it, and the others find it in the cache.

        Parameters
        ----------
        bundle
            One that is kept in a folder.
        stopping
            Ends the child when it is set.
        pause
            Called with the number of workers that are to leave their core to the child; with 0 in the end.

        Raises
        ------
        BundleError
            Why no engine runs it, or how the child ended.
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
            raise BundleError(problem or f"the process that tried it {exit_reason(status)}")


def _wait(child: Child, stopping: threading.Event, pause: Callable[[int], None]) -> None:
    began, pausing = time.monotonic(), 0
    while child.process.poll() is None:
        seconds = time.monotonic() - began
        if stopping.wait(POLL_S):
            raise BundleError("the service ends")
        if seconds > TIMEOUT_S:
            raise BundleError(f"not ready after {TIMEOUT_S:g} s")
        if (wanted := _to_pause(seconds, _cpu_seconds(child.process.pid))) != pausing:
            pausing = wanted
            pause(pausing)


def _to_pause(seconds: float, cpu_seconds: float) -> int:
    """How many workers are to pause for a child that has run so long, and been given so much of a core.

    >>> [_to_pause(4.0, cpu_seconds) for cpu_seconds in (4.0, 2.0, 1.9, 1.5, 0.0)]
    [0, 0, 0, 2, 8]
    """
    return max(0, math.floor((CPU_SHARE * seconds - cpu_seconds) / DEFICIT_S))


def _cpu_seconds(pid: int) -> float:
    """The time of a core that a process has used; infinite when it is gone."""
    with suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return math.inf


def main() -> int:
    """Load, convert and test a bundle, in the child."""
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
