"""The fan-out: every notifier gets every notification, none can harm another, and the worst is reacted to once."""

import json
import logging
import threading
from dataclasses import replace

import numpy as np
import pytest

from support import MAX_WAIT_S
from toolkit.monitoring.alerting.notifiers import LogNotifier, Notification, Notifier, Notifiers

NOTIFICATION = Notification(
    7, "raised", "critical", "confirmed", "3", "accuracy", "short", 0.12, "Accuracy fell.", 60.0, 60.0, "retrain"
)
WORST = replace(NOTIFICATION, level="immediate")


class Kept(Notifier):
    def __init__(self):
        self.notifications = []

    def send(self, notification):
        self.notifications.append(notification)


class Broken(Notifier):
    def __init__(self, message="no such channel"):
        self.message = message

    def send(self, notification):
        if self.message:
            raise ValueError(self.message)

    def close(self):
        raise OSError("already gone")


def test_a_notification_as_json_has_all_that_a_receiver_needs():
    assert json.loads(json.dumps(NOTIFICATION.to_dict(), allow_nan=False)) == {
        "id": 7, "key": "3/accuracy/short", "event": "raised", "level": "critical", "status": "confirmed",
        "model_version": "3", "metric": "accuracy", "window": "short", "value": 0.12, "message": "Accuracy fell.",
        "since": 60.0, "time": 60.0, "what_to_do": "retrain", "details": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "shown"), [(None, None), (float("nan"), None), (np.inf, None), (np.float32(0.5), 0.5)]
)
def test_a_value_that_json_cannot_hold_is_null(value, shown):
    assert json.loads(json.dumps(replace(NOTIFICATION, value=value).to_dict(), allow_nan=False))["value"] == shown


def test_the_log_says_what_happened(caplog):
    with caplog.at_level(logging.INFO):
        for event in ("raised", "escalated", "reminder", "cleared"):
            LogNotifier().send(replace(NOTIFICATION, event=event))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "critical (confirmed): Accuracy fell."),
        ("WARNING", "critical (confirmed): Accuracy fell."),
        ("WARNING", "still critical (confirmed): Accuracy fell."),
        ("INFO", "cleared: accuracy in the short window of model version 3 is back to normal"),
    ]


def test_a_failing_notifier_is_counted_and_harms_no_other(caplog):
    broken, kept = Broken(), Kept()
    notifiers = Notifiers({"chat": broken, "kept": kept})
    for _ in range(3):
        notifiers.send(NOTIFICATION)
    broken.message = ""
    notifiers.send(NOTIFICATION)
    notifiers.close()
    assert kept.notifications == [NOTIFICATION] * 4
    assert notifiers.stats() == {
        "chat": {"sent": 1, "failed": 3, "dropped": 0},
        "kept": {"sent": 4, "failed": 0, "dropped": 0},
    }
    assert [record.getMessage() for record in caplog.records] == [
        "alerts cannot be handed to chat: no such channel",
        "alerts are handed to chat again",
        "chat cannot be closed: already gone",
    ]


def test_a_notifier_may_count_by_itself():
    class Slow(Broken):
        def stats(self):
            return {"sent": 1, "failed": 2, "dropped": 3, "waiting": 4}

    notifiers = Notifiers({"slow": Slow()})
    notifiers.send(NOTIFICATION)
    assert notifiers.stats() == {"slow": {"sent": 1, "failed": 3, "dropped": 3, "waiting": 4}}


def reactions(*notifications):
    """The notifications that were reacted to."""
    seen = []
    notifiers = Notifiers({}, seen.append)
    for notification in notifications:
        notifiers.send(notification)
    notifiers.close()
    return sorted(seen, key=notifications.index)


def test_only_immediate_and_confirmed_alerts_are_reacted_to():
    assert reactions(NOTIFICATION, replace(WORST, status="suspected"), replace(WORST, event="reminder")) == []
    assert reactions(replace(WORST, event="cleared")) == []


def test_it_is_reacted_to_once_until_it_clears():
    escalated, cleared = replace(WORST, event="escalated"), replace(WORST, event="cleared")
    assert reactions(WORST, escalated, replace(WORST, event="reminder"), WORST) == [WORST]
    assert reactions(NOTIFICATION, escalated) == [escalated]
    back = replace(WORST, id=8)
    assert reactions(WORST, cleared, back) == [WORST, back]


def test_each_version_metric_and_window_is_an_alert_of_its_own():
    others = [replace(WORST, model_version="4"), replace(WORST, metric="non_finite"), replace(WORST, window="medium")]
    assert reactions(WORST, *others) == [WORST, *others]


def test_a_reaction_that_fails_is_logged_and_not_repeated(caplog):
    def fail(notification):
        raise RuntimeError("the registry is away")

    notifiers = Notifiers({}, fail)
    notifiers.send(WORST)
    notifiers.send(WORST)
    notifiers.close()
    assert [record.getMessage() for record in caplog.records] == ["the reaction to the alert 3/accuracy/short failed"]
    assert "the registry is away" in caplog.text


def test_a_slow_reaction_delays_no_notification():
    go_on, kept = threading.Event(), Kept()
    notifiers = Notifiers({"kept": kept}, lambda notification: go_on.wait(MAX_WAIT_S) and kept.send(notification))
    for sent in (WORST, replace(WORST, event="cleared")):
        notifiers.send(sent)
    assert [one.event for one in kept.notifications] == ["raised", "cleared"]
    go_on.set()
    notifiers.close()
    assert kept.notifications[2:] == [WORST]
