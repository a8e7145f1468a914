"""API keys are required at the protected paths, and at no other."""

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from toolkit.serving.http.access_log import AccessLogMiddleware
from toolkit.serving.http.auth import APIKeyMiddleware
from toolkit.serving.metrics import ServiceMetrics

KEY, OTHER = "open sesame", "open barley"


async def answer(request):
    return PlainTextResponse(f"{len(await request.body())} bytes")


@pytest.fixture
def app():
    paths = ("/predict", "/admin", "/livez", "/models/{name}/infer", "/models/{name}")
    routes = [Route(path, answer, methods=["GET", "POST"]) for path in paths]
    guarded = {"/predict": KEY, "/admin": OTHER, "/models/{name}/infer": KEY}
    return AccessLogMiddleware(APIKeyMiddleware(Starlette(routes=routes), guarded), ServiceMetrics())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer open sesame"}, 200),
        ({"Authorization": "bearer   open sesame "}, 200),
        ({"X-API-Key": "open sesame"}, 200),
        ({"X-API-Key": " open sesame"}, 200),
        ({"X-API-Key": "open sesam"}, 403),
        ({"X-API-Key": "open sesame2"}, 403),
        ({"X-API-Key": "OPEN SESAME"}, 403),
        ({"X-API-Key": OTHER}, 403),
        ({"X-API-Key": ""}, 401),
        ({"X-API-Key": "   "}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "open sesame"}, 401),
        ({"Authorization": "Basic b3Blbg==", "X-API-Key": KEY}, 200),  # a proxy's own credentials do not hide the key
        ({"Authorization": "Bearer wrong", "X-API-Key": KEY}, 403),
        ({"X-API-Key": b"\xff\xfe\x00".replace(b"\0", b"")}, 403),
    ],
)
def test_each_way_to_send_a_key(app, ask, headers, status):
    found = ask(app, "POST", "/predict", headers=headers, content=b"abc")
    assert found.status_code == status
    if status == 200:
        assert found.text == "3 bytes"
        return
    document = found.json()
    assert found.headers["Content-Type"] == "application/problem+json"
    assert (document["status"], document["request_id"]) == (status, found.headers["X-Request-ID"])
    assert document["type"] == ("/docs#problem-key-missing" if status == 401 else "/docs#problem-key-wrong")
    assert (found.headers.get("WWW-Authenticate", "").startswith("Bearer ")) is (status == 401)
    assert KEY not in found.text


def test_each_path_has_its_own_key(app, ask):
    assert ask(app, "GET", "/livez").status_code == 200
    assert ask(app, "GET", "/livez", headers={"X-API-Key": "wrong"}).status_code == 200
    assert ask(app, "GET", "/admin", headers={"X-API-Key": KEY}).status_code == 403
    assert ask(app, "GET", "/admin", headers={"X-API-Key": OTHER}).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS", "BREW"])
def test_every_method_needs_the_key(app, ask, method):
    assert ask(app, method, "/predict").status_code == 401


def test_the_path_is_decoded(app, ask):
    assert ask(app, "POST", "/%70redict").status_code == 401
    assert ask(app, "POST", "/predict?x=1").status_code == 401


@pytest.mark.parametrize("key", ["schlüssel", "ключ", "鍵"])
def test_a_key_in_any_script(ask, key):
    app = AccessLogMiddleware(
        APIKeyMiddleware(Starlette(routes=[Route("/a", answer, methods=["POST"])]), {"/a": key}), ServiceMetrics()
    )
    assert ask(app, "POST", "/a", headers={"X-API-Key": key.encode()}).status_code == 200
    assert ask(app, "POST", "/a", headers={"X-API-Key": (key + key).encode()}).status_code == 403


def test_the_path_is_below_the_mount_point(ask):
    app = Starlette(routes=[Mount("/models", APIKeyMiddleware(Starlette(routes=[Route("/a", answer)]), {"/a": KEY}))])
    outer = AccessLogMiddleware(app, ServiceMetrics())
    assert ask(outer, "GET", "/models/a").status_code == 401
    assert ask(outer, "GET", "/models/a", headers={"X-API-Key": KEY}).status_code == 200


def test_a_protected_path_may_be_a_pattern(app, ask):
    for path, status in (("/models/pets/infer", 401), ("/models/%2e%2e/infer", 401), ("/models/pets", 200)):
        assert ask(app, "POST", path).status_code == status
    assert ask(app, "POST", "/models/pets/infer", headers={"X-API-Key": KEY}).status_code == 200
