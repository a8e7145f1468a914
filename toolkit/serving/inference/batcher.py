"""Worker threads that decode images, and run the model on those that are ready.

A worker whose hands are free runs the model if an image is decoded and the engine has a lane free,
and else decodes the next image. So nothing ever waits for a batch to fill: a batch is what was
decoded while the engine was busy. On an engine with as many lanes as workers each image goes
straight through; on one with a single lane, such as a GPU, the others decode meanwhile.

An image whose client has left, or whose deadline has passed, is skipped. One that cannot be decoded
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
from toolkit.images.decoding import DecodedImage, ImageLimits, load_image
from toolkit.serving.inference.result import ImageSource, InferenceResult
from toolkit.serving.models.manager import LiveModel
from toolkit.serving.problems import DEADLINE_EXCEEDED, Problem, from_image_error

MAX_BATCH = 32  # images; in a larger one the first would wait long for the last


@dataclass(frozen=True, eq=False)
class _PendingImage:
    """An image that somebody waits for; times are seconds of ``perf_counter``."""

    source: ImageSource
    model: Callable[[], LiveModel]
    finish: Callable[[InferenceResult], Any]
    future: asyncio.Future[Any]
    at: float = field(default_factory=time.perf_counter)

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.cancelled()

    def resolve(self, value: Any) -> None:
        self._settle(self.future.set_result, value)

    def fail(self, error: Exception) -> None:
        self._settle(self.future.set_exception, error)

    def drop(self) -> None:
        self._settle(self.future.cancel)

    def _settle(self, how: Callable[..., object], *news: object) -> None:
        def tell() -> None:
            if not self.future.done():  # else nobody waits any more
                how(*news)

        with suppress(RuntimeError):  # the event loop has ended
            self.future.get_loop().call_soon_threadsafe(tell)


@dataclass(frozen=True, eq=False)
class _DecodedImage:
    """An image that the model may be run on; it was decoded from ``began`` to ``ended``."""

    pending: _PendingImage
    model: LiveModel
    image: DecodedImage
    started: float
    ended: float

    def classified(self, probabilities: NDArray[np.float32], began: float, ended: float) -> InferenceResult:
        """With the answer of a run of the model from ``began`` to ``ended``."""
        queue = (self.started - self.pending.at) + (began - self.ended)
        seconds = {
            "decode": self.ended - self.started,
            "queue": queue,
            "infer": ended - began,
            "total": ended - self.pending.at,
        }
        timings = {stage: round(1000 * value, 3) for stage, value in seconds.items()}
        return InferenceResult(self.model, self.image, probabilities, timings, self.pending.source)


class Batcher:
    """The workers, and the images between their steps.

    Parameters
    ----------
    workers
        Threads; they begin with the first image.
    limits
        What one image may be.
    largest_batch
        Images that the model is run on at once.
    prepare
        Called once in each thread.
    on_batch
        Called in a worker after a run of the model: with the number of images, and the seconds that
        workers spent on them, decoding included.
    """

    def __init__(
        self,
        workers: int,
        limits: ImageLimits,
        *,
        largest_batch: int = MAX_BATCH,
        prepare: Callable[[], None] | None = None,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self._limits = limits
        self._largest = largest_batch
        self._prepare = prepare
        self._on_batch = on_batch
        self._changed = threading.Condition()
        self._waiting: deque[_PendingImage] = deque()
        self._decoded: deque[_DecodedImage] = deque()
        self._running = 0  # lanes of the engine that are taken
        self._busy = workers  # those that are at a step; each begins as if it came from one
        self._paused = 0  # workers that take no step
        self._closing = False
        self._threads = [threading.Thread(target=self._work, name=f"predict-{number}") for number in range(workers)]

    async def run(
        self,
        read: ImageSource,
        model: Callable[[], LiveModel],
        finish: Callable[[InferenceResult], Any],
        seconds: float | None = None,
    ) -> Any:
        """What ``finish`` makes of one image; to cancel this takes the image out of the queue.

        Parameters
        ----------
        read
            Gives the encoded image; called in a worker, as the two others are.
        model
            Gives the model to run when the image's turn has come.
        finish
            Makes the answer.
        seconds
            How long it may take.

        Raises
        ------
        Problem
            The image cannot be used, no model is there, or the time is over.
        """
        asked = _PendingImage(read, model, finish, asyncio.get_running_loop().create_future())
        self._enqueue(asked)
        try:
            async with asyncio.timeout(seconds):
                return await asked.future
        except TimeoutError:
            raise Problem(DEADLINE_EXCEEDED, f"the image could not be answered within {seconds:g} s") from None

    def pause(self, workers: int) -> None:
        """Leave processor time to others: so many workers take nothing more on until this is said anew; one goes on."""
        with self._changed:
            self._paused = min(workers, len(self._threads) - 1)
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

    def _enqueue(self, asked: _PendingImage) -> None:
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
        if self._busy >= len(self._threads) - self._paused:
            return None
        if batch := self._ready_batch():
            self._running += 1
            return partial(self._infer, batch)
        if self._waiting and len(self._decoded) < 2 * self._largest:
            return partial(self._decode, self._waiting.popleft())
        return None

    def _ready_batch(self) -> list[_DecodedImage]:
        """The images to run the model on now: of one model, and a fair share for each lane that is free."""
        while self._decoded and self._decoded[0].pending.cancelled:
            self._decoded.popleft()
        if not self._decoded:
            return []
        model = self._decoded[0].model
        free = model.engine.concurrency - self._running
        share = min(self._largest, math.ceil(len(self._decoded) / free)) if free > 0 else 0
        batch: list[_DecodedImage] = []
        while self._decoded and len(batch) < share and self._decoded[0].model is model:
            batch.append(self._decoded.popleft())
        return batch

    def _decode(self, asked: _PendingImage) -> None:
        if asked.cancelled:
            return
        began = time.perf_counter()
        try:
            model = asked.model()
            image = load_image(asked.source(), model.bundle.card.image_size, self._limits)
        except ImageError as error:
            asked.fail(from_image_error(error))
        except Exception as error:  # noqa: BLE001  whatever it is, it belongs to this image alone
            asked.fail(error)
        else:
            with self._changed:
                self._decoded.append(_DecodedImage(asked, model, image, began, time.perf_counter()))

    def _infer(self, batch: Sequence[_DecodedImage]) -> None:
        """Run the model on images, and answer them."""
        began = time.perf_counter()
        try:
            images = np.stack([one.image.pixels for one in batch])  # (N, H, W, 3)
            rows = batch[0].model.engine.infer(images)  # (N, K)
        except Exception as error:  # noqa: BLE001  each of them is told
            for one in batch:
                one.pending.fail(error)
            return
        finally:
            ended = time.perf_counter()
            with self._changed:
                self._running -= 1
                self._changed.notify()
        for one, row in zip(batch, rows, strict=True):
            try:
                one.pending.resolve(one.pending.finish(one.classified(row, began, ended)))
            except Exception as error:  # noqa: BLE001  whatever it is, it belongs to this image alone
                one.pending.fail(error)
        if self._on_batch is not None:
            self._on_batch(len(batch), ended - began + sum(one.ended - one.started for one in batch))
