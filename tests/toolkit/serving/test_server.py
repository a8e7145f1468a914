"""The socket, the way a server leaves, and what is no HTTP at all: on real sockets."""

import asyncio
import json
import signal
import socket
import threading

import pytest
from fastapi import FastAPI

from toolkit.errors import SettingsError
from toolkit.serving.server import Server, listen


@pytest.fixture(scope="module")
def port():
    """The port of a running server whose one address answers without reading its body."""
    app = FastAPI()

    @app.get("/")
    async def home() -> str:
        return "here"

    listener = listen("127.0.0.1", 0)
    server = Server(app, lambda: None, drain_seconds=0, finish_seconds=1)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.handle_exit(signal.SIGTERM, None)
    thread.join(30)
    assert not thread.is_alive()


def talk(port, *pieces):
    """Send bytes as they are, and return all that comes back until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        for piece in pieces:
            connection.sendall(piece)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # somebody speaks TLS
        b"GET / HTTP/3.0 extra\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: abc\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"GET / HTTP/1.1\r\nHost: a\r\nBad Header: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # HTTP/1.1 asks for a host
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Large: " + b"x" * 70_000,  # and no end is in sight
    ],
)
def test_what_is_no_http_is_answered_with_a_problem(port, request_bytes):
    head, _, body = talk(port, request_bytes).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    document = json.loads(body)
    assert lines[0] == "HTTP/1.1 400 Bad Request"
    assert headers["content-type"] == "application/problem+json"
    assert headers["content-length"] == str(len(body))
    assert headers["connection"] == "close"
    assert set(document) == {"type", "title", "status", "detail", "request_id"}
    assert (document["status"], document["request_id"]) == (400, headers["x-request-id"])


@pytest.mark.parametrize("pause", [True, False])  # the server answers the head before the rest arrives, or may not
def test_a_body_that_breaks_gets_one_answer_and_leaves_no_traceback(port, caplog, pause):
    head = b"POST /nowhere HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    broken = b"not a length\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head if pause else head + broken)
        answer = connection.recv(65536)
        if pause:
            connection.sendall(broken)
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 404" if pause else (b"HTTP/1.1 404", b"HTTP/1.1 400"))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert talk(port, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").endswith(b'"here"')
    assert [record for record in caplog.records if record.exc_info] == []


# The socket


def test_a_port_in_use_an_address_of_others_and_a_name_of_nobody_are_one_sentence():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1 port {port}: .*in use; choose another"):
            listen("127.0.0.1", port)
    listen("127.0.0.1", port).close()  # free again at once
    with pytest.raises(SettingsError, match=r"cannot listen on 192\.0\.2\.1 port 0: "):
        listen("192.0.2.1", 0)
    for name in ("no.such.host.invalid", "a" * 300, "\ud800"):
        with pytest.raises(SettingsError, match="cannot listen on "):
            listen(name, 0)


# The way out


class Left:
    def __init__(self):
        self.times = 0

    def __call__(self):
        self.times += 1


def ticks(server, count=3):
    return [asyncio.run(server.on_tick(counter)) for counter in range(1, count + 1)]


def test_the_first_signal_drains_the_second_ends_the_draining_and_the_third_everything():
    left = Left()
    server = Server(FastAPI(), left, drain_seconds=1000, finish_seconds=1)
    assert ticks(server) == [False] * 3
    server.handle_exit(signal.SIGTERM, None)
    assert (left.times, ticks(server)) == (1, [False] * 3)
    server.handle_exit(signal.SIGTERM, None)
    assert (left.times, server.force_exit, ticks(server)) == (1, False, [True] * 3)
    server.handle_exit(signal.SIGTERM, None)
    assert server.force_exit is False  # an impatient orchestrator cuts off no answer
    server.handle_exit(signal.SIGINT, None)
    assert server.force_exit is True


def test_without_draining_the_first_signal_ends():
    server = Server(FastAPI(), lambda: None, drain_seconds=0, finish_seconds=1)
    server.handle_exit(signal.SIGINT, None)
    assert ticks(server) == [True] * 3
