"""Slow questions: asked by one at a time, no more often than allowed, and nobody waits for an answer that is known."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from support import MAX_WAIT_S
from toolkit.serving.cached_call import MAX_BUSY_SHARE, CachedCall


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_an_answer_is_kept_for_so_many_seconds():
    clock, asked = Clock(), []
    recent = CachedCall(lambda: asked.append(clock.now) or len(asked), 5, clock)
    found = []
    for step in (0, 3, 1.9, 0.2, 4.9, 0.2):
        clock.now += step
        found.append(recent())
    assert found == [1, 1, 1, 2, 2, 3]


def test_a_slow_question_is_asked_less_often():
    clock, asked = Clock(), []

    def ask():
        asked.append(clock.now)
        clock.now += 2.0

    recent = CachedCall(ask, 5, clock)
    recent()
    ended = clock.now
    for later, times in ((5.1, 1), (2 / MAX_BUSY_SHARE - 0.1, 1), (2 / MAX_BUSY_SHARE + 0.1, 2)):
        clock.now = ended + later
        recent()
        assert len(asked) == times


def test_none_is_an_answer_too():
    asked = []
    recent = CachedCall(lambda: asked.append(1), 5, Clock())
    assert (recent(), recent(), len(asked)) == (None, None, 1)


def test_errors_are_not_kept_and_leave_nothing_locked():
    answers = iter([ValueError("no"), ValueError("no"), 7])

    def ask():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    recent = CachedCall(ask, 5, Clock())
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            recent()
    assert recent() == 7


def test_the_first_answer_is_asked_for_once_by_all_who_wait():
    entered, go, asked = threading.Event(), threading.Event(), []

    def ask():
        asked.append(1)
        entered.set()
        assert go.wait(MAX_WAIT_S)
        return "answer"

    recent = CachedCall(ask, 5)
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(recent) for _ in range(8)]
        assert entered.wait(MAX_WAIT_S)
        go.set()
        assert [one.result(MAX_WAIT_S) for one in found] == ["answer"] * 8
    assert len(asked) == 1


def test_while_a_new_answer_is_sought_the_others_get_the_old_one():
    clock, entered, go = Clock(), threading.Event(), threading.Event()
    answers = iter(["old", "new"])

    def ask():
        answer = next(answers)
        if answer == "new":
            entered.set()
            assert go.wait(MAX_WAIT_S)
        return answer

    recent = CachedCall(ask, 5, clock)
    assert recent() == "old"
    clock.now += 10
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(recent)
        assert entered.wait(MAX_WAIT_S)
        assert [recent() for _ in range(3)] == ["old"] * 3  # and this thread is not held up
        go.set()
        assert slow.result(MAX_WAIT_S) == "new"
    assert recent() == "new"
