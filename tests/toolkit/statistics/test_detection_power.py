"""The detection power of a baseline is that of the detector."""

import math

import numpy as np
import pytest

from toolkit.bundle.baseline import Baseline
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.stats.detector_set import DetectorSet
from toolkit.monitoring.stats.e_detectors import ErrorDetector
from toolkit.statistics.detection_power import REPORTED_DROPS, RUN_LENGTH, describe_detectable_drops, labels_to_detect


def test_constants_are_those_of_the_detector():
    thresholds = Thresholds()
    detectors = DetectorSet(Baseline(("a", "b"), np.eye(2), [0, 1]), thresholds.max_false_alarms_per_million)
    assert detectors._errors.run_length == RUN_LENGTH
    assert (thresholds.warning, thresholds.critical, thresholds.immediate) == REPORTED_DROPS


@pytest.mark.parametrize(("accuracy", "n", "drop"), [(0.84, 10_000, 0.2), (0.84, 10_000, 0.1), (0.9, 500, 0.2)])
def test_the_alarm_fires_after_about_labels_to_detect(accuracy, n, drop):
    found = []
    for seed in range(15):
        rng = np.random.default_rng(seed)
        detector = ErrorDetector(round(accuracy * n), n, RUN_LENGTH)
        detector.update(rng.random(500) < accuracy)
        alarms = detector.update(rng.random(4000) < accuracy * (1 - drop))
        found.append(alarms[0].index + 1 if alarms else math.inf)
    assert np.median(found) == pytest.approx(labels_to_detect(accuracy, n, drop), rel=0.35)


@pytest.mark.parametrize(("n", "drop"), [(100, 0.1), (500, 0.05)])
def test_undetectable_drops_are_not_detected(n, drop):
    assert labels_to_detect(0.84, n, drop) == math.inf
    for seed in range(3):
        rng = np.random.default_rng(seed)
        detector = ErrorDetector(round(0.84 * n), n, RUN_LENGTH)
        assert detector.update(rng.random(8000) < 0.84 * (1 - drop)) == []


def test_more_images_need_fewer_labels():
    for drop in REPORTED_DROPS:
        labels = [labels_to_detect(0.84, n, drop) for n in (50, 200, 1000, 5000, 50_000)]
        assert labels == sorted(labels, reverse=True)
    assert describe_detectable_drops(0.84, 500).endswith(
        "20 % after about 240 labels; smaller ones need more held-out images"
    )
    assert "cannot notice a drop of accuracy of 20 % or less" in describe_detectable_drops(0.84, 50)
    assert describe_detectable_drops(0.0, 10).startswith("with 10 held-out images")
    assert describe_detectable_drops(1.0, 10_000).startswith(
        "by 10,000 held-out images the alarm finds a drop of accuracy of 5 %"
    )
    assert "no held-out" in describe_detectable_drops(float("nan"), 0)
