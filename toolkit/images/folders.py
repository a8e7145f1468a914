"""Folders of labelled images: which folders are classes, which are parts of the data, and their files.

Training and later evaluation use the same rules, on every operating system: links are followed once,
and a folder that cannot be listed is an error, never a smaller data set.
"""

import os
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.cli.safe_names import display_name
from toolkit.errors import DataError

# Names of the parts of data, in any case, with spaces, "-" or "_" between the words.
PART_NAMES = {
    "train": ("train", "training", "trainset", "train_set", "training_set", "train_data", "training_data", "seg_train"),
    "val": ("val", "valid", "validation", "validate", "dev", "val_set", "valid_set", "validation_set", "val_data",
            "validation_data", "seg_val"),
    "test": ("test", "testing", "testset", "test_set", "testing_set", "test_data", "testing_data", "seg_test",
             "holdout", "held_out"),
}  # fmt: skip
PARTS = {name: part for part, names in PART_NAMES.items() for name in names}
# Folders of images without a label, allowed next to the parts.
UNLABELLED = frozenset({"pred", "predict", "prediction", "seg_pred", "unlabeled", "unlabelled", "unsup"})
# Folders of programs that copy images: archivers, file servers, notebooks, recycle bins.
OF_PROGRAMS = frozenset(
    {"__macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin", ".@__thumb", ".thumbnails", ".ipynb_checkpoints",
     "lost+found", "__pycache__"}
)  # fmt: skip
NOT_MEANT = "hidden, or a program's own"
UNCLEAR = "what is a class is unclear"


@dataclass(frozen=True)
class Ignored:
    """A folder or file that is not used, the reason, and the number of files that it stands for."""

    path: Path
    reason: str
    count: int = 1


@dataclass(eq=False)
class Listing:
    """The files below a folder."""

    files: list[Path] = field(default_factory=list)  # sorted; links that lead nowhere are among them
    ignored: list[Ignored] = field(default_factory=list)  # hidden images, folders of programs, links to a folder above
    links: list[Path] = field(default_factory=list)  # to folders; they were followed


def part_of(name: str) -> str | None:
    """The part of the data that a folder's name stands for: ``train``, ``val``, ``test`` or None.

    >>> part_of("Training"), part_of("test-set"), part_of("trainer")
    ('train', 'test', None)
    """
    return PARTS.get(_plain(name))


def find_parts(folder: Path) -> list[tuple[str, Path]]:
    """The folders that hold the classes, each with its part of the data: ``("train", folder / "Training")`` and so on.

    ``("", folder)`` alone if the classes are in it; a DataError if it has no folders, or mixes classes and parts.
    """
    inner = sub_folders(folder)
    if not inner:
        raise DataError(
            f"the folder {display_name(folder)} holds no sub-folders; it needs one sub-folder of images a class"
        )
    parts = sorted((part, _innermost(path, part)) for path in inner if (part := part_of(path.name)))
    others = [path for path in inner if part_of(path.name) is None]
    if not any(sub_folders(path) for _, path in parts):
        if parts and not others:
            names = " and ".join(repr(display_name(path.name)) for _, path in parts)
            raise DataError(
                f"the folder {display_name(folder)} holds only {names}, and no folders in there, so {UNCLEAR};"
                " put the images of each class into a folder of their own"
            )
        _refuse_parts_inside(inner)
        return [("", folder)]
    unclear = [path for path in others if _plain(path.name) not in UNLABELLED]
    if unclear:
        raise DataError(
            f"the folder {display_name(folder)} holds {display_name(unclear[0].name)!r} next to"
            f" {display_name(parts[-1][1].name)!r}, so {UNCLEAR}; leave only the parts of the data in it,"
            " such as train/, val/ and test/, or give the folder that holds only the classes"
        )
    return parts


def stray_files(folder: Path, parts: list[tuple[str, Path]]) -> list[Ignored]:
    """Folders on the way to the classes that are none: those of programs, and images without a label."""
    above = {folder, *(path for _, path in parts)}
    found = []
    for path in sorted(path for outer in above for path in outer.iterdir() if stat.S_ISDIR(_mode(path))):
        if _plain(path.name) in OF_PROGRAMS:
            found.append(Ignored(path, NOT_MEANT, _count(path)))
        elif parts[0][0] and path.parent == folder and _plain(path.name) in UNLABELLED:
            found.append(Ignored(path, "its images have no label", _count(path)))
    return [item for item in found if item.count]


def sub_folders(folder: Path) -> list[Path]:
    """The folders in a folder, without hidden ones and those of programs."""
    try:
        inner = sorted(path for path in folder.iterdir() if stat.S_ISDIR(_mode(path)))
    except OSError as error:
        raise _unreadable(folder, error) from None
    return [path for path in inner if not _is_of_a_program(path.name)]


def list_files(folder: Path, suffixes: Collection[str]) -> Listing:
    """All files below the folder of a class; hidden ones with one of the suffixes, of images, are listed as ignored."""
    listing = Listing()
    # Device and number of each folder, so that linked ones are read once, and those above never.
    seen = {_identity(above) for above in folder.resolve().parents}
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        if _is_new(here, folder, seen, listing):
            for path in _inside(here):
                _sort_out(path, suffixes, waiting, listing)
    listing.files.sort()
    return listing


def _is_new(here: Path, top: Path, seen: set[tuple[int, int]], listing: Listing) -> bool:
    """Whether a folder is to be read; links are noted in the listing."""
    identity, linked = _identity(here), here != top and here.is_symlink()
    if identity in seen:
        if linked:
            listing.ignored.append(Ignored(here, "a link to a folder that is read already"))
        return False
    seen.add(identity)
    if linked:
        listing.links.append(here)
    return True


def _inside(folder: Path) -> list[Path]:
    """The content of a folder, real folders last, so that they are read before links to them."""
    try:
        return sorted(folder.iterdir(), key=lambda path: (not path.is_symlink(), path.name))
    except OSError as error:
        raise _unreadable(folder, error) from None


def _sort_out(path: Path, suffixes: Collection[str], waiting: list[Path], listing: Listing) -> None:
    """Add an entry of a class's folder to the listing, or to the folders to read."""
    mode = _mode(path)
    if stat.S_ISDIR(mode) and not _is_of_a_program(path.name):
        waiting.append(path)
    elif stat.S_ISDIR(mode):
        if count := _count(path):
            listing.ignored.append(Ignored(path, NOT_MEANT, count))
    elif path.name.startswith("."):
        listing.ignored += [Ignored(path, NOT_MEANT)] if path.suffix.lower() in suffixes else []
    elif mode and not stat.S_ISREG(mode):
        listing.ignored.append(Ignored(path, "it is a device or a pipe"))
    else:
        listing.files.append(path)


def _refuse_parts_inside(classes: list[Path]) -> None:
    for path in classes:
        inside = {part: inner.name for inner in sub_folders(path) if (part := part_of(inner.name))}
        if len(inside) > 1:
            names = " and ".join(repr(display_name(name)) for name in sorted(inside.values()))
            raise DataError(
                f"the folder {display_name(path)} holds {names}, so {UNCLEAR};"
                " put the parts of the data above the classes, or give the folder that holds the parts"
            )


def _innermost(path: Path, part: str) -> Path:
    """The folder that holds the classes of a part: archives often hold ``seg_train/seg_train``."""
    inner = sub_folders(path)
    return inner[0] if len(inner) == 1 and part_of(inner[0].name) == part else path


def _is_of_a_program(name: str) -> bool:
    return name.startswith(".") or _plain(name) in OF_PROGRAMS


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _count(folder: Path) -> int:
    """Number of files below a folder, without following links."""
    return sum(len(files) for _, _, files in os.walk(folder))


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise _unreadable(folder, error) from None
    return status.st_dev, status.st_ino


def _mode(path: Path) -> int:
    """The type of a file; 0 of a link that leads nowhere, which opening it will report."""
    try:
        return path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            return 0
        raise _unreadable(path.parent, error) from None


def _unreadable(folder: Path, error: OSError) -> DataError:
    return DataError(f"the folder {display_name(folder)} cannot be read: {error.strerror or type(error).__name__}")
