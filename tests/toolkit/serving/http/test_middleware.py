"""Each request is checked and answered, and has an id, a log line and a count."""

import asyncio
import json
import logging
import re

import pytest
from fastapi import FastAPI, Response
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.routing import Mount

from toolkit.serving.http.middleware import (
    CLIENT_CLOSED_REQUEST,
    MAX_PATH_LENGTH,
    DirectEndpoints,
    RequestRules,
    ServiceMiddleware,
)
from toolkit.serving.inference.admission import AdmissionController
from toolkit.serving.metrics import ServiceMetrics
from toolkit.serving.problems import OVERLOADED, Problem

LIMIT = 1000  # bytes of a body
KEYS = {"/predict": "open sesame", "/admin": "open barley", "/models/{name}/infer": "open sesame"}


@pytest.fixture
def metrics():
    return ServiceMetrics()


@pytest.fixture
def make_app(metrics):
    """A function that makes an application with these rules."""

    def make(**rules):
        app = FastAPI()

        @app.get("/things/{name}")
        async def things(name: str) -> Response:
            return Response(name, headers={"X-Found": "yes"})

        @app.get("/broken")
        async def broken() -> str:
            raise RuntimeError("hunter2")

        @app.get("/predict")
        @app.post("/predict")
        @app.post("/models/{name}/infer")
        @app.post("/models/{name}")
        @app.get("/admin")
        async def anything() -> str:
            return "answered"

        app.add_middleware(ServiceMiddleware, metrics=metrics, rules=RequestRules(LIMIT, **rules))
        return app

    return make


@pytest.fixture
def app(make_app):
    return make_app()


@pytest.fixture
def log():
    """The records that the service logs."""
    records, logger, handler = [], logging.getLogger("toolkit.serving"), logging.Handler()
    handler.emit = records.append
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield records
    logger.setLevel(level)
    logger.removeHandler(handler)


def facts(log):
    """The fields of the last request in the log."""
    return log[-1].request


def test_requests_are_logged_and_counted_by_route(app, ask, metrics, log):
    found = ask(app, "GET", "/things/cat?secret=1")
    assert found.text == "cat"
    assert re.fullmatch("[0-9a-f]{16}", found.headers["X-Request-ID"])
    assert found.headers["X-Content-Type-Options"] == "nosniff"
    logged_fields = facts(log)
    assert logged_fields.pop("ms") >= 0
    assert logged_fields == {
        "request_id": found.headers["X-Request-ID"],
        "method": "GET",
        "path": "/things/cat",
        "status": 200,
        "client": "127.0.0.1",
    }
    for name in range(20):
        ask(app, "GET", f"/things/{name}")
    assert metrics.summary()["requests"] == {"/things/{name}": {"200": 21}}


def test_unknown_paths_and_methods_count_as_other(app, ask, metrics):
    for number in range(30):
        assert ask(app, f"VERB{number}", f"/nothing/{number}").status_code == 404
    assert ask(app, "DELETE", "/things/cat").status_code == 405
    assert metrics.summary()["requests"] == {"other": {"404": 30}, "/things/{name}": {"405": 1}}
    text = metrics.prometheus("")[0].decode()
    assert 'method="other",route="other",status="404"} 30.0' in text
    assert "VERB" not in text


def test_a_direct_endpoint_answers_posts_to_its_path_alone(app, ask, metrics):
    async def endpoint(request):
        body = await request.body()
        if not body:
            raise Problem(OVERLOADED, "nothing was sent", {"Retry-After": "7"})
        return Response(body + request.state.request_id.encode())

    direct = DirectEndpoints(app, {"/predict": endpoint})
    outer = ServiceMiddleware(direct, metrics, RequestRules(LIMIT), paths=("/predict",))
    answer = ask(outer, "POST", "/predict", content=b"image ", headers={"X-Request-ID": "abc"})
    assert (answer.text, answer.headers["X-Request-ID"]) == ("image abc", "abc")
    refusal = ask(outer, "POST", "/predict")
    assert (refusal.status_code, refusal.headers["Retry-After"]) == (503, "7")
    assert refusal.json()["detail"] == "nothing was sent"
    assert ask(outer, "POST", "/predict", content=b"x" * (LIMIT + 1)).status_code == 413
    assert ask(direct, "GET", "/predict").json() == ask(direct, "POST", "/models/a").json() == "answered"
    assert metrics.summary()["requests"]["/predict"] == {"200": 2, "503": 1, "413": 1}


@pytest.mark.parametrize("valid", ["abc", "4bf92f35-77b3.4da6_a3ce", "x" * 64])
def test_a_valid_request_id_is_kept(app, ask, valid):
    assert ask(app, "GET", "/things/a", headers={"X-Request-ID": valid}).headers["X-Request-ID"] == valid


@pytest.mark.parametrize("invalid", ["", "-a", "a b", "x" * 65, "a\tb", "<script>", "ü", "a/b", '"'])
def test_an_invalid_request_id_is_replaced(app, ask, invalid):
    found = ask(app, "GET", "/things/a", headers={"X-Request-ID": invalid.encode()})
    assert re.fullmatch("[0-9a-f]{16}", found.headers["X-Request-ID"])


def test_request_ids_differ(app, ask):
    assert len({ask(app, "GET", "/things/a").headers["X-Request-ID"] for _ in range(10)}) == 10


def test_an_uncaught_error_is_a_500_and_a_traceback_in_the_log(app, ask, metrics, log):
    found = ask(app, "GET", "/broken", headers={"X-Request-ID": "abc"})
    document = found.json()
    assert found.status_code == document["status"] == 500
    assert found.headers["Content-Type"] == "application/problem+json"
    assert (document["type"], document["request_id"]) == ("/docs#problem-internal-error", "abc")
    assert found.headers["X-Request-ID"] == "abc"
    assert "hunter2" not in found.text
    logged = log[-2]
    assert (logged.levelname, logged.getMessage()) == ("ERROR", "request abc failed")
    assert logged.exc_info[0] is RuntimeError
    assert facts(log)["problem"] == "internal-error"
    assert metrics.summary()["errors"] == {"internal-error": 1}


def run(metrics, error, begin=()):
    """A request whose application raises, and the messages that the server was sent."""
    sent = []

    async def app(scope, receive, send):
        for message in begin:
            await send(message)
        raise error

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/x", "query_string": b"", "headers": [], "client": None}
    asyncio.run(ServiceMiddleware(app, metrics, RequestRules(LIMIT))(scope, None, send))
    return sent


def test_a_problem_of_a_middleware_is_answered_without_a_traceback(metrics, log):
    sent = run(metrics, Problem(OVERLOADED, "full", {"Retry-After": "2"}))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 503
    assert (b"retry-after", b"2") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["detail"] == "full"
    assert [record.levelname for record in log] == ["INFO"]
    assert metrics.summary()["errors"] == {"overloaded": 1}


def test_an_error_after_the_response_began_is_only_logged(metrics, log):
    begun = [
        {"type": "http.response.start", "status": 200, "headers": []},
        {"type": "http.response.body", "body": b"a"},
    ]
    assert run(metrics, RuntimeError("in the middle"), begun) == begun
    assert log[-2].exc_info[0] is RuntimeError
    assert metrics.summary()["requests"] == {"other": {"200": 1}}


def test_a_disconnected_client_is_no_error(metrics, log):
    assert run(metrics, ClientDisconnect()) == []
    assert facts(log)["status"] == CLIENT_CLOSED_REQUEST
    assert [record.levelname for record in log] == ["INFO"]
    assert metrics.summary()["requests"] == {"other": {"499": 1}}


def test_a_cancelled_request_is_logged_and_stays_cancelled(metrics, log):
    with pytest.raises(asyncio.CancelledError):
        run(metrics, asyncio.CancelledError())
    assert facts(log)["status"] == CLIENT_CLOSED_REQUEST


def test_a_long_path_is_cut(app, ask, log):
    ask(app, "GET", "/things/" + "x" * 5000)
    assert len(facts(log)["path"]) == MAX_PATH_LENGTH


# What is refused before the route


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS", "BREW"])
@pytest.mark.parametrize("path", ["/predict", "/%70redict", "/predict?x=1", "/models/pets/infer",
                                  "/models/%2e%2e/infer"])  # fmt: skip
def test_every_method_and_spelling_of_a_path_needs_its_key(make_app, ask, method, path):
    found = ask(make_app(keys=KEYS), method, path, content=bytes(LIMIT + 1))  # before the body matters
    assert (found.status_code, found.json()["request_id"]) == (401, found.headers["X-Request-ID"])
    assert found.headers["WWW-Authenticate"].startswith("Bearer ")


def test_each_path_has_its_own_key(make_app, ask):
    app = make_app(keys=KEYS)
    for method, path, key, status in (
        ("POST", "/predict", "open sesame", 200),
        ("POST", "/models/pets/infer", "open sesame", 200),
        ("GET", "/admin", "open sesame", 403),
        ("GET", "/admin", "open barley", 200),
        ("POST", "/models/pets", "", 200),
        ("GET", "/things/a", "", 200),
    ):
        assert ask(app, method, path, headers={"X-API-Key": key}).status_code == status


def test_a_protected_path_is_below_the_mount_point(make_app, ask):
    outer = Starlette(routes=[Mount("/pets", make_app(keys=KEYS))])
    assert ask(outer, "POST", "/pets/predict").status_code == 401
    assert ask(outer, "POST", "/pets/predict", headers={"X-API-Key": "open sesame"}).status_code == 200


def test_pages_of_other_origins_may_only_read(make_app, ask):
    page = {"Origin": "https://evil.example"}
    for origins, status in (((), 403), (("https://evil.example",), 200), (None, 200)):
        app = make_app(origins=origins)
        assert ask(app, "POST", "/predict", headers=page).status_code == status
        for method, read in (("GET", 200), ("HEAD", 200), ("OPTIONS", 405)):
            assert ask(app, method, "/predict", headers=page).status_code == read


def test_images_are_refused_without_a_free_slot_and_nothing_else(make_app, ask):
    admission = AdmissionController(1, 0)
    app = make_app(image_paths={"/predict"}, require_slot=lambda: admission.require_slot(1))
    assert ask(app, "POST", "/predict").status_code == 200
    with admission.slots(1):
        found = ask(app, "POST", "/predict")
        assert (found.status_code, found.json()["detail"][:27]) == (503, "the queue is full: 1 image ")
        assert ask(app, "GET", "/predict").status_code == ask(app, "POST", "/models/a").status_code == 200


def test_a_body_beyond_the_limit_is_refused(app, ask):
    assert ask(app, "POST", "/predict", content=bytes(LIMIT)).status_code == 200
    assert ask(app, "POST", "/predict", content=bytes(LIMIT + 1)).status_code == 413


# HEAD


def test_head_has_the_headers_of_get_and_no_body(app, ask):
    got, found = (ask(app, method, "/things/cat") for method in ("GET", "HEAD"))
    assert (got.content, found.content) == (b"cat", b"")
    assert found.status_code == got.status_code == 200
    assert found.headers.pop("X-Request-ID") != got.headers.pop("X-Request-ID")
    assert found.headers == got.headers
    assert found.headers["Content-Length"] == "3"


def test_head_fails_where_get_does(app, ask):
    for path, status in (("/nothing", 404), ("/models/a", 405)):
        found = ask(app, "HEAD", path)
        assert (found.status_code, found.content) == (status, b"")


def test_other_protocols_than_http_pass():
    async def app(scope, receive, send):
        seen.extend([scope, await receive()])

    async def receive():
        return {"type": "lifespan.startup"}

    seen = []
    asyncio.run(ServiceMiddleware(app, ServiceMetrics(), RequestRules(LIMIT))({"type": "lifespan"}, receive, None))
    assert seen == [{"type": "lifespan"}, {"type": "lifespan.startup"}]
