"""Dynamic batching: worker threads that decode images, and run the model on those that are decoded.

A free thread runs the model if an image is decoded and the engine has a free stream, and otherwise decodes the next
image. No image waits for a batch to fill: a batch is what was decoded while the engine was busy. On an engine with as
many streams as threads each image passes straight through; on one with a single stream, such as a GPU, the other
threads decode meanwhile.

An image whose client has disconnected, or whose deadline has passed, is skipped; one that cannot be decoded fails
alone.
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

MAX_BATCH = 32  # images; in a larger batch the first one would wait long for the last


@dataclass(frozen=True, eq=False)
class _PendingImage:
    """An image that is to be answered; times are seconds of ``perf_counter``."""

    source: ImageSource
    model: Callable[[], LiveModel]
    finish: Callable[[InferenceResult], Any]
    future: asyncio.Future[Any]
    queued_at: float = field(default_factory=time.perf_counter)

    def fail(self, error: Exception) -> None:
        self.settle(self.future.set_exception, error)

    def settle(self, setter: Callable[..., object], *value: object) -> None:
        """Call one of the future's methods on its event loop, unless the future is done."""

        def set_if_pending() -> None:
            if not self.future.done():
                setter(*value)

        with suppress(RuntimeError):  # the event loop has ended
            self.future.get_loop().call_soon_threadsafe(set_if_pending)


@dataclass(frozen=True, eq=False)
class _DecodedImage:
    """An image that the model can be run on; it was decoded from ``started`` to ``ended``."""

    pending: _PendingImage
    model: LiveModel
    image: DecodedImage
    started: float
    ended: float

    def result(self, probabilities: NDArray[np.float32], started: float, ended: float) -> InferenceResult:
        """The result of a run of the model from ``started`` to ``ended``."""
        seconds = {
            "decode": self.ended - self.started,
            "queue": (self.started - self.pending.queued_at) + (started - self.ended),
            "infer": ended - started,
            "total": ended - self.pending.queued_at,
        }
        timings = {stage: round(1000 * value, 3) for stage, value in seconds.items()}
        return InferenceResult(self.model, self.image, probabilities, timings, self.pending.source)


class Batcher:
    """Worker threads, and the images between their steps.

    Parameters
    ----------
    threads
        Number of threads; they start with the first image.
    limits
        Limits of one image.
    max_batch
        Largest number of images in one run of the model.
    prepare
        Called once in each thread.
    on_batch
        Called in a thread after each run of the model, with the number of images and the seconds that threads spent on
        them, decoding included.
    """

    def __init__(
        self,
        threads: int,
        limits: ImageLimits,
        *,
        max_batch: int = MAX_BATCH,
        prepare: Callable[[], None] | None = None,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self._limits = limits
        self._max_batch = max_batch
        self._prepare = prepare
        self._on_batch = on_batch
        self._changed = threading.Condition()
        self._waiting: deque[_PendingImage] = deque()
        self._decoded: deque[_DecodedImage] = deque()
        self._running = 0  # streams of the engine in use
        self._busy = threads  # those that run a step; each starts as if it came from one
        self._paused = 0  # threads that take no step
        self._closing = False
        self._threads = [threading.Thread(target=self._work, name=f"predict-{number}") for number in range(threads)]

    async def run(
        self,
        read: ImageSource,
        model: Callable[[], LiveModel],
        finish: Callable[[InferenceResult], Any],
        seconds: float | None = None,
    ) -> Any:
        """Answer one image with what ``finish`` makes of its result; cancelling this removes it from the queue.

        Parameters
        ----------
        read
            Returns the encoded image; called in a worker thread, as ``model`` and ``finish`` are.
        model
            Returns the model to run, when the image is decoded.
        finish
            Makes the answer.
        seconds
            Longest time; unlimited if None.

        Raises
        ------
        Problem
            The image cannot be used, no model is loaded, or the time is over.
        """
        pending = _PendingImage(read, model, finish, asyncio.get_running_loop().create_future())
        with self._changed:
            if self._closing:
                raise asyncio.CancelledError
            if self._threads[0].ident is None:
                for thread in self._threads:
                    thread.start()
            self._waiting.append(pending)
            self._changed.notify()
        try:
            async with asyncio.timeout(seconds):
                return await pending.future
        except TimeoutError:
            raise Problem(DEADLINE_EXCEEDED, f"the image could not be answered within {seconds:g} s") from None

    def pause(self, threads: int) -> None:
        """Pause that many threads after their present step, but never all; 0 resumes them."""
        with self._changed:
            self._paused = min(threads, len(self._threads) - 1)
            self._changed.notify_all()

    def close(self) -> None:
        """Finish the images that are being worked on, and cancel those that wait."""
        with self._changed:
            self._closing = True
            dropped = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for pending in dropped:
            pending.settle(pending.future.cancel)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _work(self) -> None:
        if self._prepare is not None:
            self._prepare()
        while step := self._next_step():
            step()
            del step  # a waiting thread would keep the model of its last batch in memory

    def _next_step(self) -> Callable[[], None] | None:
        """Wait for the next step; None when the batcher is closed and nothing is left."""
        with self._changed:
            self._busy -= 1
            while (step := self._step()) is None:
                if self._closing and not self._decoded:
                    self._changed.notify_all()
                    return None
                self._changed.wait()
            self._busy += 1
            if self._waiting or self._decoded:
                self._changed.notify()  # there may be a step for another thread too
            return step

    def _step(self) -> Callable[[], None] | None:
        """The next step, if there is one and the thread need not pause."""
        if self._busy >= len(self._threads) - self._paused:
            return None
        if batch := self._ready_batch():
            self._running += 1
            return partial(self._infer, batch)
        if self._waiting and len(self._decoded) < 2 * self._max_batch:
            return partial(self._decode, self._waiting.popleft())
        return None

    def _ready_batch(self) -> list[_DecodedImage]:
        """The images to run now: of one model, and an equal share for each free stream."""
        while self._decoded and self._decoded[0].pending.future.cancelled():
            self._decoded.popleft()
        if not self._decoded:
            return []
        model = self._decoded[0].model
        free = model.engine.concurrency - self._running
        share = min(self._max_batch, math.ceil(len(self._decoded) / free)) if free > 0 else 0
        batch: list[_DecodedImage] = []
        while self._decoded and len(batch) < share and self._decoded[0].model is model:
            batch.append(self._decoded.popleft())
        return batch

    def _decode(self, pending: _PendingImage) -> None:
        if pending.future.cancelled():
            return
        started = time.perf_counter()
        try:
            model = pending.model()
            image = load_image(pending.source(), model.bundle.card.image_size, self._limits)
        except ImageError as error:
            pending.fail(from_image_error(error))
        except Exception as error:  # noqa: BLE001  it concerns this image alone
            pending.fail(error)
        else:
            with self._changed:
                self._decoded.append(_DecodedImage(pending, model, image, started, time.perf_counter()))

    def _infer(self, batch: Sequence[_DecodedImage]) -> None:
        """Run the model on a batch, and answer its images."""
        started = time.perf_counter()
        try:
            images = np.stack([one.image.pixels for one in batch])  # (N, H, W, 3)
            rows = batch[0].model.engine.infer(images)  # (N, K)
        except Exception as error:  # noqa: BLE001  it concerns all images of the batch
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
                one.pending.settle(one.pending.future.set_result, one.pending.finish(one.result(row, started, ended)))
            except Exception as error:  # noqa: BLE001  it concerns this image alone
                one.pending.fail(error)
        if self._on_batch is not None:
            self._on_batch(len(batch), ended - started + sum(one.ended - one.started for one in batch))
