"""Worker processes of one service: their supervisor, and the state that they share.

The process that reads the settings and opens the socket becomes the supervisor, which imports no part of the service.
Each worker runs the same script with the same settings on the same socket. They share a folder that is removed with the
supervisor:

    poll                written by a worker that was asked to poll the registry, so that all do
    worker-1.json       the state of worker 1, written every second, removed when it has died
    counter_1.db        its counts, and so on for other kinds of metrics; the worker that replaces it continues them
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
FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 60.0  # before a worker that died is restarted; it doubles
STEADY_S = 60.0  # of life, after which a worker's next restart has the first pause again
MAX_ATTEMPTS = 3  # starts of each worker that may fail in a row before the service gives up
GRACE_S = 15.0  # to end after the last response: two threads to join, and the monitor's last writes
FORCE_QUIT_AFTER = 3  # times Ctrl-C
SHUTDOWN_SIGNALS = (signal.SIGTERM, signal.SIGINT)
M_ARENA_MAX = -8  # of glibc's malloc.h

State = dict[str, Any]


@dataclass(frozen=True)
class WorkerSpec:
    """Start parameters of a worker process."""

    index: int  # from 1
    count: int  # of all workers
    supervisor: int  # process id
    listener: int  # file descriptor of the listening socket
    folder: str  # that the workers share
    started: float  # start of the service in seconds since 1970

    @classmethod
    def take(cls, environ: MutableMapping[str, str] = os.environ) -> "WorkerSpec | None":
        """Take the spec of this process from its environment; None if it is not a worker.

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
        """The worker as ``/health`` shows it."""
        return {"index": self.index, "of": self.count, "pid": os.getpid()}

    @contextmanager
    def listening(self) -> Iterator[socket.socket]:
        """Open the listening socket; the worker gets a SIGTERM when its supervisor has ended."""
        on_parent_exit(lambda: os.kill(os.getpid(), signal.SIGTERM))
        try:
            with OneAtATimeListener(fileno=self.listener) as listener:
                yield listener
        finally:
            if os.getppid() != self.supervisor:  # which would have removed it
                shutil.rmtree(self.folder, ignore_errors=True)


class OneAtATimeListener(socket.socket):
    """A listening socket that accepts one connection per readiness event.

    asyncio accepts all pending connections at once, up to two thousand: of 64 clients that connected at once, one
    worker got 64 and the other none. With this socket it continues with other work after each connection, and is
    notified again while any are pending, unless another worker was faster.
    """

    _accepted = False

    def accept(self) -> "tuple[socket.socket, Any]":
        """Accept a connection; every second call raises BlockingIOError."""
        self._accepted = not self._accepted
        if not self._accepted:
            raise BlockingIOError
        try:
            return super().accept()
        except OSError:
            self._accepted = False
            raise


class WorkerGroup:
    """State that the workers of a service share, by files in their folder; ``index`` is that of this worker.

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
        """Publish the state of this worker, as JSON, and call ``poll`` when another was asked to poll the registry."""
        arguments = state, poll, self._last_request()
        self._thread = threading.Thread(target=self._run, args=arguments, name="worker-group", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop publishing."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(PUBLISH_INTERVAL_S)

    def publish(self, state: State) -> None:
        """Publish the state of this worker; on a full disk the others keep the previous one."""
        _write(_state_file(self._folder, self._index), json.dumps(state))

    def states(self, own: State) -> list[State]:
        """Return the states of all living workers: ``own``, and those that the others last published."""
        found = [own]
        for index in range(1, self.count + 1):
            if index != self._index:
                with suppress(OSError, ValueError):
                    found.append(json.loads(_state_file(self._folder, index).read_bytes()))
        return found

    def n_not_ready(self) -> int:
        """Number of other workers that have no model but accept connections, or will soon.

        A worker that has died accepts no connections and is not counted once all have been ready.
        """
        known = self.states({"model": True})
        without = sum(not state["model"] for state in known)
        mark = self._folder / "complete"
        if not without and len(known) == self.count and not mark.exists():
            with suppress(OSError):
                mark.touch()
        return without if mark.exists() else without + self.count - len(known)

    def request_poll(self) -> None:
        """Request that all other workers poll the registry."""
        _write(self._folder / "poll", f"{self._index} {time.time_ns()}")

    def _last_request(self) -> str:
        """Text of the last request, different for each; empty if there was none."""
        try:
            return (self._folder / "poll").read_text()
        except OSError:
            return ""

    def _run(self, state: Callable[[], State], poll: Callable[[], object], seen: str) -> None:
        while True:
            try:
                self.publish(state())
            except Exception as error:  # noqa: BLE001  the others keep the previous state
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
    """Write a file atomically."""
    fresh = path.with_suffix(f".{os.getpid()}.new")
    with suppress(OSError):
        fresh.write_text(text)
        fresh.replace(path)


def limit_malloc_arenas() -> bool:
    """Let all threads of this process share one malloc arena, instead of glibc's one for each thread.

    An arena keeps memory that its threads have freed, and each model is loaded in other threads than the one before:
    with an arena per thread, the service grows by megabytes at each change of the model. ``MALLOC_ARENA_MAX`` in the
    environment takes precedence. Returns whether the limit was set; False with another C library.

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
    """Replace this process by the supervisor of a service, which keeps its process id and the socket.

    ``command`` is that of a worker; ``seconds`` is the longest time in which a worker finishes accepted requests.
    """
    if sys.platform == "win32":
        raise SettingsError("--workers must be 1 on Windows, where a process inherits no socket")
    signal.pthread_sigmask(signal.SIG_BLOCK, SHUTDOWN_SIGNALS)  # until the supervisor handles them
    listener.set_inheritable(True)
    arguments = module_command(__name__, str(count), str(listener.fileno()), str(seconds), *command)
    os.execve(arguments[0], arguments, module_environment())  # noqa: S606  no shell is intended


@dataclass
class WorkerProcess:
    """One of the workers; its process changes when it is restarted."""

    index: int
    process: "subprocess.Popen[bytes] | None" = None
    starts: float = 0.0  # its last or next start, on the monotonic clock
    pause: float = FIRST_PAUSE_S / 2  # seconds before its last restart
    failures: int = 0  # starts in a row that ended before it served


class Supervisor:
    """Start workers, restart those that die, and end all together.

    A worker that dies is restarted after a pause, which doubles from one second to a minute while it keeps dying. When
    each has died ``MAX_ATTEMPTS`` times in a row before it served, the service ends with status 1. ``command`` is that
    of a worker, which finds its ``WorkerSpec`` in its environment; after ``seconds`` to end, workers are killed.
    """

    def __init__(self, command: Sequence[str], count: int, listener: socket.socket, seconds: float, folder: Path):
        self._command = list(command)
        self._workers = [WorkerProcess(index) for index in range(1, count + 1)]
        self._listener = listener
        self._seconds = seconds
        self._folder = folder
        self._started = time.time()
        self._deadline: float | None = None  # on the monotonic clock; None until the service shuts down
        self._status = 0
        self._received: list[int] = []  # signals to shut down
        self._forwarded = 0
        for number in SHUTDOWN_SIGNALS:
            signal.signal(number, lambda number, _: self._received.append(number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SHUTDOWN_SIGNALS)

    def run(self) -> int:
        """Supervise until the service has shut down and all workers have ended; returns the exit status."""
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
        listener, count = self._listener.fileno(), len(self._workers)
        spec = WorkerSpec(worker.index, count, os.getpid(), listener, str(self._folder), self._started)
        worker.starts = time.monotonic()
        environment = os.environ | {VARIABLE: json.dumps(asdict(spec))}
        worker.process = start(self._command, environment, pass_fds=(listener,))

    def _forward(self, number: int) -> None:
        """Pass a signal on to all workers, as SIGTERM, which also ends one that is importing without a traceback."""
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
        """Record how a worker ended, and schedule its restart."""
        worker.process = None
        if process.stdin:
            process.stdin.close()
        state = _state_file(self._folder, worker.index)
        served = state.exists()
        state.unlink(missing_ok=True)
        status = process.returncode
        event = f"worker {worker.index} (pid {process.pid}) {exit_reason(status)}"
        if self._deadline is not None:
            if status not in (0, -signal.SIGTERM, 128 + signal.SIGTERM):  # of a worker that did not serve yet
                self._status = 1
                _log(event)
            return
        now = time.monotonic()
        steady = now - worker.starts >= STEADY_S
        worker.failures = 0 if served else worker.failures + 1
        worker.pause = FIRST_PAUSE_S if steady else min(2 * worker.pause, MAX_PAUSE_S)
        worker.starts = now + worker.pause
        if all(other.failures >= MAX_ATTEMPTS for other in self._workers):
            _log(f"{event}; each was started {MAX_ATTEMPTS} times and none served, so the service ends")
            self._status = 1
            self._shut_down()
        else:
            _log(f"{event}; it is restarted in {worker.pause:g} s")

    def _kill_overdue(self) -> None:
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        for worker in self._workers:
            if worker.process is not None and worker.process.poll() is None:
                _log(f"worker {worker.index} (pid {worker.process.pid}) did not end in time and is killed")
                worker.process.kill()
                worker.process.wait()


def _log(text: str) -> None:
    """Write an error in the format of the service's log, without importing the service."""
    now = datetime.now(UTC)
    fields = {"time": now.isoformat(timespec="milliseconds"), "level": "error", "message": text}
    line = f"{now.astimezone():%H:%M:%S} error: {text}" if sys.stderr.isatty() else json.dumps(fields)
    with suppress(OSError):
        sys.stderr.write(f"{line}\n")


def main() -> int:
    """Run the supervisor."""
    count, listener, seconds, *command = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="serve-", ignore_cleanup_errors=True) as folder:
        held = socket.socket(fileno=int(listener))
        return Supervisor(command, int(count), held, float(seconds) + GRACE_S, Path(folder)).run()


if __name__ == "__main__":
    sys.exit(main())
