"""Compressed bodies: undone piece by piece, so that a small body which claims to be a large one takes no memory."""

import asyncio
import zlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolkit.serving.problems import BODY_TOO_LARGE, MALFORMED, UNSUPPORTED_ENCODING, Problem

# Content-Encoding to the window of zlib's decoder: with a gzip head, with a zlib head.
CODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
CHUNK_BYTES = 2**20  # bytes that are undone at once, on the event loop: about 3 ms


class DecompressionMiddleware:
    """ASGI middleware that undoes the Content-Encoding of a body.

    The application sees neither the encoding nor the length of what was sent.

    Parameters
    ----------
    app
        What reads bodies.
    limit
        Largest body in bytes, undone.

    Raises
    ------
    Problem
        415 for an encoding that is not known here, 400 for a body that is not encoded as it says, 413 for one that
        is too large when it is undone.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        coding = _coding(Headers(scope=scope)) if scope["type"] == "http" else None
        if coding is None:
            await self.app(scope, receive, send)
            return
        scope = {**scope, "headers": list(scope["headers"])}
        headers = MutableHeaders(scope=scope)
        for name in ("content-encoding", "content-length"):
            del headers[name]
        await self.app(scope, _DecodedBody(receive, CODINGS[coding], self.limit).receive, send)


def _coding(headers: Headers) -> str | None:
    """The one encoding of a body; None when it is sent as it is."""
    named = [name.strip().lower() for text in headers.getlist("content-encoding") for name in text.split(",")]
    codings = [name for name in named if name not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in CODINGS:
        raise Problem(
            UNSUPPORTED_ENCODING,
            f"the body is encoded as {', '.join(codings)[:60]!r}; taken are gzip, deflate and none",
            {"Accept-Encoding": "gzip, deflate"},
        )
    return codings[0]


class _DecodedBody:
    """The messages of one body, with what it was before it was compressed."""

    def __init__(self, receive: Receive, window: int, limit: int) -> None:
        self._receive, self._limit = receive, limit
        self._decoder = zlib.decompressobj(window)
        self._rest = b""  # received and not undone yet
        self._begun, self._more, self._ended = False, True, False  # whether something came, is to come, was all given
        self._size = 0

    async def receive(self) -> Message:
        if self._ended:
            return await self._receive()  # what comes after a body
        if not self._rest and self._more:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._rest, self._more = message.get("body", b""), message.get("more_body", False)
            self._begun = self._begun or bool(self._rest)
        body = self._undo()
        await asyncio.sleep(0)  # others have their turn between two pieces
        return {"type": "http.request", "body": body, "more_body": not self._ended}

    def _undo(self) -> bytes:
        """The next piece of what was received."""
        try:
            body = self._decoder.decompress(self._rest, CHUNK_BYTES)
        except zlib.error:
            raise Problem(MALFORMED, "the body is not compressed as its Content-Encoding says") from None
        self._rest = self._decoder.unconsumed_tail
        self._size += len(body)
        if self._size > self._limit:
            raise Problem(BODY_TOO_LARGE, f"a request may have at most {self._limit / 2**20:g} MiB when it is undone")
        complete = self._decoder.eof
        if self._decoder.unused_data:
            raise Problem(MALFORMED, "there is more in the body than what is compressed")
        self._ended = not (self._rest or self._more or (len(body) == CHUNK_BYTES and not complete))
        if self._ended and self._begun and not complete:
            raise Problem(MALFORMED, "the compressed body ends too early")
        return body
