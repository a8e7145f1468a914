"""What the model says about one picture, and how long that took."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.images.decoding import Picture
from toolkit.serving.models.manager import LiveModel

STAGES = ("decode", "queue", "infer", "total")
ImageSource = Callable[[], bytes]  # gives the bytes of one encoded picture, or raises a Problem


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
class Classified:
    """What the model says about one picture.

    Parameters
    ----------
    model
        The one that answered, whatever is live by now.
    probabilities
        float32 (K,), in class order.
    timings_ms
        One value for each of ``STAGES``.
    read
        Gives the encoded picture again.
    """

    model: LiveModel
    picture: Picture
    probabilities: NDArray[np.float32]
    timings_ms: dict[str, float]
    read: ImageSource = bytes

    @property
    def finite(self) -> bool:
        """Whether the answer can be used at all."""
        return bool(np.isfinite(self.probabilities).all())

    def best(self, count: int) -> list[tuple[str, float]]:
        """The ``count`` most probable classes, the first of equals first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.model.classes[index], float(self.probabilities[index])) for index in order]
