"""An entry of the cache: one data set's decoded images on disk, complete or being built.

An entry is a folder with two files. ``pixels.u8`` holds the raw pixels of the decoded images, row
after row, ready to be mapped into memory. ``blocks.jsonl``, the journal, describes them: the first
line holds all that decoding depended on, then comes a line for each block of images, written after
the block's pixels. Every line and every block of pixels has a checksum, which
identifies the blocks that a crash, a full disk or an edit damaged.
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
BUILDING = ".building"  # suffix of a folder that is being built
BLOCK_IMAGES, BLOCK_BYTES = 256, 16 * 2**20  # at most; a killed build loses half a second of decoding
JOURNAL_BYTES = 256  # of one image in the journal: its hash and statistics, rounded up


@dataclass(frozen=True)
class DecodeSpec:
    """All that decoding depends on besides an image's content; entries of one spec can share rows."""

    size: int
    limits: ImageLimits

    @property
    def header(self) -> dict[str, object]:
        """The first line of a journal."""
        return {"format": 1, "decoder": DECODER_VERSION, "statistics": list(STATISTICS), **asdict(self)}

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image."""
        return (self.size, self.size, 3)

    @property
    def row_bytes(self) -> int:
        """The bytes of one image's pixels."""
        return self.size * self.size * 3

    @property
    def block(self) -> int:
        """The number of images in a block."""
        return max(1, min(BLOCK_IMAGES, BLOCK_BYTES // self.row_bytes))

    def key(self, hashes: Iterable[str]) -> str:
        """The name of the entry of these images in this order: 32 hexadecimal digits."""
        return hashlib.sha256("\n".join([json.dumps(self.header), *hashes]).encode()).hexdigest()[:32]


@dataclass(frozen=True, eq=False)
class PixelBlock:
    """Consecutive images of an entry: everything but their pixels.

    Parameters
    ----------
    hashes
        SHA-256 of each image's bytes.
    statistics
        float32 (rows, len(STATISTICS)), of the decoded images, in the same order.
    reasons
        Why the others could not be decoded, by their place among the hashes.
    remarks
        The decoder's remarks, likewise by place.
    checksum
        CRC-32 of the block's pixels.
    first
        The number of rows of the entry before the block.
    """

    hashes: list[str]
    statistics: NDArray[np.float32]
    reasons: dict[int, str]
    remarks: dict[int, list[str]]
    checksum: int
    first: int = 0

    @property
    def rows(self) -> int:
        """The number of decoded images."""
        return len(self.statistics)

    @property
    def line(self) -> bytes:
        """The block's line in the journal."""
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


def read_blocks(folder: Path, spec: DecodeSpec) -> Iterator[PixelBlock]:
    """An entry's blocks up to the first damaged line; none if it has another spec."""
    try:
        with (folder / JOURNAL).open("rb") as journal:
            if _without_checksum(journal.readline()) != spec.header:
                return
            first = 0
            for line in journal:
                block = PixelBlock.read(line, first)
                yield block
                first += block.rows
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # nothing from here on is reliable
        return


def open_pixels(folder: Path, mode: str = "rb") -> BinaryIO:
    """An entry's file of pixels; while it, or a map of it, is open, other processes do not remove the entry."""
    pixels = cast(BinaryIO, (folder / PIXELS).open(mode))
    if sys.platform != "win32":  # there, an open file cannot be removed anyway
        with suppress(OSError):  # on a file system without locks, removing it only hides its name
            fcntl.flock(pixels, fcntl.LOCK_SH)  # a map holds the same open file, and so the lock
    return pixels


def intact_blocks(pixels: BinaryIO, blocks: Iterable[PixelBlock], spec: DecodeSpec) -> list[PixelBlock]:
    """The blocks up to the first whose pixels do not match their checksum."""
    return list(takewhile(lambda block: _is_intact(pixels, block, spec), blocks))


def map_pixels(pixels: BinaryIO, rows: int, spec: DecodeSpec) -> NDArray[np.uint8]:
    """The first rows as a read-only memory map, uint8 (rows, size, size, 3)."""
    if rows == 0:
        return np.empty((0, *spec.shape), np.uint8)  # an empty file cannot be mapped
    return np.memmap(pixels, np.uint8, "r", shape=(rows, *spec.shape))


@contextmanager
def writing(
    folder: Path, spec: DecodeSpec, done: Sequence[PixelBlock], max_rows: int
) -> Iterator[Callable[[PixelBlock, NDArray[np.uint8]], None]]:
    """A context for writing an entry after the blocks ``done``; its value is a function that appends a block.

    The file of pixels has its final size, for ``max_rows`` images, from the start, so that other
    processes count it. At a regular exit everything has been synced to disk.
    """
    folder.mkdir(exist_ok=True)
    (folder / PIXELS).touch()
    with open_pixels(folder, "r+b") as pixels, (folder / JOURNAL).open("wb") as journal:
        rows = sum(block.rows for block in done)
        pixels.truncate(rows * spec.row_bytes)
        pixels.truncate(max_rows * spec.row_bytes)
        pixels.seek(rows * spec.row_bytes)
        journal.writelines([_with_checksum(spec.header), *(block.line for block in done)])

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
    """Remove an entry, also a damaged, incomplete or missing one; existing maps keep their pixels."""
    (folder / PIXELS).unlink(missing_ok=True)
    (folder / JOURNAL).unlink(missing_ok=True)
    if folder.exists():
        folder.rmdir()


def _is_intact(pixels: BinaryIO, block: PixelBlock, spec: DecodeSpec) -> bool:
    pixels.seek(block.first * spec.row_bytes)
    data = pixels.read(block.rows * spec.row_bytes)
    return len(data) == block.rows * spec.row_bytes and crc32(data) == block.checksum


def _with_checksum(content: dict[str, object]) -> bytes:
    """A line of JSON with its checksum before it."""
    text = json.dumps(content).encode()
    return b"%08x %s\n" % (crc32(text), text)


def _without_checksum(line: bytes) -> Any:
    checksum, _, text = line.strip().partition(b" ")
    if int(checksum, 16) != crc32(text):
        raise ValueError("the line is damaged")
    return json.loads(text)
