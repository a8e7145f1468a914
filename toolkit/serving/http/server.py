"""The process around the application: its socket, the connections of its clients, and how it leaves."""

import asyncio
import ctypes
import json
import logging
import re
import secrets
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from types import FrameType
from typing import Any, cast

import h11
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from toolkit.errors import SettingsError
from toolkit.serving.http.body_limit import DEFAULT_TIMEOUTS, Timeouts
from toolkit.serving.problems import MEDIA_TYPE, NOT_HTTP, REQUEST_TIMEOUT, TOO_MANY_CONNECTIONS, Problem, not_ready

if sys.platform != "win32":
    import resource

logger = logging.getLogger(__name__)

BACKLOG = 2048  # connections that may wait to be accepted, uvicorn's own number
KEEP_ALIVE_SECONDS = 75  # idle connections are kept longer than the 60 s of the usual balancers in front
MAX_CONNECTIONS = 4096
MAX_REJECTED = 128  # connections beyond those that are told so at a time; further ones are just closed
RESERVED_FDS = 256  # that the process may have open besides its connections
CLOSE_DELAY_S = 2.0  # that a client has to read why it is refused
GOODBYE_S = 0.25  # that an idle connection stays open at the end, for a request that is on its way
FIRST_BYTE_S = 2.0  # the same of one that nothing was asked on yet: its client has connected to ask something
# A filter of Berkeley packets: what asks for a connection is dropped, all else passes. Each line is a code, two jumps
# and a value: load byte 13 of the TCP head, its flags; test the flag SYN; drop; keep.
REJECT_FILTER = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
SO_ATTACH_FILTER = 26  # of Linux; Python has no name for it
TICKS_PER_CHECK = 10  # of uvicorn's 0.1 s, between two looks at the connections
COALESCE_BYTES = 65536  # written within one turn of the loop, after which it is sent without waiting for the turn's end
ABSOLUTE = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)  # what comes before the path in such a target
BROKEN = "the request breaks the rules of HTTP/1.1, or its head is too large"


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, so that the service fails before it starts and not after.

    Raises
    ------
    SettingsError
        The address is taken, not this machine's, or not allowed.

    Examples
    --------
    >>> with listen("127.0.0.1", 0) as first:
    ...     listen("127.0.0.1", first.getsockname()[1])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    toolkit.errors.SettingsError: cannot listen on 127.0.0.1 port ...: Address already in use; choose another --port
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingsError(f"cannot listen on {host} port {port}: {reason}; choose another --port") from None
    return listener


class CoalescingTransport:
    """A transport that sends together what is written within one turn of the event loop.

    uvicorn writes the head, the body and the end of an answer one by one, and each would be a call
    of the system and a packet of its own.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held: list[bytes] = []
        self._size = 0
        self._ended = False

    def __getattr__(self, name: str) -> Any:  # all that does not send
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not data or self._ended:
            return
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)
        self._size += len(data)
        if self._size > COALESCE_BYTES:
            self._flush()

    def write_eof(self) -> None:
        self._flush()
        self._ended = True
        with suppress(OSError):  # the client has reset the connection, which the loop is about to notice
            self._transport.write_eof()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held:
            self._transport.write(b"".join(self._held))
            self._held, self._size = [], 0


class StrictConnection(h11.Connection):
    """HTTP/1.1 as h11 reads it, except for heads that a proxy in front may have read in another way."""

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request) and (absolute := ABSOLUTE.match(event.target)):  # as proxies are asked
            path = event.target[absolute.end() :]
            target = path if path.startswith(b"/") else b"/" + path
            event = h11.Request(
                method=event.method, target=target, headers=event.headers, http_version=event.http_version
            )
        if isinstance(event, h11.Request):
            names = [name for name, _ in event.headers]
            if b"transfer-encoding" in names and (b"content-length" in names or event.http_version < b"1.1"):
                raise h11.RemoteProtocolError("the length of the body is told in two ways")
        return event


class TimeoutH11Protocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, with an end to everything that a client may draw out.

    What cannot even be read as a request, comes too slowly, or comes on one connection too many is
    answered with a problem document as well. Nothing is timed request by request: the server looks
    at all its connections once a second, and each remembers since when it has been waiting for the
    same thing.

    It reads with h11. httptools would save 0.07 ms of a request, but takes the body of a request
    that offers an upgrade, as Java's own client does each time, for the head of a further request.

    Parameters
    ----------
    patience
        How long each thing may take.
    most
        Connections that may be open.
    turned_away
        Those of all connections that are open only to be told that they are too many.
    leaving
        Whether the server is about to end: each answer is then the last one on its connection, and says so.
    words
        What uvicorn gives each protocol.
    """

    def __init__(
        self,
        patience: Timeouts,
        most: int,
        turned_away: set["TimeoutH11Protocol"],
        leaving: Callable[[], bool],
        **words: Any,
    ) -> None:
        super().__init__(**words)
        self._application, self.app = self.app, self._answer
        self._leaving = leaving
        self.conn = StrictConnection(h11.SERVER)
        self._most, self._rejected_count = most, turned_away
        self._refused = False
        self._waiting: tuple[str | None, object] = (None, None)  # for what, and in which request
        self._since = 0.0
        self._limits = {
            "farewell": CLOSE_DELAY_S,
            "answer": patience.body,
            "head": patience.header,
            "request": KEEP_ALIVE_SECONDS,
            "rest": patience.body,
        }

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(cast(asyncio.Transport, CoalescingTransport(transport, self.loop)))
        self.check_timeouts(self.loop.time())
        if len(self.connections) - len(self._rejected_count) <= self._most:
            return
        if len(self._rejected_count) >= MAX_REJECTED:
            transport.abort()
            return
        self._rejected_count.add(self)
        self._refuse(Problem(TOO_MANY_CONNECTIONS, f"{self._most} connections are open already", {"Retry-After": "1"}))

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by whomever."""
        self._rejected_count.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A client has sent something; what it sends after it was refused is not for anybody."""
        if not self._refused:
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  its signature is given
        """Called for a request that breaks HTTP itself, or whose headers are too large."""
        self._refuse(Problem(NOT_HTTP, BROKEN))

    def shutdown(self) -> None:
        """Called when the server leaves: idle connections are closed in a moment, others after their answer."""
        if self._refused:
            self.transport.close()
        elif self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(FIRST_BYTE_S if self.cycle is None else GOODBYE_S, self._part)
        elif self.cycle.response_started:  # too late to say in it that it is the last one
            self.cycle.keep_alive = False

    def _part(self) -> None:
        """Close what idles still; a request that has come meanwhile closes the connection with its answer."""
        if self.transport.is_closing() or not (self.cycle is None or self.cycle.response_complete):
            return
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.transport.get_extra_info("socket"), selectors.EVENT_READ)
            has_come = bool(waiting.select(0))
        if has_come:  # to close it now would reset it
            self.loop.call_later(GOODBYE_S, self._part)
        else:
            super().shutdown()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, whose answers tell the client not to ask again here when the server is about to end."""

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start" and self._leaving() and not self._begun:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            await self._application(scope, receive, telling)
        except asyncio.CancelledError:  # it took longer than the server may take to end
            self._refuse(not_ready("the service ended before this request could be answered", 1))
            self.transport.close()

    def check_timeouts(self, now: float) -> None:
        """End what has lasted too long at this moment of the loop's clock."""
        waits = (self._waiting_on(), self.cycle)
        if waits != self._waiting:
            self._waiting, self._since = waits, now
        elif waits[0] is not None and now - self._since >= self._limits[waits[0]]:
            self._on_timeout(waits[0])

    def _waiting_on(self) -> str | None:
        """What the client owes; None when it is the application's turn, or that of who asked it for the body."""
        if self._refused:
            return "farewell"
        if self.transport.get_write_buffer_size():
            return "answer"
        if self.conn.their_state is h11.IDLE:
            return "head" if self.cycle is None or self._begun else "request"
        answered = self.cycle is not None and self.cycle.response_complete
        return "rest" if answered and self.conn.their_state is h11.SEND_BODY else None

    @property
    def _begun(self) -> bool:
        """Whether something of a further request is there."""
        return bool(self.conn.trailing_data[0])

    def _on_timeout(self, waited_for: str) -> None:
        if waited_for in ("farewell", "answer"):
            self.transport.abort()
        elif waited_for == "head" and self._begun:
            seconds = self._limits["head"]
            self._refuse(Problem(REQUEST_TIMEOUT, f"the head of a request must arrive within {seconds:g} s"))
        else:
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        """Answer unless an answer has begun, and leave the client a moment to read it: a reset would destroy it."""
        self._refused = True
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_closing(problem))
        if self.cycle is not None:  # the application may be at work on the head of what turned out broken
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write_eof()


def _closing(problem: Problem) -> bytes:
    """A problem as the last answer on a connection."""
    request_id = secrets.token_hex(8)
    body = json.dumps(problem.document(request_id)).encode()
    headers = {
        "Content-Type": MEDIA_TYPE,
        "Content-Length": len(body),
        "X-Request-ID": request_id,
        **(problem.headers or {}),
        "Connection": "close",
    }
    first = f"HTTP/1.1 {problem.status_code} {HTTPStatus(problem.status_code).phrase}"
    return "\r\n".join([first, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode() + body


@dataclass(frozen=True)
class ServerConfig:
    """How long clients are waited for, and how many there may be.

    Parameters
    ----------
    drain_seconds
        Time between the first signal and closing the socket.
    finish_seconds
        Longest time to finish accepted requests after that.
    patience
        How long slow clients are waited for.
    most_connections
        Clients that may be connected; further ones are answered with a 503. Fewer where the system allows the
        process fewer open files.
    """

    drain_seconds: float
    finish_seconds: int
    patience: Timeouts = DEFAULT_TIMEOUTS
    most_connections: int = MAX_CONNECTIONS


class Server(uvicorn.Server):
    """uvicorn that leaves as a balancer expects it to.

    At SIGTERM or Ctrl-C the service first says that it is not ready, and goes on answering for
    ``drain_seconds``, so that whoever sends it traffic can stop; each answer has ``Connection: close``.
    Then it takes no new connection, finishes for at most ``finish_seconds`` what it has begun, and ends
    with status 0. A second signal ends the draining at once.

    Parameters
    ----------
    app
        The application.
    leave
        Called at the first signal, within the signal handler: it only sets a flag.
    config
        Its limits.
    alone
        Whether no other process listens on the same socket.
    """

    def __init__(
        self,
        app: FastAPI,
        leave: Callable[[], None],
        config: ServerConfig,
        alone: bool = True,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                http=partial(
                    TimeoutH11Protocol, config.patience, _allowed(config.most_connections), set(), self._is_draining
                ),  # type: ignore[arg-type]
                ws="none",
                lifespan="on",
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=config.finish_seconds,
            )
        )
        self._on_shutdown = leave
        self._alone = alone
        self._drain_seconds = config.drain_seconds
        self._shutdown_at: float | None = None

    def _is_draining(self) -> bool:
        return self._shutdown_at is not None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  its signature is given
        """What uvicorn does at a signal, with the draining before it; the signal is not raised again."""
        if self._shutdown_at is None:
            self._on_shutdown()
            self._shutdown_at = time.monotonic() + self._drain_seconds
        elif not self.should_exit:
            self.should_exit = True
        elif sig == signal.SIGINT:
            self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Asked by uvicorn ten times a second whether to end."""
        if counter % TICKS_PER_CHECK == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                cast(TimeoutH11Protocol, connection).check_timeouts(now)
        if self._shutdown_at is not None and time.monotonic() >= self._shutdown_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """What uvicorn does at the end, after all that wait to be let in: a socket that is closed resets them."""
        if self._alone:
            for listener in sockets or ():
                stop_accepting(listener)
        waiting = [connection for listener in sockets or () for connection in _backlog(listener)]
        for server in self.servers:
            server.close()  # without a turn of the loop in between, in which more could come
        state = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}
        for connection in waiting:
            with suppress(OSError):  # it has left meanwhile
                await asyncio.get_running_loop().connect_accepted_socket(
                    partial(self.config.http_protocol_class, **state), connection
                )
        await super().shutdown(sockets)


def stop_accepting(listener: socket.socket) -> None:
    """Have the system make no further connection, where it can: who asks for one is refused once the socket is closed.

    Between the last connection that is let in and the end of the socket there could otherwise come one more, which
    would be reset with its request.
    """
    lines = b"".join(struct.pack("=HBBI", *line) for line in REJECT_FILTER)
    held = ctypes.create_string_buffer(lines)
    with suppress(OSError):
        if sys.platform == "linux":
            program = struct.pack("HP", len(REJECT_FILTER), ctypes.addressof(held))
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def _backlog(listener: socket.socket) -> Iterator[socket.socket]:
    """Connections that the system has made and the loop has not taken yet."""
    refusals = 0
    while refusals < 2:  # the socket of several processes says each second time that there is none
        try:
            yield listener.accept()[0]
        except OSError:
            refusals += 1
        else:
            refusals = 0


def _allowed(connections: int) -> int:
    """So many connections, or as many as the system leaves room for."""
    if sys.platform == "win32":
        return connections
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return connections if files == resource.RLIM_INFINITY else max(1, min(connections, files - RESERVED_FDS))
