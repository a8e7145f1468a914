"""Requests of disconnected clients are cancelled, and no others: on ASGI messages and on real sockets."""

import asyncio
import socket
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI, Request

from support import MAX_WAIT_S, wait_until
from support.app_server import app_server
from toolkit.serving.http.middleware import CLIENT_CLOSED_REQUEST, RequestRules, ServiceMiddleware
from toolkit.serving.metrics import ServiceMetrics

LEFT = {"type": "http.disconnect"}
BODY = {"type": "http.response.body", "body": b"a"}


def start():
    return {"type": "http.response.start", "status": 200, "headers": []}


def piece(body=b"", more=False):
    return {"type": "http.request", "body": body, "more_body": more}


class Client:
    """Sends pieces, then leaves as soon as ``leaves`` is set."""

    def __init__(self, *pieces):
        self.pieces, self.leaves, self.got = list(pieces), asyncio.Event(), []

    async def receive(self):
        if self.pieces:
            return self.pieces.pop(0)
        await self.leaves.wait()
        return LEFT

    async def send(self, message):
        self.got.append(message)

    async def visit(self, app):
        """The status with which a request is logged."""
        scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b"", "client": None}
        metrics = ServiceMetrics()
        await ServiceMiddleware(app, metrics, RequestRules(100))(scope, self.receive, self.send)
        [status] = metrics.summary()["requests"]["other"]
        return int(status)


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


def alone(play):
    """Run a test, after which no task of its loop may be left."""

    async def play_alone():
        await play()
        await turns()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(play_alone())


def test_a_request_is_cancelled_when_its_client_disconnects():
    async def play():
        async def app(scope, receive, send):
            while (await receive())["more_body"]:
                pass
            client.leaves.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        client, seen = Client(piece(b"a", more=True), piece(b"b")), []
        assert await client.visit(app) == CLIENT_CLOSED_REQUEST
        assert seen == ["cancelled"]
        assert asyncio.current_task().cancelling() == 0  # nothing of it stays with the task

    alone(play)


def test_messages_pass_unchanged_before_the_end_of_the_body():
    pieces = [piece(b"a", more=True), piece(b"", more=True), piece(b"b", more=True)]

    async def play():
        async def app(scope, receive, send):
            seen.extend([await receive() for _ in range(5)])

        client, seen = Client(*pieces), []
        client.leaves.set()
        await client.visit(app)
        assert seen == [*pieces, LEFT, LEFT]

    alone(play)


def test_nothing_is_cancelled_once_the_response_has_begun():
    async def play():
        async def app(scope, receive, send):
            await receive()
            await turns()
            await send(start())
            client.leaves.set()
            await turns()
            seen.append(await receive())
            await send(BODY)

        client, seen = Client(piece(b"a")), []
        await client.visit(app)
        assert seen == [LEFT]
        assert client.got[1:] == [BODY]

    alone(play)


def test_an_early_response_is_not_watched():
    async def play():
        async def app(scope, receive, send):
            await send(start())
            client.leaves.set()
            seen.extend([await receive(), await receive()])

        client, seen = Client(piece(b"a")), []
        await client.visit(app)
        assert seen == [piece(b"a"), LEFT]

    alone(play)


def test_an_application_may_poll_for_a_disconnect():
    async def play():
        async def app(scope, receive, send):
            await receive()
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(receive(), 0.001)
            client.leaves.set()
            await receive()
            await asyncio.Event().wait()

        client = Client(piece())
        assert await client.visit(app) == CLIENT_CLOSED_REQUEST

    alone(play)


@pytest.mark.parametrize("leaves", [False, True])
def test_a_task_cancelled_by_others_stays_cancelled(leaves):
    async def play():
        async def app(scope, receive, send):
            await receive()
            running.set()
            await asyncio.Event().wait()

        client, running = Client(piece()), asyncio.Event()
        task = asyncio.create_task(client.visit(app))
        await running.wait()
        if leaves:
            client.leaves.set()
        await turns(1)  # the disconnect has cancelled the task, which has not run since
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    alone(play)


def test_errors_and_unread_bodies_pass():
    async def play():
        async def failing(scope, receive, send):
            await receive()
            raise ValueError("of the application")

        async def deaf(scope, receive, send):
            client.leaves.set()
            await turns()
            await send(start())

        client = Client(piece())
        assert await client.visit(failing) == 500
        client = Client(piece())
        await client.visit(deaf)
        assert [message["type"] for message in client.got] == ["http.response.start"]
        assert client.pieces == [piece()]

    alone(play)


# On real sockets


@dataclass
class Counter:
    """A service with a route that works until ``stop`` is set, and its requests under way."""

    server: Any = None
    port: int = 0
    metrics: ServiceMetrics = field(default_factory=ServiceMetrics)
    working: set[str] = field(default_factory=set)
    stop: asyncio.Event | None = None
    loop: Any = None

    def app(self):
        app = FastAPI()

        @app.post("/wait/{name}")
        async def wait(request: Request, name: str) -> str:
            self.loop = asyncio.get_running_loop()
            self.stop = self.stop or asyncio.Event()
            await request.body()
            self.working.add(name)
            try:
                await self.stop.wait()
            finally:
                self.working.remove(name)
            return name

        app.add_middleware(ServiceMiddleware, metrics=self.metrics, rules=RequestRules(100))
        return app

    def send(self, *names):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=MAX_WAIT_S)
        head = "POST /wait/{} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        connection.sendall("".join(head.format(name) for name in names).encode())
        return connection

    def finish(self):
        self.loop.call_soon_threadsafe(self.stop.set)

    def answered(self, status):
        return self.metrics.summary()["requests"].get("/wait/{name}", {}).get(str(status), 0)

    async def tasks(self):
        return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


@pytest.fixture
def counter():
    counter = Counter()
    with app_server(counter.app()) as (counter.server, counter.port):
        yield counter


def test_disconnects_leave_nothing_behind(counter):
    with counter.send("first"):
        wait_until(lambda: counter.working)
    wait_until(lambda: counter.answered(CLIENT_CLOSED_REQUEST) == 1)

    def tasks():
        return asyncio.run_coroutine_threadsafe(counter.tasks(), counter.loop).result(MAX_WAIT_S)

    wait_until(lambda: not counter.server.server_state.tasks)
    before = tasks()
    for crowd in range(2):
        connections = [counter.send(f"{crowd}-{number}") for number in range(90)]
        wait_until(lambda: len(counter.working) == 90)
        for connection in connections:
            connection.close()
        for number in range(10):
            counter.send(f"hasty-{crowd}-{number}").close()  # gone before the work begins
    wait_until(lambda: counter.answered(CLIENT_CLOSED_REQUEST) == 201)
    assert counter.working == set()
    wait_until(lambda: not counter.server.server_state.connections and not counter.server.server_state.tasks)
    assert tasks() == before
    assert counter.metrics.summary()["requests"] == {"/wait/{name}": {"499": 201}}


def test_a_disconnect_cancels_only_its_own_request(counter):
    with counter.send("one", "two") as connection, counter.send("bystander") as bystander:
        wait_until(lambda: counter.working == {"one", "bystander"})  # "two" has its turn after the answer to "one"
        counter.finish()
        answers = b""
        while answers.count(b"HTTP/1.1 200 OK") < 2 or not answers.endswith(b'"two"'):
            answers += connection.recv(65536)
        assert bystander.recv(65536).startswith(b"HTTP/1.1 200 OK")
        counter.stop.clear()
        connection.sendall(b"POST /wait/three HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
        wait_until(lambda: counter.working == {"three"})
        connection.close()
        wait_until(lambda: counter.answered(CLIENT_CLOSED_REQUEST) == 1)
    assert counter.working == set()
    assert counter.answered(200) == 3
