"""One service in several worker processes: their supervisor, and what they know of each other.

The process that reads the settings and opens the socket becomes the supervisor, which imports nothing that
serves. Each worker runs the same script with the same settings on the same socket. They share a folder that
is removed with the supervisor:

    poll                written by a worker that was asked to poll the registry: all do
    worker-1.json       the state of worker 1, written every second, removed when it has died
    counter_1.db        what it has counted, and so on for other kinds of metrics; they stay, for the
                        worker that is started in its place counts on
"""

import ctypes
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from toolkit.errors import SettingsError, first_line
from toolkit.system.subprocesses import exit_reason, module_command, module_environment, on_parent_exit, start

logger = logging.getLogger(__name__)

VARIABLE = "TOOLKIT_SERVE_WORKER"  # holds a worker's spec; none of the settings, which begin with SERVE_
PUBLISH_INTERVAL_S = 1.0  # between two states that a worker publishes
POLL_INTERVAL_S = 0.1  # of the supervisor
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # until a worker that died is started again; it doubles
STEADY_S = 60.0  # a worker that lived so long begins with the first pause again
MAX_ATTEMPTS = 3  # starts of each worker that may fail in a row before the service gives up
GRACE_S = 15.0  # to end after the last response: two threads that are waited for, and the monitor's last writes
FORCE_QUIT_AFTER = 3  # times Ctrl-C, all are killed
SHUTDOWN_SIGNALS = (signal.SIGTERM, signal.SIGINT)
M_ARENA_MAX = -8  # of glibc's malloc.h

State = dict[str, Any]


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is started with.

    Parameters
    ----------
    index, count
        Which of how many workers, from 1.
    supervisor
        The supervisor's process number.
    listener
        File descriptor of the listening socket.
    folder
        Shared by the workers.
    started
        When the service was, in seconds since 1970.
    """

    index: int
    count: int
    supervisor: int
    listener: int
    folder: str
    started: float

    @classmethod
    def take(cls, environ: MutableMapping[str, str] = os.environ) -> "WorkerSpec | None":
        """The spec of this process, taken from its environment; None when it is no worker.

        Raises
        ------
        SettingsError
            The variable is there, but not from this process's supervisor.

        Examples
        --------
        >>> WorkerSpec.take({}) is None
        True
        >>> WorkerSpec.take({"TOOLKIT_SERVE_WORKER": "2"})
        Traceback (most recent call last):
            ...
        toolkit.errors.SettingsError: TOOLKIT_SERVE_WORKER is for the workers that a running service starts: unset it
        """
        text = environ.pop(VARIABLE, None)
        if text is None:
            return None
        with suppress(ValueError, TypeError):
            spec = cls(**json.loads(text))
            if spec.supervisor == os.getppid():
                return spec
        raise SettingsError(f"{VARIABLE} is for the workers that a running service starts: unset it")

    @property
    def summary(self) -> dict[str, int]:
        """As ``/health`` shows it."""
        return {"index": self.index, "of": self.count, "pid": os.getpid()}

    @contextmanager
    def listening(self) -> Iterator[socket.socket]:
        """The listening socket; a SIGTERM comes when the supervisor is gone."""
        on_parent_exit(lambda: os.kill(os.getpid(), signal.SIGTERM))
        try:
            with OneAtATimeListener(fileno=self.listener) as listener:
                yield listener
        finally:
            if os.getppid() != self.supervisor:  # which would have removed it
                shutil.rmtree(self.folder, ignore_errors=True)


class OneAtATimeListener(socket.socket):
    """A listening socket that gives one connection at a time, and then says that there is none.

    asyncio would take all that wait, up to two thousand: of 64 clients that connected at once one
    worker got 64 and the other none. Now it turns to other work after each, and the system calls it again
    while any are waiting, unless another worker was faster.
    """

    _accepted = False

    def accept(self) -> "tuple[socket.socket, Any]":
        """A connection; BlockingIOError each second time."""
        self._accepted = not self._accepted
        if not self._accepted:
            raise BlockingIOError
        try:
            return super().accept()
        except OSError:
            self._accepted = False
            raise


class WorkerGroup:
    """The workers of one service as one of them sees them, by files in their folder.

    Parameters
    ----------
    folder
        Shared by the workers.
    index, count
        Which of how many this one is.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     first, second = (WorkerGroup(Path(folder), index, 2) for index in (1, 2))
    ...     second.publish({"waiting": 3})
    ...     first.states({"waiting": 1})
    [{'waiting': 1}, {'waiting': 3}]
    """

    def __init__(self, folder: Path, index: int, count: int) -> None:
        self.count = count
        self._folder = folder
        self._index = index
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, state: Callable[[], State], poll: Callable[[], object]) -> None:
        """Begin to publish the state of this worker, and to follow the others' requests.

        Parameters
        ----------
        state
            Gives what the others are to know, as JSON.
        poll
            Called in a thread of its own when another worker was asked to poll the registry.
        """
        arguments = state, poll, self._last_request()
        self._thread = threading.Thread(target=self._run, args=arguments, name="worker-group", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Publish no more."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(PUBLISH_INTERVAL_S)

    def publish(self, state: State) -> None:
        """Have the others know the state of this worker; on a full disk they go on with what they know."""
        _write(_state_file(self._folder, self._index), json.dumps(state))

    def states(self, own: State) -> list[State]:
        """The states of all living workers: this one's now, the others' a second ago at most."""
        found = [own]
        for index in range(1, self.count + 1):
            if index != self._index:
                with suppress(OSError, ValueError):
                    found.append(json.loads(_state_file(self._folder, index).read_bytes()))
        return found

    def n_not_ready(self) -> int:
        """How many of the other workers have no model, though they take connections or are about to.

        One that has died takes no connections; the others do without it.
        """
        known = self.states({"model": True})
        without = sum(not state["model"] for state in known)
        mark = self._folder / "complete"
        if not without and len(known) == self.count and not mark.exists():
            with suppress(OSError):
                mark.touch()
        return without if mark.exists() else without + self.count - len(known)

    def request_poll(self) -> None:
        """Have all others poll the registry."""
        _write(self._folder / "poll", f"{self._index} {time.time_ns()}")

    def _last_request(self) -> str:
        """The last request, which differs from the one before; empty as long as there is none."""
        try:
            return (self._folder / "poll").read_text()
        except OSError:
            return ""

    def _run(self, state: Callable[[], State], poll: Callable[[], object], seen: str) -> None:
        while True:
            try:
                self.publish(state())
            except Exception as error:  # noqa: BLE001  the others go on with what they know
                logger.warning("the state of this worker cannot be published: %s", first_line(error))
            request = self._last_request()
            if request != seen and request.split()[0] != str(self._index):
                threading.Thread(target=poll, name="requested-poll", daemon=True).start()
            seen = request
            if self._stopping.wait(PUBLISH_INTERVAL_S):
                return


def _state_file(folder: Path, index: int) -> Path:
    return folder / f"worker-{index}.json"


def _write(path: Path, text: str) -> None:
    """All at once, as far as a reader can tell."""
    fresh = path.with_suffix(f".{os.getpid()}.new")
    with suppress(OSError):
        fresh.write_text(text)
        fresh.replace(path)


def limit_malloc_arenas() -> bool:
    """Have all threads of this process share one arena of malloc, where glibc would give each its own; whether they do.

    An arena keeps what its threads free, and each change of the model runs in other threads than the one
    before: with an arena each, the service grows by megabytes a change, though it holds nothing more.
    MALLOC_ARENA_MAX in the environment goes first; other C libraries have one arena as it is.

    Examples
    --------
    >>> isinstance(limit_malloc_arenas(), bool)
    True
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1))
    except (OSError, AttributeError, TypeError):  # no glibc here
        return False


# The supervisor


def exec_supervisor(command: Sequence[str], count: int, listener: socket.socket, seconds: float) -> NoReturn:
    """Become the supervisor of a service: this process goes on as a small one, and keeps its number and its socket.

    Parameters
    ----------
    command
        What a worker runs.
    count
        How many workers.
    listener
        Bound and listening.
    seconds
        How long a worker may take to finish what was accepted.
    """
    if sys.platform == "win32":
        raise SettingsError("--workers must be 1 on Windows, where a process inherits no socket")
    signal.pthread_sigmask(signal.SIG_BLOCK, SHUTDOWN_SIGNALS)  # until the supervisor handles them
    listener.set_inheritable(True)
    arguments = module_command(__name__, str(count), str(listener.fileno()), str(seconds), *command)
    os.execve(arguments[0], arguments, module_environment())  # noqa: S606  it is meant to be no shell


@dataclass
class WorkerProcess:
    """One of the workers, whichever process it is by now."""

    index: int
    process: "subprocess.Popen[bytes] | None" = None
    starts: float = 0.0  # when it was or will be started, on the monotonic clock
    pause: float = FIRST_PAUSE_S / 2  # seconds before it was started, had it died
    failures: int = 0  # starts in a row that ended before it served


class Supervisor:
    """Workers that are started, started again when they die, and ended together.

    A worker that dies is started again after a pause, which doubles from one second to a minute
    while it goes on dying. When each has died ``MAX_ATTEMPTS`` times in a row before it served, the
    service ends with status 1.

    Parameters
    ----------
    command
        What a worker runs. It finds its ``WorkerSpec`` in a variable.
    count
        How many.
    listener
        The socket that all listen on.
    seconds
        How long workers may take to end before they are killed.
    folder
        Shared by the workers.
    """

    def __init__(self, command: Sequence[str], count: int, listener: socket.socket, seconds: float, folder: Path):
        self._command = list(command)
        self._workers = [WorkerProcess(index) for index in range(1, count + 1)]
        self._listener = listener
        self._seconds = seconds
        self._folder = folder
        self._started = time.time()
        self._deadline: float | None = None  # on the monotonic clock; None while the service goes on
        self._status = 0
        self._received: list[int] = []  # signals to shut down
        self._forwarded = 0
        for number in SHUTDOWN_SIGNALS:
            signal.signal(number, lambda number, _: self._received.append(number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SHUTDOWN_SIGNALS)

    def run(self) -> int:
        """Supervise until the service was told to end and all workers have; gives the exit status."""
        while self._deadline is None or any(worker.process for worker in self._workers):
            while self._received:
                self._forward(self._received.pop(0))
            for worker in self._workers:
                if worker.process is not None and worker.process.poll() is not None:
                    self._on_exit(worker, worker.process)
                if worker.process is None and self._deadline is None and worker.starts <= time.monotonic():
                    self._start(worker)
            self._kill_overdue()
            time.sleep(POLL_INTERVAL_S)
        return self._status

    def _start(self, worker: WorkerProcess) -> None:
        listener = self._listener.fileno()
        count, folder = len(self._workers), str(self._folder)
        spec = WorkerSpec(worker.index, count, os.getpid(), listener, folder, self._started)
        worker.starts = time.monotonic()
        environment = os.environ | {VARIABLE: json.dumps(asdict(spec))}
        worker.process = start(self._command, environment, pass_fds=(listener,))

    def _forward(self, number: int) -> None:
        """Pass a signal on to all workers; as SIGTERM, which also ends one that is importing without a traceback."""
        self._forwarded += 1
        if number == signal.SIGINT and self._forwarded >= FORCE_QUIT_AFTER:
            self._deadline = time.monotonic()
        self._shut_down()

    def _shut_down(self) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + self._seconds
            self._listener.close()  # so that connections are refused once the workers have closed theirs
        for worker in self._workers:
            if worker.process is not None:
                worker.process.terminate()

    def _on_exit(self, worker: WorkerProcess, process: "subprocess.Popen[bytes]") -> None:
        """Note how a worker ended, and when another one takes its place."""
        worker.process = None
        if process.stdin:
            process.stdin.close()
        state = _state_file(self._folder, worker.index)
        served = state.exists()
        state.unlink(missing_ok=True)
        status = process.returncode
        event = f"worker {worker.index} (pid {process.pid}) {exit_reason(status)}"
        if self._deadline is not None:
            if status not in (0, -signal.SIGTERM, 128 + signal.SIGTERM):  # the latter two had not begun to serve
                self._status = 1
                _log(event)
            return
        now = time.monotonic()
        steady = now - worker.starts >= STEADY_S
        worker.failures = 0 if served else worker.failures + 1
        worker.pause = FIRST_PAUSE_S if steady else min(2 * worker.pause, LONGEST_PAUSE_S)
        worker.starts = now + worker.pause
        if all(other.failures >= MAX_ATTEMPTS for other in self._workers):
            _log(f"{event}; each was started {MAX_ATTEMPTS} times and none came to serve, so the service ends")
            self._status = 1
            self._shut_down()
        else:
            _log(f"{event}; it is started again in {worker.pause:g} s")

    def _kill_overdue(self) -> None:
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        for worker in self._workers:
            if worker.process is not None and worker.process.poll() is None:
                _log(f"worker {worker.index} (pid {worker.process.pid}) has not ended in time and is killed")
                worker.process.kill()
                worker.process.wait()


def _log(text: str) -> None:
    """Write an error as the service's log has them; to import what writes those would import all that serves."""
    now = datetime.now(UTC)
    fields = {"time": now.isoformat(timespec="milliseconds"), "level": "error", "message": text}
    line = f"{now.astimezone():%H:%M:%S} error: {text}" if sys.stderr.isatty() else json.dumps(fields)
    with suppress(OSError):
        sys.stderr.write(f"{line}\n")


def main() -> int:
    """Supervise."""
    count, listener, seconds, *command = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="serve-", ignore_cleanup_errors=True) as folder:
        held = socket.socket(fileno=int(listener))
        return Supervisor(command, int(count), held, float(seconds) + GRACE_S, Path(folder)).run()


if __name__ == "__main__":
    sys.exit(main())
