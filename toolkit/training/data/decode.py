"""Decoding of many images by all cores, in order and in blocks, with bounded memory."""

import hashlib
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from toolkit.cli import terminal
from toolkit.errors import DecoderMissing, ImageError, first_line
from toolkit.images.decoding import STATISTICS, load_image
from toolkit.system.metrics import usable_cores
from toolkit.training.data.cache_files import DecodeSpec, PixelBlock
from toolkit.training.data.catalogue import Catalogue, Skipped, read


@dataclass(frozen=True, eq=False)
class DecodeJob:
    """Images to decode, and how."""

    catalogue: Catalogue
    spec: DecodeSpec

    def __len__(self) -> int:
        return len(self.catalogue)

    def __str__(self) -> str:
        return f"{len(self):,} images of {self.spec.size} x {self.spec.size}"

    @cached_property
    def hashes(self) -> list[str]:
        """The SHA-256 of each image."""
        return [str(digest) for digest in self.catalogue.hashes.tolist()]

    @cached_property
    def key(self) -> str:
        """The name of the images' cache entry."""
        return self.spec.key(self.hashes)

    def without(self, reasons: Mapping[int, str]) -> "DecodeJob":
        """All images but those at the indices in ``reasons``, which are listed as skipped."""
        if not reasons:
            return self
        keep = np.ones(len(self), dtype=bool)
        keep[list(reasons)] = False
        skipped = [Skipped(self.catalogue.path(index), reason) for index, reason in reasons.items()]
        return DecodeJob(self.catalogue.subset(keep, skipped), self.spec)


@dataclass(frozen=True, eq=False, slots=True)
class DecodedRow:
    """A decoded image, or the reason why there is none.

    Parameters
    ----------
    pixels
        uint8 (size, size, 3).
    statistics
        In the order of ``toolkit.images.decoding.STATISTICS``.
    remarks
        The decoder's remarks.
    reason
        Why there are no pixels.
    lost
        Whether the reason does not lie in the image, and so is not cached: the file changed or is gone,
        or a package that could read it is not installed.
    """

    pixels: NDArray[np.uint8] | None = None
    statistics: Sequence[float] | NDArray[np.float32] = ()
    remarks: Sequence[str] = ()
    reason: str = ""
    lost: bool = False


def decode_images(
    job: DecodeJob,
    done: Sequence[PixelBlock] = (),
    known: Mapping[str, DecodedRow] | None = None,
    *,
    progress: bool = True,
) -> Generator[tuple[PixelBlock, NDArray[np.uint8], dict[int, str]], None, None]:
    """Decode images block by block.

    Parameters
    ----------
    job
        The images, and how to decode them.
    done
        Blocks of the first images, which are not decoded again.
    known
        Rows of other images that are decoded already, by hash.
    progress
        Whether to show a progress bar.

    Yields
    ------
    tuple
        A block, its pixels, uint8 (rows, size, size, 3), and the reasons of lost files by index; these
        are not in the block.
    """
    start = sum(len(block.hashes) for block in done)
    first = sum(block.rows for block in done)
    with closing(_rows(job, start, known or {}, progress)) as rows:
        while chunk := list(islice(rows, job.spec.block)):
            lost = {start + place: row.reason for place, row in enumerate(chunk) if row.lost}
            hashes = [job.hashes[start + place] for place, row in enumerate(chunk) if not row.lost]
            start += len(chunk)
            block, pixels = _block(hashes, [row for row in chunk if not row.lost], job.spec, first)
            first += block.rows
            yield block, pixels, lost


def _block(
    hashes: list[str], rows: Sequence[DecodedRow], spec: DecodeSpec, first: int
) -> tuple[PixelBlock, NDArray[np.uint8]]:
    good = [row for row in rows if row.pixels is not None]
    pixels = np.array([row.pixels for row in good], np.uint8).reshape(len(good), *spec.shape)
    block = PixelBlock(
        hashes=hashes,
        statistics=np.array([row.statistics for row in good], np.float32).reshape(len(good), len(STATISTICS)),
        reasons={place: row.reason for place, row in enumerate(rows) if row.pixels is None},
        remarks={place: list(row.remarks) for place, row in enumerate(rows) if row.remarks},
        checksum=crc32(pixels.data),
        first=first,
    )
    return block, pixels


def _rows(
    job: DecodeJob, start: int, known: Mapping[str, DecodedRow], progress: bool
) -> Generator[DecodedRow, None, None]:
    """The images from ``start`` on, in order, decoded at most a block ahead of the consumer."""

    def row(index: int) -> DecodedRow:
        return known.get(job.hashes[index]) or _decode(job, index)

    cores, count = usable_cores(), len(job)
    with (
        ThreadPoolExecutor(cores) as pool,  # Pillow releases the interpreter's lock
        terminal.progress("decoding" if progress else None, count, "images", initial=start) as bar,
    ):
        try:
            indices = iter(range(start, count))
            first = islice(indices, max(2 * cores, job.spec.block))
            ahead: deque[Future[DecodedRow]] = deque(pool.submit(row, index) for index in first)
            while ahead:
                yield ahead.popleft().result()
                bar.update()
                ahead.extend(pool.submit(row, index) for index in islice(indices, 1))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _decode(job: DecodeJob, index: int) -> DecodedRow:
    try:
        source = job.catalogue.sources[index]
        data = read(source)
    except OSError as error:
        return DecodedRow(reason=f"it cannot be read: {error.strerror or first_line(error)}", lost=True)
    # Other content has another key in the cache, and maybe another side of the split.
    if isinstance(source, Path) and hashlib.sha256(data).hexdigest() != job.hashes[index]:
        return DecodedRow(reason="it changed after it was listed", lost=True)
    try:
        image = load_image(data, job.spec.size, job.spec.limits)
    except ImageError as error:
        return DecodedRow(reason=str(error), lost=isinstance(error, DecoderMissing))
    statistics = image.statistics()
    return DecodedRow(image.pixels, [statistics[name] for name in STATISTICS], image.remarks)
