"""The limits of a body, to the byte, before and after its decompression, and those of its time."""

import asyncio
import gzip
import random
import tracemalloc
import zlib

import pytest
from starlette.datastructures import MutableHeaders

from toolkit.serving.http.body_stream import CHUNK_BYTES, DRAIN_FACTOR, BodyStream, Timeouts
from toolkit.serving.problems import BODY_TOO_LARGE, MALFORMED, REQUEST_TIMEOUT, UNSUPPORTED_ENCODING, Problem

LIMIT = 100


class Client:
    """Sends pieces, from the third on with pauses, and then nothing more unless it ``leaves``."""

    def __init__(self, *pieces, leaves=False, pause=0.0):
        self.pieces, self.leaves, self.pause, self.received = list(pieces), leaves, pause, 0

    async def receive(self):
        self.received += 1
        await asyncio.sleep(self.pause if self.received > 2 else 0)
        if self.pieces:
            piece = self.pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self.pieces) or self.leaves}
        if not self.leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}


def read(client, headers=(), limit=LIMIT, timeouts=Timeouts()):  # noqa: B008  it is frozen
    """The pieces of a body as a route receives them, the headers that it sees, and the size that was announced."""

    async def received():
        stream, seen = BodyStream(client.receive, limit, timeouts), MutableHeaders(headers or None)
        try:
            size, pieces, more = await stream.open(seen), [], True
            while more:
                message = await stream.receive()
                pieces.append(message.get("body", b""))
                more = message.get("more_body", False)
            return pieces, dict(seen), size
        finally:
            stream.close()

    return asyncio.run(received())


def refused(client, headers=(), **words):
    with pytest.raises(Problem) as caught:
        read(client, headers, **words)
    return caught.value


# Size


@pytest.mark.parametrize("headers", [{}, {"content-length": "100"}])
def test_a_body_of_exactly_the_limit_passes(headers):
    assert read(Client(b"a" * 60, b"b" * 40), headers) == ([b"a" * 60, b"b" * 40], headers, LIMIT)
    assert read(Client(b""), headers)[0] == [b""]


def test_the_announced_size_is_the_largest_possible_one():
    assert read(Client(b"abc"), {"content-length": "3"})[2] == 3
    assert read(Client(b"abc"))[2] == LIMIT
    packed = gzip.compress(b"a")
    assert read(Client(packed), {"content-length": str(len(packed)), "content-encoding": "gzip"})[2] == LIMIT


@pytest.mark.parametrize(
    ("pieces", "headers"),
    [
        ([b"a" * 101], {"content-length": "101"}),
        ([b"a" * 60, b"b" * 41], {}),
        ([b"a" * 101], {"content-length": "5"}),  # a wrong length
        ([b"x" * 50] * 6, {"content-length": "300"}),  # the rest is received too
        ([b"x" * 50] * 6, {}),
    ],
)
def test_a_larger_body_is_drained_and_refused(pieces, headers):
    client = Client(*pieces)
    problem = refused(client, headers)
    assert (problem.problem_type, problem.headers) == (BODY_TOO_LARGE, {"Connection": "close"})
    assert client.pieces == []


@pytest.mark.parametrize("headers", [{}, {"content-length": "400"}])
def test_an_endless_body_is_cut_off(headers):
    client = Client(*[b"x" * 50] * 1000)
    assert refused(client, headers).problem_type is BODY_TOO_LARGE
    assert client.received * 50 <= (DRAIN_FACTOR + 1) * LIMIT


@pytest.mark.parametrize("headers", [{"content-length": str(DRAIN_FACTOR * LIMIT + 1)},
                                     {"content-length": "300", "expect": "100-Continue"}])  # fmt: skip
def test_excessive_and_expected_bodies_are_not_drained(headers):
    client = Client(*[b"x" * 50] * 6)
    assert refused(client, headers).headers == {"Connection": "close"}
    assert client.received == 0


@pytest.mark.parametrize("declared", ["-1", "+5", "1e3", "5, 5", "0x10", "", "Ù£", "³", "9" * 20])
def test_an_invalid_content_length_is_malformed(declared):
    problem = refused(Client(b"abc"), {"content-length": declared})
    assert (problem.problem_type, problem.headers) == (MALFORMED, {"Connection": "close"})
    assert "whole number" in problem.detail


def test_a_client_may_disconnect_while_its_body_is_drained():
    client = Client(*[b"x" * 50] * 3, leaves=True)  # three more were declared
    assert refused(client, {"content-length": "300"}).problem_type is BODY_TOO_LARGE


# Time


def test_a_stalled_body_times_out():
    client = Client(b"a", b"a", b"a", pause=0.2)
    problem = refused(client, timeouts=Timeouts(body=3600, read=0.05))
    assert (problem.problem_type, problem.headers) == (REQUEST_TIMEOUT, {"Connection": "close"})
    assert problem.detail == "a body must arrive within 3600 s, with no pause longer than 0.05 s"


def test_a_dripping_body_times_out():
    client = Client(*[b"a"] * 10_000, pause=0.01)
    problem = refused(client, limit=10_000, timeouts=Timeouts(body=0.5, read=3600))
    assert problem.detail == "a body must arrive within 0.5 s, with no pause longer than 3600 s"
    assert client.received > 1


def test_no_time_runs_before_the_body_is_asked_for_or_after_its_end():
    async def play():
        client = Client(b"a", leaves=True)
        stream = BodyStream(client.receive, LIMIT, Timeouts(body=0.2, read=0.2))
        await asyncio.sleep(0.3)
        assert (await stream.receive())["body"] == b"a"
        stream.response_started = True  # an answer before the end of the body: nothing watches the connection
        client.pieces, client.leaves = [b"b"], False
        await stream.receive()
        client.leaves, client.received, client.pause = True, 2, 0.3
        return await stream.receive()

    assert asyncio.run(play()) == {"type": "http.disconnect"}


# Compression

LARGE = 3 * CHUNK_BYTES
BODY = random.Random(1).randbytes(2 * CHUNK_BYTES + 17)
PACKED = {"gzip": gzip.compress(BODY, 1), "x-gzip": gzip.compress(BODY, 1), "deflate": zlib.compress(BODY, 1)}


def unpacked(body, coding, step=10**9, **headers):
    """The pieces and the headers that a route sees of a compressed body that arrives in steps."""
    pieces = [body[start : start + step] for start in range(0, len(body), step)] or [b""]
    return read(Client(*pieces), headers | {"content-encoding": coding}, LARGE)[:2]


def not_unpacked(*words):
    with pytest.raises(Problem) as caught:
        unpacked(*words)
    return caught.value


@pytest.mark.parametrize("step", [1009, 10**9])
@pytest.mark.parametrize("coding", PACKED)
def test_a_compressed_body_is_decompressed(coding, step):
    headers = {"content-length": "5", "content-type": "image/png"}
    pieces, seen = unpacked(PACKED[coding], coding, step, **headers)
    assert b"".join(pieces) == BODY
    assert seen == {"content-type": "image/png"}
    assert max(map(len, pieces)) <= CHUNK_BYTES


def test_encodings_ignore_case_and_identity():
    assert b"".join(unpacked(PACKED["gzip"], " GZIP, identity")[0]) == BODY
    for coding in ("identity", ""):
        assert unpacked(PACKED["gzip"], coding)[0] == [PACKED["gzip"]]


def test_an_empty_body_is_empty():
    for body in (b"", gzip.compress(b"")):
        assert b"".join(unpacked(body, "gzip")[0]) == b""


def test_the_limit_holds_for_the_decompressed_body():
    for size in (LARGE - 1, LARGE):
        assert len(b"".join(unpacked(gzip.compress(bytes(size)), "gzip")[0])) == size
    assert not_unpacked(gzip.compress(bytes(LARGE + 1)), "gzip").problem_type is BODY_TOO_LARGE


@pytest.mark.parametrize("step", [1000, 10**9])
def test_a_decompression_bomb_stops_at_the_limit(step):
    bomb = gzip.compress(bytes(100 * CHUNK_BYTES))
    tracemalloc.start()
    assert not_unpacked(bomb, "gzip", step).problem_type is BODY_TOO_LARGE
    assert tracemalloc.get_traced_memory()[1] < 3 * LARGE
    tracemalloc.stop()


@pytest.mark.parametrize("named", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "x" * 1000])
def test_an_unknown_encoding_is_refused_by_name(named):
    problem = not_unpacked(b"abc", named)
    assert problem.problem_type is UNSUPPORTED_ENCODING
    assert named[:60] in problem.detail
    assert problem.headers == {"Accept-Encoding": "gzip, deflate"}


@pytest.mark.parametrize(
    "body", [b"no gzip", PACKED["deflate"], PACKED["gzip"][:-1], PACKED["gzip"][:100], PACKED["gzip"] + b"more",
             PACKED["gzip"][:-8] + b"checksum"],
    ids=["text", "deflate", "one byte short", "cut", "more behind", "other checksum"],
)  # fmt: skip
def test_invalid_compressed_data_is_malformed(body):
    assert not_unpacked(body, "gzip", 1000).problem_type is MALFORMED
