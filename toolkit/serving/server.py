"""The process around the application: its socket, and how it leaves."""

import json
import logging
import secrets
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from toolkit.errors import SettingsError
from toolkit.serving.problems import MEDIA_TYPE, NOT_HTTP, Problem

logger = logging.getLogger(__name__)

BACKLOG = 2048  # connections that may wait to be accepted, uvicorn's own number
KEEP_ALIVE_SECONDS = 75  # idle connections are kept longer than the 60 s of the usual balancers in front
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


class Protocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it; what cannot even be read as a request is answered with a problem document too."""

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  its signature is given
        """Called for a request that breaks HTTP itself, or whose headers are too large."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else its answer has begun, and cannot be changed
            request_id = secrets.token_hex(8)
            body = json.dumps(Problem(NOT_HTTP, BROKEN).document(request_id)).encode()
            headers = {
                "Content-Type": MEDIA_TYPE,
                "Content-Length": str(len(body)),
                "X-Request-ID": request_id,
                "Connection": "close",
            }
            answer = h11.Response(status_code=NOT_HTTP.status, headers=list(headers.items()), reason=b"Bad Request")
            for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:  # the application may be at work on the head of what turned out broken
            self.cycle.disconnected = True
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn that leaves as a balancer expects it to.

    At SIGTERM or Ctrl-C the service first says that it is not ready, and goes on answering for
    ``drain_seconds``, so that whoever sends it traffic can stop; then it takes no new connection,
    finishes what it has begun for at most ``finish_seconds``, and ends with status 0. A second
    signal ends the draining at once.

    Parameters
    ----------
    app
        The application.
    leave
        Called at the first signal, within the signal handler: it only sets a flag.
    """

    def __init__(self, app: FastAPI, leave: Callable[[], None], drain_seconds: float, finish_seconds: int) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                http=Protocol,
                ws="none",
                lifespan="on",
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=finish_seconds,
            )
        )
        self._leave = leave
        self._drain_seconds = drain_seconds
        self._leaves_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  its signature is given
        """What uvicorn does at a signal, with the draining before it; the signal is not raised again."""
        if self._leaves_at is None:
            self._leave()
            self._leaves_at = time.monotonic() + self._drain_seconds
        elif not self.should_exit:
            self.should_exit = True
        elif sig == signal.SIGINT:
            self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Asked by uvicorn ten times a second whether to end."""
        if self._leaves_at is not None and time.monotonic() >= self._leaves_at:
            self.should_exit = True
        return await super().on_tick(counter)
