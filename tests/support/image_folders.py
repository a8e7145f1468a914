"""Folders of images in classes, no two of which are alike, and IDX files as the authors of MNIST defined them."""

import gzip
from functools import lru_cache
from zlib import crc32

import numpy as np

from support.colours import COLOURS, colour_image, encode


@lru_cache(None)
def noise_image(seed, size=20, format="PNG"):  # noqa: A002
    """An image of noise as the bytes of a file."""
    return encode(np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8), format)


def fill(folder, count, *classes, size=20):
    """Make images ``0.png`` and so on in a folder, or in one below it for each class."""
    for path in _paths(folder, count, classes):
        path.write_bytes(noise_image(_seed(path), size))


def fill_colours(folder, count, *colours, size=20):
    """Make red, green and blue images, or some of these, each in the folder of its colour."""
    for path in _paths(folder, count, colours or COLOURS):
        path.write_bytes(colour_image(path.parent.name, _seed(path), size))


def _paths(folder, count, classes):
    for inner in [folder / name for name in classes] or [folder]:
        inner.mkdir(parents=True, exist_ok=True)
        yield from (inner / f"{number}.png" for number in range(count))


def _seed(path):
    return crc32("/".join(path.parts[-4:]).encode(errors="surrogateescape"))


def idx_images(pixels):
    return b"\0\0\x08\x03" + np.array(pixels.shape, ">u4").tobytes() + pixels.tobytes()


def idx_labels(labels):
    return b"\0\0\x08\x01" + np.array([len(labels)], ">u4").tobytes() + bytes(labels)


def write_idx(folder, part, pixels, labels):
    """The compressed files of a part of a data set."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_images(pixels)))
    (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_labels(labels)))
