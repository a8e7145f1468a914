"""A version is loaded, converted and proved in a process of its own before the service touches it.

Loading a program holds Python's lock for most of a second, converting it takes seconds of all cores, and a
library that crashes on it takes its process along. Aside, at a lower priority, none of this is felt by those
who are being answered; the service then finds in the cache what it needs.

A thread could not do the same: one that the system holds back while it holds Python's lock holds back all.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

from toolkit.errors import BundleError, ToolkitError, one_line
from toolkit.program import Bundle, shelve_bundle
from toolkit.serving.conversion import is_kept
from toolkit.serving.engines import Choice, prepare
from toolkit.serving.locks import alone
from toolkit.serving.processes import called

ROOT = Path(__file__).resolve().parents[2]
NICENESS = 10  # a tenth of the time of a busy core: at 19 a swap on a busy machine would take very long
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

    def __call__(self, bundle: Bundle, stopping: threading.Event) -> None:
        """Wait until the bundle is converted and proved; nothing to do when it was before, or will not be converted.

        Of several processes that come with the same bundle one does it, and the others find it in the cache.

        Parameters
        ----------
        bundle
            One that is kept in a folder.
        stopping
            Ends the process when it is set.

        Raises
        ------
        BundleError
            Why no engine runs it, or how its process ended.
        """
        if bundle.folder is None or self._choice == "torch" or torch.cuda.is_available():
            return
        with alone(self._cache.with_suffix(".rehearsing.lock"), LONGEST_SECONDS, stopping):
            if not is_kept(bundle, self._cache):
                self._rehearse(bundle, bundle.folder, stopping)

    def _rehearse(self, bundle: Bundle, folder: Path, stopping: threading.Event) -> None:
        words = [folder.resolve(), bundle.digest, self._choice, self._threads or 0, self._cache.resolve(), os.getpid()]
        with subprocess.Popen(
            [sys.executable, "-m", __name__, *map(str, words)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C at a terminal is for the service alone. In a session of its own, Linux would give it half of the
            # processor, however low its priority.
            process_group=0,
        ) as process:
            _wait(process, stopping)
            told = process.stdout.read().decode(errors="replace").strip() if process.stdout else ""
        if process.returncode:
            raise BundleError(told or f"the process that tried it ended with {called(process.returncode)}")


def _wait(process: subprocess.Popen[bytes], stopping: threading.Event) -> None:
    end = time.monotonic() + LONGEST_SECONDS
    while process.poll() is None:
        if stopping.wait(GLANCE_SECONDS) or time.monotonic() > end:
            process.kill()
            process.wait()
            raise BundleError("the service ends" if stopping.is_set() else f"not ready after {LONGEST_SECONDS:g} s")


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: the one that follows would wait for what this converts so slowly."""
    while os.getppid() == parent:
        time.sleep(GLANCE_SECONDS)
    os._exit(1)


def main() -> int:
    """In the process of its own."""
    folder, digest, choice, threads, cache, parent = sys.argv[1:]
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    os.nice(NICENESS)
    try:
        bundle = shelve_bundle(Path(folder), digest)
        prepare(bundle, choice, threads=int(threads) or None, cache=Path(cache)).close()  # type: ignore[arg-type]
    except ToolkitError as error:
        print(one_line(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
