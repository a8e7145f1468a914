"""Requests that a browser sends for pages of other origins are refused, and no others."""

import asyncio
from contextlib import suppress

import pytest

from toolkit.serving.http.cross_origin import CrossOriginMiddleware, is_cross_origin
from toolkit.serving.problems import CROSS_ORIGIN, Problem

HOST = {"host": "localhost:8000"}


def passes(method, headers, allowed=()):
    """Whether a request with these headers gets to the application."""
    got = []

    async def app(scope, receive, send):
        got.append(scope)

    scope = {"type": "http", "method": method, "headers": [(n.encode(), v.encode()) for n, v in headers.items()]}
    with suppress(Problem):
        asyncio.run(CrossOriginMiddleware(app, allowed)(scope, None, None))
    return bool(got)


@pytest.mark.parametrize(
    ("headers", "foreign"),
    [
        ({}, False),
        ({"origin": "http://localhost:8000"}, False),
        ({"origin": "HTTP://LOCALHOST:8000"}, False),
        ({"origin": "http://localhost"}, True),
        ({"origin": "http://localhost:8001"}, True),
        ({"origin": "https://evil.example"}, True),
        ({"origin": "http://evil.example:8000"}, True),
        ({"origin": "http://localhost:8000.evil.example"}, True),
        ({"origin": "null"}, True),
        ({"origin": ""}, True),
        ({"origin": "http://[::1"}, True),
        ({"sec-fetch-site": "same-origin", "origin": "https://app.example"}, False),  # a proxy in front has the name
        ({"sec-fetch-site": "none"}, False),
        ({"sec-fetch-site": "cross-site"}, True),
        ({"sec-fetch-site": "same-site", "origin": "http://localhost:9000"}, True),
        ({"sec-fetch-site": "cross-site", "origin": "http://localhost:8000"}, True),
    ],
)
def test_cross_origin_requests_are_refused(headers, foreign):
    assert is_cross_origin(HOST | headers) is foreign
    assert passes("POST", HOST | headers) is not foreign
    for method in ("GET", "HEAD", "OPTIONS"):
        assert passes(method, HOST | headers)


def test_the_problem_names_the_option():
    with pytest.raises(
        Problem, match="pages of another origin may not send requests here; see --allow-origin"
    ) as caught:
        asyncio.run(
            CrossOriginMiddleware(None)(
                {"type": "http", "method": "POST", "headers": [(b"origin", b"null")]}, None, None
            )
        )
    assert caught.value.problem_type is CROSS_ORIGIN


def test_the_default_port_is_optional():
    for host, origin in (("a", "http://a"), ("a:80", "http://a"), ("a", "http://a:80"), ("a:443", "https://a")):
        assert not is_cross_origin({"host": host, "origin": origin})
    assert is_cross_origin({"host": "a:80", "origin": "https://a"})


def test_allowed_origins_pass():
    allowed = ("https://app.example", "https://other.example")
    for site in ({}, {"sec-fetch-site": "cross-site"}):
        assert passes("POST", HOST | site | {"origin": "https://app.example"}, allowed)
        assert not passes("POST", HOST | site | {"origin": "https://app.example.evil"}, allowed)
        assert passes("POST", HOST | site | {"origin": "https://anything"}, ("*",))
    assert not passes("POST", HOST | {"sec-fetch-site": "cross-site"}, allowed)
