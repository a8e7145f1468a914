"""Batches for a network: images of a subset, augmented for training or unchanged for evaluation."""

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  torch's own convention
from numpy.typing import NDArray
from torch import Tensor

from toolkit.bundle.program import IMAGENET_MEAN, IMAGENET_STD
from toolkit.training.augment import augment
from toolkit.training.data.dataset import Subset
from toolkit.training.device import Device
from toolkit.training.gpu import to_device

GPU_MEMORY_SHARE = 0.5  # of the free memory that images may take; the rest is for the network
CHUNK = 4096  # images that are copied to a GPU at a time, so that the machine's own memory need not hold them all


class BatchSource(Protocol):
    """Inputs and labels of N images; positions are int64 (B,) in 0..N-1."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 (N,)."""

    @property
    def classes(self) -> int:
        """K."""

    def train(self, positions: NDArray[np.int64], size: int, noise: torch.Generator) -> Tensor:
        """Inputs to train on, (B, ...), randomly augmented; images are resized to ``size``."""

    def eval_batch(self, positions: NDArray[np.int64]) -> Tensor:
        """Inputs to evaluate on, (B, ...), unchanged."""


class ImageBatches:
    """Batches of images, float32 (B, 3, H, W), normalised as ImageNet's are, channels last.

    They are copied to a GPU once if they take no more than half of its free memory. The strength of
    augmentation is from 0 to 1.
    """

    def __init__(self, subset: Subset, device: Device, strength: float = 0.0) -> None:
        self.labels, self.classes = subset.labels, subset.classes
        self._subset, self._device, self._strength = subset, device, strength
        size = len(subset) * int(np.prod(subset.pixels.shape[1:]))
        fits = device.name == "cuda" and size <= GPU_MEMORY_SHARE * torch.cuda.mem_get_info()[0]
        self._resident = _copy_to_gpu(subset, device) if fits else None

    def train(self, positions: NDArray[np.int64], size: int, noise: torch.Generator) -> Tensor:
        """Augmented images, float32 (B, 3, size, size)."""
        images = self._images(positions)
        if size != images.shape[-1]:
            if self._device.name == "cuda":  # it resizes floats only
                images = images.float()
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return normalise(augment(_unit(images), self._strength, flip=self._subset.allow_flip, generator=noise))

    def eval_batch(self, positions: NDArray[np.int64]) -> Tensor:
        """Unchanged images, float32 (B, 3, H, W)."""
        return normalise(_unit(self._images(positions)))

    def _images(self, positions: NDArray[np.int64]) -> Tensor:  # uint8 (B, 3, H, W), channels last, on the device
        if self._resident is not None:
            chosen = self._resident[to_device(positions, self._device.name)]
        else:
            chosen = to_device(self._subset.pixels[self._subset.indices[positions]], self._device.name)
        return chosen.permute(0, 3, 1, 2)


def _copy_to_gpu(subset: Subset, device: Device) -> Tensor:
    """The images of a subset in the GPU's memory, uint8 (N, H, W, 3)."""
    images = torch.empty((len(subset), *subset.pixels.shape[1:]), dtype=torch.uint8, device=device.name)
    for start in range(0, len(subset), CHUNK):
        images[start : start + CHUNK] = to_device(subset.pixels[subset.indices[start : start + CHUNK]], device.name)
    return images


def _unit(images: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]."""
    return images.float().div_(255)


def normalise(images: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its deviation; (N, 3, H, W) in [0, 1] -> channels last."""
    mean, std = (_per_channel(values, images) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def _per_channel(values: tuple[float, ...], images: Tensor) -> Tensor:
    """A value for each channel, (1, 3, 1, 1), made on the images' device: Python waits for a GPU to copy it there."""
    return torch.stack([images.new_full((), value) for value in values]).view(1, 3, 1, 1)
