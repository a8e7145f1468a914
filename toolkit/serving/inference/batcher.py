"""Worker threads that decode pictures, and run the model on those that are ready.

A worker whose hands are free runs the model if a picture is decoded and the engine has a lane free,
and else decodes the next picture. So nothing ever waits for a batch to fill: a batch is what was
decoded while the engine was busy. On an engine with as many lanes as workers each picture goes
straight through; on one with a single lane, such as a GPU, the others decode meanwhile.

A picture whose client has left, or whose deadline has passed, is skipped. One that cannot be decoded
fails alone.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import ImageError
from toolkit.images.decoding import Limits, Picture, load_picture
from toolkit.serving.inference.result import Classified, ImageSource
from toolkit.serving.models.manager import LiveModel
from toolkit.serving.problems import DEADLINE, Problem, of_picture

LARGEST_BATCH = 32  # pictures; in a larger one the first would wait long for the last


@dataclass(frozen=True, eq=False)
class _Asked:
    """A picture that somebody waits for; times are seconds of ``perf_counter``."""

    read: ImageSource
    model: Callable[[], LiveModel]
    finish: Callable[[Classified], Any]
    future: asyncio.Future[Any]
    at: float = field(default_factory=time.perf_counter)

    @property
    def gone(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.cancelled()

    def answer(self, value: Any) -> None:
        self._tell(self.future.set_result, value)

    def fail(self, error: Exception) -> None:
        self._tell(self.future.set_exception, error)

    def drop(self) -> None:
        self._tell(self.future.cancel)

    def _tell(self, how: Callable[..., object], *news: object) -> None:
        def tell() -> None:
            if not self.future.done():  # else nobody waits any more
                how(*news)

        with suppress(RuntimeError):  # the event loop has ended
            self.future.get_loop().call_soon_threadsafe(tell)


@dataclass(frozen=True, eq=False)
class _Decoded:
    """A picture that the model may be run on; it was decoded from ``began`` to ``ended``."""

    asked: _Asked
    model: LiveModel
    picture: Picture
    began: float
    ended: float

    def classified(self, probabilities: NDArray[np.float32], began: float, ended: float) -> Classified:
        """With the answer of a run of the model from ``began`` to ``ended``."""
        queue = (self.began - self.asked.at) + (began - self.ended)
        seconds = {
            "decode": self.ended - self.began, "queue": queue, "infer": ended - began, "total": ended - self.asked.at,
        }  # fmt: skip
        timings = {stage: round(1000 * value, 3) for stage, value in seconds.items()}
        return Classified(self.model, self.picture, probabilities, timings, self.asked.read)


class Batcher:
    """The workers, and the pictures between their steps.

    Parameters
    ----------
    workers
        Threads; they begin with the first picture.
    limits
        What one picture may be.
    largest_batch
        Pictures that the model is run on at once.
    prepare
        Called once in each thread.
    on_batch
        Called in a worker after a run of the model: with the number of pictures, and the seconds that
        workers spent on them, decoding included.
    """

    def __init__(
        self,
        workers: int,
        limits: Limits,
        *,
        largest_batch: int = LARGEST_BATCH,
        prepare: Callable[[], None] | None = None,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self._limits = limits
        self._largest = largest_batch
        self._prepare = prepare
        self._on_batch = on_batch
        self._changed = threading.Condition()
        self._waiting: deque[_Asked] = deque()
        self._decoded: deque[_Decoded] = deque()
        self._running = 0  # lanes of the engine that are taken
        self._busy = workers  # those that are at a step; each begins as if it came from one
        self._resting = 0  # workers that take no step
        self._closing = False
        self._threads = [threading.Thread(target=self._work, name=f"predict-{number}") for number in range(workers)]

    async def run(
        self,
        read: ImageSource,
        model: Callable[[], LiveModel],
        finish: Callable[[Classified], Any],
        seconds: float | None = None,
    ) -> Any:
        """What ``finish`` makes of one picture; to cancel this takes the picture out of the queue.

        Parameters
        ----------
        read
            Gives the encoded picture; called in a worker, as the two others are.
        model
            Gives the model to run when the picture's turn has come.
        finish
            Makes the answer.
        seconds
            How long it may take.

        Raises
        ------
        Problem
            The picture cannot be used, no model is there, or the time is over.
        """
        asked = _Asked(read, model, finish, asyncio.get_running_loop().create_future())
        self._take(asked)
        try:
            async with asyncio.timeout(seconds):
                return await asked.future
        except TimeoutError:
            raise Problem(DEADLINE, f"the picture could not be answered within {seconds:g} s") from None

    def rest(self, workers: int) -> None:
        """Leave processor time to others: so many workers take nothing more on until this is said anew; one goes on."""
        with self._changed:
            self._resting = min(workers, len(self._threads) - 1)
            self._changed.notify_all()

    def close(self) -> None:
        """Finish what runs, drop what waits."""
        with self._changed:
            self._closing = True
            dropped = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for asked in dropped:
            asked.drop()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _take(self, asked: _Asked) -> None:
        with self._changed:
            if self._closing:
                asked.drop()
                return
            if self._threads[0].ident is None:
                for thread in self._threads:
                    thread.start()
            self._waiting.append(asked)
            self._changed.notify()

    def _work(self) -> None:
        if self._prepare is not None:
            self._prepare()
        while step := self._next_step():
            step()
            del step  # a worker that waits would keep the model of its last batch in memory

    def _next_step(self) -> Callable[[], None] | None:
        """Wait for something to do; nothing is left to do when it is None."""
        with self._changed:
            self._busy -= 1
            while (step := self._step()) is None:
                if self._closing and not self._decoded:
                    self._changed.notify_all()
                    return None
                self._changed.wait()
            self._busy += 1
            if self._waiting or self._decoded:
                self._changed.notify()  # there may be something to do for another worker too
            return step

    def _step(self) -> Callable[[], None] | None:
        """What a worker may do now, if there is anything and it is not to rest."""
        if self._busy >= len(self._threads) - self._resting:
            return None
        if batch := self._ready_batch():
            self._running += 1
            return partial(self._infer, batch)
        if self._waiting and len(self._decoded) < 2 * self._largest:
            return partial(self._decode, self._waiting.popleft())
        return None

    def _ready_batch(self) -> list[_Decoded]:
        """The pictures to run the model on now: of one model, and a fair share for each lane that is free."""
        while self._decoded and self._decoded[0].asked.gone:
            self._decoded.popleft()
        if not self._decoded:
            return []
        model = self._decoded[0].model
        free = model.engine.lanes - self._running
        share = min(self._largest, math.ceil(len(self._decoded) / free)) if free > 0 else 0
        batch: list[_Decoded] = []
        while self._decoded and len(batch) < share and self._decoded[0].model is model:
            batch.append(self._decoded.popleft())
        return batch

    def _decode(self, asked: _Asked) -> None:
        if asked.gone:
            return
        began = time.perf_counter()
        try:
            model = asked.model()
            picture = load_picture(asked.read(), model.bundle.card.image_size, self._limits)
        except ImageError as error:
            asked.fail(of_picture(error))
        except Exception as error:  # noqa: BLE001  whatever it is, it belongs to this picture alone
            asked.fail(error)
        else:
            with self._changed:
                self._decoded.append(_Decoded(asked, model, picture, began, time.perf_counter()))

    def _infer(self, batch: Sequence[_Decoded]) -> None:
        """Run the model on pictures, and answer them."""
        began = time.perf_counter()
        try:
            pictures = np.stack([one.picture.pixels for one in batch])  # (N, H, W, 3)
            rows = batch[0].model.engine.infer(pictures)  # (N, K)
        except Exception as error:  # noqa: BLE001  each of them is told
            for one in batch:
                one.asked.fail(error)
            return
        finally:
            ended = time.perf_counter()
            with self._changed:
                self._running -= 1
                self._changed.notify()
        for one, row in zip(batch, rows, strict=True):
            try:
                one.asked.answer(one.asked.finish(one.classified(row, began, ended)))
            except Exception as error:  # noqa: BLE001  whatever it is, it belongs to this picture alone
                one.asked.fail(error)
        if self._on_batch is not None:
            self._on_batch(len(batch), ended - began + sum(one.ended - one.began for one in batch))
