"""Alerts of a real store: raised with evidence alone, told once, cleared, and never by two processes at once."""

import numpy as np
import pytest

from toolkit.bundle.baseline import Baseline
from toolkit.monitoring.alerting.manager import AlertManager
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.pipeline.stream_state import StreamState
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.predictions import LoggedPrediction, PredictionStore

CLASSES = ("cat", "dog")
THRESHOLDS = Thresholds()


def answers(n, rng, right=0.9, sure=0.9):
    """Two classes in turn with confidences around ``sure``; the truth."""
    confidence = np.clip(rng.normal(sure, 0.03, n), 0.5, 1)
    called = np.arange(n) % 2
    probabilities = np.where(called[:, None] == [0, 1], confidence[:, None], 1 - confidence[:, None])
    return probabilities.astype(np.float16), np.where(rng.random(n) < right, called, 1 - called)


def make_model():
    probabilities, truth = answers(3000, np.random.default_rng(0))
    return ModelVersion("1", CLASSES, Baseline(CLASSES, probabilities, truth), served_at=1.0)


class Watching:
    """A process that watches a store of which others may know."""

    def __init__(self, path, model):
        self.now = 1.7e9
        self.told = []
        self.reacted = []
        self.store = PredictionStore(str(path))
        self.view = StreamState(self.store, model, THRESHOLDS)
        self.lookout = AlertManager(self.store, lambda: self.now, self.send, repeat_interval=3600)
        self.view.refresh()

    def send(self, notification, react=True):
        self.told.append(notification)
        if react:
            self.reacted.append(notification)

    def look(self):
        self.now += 1
        return self.lookout.evaluate(self.view.refresh())

    def events(self, key="1/accuracy/short"):
        return [
            (notification.event, notification.level, notification.status)
            for notification in self.told
            if notification.key == key
        ]


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def watching(tmp_path, model):
    watching = Watching(tmp_path / "m.db", model)
    yield watching
    watching.store.close()


class Traffic:
    """Predictions, with their labels close behind."""

    def __init__(self, watching, model, seed=1):
        self.watching, self.model, self.rng, self.next = watching, model, np.random.default_rng(seed), 1

    def __call__(self, blocks, look=True, **more):
        for _ in range(blocks):
            probabilities, truth = answers(100, self.rng, **more)
            store = self.watching.store
            store.write(
                [LoggedPrediction(self.next + i, 1.7e9, self.model, row) for i, row in enumerate(probabilities)]
            )
            store.labels.insert({self.next + i: CLASSES[k] for i, k in enumerate(truth.tolist())}, "audit", 1.7e9)
            self.next += 100
            if look:
                self.watching.look()


@pytest.fixture
def traffic(watching, model):
    return Traffic(watching, model)


def test_a_calm_stream_is_left_in_peace(watching, traffic):
    traffic(30)
    assert watching.told == []
    assert watching.store.alerts.find() == []


def test_a_failing_model_is_told_when_the_alarm_fires_then_as_it_grows_worse_and_when_it_is_over(watching, traffic):
    traffic(10)
    traffic(10, right=0.5)
    events = watching.events()
    assert events[0][0] == "raised"
    assert watching.events("1/accuracy/medium") == []  # it would say the same
    assert {event for event, *_ in events[1:]} <= {"escalated"}
    assert events[-1][1:] == ("immediate", "confirmed")
    short = [alert for alert in watching.store.alerts.find() if (alert.metric, alert.window) == ("accuracy", "short")]
    assert short[0].message.startswith("ACCURACY ")
    assert short[0].message.endswith(". Next: python model_registry.py rollback")
    assert short[0].details.startswith("Window: the last 1,000 predictions, ")
    assert {notification.details for notification in watching.told} >= {short[0].details}
    assert [alert.cleared_at is None for alert in short] == [True] + [False] * (len(short) - 1)
    traffic(25)
    assert ("cleared", "immediate", "confirmed") in watching.events()
    assert not [alert for alert in watching.store.alerts.find(active=True) if alert.window == "short"]


def test_a_long_reason_goes_below_the_line(watching, model):
    watching.store.versions.register(model)
    reason = "Version 3 cannot be served: " + 40 * "a long reason, "
    watching.lookout.report(model, "model_loading", "warning", reason)
    (notification,) = watching.told
    assert len(notification.message) == 200
    assert notification.details == reason
    assert watching.store.alerts.find()[0].details == reason


def test_a_bad_window_without_an_alarm_is_no_alert(watching, traffic):
    traffic(1, right=0.85)  # 100 labels: looks bad, and is not certain enough for one in a million
    assert watching.view.counts("short").n_correct < 90
    assert watching.view.evidence["accuracy"] < 1
    assert watching.told == []


def test_what_came_and_went_unseen_is_told_and_not_acted_upon(watching, traffic):
    traffic(10, look=False)
    traffic(10, look=False, right=0.4)
    traffic(25, look=False)
    watching.look()
    assert [event for event, *_ in watching.events()][-1] == "cleared"
    assert "immediate" in {level for _, level, _ in watching.events()}
    assert [notification for notification in watching.reacted if notification.key == "1/accuracy/short"] == []


def test_it_is_told_again_after_a_while_unless_somebody_said_that_they_know(watching, traffic):
    traffic(12, right=0.5)
    raised = len(watching.told)
    watching.now += 3601
    watching.look()
    reminders = [notification for notification in watching.told[raised:] if notification.event == "reminder"]
    assert {notification.metric for notification in reminders} >= {"accuracy"}
    for alert in watching.store.alerts.find(active=True):
        assert watching.store.alerts.update(alert.id, acknowledged_at=watching.now, acknowledged_by="ada")
    told = len(watching.told)
    watching.now += 3601
    watching.look()
    assert watching.told[told:] == []


def test_of_two_processes_one_tells(tmp_path, watching, traffic, model):
    other = Watching(tmp_path / "m.db", model)
    for right in (0.9, 0.9, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5):
        traffic(1, look=False, right=right)
        watching.look()
        other.look()
    told = [
        (notification.key, notification.event, notification.level, notification.status)
        for notification in watching.told + other.told
    ]
    assert told
    assert len(told) == len(set(told))
    other.store.close()


def test_after_a_restart_what_stands_is_not_told_again_and_clears_in_the_end(tmp_path, watching, traffic, model):
    traffic(12, right=0.5)
    standing = watching.store.alerts.find(active=True)
    again = Watching(tmp_path / "m.db", model)
    assert [again.look() for _ in range(3)] == [[]] * 3
    assert again.told == []
    assert again.store.alerts.find(active=True) == standing
    more = Traffic(again, model, seed=9)
    more.next = traffic.next
    more(25)
    assert ("cleared", "immediate", "confirmed") in again.events()
    again.store.close()
