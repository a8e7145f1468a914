"""The binary version of CIFAR-10 and CIFAR-100.

A record is one label, or a coarse and a fine one, then 32 x 32 bytes each of red, green and blue.
The better-known Python version consists of pickles, which can run any code when they are loaded,
so it is never opened.
"""

import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError, first_line
from toolkit.training.data.arrays import ArraySet

SIDE = 32  # pixels
MAX_FILE_BYTES = 200 * 2**20  # the largest of the published files has 147 MiB


@dataclass(frozen=True)
class CifarFiles:
    """The files of one of the sets."""

    folder: str  # inside the archive
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str  # the file with one class name per line
    labels: int  # in a record, of which the last is the class

    @property
    def all(self) -> tuple[str, ...]:
        """All files."""
        return (*self.test, *self.train, self.names)


CIFAR10 = CifarFiles(
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test=("test_batch.bin",),
    names="batches.meta.txt",
    labels=1,
)
CIFAR100 = CifarFiles(
    folder="cifar-100-binary", train=("train.bin",), test=("test.bin",), names="fine_label_names.txt", labels=2
)


def read_cifar(path: Path, files: CifarFiles, name: str) -> ArraySet:
    """Read a CIFAR set from the folder of its files, or from the published archive, which is not unpacked to disk.

    Raises
    ------
    DataError
        A file is missing or broken.
    """
    try:
        contents = dict(_from_folder(path, files) if path.is_dir() else _from_archive(path, files))
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None
    missing = [file for file in files.all if file not in contents]
    if missing:
        raise DataError(f"{path} lacks {missing[0]}; it should hold {', '.join(files.all)}")
    classes = tuple(contents.pop(files.names).decode("utf-8", "replace").split())
    order = (*files.test, *files.train)
    records = [_records(path / file, contents[file], files.labels) for file in order]
    labels = np.concatenate([part[:, files.labels - 1] for part in records])
    if labels.max() >= len(classes):
        raise DataError(f"{path} holds the label {labels.max()}, and {files.names} names {len(classes)} classes")
    held_out = sum(len(part) for part in records[: len(files.test)])
    parts = np.where(np.arange(len(labels)) < held_out, "test", "train")
    return ArraySet(name, classes, _pixels(records, files.labels), labels.astype(np.int64), parts, allow_flip=True)


def _from_folder(folder: Path, files: CifarFiles) -> Iterator[tuple[str, bytes]]:
    for file in files.all:
        if (folder / file).is_file():
            _require_size(folder / file, (folder / file).stat().st_size)
            yield file, (folder / file).read_bytes()


def _from_archive(archive: Path, files: CifarFiles) -> Iterator[tuple[str, bytes]]:
    wanted = {f"{files.folder}/{file}": file for file in files.all}
    with tarfile.open(archive, "r:gz") as members:
        for member in members:
            file, content = wanted.get(member.name), members.extractfile(member) if member.isfile() else None
            if file and content:
                _require_size(archive / file, member.size)
                yield file, content.read()


def _require_size(path: Path, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise DataError(f"{path} has {size:,} bytes, more than any file of the published set")


def _records(path: Path, data: bytes, labels: int) -> NDArray[np.uint8]:
    """The records of a file, uint8 (n, labels + 3072)."""
    length = labels + 3 * SIDE * SIDE
    if not data or len(data) % length:
        raise DataError(f"{path} has {len(data):,} bytes, which is no whole number of records of {length:,}")
    return np.frombuffer(data, np.uint8).reshape(-1, length)


def _pixels(records: Sequence[NDArray[np.uint8]], labels: int) -> NDArray[np.uint8]:
    """The pixels of all records, uint8 (N, 32, 32, 3)."""
    pixels = np.empty((sum(map(len, records)), SIDE, SIDE, 3), np.uint8)
    start = 0
    for part in records:
        planes = part[:, labels:].reshape(-1, 3, SIDE, SIDE)
        pixels[start : start + len(part)] = planes.transpose(0, 2, 3, 1)
        start += len(part)
    return pixels
