"""A bounded number of places for pictures, and of bytes for their bodies; who finds no room is sent away at once."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from toolkit.serving.problems import FULL, Problem

LONGEST_RETRY = 30  # seconds
PACE_MEMORY = 0.95  # weight of the past in the running mean of the time that one picture takes


class Desk:
    """Refuse what would wait too long, or take too much memory.

    Places are taken and given back on the event loop, so they need no lock.

    Parameters
    ----------
    workers
        Threads that answer.
    waiting
        Pictures that may wait while all threads are busy.
    most_bytes
        Bodies that may be in memory together.

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

    def __init__(self, workers: int, waiting: int, most_bytes: int = 2**62) -> None:
        self.workers = workers
        self.waiting = waiting
        self._most_bytes = most_bytes
        self._taken = 0
        self._bytes = 0
        self._pace = 0.0  # seconds of work on one picture

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

    @contextmanager
    def body(self, size: int) -> Iterator[None]:
        """Hold the memory of a body while it arrives and is worked on.

        Raises
        ------
        Problem
            503 with the time after which there should be room.
        """
        if self._bytes + size > self._most_bytes:
            held = f"bodies of {self._bytes / 2**20:.0f} MiB are being worked on"
            raise Problem(FULL, f"{held}, which is all there is room for", self._retry())
        self._bytes += size
        try:
            yield
        finally:
            self._bytes -= size

    def worked(self, pictures: int, seconds: float) -> None:
        """Learn how long work takes; called from a worker."""
        pace = seconds / pictures
        self._pace = PACE_MEMORY * self._pace + (1 - PACE_MEMORY) * pace if self._pace else pace

    def _retry(self) -> dict[str, str]:
        """When those before are answered, at the pace of late."""
        seconds = math.ceil(self._taken * self._pace / self.workers)
        return {"Retry-After": str(min(max(1, seconds), LONGEST_RETRY))}

    def _full(self) -> Problem:
        answered = min(self._taken, self.workers)
        waits = self._taken - answered
        return Problem(
            FULL,
            f"{answered} picture{'s are' if answered != 1 else ' is'} being answered and {waits} "
            f"wait{'s' if waits == 1 else ''}, which is all there is room for",
            self._retry(),
        )


class Doorkeeper:
    """ASGI middleware that sends a picture away as soon as its head is there, when there is no place for any.

    What an overloaded service refuses should cost it next to nothing: the routes behind would find the same, but
    only after half a millisecond of looking for them and of passing the refusal back through all of their layers.

    Parameters
    ----------
    app
        What takes pictures.
    addresses
        Where each request is at least one picture.
    desk
        Gives the desk, once the application runs.
    """

    def __init__(self, app: ASGIApp, addresses: frozenset[str], desk: Callable[[], Desk | None]) -> None:
        self.app = app
        self.addresses = addresses
        self.desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in self.addresses and scope["method"] == "POST":
            desk = self.desk()
            if desk is not None:
                desk.check(1)
        await self.app(scope, receive, send)
