"""Alerts in the store: one that stands is written once, and what becomes of it is noted."""

from dataclasses import replace

from toolkit.monitoring.store.alerts import Alert
from toolkit.monitoring.store.model_versions import ModelVersion

MODEL = ModelVersion("1", ("cat", "dog"))
ALERT = Alert(time=1.0, metric="accuracy", window="short", level="warning", status="confirmed", value=0.1, message="m")


def test_an_active_alert_is_not_inserted_twice_but_a_worse_one_is(store):
    store.versions.register(MODEL)
    assert store.alerts.insert(MODEL, ALERT)
    assert not store.alerts.insert(MODEL, replace(ALERT, time=2.0))
    assert store.alerts.insert(MODEL, replace(ALERT, window="medium", time=3.0))
    assert store.alerts.insert(MODEL, replace(ALERT, level="critical", time=4.0))
    assert [(a.level, a.cleared_at) for a in store.alerts.find(MODEL)] == [
        ("critical", None),
        ("warning", None),
        ("warning", 4.0),
    ]
    assert [a.id for a in store.alerts.find(since=3.0, active=True)] == [3, 2]
    store.alerts.update(3, cleared_at=5.0)
    assert store.alerts.insert(MODEL, replace(ALERT, level="critical", time=6.0))


def test_an_alert_is_a_line_with_details_below(store):
    store.versions.register(MODEL)
    store.alerts.insert(MODEL, replace(ALERT, message="two\nlines", details="first\nsecond"))
    store.alerts.insert(MODEL, replace(ALERT, window="medium", time=2.0, message="a line"))
    assert [(alert.message, alert.details) for alert in store.alerts.find()] == [
        ("a line", ""),
        ("two lines", "first\nsecond"),
    ]


def test_what_becomes_of_an_alert_is_noted_while_it_stands(store):
    store.versions.register(MODEL)
    store.alerts.insert(MODEL, replace(ALERT, notified_at=1.5))
    assert store.alerts.update(1, acknowledged_at=2.0, acknowledged_by="Ann")
    (alert,) = store.alerts.find(active=True)
    assert (alert.notified_at, alert.acknowledged_at, alert.acknowledged_by) == (1.5, 2.0, "Ann")
    store.alerts.update(1, cleared_at=3.0)
    assert not store.alerts.update(1, notified_at=4.0)
    store.alerts.update(1, cleared_at=5.0)
    assert store.alerts.find()[0].cleared_at == 3.0


def test_of_several_that_remind_or_clear_one_has_done_it(store):
    store.versions.register(MODEL)
    store.alerts.insert(MODEL, ALERT)
    assert store.alerts.claim_reminder(1, None, 2.0)
    assert not store.alerts.claim_reminder(1, None, 2.0)
    assert store.alerts.claim_reminder(1, 2.0, 3.0)
    assert [store.alerts.update(1, cleared_at=4.0) for _ in range(2)] == [True, False]
    assert not store.alerts.claim_reminder(1, 3.0, 5.0)


def test_the_alerts_of_other_versions_are_cleared(store):
    other = ModelVersion("2", ("cat", "dog"))
    for model in (MODEL, other):
        store.versions.register(model)
        store.alerts.insert(model, ALERT)
    assert store.alerts.clear_others(other, 2.0) == 1
    assert [alert.model_version for alert in store.alerts.find(active=True)] == ["2"]


def test_an_alert_as_json_has_all_that_is_in_the_store(store):
    store.versions.register(MODEL)
    store.alerts.insert(MODEL, replace(ALERT, notified_at=1.5, sources=("1.jpg", "2.jpg")))
    (alert,) = store.alerts.find()
    stored = {"id": 1, "notified_at": 1.5, "sources": ["1.jpg", "2.jpg"], "model_version": "1"}
    assert alert.to_dict() == vars(ALERT) | stored
    assert alert.to_dict().keys() == {
        "id", "time", "metric", "window", "level", "status", "value", "message", "details", "cleared_at", "notified_at",
        "acknowledged_at", "acknowledged_by", "sources", "model_version",
    }  # fmt: skip
