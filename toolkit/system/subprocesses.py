"""Child processes: start, exchange of JSON lines, stop, and description of their end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of the project with this Python."""
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of this process with more variables, and with the project on Python's path."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **(variables or {})}


def start(command: Sequence[str], environment: Mapping[str, str], **options: Any) -> "subprocess.Popen[bytes]":
    """Start a child in a session of its own, so that Ctrl-C at a terminal reaches the parent alone.

    Its standard input is a pipe that ends when the parent does: see ``on_parent_exit``. An OSError is raised if the
    system cannot start it.
    """
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True, **options)


def stop(children: "Collection[subprocess.Popen[bytes]]", grace: float) -> None:
    """End children by SIGTERM, and by SIGKILL those that still run after ``grace`` seconds for all together.

    An exception, such as a second Ctrl-C, ends the grace early.
    """
    deadline = time.monotonic() + grace
    try:
        for child in children:
            child.terminate()
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for child in children:
            child.kill()
            child.wait()


def exit_reason(status: int) -> str:
    """The end of a process with this status, or killed by the signal of that negative number, in words.

    >>> exit_reason(3), exit_reason(-11)
    ('ended with status 3', 'was killed by SIGSEGV')
    >>> exit_reason(-9)
    'was killed by SIGKILL, perhaps because memory ran out'
    """
    if status >= 0:
        return f"ended with status {status}"
    name = {int(number): number.name for number in signal.Signals}.get(-status, f"signal {-status}")
    return f"was killed by {name}" + (", perhaps because memory ran out" if name == "SIGKILL" else "")


class Child:
    """A module of the project that runs as by ``python -m`` in a process of its own; ``Parent`` is the other end.

    ``variables`` are added to its environment. An OSError is raised if the system cannot start it.
    """

    def __init__(
        self, module: str, variables: Mapping[str, str] | None = None, *, discard_stderr: bool = False
    ) -> None:
        errors = subprocess.DEVNULL if discard_stderr else None
        self.process = start(
            module_command(module), module_environment(variables), stdout=subprocess.PIPE, stderr=errors
        )

    def send(self, message: Any) -> None:
        """Send a JSON value; does nothing once the child has ended."""
        line = _line(message)
        if self.process.stdin:
            with suppress(OSError):
                self.process.stdin.write(line)
                self.process.stdin.flush()

    def messages(self) -> Iterator[Any]:
        """The child's messages until its end, without an incomplete last line."""
        return _messages(self.process.stdout or ())

    def close(self, grace: float = 0.0) -> int:
        """Wait for the child's end, kill it after a grace in seconds, and return its exit status."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(grace)
        self.process.kill()
        status = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # with bytes that the child did not read
                if pipe:
                    pipe.close()
        return status


class Parent:
    """The parent of this process, which started it as a ``Child``. This process ends as soon as the parent does.

    Standard output carries messages alone: prints go to standard error from now on. To be created before a signal
    handler that raises is set.
    """

    def __init__(self) -> None:
        self._output = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        if hasattr(os, "register_at_fork"):  # a grandchild must not keep the pipe open
            os.register_at_fork(after_in_child=self._output.close)
        self._sender = ThreadPoolExecutor(1)  # a signal handler that raises in the main thread interrupts no message
        self._sender.submit(bool).result()  # starts its thread before such a handler can interrupt that
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, message: Any) -> None:
        """Send a JSON value, from any thread."""
        self._sender.submit(self._write, _line(message)).result()

    def receive(self) -> Any:
        """Wait for the next message."""
        return self._inbox.get()

    def _listen(self) -> None:
        with open(0, "rb", closefd=False) as lines:
            for message in _messages(lines):
                self._inbox.put(message)
        os._exit(1)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._output.write(rest) :]


def on_parent_exit(action: Callable[[], object]) -> None:
    """Call an action in a thread once the process that ``start``ed this one has ended."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        action()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _messages(lines: Iterable[bytes]) -> Iterator[Any]:
    return (json.loads(line) for line in lines if line.endswith(b"\n"))


def _line(message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"
