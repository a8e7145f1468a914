"""Latency of programs for one image, measured in turn on this machine."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

import numpy as np
import torch

from toolkit.bundle.program import Bundle
from toolkit.system.metrics import usable_cores

WARM_UP = 3  # rounds that are not counted: a program plans and allocates in the first ones
SEED = 0  # of the images


def measure_latencies(
    bundles: Sequence[Bundle], *, repetitions: int = 15, clock: Callable[[], float] = perf_counter
) -> list[float]:
    """Milliseconds of each program for one image: the median of several rounds.

    The latencies are of torch in float32 on this machine, for comparison with each other only: a service
    may run the same program several times as fast. The programs take turns, one image each a round, so
    that other load on the machine slows all of them alike. Each gets noise of its own image size.
    """
    generator = np.random.default_rng(SEED)
    sides = [bundle.card.image_size for bundle in bundles]
    images = [generator.integers(0, 256, (1, side, side, 3), np.uint8) for side in sides]
    times = np.zeros((WARM_UP + repetitions, len(bundles)))  # seconds
    with at_most_threads(usable_cores()):
        for row in times:
            for column, (bundle, image) in enumerate(zip(bundles, images, strict=True)):
                start = clock()
                bundle.predict(image)
                row[column] = clock() - start
    return [1000 * float(median) for median in np.median(times[WARM_UP:], axis=0)]


@contextmanager
def at_most_threads(count: int) -> Iterator[None]:
    """Limit the threads of torch, which ignores the CPU quota of a container."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)
