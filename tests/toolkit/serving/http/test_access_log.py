"""Each request has an id, a log line, a count and a response."""

import asyncio
import json
import logging
import re
import sys

import pytest
from fastapi import FastAPI
from starlette.requests import ClientDisconnect

from toolkit.serving.http.access_log import (
    CLIENT_CLOSED_REQUEST,
    MAX_PATH_LENGTH,
    AccessLogMiddleware,
    JsonOrTextFormatter,
)
from toolkit.serving.metrics import ServiceMetrics
from toolkit.serving.problems import OVERLOADED, Problem


@pytest.fixture
def metrics():
    return ServiceMetrics()


@pytest.fixture
def app(metrics):
    app = FastAPI()

    @app.get("/things/{name}")
    async def things(name: str) -> str:
        return name

    @app.get("/broken")
    async def broken() -> str:
        raise RuntimeError("hunter2")

    app.add_middleware(AccessLogMiddleware, metrics=metrics)
    return app


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
    assert found.json() == "cat"
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
    asyncio.run(AccessLogMiddleware(app, metrics)(scope, None, send))
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


# Lines of the log


def record(request=None, message="hello %s", error=None):
    made = logging.LogRecord("serve", logging.WARNING, __file__, 1, message, ("you",), error)
    made.created = 1_700_000_000.25
    if request:
        made.request = request
    return made


FIELDS = {"request_id": "abc", "method": "GET", "path": "/a\x1b[31m\n/b", "status": 503, "ms": 1.5}


def test_json_lines_are_one_object_each():
    line = JsonOrTextFormatter(as_json=True).format(record())
    assert json.loads(line) == {"time": "2023-11-14T22:13:20.250+00:00", "level": "warning", "message": "hello you"}
    line = JsonOrTextFormatter(as_json=True).format(record(FIELDS | {"version": "3", "problem": "full"}))
    assert "\n" not in line
    assert json.loads(line).items() >= (FIELDS | {"version": "3", "problem": "full"}).items()


def test_text_lines_escape_control_characters():
    text = JsonOrTextFormatter(as_json=False).format(record(FIELDS | {"version": "3", "problem": "full"}))
    assert re.fullmatch(r"\d\d:13:20 GET /a\\x1b\[31m\\n/b 503 1.5 ms v3 full abc", text)
    assert JsonOrTextFormatter(as_json=False).format(record()).endswith(" warning: hello you")


@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_is_part_of_its_line(as_json):
    try:
        raise ValueError("what happened")
    except ValueError:
        line = JsonOrTextFormatter(as_json).format(record(error=sys.exc_info()))
    text = json.loads(line)["traceback"] if as_json else line
    assert "Traceback" in text
    assert "ValueError: what happened" in text


def test_a_long_path_is_cut(app, ask, log):
    ask(app, "GET", "/things/" + "x" * 5000)
    assert len(facts(log)["path"]) == MAX_PATH_LENGTH
