"""Latency of programs for one image, measured in turn on this machine."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.bundle.program import Bundle
from toolkit.errors import SettingsError
from toolkit.system.metrics import usable_cores

WARM_UP = 3  # rounds that are not counted: a program plans and allocates in the first ones
SEED = 0  # of the images


def measure_latencies(
    bundles: Sequence[Bundle], *, repetitions: int = 15, clock: Callable[[], float] = perf_counter
) -> list[float]:
    """Milliseconds of each program for one image: the median of several rounds.

    The latencies are of torch in float32 on this machine, for comparison with each other only: a service
    may run the same program several times as fast. The programs take turns, one image each a round, so
    that other load on the machine slows all of them alike.

    Parameters
    ----------
    bundles
        Bundles with the programs; each gets noise of its own image size, as a batch of one.
    repetitions
        Rounds that count, at least 1.
    clock
        Gives the time in seconds.

    Returns
    -------
    Milliseconds, one number a bundle, in their order.

    Raises
    ------
    SettingsError
        Fewer than one repetition.

    Examples
    --------
    Two versions, the second at half the side::

        measure_latencies([registry.load(1).bundle, registry.load(2).bundle])  # such as [21.3, 6.0]
    """
    if repetitions < 1:
        raise SettingsError(f"repetitions must be at least 1, got {repetitions}")
    generator = np.random.default_rng(SEED)
    images = [_noise(generator, bundle.card.image_size) for bundle in bundles]
    turns = list(zip(bundles, images, strict=True))
    with at_most_threads(usable_cores()):
        rounds = [
            [_milliseconds(bundle, image, clock) for bundle, image in turns]
            for _ in range(WARM_UP + repetitions)
        ]  # fmt: skip
    return [float(np.median(times)) for times in zip(*rounds[WARM_UP:], strict=True)]


@contextmanager
def at_most_threads(count: int) -> Iterator[None]:
    """Limit the threads of torch, which ignores the CPU quota of a container."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _noise(generator: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """uint8 (1, size, size, 3)."""
    return generator.integers(0, 256, (1, size, size, 3), np.uint8)


def _milliseconds(bundle: Bundle, image: NDArray[np.uint8], clock: Callable[[], float]) -> float:
    start = clock()
    bundle.predict(image)
    return 1000 * (clock() - start)
