"""Label bias: whether labels are a fair sample, the accuracy of the window, and the level they may confirm."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.bundle.baseline import Baseline
from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.base.thresholds import LEVELS, Thresholds
from toolkit.monitoring.windows.drift import run_tests
from toolkit.monitoring.windows.label_bias import effective_labels, label_bias
from toolkit.monitoring.windows.metrics import window_metrics
from toolkit.monitoring.windows.reference import ReferenceBins

K = 5
CLASSES = tuple("abcde")
THRESHOLDS = Thresholds()


def answers(n, rng, lost=0.0):
    """Calibrated answers, class "d" the hardest, right about four times out of five; a share of them spoilt."""
    truth = rng.integers(0, K, n)
    confidence = np.clip(rng.beta(5, 0.8, n) * np.where(truth == 3, 0.6, 1.0), 0.25, 0.999)
    right = rng.random(n) < confidence * (1 - lost)
    predicted = np.where(right, truth, (truth + rng.integers(1, K, n)) % K)
    probabilities = np.repeat(((1 - confidence) / (K - 1))[:, None], K, 1)
    probabilities[np.arange(n), predicted] = confidence
    return probabilities.astype(np.float16), truth


BINS = ReferenceBins(CLASSES, Baseline(CLASSES, *answers(5000, np.random.default_rng(0))))


def window_of(probabilities, truth, labelled, drawn=None):
    n = len(truth)
    confidence = probabilities.max(axis=1).astype(np.float32)
    return Predictions(CLASSES, np.zeros(n), probabilities.argmax(axis=1), confidence, np.where(labelled, truth, -1),
                  probabilities=probabilities, drawn=np.zeros(n, bool) if drawn is None else drawn)  # fmt: skip


def sampled(labelled, seed=1, lost=0.0, n=1000, drawn="none", thresholds=THRESHOLDS):
    """The bias of labels chosen in one of these ways."""
    rng = np.random.default_rng(seed)
    probabilities, truth = answers(n, rng, lost)
    confidence = probabilities.max(axis=1)
    mask, lots = (LABELLED[choice](confidence, truth, rng) for choice in (labelled, drawn))
    counts = BINS.count(window_of(probabilities, truth, mask | lots, lots))
    accuracy = float((probabilities.argmax(axis=1) == truth).mean())
    return label_bias(counts, BINS.reference, thresholds), window_metrics(counts, BINS, thresholds), counts, accuracy


# Choices of the predictions to label.
LABELLED = {
    "hard": lambda confidence, truth, rng: confidence < 0.6,
    "hardest class": lambda confidence, truth, rng: truth == 3,
    "easy": lambda confidence, truth, rng: (confidence > 0.95) & (rng.random(len(truth)) < 0.3),
    "a third": lambda confidence, truth, rng: rng.random(len(truth)) < 0.3,
    "a twentieth": lambda confidence, truth, rng: rng.random(len(truth)) < 0.05,
    "nearly all": lambda confidence, truth, rng: confidence < 0.97,
    "all": lambda confidence, truth, rng: np.ones(len(truth), bool),
    "none": lambda confidence, truth, rng: np.zeros(len(truth), bool),
}
CHOICES = pytest.mark.parametrize("chosen", ["hard", "hardest class", "easy"])


@CHOICES
@pytest.mark.parametrize("seed", range(5))
def test_biased_labels_are_detected_and_weighted(chosen, seed):
    sample, metrics, _, accuracy = sampled(chosen, seed=10 + seed)
    assert (sample.kind, sample.fair, sample.may_confirm) == ("chosen", False, "ok")
    assert abs(sample.unweighted_accuracy - accuracy) > 0.12  # without weights
    assert sample.accuracy == metrics.accuracy == pytest.approx(accuracy, abs=0.05)
    assert sample.interval.low < accuracy < sample.interval.high
    assert sample.interval.high - sample.interval.low > 0.3  # of most predictions nothing is known
    assert metrics.status in ("none", "suspected", "insufficient_data")
    assert "no fair sample" in metrics.labels_used.note


@CHOICES
def test_biased_labels_raise_a_suspicion_at_most(chosen):
    for lost in (0.3, 0.6, 0.9):
        _, metrics, counts, _ = sampled(chosen, lost=lost)
        assert metrics.status != "confirmed"
        result = next(one for one in run_tests(counts, BINS, THRESHOLDS, "short") if one.metric == "accuracy")
        assert result.drifted is not True  # nor does the drift report
    assert sampled("hard", lost=0.9)[1].status == "suspected"  # nearly all of them wrong is more than the choice


def test_a_fair_sample_is_seldom_taken_for_biased():
    found = [sampled("a third", seed=seed) for seed in range(200)]
    unfair = sum(sample.fair is False for sample, *_ in found)
    assert unfair <= 2  # one in a thousand
    sample, metrics, *_ = next(each for each in found if each[0].fair)
    assert metrics.accuracy == sample.unweighted_accuracy == sample.accuracy
    held = sum(sample.interval.low <= 0.785 <= sample.interval.high for sample, *_ in found)
    assert held >= 0.9 * len(found)


def test_drawn_or_trusted_labels_confirm_the_worst_level():
    levels = {"chosen": sampled("a third", lost=0.6)[1], "drawn": sampled("none", lost=0.6, drawn="a third")[1],
              "all": sampled("all", lost=0.6)[1],
              "trusted": sampled("a third", lost=0.6, thresholds=Thresholds(trust_labels=True))[1],
              "trusted hard ones": sampled("hard", lost=0.6, thresholds=Thresholds(trust_labels=True))[1]}  # fmt: skip
    assert {name: (metrics.level, metrics.status) for name, metrics in levels.items()} == {
        "chosen": ("immediate", "suspected"),
        "drawn": ("immediate", "confirmed"),
        "all": ("immediate", "confirmed"),
        "trusted": ("immediate", "confirmed"),
        "trusted hard ones": ("immediate", "confirmed"),
    }
    assert "confirm no more than critical" in levels["chosen"].labels_used.note


def test_a_drawn_sample_with_only_hard_labels_is_biased():
    sample, metrics, *_ = sampled("none", drawn="hard")
    assert (sample.kind, sample.fair, sample.may_confirm) == ("drawn", False, "ok")
    assert metrics.status != "confirmed"


def test_a_drawn_sample_counts_alone():
    sample, metrics, counts, accuracy = sampled("easy", lost=0.5, n=4000, drawn="a twentieth")
    assert counts.n_labels > 2 * sample.n
    assert (sample.kind, sample.fair) == ("drawn", True)
    assert sample.interval.low < accuracy < sample.interval.high
    assert (metrics.level, metrics.status) == ("immediate", "confirmed")


def test_a_drop_beyond_all_unlabelled_is_confirmed():
    sample, metrics, *_ = sampled("nearly all", lost=0.9)
    assert (sample.fair, sample.may_confirm) == (False, "immediate")
    assert (metrics.level, metrics.status) == ("immediate", "confirmed")


def test_effective_labels_give_the_variance_of_accuracy():
    for rate in (1.0, 0.3, 0.05):
        accuracies, effective = [], []
        for seed in range(150):
            rng = np.random.default_rng(seed)
            probabilities, truth = (np.repeat(part, 10, axis=0) for part in answers(100, rng))
            counts = BINS.count(window_of(probabilities, truth, rng.random(1000) < rate))
            accuracies.append(counts.n_correct / counts.n_labels)
            effective.append(effective_labels(counts))
        p = np.mean(accuracies)
        independent = p * (1 - p) / np.var(accuracies)
        assert 0.3 * independent < np.mean(effective) < 1.15 * independent


def test_bursts_widen_the_intervals_of_a_window():
    rng = np.random.default_rng(3)
    probabilities, truth = (np.repeat(part, 20, axis=0) for part in answers(500, rng, 0.3))
    in_bursts, mixed = (
        window_metrics(BINS.count(window_of(probabilities[order], truth[order], True)), BINS, THRESHOLDS)
        for order in (np.arange(10_000), rng.permutation(10_000))
    )
    assert in_bursts.accuracy == mixed.accuracy
    for name in ("accuracy", "f1_weighted", "precision_weighted", "calibration_error"):
        wide, narrow = (np.ptp(getattr(each, f"{name}_interval")) for each in (in_bursts, mixed))
        assert wide > 3 * narrow
    assert in_bursts.degradation_lower_bound < mixed.degradation_lower_bound - 0.05


@given(st.integers(0, 2**32), st.integers(1, 400), st.floats(0, 1), st.floats(0, 1), st.sampled_from([1, 7]))
@settings(max_examples=60, deadline=None)
def test_label_bias_of_any_labels_is_consistent(seed, n, share, lean, burst):
    rng = np.random.default_rng(seed)
    probabilities, truth = (np.repeat(part, burst, axis=0) for part in answers(n, rng, rng.random()))
    mask = rng.random(n * burst) < share * np.where(probabilities.max(axis=1) < 0.7, 1, lean)
    counts = BINS.count(window_of(probabilities, truth, mask, mask & (rng.random(n * burst) < 0.5)))
    sample = label_bias(counts, BINS.reference, THRESHOLDS)
    if sample is None:
        assert not mask.any()
        return
    assert 0 <= sample.interval.low <= sample.accuracy <= sample.interval.high <= 1
    assert 0 < sample.effective_n <= sample.n <= counts.n_labels
    assert sample.accuracy - 1e-9 <= sample.best_case <= 1 + 1e-9
    assert sample.may_confirm in LEVELS
    assert (sample.fair is False) == ("no fair sample" in sample.note)
    metrics = window_metrics(counts, BINS, THRESHOLDS)
    if metrics.status == "confirmed":
        assert THRESHOLDS.severity(metrics.level) <= THRESHOLDS.severity(sample.may_confirm)
