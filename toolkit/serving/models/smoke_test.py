"""Smoke test: a model is run on synthetic images before it answers, and compared with the one that it replaces."""

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
    """Output of a version for ``synthetic_images``: float32 (N, K) probabilities of its card's classes."""

    version: str
    card: Card
    rows: NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """Comparison of a version with the one that it replaces, on the same images."""

    version: str
    against: str  # the replaced version
    images: int
    same_class: int  # images for which both predict the same class
    mean_difference: float  # of the probability of the class that the replaced version predicts; absolute
    constant: str | None  # the class that the version predicts for every image, if the replaced one does not do so

    def __str__(self) -> str:
        text = (
            f"version {self.version} predicts the same class as version {self.against} for {self.same_class} of"
            f" {self.images} synthetic images; its probability differs by {self.mean_difference:.4f} on average"
        )
        return f"{text}; it predicts {self.constant!r} for each of them" if self.constant else text


def smoke_test(engine: Engine, card: Card, version: str) -> SmokeTestResult:
    """Run an engine on ``synthetic_images``, ``BATCH_SIZE`` at a time.

    A BundleError is raised if the outputs are not finite, or not one for each of the card's classes.
    """
    images, classes = synthetic_images(card.image_size), len(card.classes)
    answers = []
    for first in range(0, len(images), BATCH_SIZE):
        part = images[first : first + BATCH_SIZE]
        answer = engine.infer(part)
        if answer.shape != (len(part), classes):
            raise BundleError(f"the engine returns {answer.shape} for {len(part)} images and {classes} classes")
        if not np.isfinite(answer).all():
            raise BundleError("the engine returns NaN or infinity for a synthetic image")
        answers.append(answer)
    return SmokeTestResult(version, card, np.concatenate(answers))


def compare_outputs(new: SmokeTestResult, old: SmokeTestResult) -> Agreement | None:
    """Compare two versions; None if their classes or image sizes differ."""
    if (new.card.classes, new.card.image_size) != (old.card.classes, old.card.image_size):
        return None
    same, difference = agreement(old.card.classes, old.rows, new.card.classes, new.rows)
    predicted, predicted_before = (set(result.rows.argmax(axis=1).tolist()) for result in (new, old))
    constant = new.card.classes[min(predicted)] if len(predicted) == 1 < len(predicted_before) else None
    return Agreement(new.version, old.version, len(same), int(same.sum()), round(float(difference.mean()), 4), constant)


def agreement(
    classes: Sequence[str], rows: NDArray[np.float32], other_classes: Sequence[str], other_rows: NDArray[np.float32]
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Agreement of two models on the same images, K classes each, which are matched by name; rows are float32 (N, K).

    Returns bool (N,), whether both predict the same class, and float32 (N,), the absolute difference of the
    probabilities of the class that the first one predicts. A class that the second one lacks has probability 0 there.

    >>> rows = np.array([[0.75, 0.25], [0.25, 0.75]], np.float32)
    >>> others = np.array([[0.5, 0.5], [0.875, 0.125]], np.float32)
    >>> same, difference = agreement(("cat", "dog"), rows, ("dog", "cow"), others)
    >>> same.tolist(), difference.tolist()
    ([False, True], [0.75, 0.125])
    """
    column = {name: index for index, name in enumerate(other_classes)}
    best = rows.argmax(axis=1)  # (N,)
    theirs = np.array([column.get(classes[index], -1) for index in best])  # (N,), the same class in their order
    each = np.arange(len(rows))
    given = np.where(theirs >= 0, other_rows[each, theirs], np.float32(0))
    return other_rows.argmax(axis=1) == theirs, np.abs(rows[each, best] - given)
