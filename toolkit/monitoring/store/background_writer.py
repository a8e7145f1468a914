"""A bounded queue, and a thread that writes its items to the store, so that logging does not wait for a disk."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from toolkit.errors import PredictionStoreError, first_line

logger = logging.getLogger(__name__)

QUEUE_SIZE = 10_000  # items that may wait: half a minute of a busy service, a few megabytes
BATCH = 1_000  # items in one transaction
BATCH_DELAY_S = 0.1  # how long a small batch waits for more items: each transaction costs milliseconds
EXIT_TIMEOUT_S = 2.0  # how long an exiting process waits for a queue that drops
CLOSE_TIMEOUT_S = 10.0  # how long a closing queue that waits retries; twice what a lock may take
PUT_TIMEOUT_S = 60.0  # longest wait for a free slot: a store that takes nothing for so long is not just busy
RETRY_S = 1.0  # pause before a batch that failed is written again

Item = TypeVar("Item")


class BackgroundWriter(Generic[Item]):
    """Writes items in batches, in a thread of its own. Thread-safe.

    Failures are counted, and logged once when they begin. While the store is locked, full or
    unreachable, the batch is written again. When the queue is full, ``put`` waits for a free slot, so
    that items arrive no faster than they are written. With ``drop`` it never waits: the item is
    dropped, and a batch that failed is given up to free its slots.

    Parameters
    ----------
    write
        Stores a batch, oldest item first; called with an empty one after ``wake`` and when its time has
        come. Returns in how many seconds it must be called again even if no item arrives, or None. After
        PredictionStoreError or OSError the same batch is written again, so all or nothing of it must be stored;
        after any other error the batch is lost, for it would fail again.
    capacity
        Items that may wait, in addition to the batch being written.
    drop
        Whether items are dropped, and counted, when the queue is full.

    Examples
    --------
    >>> stored = []
    >>> writer = BackgroundWriter(stored.extend)
    >>> writer.put("a"), writer.put("b"), writer.flush(timeout=10)
    (True, True, True)
    >>> writer.close()
    >>> stored, writer.stats()["written"]
    (['a', 'b'], 2)
    """

    def __init__(
        self, write: Callable[[list[Item]], float | None], capacity: int = QUEUE_SIZE, *, drop: bool = False
    ) -> None:
        self._write = write
        self._capacity = capacity
        self._full_batch = min(BATCH, capacity)  # items that are written without a delay
        self._drop = drop
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._cancel_finalizer: Callable[[], object] | None = None
        self._closing = False
        self._give_up_at = 0.0  # when a closing queue stops to retry, on the monotonic clock
        self._due: float | None = None  # when to call ``write`` even if no item arrives, on the monotonic clock
        self._flushes = 0  # callers that wait for the queue to be empty
        self._accepted = 0  # items ever queued
        self._woken = self._answered = 0  # calls of wake, and how many of them were answered
        self._written = self._dropped = self._lost = self._errors = 0
        self._failure: Exception | None = None  # of the last write
        self._retrying = False  # whether its batch is kept to be written again
        self._dropping = False  # since the queue was last empty
        self._missed = 0  # items lost or dropped before the store began to fail

    def put(self, item: Item) -> bool:
        """Queue an item; return False when it was dropped.

        Raises
        ------
        PredictionStoreError
            When no slot became free within a minute, in a queue that waits.
        """
        with self._changed:
            if len(self._items) < self._capacity:
                self._items.append(item)
                self._accepted += 1
                self._notify(len(self._items) in (1, self._full_batch))
                return True
        return self.put_many((item,)) == 1

    def put_many(self, items: Sequence[Item]) -> int:
        """Queue items in their order; return how many. The others were dropped.

        Raises
        ------
        PredictionStoreError
            When no slot became free within a minute, in a queue that waits; the message has the number queued.
        """
        put = 0
        with self._changed:
            while put < len(items) and (free := self._free_slots(put, len(items))):
                self._items.extend(items[put : put + free])
                self._accepted += free
                put += free
                waiting = len(self._items)
                self._notify(waiting == free or waiting >= self._full_batch > waiting - free)
            if put < len(items):
                self._dropped += len(items) - put
                if self._retrying:
                    self._changed.notify_all()  # the batch to be retried must free its slots
                if not self._dropping:
                    self._dropping = True
                    logger.warning("predictions arrive faster than they are stored: some are dropped")
        return put

    def _free_slots(self, put: int, wanted: int) -> int:
        """The number of items that may be queued now, after a wait if the queue waits."""
        if threading.current_thread() is self._thread and not self._drop:
            return wanted - put  # items of ``write`` itself cannot wait for it
        if not self._drop and len(self._items) >= self._capacity:
            self._notify(True)
            if not self._changed.wait_for(lambda: len(self._items) < self._capacity, PUT_TIMEOUT_S):
                cause = f": {self.problem}" if self.problem else ""
                raise PredictionStoreError(
                    f"{put:,} of {wanted:,} predictions were logged: {self._capacity:,} wait to be stored, and the"
                    f" store has taken nothing for {PUT_TIMEOUT_S:g} s{cause}"
                )
        return min(wanted - put, max(0, self._capacity - len(self._items)))

    @property
    def backlog(self) -> int:
        """Items that wait, without the batch being written."""
        return len(self._items)

    @property
    def problem(self) -> str | None:
        """Why the last write failed; None when it succeeded."""
        return first_line(self._failure) if self._failure else None

    def wake(self) -> None:
        """Have ``write`` called soon even if no item arrives."""
        with self._changed:
            self._woken += 1
            self._notify(True)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all items queued so far are written or lost; return whether they are.

        Does not wait in the writer's own thread, nor while the store fails.
        """
        if threading.current_thread() is self._thread:
            return False
        with self._changed:
            accepted, woken = self._accepted, self._woken

            def is_done() -> bool:
                return self._written + self._lost >= accepted and self._answered >= woken

            self._flushes += 1
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: is_done() or self._retrying, timeout)
                return is_done()
            finally:
                self._flushes -= 1

    def close(self, timeout: float | None = None) -> None:
        """Write the waiting items and stop the thread; a later ``put`` starts it again.

        While the store fails, a queue that waits retries for ten seconds; then the items are lost.
        """
        with self._changed:
            thread, self._closing = self._thread, True
            self._give_up_at = time.monotonic() + self._grace()
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        if self._cancel_finalizer is not None:
            self._cancel_finalizer()

    def stats(self) -> dict[str, int]:
        """Numbers of items waiting, written, dropped and lost by failed writes; and of failed writes."""
        with self._changed:
            return {
                "queued": self._accepted - self._written - self._lost,
                "written": self._written,
                "dropped": self._dropped,
                "lost": self._lost,
                "write_errors": self._errors,
            }

    def _notify(self, needed: bool) -> None:
        """Start the thread if there is none, as in a forked child; else notify it if needed."""
        if self._thread is None or not self._thread.is_alive():
            self._closing = False
            self._thread = threading.Thread(target=self._run, name="monitoring-writer", daemon=True)
            self._thread.start()
            # Not atexit, which children of multiprocessing skip; imported here, for readers never need it.
            from multiprocessing.util import Finalize

            self._cancel_finalizer = Finalize(None, self._finish, exitpriority=0).cancel
        elif needed:
            self._changed.notify_all()

    def _finish(self) -> None:
        """Close while the process exits: as long as the store takes items, in a queue that waits."""
        if self._drop:
            self.close(EXIT_TIMEOUT_S)
            return
        left: int | None = None
        while left != (left := self.stats()["queued"]):
            self.close(PUT_TIMEOUT_S)

    def _grace(self) -> float:
        """Seconds for which a closing queue retries."""
        return 0.0 if self._drop else CLOSE_TIMEOUT_S

    def _run(self) -> None:
        while (work := self._next()) is not None:
            batch, woken = work
            while not self._try_write(batch):
                pass
            with self._changed:
                self._answered = woken
                self._changed.notify_all()

    def _next(self) -> tuple[list[Item], int] | None:
        """The next batch and the number of wake-ups that it answers; None when the thread must stop."""
        with self._changed:
            pause = None if self._due is None else max(0.0, self._due - time.monotonic())
            self._changed.wait_for(lambda: self._items or self._closing or self._woken > self._answered, pause)
            deadline = time.monotonic() + BATCH_DELAY_S
            while 0 < len(self._items) < self._full_batch and not (
                self._flushes or self._closing or self._woken > self._answered
            ):
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    break
            if self._closing and not self._items and self._woken == self._answered:
                self._thread = None  # under the lock: the next item starts another
                return None
            full = len(self._items) >= self._capacity
            batch = [self._items.popleft() for _ in range(min(BATCH, len(self._items)))]
            self._dropping = self._dropping and bool(self._items)
            if full:
                self._changed.notify_all()  # there are free slots again
            return batch, self._woken

    def _try_write(self, batch: list[Item]) -> bool:
        """Write a batch; return whether it is written or lost, and after a pause if it must be written again."""
        try:
            pause = self._write(batch)
        except Exception as error:  # noqa: BLE001  # the thread must go on
            return self._failed(batch, error)
        with self._changed:
            self._due = None if pause is None else time.monotonic() + pause
            if self._failure:
                missed = self._lost + self._dropped - self._missed
                logger.warning("the store works again after %d predictions were lost", missed)
            self._failure, self._retrying = None, False
            self._written += len(batch)
        return True

    def _failed(self, batch: list[Item], error: Exception) -> bool:
        """Count a failure, and pause; return whether the batch is given up."""
        with self._changed:
            if not self._failure:
                logger.error("the store fails, predictions may be lost: %s", error)
                self._missed = self._lost + self._dropped
                self._give_up_at = time.monotonic() + self._grace()
            self._errors, self._failure = self._errors + 1, error
            self._retrying = isinstance(error, PredictionStoreError | OSError) and not self._must_give_up()
            if self._retrying:
                self._changed.notify_all()  # ``flush`` does not wait while the store fails
                self._changed.wait_for(self._must_give_up, RETRY_S)
                return False
            self._lost += len(batch)
            self._due = None
            if self._out_of_time():  # the waiting items would fail as slowly, each batch
                count = len(batch) + len(self._items)
                logger.error("the store did not take %d predictions before the end: they are lost", count)
                self._lost += len(self._items)
                self._items.clear()
                self._changed.notify_all()
            return True

    def _must_give_up(self) -> bool:
        """Whether there is no time, or no free slot, to write a failed batch again."""
        return self._out_of_time() or (self._drop and len(self._items) >= self._capacity)

    def _out_of_time(self) -> bool:
        return self._closing and time.monotonic() >= self._give_up_at
