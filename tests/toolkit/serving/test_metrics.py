"""Counters as JSON and as Prometheus reads them, by that project's own parser."""

import threading
import time

import numpy as np
import pytest
from prometheus_client import values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from support.colours import colour_image
from toolkit.images.decoding import load_image
from toolkit.serving.inference.result import TIMING_STAGES, InferenceResult
from toolkit.serving.metrics import (
    FILE_BYTES,
    MONITOR_OUTCOMES,
    WINDOW_SIZE,
    ServiceMetrics,
    gauge_family,
    wants_prometheus,
)
from toolkit.serving.workers import WorkerSpec

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.fixture
def done(make_model):
    """A function that makes a result with stages of so many milliseconds."""
    model, image = make_model(version=3), load_image(colour_image("red"), 16)

    def make(milliseconds=1.0, row=(0.1, 0.2, 0.7)):
        return InferenceResult(model, image, np.array(row, np.float32), dict.fromkeys(TIMING_STAGES, milliseconds))

    return make


@pytest.fixture
def process(tmp_path, monkeypatch):
    """A function that makes the metrics of one process of several; later counts go to the one made last."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    made = []

    def make(index):
        made.append(ServiceMetrics(WorkerSpec(index, 2, supervisor=1, listener=3, folder=str(tmp_path), started=1.7e9)))
        classes.append(values.ValueClass)
        return made[-1]

    classes = []
    yield make
    for one in classes:
        one.close_all_files()


def samples(text, parse=plain):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for metric in parse(text)
        for sample in metric.samples
    }


def test_requests_are_counted_by_route_and_status_and_errors_by_type():
    metrics = ServiceMetrics()
    for method, status, problem in [
        ("POST", 200, None), ("POST", 200, None), ("POST", 503, "full"), ("GET", 405, "method-not-allowed")
    ]:  # fmt: skip
        metrics.request("/predict", method, status, 0.004, problem)
    metrics.errors.labels("undecodable-image").inc()
    metrics.errors.labels("full").inc()
    summary = metrics.summary()
    assert summary["requests"] == {"/predict": {"200": 2, "503": 1, "405": 1}}
    assert summary["errors"] == {"full": 2, "method-not-allowed": 1, "undecodable-image": 1}
    found = samples(metrics.prometheus("")[0].decode())
    assert found["serve_requests_total", ("method", "POST"), ("route", "/predict"), ("status", "200")] == 2
    assert found["serve_errors_total", ("reason", "full")] == 2
    assert found["serve_request_seconds_count", ("route", "/predict")] == 4
    assert found["serve_request_seconds_bucket", ("le", "0.0025"), ("route", "/predict")] == 0
    assert found["serve_request_seconds_bucket", ("le", "0.005"), ("route", "/predict")] == 4


def test_predictions_are_counted_by_class_and_nan_is_no_class(done):
    metrics = ServiceMetrics()
    for row in [(0.1, 0.2, 0.7), (0.7, 0.2, 0.1), (0.2, 0.2, 0.6), (float("nan"), 0.0, 1.0)]:
        metrics.prediction(done(row=row))
    metrics.monitor_errors.inc()
    metrics.model_changes.inc()
    summary = metrics.summary()
    assert summary["predictions"] == {"3": {"red": 2, "blue": 1}}
    assert summary["non_finite"] == {"3": 1}
    assert (summary["monitor_errors"], summary["model_changes"]) == (1, 1)
    found = samples(metrics.prometheus("")[0].decode())
    assert found["serve_predictions_total", ("predicted_class", "red"), ("version", "3")] == 2
    assert found["serve_non_finite_total", ("version", "3")] == 1


def test_percentiles_are_of_the_latest_predictions(done):
    metrics = ServiceMetrics()
    assert metrics.summary()["latency_ms"]["infer"] == {"n": 0, "median": None, "p95": None}
    for milliseconds in range(101):
        metrics.prediction(done(milliseconds))
    assert metrics.summary()["latency_ms"] == {
        stage: {"n": 101, "median": 50.0, "p95": 95.0} for stage in TIMING_STAGES
    }
    for _ in range(WINDOW_SIZE):
        metrics.prediction(done(7.0))
    assert metrics.summary()["latency_ms"]["total"] == {"n": WINDOW_SIZE, "median": 7.0, "p95": 7.0}
    found = samples(metrics.prometheus("")[0].decode())
    assert found["serve_stage_seconds_sum", ("stage", "decode")] == pytest.approx((5050 + 7 * WINDOW_SIZE) / 1000)


def test_threads_lose_no_count(done):
    metrics = ServiceMetrics()

    def count():
        for _ in range(300):
            metrics.request("/predict", "POST", 200, 0.001)
            metrics.prediction(done())

    threads = [threading.Thread(target=count) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    summary = metrics.summary()
    assert summary["requests"] == {"/predict": {"200": 1800}}
    assert summary["predictions"] == {"3": {"red": 1800}}
    assert summary["latency_ms"]["queue"]["n"] == 1800


def test_two_services_count_apart():
    first, second = ServiceMetrics(), ServiceMetrics()
    first.request("/livez", "GET", 200, 0.001)
    assert second.summary()["requests"] == {}


def test_gauges_are_made_at_each_scrape():
    metrics, asked = ServiceMetrics(), []
    metrics.gauges = lambda: [
        asked.append(1), gauge_family("depth", "Slots in use", ("kind",), {("a",): 2.0, ("b",): 3.5})
    ][1:]  # fmt: skip
    assert asked == []
    found = samples(metrics.prometheus("text/plain")[0].decode())
    assert asked == [1]
    assert found["serve_depth", ("kind", "a")] == 2
    assert found["serve_depth", ("kind", "b")] == 3.5


def test_both_text_formats_are_what_their_parsers_read():
    metrics = ServiceMetrics()
    metrics.request("/predict", "POST", 200, 0.001)
    key = "serve_requests_total", ("method", "POST"), ("route", "/predict"), ("status", "200")
    text, media_type = metrics.prometheus(PROMETHEUS)
    assert media_type.startswith("application/openmetrics-text; version=1.0.0")
    assert samples(text.decode(), openmetrics)[key] == 1
    text, media_type = metrics.prometheus("text/plain")
    assert media_type.startswith("text/plain; version=0.0.4")
    assert samples(text.decode())[key] == 1


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("text/plain", True),
        ("TEXT/PLAIN; version=0.0.4", True),
        (PROMETHEUS, True),
        ("text/plain;q=0.5, application/json;q=0.9", False),
        ("text/plain;q=0.9, application/json;q=0.5", True),
        ("text/plain;q=0", False),
        ("text/plain;q=much", False),
        (",;=,;q=,", False),
    ],
)
def test_the_accept_header_chooses(accept, wanted):
    assert wants_prometheus(accept) is wanted


@pytest.mark.parametrize(
    "accept",
    [
        "text/plain;version=abc",
        "text/plain;version=1e400",
        "text/plain;version=1." + "9" * 5000,
        "application/openmetrics-text;version=two",
        "application/openmetrics-text;version=;escaping=nothing",
    ],
)
def test_an_invalid_version_in_accept_still_gets_metrics(accept):
    metrics = ServiceMetrics()
    metrics.request("/predict", "POST", 200, 0.001)
    text, media_type = metrics.prometheus(accept)
    assert b"serve_requests_total" in text
    assert media_type.startswith(("text/plain", "application/openmetrics-text"))


# Several processes


def count(metrics, done, milliseconds):
    metrics.request("/predict", "POST", 200, 0.004)
    metrics.request("/predict", "POST", 503, 0.001, "full")
    metrics.prediction(done(milliseconds))
    metrics.batch_size.observe(3)
    metrics.monitor_errors.inc()
    metrics.model_changes.inc()
    stats = {"written": milliseconds, "dropped": 1, "lost": 0, "write_errors": 2}
    for _ in range(2):  # a total that is the same adds nothing
        metrics.raise_totals(stats, {"log": {"sent": 3}}, 4)


def test_each_process_gives_the_sums_over_all(process, done):
    first = process(1)
    count(first, done, 10.0)
    second = process(2)
    for milliseconds in (20.0, 30.0):
        count(second, done, milliseconds)
    for metrics in (first, second):
        summary = metrics.summary()
        assert summary["requests"] == {"/predict": {"200": 3, "503": 3}}
        assert summary["errors"] == {"full": 3}
        assert summary["predictions"] == {"3": {"red": 3}}
        assert (summary["monitor_errors"], summary["model_changes"], summary["non_finite"]) == (3, 3, {})
        assert summary["latency_ms"] == {stage: {"n": 3, "median": 20.0, "p95": 29.0} for stage in TIMING_STAGES}
        assert summary["uptime_s"] == pytest.approx(time.time() - 1.7e9, abs=60)
        for accept, parse in (("text/plain", plain), (PROMETHEUS, openmetrics)):
            found = samples(metrics.prometheus(accept)[0].decode(), parse)
            assert found["serve_requests_total", ("method", "POST"), ("route", "/predict"), ("status", "503")] == 3
            assert found["serve_request_seconds_bucket", ("le", "0.0025"), ("route", "/predict")] == 3
            assert found["serve_request_seconds_bucket", ("le", "+Inf"), ("route", "/predict")] == 6
            assert found["serve_request_seconds_sum", ("route", "/predict")] == pytest.approx(0.015)
            assert found["serve_batch_size_count",] == found["serve_model_changes_total",] == 3
            assert found["serve_start_time_seconds",] == 1.7e9
            states = [found["serve_monitor_predictions_total", ("state", name)] for name in MONITOR_OUTCOMES]
            assert states == [10 + 30, 2, 0]  # the latest total of each process
            assert found["serve_monitor_write_errors_total",] == 4
            assert found["serve_alert_notifications_total", ("notifier", "log"), ("state", "sent")] == 6
            assert found["serve_shadow_dropped_total",] == 8
            assert found["serve_process_starts_total",] == 2


def test_the_same_is_shown_by_one_process_and_by_several(process, done):
    def shown(metrics):
        count(metrics, done, 10.0)
        found = samples(metrics.prometheus("text/plain")[0].decode())
        return {key for key in found if "_created" not in key[0]}

    assert shown(process(1)) - shown(ServiceMetrics()) == {("serve_process_starts_total",)}


def test_no_sum_falls_when_a_process_is_replaced(process, done):
    count(process(1), done, 10.0)
    before = process(2).summary()
    assert before["predictions"] == {"3": {"red": 1}}
    fresh = process(1)
    assert {**fresh.summary(), "uptime_s": 0} == {**before, "uptime_s": 0}
    count(fresh, done, 20.0)
    assert fresh.summary()["predictions"] == {"3": {"red": 2}}
    assert fresh.summary()["latency_ms"]["total"]["n"] == 1  # percentiles are of the latest
    found = samples(fresh.prometheus("")[0].decode())
    assert found["serve_process_starts_total",] == 3
    assert found["serve_monitor_predictions_total", ("state", "written")] == 10 + 20


def test_files_of_counts_are_whole_from_the_start(process, tmp_path):
    """A sparse file that is mapped would kill the process when the disk is full."""
    process(1)
    for path in tmp_path.iterdir():
        assert path.stat().st_blocks * 512 >= path.stat().st_size >= min(FILE_BYTES, 4 * 8 * WINDOW_SIZE)
    assert {path.name for path in tmp_path.iterdir()} == {"counter_1.db", "histogram_1.db", "latest_1.ms"}
    assert MultiProcessCollector(None, tmp_path).collect()
