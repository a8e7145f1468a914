"""Labels: recorded, drawn at random, chosen, late or in bursts."""

import numpy as np
import pytest

from monitoring import ModelMonitor, MonitorConfig, Thresholds, new_prediction_id
from support import MAX_WAIT_S
from support.monitored_streams import CLASSES, answers
from toolkit.bundle.baseline import Baseline
from toolkit.errors import SettingsError, UnknownPrediction


def test_feedback_is_idempotent_and_the_last_label_counts(monitor):
    name = monitor.log_prediction([0, 1, 0])
    assert monitor.record_feedback(name, "dog", source="user") is True  # still in the queue
    assert monitor.record_feedback(name, "dog") is False
    assert monitor.calculate_metrics("short")["accuracy"] == 0
    assert monitor.record_feedback(name, "cat", source="audit") is True
    metrics = monitor.calculate_metrics("short")
    assert (metrics["n_labels"], metrics["accuracy"]) == (1, 1)


def test_feedback_that_fits_nothing_is_refused(monitor):
    name = monitor.log_prediction([0, 1, 0])
    with pytest.raises(SettingsError, match="no class 'caat'; the classes are cat, bird, dog"):
        monitor.record_feedback(name, "caat")
    for unknown in (new_prediction_id(), "nonsense", ""):
        with pytest.raises(UnknownPrediction, match="there is no prediction"):
            monitor.record_feedback(unknown, "cat")
    assert monitor.record_feedback_many({}) == 0


def test_labels_that_are_no_names_are_one_line(monitor):
    name = monitor.log_prediction([1, 0, 0])
    with pytest.raises(SettingsError, match=r"^a label must be the name of a class, got 0$"):
        monitor.record_feedback(name, 0)
    with pytest.raises(SettingsError, match=r"^labels must be a mapping of prediction ids to names of classes$"):
        monitor.record_feedback_many([(name, "cat")])


CHOICES = {
    "hardest": lambda probabilities, truth: probabilities.max(axis=1) < 0.6,
    "one class": lambda probabilities, truth: truth == 2,
    "easiest": lambda probabilities, truth: probabilities.max(axis=1) > 0.97,
}


@pytest.mark.parametrize("chosen", CHOICES)
def test_biased_labels_raise_no_false_alarm(chosen):
    """The last class is the hardest: "dog" is right half of the time, the others nine times out of ten."""
    acted, shown = [], []
    with uneven_monitor(config=MonitorConfig(on_immediate=acted.append)) as monitor:
        for rows, truth, ids in logged(monitor, 3000, np.random.default_rng(1)):
            which = np.flatnonzero(CHOICES[chosen](rows, truth))
            monitor.record_feedback_many({ids[i]: CLASSES[truth[i]] for i in which})
            monitor.check_alerts()
            shown.append(monitor.calculate_metrics("short"))
        alerts = [alert for alert in monitor.alerts() if alert.metric == "accuracy"]
    assert [alert for alert in alerts if alert.status == "confirmed"] == acted == []
    assert len(alerts) <= 1
    metrics = shown[-1]
    assert metrics["labels_used"]["fair"] is False
    assert abs(metrics["labels_used"]["unweighted_accuracy"] - 0.79) > 0.1
    assert metrics["accuracy"] == pytest.approx(0.79, abs=0.06)
    assert metrics["accuracy_interval"][0] < 0.79 < metrics["accuracy_interval"][1]


@pytest.mark.parametrize(
    ("how", "acts"), [("chosen", False), ("drawn", True), ("named an audit", True), ("trusted", True)]
)
def test_only_a_drawn_sample_acts_unless_labels_are_trusted(how, acts):
    acted, names = [], {}
    thresholds = Thresholds(trust_labels=how == "trusted")
    with uneven_monitor(config=MonitorConfig(on_immediate=acted.append), thresholds=thresholds) as monitor:
        for _, truth, ids in logged(monitor, 1000, np.random.default_rng(2), spoilt=0.6):
            names |= dict(zip(ids, (CLASSES[k] for k in truth), strict=True))
        if how == "drawn":
            wanted = monitor.labels_wanted(300)
        else:
            wanted = np.random.default_rng(3).choice(list(names), 300, replace=False).tolist()
        source = "audit" if how == "named an audit" else "annotators"
        monitor.record_feedback_many({name: names[name] for name in wanted}, source=source)
        monitor.check_alerts()
        alert = next(alert for alert in monitor.alerts() if alert.metric == "accuracy")
    assert (alert.level, alert.status) == ("immediate", "confirmed" if acts else "suspected")
    assert bool(acted) is acts


def test_a_drawn_sample_with_earlier_labels_is_fair():
    """Predictions labelled before they were drawn are part of the sample, else only easy ones would be left in it."""
    names = {}
    with uneven_monitor() as monitor:
        for rows, truth, ids in logged(monitor, 1000, np.random.default_rng(4)):
            names |= dict(zip(ids, (CLASSES[k] for k in truth), strict=True))
            which = np.flatnonzero(CHOICES["hardest"](rows, truth))
            monitor.record_feedback_many({ids[i]: names[ids[i]] for i in which}, source="ada")
        assert monitor.calculate_metrics("short")["labels_used"]["fair"] is False
        monitor.record_feedback_many({name: names[name] for name in monitor.labels_wanted(200)})
        used = monitor.calculate_metrics("short")["labels_used"]
    assert (used["kind"], used["fair"], used["may_confirm"]) == ("drawn", True, "immediate")
    assert used["n"] > 250  # the 200 that were asked for, and those between them that had a label


def test_bursts_of_near_duplicates_raise_no_alert():
    rng = np.random.default_rng(5)
    with uneven_monitor() as monitor:
        for _, truth, ids in logged(monitor, 8000, rng, burst=20):
            monitor.record_feedback_many(dict(zip(ids, (CLASSES[k] for k in truth), strict=True)))
            monitor.check_alerts()
        assert [alert for alert in monitor.alerts() if alert.metric == "accuracy"] == []
        metrics = monitor.calculate_metrics("medium")
    assert metrics["labels_used"]["effective_n"] < 800
    assert np.ptp(metrics["accuracy_interval"]) > 0.04


def uneven(n, rng, spoilt=0.0):
    """Calibrated answers, of which those of the last class are hard; a share of the true classes is drawn anew."""
    truth = rng.integers(0, 3, n)
    confidence = np.clip(rng.beta(6, 0.6, n) * np.where(truth == 2, 0.6, 1.0), 0.34, 0.999)
    predicted = np.where(rng.random(n) < confidence, truth, (truth + rng.integers(1, 3, n)) % 3)
    probabilities = np.repeat((1 - confidence)[:, None] / 2, 3, axis=1)
    probabilities[np.arange(n), predicted] = confidence
    truth = np.where(rng.random(n) < spoilt, rng.integers(0, 3, n), truth)
    return probabilities, truth


def uneven_monitor(**more):
    baseline = Baseline(CLASSES, *uneven(5000, np.random.default_rng(0)))
    return ModelMonitor("m.db", baseline, model_version="1", **more)


def logged(monitor, n, rng, spoilt=0.0, burst=1):
    """Log a stream, a hundred at a time, and give the rows, their true classes and their ids."""
    probabilities, truth = uneven(n // burst, rng, spoilt)
    probabilities, truth = np.repeat(probabilities, burst, axis=0), np.repeat(truth, burst)
    probabilities = np.clip(probabilities + (burst > 1) * rng.normal(0, 0.003, probabilities.shape), 1e-3, None)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    for first in range(0, n, 100):
        rows = probabilities[first : first + 100]
        ids = monitor.log_predictions(rows)
        assert monitor.flush(MAX_WAIT_S)
        yield rows, truth[first : first + 100], ids


def test_late_labels_raise_the_alert(baseline):
    rng = np.random.default_rng(6)
    with ModelMonitor("m.db", baseline, model_version="1") as monitor:
        probabilities, truth = answers(1000, rng)
        ids = [monitor.log_prediction(row) for row in probabilities]
        monitor.flush(MAX_WAIT_S)
        assert monitor.alerts() == []
        wrong = {name: CLASSES[(k + (rng.random() < 0.3)) % 3] for name, k in zip(ids, truth, strict=True)}
        monitor.record_feedback_many(wrong)
        assert {alert.metric for alert in monitor.alerts(level="critical")} == {"accuracy"}


def test_labels_are_not_wanted_twice(monitor):
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


def test_labels_are_wanted_as_many_as_settle_it(monitor):
    assert monitor.labels_wanted() == []
    for row in answers(300, np.random.default_rng(1))[0]:
        monitor.log_prediction(row)
    assert 50 < len(monitor.labels_wanted()) < 200
    assert len(monitor.labels_wanted(10_000)) == 300
    with pytest.raises(SettingsError, match="of the short or the medium window"):
        monitor.labels_wanted(10, "long")
