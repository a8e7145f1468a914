"""The monitor as its users meet it: a service, a notebook beside it, and a terminal."""

import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from monitoring import ModelMonitor, MonitorConfig, MonitorSettings, Thresholds, new_prediction_id
from toolkit.bundle.baseline import Baseline
from toolkit.errors import SettingsError, StoreError, UnknownPrediction

ROOT = Path(__file__).parent.parent
CLASSES = ("bird", "cat", "dog")


class Clock:
    """One second later each time somebody looks."""

    def __init__(self, start=1.7e9):
        self.now = start

    def __call__(self):
        self.now += 1
        return self.now


def answers(n, rng, strength=3.0, prior=None):
    truth = rng.choice(3, n, p=prior)
    logits = rng.normal(0, 1, (n, 3))
    logits[np.arange(n), truth] += strength
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True), truth


def make_baseline(seed=0, n=2000):
    rng = np.random.default_rng(seed)
    probabilities, truth = answers(n, rng)
    return Baseline(CLASSES, probabilities, truth, statistics={"brightness": rng.normal(0.5, 0.1, n)})


def feed(monitor, n, rng, *, labelled=True, brightness=0.5, **more):
    """Log a stream, block by block as a service would, with its labels close behind."""
    probabilities, truth = answers(n, rng, **more)
    for first in range(0, n, 100):
        ids = [
            monitor.log_prediction(row, statistics={"brightness": rng.normal(brightness, 0.1)}, latency_ms=4.0)
            for row in probabilities[first : first + 100]
        ]
        assert monitor.flush(30)
        if labelled:
            names = [CLASSES[k] for k in truth[first : first + 100]]
            monitor.record_feedback_many(dict(zip(ids, names, strict=True)), source="audit")
            assert monitor.flush(30)


@pytest.fixture
def baseline():
    return make_baseline()


@pytest.fixture
def monitor(baseline):
    with ModelMonitor("m.db", baseline, model_version="1", config=MonitorConfig(clock=Clock())) as monitor:
        yield monitor


def run(*words, **environment):
    return subprocess.run(
        [sys.executable, ROOT / "monitoring.py", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        check=False,
    )


# Importing and opening


def test_importing_does_nothing_and_loads_neither_torch_nor_mlflow_nor_matplotlib(tmp_path):
    program = (
        "import logging, sys, monitoring\n"
        "print(sorted({'torch', 'mlflow', 'matplotlib', 'sklearn', 'pandas', 'scipy'} & set(sys.modules)))\n"
        "print(logging.getLogger().handlers)\n"
        "monitoring.ModelMonitor().calculate_metrics()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "[]\n[]\n"
    assert list(tmp_path.iterdir()) == []


def test_an_empty_store_gives_empty_answers():
    with ModelMonitor() as monitor:
        assert monitor.model_version is None
        assert {name: figures["n"] for name, figures in monitor.calculate_metrics().items()} == {
            "short": 0,
            "medium": 0,
            "long": 0,
        }
        assert monitor.detect_drift(None).drifted is None
        assert monitor.alerts() == monitor.check_alerts() == []
        for metric in ("accuracy", "confidence", "predictions"):
            assert "No predictions" in monitor.plot_metrics(metric).texts[0].get_text()
        monitor.plot_metrics("drift")


def test_the_store_comes_from_the_environment_when_not_given(monkeypatch, baseline):
    monkeypatch.setenv("MONITORING_STORE", "elsewhere.db")
    assert MonitorSettings().store == "elsewhere.db"
    with ModelMonitor(baseline=baseline) as monitor:
        monitor.log_prediction([1, 0, 0])
    assert Path("elsewhere.db").exists()
    assert monitor.model_version == "unversioned"


# Logging


def test_what_was_logged_is_measured(monitor):
    ids = [monitor.log_prediction(p, latency_ms=ms) for p, ms in (([0.5, 0.25, 0.25], 1), ([0.25, 0.75, 0.0], 3))]
    monitor.record_feedback(ids[0], "bird")
    monitor.record_feedback(ids[1], "dog")
    figures = monitor.calculate_metrics("short")
    assert (figures["n"], figures["n_labels"], figures["accuracy"]) == (2, 2, 0.5)
    assert figures["mean_confidence"] == 0.625
    assert figures["class_shares"] == {"bird": 0.5, "cat": 0.5, "dog": 0.0}
    assert figures["latency_ms"] == {"median": pytest.approx(1, rel=0.033), "p95": pytest.approx(3, rel=0.033)}
    assert figures["model_version"] == "1"
    assert figures["reference_n"] == 2000
    json.dumps(monitor.calculate_metrics(), allow_nan=False)


def test_the_windows_are_the_last_predictions(baseline):
    with ModelMonitor("m.db", baseline, thresholds=Thresholds()) as monitor:
        for _ in range(1100):
            monitor.log_prediction([1, 0, 0])
        for _ in range(300):
            monitor.log_prediction([0, 1, 0])
        figures = monitor.calculate_metrics()
    assert [figures[name]["n"] for name in ("short", "medium", "long")] == [1000, 1400, 1400]
    assert figures["short"]["class_shares"]["cat"] == 0.3


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        ([0.5, 0.5], r"3 probabilities are needed, one for each class, got shape \(2,\)"),
        ([[0.2, 0.3, 0.5]], r"got shape \(1, 3\)"),
        ([7.3, -2.0, 0.1], "must lie between 0 and 1, got -2: are these logits?"),
        ([0.2, 0.2, 0.2], "must add up to 1, got 0.6"),
        (["a", "b", "c"], "must be numbers"),
        ({"cat": 0.5, "dog": 0.5}, "the classes are bird, cat, dog"),
    ],
)
def test_what_is_no_prediction_is_refused(monitor, probabilities, message):
    with pytest.raises(SettingsError, match=message):
        monitor.log_prediction(probabilities)


def test_an_id_made_earlier_can_be_used_and_a_malformed_one_not(monitor):
    name = new_prediction_id()
    assert monitor.log_prediction({"dog": 1, "cat": 0, "bird": 0}, prediction_id=name, time=5.0) == name
    assert monitor.calculate_metrics("short")["since"] == 5.0
    with pytest.raises(UnknownPrediction, match="an id has 16 hex digits"):
        monitor.log_prediction([1, 0, 0], prediction_id="mine")


def test_probabilities_that_are_not_finite_are_counted_and_left_out(monitor):
    monitor.log_prediction([np.nan, 0.5, 0.5])
    monitor.log_prediction([np.inf, 0, 0])
    monitor.log_prediction([1, 0, 0])
    figures = monitor.calculate_metrics("short")
    assert (figures["n"], figures["non_finite"], figures["mean_confidence"]) == (3, 2, 1.0)


def test_threads_log_at_the_same_time_and_nothing_is_lost(monitor):
    ids = []

    def work():
        ids.extend([monitor.log_prediction([0.2, 0.3, 0.5]) for _ in range(500)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert monitor.calculate_metrics("long")["n"] == len(set(ids)) == 2000
    assert monitor.writer_stats() == {"queued": 0, "written": 2000, "dropped": 0, "lost": 0, "write_errors": 0}


def test_processes_share_a_store_and_nothing_is_lost():
    program = (
        "import sys\n"
        "from monitoring import ModelMonitor\n"
        "with ModelMonitor('m.db', classes=['cat', 'dog'], model_version='1') as monitor:\n"
        "    for _ in range(20):\n"
        "        ids = [monitor.log_prediction([0.25, 0.75]) for _ in range(50)]\n"
        "        monitor.record_feedback_many(dict.fromkeys(ids, 'dog'))\n"
        "print(monitor.writer_stats()['lost'])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) for _ in range(3)
    ]
    assert [worker.communicate(timeout=120)[0] for worker in workers] == [b"0\n"] * 3
    with ModelMonitor("m.db") as monitor:
        figures = monitor.calculate_metrics("long")
    assert (figures["n"], figures["n_labels"], figures["accuracy"]) == (3000, 3000, 1.0)


def test_a_notebook_needs_no_baseline_and_no_class_names():
    with ModelMonitor("m.db") as monitor:
        name = monitor.log_prediction([0.1, 0.9])
        assert monitor.record_feedback(name, "1")
        assert monitor.detect_drift().drifted is None
        assert monitor.calculate_metrics("short")["accuracy"] == 1.0


def test_a_tight_loop_loses_nothing(caplog):
    with ModelMonitor("m.db", classes=["cat", "dog"]) as monitor:
        ids = [monitor.log_prediction([0.25, 0.75]) for _ in range(30_000)]
        assert monitor.calculate_metrics("long")["n"] == 30_000
        assert monitor.writer_stats() == {"queued": 0, "written": 30_000, "dropped": 0, "lost": 0, "write_errors": 0}
        assert monitor.record_feedback_many(dict.fromkeys(ids[::1000], "dog")) == 30
    assert not caplog.records


def test_a_monitor_that_is_told_never_to_wait_drops_counts_and_says_so(caplog):
    with ModelMonitor("m.db", classes=["cat", "dog"]) as monitor:
        monitor.log_prediction([0.25, 0.75])
    with sqlite3.connect("m.db", isolation_level=None) as connection:
        connection.execute("BEGIN IMMEDIATE")  # the store does not take anything
        with ModelMonitor("m.db", classes=["cat", "dog"], config=MonitorConfig(drop_when_full=True)) as monitor:
            for _ in range(3):
                monitor.log_predictions([[0.25, 0.75]] * 5000)
            monitor.log_prediction([0.25, 0.75])
            dropped = monitor.writer_stats()["dropped"]
            assert 4000 <= dropped <= 5001
            connection.execute("ROLLBACK")
            figures = monitor.calculate_metrics("long")
    connection.close()
    assert figures["n"] == 15_002 - dropped
    assert caplog.messages.count("predictions arrive faster than they are stored: some are dropped") == 1


def test_many_are_logged_at_once_as_if_one_by_one(baseline):
    rng = np.random.default_rng(11)
    rows, _ = answers(2500, rng)
    rows[7] = np.nan
    brightness, latency, times = rng.random(2500), rng.random(2500) * 9, 1.7e9 + np.arange(2500.0)
    names = [f"{place}.jpg" for place in range(2500)]
    with ModelMonitor("one.db", baseline, model_version="1") as one, ModelMonitor("all.db", baseline) as many:
        ids = [
            one.log_prediction(row, statistics={"brightness": b}, latency_ms=ms, time=moment, source=name)
            for row, b, ms, moment, name in zip(rows, brightness, latency, times, names, strict=True)
        ]
        assert many.log_predictions(
            rows, statistics={"brightness": brightness}, latency_ms=latency, times=times, sources=names,
            prediction_ids=ids, model_version="1",
        ) == ids  # fmt: skip
        assert one.export("one.csv", probabilities=True) == 2500
        many.flush(30)
        with ModelMonitor("all.db", model_version="1") as beside:
            assert beside.export("all.csv", probabilities=True) == 2500
    assert Path("one.csv").read_text() == Path("all.csv").read_text()


def test_what_is_logged_at_once_is_looked_at_when_it_is_stored(monitor):
    monitor.log_predictions(answers(15_000, np.random.default_rng(13), strength=0.5)[0])
    assert monitor.flush(60)
    assert "confidence_distribution" in {alert.metric for alert in monitor.alerts()}


def test_many_get_ids_of_their_own_in_order(monitor):
    before = monitor.log_prediction([1, 0, 0])
    ids = monitor.log_predictions([{"dog": 1, "cat": 0, "bird": 0}] * 20_000)
    after = monitor.log_prediction([1, 0, 0])
    assert [before, *ids, after] == sorted({before, *ids, after})
    assert monitor.flush(120)
    assert monitor.record_feedback_many(dict.fromkeys(ids[-3:], "dog")) == 3
    figures = monitor.calculate_metrics("long")
    assert (figures["n"], figures["n_labels"], figures["accuracy"]) == (20_002, 3, 1.0)
    assert monitor.log_predictions([]) == monitor.log_predictions(np.zeros((0, 3))) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"probabilities": [[1, 0, 0], [0.5, 0.1, 0]]}, r"^probabilities\[1\] must add up to 1, got 0.6$"),
        ({"statistics": {"brightness": [1.0]}}, r"^statistics\['brightness'\] must be 2 numbers, one for each image"),
        ({"latency_ms": [1, "slow"]}, r"^latency_ms\[1\] must be a number, got 'slow'$"),
        ({"times": ["2026-11-24", "soon"]}, r"^times\[1\] must be a time such as 2026-11-24T08:00Z, got soon$"),
        ({"sources": ["a.jpg"]}, "^2 sources are needed, one for each prediction, got 1$"),
        ({"prediction_ids": [new_prediction_id()]}, "^2 prediction ids are needed, got 1$"),
    ],
)
def test_of_many_with_something_wrong_none_is_logged(monitor, more, message):
    with pytest.raises(SettingsError, match=message):
        monitor.log_predictions(**{"probabilities": [[1, 0, 0], [0, 1, 0]]} | more)
    with pytest.raises(UnknownPrediction, match="there is no prediction 'mine'"):
        monitor.log_predictions([[1, 0, 0]], prediction_ids=["mine"])
    assert monitor.calculate_metrics("long")["n"] == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"latency_ms": "slow"}, "latency_ms must be a number, got 'slow'"),
        ({"statistics": {"a": "x"}}, r"statistics\['a'\] must be a number, got 'x'"),
        ({"time": float("nan")}, "time must lie between the years 1970 and 3000, in seconds since 1970, got nan"),
        ({"time": "soon"}, "time must be a time such as 2026-11-24T08:00Z, got soon"),
        ({"source": 5}, "source must be a text such as a file name, got int"),
    ],
)
def test_what_could_not_be_stored_is_refused_and_nothing_else_is_lost_with_it(monitor, more, message):
    monitor.log_prediction([1, 0, 0])
    with pytest.raises(SettingsError, match=f"^{message}$"):
        monitor.log_prediction([1, 0, 0], **more)
    monitor.log_prediction([1, 0, 0], time="2026-11-24T08:00Z", latency_ms=np.float32(2), statistics={"a": None})
    figures = monitor.calculate_metrics("long")
    assert (figures["n"], figures["until"]) == (2, datetime(2026, 11, 24, 8, tzinfo=UTC).timestamp())
    assert monitor.writer_stats()["lost"] == 0


def test_an_id_that_is_logged_twice_is_stored_once_and_told(monitor, caplog):
    name = monitor.log_prediction([1, 0, 0])
    monitor.flush(30)
    monitor.log_predictions([[0, 1, 0], [0, 0, 1]], prediction_ids=[name, new_prediction_id()])
    assert monitor.calculate_metrics("long")["class_shares"] == {"bird": 0.5, "cat": 0.0, "dog": 0.5}
    assert caplog.messages == ["1 predictions were not stored: the store has others with their ids already"]


# Feedback


def test_feedback_is_idempotent_and_the_last_label_counts(monitor):
    name = monitor.log_prediction([0, 1, 0])
    assert monitor.record_feedback(name, "dog", source="user") is True  # still in the queue
    assert monitor.record_feedback(name, "dog") is False
    assert monitor.calculate_metrics("short")["accuracy"] == 0
    assert monitor.record_feedback(name, "cat", source="audit") is True
    figures = monitor.calculate_metrics("short")
    assert (figures["n_labels"], figures["accuracy"]) == (1, 1)


def test_feedback_that_fits_nothing_is_refused(monitor):
    name = monitor.log_prediction([0, 1, 0])
    with pytest.raises(SettingsError, match="no class 'caat'; the classes are cat, bird, dog"):
        monitor.record_feedback(name, "caat")
    for unknown in (new_prediction_id(), "nonsense", ""):
        with pytest.raises(UnknownPrediction, match="there is no prediction"):
            monitor.record_feedback(unknown, "cat")
    assert monitor.record_feedback_many({}) == 0


# One store, several monitors


def test_a_notebook_beside_a_service_sees_what_the_service_sees(monitor):
    feed(monitor, 300, np.random.default_rng(1))
    with ModelMonitor("m.db") as notebook:
        assert notebook.model_version == "1"
        assert notebook.calculate_metrics() == monitor.calculate_metrics()
        assert notebook.detect_drift(None) == monitor.detect_drift(None)
        feed(monitor, 100, np.random.default_rng(2))
        assert notebook.calculate_metrics("short")["n"] == 400
        monitor.serve("2", make_baseline(5))
        monitor.log_prediction([1, 0, 0])
        monitor.flush(30)
        assert notebook.calculate_metrics("short")["n"] == 1
        assert notebook.model_version == "2"


def test_after_a_restart_everything_is_as_before(baseline):
    clock = Clock()
    with ModelMonitor("m.db", baseline, model_version="1", config=MonitorConfig(clock=clock)) as monitor:
        feed(monitor, 500, np.random.default_rng(1), strength=1.0)
        before = monitor.calculate_metrics(), monitor.detect_drift(None), monitor.alerts()
    with ModelMonitor("m.db", baseline, model_version="1", config=MonitorConfig(clock=clock)) as monitor:
        assert (monitor.calculate_metrics(), monitor.detect_drift(None), monitor.alerts()) == before


def test_a_switch_of_versions_opens_fresh_windows(monitor, baseline):
    feed(monitor, 200, np.random.default_rng(1))
    monitor.serve("2", baseline)
    assert monitor.calculate_metrics("long")["n"] == 0
    feed(monitor, 100, np.random.default_rng(2))
    assert monitor.calculate_metrics("long")["n"] == 100
    monitor.log_prediction([1, 0, 0], model_version="3")  # a version that answers beside the served one
    assert monitor.calculate_metrics("long")["n"] == 100
    monitor.serve("1", baseline)
    assert monitor.calculate_metrics("long")["n"] == 200
    monitor.flush(30)
    with ModelMonitor("m.db", model_version="3") as beside:
        assert beside.calculate_metrics("long")["n"] == 1
    with pytest.raises(StoreError, match=r"no model version 4 in the store m.db; there are 1, 2, 3"):
        ModelMonitor("m.db", model_version="4").calculate_metrics()


def test_a_baseline_of_other_classes_is_refused(baseline):
    with pytest.raises(SettingsError, match="other classes"):
        ModelMonitor("m.db", baseline, classes=["cat", "bird", "dog"])
    with pytest.raises(SettingsError, match="class names that differ"):
        ModelMonitor("m.db", classes=["cat", "cat"])


# Trouble with the store


def test_a_store_that_cannot_be_written_is_never_felt_by_logging(monitor, baseline, caplog, monkeypatch):
    monkeypatch.setattr("toolkit.monitoring.store.background_writer.CLOSE_TIMEOUT_S", 0.2)
    monitor.log_prediction([1, 0, 0])
    monitor.flush(30)
    with caplog.at_level(logging.ERROR), ModelMonitor("sqlite:///file:m.db?mode=ro&uri=true", baseline) as reader:
        for _ in range(3):
            reader.log_prediction([1, 0, 0])
        reader.serve("2", baseline)
        assert not reader.flush(30)  # kept, to be tried again
        stats = reader.writer_stats()
        assert (stats["written"], stats["queued"], stats["lost"]) == (0, 3, 0)
        assert stats["write_errors"] >= 1
    assert reader.writer_stats()["lost"] == 3
    failed, lost = caplog.messages
    assert "attempt to write a readonly database" in failed
    assert lost == "the store did not take 3 predictions before the end: they are lost"


def test_a_damaged_store_is_one_sentence_for_who_reads(monitor):
    monitor.log_prediction([1, 0, 0])
    monitor.flush(30)
    with sqlite3.connect("m.db") as connection:
        connection.execute("DROP TABLE labels")
    with pytest.raises(StoreError, match=r"the store m.db cannot be read: no such table: labels"):
        monitor.calculate_metrics()
    Path("broken.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreError, match=r"the store broken.db cannot be opened: file is not a database"):
        ModelMonitor("broken.db")


# Drift and alerts


def test_a_stream_without_drift_is_left_in_peace(monitor):
    feed(monitor, 2000, np.random.default_rng(3))
    assert monitor.detect_drift().drifted is False
    assert monitor.alerts() == []
    assert monitor.calculate_metrics("short")["level"] == "ok"


def test_a_failing_model_is_reported_once_grows_worse_and_recovers(monitor, caplog):
    rng = np.random.default_rng(4)
    feed(monitor, 1000, rng)
    feed(monitor, 1000, rng, strength=0.8, brightness=0.3)
    assert monitor.detect_drift().drifted is True
    assert monitor.detect_drift().input_drifted is True
    alerts = [alert for alert in monitor.alerts() if (alert.metric, alert.window) == ("accuracy", "short")]
    levels = [alert.level for alert in reversed(alerts)]
    assert levels[-1] == "immediate"
    assert alerts[0].status == "confirmed"
    assert len({(alert.level, alert.status) for alert in alerts}) == len(alerts)  # none twice
    assert [alert.cleared_at is None for alert in alerts] == [True] + [False] * (len(alerts) - 1)
    drift = next(alert for alert in monitor.alerts() if alert.metric == "confidence_distribution")
    assert (drift.level, drift.status) == ("warning", "estimate")
    assert drift.message.startswith("CONFIDENCE: lower in the last ")
    assert "immediate (confirmed): ACCURACY 97 -> " in caplog.text
    feed(monitor, 3000, rng)
    assert not [alert for alert in monitor.alerts() if alert.window == "short" and alert.cleared_at is None]


def hardest(probabilities, truth):
    return probabilities.max(axis=1) < 0.6


def one_class(probabilities, truth):
    return truth == 2


def easiest(probabilities, truth):
    return probabilities.max(axis=1) > 0.97


@pytest.mark.parametrize("chosen", [hardest, one_class, easiest])
def test_labels_of_a_choice_raise_no_alarm_about_a_model_that_has_not_changed(chosen):
    """The last class is the hardest: "dog" is right half of the time, the others nine times out of ten."""
    acted, shown = [], []
    with ModelMonitor(
        "m.db", uneven_baseline(), model_version="1", config=MonitorConfig(on_immediate=acted.append)
    ) as monitor:
        for rows, truth, ids in logged(monitor, 3000, np.random.default_rng(1)):
            which = np.flatnonzero(chosen(rows, truth))
            monitor.record_feedback_many({ids[i]: CLASSES[truth[i]] for i in which})
            monitor.check_alerts()
            shown.append(monitor.calculate_metrics("short"))
        alerts = [alert for alert in monitor.alerts() if alert.metric == "accuracy"]
    assert [alert for alert in alerts if alert.status == "confirmed"] == acted == []
    assert len(alerts) <= 1
    figures = shown[-1]
    told = figures["labels_used"]
    assert told["fair"] is False
    assert abs(told["unweighted_accuracy"] - 0.79) > 0.1
    assert figures["accuracy"] == pytest.approx(0.79, abs=0.06)
    assert figures["accuracy_interval"][0] < 0.79 < figures["accuracy_interval"][1]


@pytest.mark.parametrize(
    ("how", "acts"), [("chosen", False), ("drawn", True), ("told as an audit", True), ("trusted", True)]
)
def test_only_a_drawn_sample_acts_by_itself_unless_labels_are_trusted(how, acts):
    acted, names = [], {}
    thresholds = Thresholds(trust_labels=how == "trusted")
    with ModelMonitor(
        "m.db",
        uneven_baseline(),
        model_version="1",
        config=MonitorConfig(on_immediate=acted.append),
        thresholds=thresholds,
    ) as monitor:
        for _, truth, ids in logged(monitor, 1000, np.random.default_rng(2), spoilt=0.6):
            names |= dict(zip(ids, (CLASSES[k] for k in truth), strict=True))
        if how == "drawn":
            wanted = monitor.labels_wanted(300)
        else:
            wanted = np.random.default_rng(3).choice(list(names), 300, replace=False).tolist()
        source = "audit" if how == "told as an audit" else "annotators"
        monitor.record_feedback_many({name: names[name] for name in wanted}, source=source)
        monitor.check_alerts()
        alert = next(alert for alert in monitor.alerts() if alert.metric == "accuracy")
    assert (alert.level, alert.status) == ("immediate", "confirmed" if acts else "suspected")
    assert bool(acted) is acts


def test_a_drawn_sample_that_holds_labels_of_a_choice_is_a_fair_one():
    """What was labelled before it was drawn is part of the sample, else only easy ones would be left in it."""
    names = {}
    with ModelMonitor("m.db", uneven_baseline(), model_version="1") as monitor:
        for rows, truth, ids in logged(monitor, 1000, np.random.default_rng(4)):
            names |= dict(zip(ids, (CLASSES[k] for k in truth), strict=True))
            which = np.flatnonzero(hardest(rows, truth))
            monitor.record_feedback_many({ids[i]: names[ids[i]] for i in which}, source="ada")
        assert monitor.calculate_metrics("short")["labels_used"]["fair"] is False
        monitor.record_feedback_many({name: names[name] for name in monitor.labels_wanted(200)})
        told = monitor.calculate_metrics("short")["labels_used"]
    assert (told["kind"], told["fair"], told["may_confirm"]) == ("drawn", True, "immediate")
    assert told["n"] > 250  # the 200 that were asked for, and those between them that had a label


def test_near_duplicates_in_bursts_with_all_labels_are_no_news():
    rng = np.random.default_rng(5)
    with ModelMonitor("m.db", uneven_baseline(), model_version="1") as monitor:
        for _, truth, ids in logged(monitor, 8000, rng, burst=20):
            monitor.record_feedback_many(dict(zip(ids, (CLASSES[k] for k in truth), strict=True)))
            monitor.check_alerts()
        assert [alert for alert in monitor.alerts() if alert.metric == "accuracy"] == []
        figures = monitor.calculate_metrics("medium")
    assert figures["labels_used"]["effective_n"] < 800
    assert np.ptp(figures["accuracy_interval"]) > 0.04


def uneven(n, rng, spoilt=0.0):
    """Calibrated answers, of which those of the last class are hard; a share of the true classes is drawn anew."""
    truth = rng.integers(0, 3, n)
    confidence = np.clip(rng.beta(6, 0.6, n) * np.where(truth == 2, 0.6, 1.0), 0.34, 0.999)
    predicted = np.where(rng.random(n) < confidence, truth, (truth + rng.integers(1, 3, n)) % 3)
    probabilities = np.repeat((1 - confidence)[:, None] / 2, 3, axis=1)
    probabilities[np.arange(n), predicted] = confidence
    truth = np.where(rng.random(n) < spoilt, rng.integers(0, 3, n), truth)
    return probabilities, truth


def uneven_baseline():
    return Baseline(CLASSES, *uneven(5000, np.random.default_rng(0)))


def logged(monitor, n, rng, spoilt=0.0, burst=1):
    """Log a stream, a hundred at a time, and give the rows, their true classes and their ids."""
    probabilities, truth = uneven(n // burst, rng, spoilt)
    probabilities, truth = np.repeat(probabilities, burst, axis=0), np.repeat(truth, burst)
    probabilities = np.clip(probabilities + (burst > 1) * rng.normal(0, 0.003, probabilities.shape), 1e-3, None)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    for first in range(0, n, 100):
        rows = probabilities[first : first + 100]
        ids = [monitor.log_prediction(row) for row in rows]
        assert monitor.flush(30)
        yield rows, truth[first : first + 100], ids


def test_alerts_are_found_by_time_and_level(monitor):
    rng = np.random.default_rng(5)
    feed(monitor, 800, rng, strength=0.5)
    everything = monitor.alerts()
    assert [alert.id for alert in everything] == sorted((alert.id for alert in everything), reverse=True)
    worst = monitor.alerts(level="immediate")
    assert worst
    assert {alert.level for alert in worst} == {"immediate"}
    assert len(monitor.alerts(level="warning")) == len(everything) > len(worst)
    moment = datetime.fromtimestamp(everything[0].time, UTC)
    assert {alert.time for alert in monitor.alerts(since=moment)} == {everything[0].time}
    assert monitor.alerts(since=everything[0].time + 1) == []
    assert monitor.alerts(since="2020-01-01") == everything
    assert monitor.alerts(since=(moment + timedelta(seconds=1)).isoformat()) == []
    with pytest.raises(SettingsError, match=r"^since must be a time such as 2026-11-24T08:00Z, got last week$"):
        monitor.alerts(since="last week")
    with pytest.raises(SettingsError, match=r"^since must lie between the years 1970 and 3000, in seconds since 1970"):
        monitor.alerts(since=everything[0].time * 1000)
    with pytest.raises(SettingsError, match="no level 'bad'"):
        monitor.alerts(level="bad")


def test_labels_that_come_late_and_all_at_once_raise_the_alert(baseline):
    rng = np.random.default_rng(6)
    with ModelMonitor("m.db", baseline, model_version="1") as monitor:
        probabilities, truth = answers(1000, rng)
        ids = [monitor.log_prediction(row) for row in probabilities]
        monitor.flush(30)
        assert monitor.alerts() == []
        wrong = {name: CLASSES[(k + (rng.random() < 0.3)) % 3] for name, k in zip(ids, truth, strict=True)}
        monitor.record_feedback_many(wrong)
        assert {alert.metric for alert in monitor.alerts(level="critical")} == {"accuracy"}


def test_looking_again_without_news_raises_nothing(monitor, baseline):
    feed(monitor, 600, np.random.default_rng(7), strength=0.5)
    with ModelMonitor("m.db", baseline, model_version="1", config=MonitorConfig(clock=Clock(1.8e9))) as second:
        raised = len(second.alerts())
        assert second.check_alerts() == []  # what stands already is not written twice
        assert [second.check_alerts() for _ in range(5)] == [[]] * 5
        assert len(second.alerts()) == raised > 0


def test_drift_reports_change_nothing(monitor):
    feed(monitor, 300, np.random.default_rng(8), strength=0.5)
    monitor.flush(30)
    with sqlite3.connect("m.db") as connection:
        before = list(connection.iterdump())
    for _ in range(3):
        monitor.detect_drift(None)
        monitor.calculate_metrics()
        monitor.plot_metrics("accuracy")
    with sqlite3.connect("m.db") as connection:
        assert list(connection.iterdump()) == before


def test_names_that_do_not_exist_are_answered_with_those_that_do(monitor):
    with pytest.raises(SettingsError, match="no plot of 'acuracy'; there are accuracy, confidence"):
        monitor.plot_metrics("acuracy")
    for method in (monitor.calculate_metrics, monitor.detect_drift):
        with pytest.raises(SettingsError, match="no window 'week'; the windows are short, medium, long"):
            method("week")


def test_every_figure_is_drawn_from_the_store(monitor):
    feed(monitor, 500, np.random.default_rng(9), strength=0.5)
    for metric in ("accuracy", "confidence", "predictions", "drift"):
        monitor.plot_metrics(metric).savefig(f"{metric}.png", dpi=50)
        assert Path(f"{metric}.png").stat().st_size > 5000


# The command line


def test_the_command_line_says_what_the_monitor_says(monitor):
    feed(monitor, 500, np.random.default_rng(10), strength=0.5)
    monitor.close()
    report = run("report", "--store", "m.db", "--plot", "accuracy.png")
    assert (report.returncode, report.stderr) == (0, "")
    worst = next(alert for alert in monitor.active_alerts() if alert.level == "immediate")
    assert report.stdout.startswith(f"{worst.level.upper()} ({worst.status}): {worst.message}\n\n")
    assert "Model version 1, short window" in report.stdout
    assert "confidence_distribution  drift" in report.stdout
    assert Path("accuracy.png").read_bytes().startswith(b"\x89PNG")
    as_json = json.loads(run("report", "--window", "medium", "--json", MONITORING_STORE="m.db").stdout)
    assert as_json["metrics"] == monitor.calculate_metrics("medium")
    assert as_json["drift"] == monitor.detect_drift("medium").to_dict()
    alerts = json.loads(run("alerts", "--store", "m.db", "--json", "--level", "immediate").stdout)
    assert alerts == [alert.to_dict() for alert in monitor.alerts(level="immediate")]
    text = run("alerts", "--store", "m.db", "--since", "2023-11-14T00:00Z").stdout
    assert "IMMEDIATE (confirmed)  accuracy of version 1, short window" in text
    for line in (alerts[0]["message"], *(f"  {line}" for line in alerts[0]["details"].splitlines())):
        assert f"\n  {line}\n" in text
    assert run("alerts", "--store", "m.db", "--since", "2033-01-01").stdout == "No alerts.\n"


def test_what_is_ignored_raises_no_alert_and_reports_show_it_all_the_same(baseline, monkeypatch):
    monkeypatch.setenv("MONITORING_IGNORE", "prediction_distribution, confidence_distribution/medium")
    with ModelMonitor("m.db", baseline, model_version="1", config=MonitorConfig(clock=Clock())) as monitor:
        feed(monitor, 1000, np.random.default_rng(4), labelled=False, prior=[0.9, 0.05, 0.05])
        assert {result.metric for result in monitor.detect_drift().results if result.drifted} >= {
            "prediction_distribution"
        }
        assert "prediction_distribution" not in {alert.metric for alert in monitor.alerts()}


def test_a_mistyped_store_empties_no_file_and_is_told():
    Path("kept.csv").write_text("of another day")
    result = run("export", "kept.csv", "--store", "typo.db")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "monitoring.py: error: the store typo.db holds no predictions\n"
    assert Path("kept.csv").read_text() == "of another day"
    assert run("labels", "--store", "typo.db").stderr == "No predictions have been logged in typo.db yet.\n"


def test_labels_that_are_no_names_are_one_line(monitor):
    name = monitor.log_prediction([1, 0, 0])
    with pytest.raises(SettingsError, match=r"^a label must be the name of a class, got 0$"):
        monitor.record_feedback(name, 0)
    with pytest.raises(SettingsError, match=r"^labels must be a mapping of prediction ids to names of classes$"):
        monitor.record_feedback_many([(name, "cat")])


def test_an_alert_is_acknowledged_predictions_are_exported_and_labels_asked_for(monitor):
    feed(monitor, 400, np.random.default_rng(10), strength=0.5)
    unlabelled = monitor.log_predictions(
        np.eye(3)[[0, 1, 2, 0] * 25], sources=[f"{i}\n.jpg" for i in range(99)] + [None]
    )
    monitor.close()
    number = monitor.alerts()[0].id
    done = run("alerts", "--store", "m.db", "--acknowledge", str(number), "--by", "ada")
    assert done.stdout == f"alert {number} is acknowledged: no reminders unless it escalates\n"
    assert f"acknowledged by ada  [{number}]" in run("alerts", "--store", "m.db").stdout
    assert run("export", "p.csv", "--store", "m.db", "--probabilities").stdout == "500 predictions written to p.csv\n"
    rows = Path("p.csv").read_text().splitlines()
    assert len(rows) == 501
    assert rows[0].startswith('"id","time","source",')
    assert sum(r"\n.jpg" in row for row in rows) == 99
    assert run("export", "q.csv", "--store", "m.db", "--since", "2999-01-01").stdout.startswith("0 predictions")
    assert rows[0].endswith('"probability_bird","probability_cat","probability_dog"')
    lines = [line.split("  ") for line in run("labels", "--store", "m.db", "--count", "30").stdout.splitlines()]
    wanted = [words[0] for words in lines]
    assert wanted == monitor.labels_wanted(30)
    assert len(set(wanted) & set(unlabelled)) == 30
    names = monitor.sources(wanted)
    assert [words[1:] for words in lines] == [[names[one]] if one in names else [] for one in wanted]
    assert all(names[one] == rf"{unlabelled.index(one)}\n.jpg" for one in names)
    monitor.record_feedback_many(dict.fromkeys(monitor.labels_wanted(100), "cat"), source="audit")
    done = run("labels", "--store", "m.db")
    assert (done.stdout, done.stderr) == (
        "", "nothing is left to label: enough of the sample is labelled already\n"
    )  # fmt: skip


def test_a_recording_is_played_again_with_other_limits(monitor, baseline):
    feed(monitor, 600, np.random.default_rng(10), strength=0.8)
    monitor.export("p.parquet", probabilities=True)
    monitor.close()
    Path("baseline.npz").write_bytes(baseline.to_bytes())
    once, again = (json.loads(run("replay", *words, "--json").stdout) for words in (
        ("p.parquet", "--baseline", "baseline.npz"), ("m.db", "--immediate", "0.9", "--critical", "0.8")
    ))  # fmt: skip
    assert once["n"] == again["n"] == 600
    assert {event["metric"] for event in once["events"]} >= {"accuracy", "confidence_distribution"}
    assert "immediate" in {event["level"] for event in once["events"]}
    assert {event["level"] for event in again["events"]} == {"warning"}
    assert "600 predictions" in run("replay", "p.parquet", "--store", "m.db").stdout


def test_labels_are_not_wanted_twice_and_what_is_labelled_stays_a_fair_sample(monitor):
    ids = monitor.log_predictions(answers(500, np.random.default_rng(2))[0])
    order = monitor.labels_wanted(500)
    assert sorted(order) == ids
    enough = len(monitor.labels_wanted())
    monitor.record_feedback_many(dict.fromkeys(ids[:200], "cat"))  # that came by themselves, of the first ones
    monitor.record_feedback_many(dict.fromkeys(ids[200:250], "cat"), source="complaint")  # which count for nothing
    missing = [one for one in order if one not in set(ids[:200])]
    assert monitor.labels_wanted(40) == missing[:40]
    assert monitor.labels_wanted(1000) == missing
    assert monitor.labels_wanted() == [one for one in order[:enough] if one in set(missing)]
    monitor.record_feedback_many(dict.fromkeys(monitor.labels_wanted(), "dog"), source="audit")
    assert monitor.labels_wanted() == []
    assert monitor.labels_wanted(5) == [one for one in missing if one in set(order[enough:])][:5]


def test_an_alert_names_images_that_were_answered_wrongly(monitor):
    rng = np.random.default_rng(12)
    probabilities, truth = answers(600, rng, strength=0.3)
    ids = monitor.log_predictions(probabilities, sources=[f"{place}.jpg" for place in range(600)])
    monitor.record_feedback_many({name: CLASSES[k] for name, k in zip(ids, truth, strict=True)}, source="audit")
    monitor.flush(30)
    wrong = {f"{place}.jpg" for place in np.flatnonzero(probabilities.argmax(axis=1) != truth)}
    alerts = {alert.metric: alert for alert in monitor.alerts()}
    assert len(alerts["accuracy"].sources) == 5
    assert set(alerts["accuracy"].sources) <= wrong


def test_labels_are_wanted_as_many_as_settle_it(monitor):
    assert monitor.labels_wanted() == []
    for row in answers(300, np.random.default_rng(1))[0]:
        monitor.log_prediction(row)
    assert 50 < len(monitor.labels_wanted()) < 200
    assert len(monitor.labels_wanted(10_000)) == 300
    with pytest.raises(SettingsError, match="of the short or the medium window"):
        monitor.labels_wanted(10, "long")


def test_what_is_kept_of_old_predictions(baseline, monkeypatch):
    monkeypatch.setattr("toolkit.monitoring.store.rollups.MIN_ROWS", 1000)
    with ModelMonitor("m.db", baseline, config=MonitorConfig(keep_rows=1000)) as monitor:
        for _ in range(3):
            feed(monitor, 1000, np.random.default_rng(3), labelled=False)
        assert monitor.export("p.csv") < 3000
        assert monitor.calculate_metrics("long")["n"] == 3000
    assert ModelMonitor("m.db").calculate_metrics("long")["n"] == 3000


def test_the_command_line_on_an_empty_folder(tmp_path):
    assert run("report").stdout == "No predictions have been logged in sqlite:///monitoring.db yet.\n"
    assert run("alerts").stdout == "No alerts.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "say what to do: report, alerts, labels, export or replay; see --help"),
        (("export", "a.txt"), "an export must end in .parquet or .csv, got a.txt"),
        (("alerts", "--acknowledge", "7"), "no alert 7 is active in sqlite:///monitoring.db"),
        (("replay", "no.parquet", "--baseline", "no.npz"), "--baseline no.npz cannot be read: No such file"),
        (("replay", "no.parquet"), "no.parquet can only be replayed with a baseline that holds images"),
        (("replay", "no.csv", "--warning", "0.3"), "the levels must grow from warning over critical to immediate"),
        (("replay", "a.csv", "--ignore", "recall"), "ignore must be one of accuracy, confidence_distribution, "),
        (("labels", "--count", "0"), "--count must be at least 1, got 0"),
        (("report", "--window", "week"), "--window must be one of short, medium, long, got week"),
        (("alerts", "--since", "soon"), "--since must be a time such as 2026-11-24T08:00Z, got soon"),
        (("report", "--store", "no/m.db"), "the store cannot be at no/m.db: the folder no does not exist"),
        (("report", "--plot", "no/a.png"), "--plot no/a.png cannot be written: "),
        (("report", "--bogus"), "unknown argument --bogus"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, message):
    done = run(*words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"monitoring.py: error: {message}")
    assert done.stderr.count("\n") == 1


def test_a_damaged_store_on_the_command_line_is_one_line():
    Path("m.db").write_bytes(b"not a database" * 1000)
    for words in (("report",), ("alerts",)):
        done = run(*words, "--store", "m.db")
        assert done.returncode == 2
        assert done.stderr == "monitoring.py: error: the store m.db cannot be opened: file is not a database\n"
