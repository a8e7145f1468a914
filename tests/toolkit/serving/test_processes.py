"""A parent and its children as real processes that serve next to nothing, killed and ended in every way."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from support import LONGEST_WAIT, ROOT
from toolkit.errors import SettingsError
from toolkit.serving.processes import ATTEMPTS, VARIABLE, Fair, Fellows, Place

# What a real child does around its application.
CHILD = """
import os, sys
from pathlib import Path
from fastapi import FastAPI
from toolkit.serving.processes import Fellows, Place
from toolkit.serving.server import Server, ServerConfig

place = Place.given()
assert place and Place.given() is None
app = FastAPI()
app.get("/")(lambda: {**place.described, "folder": place.folder, "session": os.getpgid(0) == os.getpid()})
fellows = Fellows(Path(place.folder), place.index, place.of)
fellows.start(dict, print)
with place.taken() as listener:
    Server(app, lambda: None, ServerConfig(0, 1)).run(sockets=[listener])
"""
STUBBORN = """
import signal, time
from pathlib import Path
from toolkit.serving.processes import Place
signal.signal(signal.SIGTERM, signal.SIG_IGN)
place = Place.given()
Path(place.folder, f"process-{place.index}.json").touch()
time.sleep(600)
"""
START = """
import sys
from toolkit.serving.processes import supervise
from toolkit.serving.server import listen

supervise([sys.executable, "-c", sys.argv[1]], 2, listen("127.0.0.1", int(sys.argv[2])), 1)
"""


class Parent:
    """What ``supervise`` turns a process into, with two children."""

    def __init__(self, folder: Path, child: str, port: int) -> None:
        self.errors, self.temporary = folder / "stderr", folder / "temporary"
        self.temporary.mkdir()
        self.port = port
        with self.errors.open("wb") as errors:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", START, child, str(port)],
                stderr=errors,
                cwd=folder,
                env={**os.environ, "TMPDIR": str(self.temporary), "PYTHONPATH": str(ROOT)},
            )
        self.process = psutil.Process(self.popen.pid)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.errors.read_text().splitlines()]

    def children(self) -> list[psutil.Process]:
        return self.process.children()

    def ask(self) -> dict[str, Any] | None:
        """What one of the children answers on a connection of its own."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 10) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                data = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError:
            return None
        return json.loads(data.partition(b"\r\n\r\n")[2]) if data else None

    def wait_for_both(self) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}

        def both() -> bool:
            answer = self.ask()
            if answer:
                found[answer["index"]] = answer
            return set(found) == {1, 2}

        wait_until(both)
        return found


@contextmanager
def parent(folder: Path, child: str = CHILD):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = Parent(folder, child, port)
    try:
        yield started
    finally:
        if started.popen.poll() is None:
            left = [started.process, *started.children()]
            for process in left:
                process.kill()
            started.popen.wait(LONGEST_WAIT)


def wait_until(condition: Callable[[], Any], seconds: float = LONGEST_WAIT) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return found


def test_children_that_are_killed_are_replaced_and_all_end_together(tmp_path):
    with parent(tmp_path) as crew:
        found = crew.wait_for_both()
        assert {one["of"] for one in found.values()} == {2}
        assert all(one["session"] for one in found.values())  # Ctrl-C at a terminal does not reach them
        assert {child.pid for child in crew.children()} == {one["pid"] for one in found.values()}
        folder = Path(found[1]["folder"])
        assert folder.parent == crew.temporary
        wait_until(lambda: all((folder / f"process-{index}.json").exists() for index in (1, 2)))

        os.kill(found[1]["pid"], signal.SIGKILL)
        assert all(answer["index"] == 2 for _ in range(5) if (answer := crew.ask()))
        fresh = wait_until(lambda: (answer := crew.ask()) and answer["index"] == 1 and answer)
        assert fresh["pid"] != found[1]["pid"]
        assert crew.lines == [
            {"time": crew.lines[0]["time"], "level": "error",
             "message": f"process 1 (pid {found[1]['pid']}) ended with SIGKILL; it is started again in 1 s"}
        ]  # fmt: skip

        crew.popen.send_signal(signal.SIGTERM)
        assert crew.popen.wait(LONGEST_WAIT) == 0
        assert not any(psutil.pid_exists(pid) for pid in (fresh["pid"], found[2]["pid"]))
        assert list(crew.temporary.iterdir()) == []
        assert crew.ask() is None


def test_children_go_when_their_parent_is_killed_and_leave_nothing(tmp_path):
    with parent(tmp_path) as crew:
        children = [psutil.Process(one["pid"]) for one in crew.wait_for_both().values()]
        crew.popen.kill()
        crew.popen.wait(LONGEST_WAIT)
        _, alive = psutil.wait_procs(children, LONGEST_WAIT)
        assert not alive
        assert list(crew.temporary.iterdir()) == []
        assert crew.ask() is None
        assert "Traceback" not in crew.errors.read_text()


def test_ctrl_c_before_anybody_serves_ends_without_a_traceback(tmp_path):
    with parent(tmp_path) as crew:
        wait_until(crew.children)
        crew.popen.send_signal(signal.SIGINT)
        assert crew.popen.wait(LONGEST_WAIT) == 0
        assert crew.errors.read_text() == ""
        assert list(crew.temporary.iterdir()) == []


def test_children_that_never_come_to_serve_are_given_up(tmp_path):
    with parent(tmp_path, "raise SystemExit(3)") as crew:
        assert crew.popen.wait(LONGEST_WAIT) == 1
    *before, last = [line["message"] for line in crew.lines]
    assert re.fullmatch(
        rf"process [12] \(pid \d+\) ended with status 3; each was started {ATTEMPTS} times and none came to serve, "
        "so the service ends",
        last,
    )
    pauses = [re.findall(r"process (\d) .* again in (\d) s", line)[0] for line in before]
    assert set(pauses) - {("1", "4"), ("2", "4")} == {("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")}
    assert list(crew.temporary.iterdir()) == []


def test_a_child_that_does_not_end_is_killed(tmp_path):
    with parent(tmp_path, STUBBORN) as crew:
        wait_until(lambda: len(list(crew.temporary.glob("*/process-?.json"))) == 2)
        for _ in range(3):
            crew.popen.send_signal(signal.SIGINT)  # the third one waits no longer
            time.sleep(0.2)
        assert crew.popen.wait(LONGEST_WAIT) == 1
        assert [line["message"].split(")")[1] for line in crew.lines] == [
            " has not ended in time and is killed"
        ] * 2 + [" ended with SIGKILL"] * 2
        assert list(crew.temporary.iterdir()) == []


# The parts


def place(folder: Path, **words: Any) -> Place:
    return Place(**{"index": 1, "of": 2, "parent": os.getppid(), "listener": 3, "lifeline": 4, "folder": str(folder)}
                 | {"began": 1.7e9} | words)  # fmt: skip


def test_a_place_is_taken_once_and_from_the_parent_alone(tmp_path):
    mine = place(tmp_path)
    environ = {VARIABLE: json.dumps(asdict(mine))}
    assert Place.given(environ) == mine
    assert Place.given(environ) is None
    for wrong in ("", "1", "[]", "{}", json.dumps(asdict(place(tmp_path, parent=os.getpid())))):
        with pytest.raises(SettingsError, match=f"^{VARIABLE} is for the processes that a running service starts"):
            Place.given({VARIABLE: wrong})


def test_a_call_reaches_all_others_once(tmp_path):
    fellows = [Fellows(tmp_path, index, 3) for index in (1, 2, 3)]
    looked = [threading.Event() for _ in fellows]
    for index, (one, event) in enumerate(zip(fellows, looked, strict=True)):
        one.start(lambda index=index: {"index": index + 1}, event.set)
    wait_until(lambda: len(fellows[1].states({"index": 2})) == 3)
    assert fellows[1].states({"index": 2}) == [{"index": 2}, {"index": 1}, {"index": 3}]
    fellows[1].call()
    assert looked[0].wait(LONGEST_WAIT)
    assert looked[2].wait(LONGEST_WAIT)
    assert not looked[1].is_set()
    for one in fellows:
        one.stop()
    assert {path.name for path in tmp_path.iterdir()} == {"look", *(f"process-{index}.json" for index in (1, 2, 3))}


def test_who_cannot_tell_how_it_is_still_listens(tmp_path):
    def fail() -> dict[str, Any]:
        raise OSError("no such disk")

    one, looked = Fellows(tmp_path, 1, 2), threading.Event()
    one.start(fail, looked.set)
    Fellows(tmp_path, 2, 2).call()
    assert looked.wait(LONGEST_WAIT)
    one.stop()
    assert one.states({}) == [{}]
    (tmp_path / "process-2.json").write_text("{")
    assert one.states({}) == [{}]


def test_a_fair_socket_gives_one_connection_at_a_time():
    with socket.create_server(("127.0.0.1", 0)) as server, Fair(fileno=os.dup(server.fileno())) as fair:
        fair.setblocking(False)
        clients = [socket.create_connection(server.getsockname()) for _ in range(3)]
        for _ in clients:
            fair.accept()[0].close()
            with pytest.raises(BlockingIOError):
                fair.accept()
        for _ in range(2):
            with pytest.raises(BlockingIOError):  # nobody waits
                fair.accept()
        for client in clients:
            client.close()


def test_a_service_is_ready_when_each_of_its_processes_is(tmp_path):
    first, second, third = (Fellows(tmp_path, index, 3) for index in (1, 2, 3))
    assert first.unready() == 2  # the others have not begun
    second.tell({"model": None})
    assert first.unready() == 2
    second.tell({"model": ["colours", "1"]})
    third.tell({"model": None})  # it takes connections, and has nothing to answer with
    assert first.unready() == 1
    third.tell({"model": ["colours", "1"]})
    assert first.unready() == 0
    (tmp_path / "process-3.json").unlink()  # it has died, so nobody is sent to it
    first.tell({"model": ["colours", "1"]})
    assert (first.unready(), second.unready()) == (0, 0)
    third.tell({"model": None})
    assert (first.unready(), second.unready()) == (1, 1)
