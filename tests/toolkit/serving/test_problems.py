"""Problem documents: one form for all errors, without internals or the client's input."""

import json

import pytest
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from toolkit.errors import DataError, ImageTooLarge, UndecodableImage, UnsupportedImage
from toolkit.serving import problems
from toolkit.serving.problems import MEDIA_TYPE, PROBLEM_TYPES, Problem, from_http_exception, from_image_error, handle

MEMBERS = {"type", "title", "status", "detail", "request_id"}


def test_problem_types_have_unique_names_and_error_statuses():
    assert len({kind.slug for kind in PROBLEM_TYPES}) == len(PROBLEM_TYPES) >= 18
    assert len({kind.title for kind in PROBLEM_TYPES}) == len(PROBLEM_TYPES)
    for kind in PROBLEM_TYPES:
        assert 400 <= kind.status < 500 or kind.status in (500, 503, 504)
        assert set(Problem(kind, "a detail").document("id")) == MEMBERS
        assert kind.type == f"/docs#problem-{kind.slug}"


@pytest.mark.parametrize(
    ("status", "slug"),
    [
        (404, "not-found"),
        (405, "method-not-allowed"),
        (413, "body-too-large"),
        (415, "unsupported-media-type"),
        (400, "malformed-body"),
        (500, "internal-error"),
        (428, "precondition-required"),
        (429, "too-many-requests"),
    ],
)
def test_http_exceptions_become_the_type_of_their_status(status, slug):
    found = from_http_exception(HTTPException(status, "secret words", {"Allow": "GET"}))
    assert (found.problem_type.status, found.problem_type.slug, found.headers) == (status, slug, {"Allow": "GET"})
    assert "secret" not in json.dumps(found.document("id"))


def test_a_problem_is_returned_unchanged():
    problem = Problem(problems.OVERLOADED, "full", {"Retry-After": "2"}, {"errors": []})
    assert from_http_exception(problem) is problem
    assert problem.document("a1")["errors"] == []


def test_image_errors_have_their_problem_types():
    for error, status in ((UndecodableImage("a"), 400), (UnsupportedImage("b"), 415), (ImageTooLarge("c"), 413)):
        found = from_image_error(error)
        assert (found.status_code, found.detail) == (status, str(error))
    with pytest.raises(DataError, match="not an image"):
        from_image_error(DataError("not an image"))


INTEGER = "body.count: Input should be a valid integer, unable to parse string as an integer"


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    count: int


@pytest.fixture
def app():
    app = FastAPI()

    @app.post("/one")
    def one(body: Body) -> int:
        return body.count

    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, handle)
    return app


@pytest.mark.parametrize(
    ("body", "slug", "detail"),
    [
        (b'{"count": "s3cret"}', "invalid-parameter", INTEGER),
        (b'{"count": 1, "s3cret": 2}', "invalid-parameter", "body: has a field or parameter that is not known here"),
        (b"{}", "invalid-parameter", "body.count: Field required"),
        (b'{"count": s3cret', "malformed-body", "the body is not valid JSON"),
        (b"[" * 100_000, "malformed-body", "the body of the request cannot be read; GET /docs lists all paths"),
    ],
)
def test_validation_errors_never_repeat_the_input(app, ask, body, slug, detail):
    found = ask(app, "POST", "/one", content=body, headers={"Content-Type": "application/json"})
    document = found.json()
    assert (document["type"], document["detail"]) == (f"/docs#problem-{slug}", detail)
    assert found.headers["Content-Type"] == MEDIA_TYPE
    assert found.status_code == document["status"]
    assert set(document) - {"errors"} == MEMBERS
    assert "s3cret" not in found.text


def test_an_unexpected_error_reveals_nothing():
    request = Request({"type": "http", "headers": [], "state": {"request_id": "abc"}})
    found = handle(request, RuntimeError("/home/me password=hunter2"))
    document = json.loads(found.body)
    assert (found.status_code, document["request_id"], document["title"]) == (500, "abc", "The service failed")
    assert request.state.problem == "internal-error"
    assert "hunter2" not in json.dumps(document)
