"""A running application with the model of colours, and requests to it."""

import asyncio

import httpx
import numpy as np
import pytest

from serve_model import ServeSettings, create_app
from support.infer_requests import MAX_BATCH, SIZE
from toolkit.images.decoding import load_image


@pytest.fixture
def app(source, tmp_path):
    words = {
        "poll_interval": 3600,
        "threads": 2,
        "max_queue": 6,
        "max_batch": MAX_BATCH,
        "max_body_mb": 1,
        "request_timeout": 600,
    }
    app = create_app(ServeSettings(**words, monitor_store=str(tmp_path / "m.db")))
    app.state.source = source
    return app


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


@pytest.fixture
def client(app):
    with asyncio.Runner() as runner:
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())
        app.state.service.model_manager.poll()
        yield Client(app, runner)
        runner.run(lifespan.__aexit__(None, None, None))


@pytest.fixture
def wanted(source):
    """A function that gives the bundle's own probabilities of encoded images, or of pixels."""

    def probabilities(images):
        if not isinstance(images, np.ndarray):
            images = np.stack([load_image(data, SIZE).pixels for data in images])
        return source.bundles[1].predict(images)

    return probabilities
