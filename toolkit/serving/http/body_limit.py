"""What a client may do: the size of a request's body, and the time that everything it sends or takes may need."""

import asyncio
import time
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolkit.serving.problems import BODY_TOO_LARGE, MALFORMED, REQUEST_TIMEOUT, Problem

DRAIN_FACTOR = 4  # bodies up to so many times the limit are read to their end, and thrown away, before the answer
DRAIN_SECONDS = 5.0


@dataclass(frozen=True)
class Timeouts:
    """How long slow clients are waited for, so that nobody holds connections without using them.

    Parameters
    ----------
    head_seconds
        Longest time from an open connection, or the first byte of a further request, to a complete head.
    body_seconds
        Longest time in which a body arrives, and in which an answer is taken.
    stall_seconds
        Longest time between two pieces of a body.
    """

    header: float = 10.0
    body: float = 30.0
    read: float = 10.0


DEFAULT_TIMEOUTS = Timeouts()


class BodyLimitMiddleware:
    """ASGI middleware that raises a ``Problem``: 413 for a body with more than ``limit`` bytes, 408 for a slow one.

    The size is held before anything is kept in memory, with or without Content-Length. Many
    clients only listen once they have sent everything, and take a closed connection for a failure
    of the network. So the rest of a body that is not excessively large is received, without being
    kept, before the problem is raised.

    Parameters
    ----------
    app
        What is protected.
    limit
        Largest body in bytes.
    patience
        Its ``body_seconds`` and ``stall_seconds`` hold while the application asks for the body.
    """

    def __init__(self, app: ASGIApp, limit: int, patience: Timeouts = DEFAULT_TIMEOUTS) -> None:
        self.app = app
        self.limit = limit
        self.timeouts = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        announced = _declared_length(headers)
        if announced is not None and announced > self.limit:
            if headers.get("expect", "").lower() != "100-continue" and announced <= self.limit * DRAIN_FACTOR:
                await _drain(receive, announced)
            raise _too_large(self.limit)
        await self.app(scope, _LimitedBody(receive, self.limit, self.timeouts).receive, send)


class _LimitedBody:
    """The messages of one body, counted and timed."""

    def __init__(self, receive: Receive, limit: int, patience: Timeouts) -> None:
        self._receive, self._limit, self._patience = receive, limit, patience
        self._received, self._more = 0, True
        self._end: float | None = None  # the latest moment of its last byte, from when it is first asked for

    async def receive(self) -> Message:
        if not self._more:
            return await self._receive()  # what comes after a body may take as long as it likes
        message = await self._in_time()
        self._received += len(message.get("body", b""))
        self._more = message.get("more_body", False)
        if self._received > self._limit:
            if self._more:
                await _drain(self._receive, self._limit * (DRAIN_FACTOR - 1))
            raise _too_large(self._limit)
        return message

    async def _in_time(self) -> Message:
        patience, now = self._patience, asyncio.get_running_loop().time()
        if self._end is None:
            self._end = now + patience.body
        try:
            async with asyncio.timeout_at(min(self._end, now + patience.read)):
                return await self._receive()
        except TimeoutError:
            raise Problem(
                REQUEST_TIMEOUT,
                f"a body must arrive within {patience.body:g} s, with no pause longer than {patience.read:g} s",
                {"Connection": "close"},
            ) from None


def _too_large(limit: int) -> Problem:
    return Problem(BODY_TOO_LARGE, f"a request may have at most {limit / 2**20:g} MiB", {"Connection": "close"})


def _declared_length(headers: Headers) -> int | None:
    text = headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Problem(MALFORMED, "Content-Length must be a whole number", {"Connection": "close"})
    return int(text)


async def _drain(receive: Receive, most: int) -> None:
    """Receive up to ``most`` bytes more and keep none of them."""
    end = time.monotonic() + DRAIN_SECONDS
    while most > 0:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
        except TimeoutError:
            return
        if message["type"] != "http.request" or not message.get("more_body"):
            return
        most -= len(message.get("body", b""))
