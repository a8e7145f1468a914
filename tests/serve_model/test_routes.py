"""State, errors and limits over HTTP."""

import asyncio
import gzip
import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve_model import ServeSettings, create_app
from support import MAX_WAIT_S
from support.colours import COLOURS, encode
from support.running_service import GREEN, RED, BlockingEngine, problem, use_engine, wait_until
from toolkit.serving.routes import inference_protocols


def test_state_of_a_healthy_service(served):
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


def test_metrics_as_json_and_for_prometheus_are_the_same(served):
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
    metrics = people.json()
    assert counted(programs.text) == metrics["requests"]["/predict"]
    assert metrics["requests"]["/predict"]["400"] >= 1
    assert metrics["model"]["version"] == 1
    assert set(metrics["monitor"]["windows"]) == {"short", "medium", "long"}
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


def test_openapi_lists_all_routes(served):
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


def test_bodies_may_be_compressed(served):
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


def test_no_redirect_follows_the_host_header(served):
    for path in [*served.client.get("/openapi.json").json()["paths"], "/", "/docs", "/dashboard"]:
        for address in (path, path + "/"):
            answer = served.client.get(address, headers={"Host": "evil.example"})
            assert "evil" not in answer.headers.get("Location", "")


def test_head_works_where_get_does(served):
    for path in ("/livez", "/health", "/metrics", "/model-info", "/docs", "/openapi.json", "/v2", "/ping", "/nothing"):
        got, found = served.client.get(path), served.client.head(path)
        assert (found.status_code, found.content) == (got.status_code, b"")
        assert found.headers["Content-Type"] == got.headers["Content-Type"]
    assert served.client.head("/predict").status_code == 405
    counted = served.client.get("/metrics/prometheus").text
    assert 'serve_requests_total{method="HEAD",route="/livez",status="200"} 1.0' in counted


def test_a_page_of_another_origin_cannot_write(served):
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


def test_pages_of_allowed_origins_may_send_and_read():
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


def test_a_wrong_method_lists_the_allowed_ones(served):
    assert served.client.get("/predict").headers["Allow"] == "POST"


def test_a_request_keeps_its_id(served):
    for path in ("/livez", "/nothing", "/predict"):
        answer = served.client.get(path, headers={"X-Request-ID": "trace-7"})
        assert answer.headers["X-Request-ID"] == "trace-7"
    assert re.fullmatch("[0-9a-f]{16}", served.client.get("/livez").headers["X-Request-ID"])


def test_an_internal_error_reveals_nothing(served):
    with use_engine(served, BlockingEngine(RuntimeError("secret of /srv"))):
        document = problem(served.predict(), 500, "internal-error")
        assert "secret" not in json.dumps(document)
        results = served.client.post("/predict/batch", files=[("files", RED)]).json()["results"]
        assert results[0]["error"]["status"] == 500
        assert "secret" not in results[0]["error"]["detail"]
    assert served.predict().status_code == 200
    assert served.admission.in_flight == 0


def test_a_full_queue_rejects_images_and_other_routes_answer(served):
    blocking = BlockingEngine()
    with ThreadPoolExecutor(8) as clients, use_engine(served, blocking):
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


def test_a_batch_with_too_few_free_slots_takes_none(served):
    with served.admission.slots(5):
        problem(served.client.post("/predict/batch", files=[("files", RED)] * 4), 503, "overloaded")
        assert served.admission.in_flight == 5
        assert served.client.post("/predict/batch", files=[("files", RED)] * 3).status_code == 200
    assert served.admission.in_flight == 0
