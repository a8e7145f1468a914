"""Which pictures serve what: held out for ever, trained on, or validated on.

A picture's hash decides whether it is held out, so the same picture is held out in every run, also
when the data set grows, and two models can be compared on pictures that neither has seen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError
from toolkit.training.datasets import Catalogue


@dataclass(frozen=True)
class Split:
    """Which pictures serve what, as index arrays into a data set."""

    development: NDArray[np.int64]  # trained on and validated with
    held_out: NDArray[np.int64]  # measured once, at the end
    validation: NDArray[np.int64]  # the user's own val/ folder; empty when there is none


def split(catalogue: Catalogue, held_out_share: float) -> Split:
    """Decide for each picture, by its content alone, whether it is held out.

    A ``test/`` folder is the held-out part when there is one; otherwise a picture is held out when
    its hash, read as a fraction, is below ``held_out_share``.

    Raises
    ------
    DataError
        No picture is held out, or a class has none to train on.
    """
    if (catalogue.parts == "test").any():
        held_out = catalogue.parts == "test"
    else:
        fractions = np.array([int(digest[:13], 16) / 16**13 for digest in catalogue.hashes])
        held_out = (fractions < held_out_share) & (catalogue.parts != "val")
    if not held_out.any():
        raise DataError(
            f"none of the {len(catalogue)} pictures falls into the held-out share of {held_out_share:g};"
            " add pictures, raise --held-out, or make a test/ folder"
        )
    validation = catalogue.parts == "val"
    development = ~held_out & ~validation
    found = set(catalogue.labels[development].tolist())
    for label, name in enumerate(catalogue.classes):
        if label not in found:
            raise DataError(f"class {name!r} has no picture to train on")
    return Split(np.flatnonzero(development), np.flatnonzero(held_out), np.flatnonzero(validation))


def stratified(labels: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut index arrays (training, validation) with ``share`` of every class, at least one picture, in the second.

    Examples
    --------
    >>> training, validation = stratified(np.array([0] * 20 + [1] * 5), share=0.2, seed=0)
    >>> len(training), int((validation < 20).sum()), int((validation >= 20).sum())
    (20, 4, 1)
    """
    generator = np.random.default_rng(seed)
    chosen: list[NDArray[np.int64]] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = max(1, round(share * len(members)))
        chosen.append(generator.permutation(members)[: min(count, len(members) - 1)])
    validation = np.sort(np.concatenate(chosen))
    return np.setdiff1d(np.arange(len(labels)), validation), validation


def stratified_folds(
    labels: NDArray[np.int64], folds: int, seed: int, classes: Sequence[str]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Index arrays (training, validation) of stratified k-fold cross-validation.

    Raises
    ------
    DataError
        A class has fewer pictures than there are folds.
    """
    from sklearn.model_selection import StratifiedKFold  # a second of import that only cross-validation needs

    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() < folds:
        smallest = int(counts.argmin())
        raise DataError(
            f"class {classes[smallest]!r} has {counts[smallest]} pictures to cross-validate on,"
            f" fewer than the {folds} folds; add pictures or lower --folds"
        )
    return iter(StratifiedKFold(folds, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels))
