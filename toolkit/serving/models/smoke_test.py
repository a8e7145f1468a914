"""What a model does on images that nobody sent, before it answers anybody."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.files import Card
from toolkit.errors import BundleError
from toolkit.serving.models.engines import Engine, synthetic_images

BATCH_SIZE = 4  # images in one run


@dataclass(frozen=True, eq=False)
class SmokeTestResult:
    """What a version gave for ``synthetic_images``: float32 (N, K) probabilities of its card's classes."""

    version: str
    card: Card
    rows: NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """A version beside the one that it replaced, on the same images.

    Parameters
    ----------
    version, against
        Which two.
    images, same_class
        How many, and for how many of them both name the same class.
    mean_difference
        Mean absolute difference of the probability of the class that the former version names.
    constant
        The class that the version names for every image, where the former one tells them apart.
    """

    version: str
    against: str
    images: int
    same_class: int
    mean_difference: float
    constant: str | None

    def __str__(self) -> str:
        text = (
            f"version {self.version} names the same class as version {self.against} for {self.same_class} of"
            f" {self.images} synthetic images; its probability differs by {self.mean_difference:.4f} on average"
        )
        return f"{text}; it names {self.constant!r} for each of them" if self.constant else text


def smoke_test(engine: Engine, card: Card, version: str) -> SmokeTestResult:
    """Run a version on ``synthetic_images``, a few at a time.

    Raises
    ------
    BundleError
        It does not give finite numbers, one for each of the card's classes.
    """
    images, classes = synthetic_images(card.image_size), len(card.classes)
    answers = []
    for first in range(0, len(images), BATCH_SIZE):
        part = images[first : first + BATCH_SIZE]
        answer = engine.infer(part)
        if answer.shape != (len(part), classes):
            raise BundleError(f"the engine answers {answer.shape} for {len(part)} images and {classes} classes")
        if not np.isfinite(answer).all():
            raise BundleError("the engine gives NaN or infinity for a synthetic image")
        answers.append(answer)
    return SmokeTestResult(version, card, np.concatenate(answers))


def compare_outputs(new: SmokeTestResult, before: SmokeTestResult) -> Agreement | None:
    """Two versions side by side; None when their classes or the sizes of their images differ."""
    if (new.card.classes, new.card.image_size) != (before.card.classes, before.card.image_size):
        return None
    same, difference = agreement(before.card.classes, before.rows, new.card.classes, new.rows)
    named, named_before = (set(tried.rows.argmax(axis=1).tolist()) for tried in (new, before))
    constant = new.card.classes[min(named)] if len(named) == 1 < len(named_before) else None
    return Agreement(
        new.version, before.version, len(same), int(same.sum()), round(float(difference.mean()), 4), constant
    )


def agreement(
    classes: Sequence[str], rows: NDArray[np.float32], other_classes: Sequence[str], other_rows: NDArray[np.float32]
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Two models' answers for the same images; their classes are matched by name.

    Parameters
    ----------
    classes, rows
        K names, and float32 (N, K) probabilities of the first model.
    other_classes, other_rows
        The same of the second.

    Returns
    -------
    bool (N,), whether both name the same class; float32 (N,), the absolute difference of the
    probabilities that they give to the class that the first one names. A class that the second
    does not know has probability 0 there.

    Examples
    --------
    >>> rows = np.array([[0.75, 0.25], [0.25, 0.75]], np.float32)
    >>> others = np.array([[0.5, 0.5], [0.875, 0.125]], np.float32)
    >>> same, difference = beside(("cat", "dog"), rows, ("dog", "cow"), others)
    >>> same.tolist(), difference.tolist()
    ([False, True], [0.75, 0.125])
    """
    column = {name: index for index, name in enumerate(other_classes)}
    best = rows.argmax(axis=1)  # (N,)
    theirs = np.array([column.get(classes[index], -1) for index in best])  # (N,), the same class in their order
    each = np.arange(len(rows))
    given = np.where(theirs >= 0, other_rows[each, theirs], np.float32(0))
    return other_rows.argmax(axis=1) == theirs, np.abs(rows[each, best] - given)
