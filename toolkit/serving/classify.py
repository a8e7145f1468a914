"""From the bytes of one picture to probabilities: the work of one worker thread."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import ImageError
from toolkit.images import Limits, Picture, load_picture
from toolkit.serving.formats import Read
from toolkit.serving.live import LiveModel
from toolkit.serving.problems import of_picture

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
    """

    model: LiveModel
    picture: Picture
    probabilities: NDArray[np.float32]
    timings_ms: dict[str, float]

    @property
    def finite(self) -> bool:
        """Whether the answer can be used at all."""
        return bool(np.isfinite(self.probabilities).all())

    def best(self, count: int) -> list[tuple[str, float]]:
        """The ``count`` most probable classes, the first of equals first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.model.classes[index], float(self.probabilities[index])) for index in order]


def classify(model: LiveModel, read: Read, limits: Limits, waited_ms: float) -> Classified:
    """Decode a picture and run the model on it.

    Raises
    ------
    Problem
        When the picture cannot be used.
    """
    started = time.perf_counter()
    try:
        picture = load_picture(read(), model.bundle.card.image_size, limits)
    except ImageError as error:
        raise of_picture(error) from None
    decoded = time.perf_counter()
    pictures = np.array([picture.pixels])  # (1, H, W, 3): a copy, for what Pillow gives may not be written to
    probabilities = model.engine.infer(pictures)[0]  # (K,)
    finished = time.perf_counter()
    decode, infer = (decoded - started) * 1000, (finished - decoded) * 1000
    timings = {"decode": decode, "queue": waited_ms, "infer": infer, "total": waited_ms + decode + infer}
    return Classified(model, picture, probabilities, {name: round(value, 3) for name, value in timings.items()})
