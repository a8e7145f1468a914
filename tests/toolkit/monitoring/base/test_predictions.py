"""Predictions as columns."""

import numpy as np
import pytest

from toolkit.errors import SettingsError
from toolkit.monitoring.base.predictions import Predictions, window_size

CLASSES = ("cat", "dog", "frog")


def window_of(predicted, labels, confidence=None):
    n = len(predicted)
    return Predictions(
        CLASSES,
        np.arange(n, dtype=float),
        np.array(predicted, np.int64),
        np.full(n, 0.75, np.float32) if confidence is None else np.array(confidence, np.float32),
        np.array(labels, np.int64),
        np.full(n, np.nan, np.float32),
    )


def test_concatenate_fills_missing_statistics_with_nan():
    first, second = window_of([0, 1], [0, -1]), window_of([2], [2])
    first = Predictions(**{**first.__dict__, "statistics": {"brightness": np.array([0.1, 0.2], np.float32)}})
    both = Predictions.concatenate([first, second])
    assert both.predicted.tolist() == [0, 1, 2]
    assert both.statistics["brightness"].tolist() == pytest.approx([0.1, 0.2, np.nan], nan_ok=True)
    assert both.last(1).predicted.tolist() == [2]
    assert both.last(None).n == both.last(99).n == 3


def test_concatenate_keeps_all_columns_and_skips_empty_parts():
    rows = window_of([0, 1, 2], [0, -1, 2])
    columns = {"probabilities": np.eye(3, dtype=np.float16), "sequence": np.array([4, 6, 7]), "ids": np.arange(3)}
    full = Predictions(**{**rows.__dict__, **columns})
    both = Predictions.concatenate([Predictions.empty(CLASSES), full, full.slice(1, 2)])
    assert both.sequence.tolist() == [4, 6, 7, 6]
    assert both.probabilities.argmax(axis=1).tolist() == both.predicted.tolist() == [0, 1, 2, 1]
    assert full.slice(1, 9).ids.tolist() == [1, 2]
    assert rows.slice(1, 3).probabilities.shape == (0, 0)
    assert Predictions.concatenate([Predictions.empty(CLASSES)] * 2).n == 0


def test_an_unknown_window_is_answered_with_those_that_exist():
    with pytest.raises(SettingsError, match="no window 'shrot'; the windows are short, medium, long"):
        window_size("shrot")
