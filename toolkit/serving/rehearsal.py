"""A version is loaded, converted and proved in a process of its own before the service touches it.

Loading a program holds Python's lock for most of a second, converting it takes seconds, and a library that
crashes on it takes its process along. Aside, little of this is felt by those who are being answered; the
service then finds in the cache what it needs.

The process is granted a share of a core, so that a promotion is in service within a time that does not depend on
how much the service is asked: when it gets less, the service lets workers rest until it has caught up. A low
priority would not do: beside busy cores such a process stands still for minutes.

A thread could not do the same: one that the system holds back while it holds Python's lock holds back all.
"""

import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from toolkit.errors import BundleError, ToolkitError, one_line
from toolkit.locks import try_lock
from toolkit.program import Bundle, shelve_bundle
from toolkit.serving.conversion import is_kept
from toolkit.serving.engines import Choice, prepare
from toolkit.serving.processes import called

ROOT = Path(__file__).resolve().parents[2]
SHARE = 0.5  # of a core, that the process is granted
ARREARS_SECONDS = 0.25  # of a core, by which it may be behind for each worker that rests
LONGEST_SECONDS = 900.0
GLANCE_SECONDS = 0.05  # between two looks whether it is done


class Rehearsal:
    """Prepare bundles aside for an engine that runs converted programs.

    Parameters
    ----------
    choice, threads, cache
        As ``engines.prepare`` will be given.
    """

    def __init__(self, choice: Choice, threads: int | None, cache: Path) -> None:
        self._choice = choice
        self._threads = threads
        self._cache = cache

    def __call__(self, bundle: Bundle, stopping: threading.Event, rest: Callable[[int], None]) -> None:
        """Wait until the bundle is converted and proved; nothing to do when it was before, or will not be converted.

        Of several processes that come with the same bundle one does it, and the others find it in the cache.

        Parameters
        ----------
        bundle
            One that is kept in a folder.
        stopping
            Ends the process when it is set.
        rest
            Called with the number of workers that are to leave their core to the process; with 0 in the end.

        Raises
        ------
        BundleError
            Why no engine runs it, or how its process ended.
        """
        if bundle.folder is None or self._choice == "torch" or torch.cuda.is_available():
            return
        with try_lock(self._cache.with_suffix(".rehearsing.lock"), LONGEST_SECONDS, stopping):
            if not is_kept(bundle, self._cache):
                self._rehearse(bundle, bundle.folder, stopping, rest)

    def _rehearse(self, bundle: Bundle, folder: Path, stopping: threading.Event, rest: Callable[[int], None]) -> None:
        words = [folder.resolve(), bundle.digest, self._choice, self._threads or 0, self._cache.resolve(), os.getpid()]
        with subprocess.Popen(
            [sys.executable, "-m", __name__, *map(str, words)],
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C at a terminal is for the service alone
        ) as process:
            try:
                _wait(process, stopping, rest)
            finally:
                rest(0)
            told = process.stdout.read().decode(errors="replace").strip() if process.stdout else ""
        if process.returncode:
            raise BundleError(told or f"the process that tried it ended with {called(process.returncode)}")


def _wait(process: subprocess.Popen[bytes], stopping: threading.Event, rest: Callable[[int], None]) -> None:
    began, resting = time.monotonic(), 0
    while process.poll() is None:
        seconds = time.monotonic() - began
        if stopping.wait(GLANCE_SECONDS) or seconds > LONGEST_SECONDS:
            process.kill()
            process.wait()
            raise BundleError("the service ends" if stopping.is_set() else f"not ready after {LONGEST_SECONDS:g} s")
        if (wanted := _to_rest(seconds, _worked(process.pid))) != resting:
            resting = wanted
            rest(resting)


def _to_rest(seconds: float, worked: float) -> int:
    """How many workers are to rest for a process that has worked so long in so many seconds.

    >>> [_to_rest(4.0, worked) for worked in (4.0, 2.0, 1.9, 1.5, 0.0)]
    [0, 0, 0, 2, 8]
    """
    return max(0, math.floor((SHARE * seconds - worked) / ARREARS_SECONDS))


def _worked(pid: int) -> float:
    """Seconds of a core that a process has used; enough for all when it is gone."""
    with suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return math.inf


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: the one that follows would wait for what this converts."""
    while os.getppid() == parent:
        time.sleep(GLANCE_SECONDS)
    os._exit(1)


def main() -> int:
    """In the process of its own."""
    folder, digest, choice, threads, cache, parent = sys.argv[1:]
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    try:
        bundle = shelve_bundle(Path(folder), digest)
        prepare(bundle, choice, threads=int(threads) or None, cache=Path(cache)).close()  # type: ignore[arg-type]
    except ToolkitError as error:
        print(one_line(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
