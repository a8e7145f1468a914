"""A challenger that answers along, unseen: the version in Staging on a share of what the live model answered.

Its thread takes images only while the live path has nothing waiting. It does not lower its own
priority: a thread that the system holds back while it holds Python's lock holds back all others, which
was measured at 0.9 s on a busy machine.
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
BUSY_PAUSE = 0.02  # seconds between two looks whether the live path is free
STOP_SECONDS = 5.0  # what a stopping service grants a run that is under way
MEANS = ("agreement", "mean_difference")  # over the images that were compared


@dataclass(frozen=True, eq=False)
class ShadowSample:
    """An image that the live model answered. It does not hold the model, which would not be freed.

    Parameters
    ----------
    pixels
        Gives the image as uint8 (H, W, 3) for a side H = W in pixels.
    row
        float32 (K,), the probabilities that were answered.
    """

    release: ModelRelease
    classes: Sequence[str]
    pixels: Callable[[int], NDArray[np.uint8]]
    row: NDArray[np.float32]


@dataclass
class ShadowStats:
    """What came of the images that one version answered; ``difference`` is a sum over those compared."""

    live: ModelRelease
    since: float  # seconds since 1970
    compared: int = 0
    same_class: int = 0
    difference: float = 0.0
    failed: int = 0


class ShadowRunner:
    """Runs a second model on what the first one answered, and counts how often both agree.

    Whatever goes wrong with it is counted, and touches nothing else. Both may have other classes, which
    are matched by name, and images of another size. The counts begin anew when either version changes.

    Parameters
    ----------
    source
        Where the second model comes from.
    config
        How it is loaded, in the shadow's own thread.
    share
        Of the images, in (0, 1].
    busy
        Whether the live path has work waiting; the shadow waits meanwhile, until its next look at most.
    draw
        Gives random numbers in [0, 1).
    clock
        Gives seconds since 1970.
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
        own = replace(config, rehearse=None, last_good=None, does="shadows", keeps_former=False)
        self._queued = ModelManager(source, _no_callback, own)
        self._poll_seconds = config.poll_seconds
        self._busy = busy
        self._draw = draw
        self._clock = clock
        self._waiting: queue.Queue[ShadowSample | None] = queue.Queue(QUEUE_SIZE)
        self._stats: ShadowStats | None = None  # of the model that is held
        self._dropped = 0
        self._lock = threading.Lock()  # of the numbers
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    def start(self) -> None:
        """Begin to look for a model."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; what waits is dropped."""
        self._stopping.set()
        with suppress(queue.Full):  # then the thread is awake
            self._waiting.put_nowait(None)
        self._thread.join(STOP_SECONDS)

    def submit(self, model: LiveModel, row: NDArray[np.float32], pixels: Callable[[int], NDArray[np.uint8]]) -> None:
        """Hand over an answer that went out; takes no time, and raises nothing.

        Parameters
        ----------
        model
            What answered.
        row
            float32 (K,), its probabilities.
        pixels
            Gives the image as uint8 (H, W, 3) for a side H = W in pixels, which may be another one than
            the live model's. It waits in the queue: what it holds should be small, and not the model.
        """
        if self._queued.model is None or self._draw() >= self.share:
            return
        try:
            self._waiting.put_nowait(ShadowSample(model.release, model.classes, pixels, row))
        except queue.Full:
            self._drop()

    def metrics(self) -> dict[str, Any]:
        """Both versions and how they compare, as ``/metrics`` and ``/model-info`` show it.

        ``agreement`` is the share of the compared images for which both name the same class, and
        ``mean_difference`` the mean absolute difference of the probability of the class that was
        answered; both are None before the first image. ``dropped`` counts since the service began:
        the queue was full, or the live path was never free.
        """
        model = self._queued.model
        with self._lock:
            tally, dropped = self._stats and replace(self._stats), self._dropped
        compared = tally.compared if tally else 0
        return {
            "share": self.share,
            "version": model and model.release.version,
            "reason": None if model else self._queued.reason(),
            "against": tally and tally.live.version,
            "since": tally and tally.since,
            "compared": compared,
            "agreement": tally.same_class / compared if tally and compared else None,
            "mean_difference": tally.difference / compared if tally and compared else None,
            "failed": tally.failed if tally else 0,
            "dropped": dropped,
        }

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._poll()
            next_look = time.monotonic() + self._poll_seconds
            while not self._stopping.is_set() and (seconds := next_look - time.monotonic()) > 0:
                with suppress(queue.Empty):
                    self._take(seconds, next_look)

    def _poll(self) -> None:
        before = self._queued.model
        if self._queued.poll() == "waiting":
            self._queued.model = None  # nothing is in the stage any more
        if self._queued.model is not before:
            with self._lock:
                self._stats = None

    def _take(self, seconds: float, next_look: float) -> None:
        """Wait for an image, and then until the live path is free."""
        answered = self._waiting.get(timeout=seconds)
        while answered is not None and self._busy():
            if self._stopping.wait(BUSY_PAUSE) or time.monotonic() > next_look:
                self._drop()
                return
        if answered is not None:
            self._compare(answered)

    def _compare(self, answered: ShadowSample) -> None:
        model = self._queued.model
        if model is None or release_key(model.release) == release_key(answered.release):
            return
        tally = self._stats_for(answered.release)
        try:
            images = np.array([answered.pixels(model.bundle.card.image_size)])  # (1, H, W, 3), a copy
            rows = model.engine.infer(images)  # (1, K)
            if not np.isfinite(rows).all():
                raise BundleError("it gives NaN or infinity")
            same, difference = agreement(answered.classes, answered.row[None], model.classes, rows)
        except Exception as error:  # noqa: BLE001  whatever it is, it is the shadow's own trouble
            if not tally.failed:
                logger.warning("version %s, the shadow, fails: %s", model.version, first_line(error))
            with self._lock:
                tally.failed += 1
            return
        with self._lock:
            tally.compared += 1
            tally.same_class += int(same[0])
            tally.difference += float(difference[0])

    def _stats_for(self, live: ModelRelease) -> ShadowStats:
        """Where a version's images are counted.

        Around a change a few answers of the old and the new version are mixed; the last mixing begins the
        count that stays.
        """
        with self._lock:
            if self._stats is None or release_key(self._stats.live) != release_key(live):
                self._stats = ShadowStats(live, self._clock())
            return self._stats

    def _drop(self) -> None:
        with self._lock:
            self._dropped += 1


def merge_stats(shadows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The figures of several processes as those of one: of all that compare the same two versions as the first does.

    Parameters
    ----------
    shadows
        What ``figures`` gave in each; None comes of none.

    Examples
    --------
    >>> same = {"version": 2, "against": 1, "since": 7.0, "mean_difference": 0.1, "failed": 0, "dropped": 1}
    >>> both = together([{**same, "compared": 1, "agreement": 1.0}, {**same, "compared": 3, "agreement": 0.0}])
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
    """The monitor hears of the live model alone."""
