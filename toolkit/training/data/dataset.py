"""Decoded images, what each is used for, and the weights that training starts from."""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from toolkit.training.data.cache import CachedImages
from toolkit.training.data.splits import Split


@dataclass(frozen=True, eq=False)
class Subset:
    """Some images of a data set, by index, without a copy.

    Examples
    --------
    >>> odd = Subset(np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 2, 0]), np.array([1, 3]))
    >>> len(odd), odd.labels.tolist(), odd.classes
    (2, [1, 0], 3)
    """

    pixels: NDArray[np.uint8]  # (M, size, size, 3), the whole data set, in memory or mapped
    all_labels: NDArray[np.int64]  # (M,), of the whole data set
    indices: NDArray[np.int64]  # (N,), the images that belong to the subset
    allow_flip: bool = True  # whether an image may be flipped left to right without changing its class

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 (N,), the labels of the subset."""
        return self.all_labels[self.indices]

    @property
    def classes(self) -> int:
        """K, the number of classes in the whole data set."""
        return int(self.all_labels.max()) + 1

    def union(self, other: "Subset | None") -> "Subset":
        """The images of both subsets."""
        return self if other is None else replace(self, indices=np.concatenate([self.indices, other.indices]))


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Everything that training reads."""

    images: CachedImages
    split: Split
    weights: dict[str, Tensor] | None  # a pretrained ResNet-18's state dict; None for random weights
    weights_note: str  # the origin of the weights in words, such as ``imagenet``; a run is tagged with it
    feature_views: dict[Hashable, Tensor] = field(default_factory=dict)  # of a frozen backbone, for all trainings

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in output order."""
        return self.images.catalogue.classes

    def subset(self, indices: NDArray[np.int64]) -> Subset:
        """The images at ``indices``."""
        return Subset(self.images.pixels, self.images.labels, indices, self.images.catalogue.allow_flip)

    def groups(self, indices: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The group of each image at ``indices``, kept whole by validation and folds; None when there are none."""
        return None if self.split.groups is None else self.split.groups[indices]

    @property
    def development(self) -> NDArray[np.int64]:
        """Indices of the images that cross-validation and the final training may use: all but held out and unused."""
        return np.sort(np.concatenate([self.split.development, self.split.validation]))
