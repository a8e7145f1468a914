"""A running service with real threads, a real monitor, and a registry that the test controls."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from monitoring import ModelMonitor, new_prediction_id
from support import MAX_WAIT_S, wait_until
from support.colours import COLOURS, colour_image
from toolkit.errors import BundleError, NotRegistered, PredictionStoreError, TrackingError
from toolkit.images.decoding import ImageLimits, load_image
from toolkit.monitoring.base.ids import parse_prediction_id
from toolkit.serving.metrics import ServiceMetrics
from toolkit.serving.models.manager import ModelManagerConfig
from toolkit.serving.problems import (
    INVALID,
    NOT_READY,
    Problem,
)
from toolkit.serving.service import Component, Service, ServiceConfig

CONFIG = ServiceConfig(
    threads=2,
    max_queue=8,
    max_bytes=2**30,
    request_timeout=60,
    limits=ImageLimits(max_pixels=10_000),
    top_k=2,
    models=ModelManagerConfig(1000),
)


class BrokenMonitor:
    """A monitor without a store."""

    def fail(self, *_words, **_more):
        raise PredictionStoreError("the disk is full")

    serve = log_prediction = calculate_metrics = active_alert_states = active_alerts = report = fail
    store_problem = "the disk is full"

    def notification_stats(self):
        return {"log": {"sent": 0, "failed": 1, "dropped": 0}}

    def writer_stats(self):
        return {"queued": 0, "written": 0, "dropped": 0, "lost": 3, "write_errors": 1}

    def close(self):
        pass


@pytest.fixture
def monitor():
    return ModelMonitor("m.db")


@pytest.fixture
def open_service(source, monitor):
    opened = []

    def make(monitor=monitor, **more):
        opened.append(Service(source, monitor, new_prediction_id, ServiceMetrics(), replace(CONFIG, **more)))
        opened[-1].model_manager.poll()
        return opened[-1]

    yield make
    for service in opened:
        service.batcher.close()
        service._monitor.close()
    monitor.close()


@pytest.fixture
def service(open_service):
    return open_service()


def read(data):
    return lambda: data


def predict(service, data, top_k=None):
    return asyncio.run(service.predict(read(data), top_k))


def problem(work):
    with pytest.raises(Problem) as caught:
        work()
    return caught.value


def test_the_settings_say_how_many_classes_are_listed_of_those_there_are(open_service):
    assert len(predict(open_service(top_k=2), colour_image("red")).top_k) == 2
    assert len(predict(open_service(top_k=50), colour_image("red")).top_k) == 3


@pytest.mark.parametrize("top_k", [4, 10**30])
def test_too_large_a_top_k_is_rejected_before_the_body_is_read(service, top_k):
    found = problem(lambda: service.require_ready(top_k))
    assert (found.problem_type, found.detail) == (INVALID, "query.top_k: must be at most 3, the number of classes")
    service.require_ready(3)
    service.require_ready(None)


def test_a_failing_monitor_does_not_fail_predictions(open_service):
    service = open_service(BrokenMonitor())
    answer = predict(service, colour_image("blue"))
    assert answer.predicted_class == "blue"
    assert service.metrics.summary()["monitor_errors"] == 1
    health = service.health(draining=False)
    assert health.monitor["lost"] == 3
    assert (health.status, health.reason) == ("degraded", "predictions cannot be stored: the disk is full")
    text = service.metrics.prometheus("")[0].decode()
    assert 'serve_monitor_predictions_total{state="lost"} 3.0' in text
    assert 'serve_alert_notifications_total{notifier="log",state="failed"} 1.0' in text
    assert "serve_window" not in text


def test_status_of_health(open_service, source):
    source.wanted = NotRegistered("nothing is in Production")
    service = open_service(models=ModelManagerConfig(7.2))
    health = service.health(draining=False)
    assert (health.status, health.ready, health.reason) == ("waiting", False, "nothing is in Production")
    assert health.model is None
    found = problem(service.model)
    assert (found.problem_type, found.headers) == (NOT_READY, {"Retry-After": "8"})
    assert problem(lambda: service.require_ready(1)).problem_type is NOT_READY

    def status():
        service.model_manager.poll()
        found = service.health(draining=False)
        assert found.ready is True
        assert (found.reason is None) == (found.status == "ok")
        return found.status

    source.put(1)
    assert status() == "ok"
    source.wanted = TrackingError("no answer")
    assert status() == "degraded"
    source.wanted = NotRegistered("nothing is in Production")  # what still answers is not what the registry says
    assert status() == "degraded"
    source.put(1)
    assert status() == "ok"
    source.bundles[2] = BundleError("altered")
    source.put(2)
    assert status() == "degraded"
    assert service.health(draining=False).registry.load_failure.version == 2
    assert service.health(draining=False).model["version"] == 1
    health = service.health(draining=True)
    assert (health.status, health.ready) == ("draining", False)


def test_health_is_the_worst_of_its_components(open_service, monkeypatch):
    monkeypatch.setattr("toolkit.serving.service.MONITOR_REFRESH_S", 0.0)
    monitor = ModelMonitor("health.db")
    service = open_service(monitor)

    def health():
        found = service.health(draining=False)
        return found.status, {name: part.status for name, part in found.components.items()}, found.reason

    fine = dict.fromkeys(("engine", "registry", "store", "alerts"), "ok")
    assert health() == ("ok", fine, None)
    predict(service, colour_image("red"))
    assert monitor.flush(MAX_WAIT_S)
    monitor.report("drift", "CONFIDENCE changed")
    found = "warning", fine | {"alerts": "warning"}, "warning (confirmed): CONFIDENCE changed"
    wait_until(lambda: health() == found)
    monitor.report("accuracy", "ACCURACY 84 -> 66 %", "immediate")
    wait_until(lambda: health()[::2] == ("critical", "immediate (confirmed): ACCURACY 84 -> 66 %"))


def test_health_shows_what_the_window_confirms_without_an_alert(open_service, monitor):
    service = open_service(monitor)
    ids = [predict(service, colour_image(COLOURS[n % 3], n)).prediction_id for n in range(60)]
    assert monitor.flush(MAX_WAIT_S)
    labels = dict.fromkeys(ids, "red")  # two thirds of the answers were wrong
    monitor._store.labels.insert({parse_prediction_id(name): label for name, label in labels.items()}, "audit", 1.7e9)
    assert monitor.active_alerts() == []
    found = service.health(draining=False)
    assert found.status == "critical"
    assert found.reason.startswith("immediate (confirmed): accuracy in the short window is 6")


def test_health_is_degraded_while_the_store_cannot_be_written(open_service):
    monitor = ModelMonitor("health.db")
    service = open_service(monitor)
    predict(service, colour_image("red"))
    assert monitor.flush(MAX_WAIT_S)
    for path in Path().glob("health.db*"):
        path.write_bytes(b"no database any more" * 500)
    predict(service, colour_image("red"))
    wait_until(lambda: monitor.writer_stats()["write_errors"])
    found = service.health(draining=False)
    assert (found.status, found.ready) == ("degraded", True)
    assert found.components["store"] == Component("degraded", found.reason)
    assert found.reason.startswith("predictions cannot be stored: ")
    assert str(Path.cwd()) not in found.reason
    for path in Path().glob("health.db*"):
        path.unlink()
    wait_until(lambda: service.health(draining=False).status == "ok")
    assert monitor.writer_stats()["lost"] == 0


def test_a_change_of_model_under_load_loses_no_answer(service, source, monitor):
    data = colour_image("red", 3)
    pixels = load_image(data, 16).pixels[None]
    confidences = {version: float(source.bundles[version].predict(pixels).max()) for version in (1, 2)}
    assert confidences[1] > confidences[2] + 0.1

    async def clients():
        answers, over = [], False

        async def client():
            while not over:
                answers.append(await service.predict(read(data), 1))

        async def changes():
            nonlocal over
            for version in (2, 1) * 2:
                source.put(version)
                assert await asyncio.to_thread(service.model_manager.poll) == "loaded"
                before = len(answers)
                while len(answers) < before + 20:  # more than can have been on their way
                    await asyncio.sleep(0)
            over = True

        await asyncio.gather(*(client() for _ in range(4)), changes())
        return answers

    answers = asyncio.run(clients())
    assert {answer.model.version for answer in answers} == {1, 2}
    for answer in answers:
        assert answer.confidence == pytest.approx(confidences[answer.model.version], abs=1e-6)
    service.model_manager.poll()
    assert service.metrics.summary()["monitor_errors"] == 0
    assert monitor.flush(MAX_WAIT_S)
    assert monitor.writer_stats()["written"] == len(answers)


def test_a_change_of_classes_mixes_nothing(open_service, source, make_bundle, monitor):
    service = open_service()
    predict(service, colour_image("red"))
    source.bundles[2] = make_bundle(digest="v2", classes=("azure", "lime", "rose"))
    source.put(2)
    assert service.model_manager.poll() == "loaded"
    assert predict(service, colour_image("red")).predicted_class == "rose"
    metrics = monitor.calculate_metrics("short")
    assert (metrics["n"], metrics["class_shares"]) == (1, {"azure": 0.0, "lime": 0.0, "rose": 1.0})


def test_prometheus_metrics_of_model_queue_and_windows(service):
    predict(service, colour_image("red"))
    with service.admission.slots(4):
        text = service.metrics.prometheus("text/plain")[0].decode()
        assert service.queue() == {"depth": 4, "threads": 2, "free_slots": 6}
    for line in (
        'serve_model_info{digest="v1",name="colours",stage="Production",version="1"} 1.0',
        "serve_ready 1.0",
        "serve_queue_depth 4.0",
        'serve_window_n{window="short"} 1.0',
        'serve_predictions_total{predicted_class="red",version="1"} 1.0',
        "serve_model_changes_total 1.0",
    ):
        assert line in text.splitlines()
    assert "serve_window_accuracy{" not in text  # unknown without labels, so not shown


def test_closing_stores_what_was_answered(source):
    monitor = ModelMonitor("closing.db")
    config = replace(CONFIG, threads=1, top_k=1, models=ModelManagerConfig(0.01))
    service = Service(source, monitor, new_prediction_id, ServiceMetrics(), config)
    threads = set(threading.enumerate())
    service.start()
    service.model_manager.poll()
    ids = [predict(service, colour_image("red")).prediction_id for _ in range(5)]
    service.close()
    assert set(threading.enumerate()) <= threads
    with ModelMonitor("closing.db") as reader:
        assert reader.calculate_metrics("long")["n"] == 5
        for name in ids:
            assert reader.record_feedback(name, "red")


def test_a_version_that_fails_to_load_raises_one_alert(open_service, source, monitor):
    service = open_service()
    source.wanted, source.bundles[3] = replace(source.wanted, version=3, digest="v3"), BundleError("it was altered")
    for _ in range(3):
        service.model_manager.poll(again=True)
    [alert] = monitor.alerts()
    assert (alert.metric, alert.level, alert.model_version) == ("model_loading", "warning", "1")
    assert alert.message == "Version 3 cannot be served: it was altered; version 1 serves on."
    text = service.metrics.prometheus("")[0].decode()
    assert 'serve_alerts_active{level="warning"} 1.0' in text
    assert 'serve_detector_evidence{metric="accuracy"}' in text
