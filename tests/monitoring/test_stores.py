"""Monitors of one store: empty, shared, restarted, damaged."""

import logging
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from monitoring import ModelMonitor, MonitorConfig, MonitorSettings, Plot
from support import MAX_WAIT_S
from support.monitored_streams import Clock, feed, make_baseline
from toolkit.errors import PredictionStoreError, SettingsError


def test_an_empty_store_gives_empty_answers(tmp_path):
    with ModelMonitor() as monitor:
        assert monitor.model_version is None
        assert [metrics["n"] for metrics in monitor.calculate_metrics().values()] == [0, 0, 0]
        assert monitor.detect_drift(None).drifted is None
        assert monitor.alerts() == monitor.check_alerts() == []
        for metric in ("accuracy", "confidence", "predictions"):
            assert "No predictions" in monitor.plot_metrics(metric).texts[0].get_text()
        monitor.plot_metrics("drift")
        with pytest.raises(SettingsError, match=r"^there is no window 'tiny'; the windows are short, medium, long$"):
            monitor.calculate_metrics("tiny")
    assert list(tmp_path.iterdir()) == []


def test_plots_of_a_version_without_predictions_say_so(monitor, baseline):
    monitor.log_prediction([1, 0, 0])
    monitor.serve("2", baseline)
    monitor.flush(MAX_WAIT_S)
    for metric in {*get_args(Plot)} - {"drift"}:
        assert monitor.plot_metrics(metric).texts[0].get_text() == "No predictions have been logged yet."


def test_the_store_comes_from_the_environment_when_not_given(monkeypatch, baseline):
    monkeypatch.setenv("MONITORING_STORE", "elsewhere.db")
    assert MonitorSettings().store == "elsewhere.db"
    with ModelMonitor(baseline=baseline) as monitor:
        monitor.log_prediction([1, 0, 0])
    assert Path("elsewhere.db").exists()
    assert monitor.model_version == "unversioned"


def test_processes_share_a_store_and_nothing_is_lost():
    program = (
        "import sys\n"
        "from monitoring import ModelMonitor\n"
        "with ModelMonitor('m.db', classes=['cat', 'dog'], model_version='1') as monitor:\n"
        "    for _ in range(8):\n"
        "        ids = [monitor.log_prediction([0.25, 0.75]) for _ in range(50)]\n"
        "        monitor.record_feedback_many(dict.fromkeys(ids, 'dog'))\n"
        "print(monitor.writer_stats()['lost'])\n"
    )
    workers = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(3)]
    assert [worker.communicate(timeout=MAX_WAIT_S)[0] for worker in workers] == [b"0\n"] * 3
    with ModelMonitor("m.db") as monitor:
        metrics = monitor.calculate_metrics("long")
    assert (metrics["n"], metrics["n_labels"], metrics["accuracy"]) == (1200, 1200, 1.0)


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
        monitor.flush(MAX_WAIT_S)
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
    monitor.flush(MAX_WAIT_S)
    with ModelMonitor("m.db", model_version="3") as beside:
        assert beside.calculate_metrics("long")["n"] == 1
    with pytest.raises(PredictionStoreError, match=r"no model version 4 in the store m.db; there are 1, 2, 3"):
        ModelMonitor("m.db", model_version="4").calculate_metrics()


def test_a_baseline_of_other_classes_is_refused(baseline):
    with pytest.raises(SettingsError, match="other classes"):
        ModelMonitor("m.db", baseline, classes=["cat", "bird", "dog"])
    with pytest.raises(SettingsError, match="class names that differ"):
        ModelMonitor("m.db", classes=["cat", "cat"])


def test_logging_survives_a_read_only_store(monitor, baseline, caplog, monkeypatch):
    monkeypatch.setattr("toolkit.monitoring.store.background_writer.CLOSE_TIMEOUT_S", 0.2)
    monitor.log_prediction([1, 0, 0])
    monitor.flush(MAX_WAIT_S)
    with caplog.at_level(logging.ERROR), ModelMonitor("sqlite:///file:m.db?mode=ro&uri=true", baseline) as reader:
        for _ in range(3):
            reader.log_prediction([1, 0, 0])
        reader.serve("2", baseline)
        assert not reader.flush(MAX_WAIT_S)  # kept, to be tried again
        stats = reader.writer_stats()
        assert (stats["written"], stats["queued"], stats["lost"]) == (0, 3, 0)
        assert stats["write_errors"] >= 1
    assert reader.writer_stats()["lost"] == 3
    failed, lost = caplog.messages
    assert "attempt to write a readonly database" in failed
    assert lost == "the store did not take 3 predictions before the end: they are lost"


def test_reading_a_damaged_store_is_one_sentence(monitor):
    monitor.log_prediction([1, 0, 0])
    monitor.flush(MAX_WAIT_S)
    with sqlite3.connect("m.db") as connection:
        connection.execute("DROP TABLE labels")
    with pytest.raises(PredictionStoreError, match=r"the store m.db cannot be read: no such table: labels"):
        monitor.calculate_metrics()


def test_unknown_names_are_answered_with_known_ones(monitor):
    with pytest.raises(SettingsError, match="no plot of 'acuracy'; there are accuracy, confidence"):
        monitor.plot_metrics("acuracy")
    for method in (monitor.calculate_metrics, monitor.detect_drift):
        with pytest.raises(SettingsError, match="no window 'week'; the windows are short, medium, long"):
            method("week")


def test_every_plot_is_drawn_from_the_store(monitor):
    feed(monitor, 500, np.random.default_rng(9), strength=0.5)
    for metric in ("accuracy", "confidence", "predictions", "drift"):
        monitor.plot_metrics(metric).savefig(f"{metric}.png", dpi=50)
        assert Path(f"{metric}.png").stat().st_size > 5000


def test_what_is_kept_of_old_predictions(baseline, monkeypatch):
    monkeypatch.setattr("toolkit.monitoring.store.rollups.MIN_ROWS", 1000)
    with ModelMonitor("m.db", baseline, config=MonitorConfig(keep_rows=1000)) as monitor:
        for _ in range(3):
            feed(monitor, 1000, np.random.default_rng(3), labelled=False)
        assert monitor.export("p.csv") < 3000
        assert monitor.calculate_metrics("long")["n"] == 3000
    assert ModelMonitor("m.db").calculate_metrics("long")["n"] == 3000
