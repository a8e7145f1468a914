"""Predictions as columns."""

from dataclasses import replace

import numpy as np
import pytest

from support.prediction_fixtures import window_of
from toolkit.errors import SettingsError
from toolkit.monitoring.base.predictions import Predictions, window_size


def test_concatenate_fills_missing_statistics_with_nan():
    rows = window_of(3, np.random.default_rng(0))
    first = replace(rows.slice(0, 2), statistics={"brightness": np.array([0.1, 0.2], np.float32)})
    both = Predictions.concatenate([first, replace(rows.slice(2, 3), statistics={})])
    assert both.predicted.tolist() == rows.predicted.tolist()
    assert both.statistics["brightness"].tolist() == pytest.approx([0.1, 0.2, np.nan], nan_ok=True)
    assert both.last(1).predicted.tolist() == rows.predicted[2:].tolist()
    assert both.last(None).n == both.last(99).n == 3


def test_concatenate_keeps_all_columns_and_skips_empty_parts():
    rows = window_of(3, np.random.default_rng(0), broken=0)
    full = replace(rows, sequence=np.array([4, 6, 7]), ids=np.arange(3))
    both = Predictions.concatenate([Predictions.empty(rows.classes), full, full.slice(1, 2)])
    assert both.sequence.tolist() == [4, 6, 7, 6]
    assert (
        both.probabilities.argmax(axis=1).tolist() == both.predicted.tolist() == rows.predicted[[0, 1, 2, 1]].tolist()
    )
    assert full.slice(1, 9).ids.tolist() == [1, 2]
    assert replace(rows, probabilities=np.zeros((0, 0))).slice(1, 3).probabilities.shape == (0, 0)
    assert Predictions.concatenate([Predictions.empty(rows.classes)] * 2).n == 0


def test_an_unknown_window_is_answered_with_those_that_exist():
    with pytest.raises(SettingsError, match="no window 'shrot'; the windows are short, medium, long"):
        window_size("shrot")
