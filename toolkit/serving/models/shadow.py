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
from toolkit.serving.models.manager import (
    LiveModel,
    ModelManager,
    ModelManagerConfig,
    ModelRelease,
    Source,
    release_key,
)
from toolkit.serving.models.smoke_test import agreement

logger = logging.getLogger(__name__)

QUEUE_SIZE = 32  # images that may wait; more are dropped and counted
BUSY_PAUSE_S = 0.02  # between two checks whether requests wait
STOP_TIMEOUT_S = 5.0  # for a run of the model when the service stops
MEANS = ("agreement", "mean_difference")  # over the images that were compared


@dataclass(frozen=True, eq=False)
class ShadowSample:
    """An image that the live model answered, without a reference to the model, which would keep it in memory.

    Parameters
    ----------
    release, classes
        Of the live model.
    pixels
        Returns the image as uint8 (H, W, 3) for a side H = W in pixels.
    row
        float32 (K,), the probabilities of the live model.
    """

    release: ModelRelease
    classes: Sequence[str]
    pixels: Callable[[int], NDArray[np.uint8]]
    row: NDArray[np.float32]


@dataclass
class ShadowStats:
    """Counts of images that one live version answered; ``difference`` is a sum over those compared."""

    live: ModelRelease
    since: float  # seconds since 1970
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
    draw
        Returns random numbers in [0, 1).
    clock
        Returns seconds since 1970.
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
        own = replace(config, isolated_load=None, local_cache=None, role="shadows", keep_previous=False)
        self._model_manager = ModelManager(source, _no_callback, own)
        self._poll_seconds = config.poll_interval
        self._busy = busy
        self._draw = draw
        self._clock = clock
        self._queue: queue.Queue[ShadowSample | None] = queue.Queue(QUEUE_SIZE)
        self._stats: ShadowStats | None = None  # of the present model
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

        Parameters
        ----------
        model
            The live model.
        row
            float32 (K,), its probabilities.
        pixels
            Returns the image as uint8 (H, W, 3) for a side H = W in pixels, which may differ from the live model's.
            It is queued, so that it should hold little memory, and no reference to the model.
        """
        if self._model_manager.model is None or self._draw() >= self.share:
            return
        try:
            self._queue.put_nowait(ShadowSample(model.release, model.classes, pixels, row))
        except queue.Full:
            self._drop()

    def metrics(self) -> dict[str, Any]:
        """Both versions and their agreement, as ``/metrics`` and ``/model-info`` show it.

        ``agreement`` is the share of the compared images for which both predict the same class, and
        ``mean_difference`` the mean absolute difference of the probability of the class that the live model
        predicted; both are None before the first image. ``dropped`` counts images since the service started for which
        the queue was full or requests always waited.
        """
        model = self._model_manager.model
        with self._lock:
            stats, dropped = self._stats and replace(self._stats), self._dropped
        compared = stats.compared if stats else 0
        return {
            "share": self.share,
            "version": model and model.release.version,
            "reason": None if model else self._model_manager.reason(),
            "against": stats and stats.live.version,
            "since": stats and stats.since,
            "compared": compared,
            "agreement": stats.same_class / compared if stats and compared else None,
            "mean_difference": stats.difference / compared if stats and compared else None,
            "failed": stats.failed if stats else 0,
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
                self._stats = None

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
            if self._stats is None or release_key(self._stats.live) != release_key(live):
                self._stats = ShadowStats(live, self._clock())
            return self._stats

    def _drop(self) -> None:
        with self._lock:
            self._dropped += 1


def merge_stats(shadows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Merge the shadow metrics of several processes, over those that compare the same two versions as the first.

    Parameters
    ----------
    shadows
        ``ShadowRunner.metrics()`` of each process.

    Returns
    -------
    dict or None
        Metrics of the same form; None without any.

    Examples
    --------
    >>> same = {"version": 2, "against": 1, "since": 7.0, "mean_difference": 0.1, "failed": 0, "dropped": 1}
    >>> both = merge_stats([{**same, "compared": 1, "agreement": 1.0}, {**same, "compared": 3, "agreement": 0.0}])
    >>> both["compared"], both["agreement"], both["dropped"]
    (4, 0.25, 2)
    """
    if len(shadows) < 2:
        return dict(shadows[0]) if shadows else None
    first = next((one for one in shadows if one["against"] is not None), shadows[0])
    same = [one for one in shadows if (one["version"], one["against"]) == (first["version"], first["against"])]
    compared = sum(one["compared"] for one in same)
    sums = {name: sum(one[name] * one["compared"] for one in same if one["compared"]) for name in MEANS}
    return {
        **first,
        **{name: total / compared if compared else None for name, total in sums.items()},
        "since": min((one["since"] for one in same if one["since"]), default=None),
        "compared": compared,
        "failed": sum(one["failed"] for one in same),
        "dropped": sum(one["dropped"] for one in shadows),
    }


def _no_callback(_model: LiveModel) -> None:
    """Do nothing: the monitor follows the live model alone."""
