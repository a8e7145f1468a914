"""The service as its clients meet it: a real registry, a real store, real sockets, and a process from start to end."""

import asyncio
import base64
import gzip
import hmac
import itertools
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import torch
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from model_registry import ModelRegistry
from monitoring import ModelMonitor
from serve_model import ServeSettings, create_app, main
from support import MAX_WAIT_S, ROOT
from support.colours import COLOURS, ColourNetwork, colour_baseline, colour_card, colour_image, encode
from support.scripts import error_line, run_script
from support.servers import free_port
from support.webhook_receiver import Receiver
from toolkit.bundle.files import DIGEST_TAG, PROGRAM
from toolkit.bundle.program import Program, save_bundle
from toolkit.errors import ToolkitError
from toolkit.images.decoding import load_image
from toolkit.serving.http.server import Server, ServerConfig, listen
from toolkit.serving.problems import MEDIA_TYPE
from toolkit.serving.routes import inference_protocols
from toolkit.serving.workers import VARIABLE
from toolkit.system.metrics import usable_cores
from toolkit.tracking.connection import connect
from toolkit.tracking.run import Run

NUMBERS = itertools.count()
RED, GREEN, BLUE = (colour_image(colour, 1) for colour in ("red", "green", "blue"))
SPOILED = encode(np.full((16, 16, 3), (255, 0, 0), np.uint8))
MEMBERS = {"type", "title", "status", "detail", "request_id"}


class MoodyNetwork(ColourNetwork):
    """The colour model, but NaN for what is far more red than anything in its baseline."""

    def forward(self, images):
        spoiled = (images[:, :1].mean(dim=(2, 3)) - images[:, 1:2].mean(dim=(2, 3))) > 3.5
        return torch.where(spoiled, torch.nan, super().forward(images))


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


@pytest.fixture(scope="module")
def uri(tmp_path_factory, log_colour_run):
    """A store with three studies: ``plain``, ``unsure`` with lower confidence, ``moody`` with NaN now and then."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    with chdir(folder):
        client = connect(uri)
        for experiment, strength in (("plain", 8.0), ("unsure", 0.2)):
            log_colour_run(client, experiment, role="study", strength=strength)
        with Run(client, "moody", role="study", name="moody") as run:
            program, model_id = Program(MoodyNetwork()), run.new_model()
            card, baseline = colour_card(), colour_baseline(program)
            digest = save_bundle(folder / "moody", program, card, baseline, run_id=run.id, model_id=model_id)
            run.model(folder / "moody", model_id, {DIGEST_TAG: digest})
            run.metrics({"mean_cv_accuracy": 0.9})
    return uri


@pytest.fixture
def registered(uri):
    return RegisteredModel(uri)


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


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
        with httpx.Client(base_url=url, timeout=MAX_WAIT_S, trust_env=False) as client:
            wait_until(lambda: client.get("/health").json()["registry"]["last_poll"])
            wait_until(lambda: client.get("/health").json()["ready"])
            yield Served(app, client, registered, store)
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(MAX_WAIT_S)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def served(uri, tmp_path_factory):
    """A service that all tests share: version 1, ``plain``, and no keys."""
    registered = RegisteredModel(uri)
    registered.promote("plain")
    with serving(registered, tmp_path_factory.mktemp("served")) as served:
        yield served


def wait_until(condition, seconds=MAX_WAIT_S):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return found


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


# Predictions


def test_each_way_to_send_a_image_gives_the_answer_of_the_bundle(served):
    bundle = served.registered.registry.load("Production").bundle
    for colour, image in (("red", RED), ("green", GREEN), ("blue", encode(load_image(BLUE, 200).pixels, "JPEG"))):
        wanted = bundle.predict(load_image(image, bundle.card.image_size).pixels[None])[0]
        text = base64.b64encode(image).decode()
        answers = [
            served.client.post("/predict", files={"file": ("../../etc/passwd", image, "text/html")}),
            served.client.post("/predict", content=image, headers={"Content-Type": "image/anything"}),
            served.client.post("/predict", content=image),
            served.client.post("/predict", content=iter([image[:99], image[99:]])),  # chunked, without a length
            served.client.post("/predict", json={"image": text}),
        ]
        for answer in answers:
            assert answer.status_code == 200, answer.text
            found = answer.json()
            assert set(found) == {
                "prediction_id", "predicted_class", "confidence", "top_k", "model", "timings_ms"
            }  # fmt: skip
            ranked = {one["label"]: one["probability"] for one in found["top_k"]}
            np.testing.assert_allclose([ranked[name] for name in COLOURS], wanted, rtol=0, atol=1e-6)
            assert (found["predicted_class"], found["confidence"]) == (colour, found["top_k"][0]["probability"])
            assert found["model"] == {"name": served.registered.name, "version": 1, "stage": "Production"}
            assert set(found["timings_ms"]) == {"decode", "queue", "infer", "total"}
        assert len({answer.json()["prediction_id"] for answer in answers}) == len(answers)


def test_top_k_says_how_many_classes_are_listed(served):
    full = served.predict(top_k=3).json()["top_k"]
    assert [one["probability"] for one in full] == sorted((one["probability"] for one in full), reverse=True)
    for count in (1, 2, 3):
        assert served.predict(top_k=count).json()["top_k"] == full[:count]
    for wrong in (0, -1, 4, 10**40, "many", "1.5", ""):
        document = problem(served.predict(top_k=wrong), 422, "invalid-parameter")
        assert "top_k" in document["detail"]
    problem(served.predict(topk=1), 422, "invalid-parameter")


def test_of_a_batch_each_image_fails_alone(served):
    images = [RED, b"this is no image", GREEN, encode(np.zeros((1001, 1000, 3), np.uint8))]
    answer = served.client.post("/predict/batch", files=[("files", image) for image in images], params={"top_k": 1})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [one["index"] for one in results] == [0, 1, 2, 3]
    assert [one.get("prediction", {}).get("predicted_class") for one in results] == ["red", None, "green", None]
    assert [one.get("error", {}).get("status") for one in results] == [None, 400, None, 413]
    assert all(len(one["prediction"]["top_k"]) == 1 for one in results if "prediction" in one)
    assert results[1]["error"]["request_id"] == answer.headers["X-Request-ID"]
    assert set(results[1]["error"]) == MEMBERS


def test_a_batch_has_a_limit(served):
    answer = served.client.post("/predict/batch", files=[("files", RED)] * 5)
    assert "at most 4 files" in problem(answer, 422, "invalid-parameter")["detail"]
    problem(served.client.post("/predict/batch", files={"file": RED}), 422, "invalid-parameter")
    problem(served.client.post("/predict/batch", content=RED), 415, "unsupported-media-type")


def test_file_names_and_texts_in_any_bytes_are_answered_in_valid_utf_8(served):
    """Latin-1 and an escape sequence in a file's name; half a character, which JSON can write, in a text."""
    begin = b'--B\r\nContent-Disposition: form-data; name="files"; filename='
    body = begin + b'"caf\xe9\x1b[31m.png"\r\n\r\n' + RED + b"\r\n" + begin + b'"\xed\xa0\x80"\r\n\r\nno\r\n--B--\r\n'
    form = {"Content-Type": "multipart/form-data; boundary=B"}
    answer = served.client.post("/predict/batch", content=body, headers=form)
    one, other = json.loads(answer.content.decode("utf-8"))["results"]
    assert (one["prediction"]["predicted_class"], other["error"]["status"]) == ("red", 400)
    name = one["prediction"]["prediction_id"].encode()
    for found in (
        b'"%s", "label": "\\ud800"' % name,
        b'"\\ud800", "label": "red"',
        b'"%s", "label": "a\\n\\u001b"' % name,
    ):
        body = b'{"prediction_id": ' + found + b"}"
        answer = served.client.post("/feedback", content=body, headers={"Content-Type": "application/json"})
        assert json.loads(answer.content.decode("utf-8"))["status"] == answer.status_code == 422
    assert len(served.client.post("/predict/batch", files=[("files", RED)] * 4).json()["results"]) == 4


def windows_of(served):
    """What the service says of the windows, which it measures every few seconds."""
    return served.client.get("/metrics").json()["monitor"]["windows"]


def test_each_prediction_reaches_the_monitor_with_what_it_was_made_of(uri, tmp_path):
    registered = RegisteredModel(uri)
    registered.promote("unsure")
    images = [colour_image(COLOURS[seed % 3], seed, size=30 + seed) for seed in range(12)]
    with serving(registered, tmp_path) as served:
        answers = [
            served.client.post("/predict", files={"file": (f"{n}\u202e.jpg", image)}, params={"top_k": 3}).json()
            for n, image in enumerate(images[:-1])
        ]
        answers.append(served.client.post("/predict", content=images[-1], params={"top_k": 3}).json())
        problem(served.predict(b"broken"), 400, "undecodable-image")
        windows = wait_until(lambda: (now := windows_of(served))["short"]["n"] == 12 and now)
        assert windows["long"]["model_version"] == "1"
    with ModelMonitor(served.store) as monitor:
        figures = monitor.calculate_metrics("long")
        names = monitor.sources([answer["prediction_id"] for answer in answers])
    assert [names.get(answer["prediction_id"]) for answer in answers] == [rf"{n}\u202e.jpg" for n in range(11)] + [None]
    assert (figures["n"], figures["reference_n"]) == (12, 300)
    assert figures["mean_confidence"] == pytest.approx(np.mean([answer["confidence"] for answer in answers]), abs=2e-3)
    with sqlite3.connect(served.store) as database:
        rows = database.execute(
            "select probabilities, statistic_values, latency_ms from predictions order by sequence"
        ).fetchall()
        [names] = [json.loads(text) for (text,) in database.execute("select statistics from models")]
    database.close()
    for row, answer, image in zip(rows, answers, images, strict=True):
        ranked = {one["label"]: one["probability"] for one in answer["top_k"]}
        np.testing.assert_allclose(np.frombuffer(row[0], np.float16), [ranked[name] for name in COLOURS], atol=1e-3)
        stored = dict(zip(names, np.frombuffer(row[1], np.float32).tolist(), strict=True))
        assert stored == pytest.approx(load_image(image, 16).statistics(), rel=1e-4)
        assert row[2] == pytest.approx(answer["timings_ms"]["total"])


# Feedback


def test_a_label_is_told_once_or_often_and_the_last_one_counts(served):
    name = served.predict().json()["prediction_id"]
    for label in ("red", "red", "blue"):
        answer = served.client.post("/feedback", json={"prediction_id": name, "label": label})
        assert (answer.status_code, answer.json()) == (200, {"recorded": 1})
    with sqlite3.connect(served.store) as database:
        found = database.execute("select count(*) from labels").fetchone()
    database.close()
    assert found[0] >= 2


def test_many_labels_each_succeed_or_fail_alone(served):
    names = [served.predict(image).json()["prediction_id"] for image in (RED, GREEN)]
    found = [
        {"prediction_id": names[0], "label": "red"},
        {"prediction_id": "no-such-id", "label": "red"},
        {"prediction_id": names[1], "label": "purple"},
        {"prediction_id": names[1], "label": "green", "source": "audit"},
    ]
    answer = served.client.post("/feedback", json=found).json()
    assert answer["recorded"] == 2
    assert [(one["index"], one["error"]["status"]) for one in answer["errors"]] == [(1, 404), (2, 422)]


def test_wrong_labels_are_problems(served):
    name = served.predict().json()["prediction_id"]
    tell = served.client.post
    problem(tell("/feedback", json={"prediction_id": "nobody", "label": "red"}), 404, "unknown-prediction")
    other = name[:-1] + ("0" if name[-1] != "0" else "1")
    problem(tell("/feedback", json={"prediction_id": other, "label": "red"}), 404, "unknown-prediction")
    document = problem(tell("/feedback", json={"prediction_id": name, "label": "puce"}), 422, "unknown-label")
    assert "puce" not in json.dumps(document)
    problem(tell("/feedback", json={"prediction_id": name, "lable": "red"}), 422, "invalid-parameter")
    problem(tell("/feedback", json=[]), 422, "invalid-parameter")
    problem(tell("/feedback", json=[{"prediction_id": name, "label": "red"}] * 1001), 422, "invalid-parameter")
    problem(tell("/feedback"), 422, "invalid-parameter")
    for odd in (b"{", b"[" * 200_000, b'{"a":' * 100_000, b"\xff", b"9" * 10_000):
        problem(tell("/feedback", content=odd, headers={"Content-Type": "application/json"}), 400, "malformed-body")
    for odd in ("\\ud800", "\\u0000", "' or 1=1 --"):
        text = f'{{"prediction_id": "{odd}", "label": "{odd}"}}'
        answer = tell("/feedback", content=text, headers={"Content-Type": "application/json"})
        assert answer.status_code in (404, 422), answer.text


# State and figures


def test_state_of_a_service_that_is_well(served):
    get = served.client.get
    assert get("/livez").json() == {"status": "alive"}
    assert get("/readyz").json() == {"status": "ready", "version": "1"}
    health = get("/health").json()
    assert (health["status"], health["ready"], health["reason"]) == ("ok", True, None)
    assert (health["model"]["version"], health["model"]["stage"]) == (1, "Production")
    assert health["queue"] == {"depth": 0, "threads": 2, "free_slots": 8}
    assert health["monitor"]["lost"] == health["monitor"]["write_errors"] == 0
    info = get("/model-info").json()
    version = served.registered.registry.get(1)
    assert (info["run_id"], info["digest"], info["classes"]) == (version.run_id, version.digest, list(COLOURS))
    assert info["metrics"] == {"accuracy": {"value": 1.0, "images": 300}}
    assert info["baseline"] == {"images": 300, "accuracy": 1.0}
    assert served.client.post("/admin/reload").json()["outcome"] == "unchanged"


def test_figures_for_people_and_for_prometheus_are_the_same(served):
    def counted(text):
        return {
            sample.labels["status"]: sample.value
            for metric in text_string_to_metric_families(text)
            for sample in metric.samples
            if sample.name == "serve_requests_total" and sample.labels["route"] == "/predict"
        }

    served.predict()
    problem(served.predict(b"x"), 400, "undecodable-image")
    people = served.client.get("/metrics")
    programs = served.client.get("/metrics", headers={"Accept": "text/plain;version=0.0.4"})
    assert people.headers["Content-Type"] == "application/json"
    assert programs.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert people.headers["Vary"] == programs.headers["Vary"] == "Accept"
    figures = people.json()
    assert counted(programs.text) == figures["requests"]["/predict"]
    assert figures["requests"]["/predict"]["400"] >= 1
    assert figures["model"]["version"] == 1
    assert set(figures["monitor"]["windows"]) == {"short", "medium", "long"}
    assert "serve_ready 1.0" in programs.text.splitlines()
    for accept in ("text/plain;version=abc", "application/openmetrics-text;version=1.0.0,*/*;q=0.1"):
        assert "serve_ready 1.0" in served.client.get("/metrics", headers={"Accept": accept}).text


def test_drift_and_alerts(served):
    for window in ("short", "medium", "long"):
        report = served.client.get("/drift", params={"window": window}).json()
        assert report["model_version"] == "1"
        assert report["drifted"] is None  # too few predictions to say
    problem(served.client.get("/drift", params={"window": "tiny"}), 422, "invalid-parameter")
    for query in (
        {},
        {"level": "critical"},
        {"since": "2020-01-01T00:00:00"},
        {"since": "20200101"},
        {"since": 1.7e9},
        {"since": 0},
    ):
        assert served.client.get("/alerts", params=query).json() == []
    for query in (
        {"level": "mild"},
        {"since": "yesterday"},
        {"since": "nan"},
        {"since": 1e300},
        {"since": 1.7e12},
        {"since": "2026"},
    ):
        problem(served.client.get("/alerts", params=query), 422, "invalid-parameter")
    found = problem(served.client.get("/alerts", params={"since": "yesterday"}), 422, "invalid-parameter")["detail"]
    assert found.startswith("query.since: must be a time such as 2026-11-24T08:00Z")
    for query in ({"since": "0001-01-01T00:00:00+14:00"}, {"since": "9999-12-31T23:59:59-14:00"}, {"since": -1e11}):
        assert served.client.get("/alerts", params=query).status_code in (200, 422)


def test_the_description_is_served(served):
    paths = served.client.get("/openapi.json").json()["paths"]
    ours = {
        "/predict", "/predict/batch", "/feedback", "/livez", "/readyz", "/health", "/metrics", "/drift", "/alerts",
        "/model-info", "/admin/reload",
    }  # fmt: skip
    assert set(paths) - {route.path for route in inference_protocols.routes.routes} == ours
    for path, methods in paths.items():  # whatever is described is there
        for method in methods:
            address = path.format(name=served.registered.name, version=1)
            assert served.client.request(method, address).status_code not in (404, 405), path


# Errors


@pytest.mark.parametrize(
    ("method", "path", "words", "status", "slug"),
    [
        ("GET", "/nothing", {}, 404, "not-found"),
        ("POST", "/predict/", {"content": RED, "headers": {"Host": "evil.example"}}, 404, "not-found"),
        ("GET", "/docs/", {"headers": {"Host": "evil.example"}}, 404, "not-found"),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", {}, 404, "not-found"),
        ("GET", "/pages/..%2f..%2fserve_model.py", {}, 404, "not-found"),
        ("GET", "/" + "x" * 20_000, {}, 404, "not-found"),
        ("GET", "/predict", {}, 405, "method-not-allowed"),
        ("BREW", "/predict", {}, 405, "method-not-allowed"),
        ("POST", "/health", {}, 405, "method-not-allowed"),
        ("POST", "/predict", {"content": b""}, 400, "undecodable-image"),
        ("POST", "/predict", {"content": b"<html>"}, 400, "undecodable-image"),
        ("POST", "/predict", {"content": RED[:-30]}, 400, "undecodable-image"),
        ("POST", "/predict", {"content": b"%PDF-1.4"}, 415, "unsupported-image"),
        ("POST", "/predict", {"content": b"a", "headers": {"Content-Type": "text/csv"}}, 415, "unsupported-media-type"),
        ("POST", "/predict", {"json": {"url": "http://127.0.0.1/"}}, 422, "invalid-parameter"),
        ("POST", "/predict", {"json": {"image": "%%%"}}, 400, "undecodable-image"),
        ("POST", "/predict", {"files": {"image": RED}}, 422, "invalid-parameter"),
        ("POST", "/predict", {"content": b"a", "headers": {"Content-Type": "multipart/form-data"}}, 400,
         "malformed-body"),
        ("POST", "/predict", {"content": bytes(2**20 + 1)}, 413, "body-too-large"),
        ("POST", "/predict", {"content": iter([bytes(2**19)] * 3)}, 413, "body-too-large"),
        ("POST", "/predict", {"files": {"file": bytes(2**20)}}, 413, "body-too-large"),
        ("POST", "/feedback", {"content": iter([bytes(2**19)] * 3)}, 413, "body-too-large"),
        ("POST", "/feedback", {"content": bytes(2**20 + 1)}, 413, "body-too-large"),
        ("POST", "/predict", {"content": encode(np.zeros((1001, 1000, 3), np.uint8))}, 413, "image-too-large"),
        ("POST", "/predict", {"content": gzip.compress(RED)[:-5], "headers": {"Content-Encoding": "gzip"}}, 400,
         "malformed-body"),
        ("POST", "/predict", {"content": gzip.compress(bytes(2**20 + 1)), "headers": {"Content-Encoding": "gzip"}}, 413,
         "body-too-large"),
        ("POST", "/predict", {"content": RED, "headers": {"Content-Encoding": "br"}}, 415, "unsupported-encoding"),
        ("POST", "/feedback", {"content": b"[]", "headers": {"Content-Encoding": "zstd"}}, 415, "unsupported-encoding"),
    ],
)  # fmt: skip
def test_each_error_is_a_problem_of_one_shape(served, method, path, words, status, slug):
    problem(served.client.request(method, path, **words), status, slug)


def test_a_compressed_body_is_undone_wherever_there_are_bodies(served):
    packed = {"Content-Encoding": "gzip"}
    name = served.client.post("/predict", content=gzip.compress(RED), headers=packed).json()
    assert name["predicted_class"] == "red"
    files = httpx.Request("POST", "http://a", files=[("files", RED), ("files", GREEN)])
    headers = packed | {"Content-Type": files.headers["Content-Type"]}
    batch = served.client.post("/predict/batch", content=gzip.compress(files.read()), headers=headers).json()
    assert [one["prediction"]["predicted_class"] for one in batch["results"]] == ["red", "green"]
    found = json.dumps({"prediction_id": name["prediction_id"], "label": "red"}).encode()
    headers = packed | {"Content-Type": "application/json"}
    assert served.client.post("/feedback", content=gzip.compress(found), headers=headers).json() == {"recorded": 1}


def test_nothing_is_redirected_to_where_the_client_says_that_it_is(served):
    for path in [*served.client.get("/openapi.json").json()["paths"], "/", "/docs", "/dashboard"]:
        for address in (path, path + "/"):
            answer = served.client.get(address, headers={"Host": "evil.example"})
            assert "evil" not in answer.headers.get("Location", "")


def test_head_is_answered_where_get_is(served):
    for path in ("/livez", "/health", "/metrics", "/model-info", "/docs", "/openapi.json", "/v2", "/ping", "/nothing"):
        got, found = served.client.get(path), served.client.head(path)
        assert (found.status_code, found.content) == (got.status_code, b"")
        assert found.headers["Content-Type"] == got.headers["Content-Type"]
    assert served.client.head("/predict").status_code == 405
    counted = served.client.get("/metrics/prometheus").text
    assert 'serve_requests_total{method="HEAD",route="/livez",status="200"} 1.0' in counted


def test_a_page_of_another_origin_leaves_nothing_in_the_monitor(served):
    made = lambda: sum(served.client.get("/metrics").json()["predictions"]["1"].values())  # noqa: E731
    before, name = made(), served.predict().json()["prediction_id"]
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        ask = partial(served.client.post, headers=headers)
        problem(ask("/predict", files={"file": RED}), 403, "cross-origin")
        problem(ask("/feedback", json={"prediction_id": name, "label": "blue"}), 403, "cross-origin")
        problem(ask("/admin/reload"), 403, "cross-origin")
        assert "Access-Control-Allow-Origin" not in served.client.get("/livez", headers=headers).headers
    own = {"Origin": str(served.client.base_url).rstrip("/")}
    assert served.client.post("/predict", files={"file": RED}, headers=own).status_code == 200
    assert made() == before + 2


def test_pages_of_allowed_origins_may_ask_and_read():
    app = create_app(ServeSettings(allow_origin="https://a.example, https://b.example:8443"))

    def ask(method, path, **headers):
        async def asked():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
                return await client.request(method, path)

        return asyncio.run(asked())

    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    for origin, allowed in (
        ("https://a.example", True),
        ("https://b.example:8443", True),
        ("https://b.example", False),
    ):
        for answer in (ask("OPTIONS", "/predict", Origin=origin, **wanted), ask("GET", "/livez", Origin=origin)):
            assert answer.headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)
        assert ask("POST", "/nothing", Origin=origin).status_code == (404 if allowed else 403)


def test_a_wrong_method_tells_the_right_ones(served):
    assert served.client.get("/predict").headers["Allow"] == "POST"


def test_a_request_keeps_its_id(served):
    for path in ("/livez", "/nothing", "/predict"):
        answer = served.client.get(path, headers={"X-Request-ID": "trace-7"})
        assert answer.headers["X-Request-ID"] == "trace-7"
    assert re.fullmatch("[0-9a-f]{16}", served.client.get("/livez").headers["X-Request-ID"])


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
def engine(served, blocking):
    """The service with another engine for a while."""
    live = served.app.state.service.model_manager
    model = live.model
    live.model = replace(model, engine=blocking)
    try:
        yield
    finally:
        blocking.open.set()
        live.model = model


def test_a_failure_inside_is_a_problem_that_tells_nothing(served):
    with engine(served, BlockingEngine(RuntimeError("secret of /srv"))):
        document = problem(served.predict(), 500, "internal-error")
        assert "secret" not in json.dumps(document)
        results = served.client.post("/predict/batch", files=[("files", RED)]).json()["results"]
        assert results[0]["error"]["status"] == 500
    assert served.predict().status_code == 200
    assert served.admission.in_flight == 0


def test_a_full_queue_refuses_at_once_and_everything_else_still_answers(served):
    blocking = BlockingEngine()
    with ThreadPoolExecutor(8) as clients, engine(served, blocking):
        waiting = [clients.submit(served.predict) for _ in range(8)]
        wait_until(lambda: served.admission.free_slots == 0)
        for refused in (served.predict(), served.client.post("/predict/batch", files=[("files", RED)])):
            document = problem(refused, 503, "overloaded")
            assert "2 images are being answered and 6 wait" in document["detail"]
            assert 1 <= int(refused.headers["Retry-After"]) <= 30
        counted = served.client.get("/metrics/prometheus").text
        for route in ("/predict", "/predict/batch"):
            assert f'serve_requests_total{{method="POST",route="{route}",status="503"}}' in counted
        assert served.client.get("/livez").status_code == served.client.get("/readyz").status_code == 200
        assert served.client.get("/health").json()["queue"] == {"depth": 8, "threads": 2, "free_slots": 0}
        assert served.client.get("/metrics").json()["queue"]["free_slots"] == 0
        assert served.client.get("/metrics", headers={"Accept": "text/plain"}).status_code == 200
        name = served.client.post("/feedback", json={"prediction_id": "x", "label": "red"})
        problem(name, 404, "unknown-prediction")
        blocking.open.set()
        assert [one.result(MAX_WAIT_S).status_code for one in waiting] == [200] * 8
    wait_until(lambda: served.admission.in_flight == 0)


def test_a_batch_that_finds_too_little_room_takes_none(served):
    with served.admission.slots(5):
        problem(served.client.post("/predict/batch", files=[("files", RED)] * 4), 503, "overloaded")
        assert served.admission.in_flight == 5
        assert served.client.post("/predict/batch", files=[("files", RED)] * 3).status_code == 200
    assert served.admission.in_flight == 0


def test_clients_that_leave_take_no_place_with_them(served):
    address = (served.client.base_url.host, served.client.base_url.port)
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(RED)
    for number in range(200):
        with socket.create_connection(address, timeout=MAX_WAIT_S) as connection:
            connection.sendall(head + (RED if number % 2 else RED[:100]))
    wait_until(lambda: served.admission.in_flight == 0 and served.predict().status_code == 200)
    assert served.client.get("/health").json()["queue"]["depth"] == 0
    assert served.client.get("/metrics").json()["requests"]["/predict"].get("500", 0) <= 1  # the one of the test above


def test_mutated_images_are_answered_or_refused_but_never_break(served):
    generator = np.random.default_rng(5)
    pixels = load_image(RED, 40).pixels
    originals = [encode(pixels, name) for name in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")]
    statuses = []
    for number in range(360):
        data = bytearray(originals[number % len(originals)])
        for _ in range(generator.integers(1, 6)):
            place = int(generator.integers(len(data)) if generator.random() < 0.5 else generator.integers(60))
            match generator.integers(3):
                case 0:
                    data[place : place + 1] = generator.bytes(1)
                case 1:
                    data[place : place + 4] = b"\xff" * 4
                case _:
                    del data[place : place + int(generator.integers(1, 30))]
        statuses.append(served.client.post("/predict", content=bytes(data)).status_code)
    assert set(statuses) <= {200, 400, 413, 415}
    assert min(statuses.count(200), statuses.count(400)) > 20
    assert served.predict().json()["predicted_class"] == "red"


# Models that come and go


def test_what_is_no_number_is_never_a_class(registered, tmp_path):
    registered.promote("moody")
    with serving(registered, tmp_path) as served:
        assert served.predict().json()["predicted_class"] == "red"
        problem(served.predict(SPOILED), 500, "non-finite-output")
        results = served.client.post("/predict/batch", files=[("files", SPOILED), ("files", RED)]).json()["results"]
        assert [one.get("error", {}).get("type") for one in results] == ["/docs#problem-non-finite-output", None]
        figures = served.client.get("/metrics").json()
        assert figures["non_finite"] == {"1": 2}
        assert figures["predictions"] == {"1": {"red": 2}}
        wait_until(lambda: windows_of(served)["short"]["non_finite"] == 2)
        for _ in range(100):
            served.predict(SPOILED)
        raised = wait_until(lambda: served.predict(SPOILED) and served.client.get("/alerts").json())
        assert served.client.get("/alerts", params={"limit": 1}).json() == raised[:1]
        assert set(raised[0]["sources"]) == {"upload"}  # as the client calls its files
        assert "non_finite" in json.dumps(raised)
        assert served.client.get("/health").status_code == 200
        assert served.client.get("/metrics", headers={"Accept": "text/plain"}).status_code == 200
        with sqlite3.connect(served.store, isolation_level=None) as database:
            database.execute("BEGIN IMMEDIATE")  # the store takes nothing, and what comes is more than may wait
            served.monitor.log_predictions(np.tile([1.0, 0.0, 0.0], (12_000, 1)))
            assert served.predict().json()["predicted_class"] == "red"
            assert served.monitor.writer_stats()["dropped"] > 0
            database.execute("ROLLBACK")
        database.close()


def test_what_another_tool_put_into_production_is_served_and_its_other_stage_told(registered, tmp_path):
    client = connect(registered.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("plain").experiment_id])
    client.create_registered_model(registered.name)
    client.create_model_version(registered.name, f"runs:/{run.info.run_id}/model", run_id=run.info.run_id)
    client.set_registered_model_alias(registered.name, "production", "1")
    with serving(registered, tmp_path, copies=tmp_path / "copies") as served:
        assert served.predict().json()["predicted_class"] == "red"
        digest = run.data.tags[DIGEST_TAG]
        assert served.client.get("/model-info").json()["digest"] == digest
        assert (tmp_path / "copies" / registered.name / "Production" / digest).is_dir()
        assert served.client.get("/health").json()["registry"]["contradiction"] == (
            "MLflow's own stage puts v1 into None, and the alias 'production', which counts, into Production; to mend"
            " that: python model_registry.py promote 1 Production"
        )
        registered.registry.transition_model_stage(1, "Production")
        assert served.client.post("/admin/reload").json()["outcome"] == "unchanged"
        assert served.client.get("/health").json()["registry"]["contradiction"] is None


def test_an_altered_version_leaves_the_old_one_serving_until_it_is_mended(registered, tmp_path):
    registered.promote("plain")
    with serving(registered, tmp_path) as served:
        reload = lambda: served.client.post("/admin/reload").json()  # noqa: E731
        version = registered.promote("unsure")
        path = registered.program(version)
        whole = path.read_bytes()
        path.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
        try:
            assert reload()["outcome"] == "failed"
            found = served.predict().json()
            assert (found["model"]["version"], found["predicted_class"]) == (1, "red")
            health = served.client.get("/health").json()
            assert (health["status"], health["ready"]) == ("degraded", True)
            assert health["reason"].startswith("version 2 cannot be loaded: ")
            assert health["registry"]["load_failure"]["version"] == 2
            assert "altered" in health["registry"]["load_failure"]["reason"]
            assert str(tmp_path.parent) not in json.dumps(health)
            assert served.client.get("/readyz").json()["version"] == "1"
        finally:
            path.write_bytes(whole)
        assert reload()["outcome"] == "loaded"
        assert served.predict().json()["model"]["version"] == 2
        assert served.client.get("/health").json()["status"] == "ok"
        registered.registry.rollback()
        assert reload()["outcome"] == "loaded"
        assert served.predict().json()["model"]["version"] == 1
        assert served.client.get("/metrics").json()["model_changes"] == 3


# Keys


def test_a_version_that_is_certainly_far_worse_goes_and_somebody_is_told(registered, tmp_path, receiver):
    registered.promote("plain")
    bad = registered.promote("unsure")
    more = {"on_immediate": "rollback", "alert_webhook": receiver.url, "webhook_secret": "hush"}
    with serving(registered, tmp_path, **more) as served:
        get = served.client.get
        assert get("/model-info").json()["version"] == bad
        for number in range(120):
            answer = served.predict(colour_image(COLOURS[number % 3], number)).json()
            if answer["model"]["version"] != bad:
                break
            wrong = COLOURS[(COLOURS.index(answer["predicted_class"]) + 1) % 3]
            found = {"prediction_id": answer["prediction_id"], "label": wrong, "source": "audit"}
            assert served.client.post("/feedback", json=found).status_code == 200
        wait_until(lambda: get("/model-info").json()["version"] != bad)
        [reason] = [text for text in registered.registry.history()["why"] if "by itself: " in str(text)]
        assert "by itself: ACCURACY 100 -> 0 % since " in reason
        assert "Next:" not in reason
        served.predict()
        wait_until(lambda: not [alert for alert in get("/alerts").json() if alert["cleared_at"] is None])
        wait_until(lambda: any(b'"immediate"' in body for _, _, body in receiver.requests))
        text = get("/metrics/prometheus").text
        assert 'serve_alert_notifications_total{notifier="webhook",state="failed"} 0.0' in text
        assert 'serve_alerts_active{level="immediate"}' in text
    for _, headers, body in receiver.requests:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        signature = base64.b64encode(hmac.digest(b"hush", signed, "sha256")).decode()
        assert headers["webhook-signature"] == f"v1,{signature}"


def test_keys_keep_predictions_and_administration_apart(registered, tmp_path):
    registered.promote("plain")
    with serving(registered, tmp_path, predict_key="open", admin_key="sesame") as served:
        post = served.client.post
        guarded = dict.fromkeys(("/predict", "/predict/batch", "/feedback"), ("open", "sesame"))
        guarded["/admin/reload"] = ("sesame", "open")
        for path, (right, wrong) in guarded.items():
            answer = post(path)
            problem(answer, 401, "key-missing")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            problem(post(path, headers={"X-API-Key": wrong}), 403, "key-wrong")
            problem(post(path, headers={"Authorization": f"Bearer {wrong}"}), 403, "key-wrong")
            for headers in ({"X-API-Key": right}, {"Authorization": f"Bearer {right}"}):
                assert post(path, headers=headers).status_code not in (401, 403)
        assert post("/predict", content=RED, headers={"X-API-Key": "open"}).json()["predicted_class"] == "red"
        assert post("/admin/reload", headers={"Authorization": "Bearer sesame"}).json()["outcome"] == "unchanged"
        for path in ("/livez", "/readyz", "/health", "/metrics", "/alerts", "/drift", "/model-info", "/openapi.json"):
            assert served.client.get(path).status_code == 200


def test_with_only_a_predict_key_administration_answers_nobody():
    guarded = ServeSettings(predict_key="open").protected_paths()
    assert guarded["/predict"] == "open"
    assert len(guarded["/admin/reload"]) >= 32
    assert guarded["/admin/reload"] != ServeSettings(predict_key="open").protected_paths()["/admin/reload"]
    assert set(ServeSettings(admin_key="sesame").protected_paths()) == {"/admin/reload"}
    assert ServeSettings().protected_paths() == {}


# Settings


def test_making_an_application_opens_nothing(tmp_path):
    threads = threading.active_count()
    create_app(ServeSettings(tracking_uri="http://127.0.0.1:1", monitor_store="not/there.db"))
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == threads


def test_processes_share_the_cores():
    cores = usable_cores()
    assert (ServeSettings().n_threads, ServeSettings().concurrency) == (cores + 1, cores)
    share = max(1, cores // 64)
    assert (ServeSettings(workers=64).n_threads, ServeSettings(workers=64).concurrency) == (share + 1, share)
    several = ServeSettings(workers=2, threads=3)
    assert (several.n_threads, several.concurrency) == (3, min(3, max(1, cores // 2)))


def test_a_process_that_was_not_started_by_a_service_is_none_of_its(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["serve_model.py"])
    monkeypatch.setenv(VARIABLE, "1")
    with pytest.raises(ToolkitError, match=f"{VARIABLE} is for the workers that a running service starts: unset it"):
        main()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "70000"], "--port must be at most 65535, got 70000"),
        (["--prot", "1"], "unknown argument --prot; did you mean --port?"),
        (["--stage", "Archived"], "--stage must be one of Production, Staging, got Archived"),
        (["--max-body-mb", "inf"], "--max-body-mb must be a finite number, got inf"),
        (["--poll-interval", "0"], "--poll-interval must be more than 0, got 0"),
        (["--max-queue", "1", "--threads", "1", "--max-batch", "3"], "--max-batch must be at most"),
        (["--workers", "0"], "--workers must be at least 1, got 0"),
        (["--workers", "65"], "--workers must be at most 64, got 65"),
        (["--model-name", "a/b"], "a model name is letters, digits"),
        (["--monitor-store", "no/such/folder/m.db"], "no/such/folder"),
        (["--host", "192.0.2.1", "--port", "0"], r"cannot listen on 192\.0\.2\.1 port 0: "),
        (["--predict-key", "secret"], "keys come from SERVE_PREDICT_KEY, SERVE_ADMIN_KEY and"),
        (["--alert-webhook", "http://example.com/x"], "webhook must be an https address, or http on this machine"),
        (["--ignore", "brightness"], "ignore must be one of accuracy, confidence_distribution, .*; got 'brightness'"),
        (["--keep-days", "0"], "--keep-days must be more than 0, got 0"),
        (
            ["--allow-origin", "https://a.example/page"],
            "--allow-origin must be origins such as https://app.example:8443",
        ),
        (["--allow-origin", "a.example"], "--allow-origin must be origins such as https://app.example:8443"),
        (["--on-immediate", "panic"], "--on-immediate must be one of nothing, rollback, got panic"),
        (["--admin-key=secret"], "keys come from SERVE_PREDICT_KEY, SERVE_ADMIN_KEY and"),
    ],
)
def test_bad_settings_are_one_sentence(monkeypatch, words, message):
    monkeypatch.setattr(sys, "argv", ["serve_model.py", *words])
    with pytest.raises(ToolkitError, match=message) as caught:
        main()
    assert len(str(caught.value).splitlines()) == 1


# The process


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
        assert self.popen.stdout is not None
        greeting = self.popen.stdout.readline()
        found = re.search(r"http://\S+", greeting)
        assert found, greeting + self.errors.read_text()
        self.url = found[0]

    def lines(self):
        return [json.loads(line) for line in self.errors.read_text().splitlines()]

    def ask(self, method, path, **words):
        return httpx.request(method, self.url + path, timeout=MAX_WAIT_S, trust_env=False, **words)

    def end(self):
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(MAX_WAIT_S)


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
        httpx.get(url + "/livez", timeout=MAX_WAIT_S, trust_env=False)
    except httpx.TransportError:
        return True
    return False


def test_a_service_from_its_start_without_a_model_to_its_end(registered, tmp_path):
    words = [
        "--tracking-uri",
        registered.uri,
        "--model-name",
        registered.name,
        "--poll-interval",
        "0.2",
        "--drain-timeout",
        "99",
    ]
    words += ["--shutdown-timeout", "600", "--request-timeout", "600", "--body-timeout", "600", "--read-timeout", "600"]
    with process(tmp_path, *words) as service:
        ask = service.ask
        assert ask("GET", "/livez").status_code == 200
        wait_until(lambda: ask("GET", "/health").json()["registry"]["last_poll"])
        for answer in (ask("GET", "/readyz"), ask("POST", "/predict", content=RED), ask("GET", "/model-info")):
            problem(answer, 503, "not-ready")
            assert int(answer.headers["Retry-After"]) >= 1
        health = ask("GET", "/health").json()
        assert (health["status"], health["ready"], health["registry"]["reachable"]) == ("waiting", False, True)

        registered.promote("plain")
        wait_until(lambda: ask("GET", "/readyz").status_code == 200)
        sure = ask("POST", "/predict", content=RED).json()
        assert (sure["model"]["version"], sure["predicted_class"]) == (1, "red")

        answers = []
        stop = threading.Event()

        def client():
            with httpx.Client(base_url=service.url, timeout=MAX_WAIT_S, trust_env=False) as connection:
                while not stop.wait(0.01):  # the core that the tests have is needed for the new version too
                    answers.append(connection.post("/predict", content=RED))

        def answered_by(version):
            return bool(answers) and answers[-1].json().get("model", {}).get("version") == version

        with ThreadPoolExecutor(2) as clients:
            working = [clients.submit(client) for _ in range(2)]
            registered.promote("unsure")
            wait_until(lambda: answered_by(2))
            registered.registry.rollback()
            wait_until(lambda: answered_by(1))
            assert ask("GET", "/readyz").json()["version"] == "1"
            stop.set()
            for one in working:
                one.result(MAX_WAIT_S)
        assert {answer.status_code for answer in answers} == {200}
        found = [answer.json() for answer in answers]
        by_version = {version: {one["confidence"] for one in found if one["model"]["version"] == version}
                      for version in (1, 2)}  # fmt: skip
        assert by_version[1] == {sure["confidence"]}
        assert len(by_version[2]) == 1
        assert max(by_version[2]) < 0.7 < sure["confidence"]
        found = {"prediction_id": sure["prediction_id"], "label": "red"}
        assert ask("POST", "/feedback", json=found).json() == {"recorded": 1}

        url = httpx.URL(service.url)
        slow = socket.create_connection((url.host, url.port), timeout=MAX_WAIT_S)
        head = f"POST /predict HTTP/1.1\r\nHost: a\r\nX-Request-ID: slow\r\nContent-Length: {len(BLUE)}\r\n\r\n"
        slow.sendall(head.encode() + BLUE[:50])  # the rest comes when the service is about to end

        service.popen.send_signal(signal.SIGTERM)
        left = wait_until(lambda: (answer := ask("GET", "/readyz")).status_code == 503 and answer)
        assert problem(left, 503, "not-ready")["detail"] == "the service is about to end"
        assert ask("GET", "/health").json()["status"] == "draining"
        last = ask("POST", "/predict", content=GREEN).json()  # it goes on answering while it is found of
        assert last["predicted_class"] == "green"
        service.popen.send_signal(signal.SIGTERM)  # no more draining
        wait_until(lambda: refused(service.url))
        slow.sendall(BLUE[50:])
        with slow, slow.makefile("rb") as answer:
            head, _, body = answer.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert json.loads(body)["predicted_class"] == "blue"
        assert service.popen.wait(MAX_WAIT_S) == 0

    made = 3 + len(found)
    with ModelMonitor(tmp_path / "monitoring.db", model_version="1") as monitor:
        first = monitor.calculate_metrics("long")
        assert monitor.record_feedback(last["prediction_id"], "green")  # the very last one is there
    with ModelMonitor(tmp_path / "monitoring.db", model_version="2") as monitor:
        second = monitor.calculate_metrics("long")
    assert first["n"] + second["n"] == made
    assert second["n"] == sum(one["model"]["version"] == 2 for one in found)
    assert (first["n_labels"], first["accuracy"]) == (1, 1.0)
    lines = service.lines()  # each is JSON, so no traceback either
    assert "Traceback" not in service.errors.read_text()
    posts = [line for line in lines if line.get("path") == "/predict" and line["status"] == 200]
    assert len(posts) == made
    assert {line["version"] for line in posts} == {1, 2}
    assert {path.name for path in tmp_path.iterdir()} <= {
        "monitoring.db", "monitoring.db-wal", "monitoring.db-shm", "served_models", "stderr"
    }  # fmt: skip


def test_a_registry_that_is_away_leaves_a_service_that_lives_waits_and_ends_well(tmp_path):
    with process(tmp_path, "--tracking-uri", f"http://127.0.0.1:{free_port()}", "--drain-timeout", "0.1") as service:
        wait_until(lambda: service.ask("GET", "/health").json()["registry"]["problem"])
        health = service.ask("GET", "/health").json()
        assert (health["status"], health["registry"]["reachable"]) == ("waiting", False)
        problem(service.ask("GET", "/readyz"), 503, "not-ready")
        assert service.end() == 0
    assert "Traceback" not in service.errors.read_text()
    assert list(tmp_path.glob("*.db")) == []  # nothing was predicted, so nothing is kept


def test_a_port_in_use_is_one_line_and_status_2():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = run_script("serve_model.py", "--port", port)
    line = error_line(result)
    assert f"port {port}: " in line
    assert "in use" in line
    assert result.stderr.strip() == line
    assert result.stdout == ""


# Several processes


class TwoWorkers:
    """A service of two processes, which ends with the test that asks it to."""

    def __init__(self, service, registered, temporary):
        self.service, self.registered, self.temporary = service, registered, temporary

    def pids(self):
        return {child.pid for child in psutil.Process(self.service.popen.pid).children()}

    def each(self, method, path, **words):
        """An answer of each process, by index; each request has a connection of its own, which either may take."""
        found = {}
        while set(found) != {1, 2}:
            with httpx.Client(base_url=self.service.url, timeout=MAX_WAIT_S, trust_env=False) as client:
                index = client.get("/health").json()["worker"]["index"]
                if index not in found:
                    found[index] = client.request(method, path, **words)
        return found

    def figures(self):
        """As JSON and by Prometheus' parser, from whichever process answers."""
        people, programs = (self.service.ask("GET", "/metrics", headers={"Accept": accept})
                            for accept in ("application/json", "text/plain"))  # fmt: skip
        return people.json(), {
            (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
            for metric in text_string_to_metric_families(programs.text)
            for sample in metric.samples
        }

    def wait_until_both_are_ready(self):
        """And until each knows it of the other."""
        wait_until(lambda: self.figures()[1]["serve_ready",] == 2)
        texts = {"Accept": "text/plain"}
        wait_until(lambda: all(
            "serve_ready 2.0" in answer.text for answer in self.each("GET", "/metrics", headers=texts).values()
        ))  # fmt: skip


@pytest.fixture(scope="module")
def two_workers(uri, tmp_path_factory):
    folder, temporary = tmp_path_factory.mktemp("two_workers"), tmp_path_factory.mktemp("temporary")
    registered = RegisteredModel(uri)
    registered.promote("plain")
    words = ["--workers", "2", "--threads", "2", "--poll-interval", "3600", "--drain-timeout", "0.1"]
    words += ["--tracking-uri", uri, "--model-name", registered.name]
    with process(folder, *words, TMPDIR=str(temporary), PYTHONPATH=str(ROOT)) as service:
        two_workers = TwoWorkers(service, registered, temporary)
        two_workers.wait_until_both_are_ready()
        yield two_workers


def test_figures_are_sums_over_all_processes_whichever_answers(two_workers):
    for image, status in ((RED, 200), (GREEN, 200), (b"x", 400)):
        answers = two_workers.each("POST", "/predict", content=image)
        assert [answer.status_code for answer in answers.values()] == [status] * 2
    health = {index: answer.json() for index, answer in two_workers.each("GET", "/health").items()}
    assert {one["worker"]["pid"] for one in health.values()} == two_workers.pids()
    assert all(one["worker"]["of"] == 2 and one["queue"]["threads"] == 2 for one in health.values())

    def written():  # each hears of the other once a second
        return {answer.json()["monitor"]["stats"]["written"] for answer in two_workers.each("GET", "/metrics").values()}

    wait_until(lambda: written() == {4})
    for _ in range(4):
        people, programs = two_workers.figures()
        assert people["requests"]["/predict"] == {"200": 4, "400": 2}
        assert people["predictions"] == {"1": {"red": 2, "green": 2}}
        assert people["latency_ms"]["total"]["n"] == 4
        assert people["queue"] == {"depth": 0, "threads": 4, "free_slots": 132}
        assert people["model_changes"] == 2
        assert programs["serve_requests_total", "POST", "/predict", "200"] == 4
        assert programs["serve_stage_seconds_count", "infer"] == programs["serve_batch_size_sum",] == 4
        assert programs["serve_monitor_predictions_total", "written"] == 4
        assert {key: value for key, value in programs.items() if key[0] == "serve_model_info"} == {
            (
                "serve_model_info",
                two_workers.registered.registry.get(1).digest,
                two_workers.registered.name,
                "Production",
                "1",
            ): 2
        }
    windows = wait_until(
        lambda: (found := two_workers.figures()[0]["monitor"]["windows"]["short"])["n"] == 4 and found
    )  # both write to one store
    assert windows["class_shares"] == {"blue": 0, "green": 0.5, "red": 0.5}


def test_one_call_to_reload_reaches_all_and_one_of_them_converts(two_workers):
    version = two_workers.registered.promote("unsure")
    assert two_workers.service.ask("POST", "/admin/reload").json()["outcome"] == "loaded"
    wait_until(lambda: two_workers.figures()[0]["model_changes"] == 4)
    for answer in two_workers.each("POST", "/predict", content=RED).values():
        assert answer.json()["model"]["version"] == version
    assert [answer.json()["status"] for answer in two_workers.each("GET", "/health").values()] == ["ok", "ok"]
    folder = two_workers.service.errors.parent / "served_models" / "converted"
    assert len(list(folder.glob("openvino-*"))) == 2


def test_a_process_that_is_killed_is_replaced_and_no_count_falls(two_workers):
    before, pids = two_workers.figures(), two_workers.pids()
    os.kill(min(pids), signal.SIGKILL)
    wait_until(lambda: min(pids) not in two_workers.pids())
    for _ in range(4):  # the other one answers on
        assert two_workers.service.ask("POST", "/predict", content=BLUE).json()["predicted_class"] == "blue"
    two_workers.wait_until_both_are_ready()
    assert len(two_workers.pids() - pids) == 1
    for _ in range(4):
        people, programs = two_workers.figures()
        assert people["predictions"]["1"] == before[0]["predictions"]["1"]
        assert people["predictions"]["2"] == {"blue": 4, "red": 2}
        assert programs["serve_process_starts_total",] == 3
        counts = {key for key in before[1] if key[0].endswith(("_total", "_count", "_bucket"))}
        assert all(programs[key] >= before[1][key] for key in counts)
    found = [line["message"] for line in two_workers.service.lines() if line["level"] == "error"]
    assert len(found) == 1
    assert re.fullmatch(
        rf"worker \d \(pid {min(pids)}\) was killed by SIGKILL, perhaps .* ran out; it is restarted in 1 s",
        found[0],
    )


def test_at_the_end_all_is_answered_stored_and_cleared_away(two_workers):
    made = sum(two_workers.figures()[0]["predictions"]["2"].values())
    pids = two_workers.pids()
    last = two_workers.service.ask("POST", "/predict", content=GREEN).json()
    assert two_workers.service.end() == 0
    assert refused(two_workers.service.url)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert list(two_workers.temporary.glob("serve-*")) == []
    assert "Traceback" not in two_workers.service.errors.read_text()
    with ModelMonitor(two_workers.service.errors.parent / "monitoring.db", model_version="2") as monitor:
        assert monitor.record_feedback(last["prediction_id"], "green")
        assert monitor.calculate_metrics("long")["n"] == made + 1
