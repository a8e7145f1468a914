"""The HTTP server on real sockets: invalid HTTP, slow clients, limits and shutdown."""

import asyncio
import http.client
import itertools
import json
import resource
import signal
import socket
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from support import MAX_WAIT_S, wait_until
from support.app_server import app_server
from toolkit.errors import SettingsError
from toolkit.serving.http import server as server_module
from toolkit.serving.http.body_stream import Timeouts
from toolkit.serving.http.middleware import RequestRules, ServiceMiddleware
from toolkit.serving.http.server import (
    COALESCE_BYTES,
    RESERVED_FDS,
    BufferedWriteTransport,
    Server,
    ServerConfig,
    listen,
    stop_accepting,
)
from toolkit.serving.metrics import ServiceMetrics
from toolkit.serving.problems import handle

LARGE = 16 * 2**20  # bytes of an answer that no buffer of the system holds
LONG_TIMEOUTS = Timeouts(header=600.0, body=600.0, read=600.0)
SHORT_TIMEOUTS = Timeouts(header=6.0, body=8.0, read=6.0)


def make_app():
    app = FastAPI()

    @app.get("/")
    @app.post("/")
    async def home() -> str:
        return "here"

    @app.post("/length")
    async def length(request: Request) -> int:
        return len(await request.body())

    @app.post("/slow")
    async def slow(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    @app.post("/leave")
    async def leave() -> str:
        app.state.server.handle_exit(signal.SIGTERM, None)
        return "here"

    @app.get("/large")
    async def large() -> Response:
        return Response(bytes(LARGE))

    return app


@contextmanager
def serving(**words):
    """A running server, and its port."""
    metrics = ServiceMetrics()
    app = make_app()
    app.add_exception_handler(HTTPException, handle)
    words = {"drain_timeout": 0, "shutdown_timeout": 1, "timeouts": LONG_TIMEOUTS} | words
    rules = RequestRules(2**20, words["timeouts"])
    app.add_middleware(ServiceMiddleware, metrics=metrics, rules=rules)
    with app_server(app, ServerConfig(**words)) as (server, port):
        app.state.server = server
        yield server, port, metrics


@pytest.fixture(scope="module")
def port():
    with serving() as (_, port, _):
        yield port


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=MAX_WAIT_S)


def rest_of(connection):
    """All that comes back until the connection is closed."""
    answer = b""
    while piece := connection.recv(65536):
        answer += piece
    return answer


def talk(port, *pieces):
    """Send bytes as they are, and return all that comes back until the connection is closed."""
    with connect(port) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return rest_of(connection)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        b"GET / HTTP/3.0 extra\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: abc\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",  # a folded line with nothing before it
        b"GET / HTTP/1.1\r\nHost: a\r\nBad Header: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # HTTP/1.1 asks for a host
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Large: " + b"x" * 70_000,  # and no end is in sight
    ],
)
def test_invalid_http_is_answered_with_a_problem(port, request_bytes):
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
def test_a_broken_body_gets_one_response_and_no_traceback(port, caplog, pause):
    head = b"POST /nowhere HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    broken = b"not a length\r\n\r\n"
    with connect(port) as connection:
        connection.sendall(head if pause else head + broken)
        answer = connection.recv(65536)
        if pause:
            connection.sendall(broken)
        answer += rest_of(connection)
    assert answer.startswith(b"HTTP/1.1 404" if pause else (b"HTTP/1.1 404", b"HTTP/1.1 400"))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert talk(port, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").endswith(b'"here"')
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize("chunk", [b"-1\r\nabc", b"0x3\r\nabc", b"\r\nabc", b"3\nabc", b"3\r\nabc\n", b"3\r\nabcd"])
def test_an_ambiguous_chunk_size_smuggles_no_request(port, chunk):
    head = b"POST /length HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = talk(port, head + chunk + b"\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("target", [b"http://elsewhere/length?a=1", b"HTTP://a:80/length", b"https://u@[::1]:9/length"])
def test_an_absolute_target_is_its_path(port, target):
    head = b"POST " + target + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
    answer = talk(port, head + b"abc")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n3")
    for bare in (b"http://a", b"http://a?x=/length"):
        assert talk(port, b"GET " + bare + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").endswith(b'"here"')
    assert talk(port, b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 404")


# Slow clients


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"
SLOW_CLIENTS = {
    "nothing": [],
    "half a head": [b"GET / HTTP/1.1\r\nHo"],
    "a dripping head": itertools.chain([b"GET / HTTP/1.1\r\nX-Long: "], itertools.repeat(b"a")),
    "half a head after a request": [GET, b"GET / HT"],
    "half a body": [POST + b"abc"],
    "a dripping body": itertools.chain([POST.replace(b"100", b"1000")], itertools.repeat(b"a")),
    "a dripping unread body": itertools.chain(
        [POST.replace(b"/length", b"/").replace(b"100", b"1000")], itertools.repeat(b"a")
    ),
}
IN_TIME = [POST[:20], POST[20:60], POST[60:], *[b"a" * 20] * 5]


def outlast(port, pieces):
    """Send the pieces with pauses, and return what comes back until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=0.1) as connection:
        answer, pieces, end = b"", iter(pieces), time.monotonic() + MAX_WAIT_S
        while time.monotonic() < end:
            with suppress(BrokenPipeError, ConnectionResetError):  # what was answered before can still be read
                connection.sendall(next(pieces, b""))
            try:
                piece = connection.recv(65536)
            except TimeoutError:
                if answer.endswith(b"\r\n\r\n100"):
                    return answer
                continue
            except ConnectionResetError:
                return answer
            if not piece:
                return answer
            answer += piece
    raise AssertionError("the connection is still open")


@pytest.fixture(scope="module")
def endings():
    """What each slow client was answered until it was cut off, and what was counted."""
    with serving(timeouts=SHORT_TIMEOUTS) as (server, port, metrics), ThreadPoolExecutor(len(SLOW_CLIENTS)) as clients:
        with socket.socket() as reading_nothing, connect(port) as staying:
            reading_nothing.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reading_nothing.connect(("127.0.0.1", port))
            reading_nothing.sendall(GET.replace(b"/ ", b"/large "))
            staying.sendall(b"hello\r\n\r\n")
            talks = clients.map(lambda pieces: outlast(port, pieces), SLOW_CLIENTS.values())
            answers = dict(zip(SLOW_CLIENTS, talks, strict=True))
            wait_until(lambda: not server.server_state.connections and not server.server_state.tasks)
            answers["refused, and staying"] = staying.recv(65536)
            taken = 0
            with suppress(ConnectionResetError):
                while piece := reading_nothing.recv(2**20):
                    taken += len(piece)
        yield answers | {"reading nothing": taken}, metrics.summary()["requests"]


def test_a_silent_client_is_disconnected(endings):
    assert endings[0]["nothing"] == b""


@pytest.mark.parametrize("client", ["half a head", "a dripping head", "half a head after a request"])
def test_slow_headers_are_a_408(endings, client):
    *before, last = endings[0][client].split(b"HTTP/1.1 ")[1:]
    assert [one[:3] for one in before] == ([b"200"] if "after" in client else [])
    head, _, body = last.partition(b"\r\n\r\n")
    document = json.loads(body)
    assert head.startswith(b"408 Request Timeout")
    assert b"\r\nConnection: close" in head
    assert document["type"] == "/docs#problem-request-timeout"
    assert document["detail"] == "the headers of a request must arrive within 6 s"


@pytest.mark.parametrize("client", ["half a body", "a dripping body"])
def test_a_slow_body_is_a_408(endings, client):
    head, _, body = endings[0][client].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 Request Timeout")
    assert b"\r\nconnection: close" in head.lower()
    assert json.loads(body)["type"] == "/docs#problem-request-timeout"
    assert endings[1]["/length"]["408"] == 2


def test_an_unread_body_keeps_no_connection_open(endings):
    assert endings[0]["a dripping unread body"].startswith(b"HTTP/1.1 200 OK")


def test_an_unread_response_times_out(endings):
    assert 0 < endings[0]["reading nothing"] < LARGE


def test_a_refused_client_is_disconnected(endings):
    assert endings[0]["refused, and staying"].startswith(b"HTTP/1.1 400 Bad Request")


def test_a_slow_client_within_the_timeouts_is_served(port):
    assert outlast(port, IN_TIME).startswith(b"HTTP/1.1 200 OK")


def test_a_large_response_arrives_whole(port):
    answer = talk(port, GET.replace(b"/ ", b"/large ").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert len(answer.partition(b"\r\n\r\n")[2]) == LARGE


def test_connections_beyond_the_limit_get_a_503():
    with serving(max_connections=3) as (server, port, _):
        open_ones = [connect(port) for _ in range(3)]
        wait_until(lambda: len(server.server_state.connections) == 3)
        head, _, body = talk(port, GET).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nRetry-After: 1\r\n" in head
        assert json.loads(body)["detail"] == "3 connections are open already"
        staying = connect(port)
        assert staying.recv(65536).startswith(b"HTTP/1.1 503")
        open_ones.pop().close()
        wait_until(lambda: len(server.server_state.connections) == 3)  # with the one that was turned away and stays
        open_ones.append(connect(port))
        for one in open_ones:
            one.sendall(GET)
            assert one.recv(65536).startswith(b"HTTP/1.1 200")
            one.close()
        staying.close()
        wait_until(lambda: not server.server_state.connections)
        assert b"200 OK" in talk(port, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))


def test_a_refused_client_does_not_delay_the_shutdown():
    with serving() as (_, port, _):
        connection = connect(port)
        connection.sendall(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 400")
    connection.close()


def test_the_connection_limit_leaves_file_descriptors(monkeypatch):
    files = RESERVED_FDS + 100
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (files, files))
    for wanted, allowed in ((50, 50), (4096, 100)):
        server = Server(FastAPI(), lambda: None, ServerConfig(0, 1, max_connections=wanted))
        assert server.max_connections == allowed


class FakeTransport:
    """A transport that records its calls."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *data: self.calls.append((name, *data))


def test_writes_of_one_turn_are_coalesced():
    async def play():
        inner = FakeTransport()
        transport = BufferedWriteTransport(inner, asyncio.get_running_loop())
        for data in (b"head ", b"body", b""):
            transport.write(data)
        assert inner.calls == []
        await asyncio.sleep(0)
        assert inner.calls == [("write", b"head body")]
        transport.write(b"x" * COALESCE_BYTES)
        transport.write(b"y")
        assert inner.calls.pop() == ("write", b"x" * COALESCE_BYTES + b"y")  # much is not held back
        transport.write(b"last")
        transport.write_eof()
        transport.write(b"nothing comes after it")
        transport.close()
        await asyncio.sleep(0)
        assert inner.calls[1:] == [("write", b"last"), ("write_eof",), ("close",)]

    asyncio.run(play())


def test_write_eof_on_a_reset_connection_is_no_error():
    async def play():
        loop = asyncio.get_running_loop()
        with listen("127.0.0.1", 0) as listener:
            client = socket.create_connection(listener.getsockname())
            connection, _ = listener.accept()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=connection)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()  # as a reset, which the loop has had no turn to notice
        BufferedWriteTransport(transport, loop).write_eof()
        transport.abort()
        await asyncio.sleep(0)

    asyncio.run(play())


# The socket


def test_an_unusable_address_is_one_sentence():
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


# Shutdown


def ticks(server, count=3):
    return [asyncio.run(server.on_tick(counter)) for counter in range(1, count + 1)]


def test_the_second_signal_ends_the_draining():
    shutdowns = []
    server = Server(FastAPI(), lambda: shutdowns.append(True), ServerConfig(1000, 1))
    assert ticks(server) == [False] * 3
    server.handle_exit(signal.SIGTERM, None)
    assert (shutdowns, ticks(server)) == ([True], [False] * 3)
    server.handle_exit(signal.SIGTERM, None)
    assert (shutdowns, server.force_exit, ticks(server)) == ([True], False, [True] * 3)
    server.handle_exit(signal.SIGTERM, None)
    assert server.force_exit is False  # a repeated SIGTERM cuts off no response
    server.handle_exit(signal.SIGINT, None)
    assert server.force_exit is True


def test_without_a_drain_timeout_the_first_signal_ends():
    server = Server(FastAPI(), lambda: None, ServerConfig(0, 1))
    server.handle_exit(signal.SIGINT, None)
    assert ticks(server) == [True] * 3


class RepeatingClient:
    """A client that repeats requests on one connection, until it is closed or refused."""

    def __init__(self, port, pause=0.0):
        self.port, self.pause = port, pause
        self.requests = 0
        self.unanswered = []  # errors of requests without a response
        self.closing = 0  # responses with Connection: close

    def __call__(self):
        with suppress(ConnectionRefusedError):
            while True:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=MAX_WAIT_S)
                connection.connect()
                with closing(connection):
                    self.stay(connection)

    def stay(self, connection):
        while True:
            try:
                connection.request("POST", "/slow?seconds=0.05", body=b"x" * 1000)
                answer = connection.getresponse()
                assert (answer.status, answer.read()) == (200, b'"done"')
            except (OSError, http.client.HTTPException) as error:
                self.unanswered.append(error)
                return
            self.requests += 1
            if answer.will_close:
                self.closing += 1
                return
            time.sleep(self.pause)


@pytest.mark.parametrize("drain_timeout", [0.0, 1.0])
def test_a_shutdown_under_load_answers_every_request(drain_timeout, monkeypatch):
    for delay in (
        "IDLE_CLOSE_DELAY_S",
        "UNUSED_CLOSE_DELAY_S",
    ):  # a thread of a client may come late to its next request
        monkeypatch.setattr(server_module, delay, MAX_WAIT_S)
    clients = [RepeatingClient(0, pause=0.01 * (index % 3)) for index in range(16)]
    with (
        ThreadPoolExecutor(len(clients)) as pool,
        serving(drain_timeout=drain_timeout, shutdown_timeout=600) as (server, port, _),
    ):
        for client in clients:
            client.port = port
        stays = [pool.submit(client) for client in clients]
        wait_until(lambda: all(client.requests for client in clients))
        server.handle_exit(signal.SIGTERM, None)
        for stay in stays:
            stay.result()
    assert [client.unanswered for client in clients] == [[]] * len(clients)
    assert all(client.closing for client in clients)


def test_pipelined_requests_are_answered_during_the_shutdown():
    asked = (f"POST /{path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" for path in ("leave", "length", "length"))
    with serving(shutdown_timeout=600) as (_, port, _):
        answer = talk(port, "".join(asked).encode())
    first, second, third = answer.lower().split(b"http/1.1 200 ok")[1:]
    assert b"connection: close" in third
    assert b"connection: close" not in first + second


def test_an_idle_connection_is_closed_after_requests_under_way():
    with serving(drain_timeout=1000, shutdown_timeout=600) as (server, port, _), ExitStack() as stack:
        idle, late = (stack.enter_context(connect(port)) for _ in range(2))
        for connection in (idle, late):
            connection.sendall(GET)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")

        def leave():
            """In one turn of the loop: the server has not seen the request when it closes idle connections."""
            late.sendall(GET)
            server.handle_exit(signal.SIGTERM, None)
            for connection in list(server.server_state.connections):
                connection.shutdown()

        server.servers[0].get_loop().call_soon_threadsafe(leave)
        assert b"connection: close" in late.recv(65536).lower()
        assert (idle.recv(65536), late.recv(65536)) == (b"", b"")


def test_a_request_beyond_the_shutdown_timeout_gets_a_503():
    with serving() as (server, port, _), connect(port) as connection:
        connection.sendall(b"POST /slow?seconds=3600 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        wait_until(lambda: server.server_state.tasks)
        server.handle_exit(signal.SIGTERM, None)
        answer = rest_of(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503")
    assert json.loads(body)["type"] == "/docs#problem-not-ready"


@pytest.mark.skipif(sys.platform != "linux", reason="the system cannot be asked to make no further connection")
def test_stop_accepting_keeps_the_accepted_connections():
    with listen("127.0.0.1", 0) as listener, socket.socket() as early, socket.socket() as late:
        early.connect(listener.getsockname())
        stop_accepting(listener)
        early.sendall(b"a request")
        late.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.connect(listener.getsockname())
        with listener.accept()[0] as taken:
            assert taken.recv(100) == b"a request"
