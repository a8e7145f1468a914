"""Splits: held out by content hash; stratified validation and folds.

The hash of an image, or of its ``--group-by`` key, decides whether it is held out. So the same image
is held out in every run, also when the data set grows, and two models can be compared on images that
neither has seen. Copies of one photograph whose hashes disagree are not moved: those on one side are
not used.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError
from toolkit.training.data.catalogue import Catalogue
from toolkit.training.data.groups import Groups
from toolkit.training.data.near_duplicates import groups_of

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]

DEVELOPMENT, VALIDATION, HELD_OUT, UNUSED = range(4)


def _none() -> Indices:
    return np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Split:
    """The use of each image, as index arrays into a data set of N."""

    development: Indices  # to train on, and to validate on if ``validation`` is empty
    held_out: Indices  # to evaluate on, once, at the end
    validation: Indices
    unused: Indices = field(default_factory=_none)  # belong to others on another side, or copies of held-out images
    groups: Indices | None = None  # (N,), equal for images that are kept together; None if each is its own group
    copies: Indices = field(default_factory=lambda: np.empty((0, 2), np.int64))  # pairs of one photograph

    @property
    def held_out_groups(self) -> int:
        """The number of held-out groups: the least number of independent measurements."""
        return len(self.held_out) if self.groups is None else len(np.unique(self.groups[self.held_out]))


def split(catalogue: Catalogue, test_fraction: float, groups: Groups | None = None) -> Split:
    """Decide by content alone which images are held out.

    A ``test/`` folder is the held-out part when there is one. Otherwise an image is held out when its
    hash, read as a fraction, is below ``test_fraction``: the hash of its content, or of its key where
    it has one. The image or key of each class with the largest hash is never held out, so that there is
    one to train on, nor is the largest of all others, so that there is one to validate on; if none is
    below the fraction, the smallest is held out.

    Of copies on several sides, those on one side are used and the others are not. That is the side of
    the copy that is kept for its class, else of one in ``test/`` or ``val/``, else of the first by another
    part of its content's hash. Only one of several held-out copies is evaluated on.

    As the data set grows, no image changes from held out to trained on, unless it was the only one held
    out and above the fraction; and none from trained on to held out, unless it is below the fraction and
    was kept for its class. A new copy may make others unused.

    Raises
    ------
    DataError
        No image can be held out, or a class has none to train on.
    """
    groups = groups or Groups()
    if (catalogue.parts == "test").any():
        places = _by_folder(catalogue, groups)
    else:
        places = _by_hash(catalogue, test_fraction, groups)
    _require_training(catalogue, places)
    development, validation, held_out, unused = (np.flatnonzero(places == place) for place in range(4))
    return Split(development, held_out, validation, unused, groups.numbers(len(catalogue)), groups.copies)


def _by_folder(catalogue: Catalogue, groups: Groups) -> Indices:
    """The use of each image, int64 (N,), by its folder."""
    places = np.select([catalogue.parts == "test", catalogue.parts == "val"], [HELD_OUT, VALIDATION], DEVELOPMENT)
    return _settle(places, places + _fractions(_reversed(catalogue.hashes)), groups)


def _by_hash(catalogue: Catalogue, share: float, groups: Groups) -> Indices:
    """The use of each image, int64 (N,), by its hash or that of its key."""
    fractions, free = _fractions(catalogue.hashes), catalogue.parts != "val"
    if groups.keys is not None:
        fractions = np.where(groups.keys == "", fractions, _fractions(_digests(groups.keys)))
    kept = _kept(catalogue, fractions, free, groups)
    places = np.select([~free, ~kept & (fractions < share)], [VALIDATION, HELD_OUT], DEVELOPMENT)
    weights = _fractions(_reversed(catalogue.hashes)) + ~free + 2 * kept
    settled = _settle(places, weights, groups)
    if (settled == HELD_OUT).any():
        return settled
    spare = free & ~_related(kept, groups)
    if not spare.any():
        raise DataError(
            f"none of the {len(catalogue)} images can be held out, since each class has only one to train on"
            " (copies and groups count once); add images, or make a test/ folder"
        )
    chosen = free & (fractions == fractions[spare].min())
    return _settle(np.where(chosen, HELD_OUT, places), weights + 2 * chosen, groups)


def _kept(catalogue: Catalogue, fractions: Floats, free: NDArray[np.bool_], groups: Groups) -> NDArray[np.bool_]:
    """Whether each image (N,) is never held out: a key or image of each class, and one more in all to validate on."""
    largest = _largest(fractions, catalogue.labels, np.flatnonzero(free))
    kept = free & np.isin(fractions, fractions[largest])
    spare = free & ~_related(kept, groups)
    if len(np.unique(fractions[spare])) > 1:
        kept |= free & (fractions == fractions[spare].max())
    return kept


def _related(images: NDArray[np.bool_], groups: Groups) -> NDArray[np.bool_]:
    """The images (N,), and all others of their groups."""
    numbers = groups.numbers(len(images))
    return images if numbers is None else np.isin(numbers, numbers[images])


def _fractions(digests: NDArray[np.str_]) -> Floats:
    """Hexadecimal digits (N,) as fractions from 0 to 1."""
    return np.array([int(digest[:13], 16) / 16**13 for digest in digests.tolist()], np.float64)


def _reversed(digests: NDArray[np.str_]) -> NDArray[np.str_]:
    """The digits reversed, for fractions independent of the first."""
    return np.array([digest[::-1] for digest in digests.tolist()])


def _digests(keys: NDArray[np.str_]) -> NDArray[np.str_]:
    known = {key: hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest() for key in set(keys.tolist())}
    return np.array([known[key] for key in keys.tolist()])


def _largest(values: Floats, groups: Indices, among: Indices) -> Indices:
    """The index of the largest value of each group."""
    order = among[np.lexsort((values[among], groups[among]))]
    last: Indices = order[np.diff(groups[order], append=-1) != 0]
    return last


def _settle(places: Indices, weights: Floats, groups: Groups) -> Indices:
    """Make unused what is not on the side of its group's image of largest weight, and all held-out copies but one."""
    places, everything = places.copy(), np.arange(len(places))
    for links in (groups.links, groups.copies):
        numbers = groups_of(links, len(places))
        leaders = _largest(np.where(places == UNUSED, -1, weights), numbers, everything)[numbers]
        places[places != places[leaders]] = UNUSED
        if links is groups.copies:
            places[(places == HELD_OUT) & (leaders != everything)] = UNUSED
    return places


def _require_training(catalogue: Catalogue, places: Indices) -> None:
    found = set(catalogue.labels[places == DEVELOPMENT].tolist())
    for label, name in enumerate(catalogue.classes):
        if label not in found:
            unused = int(((catalogue.labels == label) & (places == UNUSED)).sum())
            why = f": {unused} belong to images in test/ or val/, so they are not used" if unused else ""
            raise DataError(f"class {name!r} has no image to train on{why}")


def stratified(labels: Indices, fraction: float, seed: int, groups: Indices | None = None) -> tuple[Indices, Indices]:
    """Split into index arrays (training, validation), a fraction of every class, at least one image, in the second.

    A class of one image, or of one group, is trained on. Images with the same number in ``groups`` are on
    one side.

    Examples
    --------
    >>> training, validation = stratified(np.array([0] * 20 + [1] * 5), fraction=0.2, seed=0)
    >>> len(training), int((validation < 20).sum()), int((validation >= 20).sum())
    (20, 4, 1)
    """
    generator = np.random.default_rng(seed)
    if groups is not None and len(np.unique(groups)) < len(groups):
        return _stratified_groups(labels, fraction, generator, groups)
    chosen: list[Indices] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = max(1, round(fraction * len(members)))
        chosen.append(generator.permutation(members)[: min(count, len(members) - 1)])
    validation = np.sort(np.concatenate(chosen))
    return np.setdiff1d(np.arange(len(labels)), validation), validation


def _stratified_groups(
    labels: Indices, fraction: float, generator: np.random.Generator, groups: Indices
) -> tuple[Indices, Indices]:
    """Groups in random order, while each class lacks some and has others to train on; then single images."""
    sizes = np.bincount(labels)
    wanted, left = np.maximum(1, np.round(fraction * sizes)), sizes.copy()
    alone, others = _single_and_grouped(labels, groups)
    single, taken = np.bincount(labels[alone], minlength=len(sizes)), np.zeros(len(sizes), np.int64)
    validated = alone & False
    for place in generator.permutation(len(others)).tolist():
        members = others[place]
        own, number = np.unique(labels[members], return_counts=True)
        fits = taken[own] + number / 2 <= fraction * (sizes - single)[own]
        if (fits | ((single + taken)[own] == 0)).all() and (left[own] > number).all():
            validated[members] = True
            taken[own] += number
            left[own] -= number
    for label in np.unique(labels[alone]).tolist():
        members = generator.permutation(np.flatnonzero(alone & (labels == label)))
        validated[members[: max(0, int(min(wanted[label] - taken[label], left[label] - 1)))]] = True
    return np.flatnonzero(~validated), np.flatnonzero(validated)


def _single_and_grouped(labels: Indices, groups: Indices) -> tuple[NDArray[np.bool_], list[Indices]]:
    """Whether each image (N,) is a group of its own, and the indices of each larger group, the largest first."""
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    alone = np.zeros(len(labels), np.bool_)
    alone[[part[0] for part in parts if len(part) == 1]] = True
    return alone, sorted((part for part in parts if len(part) > 1), key=len, reverse=True)


def stratified_folds(
    labels: Indices, folds: int, seed: int, classes: Sequence[str], groups: Indices | None = None
) -> Iterator[tuple[Indices, Indices]]:
    """Index arrays (training, validation) of stratified k-fold cross-validation.

    Images with the same number in ``groups`` are in one fold. Class names are for the error.

    Raises
    ------
    DataError
        A class has fewer images, or groups of them, than there are folds, or its groups cannot be spread.
    """
    require_folds(labels, folds, classes, groups)
    if groups is not None and len(np.unique(groups)) < len(groups):
        fold_of = _fold_of_groups(labels, folds, np.random.default_rng(seed), groups)
        for label in np.unique(labels).tolist():
            if len(np.unique(fold_of[labels == label])) == 1:
                raise DataError(
                    f"class {classes[label]!r} would be in one of the {folds} folds only: its images belong together"
                    " with those of other classes; change --group-by or --folds"
                )
        return ((np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(folds))
    from sklearn.model_selection import StratifiedKFold  # its import takes a second

    return iter(StratifiedKFold(folds, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels))


def require_folds(labels: Indices, folds: int, classes: Sequence[str], groups: Indices | None = None) -> None:
    """Raise a DataError if a class has fewer images, or groups of them, than there are folds."""
    counts = np.bincount(labels, minlength=len(classes))
    apart = (
        counts
        if groups is None
        else np.bincount(np.unique(np.stack([labels, groups]), axis=1)[0], minlength=len(classes))
    )
    smallest = int(apart.argmin())
    if apart[smallest] < folds:
        among = f" in {apart[smallest]} groups" if apart[smallest] < counts[smallest] else ""
        raise DataError(
            f"class {classes[smallest]!r} has {counts[smallest]} images{among} to cross-validate on,"
            f" fewer than the {folds} folds; add images or lower --folds"
        )


def _fold_of_groups(labels: Indices, folds: int, generator: np.random.Generator, groups: Indices) -> Indices:
    """The fold of each image, int64 (N,): the largest groups first, each to the fold where its classes are rarest."""
    alone, others = _single_and_grouped(labels, groups)
    counts = np.zeros((folds, int(labels.max()) + 1), np.int64)  # images of each class in each fold
    fold_of = np.zeros(len(labels), np.int64)
    for members in others:
        own, number = np.unique(labels[members], return_counts=True)
        # A class that is in only one fold so far goes to another, so that every training part has it.
        only_there = (counts[:, own] > 0) & (counts[:, own] == counts[:, own].sum(axis=0))
        keys = counts.sum(axis=1), counts[:, own].max(axis=1), only_there.sum(axis=1)
        rarest = np.lexsort((generator.random(folds), *keys))
        fold_of[members] = rarest[0]
        counts[rarest[0], own] += number
    for label in np.unique(labels[alone]).tolist():
        members = generator.permutation(np.flatnonzero(alone & (labels == label)))
        levels = counts[:, label] + np.arange(len(members))[:, None]  # of a fold before each further image
        places = np.lexsort((np.tile(generator.random(folds), len(members)), levels.ravel()))[: len(members)]
        fold_of[members] = places % folds
    return fold_of
