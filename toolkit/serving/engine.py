"""What runs a bundle's program. The first engine is the program itself, in torch on the CPU."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.bundle import Bundle
from toolkit.errors import BundleError
from toolkit.machine import usable_cores


class Engine(Protocol):
    """Pictures in, probabilities out; called from several threads at once."""

    @property
    def name(self) -> str:
        """What ``/model-info`` calls it."""

    @property
    def lanes(self) -> int:
        """How many runs at once are worth it."""

    def infer(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (N, H, W, 3) RGB -> float32 (N, K) probabilities."""


class TorchEngine:
    """The program as it was registered: float32, the very numbers that ``Bundle.predict`` gives.

    Parameters
    ----------
    bundle
        Verified and loaded.
    """

    name = "torch float32 on the CPU"

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.lanes = usable_cores()

    def infer(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._bundle.predict(pictures)


def prepare(bundle: Bundle) -> Engine:
    """The engine of a bundle, warmed up: the first run of a program is many times slower than the next.

    Raises
    ------
    BundleError
        The program does not give finite probabilities.
    """
    engine = TorchEngine(bundle)
    size = bundle.card.image_size
    for grey in (0, 127, 255):
        answer = engine.infer(np.full((1, size, size, 3), grey, np.uint8))
        if not np.isfinite(answer).all():
            raise BundleError("the program gives NaN or infinity for a plain grey picture")
    return engine


def torch_threads(workers: int, cores: int) -> int:
    """Threads inside one run of the program, so that all workers together use the cores and no more.

    >>> torch_threads(workers=2, cores=8), torch_threads(workers=8, cores=2)
    (4, 1)
    """
    return max(1, cores // workers)


def set_torch_threads(count: int) -> None:
    """To be called in each thread that runs a program: OpenMP keeps the number by thread."""
    torch.set_num_threads(count)
