"""The limits of a body's size, to the byte, and of its time."""

import asyncio

import pytest

from toolkit.serving.http.body_limit import DRAIN_FACTOR, BodyLimitMiddleware
from toolkit.serving.http.timeouts import Timeouts
from toolkit.serving.problems import BODY_TOO_LARGE, MALFORMED, REQUEST_TIMEOUT, Problem

LIMIT = 100


class Client:
    """An ASGI client that sends pieces and counts how many of them were received."""

    def __init__(self, pieces, **headers):
        self.pieces, self.received = list(pieces), 0
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self.scope = {"type": "http", "headers": [(n.encode(), v.encode("latin-1")) for n, v in names.items()]}

    async def receive(self):
        self.received += 1
        if not self.pieces:
            return {"type": "http.disconnect"}
        piece = self.pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(self.pieces)}


def send(client):
    """What an application behind the limit gets to see."""
    seen = []

    async def app(scope, receive, send):
        while True:
            message = await receive()
            seen.append(message.get("body", b""))
            if not message.get("more_body"):
                return

    asyncio.run(BodyLimitMiddleware(app, LIMIT)(client.scope, client.receive, None))
    return b"".join(seen)


def refused(client):
    with pytest.raises(Problem) as caught:
        send(client)
    assert caught.value.headers == {"Connection": "close"}
    return caught.value


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_of_exactly_the_limit_passes(declared):
    headers = {"content_length": str(LIMIT)} if declared else {}
    assert send(Client([b"a" * 60, b"b" * 40], **headers)) == b"a" * 60 + b"b" * 40
    assert send(Client([b""], **headers)) == b""


def test_one_byte_more_is_refused():
    assert refused(Client([b"a" * 101], content_length="101")).problem_type is BODY_TOO_LARGE
    assert refused(Client([b"a" * 60, b"b" * 41])).problem_type is BODY_TOO_LARGE
    assert refused(Client([b"a" * 101], content_length="5")).problem_type is BODY_TOO_LARGE  # a wrong length


def test_the_rest_of_a_refused_body_is_drained():
    client = Client([b"x" * 50] * 6, content_length="300")
    refused(client)
    assert client.pieces == []
    client = Client([b"x" * 50] * 6)
    refused(client)
    assert client.pieces == []


def test_an_endless_body_is_cut_off():
    for headers in ({}, {"content_length": "400"}):
        client = Client([b"x" * 50] * 1000, **headers)
        refused(client)
        assert client.received * 50 <= (DRAIN_FACTOR + 1) * LIMIT


@pytest.mark.parametrize("headers", [{"content_length": str(DRAIN_FACTOR * LIMIT + 1)},
                                     {"content_length": "300", "expect": "100-Continue"}])  # fmt: skip
def test_excessive_and_expected_bodies_are_not_drained(headers):
    client = Client([b"x" * 50] * 6, **headers)
    refused(client)
    assert client.received == 0


@pytest.mark.parametrize("declared", ["-1", "+5", "1e3", "5, 5", "0x10", "", "٣", "³", "9" * 20])
def test_an_invalid_content_length_is_malformed(declared):
    client = Client([b"abc"])
    client.scope["headers"] = [(b"content-length", declared.encode())]
    found = refused(client)
    assert found.problem_type is MALFORMED
    assert "whole number" in found.detail


def test_a_client_may_disconnect_while_its_body_is_drained():
    client = Client([b"x" * 50] * 3, content_length="300")  # three more were declared
    assert refused(client).problem_type is BODY_TOO_LARGE


def test_other_protocols_than_http_pass():
    async def app(scope, receive, send):
        seen.append(scope)

    seen = []
    asyncio.run(BodyLimitMiddleware(app, LIMIT)({"type": "lifespan"}, None, None))
    assert seen == [{"type": "lifespan"}]


# Time


def answer(app, receive, timeouts):
    asyncio.run(BodyLimitMiddleware(app, LIMIT, timeouts)({"type": "http", "headers": []}, receive, None))


async def read_all(scope, receive, send):
    while (await receive()).get("more_body"):
        pass


def drip(pause, max_pieces=10**6):
    """A client that sends its body byte by byte, and how many it has sent."""
    sent = []

    async def receive():
        await asyncio.sleep(pause)
        sent.append(b"a")
        return {"type": "http.request", "body": b"a", "more_body": len(sent) < max_pieces}

    return receive, sent


def test_a_stalled_body_times_out():
    async def receive():
        if received:
            await asyncio.Event().wait()
        received.append(True)
        return {"type": "http.request", "body": b"a", "more_body": True}

    received = []
    with pytest.raises(
        Problem, match=r"408: a body must arrive within 3600 s, with no pause longer than 0\.05 s"
    ) as caught:
        answer(read_all, receive, Timeouts(body=3600, read=0.05))
    assert caught.value.problem_type is REQUEST_TIMEOUT
    assert caught.value.headers == {"Connection": "close"}


def test_a_dripping_body_times_out():
    receive, sent = drip(0.01)
    with pytest.raises(Problem, match=r"408: a body must arrive within 0\.2 s, with no pause longer than 3600 s"):
        answer(read_all, receive, Timeouts(body=0.2, read=3600))
    assert len(sent) > 1


def test_messages_after_the_body_have_no_timeout():
    async def receive():
        if len(sent) == 5:
            await asyncio.sleep(1.5)
            return {"type": "http.disconnect"}
        return await arriving()

    async def app(scope, receive, send):
        await asyncio.sleep(1.1)  # before the application asks, no time runs
        await read_all(scope, receive, send)
        last.append(await receive())

    (arriving, sent), last = drip(0.001, max_pieces=5), []
    answer(app, receive, Timeouts(body=1.0, read=1.0))
    assert last == [{"type": "http.disconnect"}]
