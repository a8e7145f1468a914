"""The HTTP server: its socket, its connections with their timeouts, and its shutdown."""

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
from toolkit.serving.http.body_stream import DEFAULT_TIMEOUTS, Timeouts
from toolkit.serving.problems import MEDIA_TYPE, NOT_HTTP, REQUEST_TIMEOUT, TOO_MANY_CONNECTIONS, Problem, not_ready

if sys.platform != "win32":
    import resource

logger = logging.getLogger(__name__)

BACKLOG = 2048  # connections that may wait to be accepted, uvicorn's default
KEEP_ALIVE_S = 75  # longer than the 60 s of the usual load balancers in front
MAX_CONNECTIONS = 4096
MAX_REJECTED = 128  # connections beyond the limit that are answered with a 503 at a time; more are just closed
RESERVED_FDS = 256  # files that the process may have open besides its connections
CLOSE_DELAY_S = 2.0  # for a client to read why it is refused
IDLE_CLOSE_DELAY_S = 0.25  # of idle connections at shutdown, for a request that is under way
UNUSED_CLOSE_DELAY_S = 2.0  # the same without any request yet: its client is likely to send one
# A Berkeley packet filter that drops connection requests and passes all else. Each row is a code, two jumps and a
# value: load byte 13 of the TCP header, its flags; test the flag SYN; drop; keep.
REJECT_FILTER = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
SO_ATTACH_FILTER = 26  # Linux; Python has no constant for it
TICKS_PER_CHECK = 10  # of uvicorn's 0.1 s, between two checks of the timeouts
COALESCE_BYTES = 65536  # held back at most, before they are sent within the turn of the event loop
ABSOLUTE = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)  # of an absolute-form target, all before the path
BROKEN = "the request breaks the rules of HTTP/1.1, or its headers are too large"


def listen(host: str, port: int) -> socket.socket:
    """Bind a listening socket, so that an unusable address is an error before the service starts.

    Parameters
    ----------
    host
        Address or host name of this machine.
    port
        0 takes a free one.

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


class BufferedWriteTransport:
    """Transport that gathers the writes of one turn of the event loop.

    uvicorn writes the headers, the body and the end of a response one by one; each would be a system call and a packet.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._pending: list[bytes] = []
        self._size = 0
        self._ended = False

    def __getattr__(self, name: str) -> Any:  # everything but writes
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not data or self._ended:
            return
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending.append(data)
        self._size += len(data)
        if self._size > COALESCE_BYTES:
            self._flush()

    def write_eof(self) -> None:
        self._flush()
        self._ended = True
        with suppress(OSError):  # the client has reset the connection
            self._transport.write_eof()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._pending:
            self._transport.write(b"".join(self._pending))
            self._pending, self._size = [], 0


class StrictConnection(h11.Connection):
    """HTTP/1.1 as h11 parses it, without the ambiguities that a proxy in front may resolve differently."""

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request) and (absolute := ABSOLUTE.match(event.target)):  # absolute form
            path = event.target[absolute.end() :]
            target = path if path.startswith(b"/") else b"/" + path
            event = h11.Request(
                method=event.method, target=target, headers=event.headers, http_version=event.http_version
            )
        if isinstance(event, h11.Request):
            names = [name for name, _ in event.headers]
            if b"transfer-encoding" in names and (b"content-length" in names or event.http_version < b"1.1"):
                raise h11.RemoteProtocolError("the length of the body is declared in two ways")
        return event


class TimeoutH11Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 with timeouts, a limit of connections, and problem documents for its own errors.

    Requests that are no HTTP, too slow, or on one connection too many are answered with a problem document. There is
    no timer per request: the server checks all connections once a second, and each knows since when it has waited for
    the same thing.

    The parser is h11. httptools would save 0.07 ms a request, but takes the body of a request that offers an upgrade,
    as Java's client does each time, for the headers of a further request.

    Parameters
    ----------
    server
        The server that has the connection.
    options
        Arguments of uvicorn's protocol.
    """

    def __init__(self, server: "Server", **options: Any) -> None:
        super().__init__(**options)
        self._server = server
        self._application, self.app = self.app, self._answer
        self.conn = StrictConnection(h11.SERVER)
        self._refused = False
        self._waiting: tuple[str | None, object] = (None, None)  # for what, in which request
        self._since, timeouts = 0.0, server.timeouts
        self._timeouts = {
            "close": CLOSE_DELAY_S,
            "write": timeouts.body,
            "headers": timeouts.header,
            "request": KEEP_ALIVE_S,
            "unread body": timeouts.body,
        }

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected; called by asyncio."""
        super().connection_made(cast(asyncio.Transport, BufferedWriteTransport(transport, self.loop)))
        self.check_timeouts(self.loop.time())
        allowed, rejected = self._server.max_connections, self._server.rejected
        if len(self.connections) - len(rejected) <= allowed:
            return
        if len(rejected) >= MAX_REJECTED:
            transport.abort()
            return
        rejected.add(self)
        detail = f"{allowed} connections are open already"
        self._refuse(Problem(TOO_MANY_CONNECTIONS, detail, {"Retry-After": "1"}))

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed; called by asyncio."""
        self._server.rejected.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A client has sent something; called by asyncio. After a refusal it is discarded."""
        if not self._refused:
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  its signature is given
        """Answer a request that breaks HTTP, or whose headers are too large; called by uvicorn."""
        self._refuse(Problem(NOT_HTTP, BROKEN))

    def shutdown(self) -> None:
        """Close an idle connection in a moment, another one after its response; called by uvicorn at shutdown."""
        if self._refused:
            self.transport.close()
        elif self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(
                UNUSED_CLOSE_DELAY_S if self.cycle is None else IDLE_CLOSE_DELAY_S, self._close_if_idle
            )
        elif self.cycle.response_started:  # too late for Connection: close
            self.cycle.keep_alive = False

    def _close_if_idle(self) -> None:
        """Close the connection unless a request has come meanwhile, whose response closes it."""
        if self.transport.is_closing() or not (self.cycle is None or self.cycle.response_complete):
            return
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.transport.get_extra_info("socket"), selectors.EVENT_READ)
            has_data = bool(waiting.select(0))
        if has_data:  # a close would reset it
            self.loop.call_later(IDLE_CLOSE_DELAY_S, self._close_if_idle)
        else:
            super().shutdown()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; while the server drains, its responses have ``Connection: close``."""

        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._server.is_draining and not self._next_begun:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            await self._application(scope, receive, send_closing)
        except asyncio.CancelledError:  # the shutdown timeout has passed
            self._refuse(not_ready("the service ended before this request could be answered", 1))
            self.transport.close()

    def check_timeouts(self, now: float) -> None:
        """End what has lasted too long; ``now`` is of the event loop's clock."""
        waiting = (self._waiting_on(), self.cycle)
        if waiting != self._waiting:
            self._waiting, self._since = waiting, now
        elif waiting[0] is not None and now - self._since >= self._timeouts[waiting[0]]:
            self._on_timeout(waiting[0])

    def _waiting_on(self) -> str | None:
        """The part that the client has to send or read next; None while the application works or reads the body."""
        if self._refused:
            return "close"
        if self.transport.get_write_buffer_size():
            return "write"
        if self.conn.their_state is h11.IDLE:
            return "headers" if self.cycle is None or self._next_begun else "request"
        answered = self.cycle is not None and self.cycle.response_complete
        return "unread body" if answered and self.conn.their_state is h11.SEND_BODY else None

    @property
    def _next_begun(self) -> bool:
        """Whether a part of a further request has arrived."""
        return bool(self.conn.trailing_data[0])

    def _on_timeout(self, what: str) -> None:
        if what in ("close", "write"):
            self.transport.abort()
        elif what == "headers" and self._next_begun:
            limit = self._timeouts["headers"]
            self._refuse(Problem(REQUEST_TIMEOUT, f"the headers of a request must arrive within {limit:g} s"))
        else:
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        """Answer unless a response has begun, and close later: a reset would discard the answer."""
        self._refused = True
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_closing_response(problem))
        if self.cycle is not None:  # the application may have begun with the headers
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write_eof()


def _closing_response(problem: Problem) -> bytes:
    """A problem as the last response of a connection."""
    request_id = secrets.token_hex(8)
    body = json.dumps(problem.document(request_id)).encode()
    headers = {
        "Content-Type": MEDIA_TYPE,
        "Content-Length": len(body),
        "X-Request-ID": request_id,
        **(problem.headers or {}),
        "Connection": "close",
    }
    status_line = f"HTTP/1.1 {problem.status_code} {HTTPStatus(problem.status_code).phrase}"
    return "\r\n".join([status_line, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode() + body


@dataclass(frozen=True)
class ServerConfig:
    """Times and limits of a server."""

    drain_timeout: float  # seconds between the first signal and closing the socket
    shutdown_timeout: int  # seconds to finish accepted requests after that, at most
    timeouts: Timeouts = DEFAULT_TIMEOUTS  # for slow clients
    max_connections: int = MAX_CONNECTIONS  # that may be open, or fewer where the process may open fewer files


class Server(uvicorn.Server):
    """uvicorn with the graceful shutdown that load balancers expect.

    After SIGTERM or Ctrl-C the service is not ready but answers on for ``drain_timeout``, so that load balancers take
    it out of rotation; responses have ``Connection: close``. Then it accepts no connection, finishes accepted requests
    within ``shutdown_timeout``, and ends with status 0. A second signal ends the draining at once.

    Parameters
    ----------
    app
        The application.
    on_shutdown
        Called at the first signal, within the signal handler; it may only set a flag.
    config
        Times and limits.
    alone
        Whether no other process listens on the same socket.
    """

    def __init__(self, app: FastAPI, on_shutdown: Callable[[], None], config: ServerConfig, alone: bool = True) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                http=partial(TimeoutH11Protocol, self),  # type: ignore[arg-type]
                ws="none",
                lifespan="on",
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=config.shutdown_timeout,
            )
        )
        self.timeouts, self.max_connections = config.timeouts, _allowed(config.max_connections)
        self.rejected: set[TimeoutH11Protocol] = set()  # connections beyond that limit that wait to be closed
        self._on_shutdown = on_shutdown
        self._alone = alone
        self._drain_timeout = config.drain_timeout
        self._shutdown_at: float | None = None

    @property
    def is_draining(self) -> bool:
        """Whether a signal has arrived; responses close their connection from then on."""
        return self._shutdown_at is not None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  its signature is given
        """Begin to drain at the first signal, end it at the second; called by uvicorn."""
        if not self.is_draining:
            self._on_shutdown()
            self._shutdown_at = time.monotonic() + self._drain_timeout
        elif not self.should_exit:
            self.should_exit = True
        elif sig == signal.SIGINT:
            self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to end; called by uvicorn ten times a second."""
        if counter % TICKS_PER_CHECK == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                cast(TimeoutH11Protocol, connection).check_timeouts(now)
        if self._shutdown_at is not None and time.monotonic() >= self._shutdown_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's shutdown, once the backlog is accepted: closing the socket would reset its connections."""
        if self._alone:
            for listener in sockets or ():
                stop_accepting(listener)
        backlog = [connection for listener in sockets or () for connection in _backlog(listener)]
        for server in self.servers:
            server.close()  # before the loop can accept more
        state = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}
        for connection in backlog:
            with suppress(OSError):  # the client has disconnected meanwhile
                await asyncio.get_running_loop().connect_accepted_socket(
                    partial(self.config.http_protocol_class, **state), connection
                )
        await super().shutdown(sockets)


def stop_accepting(listener: socket.socket) -> None:
    """Have the system drop further connection requests, on Linux; they are refused once the socket is closed.

    A connection made between the last accept and the close would be reset with its request.
    """
    rows = b"".join(struct.pack("=HBBI", *row) for row in REJECT_FILTER)
    buffer = ctypes.create_string_buffer(rows)
    with suppress(OSError):
        if sys.platform == "linux":
            program = struct.pack("HP", len(REJECT_FILTER), ctypes.addressof(buffer))
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def _backlog(listener: socket.socket) -> Iterator[socket.socket]:
    """Connections that the event loop has not accepted yet."""
    empty = 0
    while empty < 2:  # a socket of several processes is empty each second time
        try:
            yield listener.accept()[0]
        except OSError:
            empty += 1
        else:
            empty = 0


def _allowed(connections: int) -> int:
    """At most as many connections as the process may open files for."""
    if sys.platform == "win32":
        return connections
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return connections if files == resource.RLIM_INFINITY else max(1, min(connections, files - RESERVED_FDS))
