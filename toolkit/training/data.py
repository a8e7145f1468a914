"""What a training starts from: pictures in memory, what each is for, and weights."""

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from toolkit.training.batches import Part
from toolkit.training.cache import Pictures
from toolkit.training.splits import Split


@dataclass(frozen=True, eq=False)
class Data:
    """Decoded pictures, what each is for, the weights to start from, and what a frozen backbone has seen of them."""

    pictures: Pictures
    split: Split
    weights: dict[str, Tensor] | None
    weights_note: str
    views: dict[Hashable, Tensor] = field(default_factory=dict)  # of the development pictures, for all trainings

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in output order."""
        return self.pictures.catalogue.classes

    @property
    def mirrored(self) -> bool:
        """Whether pictures may be flipped from left to right."""
        return self.pictures.catalogue.mirrored

    def part(self, indices: NDArray[np.int64]) -> Part:
        """Some of the pictures, by index."""
        return Part(self.pictures.pixels, self.pictures.labels, indices)

    def together(self, indices: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The groups of some of the pictures, that validation and folds keep whole; None when there are none."""
        return None if self.split.groups is None else self.split.groups[indices]

    @property
    def development(self) -> NDArray[np.int64]:
        """All but the pictures held out or set aside: what cross-validation and the final training may use."""
        return np.sort(np.concatenate([self.split.development, self.split.validation]))
