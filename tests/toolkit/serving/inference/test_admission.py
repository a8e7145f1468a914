"""Places and bytes: never more than there are, all given back, whatever becomes of who asked for them."""

import numpy as np
import pytest

from toolkit.serving.inference.admission import MAX_RETRY_AFTER_S, AdmissionController
from toolkit.serving.problems import OVERLOADED, Problem


def test_places_are_taken_all_or_none_and_given_back():
    admission = AdmissionController(workers=2, waiting=3)
    with admission.slots(3):
        assert (admission.in_flight, admission.free_slots) == (3, 2)
        with pytest.raises(Problem) as caught, admission.slots(3):
            raise AssertionError("there is no room for three")
        assert (admission.in_flight, admission.free_slots) == (3, 2)
        with admission.slots(2):
            assert (admission.in_flight, admission.free_slots) == (5, 0)
            with pytest.raises(Problem, match="2 images are being answered and 3 wait, which"):
                admission.require_slot(1)
    assert caught.value.problem_type is OVERLOADED
    assert caught.value.headers == {"Retry-After": "1"}
    with pytest.raises(KeyError), admission.slots(5):
        raise KeyError
    assert (admission.in_flight, admission.free_slots) == (0, 5)


def test_bodies_share_so_many_bytes():
    admission = AdmissionController(workers=2, waiting=3, max_bytes=2**20)
    with admission.reserve_bytes(600_000):
        with pytest.raises(Problem, match="bodies of 1 MiB are being worked on") as caught, admission.reserve_bytes(600_000):
            raise AssertionError("there is no room for both")
        with pytest.raises(KeyError), admission.reserve_bytes(448_576):
            raise KeyError
    with admission.reserve_bytes(2**20):
        pass
    assert caught.value.problem_type is OVERLOADED
    assert caught.value.headers == {"Retry-After": "1"}


@pytest.mark.parametrize(
    ("taken", "pace", "seconds"), [(10, 1.5, 8), (10, 0.001, 1), (9, 1.0, 5), (10, 60.0, MAX_RETRY_AFTER_S)]
)
def test_retry_after_is_the_time_that_those_before_need(taken, pace, seconds):
    admission = AdmissionController(workers=2, waiting=8)
    admission.record_duration(4, 4 * pace)
    with admission.slots(taken), pytest.raises(Problem) as caught:
        admission.require_slot(2)
    assert caught.value.headers["Retry-After"] == str(seconds)


def test_the_pace_follows_the_work():
    admission, generator = AdmissionController(workers=1, waiting=20), np.random.default_rng(0)
    for images in generator.integers(1, 9, 300).tolist():
        admission.record_duration(images, 0.5 * images)
    for images in generator.integers(1, 9, 100).tolist():
        admission.record_duration(images, 2.0 * images)
    with admission.slots(10), pytest.raises(Problem) as caught:
        admission.require_slot(12)
    assert caught.value.headers["Retry-After"] == "20"
