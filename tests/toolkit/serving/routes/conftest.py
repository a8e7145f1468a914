"""A running application with the model of colours, and requests to it."""

import asyncio

import httpx
import numpy as np
import pytest

from serve_model import ServeSettings, create_app
from support.infer_requests import MAX_BATCH, SIZE
from toolkit.images.decoding import load_image


@pytest.fixture(scope="module")
def source(make_source):
    return make_source()


@pytest.fixture(scope="module")
def make_app(source, tmp_path_factory):
    """A function that makes an application with a store of its own."""

    def make():
        words = {"poll_interval": 3600, "threads": 2, "max_queue": 6, "max_batch": MAX_BATCH, "max_body_mb": 1}
        store = tmp_path_factory.mktemp("store") / "m.db"
        app = create_app(ServeSettings(**words, request_timeout=600, monitor_store=str(store)))
        app.state.source = source
        return app

    return make


class Client:
    """Requests to an application that runs, without a socket, on a loop of their own."""

    def __init__(self, app, runner):
        self.app, self._run = app, runner.run
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    def request(self, method, path, **words):
        return self._run(self._client.request(method, path, **words))

    def get(self, path, **words):
        return self.request("GET", path, **words)

    def post(self, path, **words):
        return self.request("POST", path, **words)


@pytest.fixture(scope="module")
def client(make_app):
    """A client that all tests of a file share; one that changes the application changes it back."""
    app = make_app()
    with asyncio.Runner() as runner:
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())
        app.state.service.model_manager.poll()
        yield Client(app, runner)
        runner.run(lifespan.__aexit__(None, None, None))


@pytest.fixture
def app(client):
    return client.app


@pytest.fixture
def wanted(source):
    """A function that gives the bundle's own probabilities of encoded images, or of pixels."""

    def probabilities(images):
        if not isinstance(images, np.ndarray):
            images = np.stack([load_image(data, SIZE).pixels for data in images])
        return source.bundles[1].predict(images)

    return probabilities
