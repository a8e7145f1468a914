"""A supervisor and its workers as real processes that serve next to nothing, killed and ended in every way."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from support import MAX_WAIT_S, wait_until
from support.servers import free_port
from toolkit.errors import SettingsError
from toolkit.serving.workers import MAX_ATTEMPTS, VARIABLE, OneAtATimeListener, WorkerGroup, WorkerSpec

# What a real worker does around its application.
WORKER = """
import os, sys
from pathlib import Path
from fastapi import FastAPI
from toolkit.serving.http.server import Server, ServerConfig
from toolkit.serving.workers import WorkerGroup, WorkerSpec

spec = WorkerSpec.take()
assert spec and WorkerSpec.take() is None
app = FastAPI()
app.get("/")(lambda: {**spec.summary, "folder": spec.folder, "session": os.getpgid(0) == os.getpid()})
WorkerGroup(Path(spec.folder), spec.index, spec.count).start(dict, print)
with spec.listening() as listener:
    Server(app, lambda: None, ServerConfig(0, 1)).run(sockets=[listener])
"""
STUBBORN = """
import signal, time
from pathlib import Path
from toolkit.serving.workers import WorkerSpec
signal.signal(signal.SIGTERM, signal.SIG_IGN)
spec = WorkerSpec.take()
Path(spec.folder, f"worker-{spec.index}.json").touch()
time.sleep(600)
"""
START = """
import sys
from toolkit.serving.http.server import listen
from toolkit.serving.workers import exec_supervisor

exec_supervisor([sys.executable, "-c", sys.argv[1]], 2, listen("127.0.0.1", int(sys.argv[2])), 1)
"""


class Service:
    """What ``exec_supervisor`` turns a process into, with two workers."""

    def __init__(self, folder, worker, port):
        self.errors, self.temporary = folder / "stderr", folder / "temporary"
        self.temporary.mkdir()
        self.port = port
        with self.errors.open("wb") as errors:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", START, worker, str(port)],
                stderr=errors,
                cwd=folder,
                env={**os.environ, "TMPDIR": str(self.temporary)},
            )
        self.process = psutil.Process(self.popen.pid)

    @property
    def lines(self):
        return [json.loads(line) for line in self.errors.read_text().splitlines()]

    def workers(self):
        return self.process.children()

    def ask(self):
        """What one of the workers answers on a connection of its own."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 10) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                data = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError:
            return None
        return json.loads(data.partition(b"\r\n\r\n")[2]) if data else None

    def wait_for_both(self):
        found = {}

        def both():
            answer = self.ask()
            if answer:
                found[answer["index"]] = answer
            return set(found) == {1, 2}

        wait_until(both)
        return found


@contextmanager
def serving(folder, worker=WORKER):
    started = Service(folder, worker, free_port())
    try:
        yield started
    finally:
        if started.popen.poll() is None:
            for process in (started.process, *started.workers()):
                process.kill()
            started.popen.wait(MAX_WAIT_S)


def test_killed_workers_are_replaced_and_all_end_together(tmp_path):
    with serving(tmp_path) as service:
        found = service.wait_for_both()
        assert {one["of"] for one in found.values()} == {2}
        assert all(one["session"] for one in found.values())  # Ctrl-C at a terminal does not reach them
        assert {child.pid for child in service.workers()} == {one["pid"] for one in found.values()}
        folder = Path(found[1]["folder"])
        assert folder.parent == service.temporary
        wait_until(lambda: all((folder / f"worker-{index}.json").exists() for index in (1, 2)))

        os.kill(found[1]["pid"], signal.SIGKILL)
        meanwhile = [service.ask() for _ in range(5)]
        fresh = wait_until(lambda: (answer := service.ask()) and answer["index"] == 1 and answer)
        assert fresh["pid"] != found[1]["pid"]
        assert {answer["pid"] for answer in meanwhile if answer} <= {found[2]["pid"], fresh["pid"]}
        assert service.lines == [
            {"time": service.lines[0]["time"], "level": "error",
             "message": f"worker 1 (pid {found[1]['pid']}) was killed by SIGKILL, perhaps because memory ran out; it is"
             " restarted in 1 s"}
        ]  # fmt: skip

        service.popen.send_signal(signal.SIGTERM)
        assert service.popen.wait(MAX_WAIT_S) == 0
        assert not any(psutil.pid_exists(pid) for pid in (fresh["pid"], found[2]["pid"]))
        assert list(service.temporary.iterdir()) == []
        assert service.ask() is None


def test_workers_end_when_their_supervisor_is_killed(tmp_path):
    with serving(tmp_path) as service:
        workers = [psutil.Process(one["pid"]) for one in service.wait_for_both().values()]
        service.popen.kill()
        service.popen.wait(MAX_WAIT_S)
        _, alive = psutil.wait_procs(workers, MAX_WAIT_S)
        assert not alive
        assert list(service.temporary.iterdir()) == []
        assert service.ask() is None
        assert "Traceback" not in service.errors.read_text()


def test_ctrl_c_before_any_worker_serves_ends_without_a_traceback(tmp_path):
    with serving(tmp_path) as service:
        wait_until(service.workers)
        service.popen.send_signal(signal.SIGINT)
        assert service.popen.wait(MAX_WAIT_S) == 0
        assert service.errors.read_text() == ""
        assert list(service.temporary.iterdir()) == []


def test_workers_that_never_come_to_serve_are_given_up(tmp_path):
    with serving(tmp_path, "raise SystemExit(3)") as service:
        assert service.popen.wait(MAX_WAIT_S) == 1
    *before, last = [line["message"] for line in service.lines]
    assert re.fullmatch(
        rf"worker [12] \(pid \d+\) ended with status 3; each was started {MAX_ATTEMPTS} times and none served, "
        "so the service ends",
        last,
    )
    pauses = [re.findall(r"worker (\d) .* restarted in (\d+) s", line)[0] for line in before]
    longer = {pause for pause in pauses if int(pause[1]) >= 4}  # of one that was ahead of the other
    assert set(pauses) - longer == {("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")}
    assert list(service.temporary.iterdir()) == []


def test_a_worker_that_does_not_end_is_killed(tmp_path):
    with serving(tmp_path, STUBBORN) as service:
        wait_until(lambda: len(list(service.temporary.glob("*/worker-?.json"))) == 2)
        for _ in range(3):
            service.popen.send_signal(signal.SIGINT)  # the third one waits no longer
            time.sleep(0.2)
        assert service.popen.wait(MAX_WAIT_S) == 1
        assert [line["message"].split(")")[1] for line in service.lines] == [
            " did not end in time and is killed"
        ] * 2 + [" was killed by SIGKILL, perhaps because memory ran out"] * 2
        assert list(service.temporary.iterdir()) == []


# The parts


def spec(folder, supervisor):
    return WorkerSpec(1, 2, supervisor, listener=3, folder=str(folder), started=1.7e9)


def test_a_spec_is_taken_once_and_from_the_supervisor_alone(tmp_path):
    mine = spec(tmp_path, os.getppid())
    environ = {VARIABLE: json.dumps(asdict(mine))}
    assert WorkerSpec.take(environ) == mine
    assert WorkerSpec.take(environ) is None
    for wrong in ("", "1", "[]", "{}", json.dumps(asdict(spec(tmp_path, os.getpid())))):
        with pytest.raises(SettingsError, match=f"^{VARIABLE} is for the workers that a running service starts"):
            WorkerSpec.take({VARIABLE: wrong})


def test_a_request_to_poll_reaches_all_others_once(tmp_path):
    group = [WorkerGroup(tmp_path, index, 3) for index in (1, 2, 3)]
    polled = [threading.Event() for _ in group]
    for index, (one, event) in enumerate(zip(group, polled, strict=True)):
        one.start(lambda index=index: {"index": index + 1}, event.set)
    wait_until(lambda: len(group[1].states({"index": 2})) == 3)
    assert group[1].states({"index": 2}) == [{"index": 2}, {"index": 1}, {"index": 3}]
    group[1].request_poll()
    assert polled[0].wait(MAX_WAIT_S)
    assert polled[2].wait(MAX_WAIT_S)
    assert not polled[1].is_set()
    for one in group:
        one.stop()
    assert {path.name for path in tmp_path.iterdir()} == {"poll", *(f"worker-{index}.json" for index in (1, 2, 3))}


def test_requests_are_followed_when_the_state_cannot_be_written(tmp_path):
    def fail():
        raise OSError("no such disk")

    one, polled = WorkerGroup(tmp_path, 1, 2), threading.Event()
    one.start(fail, polled.set)
    WorkerGroup(tmp_path, 2, 2).request_poll()
    assert polled.wait(MAX_WAIT_S)
    one.stop()
    assert one.states({}) == [{}]
    (tmp_path / "worker-2.json").write_text("{")
    assert one.states({}) == [{}]


def test_a_listener_gives_one_connection_at_a_time():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        OneAtATimeListener(fileno=os.dup(server.fileno())) as listener,
    ):
        listener.setblocking(False)
        clients = [socket.create_connection(server.getsockname()) for _ in range(3)]
        for _ in clients:
            listener.accept()[0].close()
            with pytest.raises(BlockingIOError):
                listener.accept()
        for _ in range(2):
            with pytest.raises(BlockingIOError):  # none waits
                listener.accept()
        for client in clients:
            client.close()


def test_a_service_is_ready_when_each_of_its_workers_is(tmp_path):
    first, second, third = (WorkerGroup(tmp_path, index, 3) for index in (1, 2, 3))
    assert first.n_not_ready() == 2  # the others have not begun
    second.publish({"model": None})
    assert first.n_not_ready() == 2
    second.publish({"model": ["colours", "1"]})
    third.publish({"model": None})  # it takes connections, and has nothing to answer with
    assert first.n_not_ready() == 1
    third.publish({"model": ["colours", "1"]})
    assert first.n_not_ready() == 0
    (tmp_path / "worker-3.json").unlink()  # it has died, so no request is sent to it
    first.publish({"model": ["colours", "1"]})
    assert (first.n_not_ready(), second.n_not_ready()) == (0, 0)
    third.publish({"model": None})
    assert (first.n_not_ready(), second.n_not_ready()) == (1, 1)


# glibc itself is asked how many arenas there are

ARENAS = """
import ctypes, os, sys, tempfile, threading
from toolkit.serving.workers import limit_malloc_arenas

limited = limit_malloc_arenas() if "limit" in sys.argv else None
libc = ctypes.CDLL(None)
libc.fopen.restype = libc.malloc.restype = ctypes.c_void_p
ready = threading.Barrier(9)

def allocate():
    libc.malloc(ctypes.c_size_t(1000))
    ready.wait(600)

threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
ready.wait(600)
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(limited, file.read().count(b"<heap nr="))
"""


def arenas(*arguments, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    command = [sys.executable, "-c", ARENAS, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=kept | environment).stdout.strip()


@pytest.mark.skipif(
    "glibc" not in os.confstr("CS_GNU_LIBC_VERSION") if hasattr(os, "confstr") else True, reason="glibc"
)
def test_threads_share_one_malloc_arena():
    assert int(arenas().split()[1]) > 1
    assert arenas("limit") == "True 1"
    limited, count = arenas("limit", MALLOC_ARENA_MAX="4").split()
    assert limited == "False"
    assert 1 < int(count) <= 4
