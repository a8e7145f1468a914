"""The limit on a request's body, held before anything is kept in memory, with or without Content-Length."""

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolkit.serving.problems import BODY_TOO_LARGE, MALFORMED, Problem

DISCARD_TIMES = 4  # bodies up to so many times the limit are read to their end, and thrown away, before the answer
DISCARD_SECONDS = 5.0


class BodyLimit:
    """ASGI middleware that raises a 413 ``Problem`` for a body with more than ``limit`` bytes.

    Many clients only listen once they have sent everything, and take a closed connection for a
    failure of the network. So the rest of a body that is not excessively large is received,
    without being kept, before the problem is raised.

    Parameters
    ----------
    app
        What is protected.
    limit
        Largest body in bytes.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        announced = _announced(headers)
        if announced is not None and announced > self.limit:
            if headers.get("expect", "").lower() != "100-continue" and announced <= self.limit * DISCARD_TIMES:
                await _discard(receive, announced)
            raise self._problem()
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                if message.get("more_body"):
                    await _discard(receive, self.limit * (DISCARD_TIMES - 1))
                raise self._problem()
            return message

        await self.app(scope, limited, send)

    def _problem(self) -> Problem:
        return Problem(
            BODY_TOO_LARGE, f"a request may have at most {self.limit / 2**20:g} MiB", {"Connection": "close"}
        )


def _announced(headers: Headers) -> int | None:
    text = headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Problem(MALFORMED, "Content-Length must be a whole number", {"Connection": "close"})
    return int(text)


async def _discard(receive: Receive, most: int) -> None:
    """Receive up to ``most`` bytes more and keep none of them."""
    end = time.monotonic() + DISCARD_SECONDS
    while most > 0:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
        except TimeoutError:
            return
        if message["type"] != "http.request" or not message.get("more_body"):
            return
        most -= len(message.get("body", b""))
