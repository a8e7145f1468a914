"""A bounded number of places for images, and of bytes for their bodies; who finds no room is sent away at once."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from toolkit.serving.problems import OVERLOADED, Problem

MAX_RETRY_AFTER_S = 30  # seconds
PACE_MEMORY = 0.95  # weight of the past in the running mean of the time that one image takes


class AdmissionController:
    """Refuse what would wait too long, or take too much memory.

    Places are taken and given back on the event loop, so they need no lock.

    Parameters
    ----------
    workers
        Threads that answer.
    waiting
        Images that may wait while all threads are busy.
    most_bytes
        Bodies that may be in memory together.

    Examples
    --------
    >>> desk = Desk(workers=1, waiting=1)
    >>> with desk.places(2):
    ...     desk.in_flight
    ...     with desk.places(1):
    ...         pass
    Traceback (most recent call last):
        ...
    toolkit.serving.problems.Problem: 503: 1 image is being answered and 1 waits, which is all there is room for
    >>> desk.in_flight
    0
    """

    def __init__(self, workers: int, waiting: int, most_bytes: int = 2**62) -> None:
        self.workers = workers
        self.max_queue = waiting
        self._most_bytes = most_bytes
        self._taken = 0
        self._bytes = 0
        self._pace = 0.0  # seconds of work on one image

    @property
    def in_flight(self) -> int:
        """Images that have a place: being answered or waiting."""
        return self._taken

    @property
    def free_slots(self) -> int:
        """Places that are free."""
        return self.workers + self.max_queue - self._taken

    def require_slot(self, count: int) -> None:
        """Refuse now what ``places`` would refuse, before its body is read."""
        if count > self.free_slots:
            raise self._full()

    @contextmanager
    def slots(self, count: int) -> Iterator[None]:
        """Hold so many places, all or none.

        Raises
        ------
        Problem
            503 with the time after which there should be room.
        """
        self.require_slot(count)
        self._taken += count
        try:
            yield
        finally:
            self._taken -= count

    @contextmanager
    def reserve_bytes(self, size: int) -> Iterator[None]:
        """Hold the memory of a body while it arrives and is worked on.

        Raises
        ------
        Problem
            503 with the time after which there should be room.
        """
        if self._bytes + size > self._most_bytes:
            held = f"bodies of {self._bytes / 2**20:.0f} MiB are being worked on"
            raise Problem(OVERLOADED, f"{held}, which is all there is room for", self._retry())
        self._bytes += size
        try:
            yield
        finally:
            self._bytes -= size

    def record_duration(self, images: int, seconds: float) -> None:
        """Learn how long work takes; called from a worker."""
        pace = seconds / images
        self._pace = PACE_MEMORY * self._pace + (1 - PACE_MEMORY) * pace if self._pace else pace

    def _retry(self) -> dict[str, str]:
        """When those before are answered, at the pace of late."""
        seconds = math.ceil(self._taken * self._pace / self.workers)
        return {"Retry-After": str(min(max(1, seconds), MAX_RETRY_AFTER_S))}

    def _full(self) -> Problem:
        answered = min(self._taken, self.workers)
        waits = self._taken - answered
        return Problem(
            OVERLOADED,
            f"{answered} image{'s are' if answered != 1 else ' is'} being answered and {waits} "
            f"wait{'s' if waits == 1 else ''}, which is all there is room for",
            self._retry(),
        )
