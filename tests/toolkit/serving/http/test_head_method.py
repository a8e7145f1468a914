"""HEAD is GET without a body."""

import pytest
from fastapi import FastAPI, Response

from toolkit.serving.http.head_method import HeadMethodMiddleware


@pytest.fixture
def app():
    app = FastAPI()

    @app.get("/")
    def home() -> Response:
        return Response("here", headers={"X-Found": "yes"})

    @app.post("/post")
    def post() -> None: ...

    app.add_middleware(HeadMethodMiddleware)
    return app


def test_head_has_the_headers_of_get_and_no_body(app, ask):
    got, found = (ask(app, method, "/") for method in ("GET", "HEAD"))
    assert (got.content, found.content) == (b"here", b"")
    assert found.status_code == got.status_code == 200
    assert found.headers == got.headers
    assert found.headers["Content-Length"] == "4"


def test_head_fails_where_get_does(app, ask):
    for path, status in (("/nothing", 404), ("/post", 405)):
        found = ask(app, "HEAD", path)
        assert (found.status_code, found.content) == (status, b"")
