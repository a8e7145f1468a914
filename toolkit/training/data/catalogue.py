"""The catalogue of a data set: its images, listed before anything is decoded.

A data set is a folder with one sub-folder per class, with or without ``train/ val/ test/`` above, a
folder of IDX files, or a name. Every image is identified by the SHA-256 of its content, and only one
of equal images is listed. Skipped files and remarks are listed as well.
"""

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.cli.safe_names import class_name, display_name
from toolkit.errors import DataError, first_line, suggest
from toolkit.images.decoding import SNIFFED_BYTES, SUFFIXES, format_of
from toolkit.images.folders import Listing, find_parts, list_files, part_of, stray_files, sub_folders
from toolkit.system.metrics import usable_cores
from toolkit.training.data.arrays import ArraySet, Encoded
from toolkit.training.data.builtin import DIGITS, NAMES, load_builtin, open_idx
from toolkit.training.data.idx import holds_idx

UNREADABLE = "it cannot be read"
MIN_IMAGES_PER_CLASS = 2  # one to train on, one to validate on


@dataclass(frozen=True)
class Skipped:
    """A file, or a folder of ``count`` files, that was skipped, and why."""

    path: str
    reason: str
    count: int = field(default=1, kw_only=True)


@dataclass(frozen=True)
class Duplicate(Skipped):
    """An image that was skipped because an equal one is in the data set."""

    original: str  # the path of the one that was kept
    classes: tuple[str, str]  # of the skipped image, and of the original
    parts: tuple[str, str]


@dataclass(frozen=True)
class Remark:
    """A file that is used, and what is unusual about it."""

    path: str
    text: str


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The images of a data set, before anything is decoded."""

    name: str  # the folder's, or that of a built-in data set
    classes: tuple[str, ...]  # sorted, or in the set's own order; a label is an index into them
    sources: Sequence[Path | bytes]  # N files, or encoded images
    labels: NDArray[np.int64]  # (N,)
    hashes: NDArray[np.str_]  # (N,), SHA-256 of each image's bytes, all different
    parts: NDArray[np.str_]  # (N,), the folder above the class, ``train``, ``val`` or ``test``, or empty
    skipped: tuple[Skipped, ...] = ()
    allow_flip: bool = True  # whether an image may be flipped without changing its class; digits may not
    remarks: tuple[Remark, ...] = ()  # on files that are used

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when any image, class or part does."""
        rows = sorted(
            f"{digest} {self.classes[label]} {part}"
            for digest, label, part in zip(self.hashes, self.labels, self.parts, strict=True)
        )
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]

    def subset(self, keep: NDArray[np.bool_], skipped: Sequence[Skipped] = ()) -> "Catalogue":
        """The images for which ``keep`` (N,) is true, with more files ``skipped``."""
        indices, sources = np.flatnonzero(keep), self.sources
        kept = sources.take(indices) if isinstance(sources, Encoded) else [sources[index] for index in indices.tolist()]
        removed = {self.path(index) for index in np.flatnonzero(~keep).tolist()}
        return replace(
            self,
            sources=kept,
            labels=self.labels[indices],
            hashes=self.hashes[indices],
            parts=self.parts[indices],
            skipped=(*self.skipped, *skipped),
            remarks=tuple(remark for remark in self.remarks if remark.path not in removed),
        )

    def path(self, index: int) -> str:
        """An image's name in messages: its file, or the data set and the index."""
        source = self.sources[index]
        return display_name(source) if isinstance(source, Path) else f"{self.name}[{index}]"

    @property
    def skipped_files(self) -> int:
        """The number of skipped files."""
        return sum(item.count for item in self.skipped)


def open_catalogue(data: str | None, root: Path = Path("data")) -> Catalogue:
    """List a data set without decoding it.

    Parameters
    ----------
    data
        One of ``toolkit.training.data.builtin.NAMES`` (``digits`` if None), a folder with one sub-folder
        per class, or a folder of IDX files. A folder with such a name is given as ``./mnist``.
    root
        The folder in which built-in data sets are searched for, and into which they are downloaded.

    Raises
    ------
    DataError
        The folder is missing or empty, has fewer than two classes, or a class has too few images; or
        a data set cannot be downloaded or read.

    Examples
    --------
    >>> catalogue = open_catalogue("digits")
    >>> len(catalogue), catalogue.fingerprint
    (1797, 'ba9aae514f99f07a')
    """
    data = DIGITS if data is None else data
    if data in NAMES:
        return _of_arrays(load_builtin(data, root))
    try:
        folder = Path(data).expanduser()
        if not folder.exists():
            names = "" if folder.name != data else f", and no data set has that name; there are: {suggest(NAMES, data)}"
            raise DataError(f"the folder {data} does not exist{names}")
        if not folder.is_dir():
            raise DataError(f"{data} is a file; give a folder with one sub-folder a class, or one of {suggest(NAMES)}")
        return _of_arrays(open_idx(folder, _name(folder))) if holds_idx(folder) else _folder(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        raise DataError(f"the folder {display_name(data)} cannot be read: {first_line(error)}") from None


def read(source: Path | bytes) -> bytes:
    """The encoded bytes of an image."""
    return source if isinstance(source, bytes) else source.read_bytes()


def require_enough(catalogue: Catalogue) -> None:
    """Raise a DataError if a class has fewer images than ``MIN_IMAGES_PER_CLASS``."""
    counts = Counter(catalogue.labels.tolist())
    for label, name in enumerate(catalogue.classes):
        if counts[label] < MIN_IMAGES_PER_CLASS:
            raise DataError(
                f"class {name!r} has {counts[label]} usable images, at least {MIN_IMAGES_PER_CLASS} are needed"
                + (f" ({catalogue.skipped_files} files were skipped)" if catalogue.skipped else "")
            )


def _of_arrays(arrays: ArraySet) -> Catalogue:
    sources = Encoded(arrays.pixels)
    catalogue = Catalogue(
        name=arrays.name,
        classes=arrays.classes,
        sources=sources,
        labels=arrays.labels,
        hashes=np.array([hashlib.sha256(source).hexdigest() for source in sources]),
        parts=arrays.parts,
        allow_flip=arrays.allow_flip,
    )
    catalogue = _without_duplicates(catalogue)
    require_enough(catalogue)
    return catalogue


@dataclass(frozen=True)
class _FoundImage:
    """A file that may be an image."""

    path: Path
    class_: str
    part: str
    digest: str = ""
    remark: str | None = None


@dataclass(frozen=True)
class _ClassFolder:
    """A folder of a class; a class has one in each part, or more."""

    class_: str
    part: str
    path: Path
    listing: Listing


def _folder(folder: Path) -> Catalogue:
    # Held-out images come first, so that of two equal images the held-out one is kept.
    above = sorted(find_parts(folder), key=lambda item: ("test", "val", "train", "").index(item[0]))
    folders = [
        _ClassFolder(class_name(inner.name), part, inner, list_files(inner, SUFFIXES))
        for part, outer in above
        for inner in sub_folders(outer)
    ]
    _require_different_names(folders)
    listed = [_FoundImage(path, inner.class_, inner.part) for inner in folders for path in inner.listing.files]
    with ThreadPoolExecutor(usable_cores()) as pool:
        examined = list(pool.map(_examine, listed))
    found = [file for file in examined if isinstance(file, _FoundImage)]
    skipped = [file for file in examined if isinstance(file, Skipped)]
    if not found:
        raise DataError(f"the folder {display_name(folder)} holds no images; it needs one sub-folder of images a class")
    classes = tuple(sorted(sorted({file.class_ for file in found}), key=_natural))
    empty = [inner for inner in folders if inner.class_ not in classes]
    _require_readable(empty, skipped)
    _require_training(folder, found)
    if len(classes) < 2:
        inside = sub_folders(folders[0].path)
        deeper = f"; if its classes are in {display_name(folders[0].path)}, give that folder" if inside else ""
        raise DataError(
            f"the folder {display_name(folder)} holds only the class {classes[0]!r}; at least two are needed{deeper}"
        )
    ignored = [*stray_files(folder, above), *(item for inner in folders for item in inner.listing.ignored)]
    catalogue = Catalogue(
        name=display_name(_name(folder)),
        classes=classes,
        sources=[file.path for file in found],
        labels=np.array([classes.index(file.class_) for file in found], np.int64),
        hashes=np.array([file.digest for file in found]),
        parts=np.array([file.part for file in found]),
        skipped=(
            *_outside_classes(folder, [outer for _, outer in above]),
            *(Skipped(display_name(inner.path), "it holds no image, so it is no class") for inner in empty),
            *(Skipped(display_name(item.path), item.reason, count=item.count) for item in ignored),
            *skipped,
        ),
        remarks=(
            *(
                Remark(display_name(link), "a link to a folder, followed")
                for inner in folders
                for link in inner.listing.links
            ),
            *_other_spellings(folders),
            *(Remark(display_name(file.path), file.remark) for file in found if file.remark),
        ),
    )
    catalogue = _without_duplicates(catalogue)
    require_enough(catalogue)
    return catalogue


def _name(folder: Path) -> str:
    """The folder's name, with its parent's if the name alone says little."""
    folder = folder.resolve()
    says_little = part_of(folder.name) or folder.name.lower() == "raw"
    return f"{folder.parent.name}/{folder.name}" if says_little else folder.name


def _require_different_names(folders: Sequence[_ClassFolder]) -> None:
    """Refuse two folders whose names differ only in escaped control characters."""
    names: dict[str, tuple[str, Path]] = {}
    for inner in folders:
        spelled = unicodedata.normalize("NFC", inner.path.name)
        other, path = names.setdefault(inner.class_, (spelled, inner.path))
        if other != spelled:
            raise DataError(
                f"{str(path)!r} and {str(inner.path)!r} would both be the class {inner.class_!r}; rename one of them"
            )


def _require_readable(empty: Sequence[_ClassFolder], skipped: Sequence[Skipped]) -> None:
    """Refuse a class that would be missing because none of its files is readable."""
    reasons = {item.path: item.reason for item in skipped}
    for inner in empty:
        for path in inner.listing.files:
            if (reason := reasons.get(display_name(path), "")).startswith(UNREADABLE):
                raise DataError(
                    f"not one image of the class {inner.class_!r} can be read; {display_name(path)}: {reason}"
                )


def _require_training(folder: Path, found: Sequence[_FoundImage]) -> None:
    """Refuse a data set, or a class, with parts but no training part."""
    parts = {file.part: file.class_ for file in found}
    if "" in parts:
        return
    trained = {file.class_ for file in found if file.part == "train"}
    if not trained:
        raise DataError(
            f"the folder {display_name(folder)} holds images to {' and '.join(sorted(parts))} and none to train on"
            " in folders of classes; it needs a folder train/ with one sub-folder a class"
        )
    untrained = sorted({(file.class_, file.part) for file in found if file.class_ not in trained})
    if untrained:
        class_, part = untrained[0]
        raise DataError(
            f"the class {class_!r} has images to {part} and none to train on;"
            f" in train/ there are: {suggest(trained, class_)}"
        )


def _other_spellings(folders: Sequence[_ClassFolder]) -> Iterator[Remark]:
    """Folders whose names differ only in Unicode composition, as when written by a Mac and another system."""
    first: dict[str, str] = {}
    for inner in folders:
        if first.setdefault(inner.class_, inner.path.name) != inner.path.name:
            yield Remark(
                display_name(inner.path), "its accents are written in other characters than those of the same class"
            )


def _outside_classes(folder: Path, above: Sequence[Path]) -> list[Skipped]:
    """Images next to the folders of the classes."""
    paths = sorted(path for outer in {folder, *above} for path in outer.iterdir() if path.suffix.lower() in SUFFIXES)
    return [Skipped(display_name(path), "it lies in no folder of a class") for path in paths if path.is_file()]


def _natural(name: str) -> list[tuple[float, str]]:
    """A sort key that puts ``10`` after ``9``, and numbers before words."""
    return [(int(run), "") if run.isdecimal() else (math.inf, run) for run in re.findall(r"\d+|\D+", name)]


def _examine(file: _FoundImage) -> _FoundImage | Skipped:
    """Identify a file by its content; only the first bytes are read without an image's suffix."""
    path, named = display_name(file.path), SUFFIXES.get(file.path.suffix.lower())
    try:
        with file.path.open("rb") as opened:
            data = opened.read() if named else opened.read(SNIFFED_BYTES)
    except OSError as error:
        return Skipped(path, f"{UNREADABLE}: {error.strerror}")
    found = format_of(data)
    if named is None:
        return Skipped(path, _wrong_suffix(file.path.suffix, found))
    if not data:
        return Skipped(path, "the file is empty")
    remark = f"it is a {found}, though its ending says {named}" if found not in (None, named) else None
    return replace(file, digest=hashlib.sha256(data).hexdigest(), remark=remark)


def _wrong_suffix(ending: str, found: str | None) -> str:
    if found is None:
        return f"its ending is none of {', '.join(sorted(SUFFIXES))}"
    right = next(suffix for suffix, of in SUFFIXES.items() if of == found)
    has = f"ends in {display_name(ending)}" if ending else "has no ending"
    return f"it is a {found}, though its name {has}; rename it to end in {right}"


def _without_duplicates(catalogue: Catalogue) -> Catalogue:
    """Keep only the first of equal images."""
    first: dict[str, int] = {}
    keep = np.ones(len(catalogue), dtype=bool)
    skipped = []
    for index, digest in enumerate(catalogue.hashes.tolist()):
        original = first.setdefault(digest, index)
        if original == index:
            continue
        keep[index] = False
        pair = (index, original)
        classes = [catalogue.classes[catalogue.labels[one]] for one in pair]
        other = "" if classes[0] == classes[1] else ", under another class"
        kept = catalogue.path(original)
        skipped.append(
            Duplicate(
                catalogue.path(index),
                f"same content as {kept}{other}",
                kept,
                classes=(classes[0], classes[1]),
                parts=(str(catalogue.parts[index]), str(catalogue.parts[original])),
            )
        )
    return catalogue.subset(keep, skipped)
