"""A crew of worker processes, each at one task at a time, that survives whatever happens to one of them.

The pools of concurrent.futures and loky break as a whole when one process dies, tell nothing on the way and cannot stop
a task politely; pebble is under the LGPL. So this one is our own.
"""

import io
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Literal, NoReturn

from toolkit.errors import SettingsError, ToolkitError, one_line

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
GRACE = 5.0  # seconds that a worker may take to end before it is killed
TERMINATED = 128 + signal.SIGTERM  # the exit status of what SIGTERM has ended
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # often sent to all processes of a terminal or a job

Say = Callable[[Any], None]
Work = Callable[[Any, Say], Any]


@dataclass(frozen=True)
class Event:
    """Something that happened to a task.

    Parameters
    ----------
    key
        The task's.
    kind
        ``said`` on the way, any number of times, and then once ``done``, ``raised``, ``crashed`` or ``stopped``.
    value
        What was said; the result; the exception; how the process ended, in words; None.
    """

    key: int
    kind: Literal["said", "done", "raised", "crashed", "stopped"]
    value: Any = None


class Crew:
    """Worker processes, started when they are first needed, used again, and replaced when they have died.

    SIGTERM raises SystemExit in a worker, unless the work handles it. Workers ignore SIGINT, in sessions of
    their own: a terminal's Ctrl-C reaches the parent alone, which decides. They end at once when the parent
    is gone, whatever became of it. They may start no processes of multiprocessing.

    Parameters
    ----------
    size
        The most workers at a time.
    work
        ``work(task, say)`` does a task in a worker and returns its result; ``say(x)`` tells the parent of
        ``x`` on the way. A function at the top of a file, found by its name. Tasks, results and what is said
        are pickled.
    preload
        Modules that workers find imported when they start; with all that ``work`` needs, that takes less than
        a tenth of a second. A process's first crew settles them for its later ones.

    Raises
    ------
    SettingsError
        The size is less than 1.

    Examples
    --------
    >>> def work(task, say):
    ...     say("half way")
    ...     return 2 * task
    >>> with Crew(2, work) as crew:  # doctest: +SKIP
    ...     crew.start(7, 21)
    ...     crew.wait(None), crew.wait(None)
    ([Event(key=7, kind='said', value='half way')], [Event(key=7, kind='done', value=42)])
    """

    def __init__(self, size: int, work: Work, *, preload: Sequence[str] = ()) -> None:
        if size < 1:
            raise SettingsError(f"the number of workers must be at least 1, got {size}")
        self.size = size
        self._work, self._preload = work, preload
        self._workers: list[_Worker] = []
        self._heard: _Heard = SimpleQueue()
        self._events: list[Event] = []
        _open_server(preload)  # it imports while the caller goes on

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def idle(self) -> int:
        """How many tasks could be started now."""
        return self.size - sum(worker.key is not None for worker in self._workers)

    def start(self, key: int, task: Any) -> None:
        """Give a task to an idle worker, in the folder that this process is in now.

        Raises
        ------
        RuntimeError
            No worker is idle.
        ToolkitError
            The system starts no more processes.
        """
        if not self.idle:
            raise RuntimeError(f"all {self.size} workers are at work")
        message = pickle.dumps((key, Path.cwd(), pickle.dumps(task)))
        worker = next((worker for worker in self._workers if worker.ready), None) or self._hired()
        worker.key = key
        worker.tell(message)

    def wait(self, timeout: float | None) -> list[Event]:
        """What happened since the last time, in order; nothing when the seconds are up or nobody is at work."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._hear(0)
        while not self._events and self.idle < self.size and (left := deadline - time.monotonic()) > 0:
            self._hear(left)
        return self._taken()

    def stop(self) -> list[Event]:
        """Send SIGTERM to the workers that are at work, and wait until they have ended.

        A task that was not done before its worker ended was ``stopped``; what happened on the way comes first.
        """
        asked = [worker for worker in self._workers if worker.key is not None]
        for worker in asked:
            worker.dismiss()
        while any(worker in self._workers for worker in asked):
            self._hear(math.inf)
        return self._taken()

    def close(self) -> None:
        """End all workers, those that do not obey SIGTERM within 5 seconds by force; no more is heard of them."""
        deadline = time.monotonic() + GRACE
        try:
            for worker in self._workers:
                worker.dismiss()
            while self._workers and (left := deadline - time.monotonic()) > 0:
                self._hear(left)
        finally:  # a second Ctrl-C cuts the grace short
            for worker in self._workers:
                worker.process.kill()
            while self._workers:
                self._hear(math.inf)
            self._taken()

    def _hired(self) -> "_Worker":
        for again in (True, False):
            try:
                _open_server(self._preload)
                self._workers.append(_Worker(self._work, self._heard))
            except (EOFError, OSError) as error:
                if not again:
                    raise ToolkitError(f"no worker process can be started: {one_line(error)}") from None
                time.sleep(0.1)  # until a server that was killed is known to be dead
            else:
                break
        return self._workers[-1]

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _hear(self, timeout: float) -> None:
        """Note what workers have told; if it is nothing yet, wait for it so many seconds."""
        with suppress(Empty):
            self._note(*self._heard.get(timeout=min(timeout, threading.TIMEOUT_MAX)))
            while True:
                self._note(*self._heard.get_nowait())

    def _note(self, worker: "_Worker", event: Event | None) -> None:
        if event is None:
            self._workers.remove(worker)
            event = worker.bury()
        if event is None or event.key != worker.key:  # idle, or said by a thread that has outlived its task
            return
        if event.kind != "said":
            worker.key = None
            if worker.asked and event.kind != "done":
                event = Event(event.key, "stopped")
        self._events.append(event)


class _Worker:
    """A worker as its parent sees it; a thread listens, so that it never waits for being heard."""

    def __init__(self, work: Work, heard: "_Heard") -> None:
        self.key: int | None = None  # of the task that it is at
        self.asked = False  # to end
        if getattr(sys.modules["__main__"], "__file__", None) == "<stdin>":  # a worker would look for such a file
            del sys.modules["__main__"].__file__
        context = multiprocessing.get_context(METHOD)
        self._line, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, theirs, dict(os.environ)), daemon=True)  # type: ignore[attr-defined]
        self.process.start()
        theirs.close()
        self._listener = threading.Thread(target=self._listen, args=(heard,), daemon=True)
        self._listener.start()

    @property
    def ready(self) -> bool:
        """Whether it can be given a task."""
        return self.key is None and not self.asked and self.process.is_alive()

    def tell(self, message: bytes) -> None:
        with suppress(OSError):  # it is gone, as its listener will find
            self._line.send_bytes(message)

    def dismiss(self) -> None:
        """Ask it to end: at once, or after its task if that takes no notice of SIGTERM."""
        self.asked = True
        self.process.terminate()
        self.tell(b"")

    def bury(self) -> Event | None:
        """Leave nothing behind of a worker that is gone; what that was to its task."""
        self.process.join(GRACE)
        self.process.kill()  # it closed its line, and lives on for nobody
        self.process.join()
        status = self.process.exitcode or 0
        self._listener.join()
        self._line.close()
        self.process.close()
        if self.key is None:
            return None
        if status in (TERMINATED, -signal.SIGTERM):
            return Event(self.key, "stopped")
        return Event(self.key, "crashed", _how_it_ended(status))

    def _listen(self, heard: "_Heard") -> None:
        """Pass on what it tells and, when all of that has been read, that it is gone."""
        with suppress(EOFError, OSError, MemoryError):
            while wait([self._line, self.process.sentinel]) and self._line.poll():
                heard.put((self, _read(self._line.recv_bytes())))
        heard.put((self, None))


_Heard = SimpleQueue[tuple[_Worker, Event | None]]  # None: it is gone


def _read(message: bytes) -> Event:
    key, kind, data = pickle.loads(message)  # noqa: S301  from a process of ours
    try:
        return Event(key, kind, pickle.loads(data))  # noqa: S301
    except Exception as error:  # noqa: BLE001  loading runs code of any type, and the type may be known in the worker only
        return Event(key, kind if kind == "said" else "raised", RuntimeError(f"it cannot be read: {_text(error)}"))


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"its process ended with status {status}"
    name = {int(number): number.name for number in signal.Signals}.get(-status, f"signal {-status}")
    return f"its process was killed by {name}" + (", perhaps because memory ran out" if name == "SIGKILL" else "")


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _open_server(preload: Sequence[str]) -> None:
    """Start the server that workers are forked from, unless it is running.

    It inherits where modules are found, which Python 3.11 does not tell it, and deafness to the signals of a
    group, which are this process's to obey: without the server, living workers look like dead ones.
    """
    if METHOD != "forkserver":
        return
    forkserver.set_forkserver_preload(["__main__", __name__, *preload])
    resource_tracker.ensure_running()  # by itself, since it unblocks the signals
    path, mask = os.environ.get("PYTHONPATH"), signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        os.environ |= {} if path is None else {"PYTHONPATH": path}
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _serve(work: Work, line: Connection, variables: dict[str, str]) -> None:
    """What a worker does: one task after another, until it is dismissed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    if sys.platform != "win32":
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(variables)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # no line comes late, or is lost by a crash
    sender = ThreadPoolExecutor(1)  # SIGTERM may raise anywhere in this thread, and must cut no message short

    def tell(key: int, kind: str, data: bytes) -> None:
        sender.submit(line.send_bytes, pickle.dumps((key, kind, data))).result()

    with suppress(EOFError, OSError):  # the parent is gone
        while message := line.recv_bytes():  # an empty one is a dismissal
            tell(*_do(work, message, tell))


def _do(work: Work, message: bytes, tell: Callable[[int, str, bytes], None]) -> tuple[int, str, bytes]:
    """Do a task; its key, how it ended, and the result or the exception.

    Pickled by pickle itself: torch makes multiprocessing's pass tensors by memory that is gone with the worker.
    """
    key, folder, task = pickle.loads(message)  # noqa: S301  from the parent
    try:
        os.chdir(folder)
        result = work(pickle.loads(task), lambda said: tell(key, "said", pickle.dumps(said)))  # noqa: S301
        return key, "done", pickle.dumps(result)
    except KeyboardInterrupt:
        sys.exit(TERMINATED)
    except Exception as error:  # noqa: BLE001  whatever it is, the worker lives on
        return key, "raised", _portable(error)


def _portable(error: Exception) -> bytes:
    """The exception, pickled with a note of where it was raised; a substitute where that cannot be loaded again."""
    note = "in a worker: " + "".join(traceback.format_exception(error)).rstrip()
    error.add_note(note)
    try:
        data = pickle.dumps(error)
        pickle.loads(data)  # noqa: S301  where many fail: it calls their __init__ with what they gave to Exception's
    except Exception:  # noqa: BLE001  of any kind
        substitute = RuntimeError(_text(error))
        substitute.add_note(note)
        return pickle.dumps(substitute)
    return data


def _leave(_signal: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(TERMINATED)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
