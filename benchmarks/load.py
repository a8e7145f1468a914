"""Load on a server: clients that wait for each answer, or arrivals at a rate that does not depend on answers.

HTTP/1.1 over plain sockets, requests made beforehand as bytes, connections kept alive: a request
costs the sender a tenth of a millisecond, so that it takes little from a server on the same machine.
"""

import asyncio
import base64
import itertools
import json
import re
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HOST = "127.0.0.1"
BROKEN = 0  # status of a request without an answer: the connection ended
BREATH = 0.05  # s that a client waits after that
ANSWER_SECONDS = 60  # after which an answer is not waited for any longer
CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Answer(NamedTuple):
    """Outcome of one request."""

    began: float  # s on the monotonic clock, which all processes share; when it was due, of arrivals at a rate
    seconds: float  # from then to the answer's last byte
    status: int

    @property
    def ended(self) -> float:
        """End of the response, in s on the same clock."""
        return self.began + self.seconds


class LoadMetrics(NamedTuple):
    """Summary of a load."""

    rate: float  # answered requests/s
    median: float  # ms of those that were answered
    p99: float  # ms
    failed: int  # neither answered nor refused with 503
    refused: float  # share refused with 503
    refusal: float  # ms until that was said, median


def load_metrics(answers: Sequence[Answer], ramp: float = 0.0) -> LoadMetrics:
    """Sum up a load; what began in the ramp has no part in the latency, nor what was answered in it in the rate.

    The rate is of the time until the last request began.

    >>> load_metrics([Answer(0, 1, 200), Answer(1, 1, 200), Answer(2, 1, 503), Answer(4, 2, 200)])
    LoadMetrics(rate=0.5, median=1000.0, p99=1980.0, failed=0, refused=0.25, refusal=1000.0)
    """
    start = min((answer.began for answer in answers), default=0.0) + ramp
    end = max((answer.began for answer in answers), default=0.0)
    answered = [answer for answer in answers if answer.status == 200]
    counted = sum(start <= answer.ended <= end for answer in answered)
    timed = [answer for answer in answered if answer.began >= start]
    refused = [answer for answer in answers if answer.status == 503]
    return LoadMetrics(
        rate=counted / (end - start) if end > start else 0.0,
        median=milliseconds(timed, 50),
        p99=milliseconds(timed, 99),
        failed=len(answers) - len(answered) - len(refused),
        refused=len(refused) / max(1, len(answers)),
        refusal=milliseconds(refused, 50),
    )


def milliseconds(answers: Sequence[Answer], percentile: float) -> float:
    """A percentile of the latency; infinity when there is none."""
    return float(np.percentile([answer.seconds for answer in answers], percentile) * 1000) if answers else float("inf")


# --- requests -----------------------------------------------------------------------------------


def raw(path: str, body: bytes, media_type: str = "image/jpeg") -> bytes:
    """A POST of a body as it is."""
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def form(path: str, field: str, image: bytes) -> bytes:
    """A POST of a form with one JPEG file, as browsers and ``curl -F`` send it."""
    boundary = secrets.token_hex(16)
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="image.jpg"\r\n'
    body = f"{part}Content-Type: image/jpeg\r\n\r\n".encode() + image + f"\r\n--{boundary}--\r\n".encode()
    return raw(path, body, f"multipart/form-data; boundary={boundary}")


def text(path: str, value: object) -> bytes:
    """A POST of a value as JSON, without blanks; bytes as base64."""
    words = json.dumps(value, separators=(",", ":"), default=lambda data: base64.b64encode(data).decode())
    return raw(path, words.encode(), "application/json")


# --- connections --------------------------------------------------------------------------------


class Connection:
    """A connection that is kept alive, and reopened when the server has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> int:
        """Send a request and read its answer to the end; the status."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._exchange(request)
        except (OSError, EOFError, TimeoutError):
            self.close()
            return BROKEN

    def close(self) -> None:
        """Close it, until the next request."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _exchange(self, request: bytes) -> int:
        if self._streams is None or self._streams[0].at_eof():
            self.close()
            self._streams = await asyncio.open_connection(HOST, self._port)
        reader, writer = self._streams
        writer.write(request)  # not waited for: a refusal may come before the whole of it is sent
        head = await reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        if length is None:
            raise ValueError(f"an answer without a length: {head!r}")
        await reader.readexactly(int(length[1]))
        if CLOSES.search(head):
            self.close()
        return int(head[9:12])


# --- load ---------------------------------------------------------------------------------------


def closed(
    port: int,
    requests: Sequence[bytes],
    clients: int,
    *,
    count: int = 0,
    seconds: float = 0.0,
    until: Path | None = None,
) -> list[Answer]:
    """Clients that send their next request once they have the answer to the last.

    They go on for at least a number of requests and at least a time, and as long as a file is not
    there; what is under way at the end is answered still.
    """

    async def load() -> list[Answer]:
        answers: list[Answer] = []
        end, numbers = time.monotonic() + seconds, itertools.count()

        async def client() -> None:
            connection = Connection(port)
            for number in numbers:  # all draw from the same
                began = time.monotonic()
                if number >= count and began >= end and (until is None or until.exists()):
                    break
                status = await connection.ask(requests[number % len(requests)])
                answers.append(Answer(began, time.monotonic() - began, status))
                if status == BROKEN:
                    await asyncio.sleep(BREATH)
            connection.close()

        await asyncio.gather(*(client() for _ in range(clients)))
        return answers

    return _run(load)


def arriving(port: int, requests: Sequence[bytes], rate: float, seconds: float, seed: int) -> list[Answer]:
    """Requests at random moments, so many a second, whatever became of those before.

    The latency counts from the moment at which a request was due.
    """
    generator = np.random.default_rng(seed)
    moments = np.cumsum(generator.exponential(1 / rate, size=int(2 * rate * seconds) + 100))

    async def load() -> list[Answer]:
        answers: list[Answer] = []
        idle: list[Connection] = []
        start = time.monotonic()

        async def one(due: float, request: bytes) -> None:
            connection = idle.pop() if idle else Connection(port)
            status = await connection.ask(request)
            idle.append(connection)
            answers.append(Answer(due, time.monotonic() - due, status))

        async with asyncio.TaskGroup() as group:
            for number, moment in enumerate(moments[moments < seconds]):
                await asyncio.sleep(start + moment - time.monotonic())
                group.create_task(one(start + float(moment), requests[number % len(requests)]))
        for connection in idle:
            connection.close()
        return answers

    return _run(load)


def _run(load: Callable[[], Coroutine[Any, Any, list[Answer]]]) -> list[Answer]:
    with suppress(KeyboardInterrupt):  # Ctrl-C is for the process that asked for the load
        return asyncio.run(load())
    return []
