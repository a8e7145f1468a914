"""A service in this process or in one of its own, as tests of ``serve_model.py`` use it."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import psutil
from fastapi import FastAPI

from model_registry import ModelRegistry
from serve_model import ServeSettings, create_app
from support import MAX_WAIT_S, ROOT, wait_until
from support.colours import colour_image, encode
from support.servers import NO_TLS
from toolkit.bundle.files import PROGRAM
from toolkit.serving.http.server import Server, ServerConfig, listen
from toolkit.serving.problems import MEDIA_TYPE
from toolkit.tracking.connection import connect

NUMBERS = itertools.count()

RED, GREEN, BLUE = (colour_image(colour, 1) for colour in ("red", "green", "blue"))
SPOILED = encode(np.full((16, 16, 3), (255, 0, 0), np.uint8))
MEMBERS = {"type", "title", "status", "detail", "request_id"}


class RegisteredModel:
    """A registered model of its own in the store that all tests share."""

    def __init__(self, uri):
        self.uri, self.name = uri, f"model-{next(NUMBERS)}"
        self.registry = ModelRegistry(uri, self.name)

    def promote(self, experiment):
        version = self.registry.register_best_model(experiment)
        self.registry.transition_model_stage(version, "Production")
        return version

    def program(self, version):
        """Where the store keeps a version's program."""
        client = connect(self.uri)
        run = client.get_run(self.registry.get(version).run_id)
        model = client.get_logged_model(run.outputs.model_outputs[0].model_id)
        return Path(model.artifact_location.removeprefix("file://"), PROGRAM)


@dataclass
class Served:
    """A running service in this process."""

    app: FastAPI
    client: httpx.Client
    registered: RegisteredModel
    store: Path

    @property
    def monitor(self):
        return self.app.state.monitor

    @property
    def admission(self):
        return self.app.state.service.admission

    def predict(self, image=RED, **query):
        return self.client.post("/predict", files={"file": image}, params=query)


@contextmanager
def serving(registered, folder, **settings):
    store = folder / f"monitoring-{registered.name}.db"
    words = {"poll_interval": 3600, "monitor_store": str(store), "threads": 2, "max_queue": 6, "max_batch": 4}
    words |= {
        "engine": "torch",
        "max_body_mb": 1,
        "max_pixels": 1_000_000,
        "request_timeout": MAX_WAIT_S,
        "body_timeout": MAX_WAIT_S,
        "read_timeout": MAX_WAIT_S,
        "tracking_uri": registered.uri,
        "model_name": registered.name,
    }
    app = create_app(ServeSettings(**words | settings))
    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = Server(app, lambda: None, ServerConfig(0, int(MAX_WAIT_S)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with httpx.Client(base_url=url, timeout=MAX_WAIT_S, trust_env=False, verify=NO_TLS) as client:
            wait_until(lambda: client.get("/health").json()["ready"])
            yield Served(app, client, registered, store)
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(MAX_WAIT_S)
    assert not thread.is_alive()


def problem(response, status, slug):
    """The document of an error, which has one shape whatever went wrong."""
    document = response.json()
    assert response.status_code == document["status"] == status, response.text
    assert response.headers["Content-Type"] == MEDIA_TYPE
    assert document["type"] == f"/docs#problem-{slug}"
    assert set(document) - {"errors"} == MEMBERS
    assert document["request_id"] == response.headers["X-Request-ID"]
    assert "Traceback" not in response.text
    assert str(ROOT) not in response.text
    return document


def windows_of(served):
    """What the service says of the windows, which it measures every few seconds."""
    return served.client.get("/metrics").json()["monitor"]["windows"]


class BlockingEngine:
    """An engine that waits until it is opened, or fails."""

    name, concurrency = "blocking", 1

    def __init__(self, error=None):
        self.open, self.error = threading.Event(), error

    def infer(self, images):
        if self.error:
            raise self.error
        assert self.open.wait(MAX_WAIT_S)
        return np.array([[0.0, 0.0, 1.0]] * len(images), np.float32)


@contextmanager
def use_engine(served, blocking):
    """The service with another engine for a while."""
    manager = served.app.state.service.model_manager
    model = manager.model
    manager.model = replace(model, engine=blocking)
    try:
        yield
    finally:
        blocking.open.set()
        manager.model = model


class Process:
    """``python serve_model.py`` in a folder of its own."""

    def __init__(self, folder, *words, **variables):
        self.errors = folder / "stderr"
        with self.errors.open("wb") as errors:
            self.popen = subprocess.Popen(
                [sys.executable, str(ROOT / "serve_model.py"), "--port", "0", *words],
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                text=True,
                env={**os.environ, **variables},
            )
        greeting = self.popen.stdout.readline()
        found = re.search(r"http://\S+", greeting)
        assert found, greeting + self.errors.read_text()
        self.url = found[0]

    def lines(self):
        return [json.loads(line) for line in self.errors.read_text().splitlines()]

    def connect(self):
        return httpx.Client(base_url=self.url, timeout=MAX_WAIT_S, trust_env=False, verify=NO_TLS)

    def ask(self, method, path, **words):
        with self.connect() as client:
            return client.request(method, path, **words)

    def end(self):
        self.popen.send_signal(signal.SIGTERM)
        status = self.popen.wait(MAX_WAIT_S)
        self.popen.stdout.close()
        return status


@contextmanager
def process(folder, *words, **variables):
    started = Process(folder, *words, **variables)
    try:
        yield started
    finally:
        if started.popen.poll() is None:
            for child in psutil.Process(started.popen.pid).children():
                child.kill()
            started.popen.kill()
            started.popen.wait(MAX_WAIT_S)
        started.popen.stdout.close()


def refused(url):
    """Whether nothing listens there any more."""
    try:
        httpx.get(url + "/livez", timeout=MAX_WAIT_S, trust_env=False, verify=NO_TLS)
    except httpx.TransportError:
        return True
    return False
