"""Windows and their figures, against scikit-learn and by hand."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from toolkit.baseline import Baseline
from toolkit.errors import SettingsError
from toolkit.monitoring.limits import Limits
from toolkit.monitoring.windows import Window, measure, window_size

CLASSES = ("cat", "dog", "frog")


def window_of(predicted, labels, confidence=None):
    n = len(predicted)
    return Window(
        CLASSES,
        np.arange(n, dtype=float),
        np.array(predicted, np.int64),
        np.full(n, 0.75, np.float32) if confidence is None else np.array(confidence, np.float32),
        np.array(labels, np.int64),
        np.full(n, np.nan, np.float32),
    )


def reference_of(right, n):
    truth = np.arange(n) % 2
    predicted = np.where(np.arange(n) < right, truth, 1 - truth)
    return Baseline(CLASSES, np.eye(3)[predicted], truth)


@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(-1, 2)), min_size=1, max_size=80))
@settings(max_examples=60, deadline=None)
def test_quality_is_scikit_learns_on_what_can_be_checked(pairs):
    figures = measure(window_of(*zip(*pairs, strict=True)), None, Limits())
    checked = [(p, t) for p, t in pairs if p >= 0 and t >= 0]
    assert (figures["n"], figures["n_labels"]) == (len(pairs), len(checked))
    assert figures["non_finite"] == sum(p < 0 for p, _ in pairs)
    if not checked:
        assert figures["accuracy"] is None
        return
    predicted, truth = zip(*checked, strict=True)
    precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, average="weighted", zero_division=0)
    assert figures["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert figures["precision_weighted"] == pytest.approx(precision)
    assert figures["recall_weighted"] == pytest.approx(recall)
    assert figures["f1_weighted"] == pytest.approx(f1)


def test_what_is_not_known_is_none_and_everything_is_json():
    for window in (Window.empty(), window_of([-1], [0], [np.nan]), window_of([0], [-1])):
        figures = measure(window, None, Limits())
        json.dumps(figures, allow_nan=False)
        assert figures["accuracy"] is figures["level"] is None
        assert figures["status"] == "insufficient_data"


def test_predictions_that_are_not_finite_leave_the_means_alone():
    figures = measure(window_of([0, -1, 1], [-1, -1, -1], [0.5, np.nan, 0.75]), None, Limits())
    assert figures["mean_confidence"] == 0.625
    assert figures["class_shares"] == {"cat": 0.5, "dog": 0.5, "frog": 0.0}


@pytest.mark.parametrize(
    ("right", "n", "level", "status"),
    [
        (900, 1000, "ok", "none"),
        (830, 1000, "warning", "suspected"),  # a drop of 7.8 %, of which 4.6 % is certain
        (780, 1000, "critical", "suspected"),
        (750, 1000, "critical", "confirmed"),
        (600, 1000, "immediate", "confirmed"),
        (38, 50, "critical", "suspected"),
        (20, 49, None, "insufficient_data"),
    ],
)
def test_a_drop_is_confirmed_only_when_its_lower_bound_passes_the_threshold(right, n, level, status):
    predicted = np.zeros(n, int)
    labels = np.where(np.arange(n) < right, 0, 1)
    figures = measure(window_of(predicted, labels), reference_of(1800, 2000), Limits())
    assert (figures["level"], figures["status"]) == (level, status)
    assert figures["degradation"] == pytest.approx(1 - right / n / 0.9)
    assert figures["degradation_lower_bound"] < figures["degradation"]


def test_joined_windows_are_the_rows_of_both_with_gaps_where_a_statistic_is_missing():
    first, second = window_of([0, 1], [0, -1]), window_of([2], [2])
    first = Window(**{**first.__dict__, "statistics": {"brightness": np.array([0.1, 0.2], np.float32)}})
    both = Window.joined([first, second])
    assert both.predicted.tolist() == [0, 1, 2]
    assert both.statistics["brightness"].tolist() == pytest.approx([0.1, 0.2, np.nan], nan_ok=True)
    assert both.last(1).predicted.tolist() == [2]
    assert both.last(None).n == both.last(99).n == 3


def test_columns_that_were_read_come_along_and_empty_parts_do_not_matter():
    rows = window_of([0, 1, 2], [0, -1, 2])
    columns = {"probabilities": np.eye(3, dtype=np.float16), "sequence": np.array([4, 6, 7]), "ids": np.arange(3)}
    full = Window(**{**rows.__dict__, **columns})
    both = Window.joined([Window.empty(CLASSES), full, full.between(1, 2)])
    assert both.sequence.tolist() == [4, 6, 7, 6]
    assert both.probabilities.argmax(axis=1).tolist() == both.predicted.tolist() == [0, 1, 2, 1]
    assert full.between(1, 9).ids.tolist() == [1, 2]
    assert rows.between(1, 3).probabilities.shape == (0, 0)
    assert Window.joined([Window.empty(CLASSES)] * 2).n == 0


def test_an_unknown_window_is_answered_with_those_that_exist():
    with pytest.raises(SettingsError, match="no window 'shrot'; the windows are short, medium, long"):
        window_size("shrot")
