"""Where pictures come from, and which part of the work each one belongs to.

A data set is a folder with one sub-folder a class, with or without ``train/ val/ test/`` above, or
scikit-learn's digits, which need no file at all. Every picture is identified by the SHA-256 of its
content; that hash decides whether it is held out, so the same picture is held out in every run,
also when the folder grows.
"""

import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from toolkit.errors import DataError, ImageError
from toolkit.images import STATISTICS, SUFFIXES, Limits, load_picture
from toolkit.machine import usable_cores

DIGITS = "digits"
PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
FEWEST_PICTURES_A_CLASS = 2  # one to train on, one to validate on


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class Catalogue:
    """What a data set holds, before anything is decoded.

    Parameters
    ----------
    name
        What people call it: the folder's name, or ``digits``.
    classes
        Class names, sorted; a label is an index into them.
    sources
        N files, or the encoded bytes themselves.
    labels
        int64 (N,).
    hashes
        str (N,), SHA-256 of each picture's bytes, no two alike.
    parts
        str (N,): the folder above the class, ``train``, ``val`` or ``test``, or empty.
    skipped
        Files that were left out.
    mirrored
        Whether a picture may be flipped without changing its class; digits may not.
    """

    name: str
    classes: tuple[str, ...]
    sources: Sequence[Path | bytes]
    labels: NDArray[np.int64]
    hashes: NDArray[np.str_]
    parts: NDArray[np.str_]
    skipped: tuple[Skipped, ...] = ()
    mirrored: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when any picture, class or part does."""
        rows = sorted(
            f"{digest} {self.classes[label]} {part}"
            for digest, label, part in zip(self.hashes, self.labels, self.parts, strict=True)
        )
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]

    def subset(self, keep: NDArray[np.bool_], skipped: Sequence[Skipped] = ()) -> "Catalogue":
        """The pictures for which ``keep`` (N,) is true."""
        indices = np.flatnonzero(keep)
        return replace(
            self,
            sources=[self.sources[int(index)] for index in indices],
            labels=self.labels[indices],
            hashes=self.hashes[indices],
            parts=self.parts[indices],
            skipped=(*self.skipped, *skipped),
        )


@dataclass(frozen=True, eq=False)
class Pictures:
    """A data set in memory.

    Parameters
    ----------
    catalogue
        The pictures that could be decoded.
    pixels
        uint8 (N, size, size, 3), RGB.
    statistics
        float32 (N, len(STATISTICS)), the figures of ``toolkit.images.STATISTICS``.
    """

    catalogue: Catalogue
    pixels: NDArray[np.uint8]
    statistics: NDArray[np.float32]

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 (N,)."""
        return self.catalogue.labels

    @property
    def size(self) -> int:
        """Side of a picture in pixels."""
        return int(self.pixels.shape[1])


@dataclass(frozen=True)
class Split:
    """Which pictures serve what, as index arrays into a data set."""

    development: NDArray[np.int64]  # trained on and validated with
    held_out: NDArray[np.int64]  # measured once, at the end
    validation: NDArray[np.int64]  # the user's own val/ folder; empty when there is none


def open_catalogue(data: str | None) -> Catalogue:
    """List a data set without decoding it.

    Parameters
    ----------
    data
        A folder of pictures, or ``digits`` (also when None).

    Raises
    ------
    DataError
        The folder is missing or empty, has fewer than two classes, or a class has too few pictures.
    """
    if data is None or data == DIGITS:
        return _digits()
    folder = Path(data).expanduser()
    if not folder.exists():
        raise DataError(f"the folder {data} does not exist")
    if not folder.is_dir():
        raise DataError(f"{data} is a file; give a folder with one sub-folder a class, or {DIGITS!r}")
    return _folder(folder)


def decode(catalogue: Catalogue, size: int, *, progress: bool = True, limits: Limits | None = None) -> Pictures:
    """Decode every picture with the decoder that also serves; broken ones are left out and named.

    Raises
    ------
    DataError
        They do not fit into memory, or a class has too few pictures left.
    """
    count = len(catalogue)
    needed, free = count * size * size * 3, psutil.virtual_memory().available
    if needed > 0.8 * free:
        raise DataError(
            f"{count:,} pictures of {size} x {size} need {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB"
            " are free; use a smaller --image-size or fewer pictures"
        )
    pixels = np.zeros((count, size, size, 3), np.uint8)
    statistics = np.zeros((count, len(STATISTICS)), np.float32)
    limits = limits or Limits()

    def one(index: int) -> Skipped | None:
        source = catalogue.sources[index]
        try:
            picture = load_picture(_read(source), size, limits)
        except (ImageError, OSError) as error:
            return Skipped(str(source), str(error))
        pixels[index] = picture.pixels
        figures = picture.statistics()
        statistics[index] = [figures[name] for name in STATISTICS]
        return None

    with ThreadPoolExecutor(usable_cores()) as pool:  # Pillow releases the interpreter's lock
        results = list(
            tqdm(pool.map(one, range(count)), "decoding", count, unit="picture", leave=False, disable=not progress)
        )
    good = np.array([result is None for result in results], dtype=bool)
    kept = catalogue.subset(good, [result for result in results if result is not None])
    _require_enough(kept)
    return Pictures(kept, pixels[good], statistics[good])


def split(catalogue: Catalogue, held_out_share: float) -> Split:
    """Decide for each picture, by its content alone, whether it is held out.

    A ``test/`` folder is the held-out part when there is one; otherwise a picture is held out when
    its hash, read as a fraction, is below ``held_out_share``.
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
    """Cut index arrays (training, validation) with ``share`` of every class, at least one picture, in the second."""
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


def _read(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _digits() -> Catalogue:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, as BMP files, whose bytes never vary."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    sources = [_bmp((image / 16 * 255).round().astype(np.uint8)) for image in digits.images]
    catalogue = Catalogue(
        name=DIGITS,
        classes=tuple(str(digit) for digit in digits.target_names),
        sources=sources,
        labels=digits.target.astype(np.int64),
        hashes=np.array([hashlib.sha256(source).hexdigest() for source in sources]),
        parts=np.full(len(sources), ""),
        mirrored=False,
    )
    return _without_duplicates(catalogue)


def _bmp(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    return buffer.getvalue()


def _folder(folder: Path) -> Catalogue:
    listed: list[tuple[Path, str, str]] = []  # file, class, part
    # Held-out pictures come first, so that of two equal pictures the held-out one is kept.
    for part, above in sorted(_parts_of(folder), key=lambda item: ("test", "val", "train", "").index(item[0])):
        for class_folder in _sub_folders(above):
            listed += [(path, class_folder.name, part) for path in _files(class_folder)]
    with ThreadPoolExecutor(usable_cores()) as pool:
        answers = list(pool.map(_hash, [path for path, _, _ in listed]))
    skipped = [answer for answer in answers if isinstance(answer, Skipped)]
    found = [entry for entry, answer in zip(listed, answers, strict=True) if isinstance(answer, str)]
    if not found:
        raise DataError(f"the folder {folder} holds no pictures; it needs one sub-folder of pictures a class")
    classes = tuple(sorted(sorted({name for _, name, _ in found}), key=_natural))
    if len(classes) < 2:
        raise DataError(f"the folder {folder} holds only the class {classes[0]!r}; at least two are needed")
    catalogue = Catalogue(
        name=_name(folder.resolve()),
        classes=classes,
        sources=[path for path, _, _ in found],
        labels=np.array([classes.index(name) for _, name, _ in found], np.int64),
        hashes=np.array([answer for answer in answers if isinstance(answer, str)]),
        parts=np.array([part for _, _, part in found]),
        skipped=tuple(skipped),
    )
    catalogue = _without_duplicates(catalogue)
    _require_enough(catalogue)
    return catalogue


def _name(folder: Path) -> str:
    """The folder's name, with its parent's when the name alone says little."""
    return f"{folder.parent.name}/{folder.name}" if folder.name.lower() in PARTS else folder.name


def _parts_of(folder: Path) -> list[tuple[str, Path]]:
    """The folders that hold the classes, with their parts; the folder itself when it has no train/ in it."""
    inner = _sub_folders(folder)
    if not inner:
        raise DataError(f"the folder {folder} holds no sub-folders; it needs one sub-folder of pictures a class")
    training = [path for path in inner if path.name.lower() == "train"]
    strangers = [path.name for path in inner if path.name.lower() not in PARTS]
    if not training or (strangers and not any(_sub_folders(path) for path in training)):
        return [("", folder)]
    if strangers:
        raise DataError(
            f"the folder {folder} holds {strangers[0]!r} beside {training[0].name!r}, so what is a class is unclear;"
            " leave only train/, val/ and test/ in it"
        )
    return [(PARTS[path.name.lower()], path) for path in inner]


def _sub_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    """All files below a folder, without hidden ones and those in hidden folders."""
    paths = (path for path in folder.rglob("*") if path.is_file() or (path.is_symlink() and not path.exists()))
    return sorted(path for path in paths if not any(name.startswith(".") for name in path.relative_to(folder).parts))


def _natural(name: str) -> list[tuple[float, str]]:
    """Sort key that puts ``10`` after ``9``, and numbers before words."""
    return [(int(run), "") if run.isdecimal() else (math.inf, run) for run in re.findall(r"\d+|\D+", name)]


def _hash(path: Path) -> str | Skipped:
    if path.suffix.lower() not in SUFFIXES:
        return Skipped(str(path), f"its ending is none of {', '.join(sorted(SUFFIXES))}")
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return Skipped(str(path), f"it cannot be read: {error.strerror}")


def _without_duplicates(catalogue: Catalogue) -> Catalogue:
    """Keep the first of equal pictures, so that none is on two sides of a split."""
    first: dict[str, int] = {}
    keep = np.ones(len(catalogue), dtype=bool)
    skipped = []
    for index, digest in enumerate(catalogue.hashes):
        original = first.setdefault(str(digest), index)
        if original == index:
            continue
        keep[index] = False
        source, kept = catalogue.sources[index], catalogue.sources[original]
        if isinstance(source, Path) and isinstance(kept, Path):
            other = "" if catalogue.labels[index] == catalogue.labels[original] else ", under another class"
            skipped.append(Skipped(str(source), f"same content as {kept}{other}"))
    return catalogue.subset(keep, skipped)


def _require_enough(catalogue: Catalogue) -> None:
    counts = Counter(catalogue.labels.tolist())
    for label, name in enumerate(catalogue.classes):
        if counts[label] < FEWEST_PICTURES_A_CLASS:
            raise DataError(
                f"class {name!r} has {counts[label]} usable pictures, at least {FEWEST_PICTURES_A_CLASS} are needed"
                + (f" ({len(catalogue.skipped)} files were skipped)" if catalogue.skipped else "")
            )
