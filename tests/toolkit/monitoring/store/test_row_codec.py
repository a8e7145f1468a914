"""Rows of the store: what is read back is what was counted."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from toolkit.bundle.baseline import Baseline
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.row_codec import LoggedPrediction, pack, unpack

CLASSES = ("cat", "dog")
MODEL = ModelVersion("1", CLASSES)


def through(batch, names):
    """Packed and unpacked again, as far as the database gives back what it was given."""
    rows = [
        (place, number, time, predicted, confidence, None, latency, scores, values)
        for place, (number, time, _, predicted, confidence, scores, values, latency, _) in enumerate(
            pack(batch, 1, names)
        )
    ]
    return unpack(CLASSES, rows, names)


@given(st.floats(0, 1), st.floats(-1e6, 1e6, allow_nan=False))
def test_numbers_come_back_exactly_as_a_baseline_holds_them(confidence, brightness):
    scores = np.array([confidence, 1 - confidence], np.float16)
    window = through([LoggedPrediction(1, 0.0, MODEL, scores, {"brightness": brightness})], ["brightness"])
    baseline = Baseline(CLASSES, scores[None], np.array([0]), statistics={"b": np.float32([brightness])})
    assert window.confidence[0] == baseline.confidence[0]
    assert window.predicted[0] == baseline.predicted[0]
    assert window.statistics["brightness"][0] == baseline.statistics["b"][0]
    assert np.array_equal(window.probabilities, baseline.probabilities)


def test_what_is_absent_or_not_finite_is_nan():
    scores = np.array([0.5, 0.5], np.float16)
    given_values = [{"a": 1.0}, {}, {"a": np.nan, "b": 2.0}, {"a": np.inf, "b": 1e300}]
    window = through(
        [LoggedPrediction(i, 0.0, MODEL, scores, values) for i, values in enumerate(given_values)], ["a", "b", "c"]
    )
    assert set(window.statistics) == {"a", "b"}  # a statistic that no row has is no column
    assert np.array_equal(window.statistics["a"], [1, np.nan, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(window.statistics["b"], [np.nan, np.nan, 2, np.nan], equal_nan=True)


def test_rows_that_are_older_than_a_name_lack_its_value():
    rows = [
        (1, 1, 0.0, 0, 0.5, None, None, np.array([0.5, 0.5], "<f2").tobytes(), np.array([7], "<f4").tobytes()),
        (2, 2, 0.0, 0, 0.5, None, None, np.array([0.5, 0.5], "<f2").tobytes(), np.array([8, 9], "<f4").tobytes()),
    ]
    window = unpack(CLASSES, rows, ["a", "b"])
    assert window.statistics["a"].tolist() == [7, 8]
    assert np.array_equal(window.statistics["b"], [np.nan, 9], equal_nan=True)
