"""A bounded number of places in front of a few worker threads; who finds no place is sent away at once."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from toolkit.serving.problems import FULL, Problem

LONGEST_RETRY = 30  # seconds
PACE_MEMORY = 0.95  # weight of the past in the running mean of the time that one picture takes

T = TypeVar("T")


class Desk:
    """Run work in threads, in the order of arrival, and refuse what would wait too long.

    Places are taken and given back on the event loop, so they need no lock.

    Parameters
    ----------
    workers
        Threads.
    waiting
        Pictures that may wait while all threads are busy.
    prepare
        Called once in each thread.

    Examples
    --------
    >>> desk = Desk(workers=1, waiting=1)
    >>> with desk.places(2):
    ...     desk.depth
    ...     with desk.places(1):
    ...         pass
    Traceback (most recent call last):
        ...
    toolkit.serving.problems.Problem: 503: 1 picture is being answered and 1 waits, which is all there is room for
    >>> desk.depth
    0
    """

    def __init__(self, workers: int, waiting: int, prepare: Callable[[], None] | None = None) -> None:
        self.workers = workers
        self.waiting = waiting
        self._taken = 0
        self._pace = 0.0  # seconds of work on one picture
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="predict", initializer=prepare)

    @property
    def depth(self) -> int:
        """Pictures that have a place: being answered or waiting."""
        return self._taken

    @property
    def room(self) -> int:
        """Places that are free."""
        return self.workers + self.waiting - self._taken

    def check(self, count: int) -> None:
        """Refuse now what ``places`` would refuse, before its body is read."""
        if count > self.room:
            raise self._full()

    @contextmanager
    def places(self, count: int) -> Iterator[None]:
        """Hold so many places, all or none.

        Raises
        ------
        Problem
            503 with the time after which there should be room.
        """
        self.check(count)
        self._taken += count
        try:
            yield
        finally:
            self._taken -= count

    async def run(self, work: Callable[[float], T]) -> T:
        """Run ``work`` in a thread; it is given the milliseconds that it had to wait for one."""
        asked = time.perf_counter()

        def timed() -> T:
            started = time.perf_counter()
            try:
                return work((started - asked) * 1000)
            finally:
                seconds = time.perf_counter() - started
                self._pace = PACE_MEMORY * self._pace + (1 - PACE_MEMORY) * seconds if self._pace else seconds

        return await asyncio.get_running_loop().run_in_executor(self._pool, timed)

    def close(self) -> None:
        """Finish what runs, drop what waits."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _full(self) -> Problem:
        answered = min(self._taken, self.workers)
        waits = self._taken - answered
        seconds = math.ceil(self._taken * self._pace / self.workers)
        return Problem(
            FULL,
            f"{answered} picture{'s are' if answered != 1 else ' is'} being answered and {waits} "
            f"wait{'s' if waits == 1 else ''}, which is all there is room for",
            {"Retry-After": str(min(max(1, seconds), LONGEST_RETRY))},
        )
