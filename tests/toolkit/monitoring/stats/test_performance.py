"""Metrics of labelled predictions: against scikit-learn, by hand, and intervals against simulated truth."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from toolkit.monitoring.stats.performance import calibration, classification_metrics
from toolkit.statistics.calibration import calibration_bins
from toolkit.statistics.intervals import wilson

matrices = st.integers(1, 4).flatmap(
    lambda k: st.lists(st.lists(st.integers(0, 9), min_size=k, max_size=k), min_size=k, max_size=k)
)
WEIGHTED = ("precision_weighted", "recall_weighted", "f1_weighted")
UNEVEN = np.array([[0.36, 0.03, 0.01, 0.0], [0.04, 0.24, 0.02, 0.0], [0.02, 0.02, 0.16, 0.02], [0.0, 0.01, 0.02, 0.05]])


def cases(matrix):
    """True and predicted classes, one for each label in the matrix."""
    pairs = np.argwhere(np.ones_like(matrix))
    return np.repeat(pairs, np.asarray(matrix).ravel(), axis=0).T


@given(matrices)
@settings(max_examples=60, deadline=None)
def test_metrics_are_scikit_learns_and_lie_in_their_intervals(matrix):
    metrics = classification_metrics(np.array(matrix))
    json.dumps(metrics, allow_nan=False)
    truth, predicted = cases(matrix)
    assert metrics["n_labels"] == len(truth)
    if not len(truth):
        assert {metrics[name] for name in metrics if name != "n_labels"} == {None}
        return
    expected = precision_recall_fscore_support(truth, predicted, average="weighted", zero_division=0)[:3]
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert [metrics[name] for name in WEIGHTED] == pytest.approx(expected)
    for name in ("accuracy", *WEIGHTED):
        low, high = metrics[f"{name}_interval"]
        assert 0 <= low <= metrics[name] + 1e-9
        assert metrics[name] - 1e-9 <= high <= 1


def test_the_variances_are_those_of_simulated_labels():
    rng = np.random.default_rng(0)
    draws = [classification_metrics(m.reshape(4, 4)) for m in rng.multinomial(4000, UNEVEN.ravel(), 600)]
    for name in ("accuracy", *WEIGHTED):
        deviation = np.std([metrics[name] for metrics in draws])
        half = np.mean([np.diff(metrics[f"{name}_interval"])[0] / 2 for metrics in draws])
        assert half / 1.96 == pytest.approx(deviation, rel=0.12)  # four standard errors of 600 draws


@pytest.mark.parametrize(("n", "sharpness"), [(100, 1.0), (300, 1.0), (300, 6.0)])
def test_intervals_cover_the_truth(n, sharpness):
    chances = UNEVEN + np.diag(np.diag(UNEVEN)) * (sharpness - 1)
    chances /= chances.sum()
    true, predicted, hit = chances.sum(axis=1), chances.sum(axis=0), np.diagonal(chances)
    truth = {
        "accuracy": hit.sum(),
        "precision_weighted": true @ (hit / predicted),
        "f1_weighted": true @ (2 * hit / (true + predicted)),
    }
    rng = np.random.default_rng(n)
    draws = [classification_metrics(matrix.reshape(4, 4)) for matrix in rng.multinomial(n, chances.ravel(), 800)]
    for name, value in truth.items():
        held = np.mean([low <= value <= high for low, high in (metrics[f"{name}_interval"] for metrics in draws)])
        assert held > 0.93, name


def test_intervals_without_errors_are_wilsons():
    metrics = classification_metrics(np.diag([30, 20, 50]))
    for name in ("accuracy", *WEIGHTED):
        assert metrics[f"{name}_interval"] == pytest.approx(list(wilson(100, 100)), abs=1e-6)


def test_bursts_widen_intervals_only():
    matrix = np.array([[40, 10], [5, 45]])
    plain, burst = classification_metrics(matrix), classification_metrics(matrix, effective_n=25)
    assert burst["accuracy_interval"] == pytest.approx(list(wilson(21.25, 25)))
    for name in ("accuracy", *WEIGHTED):
        assert burst[name] == plain[name]
        assert burst[f"{name}_interval"][0] < plain[f"{name}_interval"][0]
    assert classification_metrics(matrix, effective_n=1000) == plain  # never more certain than the labels there are


def answers(n, rng, overconfidence=0.0):
    """(n, 2) probabilities and labels; the larger one is right as often as it says, less the overconfidence."""
    confidence = 0.5 + 0.5 * rng.beta(3, 1, n)
    right = rng.random(n) < confidence - overconfidence
    return np.stack([confidence, 1 - confidence], axis=1), np.where(right, 0, 1)


def test_the_calibration_error_is_that_of_scikit_learns_curve():
    probabilities, labels = answers(2000, np.random.default_rng(2))
    bins = calibration_bins(probabilities, labels)
    filled = bins.count > 0
    right, confident = calibration_curve(labels == 0, probabilities[:, 0], n_bins=15)
    assert bins.accuracy[filled] == pytest.approx(right)
    assert bins.confidence[filled] == pytest.approx(confident)
    expected = np.abs(right - confident) @ bins.count[filled] / 2000
    assert calibration(bins)["calibration_error"] == pytest.approx(expected)


@pytest.mark.parametrize("overconfidence", [0.0, 0.02, 0.15])
def test_the_calibration_error_is_in_its_interval(overconfidence):
    rng = np.random.default_rng(3)
    intervals = [
        calibration(calibration_bins(*answers(500, rng, overconfidence)))["calibration_error_interval"]
        for _ in range(300)
    ]
    held = np.mean([low <= overconfidence <= high for low, high in intervals])
    assert held > 0.93  # less one and a half standard errors
    assert max(high - low for low, high in intervals) < 0.15


def test_calibration_without_labels_is_unknown():
    metrics = calibration(calibration_bins(np.zeros((0, 2)), np.zeros(0, int)))
    assert metrics == {"calibration_error": None, "calibration_error_interval": None}
