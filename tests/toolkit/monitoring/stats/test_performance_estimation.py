"""Accuracy without labels: by hand, as properties, and on real images that change with and without harm."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from toolkit.bundle.baseline import Baseline
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.stats.performance_estimation import METHODS, PerformanceEstimator, isotonic_regression

CLASSES = ("bird", "cat", "dog")
tied_rows = st.lists(
    st.tuples(
        st.sampled_from([(1, 0, 0), (0, 1, 0), (0.5, 0.25, 0.25), (0.25, 0.5, 0.25), (0, 0.75, 0.25)]),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=40,
)


def answers(n, rng, strength=3.0):
    """Calibrated probabilities of three classes, and the truth drawn with them."""
    truth = rng.integers(3, size=n)
    logits = rng.normal(0, 1, (n, 3))
    logits[np.arange(n), truth] += strength
    odds = np.exp(strength * logits)  # by Bayes: the classes differ by normal logits of this strength
    return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float16), truth


@given(tied_rows)
@settings(max_examples=80, deadline=None)
def test_mean_scores_of_the_held_out_images_are_their_accuracy(rows):
    probabilities, labels = (np.array(column) for column in zip(*rows, strict=True))
    baseline = Baseline(CLASSES, probabilities, labels)
    assert PerformanceEstimator(baseline).score(probabilities).mean(axis=0) == pytest.approx(
        [baseline.accuracy] * 2, abs=2e-6
    )


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=80, deadline=None)
def test_isotonic_regression_is_scikit_learns(points):
    x, y = (np.array(column, float) for column in zip(*points, strict=True))
    starts, levels = isotonic_regression(x, y)
    expected = IsotonicRegression().fit(x, y).predict(x)
    assert levels[np.searchsorted(starts, x, side="right") - 1] == pytest.approx(expected, abs=1e-6)
    assert (np.diff(levels) > 0).all()


def test_as_many_are_above_the_threshold_as_were_right():
    probabilities = np.array([[0.99, 0.01, 0], [0.9, 0.1, 0], [0.8, 0.2, 0], [0.7, 0.3, 0], [0.6, 0.4, 0]])
    estimator = PerformanceEstimator(Baseline(CLASSES, probabilities, [0, 0, 1, 0, 1]))  # three of five are right
    certain = estimator.score([[0.81, 0.19, 0], [0, 0.2, 0.8], [0.79, 0.21, 0], [0.8, 0.1, 0.1]])[:, 0]
    assert certain.tolist() == [1, 1, 0, 0]  # the last one has the confidence, but more doubt


def test_calibrated_confidence_by_hand():
    probabilities = np.repeat([[0.5, 0.5, 0], [0.75, 0.25, 0], [1, 0, 0]], 4, axis=0)
    estimator = PerformanceEstimator(Baseline(CLASSES, probabilities, [0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0]))
    rows = [[0.34, 0.33, 0.33], [0.5, 0, 0.5], [0.625, 0.375, 0], [0.75, 0.25, 0], [0.98, 0.02, 0], [0, 1, 0]]
    assert estimator.score(rows)[:, 1].tolist() == [0.25, 0.25, 0.25, 0.5, 0.5, 1]


def test_the_order_of_the_classes_changes_nothing():
    rng = np.random.default_rng(0)
    (reference, labels), (window, _) = answers(1000, rng), answers(500, rng, strength=1.5)
    order = np.array([2, 0, 1])
    plain = PerformanceEstimator(Baseline(CLASSES, reference, labels)).estimate(window)
    turned = PerformanceEstimator(Baseline(CLASSES, reference[:, order], np.argsort(order)[labels])).estimate(
        window[:, order]
    )
    assert turned == plain


@given(st.integers(0, 2**32 - 1), st.integers(1, 400))
@settings(max_examples=20, deadline=None)
def test_sums_of_scores_are_exact_in_any_order(seed, cut):
    rng = np.random.default_rng(seed)
    reference, labels = answers(150, rng)
    window, _ = answers(400, rng)
    window[rng.random(400) < 0.1, 1] = np.nan
    estimator = PerformanceEstimator(Baseline(CLASSES, reference, labels))
    scores = estimator.score(window)
    finite = int(np.isfinite(window).all(axis=1).sum())
    parts = scores[cut:].sum(axis=0) + scores[:cut][::-1].sum(axis=0)
    assert parts.tolist() == scores.sum(axis=0).tolist()
    assert (parts - scores[:cut].sum(axis=0)).tolist() == scores[cut:].sum(axis=0).tolist()
    assert estimator.from_sums(parts, finite) == estimator.estimate(window)
    assert estimator.estimate(window).n == finite


def test_the_interval_covers_the_accuracy_without_a_change():
    rng = np.random.default_rng(1)
    population, truth = answers(200_000, rng)
    accuracy = (population.argmax(axis=1) == truth).mean()
    held = []
    for _ in range(200):
        estimator = PerformanceEstimator(Baseline(CLASSES, *answers(400, rng)))
        estimate = estimator.estimate(answers(500, rng)[0])
        held.append(estimate.low <= accuracy <= estimate.high)
        assert estimate.method in METHODS
    assert np.mean(held) > 0.92  # of 0.95, less two standard errors


def test_bursts_widen_the_interval():
    estimator = PerformanceEstimator(Baseline(CLASSES, *answers(1000, np.random.default_rng(2))))
    plain, burst = estimator.from_sums([700, 600], 1000), estimator.from_sums([700, 600], 1000, effective_n=50)
    assert (plain.accuracy, plain.method) == (burst.accuracy, burst.method) == (0.7, "thresholded_confidence")
    assert burst.low < plain.low < 0.7 < plain.high < burst.high


def test_too_wide_an_interval_is_insufficient_data():
    rng = np.random.default_rng(3)
    small, large = (PerformanceEstimator(Baseline(CLASSES, *answers(n, rng, 1.5))) for n in (110, 5000))
    window = answers(1000, rng, 1.5)[0]
    unsure = small.degradation(small.estimate(window), Thresholds())
    assert (unsure.level, unsure.status) == (None, "insufficient_data")
    assert "chance alone may move the estimate by" in unsure.note
    sure = large.degradation(large.estimate(window), Thresholds())
    assert (sure.level, sure.status, sure.note) == ("ok", "estimate", None)
    few = large.degradation(large.estimate(window[:60]), Thresholds())
    assert few.note == "60 predictions and 5000 held-out images are too few"


def test_degradation_is_json_whatever_is_missing():
    rng = np.random.default_rng(4)
    estimator = PerformanceEstimator(Baseline(CLASSES, *answers(300, rng)))
    never_right = PerformanceEstimator(Baseline(CLASSES, [[1, 0, 0]] * 200, [1] * 200))
    for metrics in (
        estimator.degradation(None, Thresholds()),
        estimator.degradation(estimator.estimate(answers(300, rng)[0]), Thresholds()),
        never_right.degradation(never_right.estimate([[1, 0, 0]] * 200), Thresholds()),
    ):
        json.dumps(asdict(metrics), allow_nan=False)
    assert estimator.estimate(np.zeros((0, 3))) is None
    assert never_right.estimate([[1, 0, 0]]).accuracy == 0


@pytest.fixture(scope="module")
def digits():
    """A linear model of handwritten digits, its estimator, and further images and labels."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order] / 16, labels[order]
    model = LogisticRegression(max_iter=100).fit(images[:500], labels[:500])
    names = tuple("0123456789")
    estimator = PerformanceEstimator(Baseline(names, model.predict_proba(images[500:1200]), labels[500:1200]))
    return model, estimator, images[1200:], labels[1200:]


def judged(estimator, probabilities, share=1.0):
    return estimator.degradation(estimator.estimate(np.repeat(probabilities, 2, axis=0)), Thresholds())


def test_a_missing_class_is_no_degradation(digits):
    model, estimator, images, labels = digits
    for gone in range(0, 10, 3):
        metrics = judged(estimator, model.predict_proba(images[labels != gone]))
        assert metrics.level == "ok", gone
        assert abs(metrics.degradation) < 0.05, gone


@pytest.mark.parametrize(
    "harm",
    [
        lambda image, rng: np.clip(image + rng.normal(0, 100 / 255, (8, 8)), 0, 1),
        lambda image, rng: ndimage.rotate(image, rng.uniform(-60, 60), reshape=False, order=1),
        lambda image, rng: ndimage.gaussian_filter(image, 1.5),
    ],
    ids=["noise", "rotation", "blur"],
)
def test_harmful_changes_of_images_are_a_warning_at_most(digits, harm):
    model, estimator, images, labels = digits
    rng = np.random.default_rng(5)
    changed = np.stack([harm(image.reshape(8, 8), rng).ravel() for image in images])
    assert (model.predict(changed) == labels).mean() < 0.9 * estimator.reference_accuracy  # critical, in truth
    assert judged(estimator, model.predict_proba(changed)).level == "warning"
    assert judged(estimator, model.predict_proba(images)).level == "ok"


def test_no_estimate_is_an_all_clear(digits):
    model, estimator, images, labels = digits
    lying = model.predict_proba(np.rot90(images.reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64))
    assert (lying.argmax(axis=1) == labels).mean() < 0.2
    assert judged(estimator, lying).level == "ok"  # the model is sure of what it says
