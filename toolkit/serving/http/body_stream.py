"""The body of a request as it arrives: limits of size and time, decompression, and clients that disconnect."""

import asyncio
import zlib
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive

from toolkit.serving.problems import BODY_TOO_LARGE, MALFORMED, REQUEST_TIMEOUT, UNSUPPORTED_ENCODING, Problem

DRAIN_FACTOR = 4  # bodies up to so many times the limit are received to their end, and discarded, before the answer
DRAIN_SECONDS = 5.0
# Content-Encoding to zlib's wbits: with a gzip header, with a zlib header.
CODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
CHUNK_BYTES = 2**20  # decompressed at once on the event loop, in about 3 ms
CLOSE = {"Connection": "close"}


@dataclass(frozen=True)
class Timeouts:
    """Limits in seconds for clients that are slow or send nothing, so that they do not hold connections for ever.

    Parameters
    ----------
    header
        From the opening of a connection, or the first byte of a further request, to the end of the request's headers.
    body
        For a whole body to arrive, from the moment when the application first asks for it, and for an answer to be
        read.
    read
        Between two pieces of a body.
    """

    header: float = 10.0
    body: float = 30.0
    read: float = 10.0


DEFAULT_TIMEOUTS = Timeouts()


class BodyStream:
    """The messages of one request, as its route receives them.

    A body that is too large is refused before anything of it is kept in memory. Many clients do not read before they
    have sent everything, and take a closed connection for a failure of the network: so the rest of a body that is not
    excessively large is received and discarded before the problem is raised. A compressed body is decompressed in
    pieces, so that a decompression bomb is refused in time.

    From the end of the body until ``response_started`` the connection is watched. If the client disconnects in that
    time, the task that made this object is cancelled.

    Parameters
    ----------
    receive
        Returns the next message from the server.
    limit
        Largest body in bytes, compressed and decompressed.
    timeouts
        ``body`` and ``read`` hold.
    """

    def __init__(self, receive: Receive, limit: int, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        self.response_started = False
        self._receive, self._limit, self._timeouts = receive, limit, timeouts
        self._received, self._more = 0, True
        self._deadline: float | None = None  # of the last byte, set when the first one is asked for
        self._decompression: _Decompression | None = None
        self._after: asyncio.Task[Message] | None = None  # the message after the body
        self._task = asyncio.current_task()
        self._cancel_requests = self._task.cancelling() if self._task else 0  # by others
        self._disconnected = False

    async def open(self, headers: MutableHeaders) -> int:
        """Check what the headers say of the body, and remove its encoding; returns its largest possible size.

        Raises
        ------
        Problem
            413 for a body that is declared as too large, 400 for a Content-Length that is no number, 415 for an unknown
            encoding. ``receive`` raises 413 and 400 for other bodies, and 408 for one that is too slow.
        """
        length = headers.get("content-length")
        if length is not None:
            if not (length.isascii() and length.isdigit() and len(length) < 20):
                raise Problem(MALFORMED, "Content-Length must be a whole number", CLOSE)
            if int(length) > self._limit:
                if headers.get("expect", "").lower() != "100-continue" and int(length) <= self._limit * DRAIN_FACTOR:
                    await self._drain(int(length))
                raise self._too_large()
        if "content-encoding" in headers and (coding := _coding(headers)):
            self._decompression = _Decompression(CODINGS[coding], self._limit)
            for name in ("content-encoding", "content-length"):
                del headers[name]
            return self._limit
        return self._limit if length is None else int(length)

    async def receive(self) -> Message:
        """The next message for the route."""
        decompression = self._decompression
        if decompression is None or decompression.ended:
            return await self._next()
        if not decompression.pending and self._more:
            message = await self._next()
            if message["type"] != "http.request":
                return message
            decompression.pending = message.get("body", b"")
        body = decompression.next_piece(more=self._more)
        await asyncio.sleep(0)  # lets other tasks run between two pieces
        return {"type": "http.request", "body": body, "more_body": not decompression.ended}

    async def _next(self) -> Message:
        """The next message from the server."""
        if self._after is not None:  # cancelling the route's wait must not cancel the watch
            return await asyncio.shield(self._after)
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
            raise Problem(REQUEST_TIMEOUT, detail, CLOSE) from None
        self._received += len(message.get("body", b""))
        self._more = message.get("more_body", False)
        if self._received > self._limit:
            if self._more:
                await self._drain(self._limit * (DRAIN_FACTOR - 1))
            raise self._too_large()
        if not self._more and message["type"] == "http.request" and not self.response_started:
            self._after = asyncio.create_task(self._watch())
        return message

    async def _watch(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self.response_started and self._task is not None:
            self._disconnected = True
            self._task.cancel()
        return message

    def cancelled_by_disconnect(self) -> bool:
        """Whether the task's CancelledError is this object's doing alone, and ends here."""
        return self._disconnected and self._task is not None and self._task.uncancel() <= self._cancel_requests

    def close(self) -> None:
        """End the watch."""
        if self._after is not None:
            self._after.cancel()

    async def _drain(self, max_bytes: int) -> None:
        """Receive up to ``max_bytes`` more and discard them."""
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while max_bytes > 0:
                    message = await self._receive()
                    if message["type"] != "http.request" or not message.get("more_body"):
                        return
                    max_bytes -= len(message.get("body", b""))
        except TimeoutError:
            return

    def _too_large(self) -> Problem:
        return Problem(BODY_TOO_LARGE, f"a request may have at most {self._limit / 2**20:g} MiB", CLOSE)


def _coding(headers: MutableHeaders) -> str | None:
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


class _Decompression:
    """Decompression of one body in pieces; ``pending`` is received and not decompressed yet."""

    def __init__(self, wbits: int, limit: int) -> None:
        self.pending = b""
        self.ended = False  # all has been passed on
        self._decoder = zlib.decompressobj(wbits)
        self._limit, self._size, self._begun = limit, 0, False

    def next_piece(self, more: bool) -> bytes:
        """The next piece; ``more`` says whether anything is still to be received."""
        self._begun = self._begun or bool(self.pending)
        try:
            body = self._decoder.decompress(self.pending, CHUNK_BYTES)
        except zlib.error:
            raise Problem(MALFORMED, "the body is not compressed as its Content-Encoding says") from None
        self.pending = self._decoder.unconsumed_tail
        self._size += len(body)
        if self._size > self._limit:
            raise Problem(BODY_TOO_LARGE, f"a request may have at most {self._limit / 2**20:g} MiB decompressed")
        complete = self._decoder.eof
        if self._decoder.unused_data:
            raise Problem(MALFORMED, "the body goes on after its compressed data")
        self.ended = not (self.pending or more or (len(body) == CHUNK_BYTES and not complete))
        if self.ended and self._begun and not complete:
            raise Problem(MALFORMED, "the compressed body ends too early")
        return body
