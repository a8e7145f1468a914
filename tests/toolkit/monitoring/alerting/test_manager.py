"""Alerts of a real store: raised with evidence alone, sent once, cleared, and never by two processes at once."""

import numpy as np
import pytest

from toolkit.bundle.baseline import Baseline
from toolkit.monitoring.alerting.state import REPEAT_INTERVAL_S
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.pipeline.worker import MonitorConfig, MonitoringWorker
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.predictions import LoggedPrediction, PredictionStore

CLASSES = ("cat", "dog")


def answers(n, rng, right=0.9, sure=0.9):
    """Two classes in turn with confidences around ``sure``; the truth."""
    confidence = np.clip(rng.normal(sure, 0.03, n), 0.5, 1)
    called = np.arange(n) % 2
    probabilities = np.where(called[:, None] == [0, 1], confidence[:, None], 1 - confidence[:, None])
    return probabilities.astype(np.float16), np.where(rng.random(n) < right, called, 1 - called)


class Process:
    """A process that watches a store of which others may know."""

    def __init__(self, path, model):
        self.now, self.sent, self.reacted = 1.7e9, [], []
        self.store, self.model = PredictionStore(str(path)), model
        self.worker = MonitoringWorker(self.store, Thresholds(), self, MonitorConfig(clock=lambda: self.now))

    def send(self, notification, react=True):
        self.sent.append(notification)
        if react:
            self.reacted.append(notification)

    def evaluate(self):
        self.now += 1
        return self.worker.evaluate_now(self.model)

    def events(self, key="1/accuracy/short"):
        return [(sent.event, sent.level, sent.status) for sent in self.sent if sent.key == key]


@pytest.fixture
def model():
    return ModelVersion("1", CLASSES, Baseline(CLASSES, *answers(3000, np.random.default_rng(0))), served_at=1.0)


@pytest.fixture
def process(tmp_path, model):
    process = Process(tmp_path / "m.db", model)
    yield process
    process.store.close()


class Traffic:
    """Predictions, with their labels close behind."""

    def __init__(self, process, model, seed=1):
        self.process, self.model, self.rng, self.next = process, model, np.random.default_rng(seed), 1

    def __call__(self, intervals, evaluate=True, **more):
        for _ in range(intervals):
            probabilities, truth = answers(100, self.rng, **more)
            store, first = self.process.store, self.next
            store.write([LoggedPrediction(first + i, 1.7e9, self.model, row) for i, row in enumerate(probabilities)])
            store.labels.insert({first + i: CLASSES[k] for i, k in enumerate(truth.tolist())}, "audit", 1.7e9)
            self.next += 100
            if evaluate:
                self.process.evaluate()


@pytest.fixture
def traffic(process, model):
    return Traffic(process, model)


def test_a_calm_stream_is_left_in_peace(process, traffic):
    traffic(30)
    assert process.sent == []
    assert process.store.alerts.find() == []


def test_a_failing_model_is_raised_escalated_and_cleared(process, traffic):
    traffic(10)
    traffic(10, right=0.5)
    events = process.events()
    assert events[0][0] == "raised"
    assert process.events("1/accuracy/medium") == []  # it would say the same
    assert {event for event, *_ in events[1:]} <= {"escalated"}
    assert events[-1][1:] == ("immediate", "confirmed")
    short = [alert for alert in process.store.alerts.find() if (alert.metric, alert.window) == ("accuracy", "short")]
    assert short[0].message.startswith("ACCURACY ")
    assert short[0].message.endswith(". Next: python model_registry.py rollback")
    assert short[0].details.startswith("Window: the last 1,000 predictions, ")
    assert {notification.details for notification in process.sent} >= {short[0].details}
    assert [alert.cleared_at is None for alert in short] == [True] + [False] * (len(short) - 1)
    traffic(25)
    assert ("cleared", "immediate", "confirmed") in process.events()
    assert not [alert for alert in process.store.alerts.find(active=True) if alert.window == "short"]


def test_a_long_reason_goes_below_the_line(process, model):
    process.store.versions.register(model)
    reason = "Version 3 cannot be served: " + 40 * "a long reason, "
    process.worker.alerts.report(model, "model_loading", "warning", reason)
    (notification,) = process.sent
    assert len(notification.message) == 200
    assert notification.details == reason
    assert process.store.alerts.find()[0].details == reason


def test_a_bad_window_without_an_alarm_is_no_alert(process, traffic, model):
    traffic(1, right=0.85)  # 100 labels: looks bad, and is not certain enough for one in a million
    assert process.worker.stream(model).counts("short").n_correct < 90
    assert process.worker.stream(model).evidence["accuracy"] < 1
    assert process.sent == []


def test_an_alert_already_cleared_is_sent_without_reaction(process, traffic):
    traffic(10, evaluate=False)
    traffic(10, evaluate=False, right=0.4)
    traffic(25, evaluate=False)
    process.evaluate()
    assert [event for event, *_ in process.events()][-1] == "cleared"
    assert "immediate" in {level for _, level, _ in process.events()}
    assert [notification for notification in process.reacted if notification.key == "1/accuracy/short"] == []


def test_reminders_stop_when_acknowledged(process, traffic):
    traffic(12, right=0.5)
    raised = len(process.sent)
    process.now += REPEAT_INTERVAL_S
    process.evaluate()
    reminders = [notification for notification in process.sent[raised:] if notification.event == "reminder"]
    assert {notification.metric for notification in reminders} >= {"accuracy"}
    for alert in process.store.alerts.find(active=True):
        assert process.store.alerts.update(alert.id, acknowledged_at=process.now, acknowledged_by="ada")
    sent = len(process.sent)
    process.now += REPEAT_INTERVAL_S
    process.evaluate()
    assert process.sent[sent:] == []


def test_of_two_processes_one_notifies(tmp_path, process, traffic, model):
    other = Process(tmp_path / "m.db", model)
    for right in (0.9, 0.9, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5):
        traffic(1, evaluate=False, right=right)
        process.evaluate()
        other.evaluate()
    sent = [(each.key, each.event, each.level, each.status) for each in process.sent + other.sent]
    assert sent
    assert len(sent) == len(set(sent))
    other.store.close()


def test_after_a_restart_active_alerts_are_not_repeated_and_clear(tmp_path, process, traffic, model):
    traffic(12, right=0.5)
    active = process.store.alerts.find(active=True)
    again = Process(tmp_path / "m.db", model)
    assert [again.evaluate() for _ in range(3)] == [[]] * 3
    assert again.sent == []
    assert again.store.alerts.find(active=True) == active
    more = Traffic(again, model, seed=9)
    more.next = traffic.next
    more(25)
    assert ("cleared", "immediate", "confirmed") in again.events()
    again.store.close()
