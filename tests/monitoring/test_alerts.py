"""Drift reports and alerts of a stream."""

import sqlite3
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from monitoring import ModelMonitor, MonitorConfig
from support import MAX_WAIT_S
from support.monitored_streams import CLASSES, Clock, answers, feed
from toolkit.errors import SettingsError


def test_a_stream_without_drift_raises_nothing(monitor):
    feed(monitor, 2000, np.random.default_rng(3))
    assert monitor.detect_drift().drifted is False
    assert monitor.alerts() == []
    assert monitor.calculate_metrics("short")["level"] == "ok"


def test_alerts_of_a_failing_model_escalate_and_clear(monitor, caplog):
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


def test_evaluating_again_raises_nothing(monitor, baseline):
    feed(monitor, 600, np.random.default_rng(7), strength=0.5)
    with ModelMonitor("m.db", baseline, model_version="1", config=MonitorConfig(clock=Clock(1.8e9))) as second:
        raised = len(second.alerts())
        assert second.check_alerts() == []  # what stands already is not written twice
        assert [second.check_alerts() for _ in range(5)] == [[]] * 5
        assert len(second.alerts()) == raised > 0


def test_ignored_metrics_raise_no_alert_and_are_reported(baseline, monkeypatch):
    monkeypatch.setenv("MONITORING_IGNORE", "prediction_distribution, confidence_distribution/medium")
    with ModelMonitor("m.db", baseline, model_version="1", config=MonitorConfig(clock=Clock())) as monitor:
        feed(monitor, 1000, np.random.default_rng(4), labelled=False, prior=[0.9, 0.05, 0.05])
        assert "prediction_distribution" in {each.metric for each in monitor.detect_drift().results if each.drifted}
        assert "prediction_distribution" not in {alert.metric for alert in monitor.alerts()}


def test_an_alert_names_wrongly_classified_images(monitor):
    rng = np.random.default_rng(12)
    probabilities, truth = answers(600, rng, strength=0.3)
    ids = monitor.log_predictions(probabilities, sources=[f"{place}.jpg" for place in range(600)])
    monitor.record_feedback_many({name: CLASSES[k] for name, k in zip(ids, truth, strict=True)}, source="audit")
    monitor.flush(MAX_WAIT_S)
    wrong = {f"{place}.jpg" for place in np.flatnonzero(probabilities.argmax(axis=1) != truth)}
    alerts = {alert.metric: alert for alert in monitor.alerts()}
    assert len(alerts["accuracy"].sources) == 5
    assert set(alerts["accuracy"].sources) <= wrong


def test_drift_reports_change_nothing(monitor):
    feed(monitor, 300, np.random.default_rng(8), strength=0.5)
    monitor.flush(MAX_WAIT_S)
    with sqlite3.connect("m.db") as connection:
        before = list(connection.iterdump())
    for _ in range(3):
        monitor.detect_drift(None)
        monitor.calculate_metrics()
        monitor.plot_metrics("accuracy")
    with sqlite3.connect("m.db") as connection:
        assert list(connection.iterdump()) == before
