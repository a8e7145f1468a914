"""The detectors of a model version: one budget, an alarm for each metric."""

import numpy as np

from support.prediction_fixtures import baseline_of, window_of
from toolkit.bundle.baseline import Baseline
from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.stats.detector_set import DETECTED_METRICS, DetectorSet

BASELINE = baseline_of(2000, np.random.default_rng(0))


def rows(n, seed, **more):
    return window_of(n, np.random.default_rng(seed), **more)


def outcomes(right):
    """Predicted and true classes of which these are right."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, len(right))
    return np.where(right, labels, (labels + rng.integers(1, 3, len(right))) % 3), labels


def test_each_metric_has_a_detector_if_there_is_a_reference():
    calm = DetectorSet(BASELINE, 1.0)
    assert calm.update(rows(200, 1)) == []
    assert calm.update_labels(*outcomes(np.tile([True, True, True, True, False], 40))) == []
    assert set(calm.evidence) == set(DETECTED_METRICS)
    assert all(0 <= evidence < 1 for evidence in calm.evidence.values())
    for baseline in (None, Baseline(("a", "b"), np.zeros((0, 2)), np.zeros(0, int))):
        nothing = DetectorSet(baseline, 1.0)
        assert nothing.update(rows(50, 1)) == nothing.update_labels(*outcomes(np.zeros(50))) == []
        assert nothing.evidence == dict.fromkeys(DETECTED_METRICS)


def test_alarms_name_their_metric():
    alarms = DetectorSet(BASELINE, 1.0).update_labels(*outcomes(np.zeros(60)))
    assert {found.metric for found in alarms} == {"accuracy"}
    unsure = np.full((80, 3), [0.34, 0.33, 0.33], np.float16)
    window = Predictions(BASELINE.classes, np.zeros(80), np.arange(80) % 3, unsure.max(axis=1).astype(np.float32),
                    np.full(80, -1), sequence=np.arange(80))  # fmt: skip
    assert {found.metric for found in DetectorSet(BASELINE, 1.0).update(window)} == {"confidence_distribution"}


def test_alarms_do_not_depend_on_batches():
    window = rows(600, 2)
    spoilt = Predictions(window.classes, window.time, np.zeros(600, int), window.confidence, window.labels,
                    sequence=window.sequence)  # fmt: skip
    together, apart = DetectorSet(BASELINE, 100.0), DetectorSet(BASELINE, 100.0)
    whole = [(found.metric, found.alarm.change, found.alarm.length) for found in together.update(spoilt)]
    parts = [
        (found.metric, found.alarm.change, found.alarm.length)
        for first in range(0, 600, 7)
        for found in apart.update(spoilt.slice(first, first + 7))
    ]
    assert sorted(whole) == sorted(parts) != []
    assert together.evidence == apart.evidence


def test_a_smaller_budget_takes_more_evidence():
    wrong = outcomes(np.zeros(200))
    strict, lax = (len(DetectorSet(BASELINE, budget).update_labels(*wrong)) for budget in (0.01, 1000.0))
    assert 0 < strict < lax


def test_labels_of_a_drawn_sample_have_a_detector_of_their_own():
    rng = np.random.default_rng(3)
    right = np.ones(3000, bool)
    drawn = np.arange(3000) % 20 == 0
    right[drawn] = rng.random(drawn.sum()) < 0.3
    assert DetectorSet(BASELINE, 1.0).update_labels(*outcomes(right)) == []
    found = DetectorSet(BASELINE, 1.0).update_labels(*outcomes(right), drawn)
    assert {(one.metric, one.alarm.change) for one in found} == {("accuracy", "worse")}


def test_a_label_drawn_later_counts_in_the_drawn_sample_only():
    once, again = DetectorSet(BASELINE, 1.0), DetectorSet(BASELINE, 1.0)
    wrong = outcomes(np.zeros(5))
    for detectors in (once, again):
        detectors.update_labels(*wrong)
    before = once.evidence["accuracy"]
    again.update_labels(*wrong, np.ones(5, bool), first=np.zeros(5, bool))
    assert again._errors.evidence == once._errors.evidence == before
    assert again._sampled.evidence == before


def test_a_burst_of_one_image_counts_as_one_label():
    assert DetectorSet(BASELINE, 1.0).update_labels(np.full(60, 1), np.full(60, 2)) == []
    assert DetectorSet(BASELINE, 1.0).update_labels(*outcomes(np.zeros(60))) != []
