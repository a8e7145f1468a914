"""Shadow deployment: the version in Staging is run on a share of the images that the live model answered.

Its thread takes images only while no request waits. It does not lower its own priority: a thread that the system does
not run while it holds Python's lock blocks all others, by up to 0.9 s on a busy machine.
"""

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import BundleError, first_line
from toolkit.serving.models.manager import LiveModel, ModelManager, ModelManagerConfig
from toolkit.serving.models.smoke_test import agreement
from toolkit.serving.models.source import ModelRelease, Source, release_key

logger = logging.getLogger(__name__)

QUEUE_SIZE = 32  # images that may wait; more are dropped and counted
BUSY_PAUSE_S = 0.02  # between two checks whether requests wait
STOP_TIMEOUT_S = 5.0  # for a run of the model when the service stops


@dataclass(frozen=True, eq=False)
class ShadowSample:
    """An image that the live model answered, without a reference to the model, which would keep it in memory."""

    release: ModelRelease
    classes: Sequence[str]
    pixels: Callable[[int], NDArray[np.uint8]]  # side in pixels -> uint8 (H, W, 3)
    row: NDArray[np.float32]  # (K,), the probabilities of the live model


@dataclass
class ShadowStats:
    """Counts of images that one live version answered; ``difference`` is a sum over those compared."""

    live: ModelRelease | None = None
    since: float | None = None  # seconds since 1970
    compared: int = 0
    same_class: int = 0
    difference: float = 0.0
    failed: int = 0


class ShadowRunner:
    """Run a second model on images that the live model answered, and count how often both agree.

    Its errors are counted and have no other effect. The two models may differ in their classes, which are matched by
    name, and in their image size. The counts restart when either version changes.

    Parameters
    ----------
    source
        Source of the second model.
    config
        Settings for loading it, in the shadow's own thread.
    share
        Share of the images, in (0, 1].
    busy
        Returns whether requests wait; the shadow pauses meanwhile, until its next poll at most.
    draw, clock
        Return random numbers in [0, 1), and seconds since 1970.
    """

    def __init__(
        self,
        source: Source,
        config: ModelManagerConfig,
        share: float,
        *,
        busy: Callable[[], bool] = lambda: False,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.share = share
        own = replace(config, isolated_load=None, newest=None, local_cache=None, role="shadows", keep_previous=False)
        self._model_manager = ModelManager(source, lambda _model: None, own)  # the monitor follows the live model alone
        self._poll_seconds = config.poll_interval
        self._busy = busy
        self._draw = draw
        self._clock = clock
        self._queue: queue.Queue[ShadowSample | None] = queue.Queue(QUEUE_SIZE)
        self._stats = ShadowStats()  # of the present model
        self._dropped = 0
        self._lock = threading.Lock()  # of the counts
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    def start(self) -> None:
        """Start polling for a model."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; queued images are dropped."""
        self._stopping.set()
        with suppress(queue.Full):  # then the thread is not waiting
            self._queue.put_nowait(None)
        self._thread.join(STOP_TIMEOUT_S)

    def submit(self, model: LiveModel, row: NDArray[np.float32], pixels: Callable[[int], NDArray[np.uint8]]) -> None:
        """Queue an image for the shadow, or drop it; returns at once and raises nothing.

        ``row`` is float32 (K,), the probabilities of the live model. ``pixels`` returns the image as uint8 (H, W, 3)
        for a side H = W in pixels, which may differ from the live model's. It is queued, so that it should hold little
        memory, and no reference to the model.
        """
        if self._model_manager.model is None or self._draw() >= self.share:
            return
        try:
            self._queue.put_nowait(ShadowSample(model.release, model.classes, pixels, row))
        except queue.Full:
            self._drop()

    def metrics(self) -> dict[str, Any]:
        """Both versions and their agreement, as ``/metrics`` and ``/model-info`` show it: see ``merge_counts``."""
        return merge_counts([self.counts()])

    def counts(self) -> dict[str, Any]:
        """Both versions, and counts that add up over processes, as JSON.

        ``dropped`` counts images since the service started for which the queue was full or requests always waited.
        """
        model = self._model_manager.model
        with self._lock:
            stats, dropped = replace(self._stats), self._dropped
        return {
            "share": self.share,
            "version": model and model.release.version,
            "reason": None if model else self._model_manager.reason(),
            "against": stats.live and stats.live.version,
            "since": stats.since,
            "compared": stats.compared,
            "same_class": stats.same_class,
            "difference": stats.difference,
            "failed": stats.failed,
            "dropped": dropped,
        }

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._poll()
            next_poll = time.monotonic() + self._poll_seconds
            while not self._stopping.is_set() and (seconds := next_poll - time.monotonic()) > 0:
                with suppress(queue.Empty):
                    self._take(seconds, next_poll)

    def _poll(self) -> None:
        before = self._model_manager.model
        if self._model_manager.poll() == "waiting":
            self._model_manager.model = None  # the stage is empty
        if self._model_manager.model is not before:
            with self._lock:
                self._stats = ShadowStats()

    def _take(self, seconds: float, next_poll: float) -> None:
        """Wait for an image, and then until no request waits."""
        sample = self._queue.get(timeout=seconds)
        while sample is not None and self._busy():
            if self._stopping.wait(BUSY_PAUSE_S) or time.monotonic() > next_poll:
                self._drop()
                return
        if sample is not None:
            self._compare(sample)

    def _compare(self, sample: ShadowSample) -> None:
        model = self._model_manager.model
        if model is None or release_key(model.release) == release_key(sample.release):
            return
        stats = self._stats_for(sample.release)
        try:
            images = np.array([sample.pixels(model.bundle.card.image_size)])  # (1, H, W, 3), a copy
            rows = model.engine.infer(images)  # (1, K)
            if not np.isfinite(rows).all():
                raise BundleError("it returns NaN or infinity")
            same, difference = agreement(sample.classes, sample.row[None], model.classes, rows)
        except Exception as error:  # noqa: BLE001  errors of the shadow affect nothing else
            if not stats.failed:
                logger.warning("the shadow, version %s, fails: %s", model.version, first_line(error))
            with self._lock:
                stats.failed += 1
            return
        with self._lock:
            stats.compared += 1
            stats.same_class += int(same[0])
            stats.difference += float(difference[0])

    def _stats_for(self, live: ModelRelease) -> ShadowStats:
        """Counts of a live version, which restart when it changes."""
        with self._lock:
            if self._stats.live is None or release_key(self._stats.live) != release_key(live):
                self._stats = ShadowStats(live, self._clock())
            return self._stats

    def _drop(self) -> None:
        with self._lock:
            self._dropped += 1


def merge_counts(shadows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge ``ShadowRunner.counts()`` of one or more processes that compare the same two versions as the first.

    ``agreement`` is the share of the compared images for which both predict the same class, and ``mean_difference``
    the mean absolute difference of the probability of the class that the live model predicted; both are None before
    the first image.

    >>> same = {"version": 2, "against": 1, "share": 1.0, "reason": None, "since": 7.0, "failed": 0, "dropped": 1}
    >>> one, three = {"compared": 1, "same_class": 1, "difference": 0.3}, {"compared": 3, "same_class": 0}
    >>> both = merge_counts([{**same, **one}, {**same, **three, "difference": 0.1}])
    >>> both["compared"], both["agreement"], both["mean_difference"], both["dropped"]
    (4, 0.25, 0.1, 2)
    """
    first = next((one for one in shadows if one["against"] is not None), shadows[0])
    same = [one for one in shadows if (one["version"], one["against"]) == (first["version"], first["against"])]
    compared, same_class, difference, failed = (
        sum(one[name] for one in same) for name in ("compared", "same_class", "difference", "failed")
    )
    return {
        **{name: first[name] for name in ("share", "version", "reason", "against")},
        "since": min((one["since"] for one in same if one["since"]), default=None),
        "compared": compared,
        "agreement": same_class / compared if compared else None,
        "mean_difference": difference / compared if compared else None,
        "failed": failed,
        "dropped": sum(one["dropped"] for one in shadows),
    }
