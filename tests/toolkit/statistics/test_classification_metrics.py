"""Scores against scikit-learn's, and nothing heavy imported for them."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from toolkit.statistics.classification_metrics import class_scores, confusion_matrix, weighted_scores

CASES = st.integers(2, 5).flatmap(
    lambda k: st.tuples(st.just(k), st.lists(st.tuples(*[st.integers(0, k - 1)] * 2), min_size=1, max_size=40))
)


def sums(matrix):
    return np.diagonal(matrix), matrix.sum(axis=0), matrix.sum(axis=1)


@given(CASES)
@settings(max_examples=30, deadline=None)
def test_scores_are_scikit_learns(cases):
    k, pairs = cases
    labels, predicted = np.array(pairs).T
    matrix = confusion_matrix(labels, predicted, k)
    assert matrix.tolist() == metrics.confusion_matrix(labels, predicted, labels=range(k)).tolist()
    options = {"labels": range(k), "zero_division": 0}
    expected = metrics.precision_recall_fscore_support(labels, predicted, **options)[:3]
    np.testing.assert_allclose(class_scores(*sums(matrix)), expected, atol=1e-12)
    expected = metrics.precision_recall_fscore_support(labels, predicted, average="weighted", **options)[:3]
    assert weighted_scores(*sums(matrix)) == pytest.approx(expected)


def test_many_matrices_are_scored_at_once():
    matrices = np.random.default_rng(0).integers(0, 9, (7, 3, 3))
    together = weighted_scores(np.diagonal(matrices, axis1=1, axis2=2), matrices.sum(axis=1), matrices.sum(axis=2))
    alone = [weighted_scores(*sums(matrix)) for matrix in matrices]
    np.testing.assert_allclose(np.transpose(together), alone)


def test_import_is_quick():
    program = "import sys; from toolkit.statistics import classification_metrics, intervals; "
    program += "print({*sys.argv[1:]} & {*sys.modules})"
    words = [sys.executable, "-c", program, "scipy", "sklearn", "torch", "pandas"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "set()\n"
