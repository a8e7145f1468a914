"""Entries of the cache: files, locks, and the removal of those that were not used for longest.

An entry is a folder with the decoded images of one data set, complete or being built. ``pixels.u8``
holds the raw pixels, row after row, ready to be mapped into memory. ``blocks.jsonl``, the journal,
describes them: the first line holds all that decoding depended on, then comes a line for each block
of images, written after the block's pixels. Every line and every block of pixels has a checksum,
which identifies the blocks that a crash, a full disk or an edit damaged.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from shutil import disk_usage
from typing import Any, BinaryIO, cast
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError
from toolkit.training.data.decode import DecodedRow, DecodeSpec

if sys.platform != "win32":
    import fcntl

PIXELS, JOURNAL = "pixels.u8", "blocks.jsonl"
JOURNAL_BYTES = 256  # of one image in the journal: its hash and statistics, rounded up


@dataclass(frozen=True)
class Block:
    """Consecutive images of an entry, and the CRC-32 of their pixels."""

    rows: Sequence[DecodedRow]
    checksum: int

    @property
    def decoded(self) -> int:
        """The number of images that have pixels."""
        return sum(not row.reason for row in self.rows)

    @property
    def line(self) -> bytes:
        """The block's line in the journal."""
        return _line([self.checksum, [[row.digest, row.statistics, row.remarks, row.reason] for row in self.rows]])


def read_journal(folder: Path, spec: DecodeSpec) -> list[Block]:
    """An entry's blocks up to the first damaged line; none if it has another spec."""
    blocks: list[Block] = []
    with suppress(OSError, ValueError), (folder / JOURNAL).open("rb") as journal:
        if _content(journal.readline()) == spec.header:
            for checksum, rows in map(_content, journal):
                blocks.append(Block([DecodedRow(*row) for row in rows], checksum))
    return blocks


def intact_blocks(pixels: BinaryIO, blocks: Iterable[Block], spec: DecodeSpec) -> list[Block]:
    """The blocks up to the first whose pixels do not match their checksum; the file is read from its beginning."""
    size = spec.row_bytes
    return list(takewhile(lambda block: crc32(pixels.read(block.decoded * size)) == block.checksum, blocks))


def open_pixels(folder: Path, mode: str = "rb") -> BinaryIO:
    """An entry's file of pixels; while it, or a map of it, is open, other processes do not remove the entry."""
    pixels = cast(BinaryIO, (folder / PIXELS).open(mode))
    if sys.platform != "win32":  # there, an open file cannot be removed anyway
        with suppress(OSError):  # on a file system without locks, removing it only hides its name
            fcntl.flock(pixels, fcntl.LOCK_SH)  # a map holds the same open file, and so the lock
    return pixels


def map_pixels(pixels: BinaryIO, rows: int, spec: DecodeSpec) -> NDArray[np.uint8]:
    """The first rows as a read-only memory map, uint8 (rows, size, size, 3)."""
    if rows == 0:
        return np.empty((0, *spec.shape), np.uint8)  # an empty file cannot be mapped
    return np.memmap(pixels, np.uint8, "r", shape=(rows, *spec.shape))


@contextmanager
def writing(
    folder: Path, spec: DecodeSpec, done: Sequence[Block], max_rows: int
) -> Iterator[Callable[[Sequence[DecodedRow], Sequence[NDArray[np.uint8]]], None]]:
    """A context for writing an entry after the blocks ``done``; its value is a function that appends a block.

    The file of pixels has its final size, for ``max_rows`` images, from the start, so that other
    processes count it. At a regular exit everything has been synced to disk.
    """
    folder.mkdir(exist_ok=True)
    (folder / PIXELS).touch()
    with open_pixels(folder, "r+b") as pixels, (folder / JOURNAL).open("wb") as journal:
        end = sum(block.decoded for block in done) * spec.row_bytes
        pixels.truncate(end)
        pixels.truncate(max_rows * spec.row_bytes)
        pixels.seek(end)
        journal.writelines([_line(spec.header), *(block.line for block in done)])

        def append(rows: Sequence[DecodedRow], images: Sequence[NDArray[np.uint8]]) -> None:
            data = np.array(images, np.uint8).data
            pixels.write(data)
            pixels.flush()
            journal.write(Block(rows, crc32(data)).line)
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


def touch(folder: Path) -> None:
    """Mark an entry as used now."""
    with suppress(OSError):  # a cache that others fill may be read-only
        os.utime(folder)


def entries(root: Path) -> list[tuple[float, int, Path]]:
    """The time of last use, the bytes and the folder of each entry; the least recently used first."""
    found = []
    for journal in root.glob(f"*/{JOURNAL}"):
        folder = journal.parent
        with suppress(OSError):  # another process has just removed it
            size = sum(path.stat().st_size for path in folder.iterdir())
            found.append((folder.stat().st_mtime, size, folder))
    return sorted(found)


def evict_until_fits(building: Path, limit: int, final: int, to_write: int, what: str) -> None:
    """Remove the least recently used other entries that no process uses until the one in ``building`` fits.

    Parameters
    ----------
    building, what
        The folder of the entry, and its images in words.
    limit
        Maximum size of all entries in bytes.
    final, to_write
        The entry's final size in bytes, and those of them that are not on disk yet.

    Raises
    ------
    DataError
        The entry does not fit; if removing all others would not help, none was removed.
    """
    root = building.parent
    others = [(size, folder) for _, size, folder in entries(root) if folder != building]
    used, free = sum(size for size, _ in others), disk_usage(root).free

    def obstacle(used: int, free: int) -> str:
        if used + final > limit:
            in_use = f", of which {format_bytes(used)} are in use" if used else ""
            return f"its limit is {format_bytes(limit)}{in_use}; raise --cache-limit"
        if to_write > free:
            return f"the disk of {root} has {format_bytes(free)} free; choose another --cache-dir"
        return ""

    hopeless = obstacle(0, free + used)
    for size, folder in others:
        if hopeless or not obstacle(used, free):
            break
        if _discard_unused(folder):
            used -= size
            free = disk_usage(root).free
    if found := hopeless or obstacle(used, free):
        raise DataError(f"{what} need {format_bytes(final)} in the image cache, and {found}")


def format_bytes(count: float) -> str:
    """Bytes in the largest unit that fits.

    Examples
    --------
    >>> format_bytes(1536), format_bytes(20 * 2**30)
    ('1.5 KiB', '20.0 GiB')
    """
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.1f} {unit}" if unit != "bytes" else f"{count:.0f} bytes"
        count /= 1024
    return f"{count:.1f} GiB"


def _discard_unused(folder: Path) -> bool:
    """Remove an entry unless a process builds, reads or maps it; whether it was removed."""
    try:
        if sys.platform != "win32":  # there, an open file cannot be removed anyway
            with (folder / PIXELS).open("rb") as pixels:
                fcntl.flock(pixels, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no such file, or a file system without locks
        pass
    try:
        discard(folder)
    except OSError:
        return False
    return True


def _line(content: object) -> bytes:
    """A line of JSON with its checksum before it."""
    text = json.dumps(content).encode()
    return b"%08x %s\n" % (crc32(text), text)


def _content(line: bytes) -> Any:
    """The inverse of ``_line``; a ValueError if the line is damaged."""
    checksum, _, text = line.strip().partition(b" ")
    if int(checksum, 16) != crc32(text):
        raise ValueError("the line is damaged")
    return json.loads(text)
