"""What the model says about one image, and how long that took."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.images.decoding import DecodedImage
from toolkit.serving.models.manager import LiveModel

TIMING_STAGES = ("decode", "queue", "infer", "total")
ImageSource = Callable[[], bytes]  # gives the bytes of one encoded image, or raises a Problem


@dataclass(frozen=True)
class Upload:
    """A file of a form and the name that the client gave it; called, it gives its bytes."""

    content: bytes
    name: str | None

    def __call__(self) -> bytes:
        return self.content


def file_name(source: ImageSource) -> str | None:
    """The name of the file that was uploaded; None for what came in another way.

    >>> file_name(Upload(b"", "cat.jpg")), file_name(bytes)
    ('cat.jpg', None)
    """
    return source.name if isinstance(source, Upload) else None


@dataclass(frozen=True, eq=False)
class InferenceResult:
    """What the model says about one image.

    Parameters
    ----------
    model
        The one that answered, whatever is live by now.
    probabilities
        float32 (K,), in class order.
    timings_ms
        One value for each of ``STAGES``.
    read
        Gives the encoded image again.
    """

    model: LiveModel
    image: DecodedImage
    probabilities: NDArray[np.float32]
    timings_ms: dict[str, float]
    source: ImageSource = bytes

    @property
    def finite(self) -> bool:
        """Whether the answer can be used at all."""
        return bool(np.isfinite(self.probabilities).all())

    def top_k(self, count: int) -> list[tuple[str, float]]:
        """The ``count`` most probable classes, the first of equals first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.model.classes[index], float(self.probabilities[index])) for index in order]
