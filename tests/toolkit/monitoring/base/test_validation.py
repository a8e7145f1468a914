"""Many predictions are accepted and refused like each of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from toolkit.errors import SettingsError
from toolkit.monitoring.base import validation

CLASSES = ("bird", "cat", "dog")
SURE = {"bird": 1, "cat": 0, "dog": 0}
VALUES = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.019, 1.03, -0.1, 7.5, np.nan, np.inf, -np.inf])


def outcome(work):
    try:
        return work()
    except SettingsError as error:
        return str(error)


@given(arrays(st.sampled_from([np.float64, np.float32, np.float16]), st.tuples(st.integers(1, 6), st.just(3)),
              elements=VALUES))  # fmt: skip
def test_many_predictions_are_checked_like_each_of_them(rows):
    one_by_one = [outcome(lambda row=row: validation.parse_probabilities(row, CLASSES)) for row in rows]
    errors = [(place, text) for place, text in enumerate(one_by_one) if isinstance(text, str)]
    together = outcome(lambda: validation.parse_many_probabilities(rows, CLASSES))
    if errors:
        place, text = errors[0]
        assert together == text.replace("probabilities", f"probabilities[{place}]", 1)
    else:
        assert together.dtype == np.float16
        np.testing.assert_array_equal(together, np.stack(one_by_one))


def test_mappings_lists_and_arrays_are_equivalent():
    rows = [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]
    mappings = [dict(zip(CLASSES, row, strict=True)) for row in rows]
    mappings[1] = dict(reversed(mappings[1].items()))
    for given_rows in (rows, np.array(rows), [np.array(row) for row in rows], mappings, tuple(mappings)):
        assert validation.parse_many_probabilities(given_rows, CLASSES).tolist() == rows
    assert validation.parse_many_probabilities(np.zeros((0, 3)), CLASSES).shape == (0, 3)


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        ([0.5, 0.5], r"3 probabilities are needed for each prediction, one for each class, got shape \(2,\)"),
        (np.zeros((2, 2)), r"got shape \(2, 2\)"),
        ([[0.5, 0.5], [1.0]], "probabilities must be numbers"),
        ([["a", "b", "c"]], "probabilities must be numbers"),
        ([SURE, {"bird": 1}], r"probabilities\[1\] of bird given; the classes are bird, cat"),
        ([SURE, [1, 0, 0]], r"probabilities\[1\] must be a mapping as the first one is"),
    ],
)
def test_invalid_probabilities_are_refused(probabilities, message):
    with pytest.raises(SettingsError, match=message):
        validation.parse_many_probabilities(probabilities, CLASSES)


def test_first_row():
    assert validation.first_row([[1, 0]]) == [1, 0]
    assert validation.first_row(np.zeros((0, 3))) is None
    assert validation.first_row([]) is None
    for wrong in (5, {"cat": [0.5]}, None, (x for x in "ab")):
        with pytest.raises(SettingsError, match="probabilities of many predictions are needed"):
            validation.first_row(wrong)


def test_statistics_come_as_columns_or_as_mappings():
    wanted = [{"a": 1.0, "b": 0.5}, {"a": 2.0, "b": 1.5}]
    for given_values in ({"a": [1, 2], "b": np.float32([0.5, 1.5])}, wanted, [{"a": 1, "b": 0.5}, {"b": 1.5, "a": 2}]):
        assert validation.parse_many_statistics(given_values, 2) == wanted
    assert validation.parse_many_statistics(None, 2) == validation.parse_many_statistics({}, 2) == [{}, {}]
    assert validation.parse_many_statistics([{"a": None}, None], 2) == [{}, {}]
    assert validation.parse_many_statistics({"a": []}, 0) == validation.parse_many_statistics(None, 0) == []


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: validation.parse_statistics({"a": "x"}), r"statistics\['a'\] must be a number, got 'x'"),
        (lambda: validation.parse_statistics([1]), "statistics must be a mapping of names to numbers, got list"),
        (
            lambda: validation.parse_many_statistics({"a": [1]}, 2),
            r"statistics\['a'\] must be 2 numbers, .* got shape \(1,\)",
        ),
        (lambda: validation.parse_many_statistics({"a": ["x", 1]}, 2), r"statistics\['a'\] must be numbers"),
        (lambda: validation.parse_many_statistics([{}], 2), "statistics of 2 images are needed, got 1"),
        (
            lambda: validation.parse_many_statistics([{}, {"a": []}], 2),
            r"statistics\[1\]\['a'\] must be a number, got \[\]",
        ),
        (lambda: validation.parse_number("x", "latency_ms"), "latency_ms must be a number, got 'x'"),
        (lambda: validation.parse_numbers([1, "x"], 2, "latency_ms"), r"latency_ms\[1\] must be a number, got 'x'"),
        (lambda: validation.parse_numbers([1], 2, "latency_ms"), "2 values of latency_ms are needed, .* got 1"),
    ],
)
def test_invalid_numbers_are_refused(work, message):
    with pytest.raises(SettingsError, match=f"^{message}"):
        work()


def test_one_number_counts_for_all_predictions():
    assert validation.parse_numbers(3, 2, "latency_ms") == [3.0, 3.0]
    assert validation.parse_numbers(None, 2, "latency_ms") == [None, None]
    assert validation.parse_numbers(np.float32([1, 2]), 2, "latency_ms") == [1.0, 2.0]
