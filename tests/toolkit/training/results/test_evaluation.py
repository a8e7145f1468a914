"""Metrics of predictions, against numbers worked out by hand and formulas written independently."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from toolkit.training.results.evaluation import (
    TEMPERATURES,
    evaluate,
    fit_temperature,
    most_confident_mistakes,
)

CLASSES = ("a", "b", "c")


def one_hot(predicted, confidence=0.8):
    rest = (1 - confidence) / 2
    return np.where(np.eye(3)[predicted] == 1, confidence, rest).astype(np.float32)


def test_metrics_by_hand():
    """True a a a a b b c, predicted a a b c b a c."""
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    result = evaluate(one_hot([0, 0, 1, 2, 1, 0, 2]), labels, CLASSES)
    assert result.confusion.tolist() == [[2, 1, 1], [1, 1, 0], [0, 0, 1]]
    assert result.accuracy == pytest.approx(4 / 7)
    rows = [(row["class"], row["precision"], row["recall"], row["f1"], row["images"]) for row in result.per_class]
    assert rows == [
        ("a", pytest.approx(2 / 3), pytest.approx(1 / 2), pytest.approx(4 / 7), 4),
        ("b", pytest.approx(1 / 2), pytest.approx(1 / 2), pytest.approx(1 / 2), 2),
        ("c", pytest.approx(1 / 2), pytest.approx(1.0), pytest.approx(2 / 3), 1),
    ]
    assert result.weighted == {
        "precision_weighted": pytest.approx((4 * 2 / 3 + 2 / 2 + 1 / 2) / 7),
        "recall_weighted": pytest.approx(4 / 7),
        "f1_weighted": pytest.approx((4 * 4 / 7 + 2 / 2 + 2 / 3) / 7),
    }
    assert result.calibration_error == pytest.approx(abs(0.8 - 4 / 7), abs=1e-6)
    assert result.images == 7


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_metrics_by_counting(pairs):
    """Also when a class is never true or never predicted; that counts as 0."""
    labels, predicted = (np.array(column) for column in zip(*pairs, strict=True))
    result = evaluate(one_hot(predicted.tolist()), labels, CLASSES)
    precision = recall = f1 = 0.0
    for label in range(3):
        hits, predictions, members = (
            sum(pair == (label, label) for pair in pairs),
            (predicted == label).sum(),
            (labels == label).sum(),
        )
        precision += members * hits / max(predictions, 1) / len(pairs)
        recall += hits / len(pairs)
        f1 += members * 2 * hits / max(predictions + members, 1) / len(pairs)
        assert result.confusion[label].tolist() == [pairs.count((label, other)) for other in range(3)]
    assert list(result.weighted.values()) == pytest.approx([precision, recall, f1])
    assert result.accuracy == pytest.approx(recall)


def test_most_confident_mistakes_by_hand():
    """Wrong are 0, 2, 3 and 5 with 0.6, 0.9, 0.6 and 0.7; equals stay in order."""
    probabilities = np.stack([one_hot([0], confidence)[0] for confidence in (0.6, 0.99, 0.9, 0.6, 0.5, 0.7)])
    labels = np.array([1, 0, 2, 1, 0, 2])
    assert most_confident_mistakes(probabilities, labels).tolist() == [2, 5, 0, 3]
    assert most_confident_mistakes(probabilities, labels, count=2).tolist() == [2, 5]
    assert most_confident_mistakes(probabilities, np.zeros(6, int)).tolist() == []


def drawn_from(logits, seed):
    """Labels (N,) that the probabilities softmax(logits) are true of."""
    noise = np.random.default_rng(seed).gumbel(size=logits.shape)
    return (logits + noise).argmax(axis=1)


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_temperature_recovers_the_scale_of_the_logits(scale):
    logits = np.random.default_rng(1).normal(0, 2, (8000, 5))
    labels = drawn_from(logits, seed=2)
    assert fit_temperature((logits * scale).astype(np.float32), labels) == pytest.approx(scale, rel=0.05)


def test_temperature_of_a_few_right_predictions_is_not_certain():
    """Ten images, all right: a likeliest fit would claim certainty, eleven of twelve is what can be said."""
    logits = np.eye(2, dtype=np.float32)[np.zeros(10, int)]
    temperature = fit_temperature(logits, np.zeros(10, np.int64))
    assert softmax(logits / temperature, axis=1)[:, 0] == pytest.approx(np.full(10, 11 / 12), abs=1e-3)


def test_temperature_of_nothing_and_of_mistakes():
    nothing = np.zeros((0, 3), np.float32)
    assert fit_temperature(nothing, np.zeros(0, np.int64)) == 1.0
    wrong = fit_temperature(np.eye(3, dtype=np.float32) * 9, np.array([1, 2, 0]))
    assert TEMPERATURES[0] < wrong <= TEMPERATURES[1] + 1e-6
