"""Helpers of the tests of training: tiny images and networks, and processes with torchrun's environment."""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from torch import nn

from support.colours import COLOURS, colour_pixels
from support.servers import free_port
from toolkit.training.data.dataset import Subset
from toolkit.training.device import Device, init_distributed

CPU = Device("cpu", torch.float32)


def colours(count, seed=0, size=16):
    """Blue, green and red images in turn."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % len(COLOURS)
    pixels = np.stack([colour_pixels(COLOURS[label], size, generator) for label in labels])
    return Subset(pixels, labels.astype(np.int64), np.arange(count))


class MeanColour(nn.Module):
    """A linear layer on the mean colour, which also records the sizes of its training batches."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.batches = []

    def forward(self, images):
        if self.training:
            self.batches.append(len(images))
        return self.head(images.mean(dim=(2, 3)))


def fresh(network=MeanColour, seed=0, *arguments):
    """A network with seeded random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return network(*arguments)


def weights(network):
    """A copy of all weights and statistics in a row."""
    return torch.cat([value.flatten().float() for value in network.state_dict().values()])


def load_weights(path):
    """The weights and the description that ``Checkpoint.finish`` wrote."""
    content = torch.load(path, weights_only=True)
    return content["weights"], json.loads(content["description"])


def context():
    """A multiprocessing context whose processes start within 0.1 s: the server imports torch for all."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["pytest", "toolkit.training.loop"])
    return forkserver


def elsewhere(function, *arguments):
    """The result of a function in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=context()) as pool:
        return pool.submit(function, *arguments).result()


def together(size, function, *arguments):
    """The results of ``function(world, *arguments)`` in several processes with torchrun's environment."""
    port = free_port()
    with ProcessPoolExecutor(size, mp_context=context()) as pool:
        futures = [pool.submit(_as_torchrun, rank, size, port, function, arguments) for rank in range(size)]
        return [future.result() for future in futures]


def _as_torchrun(rank, size, port, function, arguments):
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), **address}
    with init_distributed() as world:
        return function(world, *arguments)
