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

GPU_MEMORY_SHARE = 0.5  # of the free memory that images may take; the rest is for the network


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
        self._resident = torch.from_numpy(subset.pixels[subset.indices]).to("cuda") if fits else None

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
            chosen = self._resident[torch.from_numpy(positions).to(self._device.name)]
        else:
            chosen = torch.from_numpy(self._subset.pixels[self._subset.indices[positions]])
            if self._device.name == "cuda":
                chosen = chosen.pin_memory().to("cuda", non_blocking=True)
        return chosen.permute(0, 3, 1, 2)


def _unit(images: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]."""
    return images.float().div_(255)


def normalise(images: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its deviation; (N, 3, H, W) in [0, 1] -> channels last."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)
