"""A bounded queue and the thread that empties it into the store, so that logging does not wait for a disk."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from toolkit.errors import StoreError, first_line

logger = logging.getLogger(__name__)

QUEUE_SIZE = 10_000  # items that may wait: half a minute of a busy service, a few megabytes
BATCH = 1_000  # items in one transaction
BATCH_DELAY_S = 0.1  # wait for company before a small batch is written: each costs milliseconds
EXIT_TIMEOUT_S = 2.0  # what an exiting process grants a queue that drops
CLOSE_TIMEOUT_S = 10.0  # how long a closing queue that waits tries a store that fails; twice what a lock may take
GIVE_UP_AFTER_S = 60.0  # longest wait for room: a store that takes nothing for so long is not just busy
RETRY_S = 1.0  # pause before a batch that the store did not take is tried again

Item = TypeVar("Item")


class BackgroundWriter(Generic[Item]):
    """Hand items to a function in batches, in a thread of its own.

    What goes wrong there is logged once, when it begins, and counted. What a store that is locked,
    full or away does not take is tried again. When the queue is full, ``put`` waits for room, so that
    items come no faster than the store takes them; or, with ``drop``, it never waits: the item is
    dropped, and a batch that the store does not take is given up to make room.

    Parameters
    ----------
    write
        Stores a batch, oldest item first, or does its other duties when the batch is empty; returns
        after how many seconds it has duties again, should nothing be put in before, or None. When it
        raises StoreError or OSError the same batch is written again later, so it must store all of
        a batch or nothing; after any other error the batch is lost, for it would fail again.
    capacity
        Items that may wait beside the batch being written.
    drop
        Whether items are dropped, and counted, when that many wait.

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
        self._enough = min(BATCH, capacity)  # items that are written without waiting for more
        self._drop = drop
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._not_at_exit: Callable[[], object] | None = None  # takes back what was arranged for the end of the process
        self._closing = False
        self._hurry_at = 0.0  # when a closing queue gives up a store that fails, on the monotonic clock
        self._due: float | None = None  # when there are duties though nothing was put in, on the monotonic clock
        self._flushes = 0  # callers that wait for the queue to be empty
        self._accepted = self._done = 0  # items ever put in, and ever dealt with
        self._woken = self._answered = 0  # calls of wake, and how many of them were answered
        self._written = self._dropped = self._lost = self._errors = 0
        self._failing = False  # since the last write, and with a batch that is kept to be tried again
        self._keeping = False
        self._dropping = False  # since the queue was last empty
        self._error: Exception | None = None  # the last one
        self._missed = 0  # items lost or dropped before the store began to fail

    def put(self, item: Item) -> bool:
        """Queue an item; return False when there was no room and it was dropped.

        Raises
        ------
        StoreError
            When there was no room for a minute, in a queue that waits.
        """
        with self._changed:
            if len(self._items) < self._capacity:
                self._items.append(item)
                self._accepted += 1
                self._wake(len(self._items) in (1, self._enough))
                return True
        return self.put_many((item,)) == 1

    def put_many(self, items: Sequence[Item]) -> int:
        """Queue items in their order; return how many, the others were dropped.

        Raises
        ------
        StoreError
            When there was no room for a minute, in a queue that waits; it says how many were queued.
        """
        put = 0
        while put < len(items):
            with self._changed:
                room = self._free_slots(put, len(items))
                self._items.extend(items[put : put + room])
                self._accepted += room
                if room == 0:
                    break
                put += room
                self._wake(len(self._items) == room or len(self._items) >= self._enough > len(self._items) - room)
        if put < len(items):
            self._dropped_now(len(items) - put)
        return put

    def _free_slots(self, put: int, wanted: int) -> int:
        """How many more items may be queued now, at most those still wanted; after a wait, when it waits."""
        if threading.current_thread() is self._thread and not self._drop:
            return wanted - put  # what its own work puts in cannot wait for its own work
        if not self._drop and len(self._items) >= self._capacity:
            self._wake(True)
            if not self._changed.wait_for(lambda: len(self._items) < self._capacity, GIVE_UP_AFTER_S):
                cause = f": {first_line(self._error)}" if self._failing and self._error else ""
                raise StoreError(
                    f"{put:,} of {wanted:,} predictions were logged: {self._capacity:,} wait to be stored, and the"
                    f" store has made no room for {GIVE_UP_AFTER_S:g} s{cause}"
                )
        return min(wanted - put, max(0, self._capacity - len(self._items)))

    def _dropped_now(self, count: int) -> None:
        with self._changed:
            first, self._dropping = not self._dropping, True
            self._dropped += count
            if self._keeping:
                self._changed.notify_all()  # the batch that is kept must make room
        if first:
            logger.warning("predictions come faster than the store takes them: what finds no room is dropped")

    @property
    def backlog(self) -> int:
        """Items that wait beside the batch being written."""
        return len(self._items)

    def wake(self) -> None:
        """Have ``write`` called soon even if there is nothing to write."""
        with self._changed:
            self._woken += 1
            self._wake(True)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was put in so far is dealt with; return whether it is.

        Within the writer's own thread, and while the store fails, it does not wait.
        """
        if threading.current_thread() is self._thread:
            return False
        with self._changed:
            accepted, woken = self._accepted, self._woken

            def dealt_with() -> bool:
                return self._done >= accepted and self._answered >= woken

            self._flushes += 1
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: dealt_with() or self._keeping, timeout)
                return dealt_with()
            finally:
                self._flushes -= 1

    def close(self, timeout: float | None = None) -> None:
        """Write what is waiting and stop the thread; a later ``put`` starts it again.

        What a store that fails does not take now is lost; a queue that waits tries it for ten seconds more.
        """
        with self._changed:
            thread, self._closing = self._thread, True
            self._hurry_at = time.monotonic() + self._grace()
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        if self._not_at_exit is not None:
            self._not_at_exit()

    def stats(self) -> dict[str, int]:
        """Items waiting, written, dropped for want of room, lost to failing writes; and how many writes failed."""
        with self._changed:
            return {
                "queued": self._accepted - self._done,
                "written": self._written,
                "dropped": self._dropped,
                "lost": self._lost,
                "write_errors": self._errors,
            }

    def _wake(self, needed: bool) -> None:
        """Start the thread if there is none, which is so in a forked child as well; else tell it when needed."""
        if self._thread is None or not self._thread.is_alive():
            self._closing = False
            self._thread = threading.Thread(target=self._run, name="monitoring-writer", daemon=True)
            self._thread.start()
            # Not atexit, which a child of multiprocessing leaves out; here, for what only reads never needs it.
            from multiprocessing.util import Finalize

            self._not_at_exit = Finalize(None, self._finish, exitpriority=0).cancel
        elif needed:
            self._changed.notify_all()

    def _finish(self) -> None:
        """Close while the process ends: as long as the store takes something, in a queue that waits."""
        if self._drop:
            self.close(EXIT_TIMEOUT_S)
            return
        left: int | None = None
        while left != (left := self.stats()["queued"]):
            self.close(GIVE_UP_AFTER_S)

    def _grace(self) -> float:
        """Seconds for which a closing queue tries a store that fails."""
        return 0.0 if self._drop else CLOSE_TIMEOUT_S

    def _run(self) -> None:
        while (work := self._next()) is not None:
            batch, woken = work
            while not self._try_write(batch):
                pass
            with self._changed:
                self._done += len(batch)
                self._answered = woken
                self._changed.notify_all()

    def _next(self) -> tuple[list[Item], int] | None:
        """The next items to write and the wake-ups answered by it; None when it is time to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closing or self._woken > self._answered, self._pause())
            deadline = time.monotonic() + BATCH_DELAY_S
            while 0 < len(self._items) < self._enough and not (
                self._flushes or self._closing or self._woken > self._answered
            ):
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    break
            if self._closing and not self._items and self._woken == self._answered:
                self._thread = None  # under the lock: whoever puts something in from now on starts another
                return None
            full = len(self._items) >= self._capacity
            batch = [self._items.popleft() for _ in range(min(BATCH, len(self._items)))]
            self._dropping = self._dropping and bool(self._items)
            if full:
                self._changed.notify_all()  # there is room again
            return batch, self._woken

    def _pause(self) -> float | None:
        """Seconds until there are duties even if nothing is put in; None when there are none."""
        return None if self._due is None else max(0.0, self._due - time.monotonic())

    def _try_write(self, batch: list[Item]) -> bool:
        """Write a batch; return whether it is dealt with, written or lost, and after a pause when it is not."""
        try:
            pause = self._write(batch)
        except Exception as error:  # noqa: BLE001  # whatever it is, the predictions must go on
            return self._failed(batch, error)
        with self._changed:
            self._due = None if pause is None else time.monotonic() + pause
            if self._failing:
                missed = self._lost + self._dropped - self._missed
                logger.warning("the store works again after %d predictions were lost", missed)
            self._failing = self._keeping = False
            self._written += len(batch)
        return True

    def _failed(self, batch: list[Item], error: Exception) -> bool:
        """Count a failure, and wait a little; return whether the batch is given up."""
        with self._changed:
            if not self._failing:
                logger.error("the store fails, predictions may be lost: %s", error)
                self._failing, self._missed = True, self._lost + self._dropped
                self._hurry_at = time.monotonic() + self._grace()
            self._errors, self._error = self._errors + 1, error
            self._keeping = isinstance(error, StoreError | OSError) and not self._must_give_up()
            if self._keeping:
                self._changed.notify_all()  # nobody waits for a store that fails
                self._changed.wait_for(self._must_give_up, RETRY_S)
                return False
            self._lost += len(batch)
            self._due = None
            if self._out_of_time():  # what waits would fail as well, and each time as slowly
                count = len(batch) + len(self._items)
                logger.error("the store did not take %d predictions before the end: they are lost", count)
                self._lost += len(self._items)
                self._done += len(self._items)
                self._items.clear()
                self._changed.notify_all()
            return True

    def _must_give_up(self) -> bool:
        """Whether there is no time or no room to keep a batch that the store does not take."""
        return self._out_of_time() or (self._drop and len(self._items) >= self._capacity)

    def _out_of_time(self) -> bool:
        return self._closing and time.monotonic() >= self._hurry_at
