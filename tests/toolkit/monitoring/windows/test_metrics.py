"""Metrics of windows, against scikit-learn, numpy and by hand."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from support.prediction_fixtures import baseline_of, window_of
from toolkit.bundle.baseline import Baseline
from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.stats.performance_estimation import PerformanceEstimator
from toolkit.monitoring.windows import metrics as module
from toolkit.monitoring.windows.reference import ReferenceBins

CLASSES = ("cat", "dog", "frog")


def measure(window, baseline=None):
    bins = ReferenceBins(window.classes or CLASSES, baseline)
    return module.window_metrics(bins.count(window), bins, Thresholds())


def window_with(predicted, labels, confidence=None):
    n = len(predicted)
    sure = np.full(n, 0.75) if confidence is None else confidence
    columns = np.array(predicted, np.int64), np.array(sure, np.float32), np.array(labels, np.int64)
    return Predictions(CLASSES, np.arange(n, dtype=float), *columns)


def reference_of(right, n):
    truth = np.arange(n) % 2
    predicted = np.where(np.arange(n) < right, truth, 1 - truth)
    return Baseline(CLASSES, np.eye(3)[predicted], truth)


@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(-1, 2)), min_size=1, max_size=80))
@settings(max_examples=60, deadline=None)
def test_metrics_of_labelled_predictions_are_scikit_learns(pairs):
    metrics = measure(window_with(*zip(*pairs, strict=True)))
    checked = [(p, t) for p, t in pairs if p >= 0 and t >= 0]
    assert (metrics.n, metrics.n_labels) == (len(pairs), len(checked))
    assert metrics.non_finite == sum(p < 0 for p, _ in pairs)
    if not checked:
        assert metrics.accuracy is None
        return
    predicted, truth = zip(*checked, strict=True)
    expected = precision_recall_fscore_support(truth, predicted, average="weighted", zero_division=0)[:3]
    assert metrics.accuracy == pytest.approx(accuracy_score(truth, predicted))
    assert (metrics.precision_weighted, metrics.recall_weighted, metrics.f1_weighted) == pytest.approx(expected)


def test_unknown_metrics_are_none_and_all_are_json():
    for window in (Predictions.empty(), window_with([-1], [0], [np.nan]), window_with([0], [-1])):
        metrics = measure(window)
        json.dumps(metrics.to_dict(), allow_nan=False)
        assert metrics.accuracy is metrics.level is None
        assert metrics.status == "insufficient_data"


@pytest.mark.parametrize(
    ("right", "n", "burst", "level", "status"),
    [
        (900, 1000, 1, "ok", "none"),
        (830, 1000, 1, "warning", "suspected"),  # a drop of 7.8 %, of which 4.6 % is certain
        (780, 1000, 1, "critical", "suspected"),
        (750, 1000, 1, "critical", "confirmed"),
        (750, 1000, 10, "critical", "suspected"),
        (600, 1000, 1, "immediate", "confirmed"),
        (38, 50, 1, "critical", "suspected"),
        (20, 49, 1, None, "insufficient_data"),
        (600, 1000, 40, None, "insufficient_data"),
    ],
)
def test_a_drop_is_confirmed_by_its_lower_bound(right, n, burst, level, status):
    labels = np.where(np.arange(n) < right, 0, 1)
    confidence = np.repeat(np.random.default_rng(0).uniform(0.4, 1, n // burst), burst)  # as many images of each
    metrics = measure(window_with(np.zeros(n, int), labels, np.float16(confidence)), reference_of(1800, 2000))
    assert (metrics.level, metrics.status) == (level, status)
    assert metrics.degradation == pytest.approx(1 - right / n / 0.9)
    assert metrics.degradation_lower_bound < metrics.degradation


@pytest.mark.parametrize(("n", "baseline"), [(0, reference_of(90, 100)), (60, None), (60, reference_of(0, 100))])
def test_degradation_without_labels_or_reference_is_unknown(n, baseline):
    metrics = measure(window_with(np.zeros(60, int), np.where(np.arange(60) < n, 0, -1)), baseline)
    assert metrics.degradation is metrics.degradation_lower_bound is metrics.level is None
    assert metrics.status == "insufficient_data"


QUALITY = {"accuracy", "precision_weighted", "recall_weighted", "f1_weighted", "calibration_error"}
DROP = {"reference_accuracy", "reference_n", "degradation", "degradation_lower_bound", "level", "status"}
LABELS_USED = {"kind", "fair", "n", "n_drawn", "effective_n", "unweighted_accuracy", "may_confirm", "note"}
NAMES = QUALITY | {f"{name}_interval" for name in QUALITY} | DROP | {
    "model_version", "window", "n", "since", "until", "n_labels", "evidence", "mean_confidence", "confidence_std",
    "class_shares", "non_finite", "latency_ms", "predictions_per_second",
}  # fmt: skip


def test_metrics_are_numpys():
    rng = np.random.default_rng(1)
    window, baseline = window_of(2000, rng, labelled=0.5, broken=0.1), baseline_of(800, rng)
    metrics = measure(window, baseline)
    finite = window.confidence[window.finite].astype(float)
    assert metrics.mean_confidence == pytest.approx(finite.mean())
    assert metrics.confidence_std == pytest.approx(finite.std(ddof=1))
    assert list(metrics.class_shares.values()) == pytest.approx(window.counts / len(finite))
    given = np.sort(window.latency[np.isfinite(window.latency)])
    assert asdict(metrics.latency_ms) == pytest.approx(
        {"median": given[len(given) // 2], "p95": given[int(0.95 * len(given))]}, rel=0.04
    )
    assert (metrics.since, metrics.until) == (window.time.min(), window.time.max())
    assert metrics.predictions_per_second == pytest.approx(1999 / (window.time.max() - window.time.min()))
    estimate = PerformanceEstimator(baseline).estimate(window.probabilities)
    assert metrics.estimate.accuracy == pytest.approx(estimate.accuracy)
    assert metrics.reference_accuracy == pytest.approx(baseline.accuracy)
    written = metrics.to_dict()
    assert written.keys() == NAMES | {"labels_used", "estimate"}
    assert written["estimate"].keys() == DROP | {"accuracy", "accuracy_interval", "method", "n", "note"}
    assert written["labels_used"].keys() == LABELS_USED
    assert json.loads(json.dumps(written, allow_nan=False)) == written
