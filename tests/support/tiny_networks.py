"""What the tests of training share: tiny pictures and networks, and processes that could be torchrun's."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import nn

from support import COLOURS, colour_pixels, free_port
from toolkit.training.data.dataset import Part
from toolkit.training.device import Device, joined

CPU = Device("cpu", torch.float32)


def colours(count: int, seed: int = 0, size: int = 16) -> Part:
    """Blue, green and red pictures in turn."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % len(COLOURS)
    pixels = np.stack([colour_pixels(COLOURS[label], size, generator) for label in labels])
    return Part(pixels, labels.astype(np.int64), np.arange(count))


class MeanColour(nn.Module):
    """A linear layer on the mean colour, which also notes the sizes of the batches that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.batches: list[int] = []

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.batches.append(len(pictures))
        return self.head(pictures.mean(dim=(2, 3)))


def fresh(network: Callable[..., nn.Module] = MeanColour, seed: int = 0, *arguments: object) -> nn.Module:
    """A network whose weights are drawn with a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return network(*arguments)


def weights(network: nn.Module) -> torch.Tensor:
    """A copy of all weights and statistics in a row."""
    return torch.cat([value.flatten().float() for value in network.state_dict().values()])


def context() -> Any:
    """Processes that start within a tenth of a second: the first one has imported torch for all."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["pytest", "toolkit.training.loop"])
    return forkserver


def elsewhere(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function gives in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=context()) as pool:
        return pool.submit(function, *arguments).result()


def together(size: int, function: Callable[..., Any], *arguments: object) -> list[Any]:
    """What ``function(world, *arguments)`` gives in each of several processes with torchrun's environment."""
    port = free_port()
    with ProcessPoolExecutor(size, mp_context=context()) as pool:
        futures = [pool.submit(_as_torchrun, rank, size, port, function, arguments) for rank in range(size)]
        return [future.result() for future in futures]


def _as_torchrun(rank: int, size: int, port: int, function: Callable[..., Any], arguments: tuple[object, ...]) -> Any:
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), **address}
    with joined() as world:
        return function(world, *arguments)
