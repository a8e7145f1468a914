"""Names of predictions: 63-bit integers in the order of time, shown as 16 hex digits.

An integer key makes the store about eight times faster than a text UUID, and keys that grow
with time keep its index compact.
"""

import os
import random
import re
import threading
import time
from collections.abc import Callable

from toolkit.errors import UnknownPrediction

DIGITS = 16
_ID = re.compile(rf"[0-7][0-9a-fA-F]{{{DIGITS - 1}}}")  # below 2**63
RANDOM_BITS = 21  # below the milliseconds, which need 42 bits until the year 2109


class _Ids:
    """Numbers that only ever grow within this process."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()
        self._random = random.Random()  # noqa: S311  # ids need to differ, not to be secret, and the system's are slow
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._random.seed)

    def next(self, seconds: float, n: int = 1) -> int:
        """The first of ``n`` numbers in a row."""
        milliseconds = int(seconds * 1000) & ((1 << 42) - 1)
        with self._lock:
            first = max(self._last + 1, milliseconds << RANDOM_BITS | self._random.getrandbits(RANDOM_BITS))
            self._last = first + n - 1
            return first


_ids = _Ids()


def new_prediction_id(clock: Callable[[], float] = time.time) -> str:
    """A fresh id, larger than every id this process gave out before.

    Two processes that make an id within the same millisecond collide once in two million times.

    Parameters
    ----------
    clock
        Seconds since 1970.

    Examples
    --------
    >>> earlier, later = new_prediction_id(), new_prediction_id()
    >>> len(earlier), earlier < later
    (16, True)
    """
    return show(new_number(clock()))


def new_number(seconds: float) -> int:
    """The number of a fresh id, larger than every one that this process gave out before.

    Parameters
    ----------
    seconds
        The time since 1970.
    """
    return _ids.next(seconds)


def new_numbers(seconds: float, n: int) -> range:
    """The numbers of ``n`` fresh ids, as ``new_number`` makes one.

    >>> first, *_, last = new_numbers(0.0, 1000)
    >>> last - first, new_number(0.0) > last
    (999, True)
    """
    first = _ids.next(seconds, n)
    return range(first, first + n)


def show(number: int) -> str:
    """The 16 hex digits of an id.

    >>> show(255)
    '00000000000000ff'
    """
    return f"{number:0{DIGITS}x}"


def parse_prediction_id(prediction_id: str) -> int:
    """The number behind an id.

    Raises
    ------
    UnknownPrediction
        When the text cannot be an id at all.

    Examples
    --------
    >>> parse_prediction_id("00000000000000ff")
    255
    """
    if isinstance(prediction_id, str) and _ID.fullmatch(prediction_id):
        return int(prediction_id, 16)
    raise UnknownPrediction(f"there is no prediction {prediction_id!r}: an id has {DIGITS} hex digits")
