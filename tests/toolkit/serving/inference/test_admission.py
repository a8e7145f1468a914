"""Places and bytes: never more than there are, all given back, whatever becomes of who asked for them."""

import asyncio

import numpy as np
import pytest

from toolkit.serving.inference.admission import LONGEST_RETRY, Desk, Doorkeeper
from toolkit.serving.problems import FULL, Problem


def test_places_are_taken_all_or_none_and_given_back():
    desk = Desk(workers=2, waiting=3)
    with desk.places(3):
        assert (desk.depth, desk.room) == (3, 2)
        with pytest.raises(Problem) as caught, desk.places(3):
            raise AssertionError("there is no room for three")
        assert (desk.depth, desk.room) == (3, 2)
        with desk.places(2):
            assert (desk.depth, desk.room) == (5, 0)
            with pytest.raises(Problem, match="2 pictures are being answered and 3 wait, which"):
                desk.check(1)
    assert caught.value.kind is FULL
    assert caught.value.headers == {"Retry-After": "1"}
    with pytest.raises(KeyError), desk.places(5):
        raise KeyError
    assert (desk.depth, desk.room) == (0, 5)


def test_bodies_share_so_many_bytes():
    desk = Desk(workers=2, waiting=3, most_bytes=2**20)
    with desk.body(600_000):
        with pytest.raises(Problem, match="bodies of 1 MiB are being worked on") as caught, desk.body(600_000):
            raise AssertionError("there is no room for both")
        with pytest.raises(KeyError), desk.body(448_576):
            raise KeyError
    with desk.body(2**20):
        pass
    assert caught.value.kind is FULL
    assert caught.value.headers == {"Retry-After": "1"}


@pytest.mark.parametrize(
    ("taken", "pace", "seconds"), [(10, 1.5, 8), (10, 0.001, 1), (9, 1.0, 5), (10, 60.0, LONGEST_RETRY)]
)
def test_retry_after_is_the_time_that_those_before_need(taken, pace, seconds):
    desk = Desk(workers=2, waiting=8)
    desk.worked(4, 4 * pace)
    with desk.places(taken), pytest.raises(Problem) as caught:
        desk.check(2)
    assert caught.value.headers["Retry-After"] == str(seconds)


def test_the_pace_follows_the_work():
    desk, generator = Desk(workers=1, waiting=20), np.random.default_rng(0)
    for pictures in generator.integers(1, 9, 300).tolist():
        desk.worked(pictures, 0.5 * pictures)
    for pictures in generator.integers(1, 9, 100).tolist():
        desk.worked(pictures, 2.0 * pictures)
    with desk.places(10), pytest.raises(Problem) as caught:
        desk.check(12)
    assert caught.value.headers["Retry-After"] == "20"


def test_the_doorkeeper_sends_pictures_away_and_nothing_else():
    desk, inside = Desk(workers=1, waiting=0), []

    async def app(scope, _receive, _send):
        inside.append(scope["path"])

    def ask(path, method="POST", kind="http", desk=desk):
        doorkeeper = Doorkeeper(app, frozenset({"/predict"}), lambda: desk)
        asyncio.run(doorkeeper({"type": kind, "path": path, "method": method}, None, None))

    ask("/predict")
    with desk.places(1):
        with pytest.raises(Problem, match="1 picture is being answered"):
            ask("/predict")
        ask("/feedback")
        ask("/predict", method="GET")
        ask("/predict", kind="websocket")
        ask("/predict", desk=None)
    assert inside == ["/predict", "/feedback", "/predict", "/predict", "/predict"]
