"""A folder of labelled pictures, and what models answer about them.

Versions that were trained on other data, or at other sizes, are compared on the same pictures: each
file is read once, decoded for each image size by the one decoder, and shown to every program.
"""

import hashlib
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from toolkit.bundle.baseline import Baseline
from toolkit.bundle.program import Bundle
from toolkit.cli.safe_names import class_of, shown
from toolkit.cli.terminal import bar, say
from toolkit.errors import DataError, ImageError, known, one_line
from toolkit.images.decoding import SUFFIXES, load_picture
from toolkit.images.folders import find_parts, list_files, sub_folders
from toolkit.registry.latency import at_most_threads
from toolkit.system.metrics import usable_cores

TEST = "test"  # the part whose pictures no version was trained on
BATCH = 64  # pictures that are in memory at a time, and that a program answers at once
NAMED = 3  # pictures that are named of those that were skipped
MOST_LINES, PICTURES_A_LINE = 10, 1000  # of progress where there is no terminal: at most, and at least


@dataclass(frozen=True, order=True)
class Labelled:
    """A file that should be a picture, and the class it belongs to."""

    of: str
    path: Path


def read_labelled(folder: Path) -> list[Labelled]:
    """The pictures in a folder with one sub-folder a class.

    Files count by their endings; what is in sub-folders of a class belongs to it; hidden files and
    folders of programs do not count. Where ``train/``, ``val/`` and ``test/`` are above the classes,
    under these or other names (``toolkit.images.folders.PART_NAMES``), only the last is taken, and that is
    said: versions may have been trained on the others.

    Parameters
    ----------
    folder
        Such as ``photos``, with ``photos/cat/1.jpg`` and ``photos/dog/1.png`` in it.

    Returns
    -------
    Sorted by class and path, at least one.

    Raises
    ------
    DataError
        There is no such folder, it holds no classes or no pictures, or what is a class is unclear.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as photos:
    ...     for name in ("dog/1.png", "cat/2.jpg", "cat/notes.txt"):
    ...         path = Path(photos, name)
    ...         path.parent.mkdir(exist_ok=True)
    ...         path.touch()
    ...     [(picture.of, picture.path.name) for picture in read_labelled(Path(photos))]
    [('cat', '2.jpg'), ('dog', '1.png')]
    """
    try:
        folder = folder.expanduser()
        if not folder.exists():
            raise DataError(f"the folder {shown(folder)} does not exist")
        if not folder.is_dir():
            raise DataError(f"{shown(folder)} is a file; give a folder with one sub-folder of pictures a class")
        above = _above_classes(folder)
        pictures = sorted(picture for outer in above for inner in sub_folders(outer) for picture in _listed(inner))
    except (OSError, RuntimeError) as error:  # RuntimeError: a home folder that is not known
        raise DataError(f"the folder {shown(folder)} cannot be read: {one_line(error)}") from None
    if not pictures:
        raise DataError(
            f"the folder {shown(above[0])} holds no pictures in sub-folders; their names end in"
            f" {', '.join(sorted(SUFFIXES))}"
        )
    return pictures


def answers_of(bundles: Sequence[Bundle], pictures: Sequence[Labelled]) -> list[Baseline]:
    """What each program answers about the same pictures.

    Each file is read once; a few dozen pictures are in memory at a time. Broken pictures are
    skipped, exact duplicates count once, under the first of their classes; both are said. A picture
    whose class a bundle does not know, by exactly its name, is left out of that bundle's answers.

    Parameters
    ----------
    bundles
        Verified and loaded; their image sizes and classes may differ.
    pictures
        As ``read_labelled`` gives them.

    Returns
    -------
    One baseline a bundle, in the order of the bundles, without statistics. A picture's hash is that
    of its file, as in the baselines of a training, so ``paired.pair`` finds what versions share.

    Raises
    ------
    DataError
        No bundle knows a class of the pictures, or not one picture can be used.
    """
    pictures = _of_known_classes(bundles, pictures)
    sizes = sorted({bundle.card.image_size for bundle in bundles})
    gathered, sieve = [_Answers(bundle) for bundle in bundles], _Sieve()
    with at_most_threads(usable_cores()), closing(_decoded(pictures, sizes)) as batches:
        for batch in batches:
            usable = [picture for picture in batch if sieve.passes(picture)]
            for answers in gathered:
                answers.add(usable)
    sieve.report()
    return [answers.baseline() for answers in gathered]


@dataclass(frozen=True, eq=False)
class _Read:
    """A picture that was read: its pixels by size, uint8 (size, size, 3), or the reason why there are none."""

    source: Labelled
    digest: str = ""
    pixels: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict)
    reason: str = ""


class _Answers:
    """What one program answers, gathered batch by batch."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self._size = bundle, bundle.card.image_size
        self._label_of = {class_of(name): label for label, name in enumerate(bundle.card.classes)}
        self._probabilities = [np.zeros((0, len(self._label_of)), np.float16)]
        self._labels: list[int] = []
        self._hashes: list[str] = []

    def add(self, pictures: Sequence[_Read]) -> None:
        """Ask about those pictures whose class the program knows."""
        mine = [picture for picture in pictures if picture.source.of in self._label_of]
        if not mine:
            return
        pixels = np.stack([picture.pixels[self._size] for picture in mine])  # (n, size, size, 3)
        self._probabilities.append(self._bundle.predict(pixels).astype(np.float16))  # as a baseline rounds
        self._labels += [self._label_of[picture.source.of] for picture in mine]
        self._hashes += [picture.digest for picture in mine]

    def baseline(self) -> Baseline:
        """All answers."""
        return Baseline(
            classes=self._bundle.card.classes,
            probabilities=np.concatenate(self._probabilities),
            labels=np.array(self._labels, np.int64),
            hashes=np.array(self._hashes, np.str_),
        )


class _Sieve:
    """Lets each picture pass once and holds back what is broken."""

    def __init__(self) -> None:
        self._class_of: dict[str, str] = {}  # by hash
        self._duplicates = self._contradictions = 0
        self._broken: list[_Read] = []

    def passes(self, picture: _Read) -> bool:
        """Whether a picture can be used and was not seen before."""
        if picture.reason:
            self._broken.append(picture)
            return False
        if picture.digest in self._class_of:
            self._duplicates += 1
            self._contradictions += self._class_of[picture.digest] != picture.source.of
            return False
        self._class_of[picture.digest] = picture.source.of
        return True

    def report(self) -> None:
        """Say what was held back; a DataError when nothing passed."""
        named = "; ".join(f"{shown(picture.source.path)}: {picture.reason}" for picture in self._broken[:NAMED])
        more = "" if len(self._broken) <= NAMED else f"; and {len(self._broken) - NAMED:,} more"
        if not self._class_of:
            raise DataError(f"not one picture can be used: {named}{more}")
        if self._broken:
            say(f"skipped {_count(len(self._broken), 'picture')}: {named}{more}")
        if self._duplicates:
            other = f", {self._contradictions:,} of them under another class" if self._contradictions else ""
            say(f"left out {_count(self._duplicates, 'exact duplicate')}{other}")


def _above_classes(folder: Path) -> list[Path]:
    """The folders whose sub-folders are the classes: the one that was given, or test/ in it."""
    parts = find_parts(folder)
    if not parts[0][0]:
        return [folder]
    tests = [path for part, path in parts if part == TEST]
    if not any(sub_folders(path) for path in tests):
        names = ", ".join(sorted(shown(path.name) for part, path in parts if part != TEST))
        raise DataError(
            f"the folder {shown(folder)} holds {names} and no {TEST} with folders of classes, and versions may have"
            f" been trained on those; give the folder that holds the classes, such as {shown(parts[0][1])}"
        )
    if len(parts) > len(tests):
        only = " and ".join(f"{shown(path.relative_to(folder))}/" for path in tests)
        say(f"of {shown(folder)} only {only} is used: versions may have been trained on the rest")
    return tests


def _listed(folder: Path) -> list[Labelled]:
    """The pictures of a class: all files below its folder that end as a picture does."""
    paths = list_files(folder, SUFFIXES).files
    return [Labelled(class_of(folder.name), path) for path in paths if path.suffix.lower() in SUFFIXES]


def _of_known_classes(bundles: Sequence[Bundle], pictures: Sequence[Labelled]) -> list[Labelled]:
    """The pictures of classes that some bundle knows; what is left out is said."""
    known_to = [{class_of(name) for name in bundle.card.classes} for bundle in bundles]
    ours = dict.fromkeys(class_of(name) for bundle in bundles for name in bundle.card.classes)
    theirs = dict.fromkeys(picture.of for picture in pictures)
    chosen = [picture for picture in pictures if picture.of in ours]
    if not chosen:
        there = known(ours, next(iter(theirs), ""))
        raise DataError(f"no model knows a class of the pictures, {known(theirs)}; the models know: {there}")
    if strange := [name for name in theirs if name not in ours]:
        say(f"left out {_count(len(pictures) - len(chosen), 'picture')} of classes no model knows: {known(strange)}")
    if half := [name for name in theirs if 0 < sum(name in classes for classes in known_to) < len(bundles)]:
        say(f"some models do not know these classes, and are not measured on them: {known(half)}")
    return chosen


def _decoded(pictures: Sequence[Labelled], sizes: Sequence[int]) -> Generator[list[_Read], None, None]:
    """Batches of pictures in order, each decoded by all cores before the programs take over."""
    label, every = bar("evaluating"), max(PICTURES_A_LINE, -(-len(pictures) // MOST_LINES))
    with (
        ThreadPoolExecutor(usable_cores()) as pool,  # Pillow releases the interpreter's lock
        tqdm(total=len(pictures), desc=label, unit="picture", leave=False, disable=label is None) as progress,
    ):
        done = 0
        for start in range(0, len(pictures), BATCH):
            yield list(pool.map(partial(_read, sizes=sizes), pictures[start : start + BATCH]))
            before, done = done, min(start + BATCH, len(pictures))
            progress.update(done - before)
            if label is None and done // every > before // every:
                say(f"evaluated {done:,} of {len(pictures):,} pictures")


def _read(source: Labelled, sizes: Sequence[int]) -> _Read:
    try:
        data = source.path.read_bytes()
        pixels = {size: load_picture(data, size).pixels for size in sizes}
    except OSError as error:
        return _Read(source, reason=f"it cannot be read: {error.strerror or one_line(error)}")
    except ImageError as error:
        return _Read(source, reason=one_line(error))
    return _Read(source, hashlib.sha256(data).hexdigest(), pixels)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
