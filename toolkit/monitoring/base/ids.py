"""Ids of predictions: 63-bit integers that grow with time, shown as 16 hex digits.

Integer keys make the store about eight times faster than text UUIDs, and keys that grow with time keep its
index compact. The bits below the milliseconds are of two kinds: random ones, so that an id cannot easily be
guessed from another; and for bulk logging of thousands in a millisecond, where random ones would collide,
a number of the process and a counter.
"""

import os
import random
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable

from toolkit.errors import UnknownPrediction

DIGITS = 16
_ID = re.compile(rf"[0-7][0-9a-fA-F]{{{DIGITS - 1}}}")  # below 2**63
LOW_BITS = 21  # below the milliseconds, which need 42 bits until the year 2109; the highest is set in counted ids
PROCESS_BITS, COUNT_BITS = 11, 9  # of a counted number


class _Ids:
    """Generator of id numbers; those of each kind only grow within a process."""

    def __init__(self) -> None:
        self._last = self._counted = 0
        self._process: int | None = None  # hash of host and process
        self._lock = threading.Lock()
        self._random = random.Random()  # noqa: S311  # ids need to differ, not to be secret, and the system's are slow
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._random.seed()
        self._process = None

    def next(self, seconds: float) -> int:
        with self._lock:
            drawn = _milliseconds(seconds) << LOW_BITS | self._random.getrandbits(LOW_BITS - 1)
            self._last = max(self._last + 1, drawn)
            return self._last

    def count(self, seconds: float, n: int) -> list[int]:
        with self._lock:
            if self._process is None:
                of_host = zlib.crc32(socket.gethostname().encode())
                self._process = (os.getpid() + of_host) % (1 << PROCESS_BITS)  # processes of a host differ
            first = max(self._counted + 1, _milliseconds(seconds) << COUNT_BITS)
            self._counted = first + n - 1
        kind, mask = 1 << (LOW_BITS - 1) | self._process << COUNT_BITS, (1 << COUNT_BITS) - 1
        return [place >> COUNT_BITS << LOW_BITS | kind | place & mask for place in range(first, first + n)]


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000) & ((1 << 42) - 1)


_ids = _Ids()


def new_prediction_id(clock: Callable[[], float] = time.time) -> str:
    """A new id, larger than all that this function has returned in this process; the clock gives seconds since 1970.

    Ids that two processes make within the same millisecond collide once in a million times.

    >>> earlier, later = new_prediction_id(), new_prediction_id()
    >>> len(earlier), earlier < later
    (16, True)
    """
    return format_id(_ids.next(clock()))


def new_id_numbers(seconds: float, n: int) -> list[int]:
    """``n`` new id numbers in ascending order, larger than all that this function has returned in this process.

    Two processes of a host never make the same number, unless their process ids differ by a multiple of 2,048. A
    millisecond holds 512 numbers; more of one moment count as of the next milliseconds.

    >>> made = new_id_numbers(0.0, 1000) + new_id_numbers(0.0, 1000)
    >>> len(made), made == sorted(set(made))
    (2000, True)
    """
    return _ids.count(seconds, n)


def format_id(number: int) -> str:
    """The 16 hex digits of an id.

    >>> format_id(255)
    '00000000000000ff'
    """
    return f"{number:0{DIGITS}x}"


def parse_prediction_id(prediction_id: str) -> int:
    """The number of an id; ``UnknownPrediction`` when the text is none.

    >>> parse_prediction_id("00000000000000ff")
    255
    """
    if isinstance(prediction_id, str) and _ID.fullmatch(prediction_id):
        return int(prediction_id, 16)
    raise UnknownPrediction(f"there is no prediction {prediction_id!r}: an id has {DIGITS} hex digits")
