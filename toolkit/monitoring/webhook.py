"""Alerts by HTTP to an address of the user's, tried again while nobody answers there.

The body is a JSON object: the fields of the notice and its ``key``.
"""

import atexit
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from toolkit.errors import SettingsError
from toolkit.monitoring.posting import Outcome, origin, parse_address, post
from toolkit.monitoring.sinks import LAST_SECONDS, Notice, Sink

logger = logging.getLogger(__name__)

CAPACITY = 1_000  # notices that may wait
ANSWER_SECONDS = 10.0  # what one attempt may take
PATIENCE_SECONDS = 4 * 3600.0  # before a notice is given up; the next reminder comes after six hours
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0  # seconds; each pause is twice the one before


class Waiting(NamedTuple):
    """A notice that has not been delivered yet, and since when, by the monotonic clock."""

    key: str
    body: bytes
    since: float


class Webhook(Sink):
    """Send notices to an address, from a bounded queue in a thread of its own.

    An attempt that fails, or is answered with 429 or 5xx, is made again after pauses that grow from
    a second to five minutes, or that the receiver asks for, until a notice is four hours old.
    Meanwhile others get their turn, but what is told of one alert arrives in its order. Any other
    answer is final. Redirects are not followed, and certificates are checked.

    Parameters
    ----------
    url
        ``https://...``, or ``http://...`` on this machine. Only its host is ever logged: the path
        of a webhook is often its key.
    secret
        Signs each request, see ``toolkit.monitoring.posting.verify``.
    answer_seconds
        What one attempt may take.
    first_pause
        Seconds before the first repetition.
    patience
        Seconds after which a notice is given up.
    capacity
        Notices that may wait; more are dropped and counted.
    clock
        Seconds since 1970.

    Raises
    ------
    SettingsError
        When the address is none that alerts may be sent to, or the secret is empty.

    Examples
    --------
    >>> Webhook("https://hooks.example.com/services/T0/B0/key", secret="open sesame")
    Webhook('https://hooks.example.com')
    >>> Webhook("ftp://x")
    Traceback (most recent call last):
        ...
    toolkit.errors.SettingsError: webhook must be an https address, or http on this machine, got ftp://x
    """

    def __init__(
        self,
        url: str,
        secret: str | None = None,
        *,
        answer_seconds: float = ANSWER_SECONDS,
        first_pause: float = FIRST_PAUSE,
        patience: float = PATIENCE_SECONDS,
        capacity: int = CAPACITY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if secret == "":
            raise SettingsError("the webhook's secret must not be empty")
        self._address = parse_address(url)
        self._origin = origin(url)
        self._secret = secret
        self._answer_seconds = answer_seconds
        self._first_pause = first_pause
        self._patience = patience
        self._capacity = capacity
        self._clock = clock
        self._queue: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed_at: float | None = None  # monotonic; when the thread has to be gone
        self._pause, self._resume_at = 0.0, 0.0
        self._failing = False
        self._sent = self._failed = self._dropped = 0

    def __repr__(self) -> str:
        return f"Webhook({self._origin!r})"

    def send(self, notice: Notice) -> None:
        """Queue a notice, or drop and count it when there is no room."""
        entry = Waiting(notice.key, json.dumps(notice.to_dict(), allow_nan=False).encode(), time.monotonic())
        with self._changed:
            if len(self._queue) >= self._capacity:
                self._dropped += 1
                return
            self._queue.append(entry)
            self._wake()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until nothing is waiting; return False when time ran out."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue, timeout)

    def stats(self) -> dict[str, int]:
        """Notices delivered, given up, dropped because the queue was full, and waiting."""
        with self._changed:
            return {
                "sent": self._sent,
                "failed": self._failed,
                "dropped": self._dropped,
                "waiting": len(self._queue),
            }

    def close(self) -> None:
        """Try what is waiting once more and stop, within two seconds; what is left counts as failed."""
        with self._changed:
            thread, self._closed_at = self._thread, time.monotonic() + LAST_SECONDS
            self._changed.notify_all()
        if thread is not None:
            thread.join(LAST_SECONDS)
        atexit.unregister(self.close)

    # The thread

    def _wake(self) -> None:
        """Start the thread if there is none, which is so in a forked child as well; else tell it."""
        if self._thread is None or not self._thread.is_alive():
            self._closed_at = None
            self._thread = threading.Thread(target=self._run, name="alert-webhook", daemon=True)
            self._thread.start()
            atexit.register(self.close)
        self._changed.notify_all()

    def _run(self) -> None:
        while (entry := self._next()) is not None:
            outcome = post(self._address, entry.body, self._secret, self._clock(), self._answer_seconds)
            self._settle(entry, outcome)
            self._note(outcome)

    def _next(self) -> Waiting | None:
        """The notice to try next, once its time has come; None when it is time to stop."""
        with self._changed:
            while self._closed_at is None:
                pause = self._resume_at - time.monotonic() if self._queue else None
                if pause is not None and pause <= 0:
                    return self._queue[0]
                self._changed.wait(pause)
            if self._queue and time.monotonic() < self._closed_at:
                return self._queue[0]
            self._failed += len(self._queue)
            self._queue.clear()
            self._thread = None  # under the lock: whoever sends from now on starts another
            self._changed.notify_all()
            return None

    def _settle(self, entry: Waiting, outcome: Outcome) -> None:
        with self._changed:
            now, delivered = time.monotonic(), not outcome.reason
            again = outcome.again and self._closed_at is None and now - entry.since < self._patience
            if again:  # those of the same alert wait behind it, the others come first
                same = [waiting for waiting in self._queue if waiting.key == entry.key]
                others = [waiting for waiting in self._queue if waiting.key != entry.key]
                self._queue = deque(others + same)
            else:
                self._queue.popleft()
                self._sent += delivered
                self._failed += not delivered
            self._pause = min(2 * self._pause or self._first_pause, LONGEST_PAUSE) if outcome.again else 0.0
            self._resume_at = now + max(self._pause, outcome.retry_after)
            self._changed.notify_all()

    def _note(self, outcome: Outcome) -> None:
        """Log the first of several failures, and their end."""
        if outcome.reason and not self._failing:
            logger.error("alerts cannot be delivered to %s: %s", self._origin, outcome.reason)
        elif self._failing and not outcome.reason:
            logger.warning("alerts are delivered to %s again", self._origin)
        self._failing = bool(outcome.reason)
