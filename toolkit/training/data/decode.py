"""Many images decoded by all cores, in order and in blocks, with bounded memory."""

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
    """Images, and the form they are wanted in."""

    catalogue: Catalogue
    spec: DecodeSpec

    def __len__(self) -> int:
        return len(self.catalogue)

    def __str__(self) -> str:
        return f"{len(self):,} images of {self.spec.size} x {self.spec.size}"

    @cached_property
    def hashes(self) -> list[str]:
        """SHA-256 of each image."""
        return [str(digest) for digest in self.catalogue.hashes.tolist()]

    @cached_property
    def key(self) -> str:
        """The name of their entry."""
        return self.spec.key(self.hashes)

    def without(self, reasons: Mapping[int, str]) -> "DecodeJob":
        """All but some images, by index, which are skipped for the reasons given."""
        if not reasons:
            return self
        keep = np.ones(len(self), dtype=bool)
        keep[list(reasons)] = False
        skipped = [Skipped(self.catalogue.path(index), reason) for index, reason in reasons.items()]
        return DecodeJob(self.catalogue.subset(keep, skipped), self.spec)


@dataclass(frozen=True, eq=False, slots=True)
class DecodedRow:
    """One image decoded, or the reason why not.

    Parameters
    ----------
    pixels
        uint8 (size, size, 3).
    statistics
        The figures of ``toolkit.images.decoding.STATISTICS``.
    remarks
        What the decoder remarked.
    reason
        Why there are no pixels.
    lost
        Whether the reason says nothing about the image, so that it is not kept: the file changed or went
        away, or a package that would read it is not installed.
    """

    pixels: NDArray[np.uint8] | None = None
    statistics: Sequence[float] | NDArray[np.float32] = ()
    remarks: Sequence[str] = ()
    reason: str = ""
    lost: bool = False


def decode_images(
    wanted: DecodeJob,
    done: Sequence[PixelBlock] = (),
    known: Mapping[str, DecodedRow] | None = None,
    *,
    progress: bool = True,
) -> Generator[tuple[PixelBlock, NDArray[np.uint8], dict[int, str]], None, None]:
    """Decode images block by block.

    Parameters
    ----------
    wanted
        The images.
    done
        Blocks of the first of them, which are not decoded again.
    known
        What is known already of others, by their hashes.
    progress
        Whether it is shown how far it has come.

    Yields
    ------
    tuple
        A block, its pixels, uint8 (rows, size, size, 3), and why files were lost, by their index;
        the block does not mention those.
    """
    start = sum(len(block.hashes) for block in done)
    first = sum(block.rows for block in done)
    with closing(_rows(wanted, start, known or {}, progress)) as rows:
        while chunk := list(islice(rows, wanted.spec.block)):
            lost = {start + place: row.reason for place, row in enumerate(chunk) if row.lost}
            hashes = [wanted.hashes[start + place] for place, row in enumerate(chunk) if not row.lost]
            start += len(chunk)
            block, pixels = _block(hashes, [row for row in chunk if not row.lost], wanted.spec, first)
            first += block.rows
            yield block, pixels, lost


def _block(
    hashes: list[str], rows: Sequence[DecodedRow], form: DecodeSpec, first: int
) -> tuple[PixelBlock, NDArray[np.uint8]]:
    good = [row for row in rows if row.pixels is not None]
    pixels = np.array([row.pixels for row in good], np.uint8).reshape(len(good), *form.shape)
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
    wanted: DecodeJob, start: int, known: Mapping[str, DecodedRow], progress: bool
) -> Generator[DecodedRow, None, None]:
    """The images from ``start`` on, in order, at most a block ahead of whoever takes them."""

    def row(index: int) -> DecodedRow:
        return known.get(wanted.hashes[index]) or _decode(wanted, index)

    cores, count = usable_cores(), len(wanted)
    with (
        ThreadPoolExecutor(cores) as pool,  # Pillow releases the interpreter's lock
        terminal.progress("decoding" if progress else None, count, "images", initial=start) as bar,
    ):
        try:
            indices = iter(range(start, count))
            first = islice(indices, max(2 * cores, wanted.spec.block))
            ahead: deque[Future[DecodedRow]] = deque(pool.submit(row, index) for index in first)
            while ahead:
                yield ahead.popleft().result()
                bar.update()
                ahead.extend(pool.submit(row, index) for index in islice(indices, 1))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _decode(wanted: DecodeJob, index: int) -> DecodedRow:
    try:
        source = wanted.catalogue.sources[index]
        data = read(source)
    except OSError as error:
        return DecodedRow(reason=f"it cannot be read: {error.strerror or first_line(error)}", lost=True)
    # Other content than was listed has another place in the cache, and maybe another in the split.
    if isinstance(source, Path) and hashlib.sha256(data).hexdigest() != wanted.hashes[index]:
        return DecodedRow(reason="it changed after it was listed", lost=True)
    try:
        image = load_image(data, wanted.spec.size, wanted.spec.limits)
    except ImageError as error:
        return DecodedRow(reason=str(error), lost=isinstance(error, DecoderMissing))
    figures = image.statistics()
    return DecodedRow(image.pixels, [figures[name] for name in STATISTICS], image.remarks)
