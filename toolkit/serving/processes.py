"""One service in several processes: the parent that starts them, and starts them again, and what they tell each other.

The process that reads the settings and opens the socket becomes the parent, which imports nothing of
what serves. Each child runs the same script with the same settings on the same socket. They share a
folder that goes when the parent does:

    look                what a process leaves that was asked to look at the registry: all look
    process-1.json      how process 1 is, written every second, removed when it has died
    counter_1.db        what it has counted, and so on for other kinds of figures; they stay, for the
                        process that is started in its place counts on
"""

import json
import logging
import os
import select
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

from toolkit.errors import SettingsError, one_line

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "TOOLKIT_SERVE_PROCESS"  # tells a child its place; none of the settings, which begin with SERVE_
TELL_SECONDS = 1.0  # between two words of a process to the others
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds until a process that died is started again; they double
STEADY_SECONDS = 60.0  # a process that lived so long begins with the first pause again
ATTEMPTS = 3  # starts of each process that may fail in a row before the service gives up
GRACE_SECONDS = 15.0  # to end after the last answer: two threads that are waited for, and the monitor's last writes
IMPATIENT = 3  # Ctrl-C so often ends it at once
LEAVING = (signal.SIGTERM, signal.SIGINT)

State = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """What a child is told by its parent.

    Parameters
    ----------
    index, of
        Which of how many processes, from 1.
    parent
        The parent's process number.
    listener, lifeline
        File descriptors: the listening socket, and a pipe that ends when the parent does.
    folder
        What the processes share.
    began
        When the service began, in seconds since 1970.
    """

    index: int
    of: int
    parent: int
    listener: int
    lifeline: int
    folder: str
    began: float

    @classmethod
    def given(cls, environ: MutableMapping[str, str] = os.environ) -> "Place | None":
        """The place of this process; None when nobody gave it one. The variable is taken away.

        Raises
        ------
        SettingsError
            The variable is there, but not from this process's parent.

        Examples
        --------
        >>> Place.given({}) is None
        True
        >>> Place.given({"TOOLKIT_SERVE_PROCESS": "2"})
        Traceback (most recent call last):
            ...
        toolkit.errors.SettingsError: TOOLKIT_SERVE_PROCESS is for the processes that a running service starts: unset it
        """
        text = environ.pop(VARIABLE, None)
        if text is None:
            return None
        with suppress(ValueError, TypeError):
            place = cls(**json.loads(text))
            if place.parent == os.getppid():
                return place
        raise SettingsError(f"{VARIABLE} is for the processes that a running service starts: unset it")

    @property
    def described(self) -> dict[str, int]:
        """As ``/health`` shows it."""
        return {"index": self.index, "of": self.of, "pid": os.getpid()}

    @contextmanager
    def taken(self) -> Iterator[socket.socket]:
        """The listening socket, for as long as there is a parent: when it is gone, this process gets a SIGTERM."""
        threading.Thread(target=self._leave_with_parent, name="lifeline", daemon=True).start()
        try:
            with Fair(fileno=self.listener) as listener:
                yield listener
        finally:
            if os.getppid() != self.parent:  # which would have removed it
                shutil.rmtree(self.folder, ignore_errors=True)

    def _leave_with_parent(self) -> None:
        os.read(self.lifeline, 1)  # nothing is ever written: it returns at the parent's end, whatever that was
        os.kill(os.getpid(), signal.SIGTERM)


class Fair(socket.socket):
    """A listening socket that gives one connection at a time, and then says that there is none.

    asyncio would take all that wait, up to two thousand: of 64 clients that connected at once one
    process got 64 and the other none. Now it turns to other work after each, and the system to it again
    while any are waiting, unless another process was faster.
    """

    _taken = False

    def accept(self) -> "tuple[socket.socket, Any]":
        """A connection; BlockingIOError each second time."""
        self._taken = not self._taken
        if not self._taken:
            raise BlockingIOError
        try:
            return super().accept()
        except OSError:
            self._taken = False
            raise


class Fellows:
    """What the processes of one service tell each other, by files in their folder.

    Parameters
    ----------
    folder
        What they share.
    index, of
        Which of how many this one is.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     first, second = (Fellows(Path(folder), index, 2) for index in (1, 2))
    ...     second.tell({"waiting": 3})
    ...     first.states({"waiting": 1})
    [{'waiting': 1}, {'waiting': 3}]
    """

    def __init__(self, folder: Path, index: int, of: int) -> None:
        self.of = of
        self._folder = folder
        self._index = index
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, state: Callable[[], State], look: Callable[[], object]) -> None:
        """Begin to tell how this process is, and to listen.

        Parameters
        ----------
        state
            Gives what the others are told, as JSON knows it.
        look
            Called in a thread of its own when another process was asked to look at the registry.
        """
        words = state, look, self.called()
        self._thread = threading.Thread(target=self._run, args=words, name="fellows", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Be silent."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(TELL_SECONDS)

    def tell(self, state: State) -> None:
        """Let the others know how this process is; on a full disk they go on with what they know."""
        _write(_said(self._folder, self._index), json.dumps(state))

    def states(self, own: State) -> list[State]:
        """How all living processes are: this one now, the others a second ago at most."""
        found = [own]
        for index in range(1, self.of + 1):
            if index != self._index:
                with suppress(OSError, ValueError):
                    found.append(json.loads(_said(self._folder, index).read_bytes()))
        return found

    def unready(self) -> int:
        """How many of the other processes do not answer with a model, though they take connections or are to begin.

        One that has died takes no connections; the others do without it.
        """
        told = self.states({"model": True})
        without = sum(not state["model"] for state in told)
        mark = self._folder / "complete"
        if not without and len(told) == self.of and not mark.exists():
            with suppress(OSError):
                mark.touch()
        return without if mark.exists() else without + self.of - len(told)

    def call(self) -> None:
        """Have all others look at the registry."""
        _write(self._folder / "look", f"{self._index} {time.time_ns()}")

    def called(self) -> str:
        """The last call, which differs from the one before; empty as long as there is none."""
        try:
            return (self._folder / "look").read_text()
        except OSError:
            return ""

    def _run(self, state: Callable[[], State], look: Callable[[], object], heard: str) -> None:
        while True:
            try:
                self.tell(state())
            except Exception as error:  # noqa: BLE001  the others go on with what they know
                logger.warning("the other processes cannot be told how this one is: %s", one_line(error))
            call = self.called()
            if call != heard and call.split()[0] != str(self._index):
                threading.Thread(target=look, name="look", daemon=True).start()
            heard = call
            if self._stopping.wait(TELL_SECONDS):
                return


def _said(folder: Path, index: int) -> Path:
    return folder / f"process-{index}.json"


def _write(path: Path, text: str) -> None:
    """All at once, as far as a reader can tell."""
    fresh = path.with_suffix(f".{os.getpid()}.new")
    with suppress(OSError):
        fresh.write_text(text)
        fresh.replace(path)


def called(status: int) -> str:
    """How a process ended.

    >>> called(-11), called(1)
    ('SIGSEGV', 'status 1')
    """
    return signal.Signals(-status).name if status < 0 else f"status {status}"


# The parent


def supervise(command: Sequence[str], of: int, listener: socket.socket, seconds: float) -> NoReturn:
    """Become the parent of a service: this process goes on as a small one, and keeps its number and its socket.

    Parameters
    ----------
    command
        What a child runs.
    of
        How many children.
    listener
        Bound and listening.
    seconds
        How long a child may take to finish what was accepted.
    """
    if sys.platform == "win32":
        raise SettingsError("--processes must be 1 on Windows, where a process inherits no socket")
    signal.pthread_sigmask(signal.SIG_BLOCK, LEAVING)  # what comes now is taken up by what this becomes
    listener.set_inheritable(True)
    words = [sys.executable, "-P", "-m", __name__, str(of), str(listener.fileno()), str(seconds), *command]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.execve(sys.executable, words, os.environ | {"PYTHONPATH": path})  # noqa: S606  it is meant to be no shell


@dataclass
class Child:
    """One of the processes, whichever it is by now."""

    index: int
    process: "subprocess.Popen[bytes] | None" = None
    starts: float = 0.0  # when it was or will be started, on the monotonic clock
    pause: float = FIRST_PAUSE / 2  # seconds before it was started, had it died
    failures: int = 0  # starts in a row that ended before it served


class Crew:
    """Children that are started, started again when they die, and ended together.

    A child that dies is started again after a pause, which doubles from one second to a minute
    while it goes on dying. When each has died ``ATTEMPTS`` times in a row before it served, the
    service ends with status 1.

    Parameters
    ----------
    command
        What a child runs. It finds its place in a variable.
    of
        How many.
    listener
        The socket that all listen on.
    seconds
        How long children may take to end before they are killed.
    folder
        What they share.
    """

    def __init__(self, command: Sequence[str], of: int, listener: socket.socket, seconds: float, folder: Path) -> None:
        self._command = list(command)
        self._children = [Child(index) for index in range(1, of + 1)]
        self._listener = listener
        self._seconds = seconds
        self._folder = folder
        self._began = time.time()
        self._signals = 0  # that said to end
        self._deadline: float | None = None  # on the monotonic clock; None while the service goes on
        self._status = 0
        self._lifeline = os.pipe()
        self._ear, mouth = socket.socketpair()
        for end in (self._ear, mouth):
            end.setblocking(False)
        self._mouth = mouth  # each signal is written there as a byte, at whatever moment it comes
        signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        for number in (*LEAVING, signal.SIGCHLD):
            signal.signal(number, _ignore)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, LEAVING)

    def run(self) -> int:
        """Until the service was told to end and all children have; gives the exit status."""
        while self._deadline is None or any(child.process for child in self._children):
            for child in self._children:
                if child.process is None and self._deadline is None and child.starts <= time.monotonic():
                    self._start(child)
            for number in self._heard():
                if number in LEAVING:
                    self._pass_on(number)
            for child in self._children:
                if child.process is not None and child.process.poll() is not None:
                    self._bury(child, child.process.returncode)
            self._kill_the_late()
        return self._status

    def _start(self, child: Child) -> None:
        place = Place(
            child.index,
            len(self._children),
            os.getpid(),
            self._listener.fileno(),
            self._lifeline[0],
            str(self._folder),
            self._began,
        )
        child.starts = time.monotonic()
        child.process = subprocess.Popen(
            self._command,
            env=os.environ | {VARIABLE: json.dumps(asdict(place))},
            stdin=subprocess.DEVNULL,
            pass_fds=(place.listener, place.lifeline),
            process_group=0,  # Ctrl-C at a terminal is for the parent, which passes it on
        )

    def _heard(self) -> list[int]:
        """Wait for signals, a child's death among them, or until something is due."""
        now = time.monotonic()
        if self._deadline is not None:
            seconds = self._deadline - now
        else:
            waits = [child.starts - now for child in self._children if child.process is None]
            seconds = min([LONGEST_PAUSE, *waits])
        if not select.select([self._ear], [], [], max(0.0, seconds))[0]:
            return []
        return list(self._ear.recv(4096))

    def _pass_on(self, number: int) -> None:
        """Tell all children to end; by SIGTERM, which also ends one whose imports are under way without a traceback."""
        self._signals += 1
        if number == signal.SIGINT and self._signals >= IMPATIENT:
            self._deadline = time.monotonic()
        self._leave()

    def _leave(self) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + self._seconds
            self._listener.close()  # so that nobody listens any more once the children do not
        for child in self._children:
            if child.process is not None:
                child.process.terminate()

    def _bury(self, child: Child, status: int) -> None:
        """Note how a child ended, and when another one takes its place."""
        number = child.process.pid if child.process else 0
        child.process = None
        said = _said(self._folder, child.index)
        served = said.exists()
        said.unlink(missing_ok=True)
        if self._deadline is not None:
            if status not in (0, -signal.SIGTERM, 128 + signal.SIGTERM):  # the latter two had not begun to serve
                self._status = 1
                _say("error", f"process {child.index} (pid {number}) ended with {called(status)}")
            return
        now = time.monotonic()
        steady = now - child.starts >= STEADY_SECONDS
        child.failures = 0 if served else child.failures + 1
        child.pause = FIRST_PAUSE if steady else min(2 * child.pause, LONGEST_PAUSE)
        child.starts = now + child.pause
        what = f"process {child.index} (pid {number}) ended with {called(status)}"
        if all(other.failures >= ATTEMPTS for other in self._children):
            _say("error", f"{what}; each was started {ATTEMPTS} times and none came to serve, so the service ends")
            self._status = 1
            self._leave()
        else:
            _say("error", f"{what}; it is started again in {child.pause:g} s")

    def _kill_the_late(self) -> None:
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        for child in self._children:
            if child.process is not None:
                _say("error", f"process {child.index} (pid {child.process.pid}) has not ended in time and is killed")
                child.process.kill()
                child.process.wait()


def _ignore(_number: int, _frame: object) -> None:
    """What comes is read from the wake-up socket; without a handler nothing would be written there."""


def _say(level: str, text: str) -> None:
    """A line as the service's log has them; to import what writes those would import all that serves."""
    now = datetime.now(UTC)
    facts = {"time": now.isoformat(timespec="milliseconds"), "level": level, "message": text}
    line = f"{now.astimezone():%H:%M:%S} {level}: {text}" if sys.stderr.isatty() else json.dumps(facts)
    with suppress(OSError):
        sys.stderr.write(f"{line}\n")


def main() -> int:
    """The parent."""
    of, listener, seconds, *command = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="serve-", ignore_cleanup_errors=True) as folder:
        held = socket.socket(fileno=int(listener))
        return Crew(command, int(of), held, float(seconds) + GRACE_SECONDS, Path(folder)).run()


if __name__ == "__main__":
    sys.exit(main())
