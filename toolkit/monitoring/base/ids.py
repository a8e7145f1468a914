"""Names of predictions: 63-bit integers in the order of time, shown as 16 hex digits.

An integer key makes the store about eight times faster than a text UUID, and keys that grow
with time keep its index compact. Below the milliseconds there are two kinds: random ones, which
a client who has seen one cannot well guess the others from; and for loops that log thousands in a
millisecond, of which random ones would collide, those that are counted, apart for each process.
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
LOW_BITS = 21  # below the milliseconds, which need 42 bits until the year 2109; the highest tells the kind
PROCESS_BITS, COUNT_BITS = 11, 9  # of a counted number


class _Ids:
    """Numbers of which those of each kind only ever grow within this process."""

    def __init__(self) -> None:
        self._last = self._counted = 0
        self._process: int | None = None  # the bits that tell it from others
        self._lock = threading.Lock()
        self._random = random.Random()  # noqa: S311  # ids need to differ, not to be secret, and the system's are slow
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._random.seed()
        self._process = None

    def next(self, seconds: float) -> int:
        with self._lock:
            self._last = max(
                self._last + 1, _milliseconds(seconds) << LOW_BITS | self._random.getrandbits(LOW_BITS - 1)
            )
            return self._last

    def count(self, seconds: float, n: int) -> list[int]:
        with self._lock:
            if self._process is None:
                of_host = zlib.crc32(socket.gethostname().encode())
                self._process = (os.getpid() + of_host) % (1 << PROCESS_BITS)  # processes of a host differ
            first = max(self._counted + 1, _milliseconds(seconds) << COUNT_BITS)
            self._counted = first + n - 1
        kind = 1 << (LOW_BITS - 1) | self._process << COUNT_BITS
        return [
            place >> COUNT_BITS << LOW_BITS | kind | place & ((1 << COUNT_BITS) - 1)
            for place in range(first, first + n)
        ]


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000) & ((1 << 42) - 1)


_ids = _Ids()


def new_prediction_id(clock: Callable[[], float] = time.time) -> str:
    """A fresh id, larger than every id that this gave out in this process before.

    Two processes that make an id within the same millisecond collide once in a million times.

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
    return format_id(_ids.next(clock()))


def new_id_numbers(seconds: float, n: int) -> list[int]:
    """The numbers of ``n`` fresh ids, growing and larger than every one that this gave out in this process before.

    No two processes of a host make the same, however fast they are, unless their process numbers differ by a
    multiple of 2,048.

    Parameters
    ----------
    seconds
        The time since 1970. Many of one moment reach into the milliseconds that follow, 512 in each.

    Examples
    --------
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
