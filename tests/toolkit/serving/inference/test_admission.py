"""Slots and bytes: never more than there are, and released however the request ends."""

import numpy as np
import pytest

from toolkit.serving.inference.admission import MAX_RETRY_AFTER_S, AdmissionController
from toolkit.serving.problems import OVERLOADED, Problem


def test_slots_are_held_all_or_none_and_released():
    admission = AdmissionController(threads=2, max_queue=3)
    with admission.slots(3):
        assert (admission.in_flight, admission.free_slots) == (3, 2)
        with pytest.raises(Problem) as caught, admission.slots(3):
            raise AssertionError("there are no three slots")
        assert (admission.in_flight, admission.free_slots) == (3, 2)
        with admission.slots(2):
            assert (admission.in_flight, admission.free_slots) == (5, 0)
            with pytest.raises(Problem, match=r"^503: the queue is full: 2 images are being answered and 3 wait$"):
                admission.require_slot(1)
    assert caught.value.problem_type is OVERLOADED
    assert caught.value.headers == {"Retry-After": "1"}
    with pytest.raises(KeyError), admission.slots(5):
        raise KeyError
    assert (admission.in_flight, admission.free_slots) == (0, 5)


def test_bodies_share_a_number_of_bytes():
    admission = AdmissionController(threads=2, max_queue=3, max_bytes=2**20)
    with admission.reserve_bytes(600_000):
        with (
            pytest.raises(Problem, match="the memory for bodies is full: 1 MiB are being worked on") as caught,
            admission.reserve_bytes(600_000),
        ):
            raise AssertionError("there is no memory for both")
        with pytest.raises(KeyError), admission.reserve_bytes(448_576):
            raise KeyError
    with admission.reserve_bytes(2**20):
        pass
    assert caught.value.problem_type is OVERLOADED
    assert caught.value.headers == {"Retry-After": "1"}


@pytest.mark.parametrize(
    ("in_flight", "duration", "seconds"), [(10, 1.5, 8), (10, 0.001, 1), (9, 1.0, 5), (10, 60.0, MAX_RETRY_AFTER_S)]
)
def test_retry_after_is_the_time_that_present_images_need(in_flight, duration, seconds):
    admission = AdmissionController(threads=2, max_queue=8)
    admission.record_duration(4, 4 * duration)
    with admission.slots(in_flight), pytest.raises(Problem) as caught:
        admission.require_slot(2)
    assert caught.value.headers["Retry-After"] == str(seconds)


def test_retry_after_follows_the_recent_durations():
    admission, generator = AdmissionController(threads=1, max_queue=20), np.random.default_rng(0)
    for images in generator.integers(1, 9, 300).tolist():
        admission.record_duration(images, 0.5 * images)
    for images in generator.integers(1, 9, 100).tolist():
        admission.record_duration(images, 2.0 * images)
    with admission.slots(10), pytest.raises(Problem) as caught:
        admission.require_slot(12)
    assert caught.value.headers["Retry-After"] == "20"
