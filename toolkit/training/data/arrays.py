"""Data sets in one array of pixels, and their images encoded as BMP files."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, eq=False)
class ArraySet:
    """A data set of images of one size."""

    name: str
    classes: tuple[str, ...]  # in the set's own order; a label is an index into them
    pixels: NDArray[np.uint8]  # (N, H, W), grey, or (N, H, W, 3), RGB
    labels: NDArray[np.int64]  # (N,)
    parts: NDArray[np.str_]  # (N,), ``train`` or ``test``, or empty; images of the test part come first
    allow_flip: bool  # whether an image may be flipped left to right without changing its class


class Encoded(Sequence[bytes]):
    """The images of an array as BMP files, each encoded on access.

    A BMP's bytes depend on nothing but the pixels, so their hash identifies the image. ``rows`` are the
    images to take, in order; None takes all.

    Examples
    --------
    >>> images = Encoded(np.zeros((100, 8, 8), np.uint8))
    >>> len(images), images[0][:2], len(images[10:20])
    (100, b'BM', 10)
    """

    def __init__(self, pixels: NDArray[np.uint8], rows: NDArray[np.int64] | None = None) -> None:
        self._pixels = pixels
        self._rows = np.arange(len(pixels)) if rows is None else rows
        height, width, channels = (*pixels.shape[1:], 1)[:3]
        self._body = (height, -(-width * channels // 4) * 4)  # bytes of a row are rounded up to a multiple of 4
        self._header = _bmp(np.zeros(pixels.shape[1:], np.uint8))[: -self._body[0] * self._body[1]]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> "Encoded": ...
    def __getitem__(self, index: int | slice) -> "bytes | Encoded":
        if isinstance(index, slice):
            return Encoded(self._pixels, self._rows[index])
        image = self._pixels[self._rows[index]]
        body = np.zeros(self._body, np.uint8)
        values = image if image.ndim == 2 else image[..., ::-1].reshape(len(image), -1)  # blue before red
        body[::-1, : values.shape[1]] = values  # the lowest row comes first
        return self._header + body.tobytes()

    def take(self, indices: NDArray[np.int64]) -> "Encoded":
        """Some of the images, by index; the pixels are shared."""
        return Encoded(self._pixels, self._rows[indices])


def _bmp(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    return buffer.getvalue()
