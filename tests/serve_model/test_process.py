"""The service as a process: from start to end, and as several processes."""

import json
import os
import re
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring import ModelMonitor
from support import MAX_WAIT_S, ROOT
from support.running_service import BLUE, GREEN, RED, RegisteredModel, problem, process, refused, wait_until


def test_a_service_from_start_to_end(registered, tmp_path):
    words = ["--tracking-uri", registered.uri, "--model-name", registered.name, "--poll-interval", "0.2"]
    words += ["--engine", "torch", "--drain-timeout", "99", "--shutdown-timeout", "600"]
    words += ["--request-timeout", "600", "--body-timeout", "600", "--read-timeout", "600"]
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
            with service.connect() as connection:
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
        label = {"prediction_id": sure["prediction_id"], "label": "red"}
        assert ask("POST", "/feedback", json=label).json() == {"recorded": 1}

        url = httpx.URL(service.url)
        slow = socket.create_connection((url.host, url.port), timeout=MAX_WAIT_S)
        head = f"POST /predict HTTP/1.1\r\nHost: a\r\nX-Request-ID: slow\r\nContent-Length: {len(BLUE)}\r\n\r\n"
        slow.sendall(head.encode() + BLUE[:50])  # the rest comes when the service is about to end

        service.popen.send_signal(signal.SIGTERM)
        left = wait_until(lambda: (answer := ask("GET", "/readyz")).status_code == 503 and answer)
        assert problem(left, 503, "not-ready")["detail"] == "the service is about to end"
        assert ask("GET", "/health").json()["status"] == "draining"
        last = ask("POST", "/predict", content=GREEN).json()  # it still answers while it drains
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
            with self.service.connect() as client:
                index = client.get("/health").json()["worker"]["index"]
                if index not in found:
                    found[index] = client.request(method, path, **words)
        return found

    def metrics(self):
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
        wait_until(lambda: self.metrics()[1]["serve_ready",] == 2)
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


def test_metrics_are_sums_over_all_processes(two_workers):
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
        people, programs = two_workers.metrics()
        assert people["requests"]["/predict"] == {"200": 4, "400": 2}
        assert people["predictions"] == {"1": {"red": 2, "green": 2}}
        assert people["latency_ms"]["total"]["n"] == 4
        assert people["queue"] == {"depth": 0, "threads": 4, "free_slots": 132}
        assert people["model_changes"] == 2
        assert programs["serve_requests_total", "POST", "/predict", "200"] == 4
        assert programs["serve_stage_seconds_count", "infer"] == programs["serve_batch_size_sum",] == 4
        assert programs["serve_monitor_predictions_total", "written"] == 4
        version = two_workers.registered.registry.get(1)
        info = ("serve_model_info", version.digest, version.name, "Production", "1")
        assert {key: value for key, value in programs.items() if key[0] == info[0]} == {info: 2}
    windows = wait_until(
        lambda: (found := two_workers.metrics()[0]["monitor"]["windows"]["short"])["n"] == 4 and found
    )  # both write to one store
    assert windows["class_shares"] == {"blue": 0, "green": 0.5, "red": 0.5}


def test_a_reload_reaches_all_processes_and_one_converts(two_workers):
    version = two_workers.registered.promote("unsure")
    assert two_workers.service.ask("POST", "/admin/reload").json()["outcome"] == "loaded"
    wait_until(lambda: two_workers.metrics()[0]["model_changes"] == 4)
    for answer in two_workers.each("POST", "/predict", content=RED).values():
        assert answer.json()["model"]["version"] == version
    assert [answer.json()["status"] for answer in two_workers.each("GET", "/health").values()] == ["ok", "ok"]
    folder = two_workers.service.errors.parent / "served_models" / "converted"
    assert len(list(folder.glob("openvino-*"))) == 2


def test_a_killed_process_is_replaced_and_no_count_falls(two_workers):
    before, pids = two_workers.metrics(), two_workers.pids()
    made = sum(before[0]["predictions"]["2"].values())
    with ModelMonitor(two_workers.service.errors.parent / "monitoring.db", model_version="2") as monitor:
        wait_until(lambda: monitor.calculate_metrics("long")["n"] == made)  # what waits to be stored dies with it
    os.kill(min(pids), signal.SIGKILL)
    wait_until(lambda: min(pids) not in two_workers.pids())
    for _ in range(4):  # the other one answers on
        assert two_workers.service.ask("POST", "/predict", content=BLUE).json()["predicted_class"] == "blue"
    two_workers.wait_until_both_are_ready()
    assert len(two_workers.pids() - pids) == 1
    for _ in range(4):
        people, programs = two_workers.metrics()
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


def test_two_processes_answer_and_store_all_at_the_end(two_workers):
    made = sum(two_workers.metrics()[0]["predictions"]["2"].values())
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
