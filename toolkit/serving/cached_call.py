"""Cache for the result of a slow call, which limits how often it is made."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_BUSY_SHARE = 0.1  # of the time that is spent in the call


class CachedCall(Generic[T]):
    """A call whose result is reused for ``seconds``, and that one thread makes at a time.

    After a call that took s seconds the next one is made s / ``MAX_BUSY_SHARE`` seconds later at the earliest, so that
    ten browsers that show a store of ten million predictions do not keep it busy. Errors are not cached. During a call
    other threads get the previous result, so that a store that hangs blocks one thread of the service and not all.

    Parameters
    ----------
    call
        Function without arguments.
    seconds
        Shortest time between two calls.
    clock
        Returns seconds.

    Examples
    --------
    >>> numbers = iter(range(10))
    >>> now = iter([0.0, 0.0, 1.0, 9.0, 9.0]).__next__
    >>> cached = CachedCall(lambda: next(numbers), seconds=5, clock=now)
    >>> cached(), cached(), cached()
    (0, 0, 1)
    """

    def __init__(self, call: Callable[[], T], seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._call = call
        self._seconds = seconds
        self._clock = clock
        self._value: tuple[T, float] | None = None  # value, and when it expires
        self._lock = threading.Lock()

    def __call__(self) -> T:
        cached = self._value
        if not self._lock.acquire(blocking=cached is None) and cached is not None:
            return cached[0]
        try:
            started = self._clock()
            if self._value is not None and started < self._value[1]:
                return self._value[0]
            value = self._call()
            ended = self._clock()
            self._value = value, ended + max(self._seconds, (ended - started) / MAX_BUSY_SHARE)
            return value
        finally:
            self._lock.release()
