"""Validation of request models."""

import pytest
from pydantic import TypeAdapter, ValidationError

from toolkit.serving.schemas import MAX_LABELS, Feedback, Feedbacks, TopK

GOOD = {"prediction_id": "a", "label": "cat"}


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"prediction_id": ""}, "prediction_id"),
        ({"prediction_id": "a" * 65}, "prediction_id"),
        ({"prediction_id": 5}, "prediction_id"),
        ({"label": ""}, "label"),
        ({"label": "a" * 257}, "label"),
        ({"label": None}, "label"),
        ({"source": "a" * 65}, "source"),
        ({"Label": "cat"}, "Label"),
    ],
)
def test_invalid_feedback_is_refused(change, place):
    with pytest.raises(ValidationError) as caught:
        Feedback.model_validate(GOOD | change)
    assert [error["loc"] for error in caught.value.errors()] == [(place,)]


def test_the_longest_valid_feedback():
    longest = {"prediction_id": "a" * 64, "label": "b" * 256, "source": "c" * 64}
    assert Feedback.model_validate(longest).model_dump() == longest
    assert Feedback.model_validate(GOOD).source == "api"


def test_the_number_of_labels_is_limited():
    adapter = TypeAdapter(Feedbacks)
    assert len(adapter.validate_python([GOOD] * MAX_LABELS)) == MAX_LABELS
    for wrong in ([], [GOOD] * (MAX_LABELS + 1), GOOD):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)


def test_top_k_is_a_whole_number_from_1():
    assert TopK().top_k is None
    assert TopK.model_validate({"top_k": "3"}).top_k == 3
    for wrong in ({"top_k": 0}, {"top_k": -1}, {"top_k": "1.5"}, {"top_k": "many"}, {"topk": 1}):
        with pytest.raises(ValidationError):
            TopK.model_validate(wrong)


def test_a_numeric_label_may_be_a_number():
    for label in ("7", 7):
        assert Feedback.model_validate({"prediction_id": "a", "label": label}).label == "7"
    for label in (True, None, 7.0, ["7"], "", 10**300):
        with pytest.raises(ValidationError):
            Feedback.model_validate({"prediction_id": "a", "label": label})
