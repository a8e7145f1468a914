"""Result of the model for one image."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.images.decoding import DecodedImage
from toolkit.serving.models.manager import LiveModel

TIMING_STAGES = ("decode", "queue", "infer", "total")
ImageSource = Callable[[], bytes]  # returns one encoded image, or raises a Problem


@dataclass(frozen=True)
class Upload:
    """An uploaded file with the name that the client gave it; a call returns its bytes."""

    content: bytes
    name: str | None

    def __call__(self) -> bytes:
        return self.content


@dataclass(frozen=True, eq=False)
class InferenceResult:
    """Result of the model for one image."""

    model: LiveModel
    image: DecodedImage
    probabilities: NDArray[np.float32]  # (K,), in class order
    timings_ms: dict[str, float]  # of each of TIMING_STAGES
    source: ImageSource = bytes

    @property
    def finite(self) -> bool:
        """Whether all probabilities are finite."""
        return bool(np.isfinite(self.probabilities).all())

    def top_k(self, count: int) -> list[tuple[str, float]]:
        """Return the ``count`` most probable classes with their probabilities, equal ones in class order."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.model.classes[index], float(self.probabilities[index])) for index in order]
