"""Decompression of request bodies in pieces, so that a decompression bomb is refused before it takes memory."""

import asyncio
import zlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolkit.serving.problems import BODY_TOO_LARGE, MALFORMED, UNSUPPORTED_ENCODING, Problem

# Content-Encoding to zlib's wbits: with a gzip header, with a zlib header.
CODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
CHUNK_BYTES = 2**20  # decompressed at once on the event loop, in about 3 ms


class DecompressionMiddleware:
    """ASGI middleware that decompresses bodies with a Content-Encoding.

    The application sees neither the encoding nor the length of the compressed body.

    Parameters
    ----------
    app
        The ASGI application behind it.
    limit
        Largest body in bytes, decompressed.

    Raises
    ------
    Problem
        415 for an unknown encoding, 400 for a body that is not encoded as declared, 413 for one that is too large
        when decompressed.
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
    """The encoding of a body; None when it is not compressed."""
    named = [name.strip().lower() for text in headers.getlist("content-encoding") for name in text.split(",")]
    codings = [name for name in named if name not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in CODINGS:
        raise Problem(
            UNSUPPORTED_ENCODING,
            f"the body is encoded as {', '.join(codings)[:60]!r}; accepted are gzip, deflate and none",
            {"Accept-Encoding": "gzip, deflate"},
        )
    return codings[0]


class _DecodedBody:
    """The messages of one body, decompressed."""

    def __init__(self, receive: Receive, wbits: int, limit: int) -> None:
        self._receive, self._limit = receive, limit
        self._decoder = zlib.decompressobj(wbits)
        self._pending = b""  # received and not decompressed yet
        self._begun, self._more, self._ended = False, True, False  # anything received, more to come, all passed on
        self._size = 0

    async def receive(self) -> Message:
        if self._ended:
            return await self._receive()  # messages after the body
        if not self._pending and self._more:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._pending, self._more = message.get("body", b""), message.get("more_body", False)
            self._begun = self._begun or bool(self._pending)
        body = self._decompress()
        await asyncio.sleep(0)  # lets other tasks run between two pieces
        return {"type": "http.request", "body": body, "more_body": not self._ended}

    def _decompress(self) -> bytes:
        """The next piece of the body."""
        try:
            body = self._decoder.decompress(self._pending, CHUNK_BYTES)
        except zlib.error:
            raise Problem(MALFORMED, "the body is not compressed as its Content-Encoding says") from None
        self._pending = self._decoder.unconsumed_tail
        self._size += len(body)
        if self._size > self._limit:
            raise Problem(BODY_TOO_LARGE, f"a request may have at most {self._limit / 2**20:g} MiB decompressed")
        complete = self._decoder.eof
        if self._decoder.unused_data:
            raise Problem(MALFORMED, "the body goes on after its compressed data")
        self._ended = not (self._pending or self._more or (len(body) == CHUNK_BYTES and not complete))
        if self._ended and self._begun and not complete:
            raise Problem(MALFORMED, "the compressed body ends too early")
        return body
