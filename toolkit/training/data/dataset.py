"""What a training starts from: images in memory, what each is for, and weights."""

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

    Parameters
    ----------
    pixels
        uint8 (M, size, size, 3), the whole data set, in memory or mapped.
    labels
        int64 (M,).
    indices
        int64 (N,), which of them belong to this part.
    mirrored
        Whether images may be flipped from left to right.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    mirrored: bool = True

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def own_labels(self) -> NDArray[np.int64]:
        """int64 (N,), the labels of this part."""
        return self.labels[self.indices]

    @property
    def classes(self) -> int:
        """K, how many classes the whole data set has."""
        return int(self.labels.max()) + 1

    def union(self, other: "Subset | None") -> "Subset":
        """The images of both parts."""
        return self if other is None else replace(self, indices=np.concatenate([self.indices, other.indices]))


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Decoded images, what each is for, the weights to start from, and what a frozen backbone has seen of them."""

    images: CachedImages
    split: Split
    weights: dict[str, Tensor] | None
    weights_note: str
    feature_views: dict[Hashable, Tensor] = field(default_factory=dict)  # of the development images, for all trainings

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in output order."""
        return self.images.catalogue.classes

    def part(self, indices: NDArray[np.int64]) -> Subset:
        """Some of the images, by index."""
        return Subset(self.images.pixels, self.images.labels, indices, self.images.catalogue.allow_flip)

    def together(self, indices: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The groups of some of the images, that validation and folds keep whole; None when there are none."""
        return None if self.split.groups is None else self.split.groups[indices]

    @property
    def development(self) -> NDArray[np.int64]:
        """All but the images held out or set aside: what cross-validation and the final training may use."""
        return np.sort(np.concatenate([self.split.development, self.split.validation]))
