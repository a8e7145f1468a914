"""Decoding of many images by all cores, in order, with bounded memory."""

import hashlib
import json
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.cli import terminal
from toolkit.errors import DecoderMissing, ImageError, first_line
from toolkit.images.decoding import DECODER_VERSION, STATISTICS, ImageLimits, load_image
from toolkit.system.metrics import usable_cores
from toolkit.training.data.catalogue import Catalogue, Skipped, read

BLOCK_IMAGES, BLOCK_BYTES = 256, 16 * 2**20  # at most; a killed build loses half a second of decoding


@dataclass(frozen=True)
class DecodeSpec:
    """All that decoding depends on besides an image's content; entries of the cache with one spec can share rows."""

    size: int
    limits: ImageLimits

    @property
    def header(self) -> dict[str, object]:
        """The spec as JSON can hold it, with the versions of decoder and cache."""
        return {"format": 2, "decoder": DECODER_VERSION, "statistics": list(STATISTICS), **asdict(self)}

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
        """The number of images that are written together."""
        return max(1, min(BLOCK_IMAGES, BLOCK_BYTES // self.row_bytes))


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

    @property
    def key(self) -> str:
        """The name of the cache entry of these images in this order: 32 hexadecimal digits."""
        return hashlib.sha256("\n".join([json.dumps(self.spec.header), *self.hashes]).encode()).hexdigest()[:32]

    def without(self, reasons: Mapping[int, str]) -> "DecodeJob":
        """All images but those at the indices in ``reasons``, which are listed as skipped."""
        keep = np.ones(len(self), dtype=bool)
        keep[list(reasons)] = False
        skipped = [Skipped(self.catalogue.path(index), reason) for index, reason in reasons.items()]
        return DecodeJob(self.catalogue.subset(keep, skipped), self.spec) if reasons else self


@dataclass(frozen=True, slots=True)
class DecodedRow:
    """Everything about a decoded image but its pixels.

    Parameters
    ----------
    digest
        SHA-256 of the image's bytes.
    statistics
        In the order of ``toolkit.images.decoding.STATISTICS``.
    remarks
        The decoder's remarks.
    reason
        Why there are no pixels; empty if there are.
    lost
        Whether the reason does not lie in the image, and so is not cached: the file changed or is gone,
        or a package that could read it is not installed.
    """

    digest: str
    statistics: Sequence[float] = ()
    remarks: Sequence[str] = ()
    reason: str = ""
    lost: bool = False


Decoded = tuple[DecodedRow, NDArray[np.uint8] | None]  # and the pixels, uint8 (size, size, 3)


def decode_images(
    job: DecodeJob, start: int = 0, known: Mapping[str, Decoded] | None = None, *, progress: bool = True
) -> Generator[Decoded, None, None]:
    """Decode the images from ``start`` on, in order, at most a block ahead of the consumer.

    Images whose hash is in ``known`` are taken from there.
    """

    def row(index: int) -> Decoded:
        return (known or {}).get(job.hashes[index]) or _decode(job, index)

    cores, count = usable_cores(), len(job)
    with (
        ThreadPoolExecutor(cores) as pool,  # Pillow releases the interpreter's lock
        terminal.progress("decoding" if progress else None, count, "images", initial=start) as bar,
    ):
        try:
            indices = iter(range(start, count))
            first = islice(indices, max(2 * cores, job.spec.block))
            ahead: deque[Future[Decoded]] = deque(pool.submit(row, index) for index in first)
            while ahead:
                yield ahead.popleft().result()
                bar.update()
                ahead.extend(pool.submit(row, index) for index in islice(indices, 1))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _decode(job: DecodeJob, index: int) -> Decoded:
    digest = job.hashes[index]
    try:
        source = job.catalogue.sources[index]
        data = read(source)
    except OSError as error:
        return DecodedRow(digest, reason=f"it cannot be read: {error.strerror or first_line(error)}", lost=True), None
    # Other content has another key in the cache, and maybe another side of the split.
    if isinstance(source, Path) and hashlib.sha256(data).hexdigest() != digest:
        return DecodedRow(digest, reason="it changed after it was listed", lost=True), None
    try:
        image = load_image(data, job.spec.size, job.spec.limits)
    except ImageError as error:
        return DecodedRow(digest, reason=str(error), lost=isinstance(error, DecoderMissing)), None
    statistics = image.statistics()
    return DecodedRow(digest, [statistics[name] for name in STATISTICS], image.remarks), image.pixels
