"""An entry of the cache: one data set's decoded images on disk, whole or in the making.

An entry is a folder with two files. ``pixels.u8`` holds the bare pixels of the images that could
be decoded, row after row, ready to be mapped into memory. ``blocks.jsonl`` says what they are: a
first line of what decoding depended on, then a line for each block of images, written after the
block's pixels. Every line and every block of pixels has a checksum, so whatever a crash, a full
disk or a stray hand did to an entry, its whole blocks can be told from the rest.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, cast
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from toolkit.images.decoding import DECODER_VERSION, STATISTICS, ImageLimits

if sys.platform != "win32":
    import fcntl

PIXELS, JOURNAL = "pixels.u8", "blocks.jsonl"
BUILDING = ".building"  # ending of a folder that is not whole yet
BLOCK_IMAGES, BLOCK_BYTES = 256, 16 * 2**20  # at most; a killed build loses half a second of decoding
ABOUT_BYTES = 256  # of an image in the journal: its hash and figures, rounded up


@dataclass(frozen=True)
class DecodeSpec:
    """What decoding depends on besides an image's content; entries of one form can share rows."""

    size: int
    limits: ImageLimits

    @property
    def header(self) -> dict[str, object]:
        """The first line of a journal."""
        return {"format": 1, "decoder": DECODER_VERSION, "statistics": list(STATISTICS), **asdict(self)}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image."""
        return (self.size, self.size, 3)

    @property
    def row_bytes(self) -> int:
        """Of one image's pixels."""
        return self.size * self.size * 3

    @property
    def block(self) -> int:
        """How many images are decoded before they are written."""
        return max(1, min(BLOCK_IMAGES, BLOCK_BYTES // self.row_bytes))

    def key(self, hashes: Iterable[str]) -> str:
        """The name of the entry for these images in this order: 32 hexadecimal digits."""
        return hashlib.sha256("\n".join([json.dumps(self.header), *hashes]).encode()).hexdigest()[:32]


@dataclass(frozen=True, eq=False)
class PixelBlock:
    """Consecutive images of an entry: all that is known of them but their pixels.

    Parameters
    ----------
    hashes
        SHA-256 of each image's bytes.
    statistics
        float32 (rows, len(STATISTICS)), of those that could be decoded, in the same order.
    reasons
        Why the others could not, by their place among the hashes.
    remarks
        What the decoder remarked, by place likewise.
    checksum
        CRC-32 of the block's pixels.
    first
        How many rows of the entry come before.
    """

    hashes: list[str]
    statistics: NDArray[np.float32]
    reasons: dict[int, str]
    remarks: dict[int, list[str]]
    checksum: int
    first: int = 0

    @property
    def rows(self) -> int:
        """How many of the images could be decoded."""
        return len(self.statistics)

    @property
    def line(self) -> bytes:
        """What the journal keeps."""
        content = {name: getattr(self, name) for name in ("hashes", "reasons", "remarks", "checksum")}
        return _with_checksum({**content, "statistics": self.statistics.tolist()})

    @classmethod
    def read(cls, line: bytes, first: int) -> "PixelBlock":
        """The inverse of ``line``; a ValueError, KeyError or TypeError when it is damaged."""
        content = _without_checksum(line)
        hashes, reasons, remarks = (content[name] for name in ("hashes", "reasons", "remarks"))
        rows = len(hashes) - len(reasons)
        return cls(
            hashes=hashes,
            statistics=np.array(content["statistics"], np.float32).reshape(rows, len(STATISTICS)),
            reasons={int(place): reason for place, reason in reasons.items()},
            remarks={int(place): texts for place, texts in remarks.items()},
            checksum=content["checksum"],
            first=first,
        )


def read_blocks(folder: Path, form: DecodeSpec) -> Iterator[PixelBlock]:
    """An entry's blocks, up to the first whose line is damaged; none when it has another form."""
    try:
        with (folder / JOURNAL).open("rb") as journal:
            if _without_checksum(journal.readline()) != form.header:
                return
            first = 0
            for line in journal:
                block = PixelBlock.read(line, first)
                yield block
                first += block.rows
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # from here on nothing can be relied on
        return


def open_pixels(folder: Path, mode: str = "rb") -> BinaryIO:
    """An entry's file of rows; while it, or a map of it, is open, other processes do not remove the entry."""
    pixels = cast(BinaryIO, (folder / PIXELS).open(mode))
    if sys.platform != "win32":  # where an open file cannot be removed anyway
        with suppress(OSError):  # on a file system without locks, removing it only hides its name
            fcntl.flock(pixels, fcntl.LOCK_SH)  # a map holds the same open file, and so the lock
    return pixels


def intact_blocks(pixels: BinaryIO, blocks: Iterable[PixelBlock], form: DecodeSpec) -> list[PixelBlock]:
    """The blocks up to the first whose rows are not what was once written."""
    return list(takewhile(lambda block: _is_intact(pixels, block, form), blocks))


def map_pixels(pixels: BinaryIO, rows: int, form: DecodeSpec) -> NDArray[np.uint8]:
    """The first rows as a read-only memory map, uint8 (rows, size, size, 3)."""
    if rows == 0:
        return np.empty((0, *form.shape), np.uint8)  # nothing cannot be mapped
    return np.memmap(pixels, np.uint8, "r", shape=(rows, *form.shape))


@contextmanager
def writing(
    folder: Path, form: DecodeSpec, done: Sequence[PixelBlock], most: int
) -> Iterator[Callable[[PixelBlock, NDArray[np.uint8]], None]]:
    """Go on with an entry after the blocks ``done``; gives the function that appends one more.

    The file of rows has room for ``most`` images from the start, so that others who look at its
    size reckon with what is still to come. Whoever leaves without an exception finds it all on disk.
    """
    folder.mkdir(exist_ok=True)
    (folder / PIXELS).touch()
    with open_pixels(folder, "r+b") as pixels, (folder / JOURNAL).open("wb") as journal:
        rows = sum(block.rows for block in done)
        pixels.truncate(rows * form.row_bytes)
        pixels.truncate(most * form.row_bytes)
        pixels.seek(rows * form.row_bytes)
        journal.writelines([_with_checksum(form.header), *(block.line for block in done)])

        def append(block: PixelBlock, data: NDArray[np.uint8]) -> None:
            pixels.write(data.data)
            pixels.flush()
            journal.write(block.line)
            journal.flush()

        yield append
        pixels.truncate()
        for file in (pixels, journal):
            file.flush()
            os.fsync(file.fileno())


def discard(folder: Path) -> None:
    """Remove an entry, also one that is damaged, half made or not there; what maps it keeps its rows."""
    (folder / PIXELS).unlink(missing_ok=True)
    (folder / JOURNAL).unlink(missing_ok=True)
    if folder.exists():
        folder.rmdir()


def _is_intact(pixels: BinaryIO, block: PixelBlock, form: DecodeSpec) -> bool:
    pixels.seek(block.first * form.row_bytes)
    data = pixels.read(block.rows * form.row_bytes)
    return len(data) == block.rows * form.row_bytes and crc32(data) == block.checksum


def _with_checksum(content: dict[str, object]) -> bytes:
    """A line of JSON with its checksum before it."""
    text = json.dumps(content).encode()
    return b"%08x %s\n" % (crc32(text), text)


def _without_checksum(line: bytes) -> Any:
    seal, _, text = line.strip().partition(b" ")
    if int(seal, 16) != crc32(text):
        raise ValueError("the line is damaged")
    return json.loads(text)
