"""Admission control: a bounded number of images and of body bytes; requests beyond it are rejected immediately."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from toolkit.serving.problems import OVERLOADED, Problem

MAX_RETRY_AFTER_S = 30
DURATION_DECAY = 0.95  # weight of the past in the running mean of an image's duration


class AdmissionController:
    """Slots for images, and memory for request bodies, which are reserved or refused at once.

    All methods but ``record_duration`` are called on the event loop, so that no lock is needed.

    Parameters
    ----------
    threads
        Worker threads, each of which has a slot.
    max_queue
        Slots for images that wait while all threads are busy.
    max_bytes
        Largest sum of the sizes of bodies in memory.

    Examples
    --------
    >>> admission = AdmissionController(threads=1, max_queue=1)
    >>> with admission.slots(2):
    ...     admission.in_flight
    ...     with admission.slots(1):
    ...         pass
    Traceback (most recent call last):
        ...
    toolkit.serving.problems.Problem: 503: the queue is full: 1 image is being answered and 1 waits
    >>> admission.in_flight
    0
    """

    def __init__(self, threads: int, max_queue: int, max_bytes: int = 2**62) -> None:
        self.threads = threads
        self.free_slots = threads + max_queue  # images that can be accepted now
        self._slots = self.free_slots
        self._max_bytes = max_bytes
        self._bytes = 0
        self._mean_duration = 0.0  # seconds of work on one image

    @property
    def in_flight(self) -> int:
        """Images that have a slot: being answered or waiting."""
        return self._slots - self.free_slots

    def require_slot(self, count: int) -> None:
        """Raise what ``slots`` would raise, without taking any."""
        if count > self.free_slots:
            answered = min(self.in_flight, self.threads)
            waiting = self.in_flight - answered
            images, wait = "images are" if answered != 1 else "image is", "waits" if waiting == 1 else "wait"
            detail = f"the queue is full: {answered} {images} being answered and {waiting} {wait}"
            raise Problem(OVERLOADED, detail, self._retry_after())

    @contextmanager
    def slots(self, count: int) -> Iterator[None]:
        """Hold ``count`` slots, all or none; 503 with ``Retry-After`` if there are fewer."""
        self.require_slot(count)
        self.free_slots -= count
        try:
            yield
        finally:
            self.free_slots += count

    @contextmanager
    def reserve_bytes(self, size: int) -> Iterator[None]:
        """Hold the memory of a body while it arrives and is worked on; 503 with ``Retry-After`` if there is less."""
        if self._bytes + size > self._max_bytes:
            detail = f"the memory for bodies is full: {self._bytes / 2**20:.0f} MiB are being worked on"
            raise Problem(OVERLOADED, detail, self._retry_after())
        self._bytes += size
        try:
            yield
        finally:
            self._bytes -= size

    def record_duration(self, images: int, seconds: float) -> None:
        """Record the work on some images, from which ``Retry-After`` is estimated; called from a worker thread."""
        each = seconds / images
        mean = self._mean_duration
        self._mean_duration = DURATION_DECAY * mean + (1 - DURATION_DECAY) * each if mean else each

    def _retry_after(self) -> dict[str, str]:
        """Seconds until the present images are answered, at the recent speed."""
        seconds = math.ceil(self.in_flight * self._mean_duration / self.threads)
        return {"Retry-After": str(min(max(1, seconds), MAX_RETRY_AFTER_S))}
