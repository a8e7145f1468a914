"""Answers of a slow question, asked no more often than its own slowness allows."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_BUSY_SHARE = 0.1  # of the time at most is spent on asking


class CachedCall(Generic[T]):
    """A value that is computed anew when it is older than ``seconds``, by one thread at a time.

    Ten browsers that watch a store of ten million predictions must not make it do ten times the
    work, nor all of the time: after an answer that took s seconds the next is asked s / ``MAX_BUSY_SHARE``
    seconds later. Errors are not kept. Who comes while another thread asks is given the value that
    is known, so a store that hangs holds up one thread of the service and not all of them.

    Parameters
    ----------
    ask
        Computes the value.
    seconds
        Its least age.

    Examples
    --------
    >>> numbers = iter(range(10))
    >>> now = iter([0.0, 0.0, 1.0, 9.0, 9.0]).__next__
    >>> recent = Recent(lambda: next(numbers), seconds=5, clock=now)
    >>> recent(), recent(), recent()
    (0, 0, 1)
    """

    def __init__(self, ask: Callable[[], T], seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._call = ask
        self._seconds = seconds
        self._clock = clock
        self._value: tuple[T, float] | None = None  # value, and when it expires
        self._lock = threading.Lock()

    def __call__(self) -> T:
        known = self._value
        if not self._lock.acquire(blocking=known is None) and known is not None:
            return known[0]
        try:
            return self._fresh()
        finally:
            self._lock.release()

    def _fresh(self) -> T:
        started = self._clock()
        if self._value is not None and started < self._value[1]:
            return self._value[0]
        value = self._call()
        ended = self._clock()
        self._value = value, ended + max(self._seconds, (ended - started) / MAX_BUSY_SHARE)
        return value
