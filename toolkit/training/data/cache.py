"""Images decoded once, then shared by folds, trials and processes.

Every fold, trial and run needs the same pixels. They are decoded by all cores and stored in a
folder, from which later runs map them into memory: the machine's page cache shares them between
processes, and a data set may be larger than memory.

Pixels are found by the images' content, their size and the decoder's version, never by a path.
Images in another entry of the same size are copied from it, so a folder that grew costs its new
images only. One process builds an entry while others wait for it; if it is killed, the next one
continues where it stopped.
"""

from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from tqdm import tqdm

from toolkit.cli.terminal import on_terminal
from toolkit.errors import DataError, first_line
from toolkit.images.decoding import STATISTICS, ImageLimits
from toolkit.system.file_locks import wait_for
from toolkit.training.data.cache_files import (
    JOURNAL_BYTES,
    Block,
    discard,
    entries,
    evict_until_fits,
    intact_blocks,
    map_pixels,
    open_pixels,
    read_journal,
    touch,
    writing,
)
from toolkit.training.data.catalogue import Catalogue, Remark, require_enough
from toolkit.training.data.decode import Decoded, DecodedRow, DecodeJob, DecodeSpec, decode_images


@dataclass(frozen=True)
class Cache:
    """A folder of decoded images, created when needed, and its maximum size in bytes."""

    folder: Path
    limit: int


@dataclass(frozen=True, eq=False)
class CachedImages:
    """A decoded data set, in memory or mapped into it.

    Parameters
    ----------
    catalogue
        The images that were decoded.
    pixels
        uint8 (N, size, size, 3), RGB. A map is read-only; ``pixels[indices]`` with an index array
        is a copy either way, and takes no longer from a map in the page cache.
    statistics
        float32 (N, len(STATISTICS)), in the order of ``toolkit.images.decoding.STATISTICS``.
    """

    catalogue: Catalogue
    pixels: NDArray[np.uint8]
    statistics: NDArray[np.float32]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each image, int64 (N,)."""
        return self.catalogue.labels

    @property
    def size(self) -> int:
        """The side of the images in pixels."""
        return int(self.pixels.shape[1])


def decode(
    catalogue: Catalogue,
    size: int,
    *,
    cache: Cache | None = None,
    progress: bool = True,
    limits: ImageLimits | None = None,
) -> CachedImages:
    """Decode every image to a side of ``size`` pixels with the decoder that also serves; broken ones are skipped.

    Parameters
    ----------
    catalogue
        The images to decode. That of the result lists skipped images and remarks under the files'
        present names, also if they were decoded under others.
    cache
        The folder to store the pixels in and to map them from; without one they are kept in memory.
    limits
        The largest image accepted.

    Raises
    ------
    DataError
        They do not fit into memory or into the cache, the cache cannot be used, or a class has too
        few images left.

    Examples
    --------
    >>> from toolkit.training.data.catalogue import open_catalogue
    >>> decode(open_catalogue("digits"), 8, progress=False).pixels.shape
    (1797, 8, 8, 3)
    """
    job = DecodeJob(catalogue, DecodeSpec(size, limits or ImageLimits()))
    images = _in_memory(job, progress) if cache is None else _in_cache(job, cache, progress)
    require_enough(images.catalogue)
    return images


def _in_memory(job: DecodeJob, progress: bool) -> CachedImages:
    needed, free = len(job) * job.spec.row_bytes, psutil.virtual_memory().available
    if needed > 0.8 * free:
        raise DataError(
            f"{job} need {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free;"
            " use a smaller --image-size or fewer images"
        )
    pixels = np.empty((len(job), *job.spec.shape), np.uint8)
    rows: list[DecodedRow] = []
    decoded = 0
    with closing(decode_images(job, progress=progress)) as stream:
        for row, image in stream:
            rows.append(row)
            if image is not None:
                pixels[decoded] = image
                decoded += 1
    held = job.without({index: row.reason for index, row in enumerate(rows) if row.lost})
    return _images(held, [row for row in rows if not row.lost], pixels[:decoded])


def _in_cache(job: DecodeJob, cache: Cache, progress: bool) -> CachedImages:
    images = _opened(job, cache, progress)
    if images is not None:
        return images
    try:
        cache.folder.mkdir(parents=True, exist_ok=True)
        waiting = "another process is decoding these images; waiting for it"
        with wait_for(cache.folder / f"{job.key}.lock", waiting):
            images = _opened(job, cache, progress)  # another process may have made it meanwhile
            if images is None:
                images = _opened(_build(job, cache, progress), cache, progress)
    except OSError as error:
        raise DataError(
            f"the image cache {cache.folder} cannot be used: {error.strerror or first_line(error)};"
            " choose another --cache-dir"
        ) from None
    if images is None:
        raise DataError(f"the image cache {cache.folder} does not keep what is written; choose another --cache-dir")
    return images


def _opened(job: DecodeJob, cache: Cache, progress: bool) -> CachedImages | None:
    """The images of an entry; None if there is none or it is damaged."""
    folder, spec = cache.folder / job.key, job.spec
    try:
        with open_pixels(folder) as pixels:
            touch(folder)
            hidden = not (progress and on_terminal())
            bar = tqdm(read_journal(folder, spec), "checking", leave=False, delay=1, disable=hidden)
            rows = _rows(intact_blocks(pixels, bar, spec))
            if [row.digest for row in rows] != job.hashes:
                return None
            return _images(job, rows, map_pixels(pixels, sum(not row.reason for row in rows), spec))
    except OSError:
        return None


def _build(job: DecodeJob, cache: Cache, progress: bool) -> DecodeJob:
    """Build an entry; the images in it, fewer than those of the job if files were lost meanwhile."""
    building, spec = cache.folder / f"{job.key}.building", job.spec
    row_bytes = spec.row_bytes + JOURNAL_BYTES
    lost: dict[int, str] = {}
    discard(cache.folder / job.key)  # it is damaged
    try:
        with ExitStack() as stack:
            # Two builders must not count on the same bytes, nor an unfinished entry be evicted before it is in use.
            waiting = "another process is evicting from the image cache; waiting for it"
            with wait_for(cache.folder / "eviction.lock", waiting):
                done = _unfinished_blocks(building, job)
                to_write = len(job) - sum(block.decoded for block in done)
                evict_until_fits(building, cache.limit, len(job) * row_bytes, to_write * row_bytes, str(job))
                append = stack.enter_context(writing(building, spec, done, len(job)))
            start, known = len(_rows(done)), _known_images(job, cache, building)
            stream = stack.enter_context(closing(decode_images(job, start, known, progress=progress)))
            while chunk := list(islice(stream, spec.block)):
                append([row for row, _ in chunk if not row.lost], [image for _, image in chunk if image is not None])
                lost |= {start + place: row.reason for place, (row, _) in enumerate(chunk) if row.lost}
                start += len(chunk)
        held = job.without(lost)
        touch(building)
        discard(cache.folder / held.key)
        building.rename(cache.folder / held.key)
    except OSError:
        discard(building)
        raise
    return held


def _unfinished_blocks(building: Path, job: DecodeJob) -> list[Block]:
    """The intact blocks of an entry that a killed process was building."""
    blocks: list[Block] = []
    with suppress(FileNotFoundError), open_pixels(building) as pixels:
        blocks = intact_blocks(pixels, read_journal(building, job.spec), job.spec)
    hashes = [row.digest for row in _rows(blocks)]
    if hashes != job.hashes[: len(hashes)]:  # that process had lost some files
        discard(building)  # it is not truncated: others may copy rows from it
        return []
    return blocks


def _known_images(job: DecodeJob, cache: Cache, building: Path) -> dict[str, Decoded]:
    """The job's images in other entries of the same spec, by hash."""
    missing = set(job.hashes)
    known: dict[str, Decoded] = {}
    for _, _, folder in reversed(entries(cache.folder)):
        blocks = read_journal(folder, job.spec) if folder != building else []
        if missing.isdisjoint(row.digest for row in _rows(blocks)):
            continue
        with suppress(OSError), open_pixels(folder) as pixels:
            rows = _rows(intact_blocks(pixels, blocks, job.spec))
            images = iter(np.asarray(map_pixels(pixels, sum(not row.reason for row in rows), job.spec)))
            known |= {row.digest: (row, None if row.reason else next(images)) for row in rows}
            missing -= known.keys()
    return known


def _images(job: DecodeJob, rows: Sequence[DecodedRow], pixels: NDArray[np.uint8]) -> CachedImages:
    """The decoded ones of the job's images, under the files' present names; each has a row."""
    kept = job.without({index: row.reason for index, row in enumerate(rows) if row.reason}).catalogue
    remarks = [Remark(job.catalogue.path(index), text) for index, row in enumerate(rows) for text in row.remarks]
    statistics = np.array([row.statistics for row in rows if not row.reason], np.float32)
    return CachedImages(
        replace(kept, remarks=(*kept.remarks, *remarks)), pixels, statistics.reshape(-1, len(STATISTICS))
    )


def _rows(blocks: Sequence[Block]) -> list[DecodedRow]:
    return [row for block in blocks for row in block.rows]
