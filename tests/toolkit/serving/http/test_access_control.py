"""API keys, and requests that a browser sends for pages of other origins."""

import pytest

from toolkit.serving.http.access_control import require_key, require_own_origin
from toolkit.serving.problems import CROSS_ORIGIN, KEY_MISSING, KEY_WRONG, Problem

KEY, OTHER = "open sesame", "open barley"
HOST = {"host": "localhost:8000"}


def refusal(check, *words):
    """The problem that a check raises; None if the request passes."""
    try:
        check(*words)
    except Problem as problem:
        return problem
    return None


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({}, KEY_MISSING),
        ({"authorization": "Bearer open sesame"}, None),
        ({"authorization": "bearer   open sesame "}, None),
        ({"x-api-key": "open sesame"}, None),
        ({"x-api-key": " open sesame"}, None),
        ({"x-api-key": "open sesam"}, KEY_WRONG),
        ({"x-api-key": "open sesame2"}, KEY_WRONG),
        ({"x-api-key": "OPEN SESAME"}, KEY_WRONG),
        ({"x-api-key": OTHER}, KEY_WRONG),
        ({"x-api-key": ""}, KEY_MISSING),
        ({"x-api-key": "   "}, KEY_MISSING),
        ({"authorization": "Bearer"}, KEY_MISSING),
        ({"authorization": "Bearer "}, KEY_MISSING),
        ({"authorization": "open sesame"}, KEY_MISSING),
        ({"authorization": "Basic b3Blbg==", "x-api-key": KEY}, None),  # a proxy's credentials do not hide the key
        ({"authorization": "Bearer wrong", "x-api-key": KEY}, KEY_WRONG),
        ({"x-api-key": "\xff\xfe"}, KEY_WRONG),
        ({"x-api-key": "ключ"}, KEY_WRONG),
    ],
)
def test_each_way_to_send_a_key(headers, wanted):
    problem = refusal(require_key, headers, KEY.encode())
    assert (problem and problem.problem_type) is wanted
    if problem:
        assert (problem.headers.get("WWW-Authenticate", "").startswith("Bearer ")) is (wanted is KEY_MISSING)
        assert KEY not in problem.detail


@pytest.mark.parametrize("key", ["schlüssel", "ключ", "鍵"])
def test_a_key_in_any_script(key):
    sent = key.encode().decode("latin-1")  # as headers are decoded
    assert refusal(require_key, {"x-api-key": sent}, key.encode()) is None
    assert refusal(require_key, {"x-api-key": sent + sent}, key.encode()).problem_type is KEY_WRONG


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
        # The default port is optional.
        ({"host": "a", "origin": "http://a"}, False),
        ({"host": "a:80", "origin": "http://a"}, False),
        ({"host": "a", "origin": "http://a:80"}, False),
        ({"host": "a:443", "origin": "https://a"}, False),
        ({"host": "a:80", "origin": "https://a"}, True),
    ],
)
def test_cross_origin_requests_are_refused(headers, foreign):
    problem = refusal(require_own_origin, HOST | headers, ())
    assert (problem is not None) is foreign
    if problem:
        assert problem.problem_type is CROSS_ORIGIN
        assert problem.detail == "pages of another origin may not send requests here; see --allow-origin"


def test_allowed_origins_pass():
    allowed = ("https://app.example", "https://other.example")
    for site in ({}, {"sec-fetch-site": "cross-site"}):
        for origin, origins, passes in (
            ("https://app.example", allowed, True),
            ("https://app.example.evil", allowed, False),
            ("https://anything", ("*",), True),
        ):
            headers = HOST | site | {"origin": origin}
            assert (refusal(require_own_origin, headers, origins) is None) is passes
    assert refusal(require_own_origin, HOST | {"sec-fetch-site": "cross-site"}, allowed)
