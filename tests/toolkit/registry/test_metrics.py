"""Figures of one version, against their own equations, scikit-learn, and the images drawn again."""

import math

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from toolkit.bundle.baseline import Baseline
from toolkit.registry.metrics import SCORES, accuracy_of, scores_of


def baseline(images, classes, noise, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, images)
    answers = np.where(generator.random(images) < noise, generator.integers(0, classes, images), labels)
    return Baseline(tuple(f"class {index}" for index in range(classes)), np.eye(classes)[answers], labels)


def by_scikit_learn(labels, predicted):
    figures = precision_recall_fscore_support(labels, predicted, average="weighted", zero_division=0)
    return [float(value) for value in figures[:3]]


def test_no_images_have_nan_metrics():
    nothing = Baseline(("cat", "dog"), np.zeros((0, 2)), np.zeros(0))
    assert all(math.isnan(value) for score in (accuracy_of(nothing), *scores_of(nothing).values()) for value in score)


@pytest.mark.parametrize(("images", "classes", "noise"), [(300, 3, 0.2), (40, 12, 0.5), (5, 2, 0.0), (2000, 100, 0.3)])
def test_scores_match_scikit_learn(images, classes, noise):
    some = baseline(images, classes, noise)
    scores = scores_of(some)
    assert [scores[name].value for name in SCORES] == pytest.approx(by_scikit_learn(some.labels, some.predicted))
    assert scores["recall_weighted"].value == pytest.approx(some.accuracy)
    assert all(score.low <= score.value <= score.high for score in scores.values())


def test_intervals_match_resampled_images():
    """As a plain bootstrap gives them, image by image, with other random numbers."""
    some = baseline(250, 4, 0.3)
    generator = np.random.default_rng(5)
    draws = generator.integers(0, some.size, (600, some.size))
    values = np.array([by_scikit_learn(some.labels[draw], some.predicted[draw]) for draw in draws])
    scores = scores_of(some)
    assert scores == scores_of(baseline(250, 4, 0.3)), "the same images have the same intervals"
    for name, column in zip(SCORES, values.T, strict=True):
        score = scores[name]
        assert (score.low, score.high) == pytest.approx(np.percentile(column, [2.5, 97.5]), abs=0.012)
