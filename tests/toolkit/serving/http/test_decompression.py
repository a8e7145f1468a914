"""Request bodies are decompressed exactly; invalid, truncated and excessive ones are refused."""

import asyncio
import gzip
import random
import tracemalloc
import zlib

import pytest

from toolkit.serving.http.decompression import CHUNK_BYTES, DecompressionMiddleware
from toolkit.serving.problems import BODY_TOO_LARGE, MALFORMED, UNSUPPORTED_ENCODING, Problem

LIMIT = 3 * CHUNK_BYTES
BODY = random.Random(1).randbytes(2 * CHUNK_BYTES + 17)
PACKED = {"gzip": gzip.compress(BODY), "x-gzip": gzip.compress(BODY), "deflate": zlib.compress(BODY)}


def seen(body, step=10**9, limit=LIMIT, **headers):
    """What an application sees of a body that arrives in steps: all of it, its headers, the largest piece."""
    pieces = [body[start : start + step] for start in range(0, len(body), step)] or [b""]
    messages = [{"type": "http.request", "body": one, "more_body": True} for one in pieces]
    messages[-1]["more_body"] = False
    feed, found = iter([*messages, {"type": "http.disconnect"}]), {"body": b"", "largest": 0}
    names = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}

    async def receive():
        return next(feed)

    async def app(scope, receive, send):
        found["headers"] = dict(scope["headers"])
        more = True
        while more:
            message = await receive()
            found["body"] += message["body"]
            found["largest"] = max(found["largest"], len(message["body"]))
            more = message["more_body"]
        assert (await receive())["type"] == "http.disconnect"

    asyncio.run(DecompressionMiddleware(app, limit)({"type": "http", "headers": list(names.items())}, receive, None))
    return found


def refused(*words, **named):
    with pytest.raises(Problem) as caught:
        seen(*words, **named)
    return caught.value


@pytest.mark.parametrize("step", [1009, 10**9])
@pytest.mark.parametrize("coding", PACKED)
def test_a_compressed_body_is_decompressed(coding, step):
    found = seen(PACKED[coding], step, content_encoding=coding, content_length="5", content_type="image/png")
    assert found["body"] == BODY
    assert found["headers"] == {b"content-type": b"image/png"}
    assert found["largest"] <= CHUNK_BYTES


def test_encodings_ignore_case_and_identity():
    assert seen(PACKED["gzip"], content_encoding=" GZIP, identity")["body"] == BODY
    for named in ({}, {"content_encoding": "identity"}, {"content_encoding": ""}):
        assert seen(PACKED["gzip"], **named)["body"] == PACKED["gzip"]


def test_an_empty_body_is_empty():
    assert (
        seen(b"", content_encoding="gzip")["body"] == seen(gzip.compress(b""), content_encoding="gzip")["body"] == b""
    )


def test_the_limit_is_exact():
    for size in (LIMIT - 1, LIMIT):
        assert len(seen(gzip.compress(bytes(size)), content_encoding="gzip")["body"]) == size
    assert refused(gzip.compress(bytes(LIMIT + 1)), content_encoding="gzip").problem_type is BODY_TOO_LARGE


@pytest.mark.parametrize("step", [1000, 10**9])
def test_a_decompression_bomb_stops_at_the_limit(step):
    bomb = gzip.compress(bytes(100 * CHUNK_BYTES))
    tracemalloc.start()
    assert refused(bomb, step, content_encoding="gzip").problem_type is BODY_TOO_LARGE
    assert tracemalloc.get_traced_memory()[1] < 3 * LIMIT
    tracemalloc.stop()


@pytest.mark.parametrize("named", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "x" * 1000])
def test_an_unknown_encoding_is_refused_by_name(named):
    problem = refused(b"abc", content_encoding=named)
    assert problem.problem_type is UNSUPPORTED_ENCODING
    assert named[:60] in problem.detail
    assert problem.headers == {"Accept-Encoding": "gzip, deflate"}


@pytest.mark.parametrize(
    "body", [b"no gzip", PACKED["deflate"], PACKED["gzip"][:-1], PACKED["gzip"][:100], PACKED["gzip"] + b"more",
             PACKED["gzip"][:-8] + b"checksum"],
    ids=["text", "deflate", "one byte short", "cut", "more behind", "other checksum"],
)  # fmt: skip
def test_invalid_compressed_data_is_malformed(body):
    assert refused(body, 1000, content_encoding="gzip").problem_type is MALFORMED
