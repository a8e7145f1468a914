"""A folder of labelled images, and the predictions of models for them.

Versions that were trained on different data, or at different sizes, are compared on the same images: each
file is read once, decoded for each image size, and run through every program.
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
from toolkit.cli.safe_names import class_name, display_name
from toolkit.cli.terminal import bar_label, echo
from toolkit.errors import DataError, ImageError, first_line, suggest
from toolkit.images.decoding import SUFFIXES, load_image
from toolkit.images.folders import find_parts, list_files, sub_folders
from toolkit.registry.latency import at_most_threads
from toolkit.system.metrics import usable_cores

TEST = "test"  # the part that no version was trained on
BATCH = 64  # images in memory at a time
MAX_NAMED = 3  # skipped images named in a message
MAX_LINES, IMAGES_A_LINE = 10, 1000  # of progress without a terminal: at most, and at least


@dataclass(frozen=True, order=True)
class LabelledImage:
    """An image file and its class."""

    label: str
    path: Path


def read_labelled(folder: Path) -> list[LabelledImage]:
    """The images in a folder with one sub-folder a class, sorted by class and path, at least one.

    Files count by suffix; those in sub-folders of a class belong to it; hidden files and folders of programs
    do not count. Where ``train/``, ``val/`` and ``test/`` are above the classes, under these or other names
    (``toolkit.images.folders.PART_NAMES``), only the last is read, with a message: versions may have been
    trained on the others.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as photos:
    ...     for name in ("dog/1.png", "cat/2.jpg", "cat/notes.txt"):
    ...         path = Path(photos, name)
    ...         path.parent.mkdir(exist_ok=True)
    ...         path.touch()
    ...     [(image.label, image.path.name) for image in read_labelled(Path(photos))]
    [('cat', '2.jpg'), ('dog', '1.png')]
    """
    try:
        folder = folder.expanduser()
        if not folder.exists():
            raise DataError(f"the folder {display_name(folder)} does not exist")
        if not folder.is_dir():
            raise DataError(f"{display_name(folder)} is a file; give a folder with one sub-folder of images a class")
        above = _above_classes(folder)
        images = sorted(
            LabelledImage(class_name(inner.name), path)
            for outer in above
            for inner in sub_folders(outer)
            for path in list_files(inner, SUFFIXES).files
            if path.suffix.lower() in SUFFIXES
        )
    except (OSError, RuntimeError) as error:  # RuntimeError: a home folder that is not known
        raise DataError(f"the folder {display_name(folder)} cannot be read: {first_line(error)}") from None
    if not images:
        raise DataError(
            f"the folder {display_name(above[0])} holds no images in sub-folders; their names end in"
            f" {', '.join(sorted(SUFFIXES))}"
        )
    return images


def predict_all(bundles: Sequence[Bundle], images: Sequence[LabelledImage]) -> list[Baseline]:
    """Predict the same images with each program.

    Each file is read once; a few dozen images are in memory at a time. Broken images are skipped and exact
    duplicates count once, under the first of their classes; both are reported. An image of a class that a
    bundle does not know, by exactly its name, is left out of that bundle's predictions. ``DataError``: no
    bundle knows a class of the images, or not one image can be used.

    Returns
    -------
    One baseline a bundle, in the order of the bundles, without statistics. An image's hash is that
    of its file, as in the baselines of a training, so ``mcnemar.pair_by_hash`` finds the shared images.
    """
    images = _of_known_classes(bundles, images)
    sizes = sorted({bundle.card.image_size for bundle in bundles})
    collectors, deduplicator = [_PredictionCollector(bundle) for bundle in bundles], _Deduplicator()
    with at_most_threads(usable_cores()), closing(_decode_batches(images, sizes)) as batches:
        for batch in batches:
            usable = [image for image in batch if deduplicator.accepts(image)]
            for collector in collectors:
                collector.add(usable)
    deduplicator.report()
    return [collector.baseline() for collector in collectors]


@dataclass(frozen=True, eq=False)
class _Decoded:
    """A decoded image: its pixels by size, uint8 (size, size, 3), or the reason why there are none."""

    source: LabelledImage
    digest: str = ""
    pixels: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict)
    reason: str = ""


class _PredictionCollector:
    """The predictions of one program, batch by batch."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self._size = bundle, bundle.card.image_size
        self._index_of = {class_name(name): index for index, name in enumerate(bundle.card.classes)}
        self._probabilities = [np.zeros((0, len(self._index_of)), np.float16)]
        self._labels: list[int] = []
        self._hashes: list[str] = []

    def add(self, images: Sequence[_Decoded]) -> None:
        """Predict the images of classes that the program knows."""
        if known := [image for image in images if image.source.label in self._index_of]:
            pixels = np.stack([image.pixels[self._size] for image in known])  # (n, size, size, 3)
            self._probabilities.append(self._bundle.predict(pixels).astype(np.float16))  # as a baseline rounds
            self._labels += [self._index_of[image.source.label] for image in known]
            self._hashes += [image.digest for image in known]

    def baseline(self) -> Baseline:
        """All predictions as a baseline."""
        hashes, probabilities = np.array(self._hashes, np.str_), np.concatenate(self._probabilities)
        return Baseline(self._bundle.card.classes, probabilities, np.array(self._labels), hashes)


class _Deduplicator:
    """Accepts each image once and collects the broken ones."""

    def __init__(self) -> None:
        self._class_of: dict[str, str] = {}  # by hash
        self._duplicates = self._contradictions = 0
        self._broken: list[_Decoded] = []

    def accepts(self, image: _Decoded) -> bool:
        """Whether an image is intact and new."""
        if image.reason:
            self._broken.append(image)
            return False
        if image.digest in self._class_of:
            self._duplicates += 1
            self._contradictions += self._class_of[image.digest] != image.source.label
            return False
        self._class_of[image.digest] = image.source.label
        return True

    def report(self) -> None:
        """Print what was left out; ``DataError`` when no image was accepted."""
        named = "; ".join(f"{display_name(image.source.path)}: {image.reason}" for image in self._broken[:MAX_NAMED])
        more = "" if len(self._broken) <= MAX_NAMED else f"; and {len(self._broken) - MAX_NAMED:,} more"
        if not self._class_of:
            raise DataError(f"not one image can be used: {named}{more}")
        if self._broken:
            echo(f"skipped {_count(len(self._broken), 'image')}: {named}{more}")
        if self._duplicates:
            other = f", {self._contradictions:,} of them under another class" if self._contradictions else ""
            echo(f"left out {_count(self._duplicates, 'exact duplicate')}{other}")


def _above_classes(folder: Path) -> list[Path]:
    """The folders of classes: the given one, or test/ in it."""
    parts = find_parts(folder)
    if not parts[0][0]:
        return [folder]
    tests = [path for part, path in parts if part == TEST]
    if not any(sub_folders(path) for path in tests):
        names = ", ".join(sorted(display_name(path.name) for part, path in parts if part != TEST))
        raise DataError(
            f"the folder {display_name(folder)} holds {names} and no {TEST} with folders of classes, and versions may"
            f" have been trained on those; give the folder that holds the classes, such as {display_name(parts[0][1])}"
        )
    if len(parts) > len(tests):
        only = " and ".join(f"{display_name(path.relative_to(folder))}/" for path in tests)
        echo(f"of {display_name(folder)} only {only} is used: versions may have been trained on the rest")
    return tests


def _of_known_classes(bundles: Sequence[Bundle], images: Sequence[LabelledImage]) -> list[LabelledImage]:
    """The images of classes that some bundle knows; the others are reported."""
    known = [dict.fromkeys(map(class_name, bundle.card.classes)) for bundle in bundles]
    model_classes = {name: None for classes in known for name in classes}
    image_classes = dict.fromkeys(image.label for image in images)
    chosen = [image for image in images if image.label in model_classes]
    if not chosen:
        nearest = suggest(model_classes, next(iter(image_classes), ""))
        raise DataError(f"no model knows a class of the images, {suggest(image_classes)}; the models know: {nearest}")
    if unknown := [name for name in image_classes if name not in model_classes]:
        echo(f"left out {_count(len(images) - len(chosen), 'image')} of classes no model knows: {suggest(unknown)}")
    if partly := [name for name in image_classes if 0 < sum(name in classes for classes in known) < len(bundles)]:
        echo(f"some models do not know these classes, and are not measured on them: {suggest(partly)}")
    return chosen


def _decode_batches(images: Sequence[LabelledImage], sizes: Sequence[int]) -> Generator[list[_Decoded], None, None]:
    """Batches of images in order, each decoded on all cores before the programs run."""
    label, every = bar_label("evaluating"), max(IMAGES_A_LINE, -(-len(images) // MAX_LINES))
    with (
        ThreadPoolExecutor(usable_cores()) as pool,  # Pillow releases the interpreter's lock
        tqdm(total=len(images), desc=label, unit="image", leave=False, disable=label is None) as progress,
    ):
        done = 0
        for start in range(0, len(images), BATCH):
            yield list(pool.map(partial(_decode, sizes=sizes), images[start : start + BATCH]))
            before, done = done, min(start + BATCH, len(images))
            progress.update(done - before)
            if label is None and done // every > before // every:
                echo(f"evaluated {done:,} of {len(images):,} images")


def _decode(source: LabelledImage, sizes: Sequence[int]) -> _Decoded:
    try:
        data = source.path.read_bytes()
        pixels = {size: load_image(data, size).pixels for size in sizes}
    except OSError as error:
        return _Decoded(source, reason=f"it cannot be read: {error.strerror or first_line(error)}")
    except ImageError as error:
        return _Decoded(source, reason=first_line(error))
    return _Decoded(source, hashlib.sha256(data).hexdigest(), pixels)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
