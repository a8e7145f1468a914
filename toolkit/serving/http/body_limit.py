"""The limits of a request's body: its size, and the time in which it arrives."""

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolkit.serving.http.timeouts import DEFAULT_TIMEOUTS, Timeouts
from toolkit.serving.problems import BODY_TOO_LARGE, MALFORMED, REQUEST_TIMEOUT, Problem

DRAIN_FACTOR = 4  # bodies up to so many times the limit are received to their end, and discarded, before the answer
DRAIN_SECONDS = 5.0


class BodyLimitMiddleware:
    """ASGI middleware that refuses bodies which are too large or too slow.

    The size is checked before anything is kept in memory, with or without Content-Length. Many clients do not read
    before they have sent everything, and take a closed connection for a failure of the network: so the rest of a
    body that is not excessively large is received and discarded before the problem is raised.

    Parameters
    ----------
    app
        The ASGI application behind it.
    limit
        Largest body in bytes.
    timeouts
        ``body`` and ``read`` hold from the moment when the application first asks for the body.

    Raises
    ------
    Problem
        413 for a body that is too large, 408 for one that is too slow, 400 for a Content-Length that is no number.
    """

    def __init__(self, app: ASGIApp, limit: int, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        self.app = app
        self.limit = limit
        self.timeouts = timeouts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = _declared_length(headers)
        if length is not None and length > self.limit:
            if headers.get("expect", "").lower() != "100-continue" and length <= self.limit * DRAIN_FACTOR:
                await _drain(receive, length)
            raise _too_large(self.limit)
        await self.app(scope, _LimitedBody(receive, self.limit, self.timeouts).receive, send)


class _LimitedBody:
    """The messages of one body, counted and timed."""

    def __init__(self, receive: Receive, limit: int, timeouts: Timeouts) -> None:
        self._receive, self._limit, self._timeouts = receive, limit, timeouts
        self._received, self._more = 0, True
        self._deadline: float | None = None  # of the last byte, set when the first one is asked for

    async def receive(self) -> Message:
        if not self._more:
            return await self._receive()  # messages after the body have no deadline
        body, read, now = self._timeouts.body, self._timeouts.read, asyncio.get_running_loop().time()
        if self._deadline is None:
            self._deadline = now + body
        try:
            async with asyncio.timeout_at(min(self._deadline, now + read)):
                message = await self._receive()
        except TimeoutError:
            detail = f"a body must arrive within {body:g} s, with no pause longer than {read:g} s"
            raise Problem(REQUEST_TIMEOUT, detail, {"Connection": "close"}) from None
        self._received += len(message.get("body", b""))
        self._more = message.get("more_body", False)
        if self._received > self._limit:
            if self._more:
                await _drain(self._receive, self._limit * (DRAIN_FACTOR - 1))
            raise _too_large(self._limit)
        return message


def _too_large(limit: int) -> Problem:
    return Problem(BODY_TOO_LARGE, f"a request may have at most {limit / 2**20:g} MiB", {"Connection": "close"})


def _declared_length(headers: Headers) -> int | None:
    text = headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Problem(MALFORMED, "Content-Length must be a whole number", {"Connection": "close"})
    return int(text)


async def _drain(receive: Receive, max_bytes: int) -> None:
    """Receive up to ``max_bytes`` more and discard them."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while max_bytes > 0:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            return
        if message["type"] != "http.request" or not message.get("more_body"):
            return
        max_bytes -= len(message.get("body", b""))
