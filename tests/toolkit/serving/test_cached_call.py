"""Slow calls: made by one thread at a time, no more often than allowed, with a cached result for the others."""

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


def test_a_result_is_reused_for_so_many_seconds():
    clock, asked = Clock(), []
    cached = CachedCall(lambda: asked.append(clock.now) or len(asked), 5, clock)
    found = []
    for step in (0, 3, 1.9, 0.2, 4.9, 0.2):
        clock.now += step
        found.append(cached())
    assert found == [1, 1, 1, 2, 2, 3]


def test_a_slow_call_is_made_less_often():
    clock, asked = Clock(), []

    def ask():
        asked.append(clock.now)
        clock.now += 2.0

    cached = CachedCall(ask, 5, clock)
    cached()
    ended = clock.now
    for later, times in ((5.1, 1), (2 / MAX_BUSY_SHARE - 0.1, 1), (2 / MAX_BUSY_SHARE + 0.1, 2)):
        clock.now = ended + later
        cached()
        assert len(asked) == times


def test_none_is_a_result_too():
    asked = []
    cached = CachedCall(lambda: asked.append(1), 5, Clock())
    assert (cached(), cached(), len(asked)) == (None, None, 1)


def test_errors_are_not_kept_and_leave_nothing_locked():
    answers = iter([ValueError("no"), ValueError("no"), 7])

    def ask():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    cached = CachedCall(ask, 5, Clock())
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            cached()
    assert cached() == 7


def test_the_first_answer_is_asked_for_once_by_all_who_wait():
    entered, go, asked = threading.Event(), threading.Event(), []

    def ask():
        asked.append(1)
        entered.set()
        assert go.wait(MAX_WAIT_S)
        return "answer"

    cached = CachedCall(ask, 5)
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(cached) for _ in range(8)]
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

    cached = CachedCall(ask, 5, clock)
    assert cached() == "old"
    clock.now += 10
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(cached)
        assert entered.wait(MAX_WAIT_S)
        assert [cached() for _ in range(3)] == ["old"] * 3  # and this thread is not held up
        go.set()
        assert slow.result(MAX_WAIT_S) == "new"
    assert cached() == "new"
