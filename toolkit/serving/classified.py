"""What the model says about one picture, and how long that took."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.images import Picture
from toolkit.serving.formats import Read
from toolkit.serving.live import LiveModel

STAGES = ("decode", "queue", "infer", "total")


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
    read: Read = bytes

    @property
    def finite(self) -> bool:
        """Whether the answer can be used at all."""
        return bool(np.isfinite(self.probabilities).all())

    def best(self, count: int) -> list[tuple[str, float]]:
        """The ``count`` most probable classes, the first of equals first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.model.classes[index], float(self.probabilities[index])) for index in order]
