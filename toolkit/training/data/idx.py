"""Images and labels in IDX files, the format of MNIST and of sets modelled on it.

A file is a magic number, whose last byte is the number of dimensions, the dimensions as big-endian
integers of 32 bits, and then the bytes themselves; often the file is compressed with gzip.
"""

import gzip
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from toolkit.errors import DataError, first_line
from toolkit.training.data.arrays import ArraySet

IMAGES_MAGIC, LABELS_MAGIC = 0x0803, 0x0801  # unsigned bytes in three dimensions and in one
_IMAGES = re.compile(r"(?P<stem>.+)-images[-.]idx3-ubyte(\.gz)?")
_TEST_STEMS = ("t10k", "test")


def holds_idx(folder: Path) -> bool:
    """Whether a folder holds IDX files of images."""
    return bool(_images_in(folder))


def read_idx(folder: Path, name: str, classes: Sequence[str] = (), *, allow_flip: bool = False) -> ArraySet:
    """Read the training part and the test part of a data set, or the one that the folder holds.

    The files are ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, and likewise ``t10k-`` or
    ``test-``, each also with ``.gz``. Without ``classes``, the labels that occur are the names.

    Raises
    ------
    DataError
        A file is missing, broken, larger than memory, or does not go with the others.
    """
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.uint8]] = []
    parts: list[NDArray[np.str_]] = []
    for part, path in _parts(folder):
        pixels, numbers = _read(path, IMAGES_MAGIC), _read(_labels_of(path), LABELS_MAGIC)
        if len(pixels) != len(numbers):
            raise DataError(f"{path} holds {len(pixels):,} images, {_labels_of(path).name} {len(numbers):,} labels")
        if images and pixels.shape[1:] != images[0].shape[1:]:
            raise DataError(f"the images of {folder} are of different sizes, {_by(images[0])} and {_by(pixels)}")
        images.append(pixels)
        labels.append(numbers)
        parts.append(np.full(len(numbers), part))
    names, indices = _name_labels(np.concatenate(labels), classes, folder)
    return ArraySet(name, names, np.concatenate(images), indices, np.concatenate(parts), allow_flip)


def _images_in(folder: Path) -> dict[str, Path]:
    """The files of images by the name before ``-images``; an uncompressed file takes precedence."""
    found = {}
    for path in sorted(folder.iterdir(), reverse=True):
        matched = _IMAGES.fullmatch(path.name)
        if matched and path.is_file():
            found[matched["stem"]] = path
    return found


def _parts(folder: Path) -> list[tuple[str, Path]]:
    """The parts and their files of images, the test part first."""
    found = _images_in(folder)
    if not found:
        raise DataError(f"{folder} holds no IDX files of images, such as train-images-idx3-ubyte.gz")
    parts = sorted(("test" if stem.endswith(_TEST_STEMS) else "train", path) for stem, path in found.items())
    for part, path in parts:
        same = [other.name for of, other in parts if of == part and other != path]
        if same:
            raise DataError(f"{folder} holds several data sets, such as {path.name} and {same[0]}; leave one in it")
    return parts


def _labels_of(images: Path) -> Path:
    """The file of labels of a file of images, compressed or not."""
    name = images.name.removesuffix(".gz").replace("-images", "-labels").replace("idx3-", "idx1-")
    found = [path for path in (images.with_name(name), images.with_name(f"{name}.gz")) if path.is_file()]
    if not found:
        raise DataError(f"{images} has no labels: {name} or {name}.gz is missing")
    return found[0]


def _read(path: Path, magic: int) -> NDArray[np.uint8]:
    """The array in a file; no more bytes are unpacked than its header announces."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            shape = _shape(path, file.read(4 + 4 * (magic % 256)), magic)
            size = math.prod(shape)
            _require_memory(path, size)
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None
    if len(data) != size:
        held = "more" if len(data) > size else f"{len(data):,}"
        raise DataError(f"{path} should hold {' x '.join(map(str, shape))} bytes after its header, and holds {held}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _shape(path: Path, header: bytes, magic: int) -> list[int]:
    if len(header) < 4 + 4 * (magic % 256):
        raise DataError(f"{path} ends within its header")
    if int.from_bytes(header[:4]) != magic:
        raise DataError(f"{path} is no IDX file of its kind: it starts with {header[:4].hex()}, not with {magic:08x}")
    shape: list[int] = np.frombuffer(header, ">u4")[1:].tolist()
    if 0 in shape:
        raise DataError(f"{path} is empty: its header says {' x '.join(map(str, shape))}")
    return shape


def _require_memory(path: Path, size: int) -> None:
    free = psutil.virtual_memory().available
    if size > free / 2:  # both parts are put together, in another array
        raise DataError(
            f"{path} says that it holds {size / 2**30:.1f} GiB, too much for the {free / 2**30:.1f} GiB of free memory"
        )


def _name_labels(
    numbers: NDArray[np.uint8], classes: Sequence[str], folder: Path
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Class names, and labels as indices into them."""
    if not classes:
        found, labels = np.unique(numbers, return_inverse=True)
        return tuple(str(number) for number in found), labels.astype(np.int64)
    if numbers.max() >= len(classes):
        raise DataError(f"{folder} holds the label {numbers.max()}; labels are 0 to {len(classes) - 1}")
    return tuple(classes), numbers.astype(np.int64)


def _by(pixels: NDArray[np.uint8]) -> str:
    return f"{pixels.shape[2]} x {pixels.shape[1]}"
