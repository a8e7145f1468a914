"""A pool of worker processes with one task each; a worker that dies fails its task alone and is replaced.

The pools of concurrent.futures and loky break as a whole when one process dies, report no progress and cannot stop a
task gracefully.
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Literal, NoReturn

from toolkit import errors
from toolkit.errors import ToolkitError, first_line
from toolkit.system.subprocesses import Child, Parent, exit_reason, stop

GRACE_S = 5.0  # for a worker to end before it is killed
TERMINATED = 128 + signal.SIGTERM  # the exit status of a worker that SIGTERM has ended

Report = Callable[[Any], None]


@dataclass(frozen=True)
class Event:
    """An event of a task: ``progress`` any number of times, and then one of the other kinds."""

    key: int  # of the task
    kind: Literal["progress", "done", "failed", "error", "stopped"]
    value: Any = None  # reported value; result; reason in one line; a ToolkitError, which concerns all tasks; None


class WorkerPool:
    """Worker processes, started on demand, reused, and replaced when they have died.

    SIGTERM raises SystemExit in a worker, unless the work handles it. Workers ignore SIGINT: the parent handles
    Ctrl-C. They end at once when the parent is gone, however it ended. Their output goes to standard error.

    Parameters
    ----------
    size
        Maximum number of workers.
    work
        ``module:function``. A worker imports the module, and nothing else of the program that started it, and
        calls ``function(task, report)``, which returns the result; ``report(value)`` sends the parent a value
        meanwhile. Tasks, values and results are JSON.

    Examples
    --------
    >>> with WorkerPool(2, "operator:call") as pool:  # doctest: +SKIP
    ...     pool.start(7, {"learning_rate": 0.1})
    ...     pool.wait(None)
    [Event(key=7, kind='failed', value="TypeError: 'dict' object is not callable")]
    """

    def __init__(self, size: int, work: str) -> None:
        self.size, self._work = size, work
        self._workers: list[_Worker] = []
        self._queue: _Queue = SimpleQueue()
        self._events: list[Event] = []

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def n_idle(self) -> int:
        """Number of tasks that could be started now."""
        return self.size - sum(worker.key is not None for worker in self._workers)

    def start(self, key: int, task: Any) -> None:
        """Give a task to one of the idle workers; ToolkitError if the system starts no more processes."""
        ready = (w for w in self._workers if w.key is None and not w.is_terminating and w.process.poll() is None)
        worker = next(ready, None) or self._spawn()
        worker.send({"key": key, "task": task})
        worker.key = key

    def wait(self, timeout: float | None) -> list[Event]:
        """The events since the last call, in order; waits up to so many seconds for one while a worker is busy."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._receive(0)
        while not self._events and self.n_idle < self.size and (left := deadline - time.monotonic()) > 0:
            self._receive(left)
        return self._take_events()

    def stop(self) -> list[Event]:
        """Send SIGTERM to the busy workers and wait until they have ended.

        A task that was not done before its worker ended is ``stopped``; earlier events come first.
        """
        busy = [worker for worker in self._workers if worker.key is not None]
        for worker in busy:
            worker.terminate()
        while any(worker in self._workers for worker in busy):
            self._receive(math.inf)
        return self._take_events()

    def close(self) -> None:
        """End all workers, with SIGKILL after 5 seconds; their events are dropped."""
        for worker in self._workers:
            worker.terminate()
        stop([worker.process for worker in self._workers], GRACE_S)
        while self._workers:
            self._receive(math.inf)
        self._events.clear()

    def _spawn(self) -> "_Worker":
        try:
            self._workers.append(_Worker(self._work, self._queue))
        except OSError as error:
            raise ToolkitError(f"no worker process can be started: {first_line(error)}") from None
        return self._workers[-1]

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _receive(self, timeout: float) -> None:
        """Handle all messages of workers, waiting up to so many seconds for the first."""
        with suppress(Empty):
            self._handle(*self._queue.get(timeout=min(timeout, threading.TIMEOUT_MAX)))
            while True:
                self._handle(*self._queue.get_nowait())

    def _handle(self, worker: "_Worker", event: Event | None) -> None:
        if event is None:
            self._workers.remove(worker)
            event = worker.reap()
        if event is None or event.key != worker.key:  # idle, or from a thread that outlived its task
            return
        if event.kind != "progress":
            worker.key = None
            if worker.is_terminating and event.kind != "done":
                event = Event(event.key, "stopped")
        self._events.append(event)


class _Worker(Child):
    """The parent's side of a worker; a thread reads its messages, so that it never waits for the parent."""

    def __init__(self, work: str, queue: "_Queue") -> None:
        super().__init__(__name__)
        self.key: int | None = None  # of its task
        self.is_terminating = False
        self.send({"work": work, "path": sys.path})
        threading.Thread(target=self._read, args=(queue,), daemon=True).start()

    def terminate(self) -> None:
        """End the worker: at once, or after its task if that handles SIGTERM."""
        self.is_terminating = True
        self.send(None)
        self.process.terminate()

    def reap(self) -> Event | None:
        """Release the resources of a worker that has ended; the event of its task."""
        status = self.close(GRACE_S)
        if self.key is None:
            return None
        if status in (TERMINATED, -signal.SIGTERM):
            return Event(self.key, "stopped")
        return Event(self.key, "failed", f"its process {exit_reason(status)}")

    def _read(self, queue: "_Queue") -> None:
        for message in self.messages():
            value = message["value"]
            if message["kind"] == "error":
                value = getattr(errors, message["type"])(value)
            queue.put((self, Event(message["key"], message["kind"], value)))
        queue.put((self, None))


_Queue = SimpleQueue[tuple[_Worker, Event | None]]  # None: the worker has ended


def main() -> None:
    """Run one task after another, in a worker."""
    parent = Parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _on_sigterm)
    setup = parent.receive()
    sys.path[:] = setup["path"]
    while request := parent.receive():
        _run(setup["work"], request["key"], request["task"], parent)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it would interrupt the exit of the interpreter with a traceback


def _on_sigterm(_number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would disturb the shutdown
    sys.exit(TERMINATED)


def _run(work: str, key: int, task: Any, parent: Parent) -> None:
    def send(kind: str, value: Any, **more: str) -> None:
        parent.send({"key": key, "kind": kind, "value": value, **more})

    module, _, function = work.partition(":")
    try:
        send("done", getattr(import_module(module), function)(task, lambda value: send("progress", value)))
    except KeyboardInterrupt:
        sys.exit(TERMINATED)
    except ToolkitError as error:
        kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
        send("error", str(error), type=kind)
    except Exception as error:  # noqa: BLE001  of any kind: the worker lives on
        send("failed", f"{type(error).__name__}: {first_line(error)}")


if __name__ == "__main__":
    main()
