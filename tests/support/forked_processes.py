"""Scripts as real processes, forked from one that has imported everything: a start costs no seconds of imports.

Such a process can be sent signals and killed like any other. It runs a script as ``python NAME.py``
would, in a folder and with variables of its own.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import re
import runpy
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from support import MAX_WAIT_S, ROOT, wait_until

# What the scripts import, also in the middle of their work. Nothing here may start a thread: it would not be forked.
IMPORTED = [
    "support.forked_processes", "train_cnn", "matplotlib.backends.backend_agg", "mlflow.artifacts", "mlflow.pytorch",
    "mlflow.store.tracking.sqlalchemy_store", "networkx", "sklearn.model_selection", "torch._inductor", "torch.export",
]  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """What a script printed, its exit status, or minus the number of the signal it died of, and how long it took."""

    out: str
    err: str
    status: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Script:
    """A script that is running, or has run."""

    process: multiprocessing.process.BaseProcess
    folder: Path
    began: float = field(default_factory=time.monotonic)

    @property
    def pid(self):
        assert self.process.pid is not None
        return self.process.pid

    @property
    def running(self):
        return self.process.is_alive()

    @property
    def out(self):
        return (self.folder / "out").read_text()

    def wait_for(self, pattern):
        """Everything that was printed up to a line that matches."""

        def printed():
            ended, out = not self.running, self.out
            found = re.search(rf"^(?:{pattern}).*\n", out, re.MULTILINE)
            assert found or not ended, f"no line matched {pattern!r}: {out}{(self.folder / 'err').read_text()}"
            return found and out[: found.end()]

        return wait_until(printed)

    def pause(self):
        os.kill(self.pid, signal.SIGSTOP)

    def wait_for_pause(self):
        """Wait until it has paused itself."""
        wait_until(lambda: not self.running or psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)
        assert self.running, f"it ended before it paused: {self.out}{(self.folder / 'err').read_text()}"

    def go_on(self):
        os.kill(self.pid, signal.SIGCONT)

    def end(self):
        """Wait until it ends."""
        self.process.join(MAX_WAIT_S)
        assert self.process.exitcode is not None, f"it did not end: {self.out}"
        took = time.monotonic() - self.began
        return Ended(self.out, (self.folder / "err").read_text(), self.process.exitcode, took)


class Forks:
    """Starts scripts; those that still run when the context ends are killed."""

    def __init__(self, scratch):
        self._scratch = scratch
        self._started = []
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(IMPORTED)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
            multiprocessing.forkserver.ensure_running()

    def start(self, *words, folder, prepare=None, **variables):
        """Run a script of the project in a folder, with more variables than this process has.

        The new process calls ``prepare`` before the script.
        """
        own = Path(tempfile.mkdtemp(dir=self._scratch))
        for name in ("out", "err"):
            (own / name).touch()
        process = self._context.Process(target=_run, args=(words, folder, own, {**os.environ, **variables}, prepare))
        process.start()
        self._started.append(Script(process, own))
        return self._started[-1]

    def kill(self):
        for script in self._started:
            script.process.kill()
            script.process.join()


@contextmanager
def forks(scratch):
    """Something that starts scripts, and puts their output under ``scratch``."""
    started = Forks(scratch)
    try:
        yield started
    finally:
        started.kill()


def _run(words, folder, own, variables, prepare):
    """What a fork does."""
    os.setsid()  # signals of the terminal are not for it
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(own / name, os.O_WRONLY | os.O_APPEND), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    if prepare:
        prepare()
    sys.argv = [str(ROOT / words[0]), *words[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
