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
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from tqdm import tqdm

from toolkit.cli.terminal import on_terminal
from toolkit.errors import DataError, first_line
from toolkit.images.decoding import STATISTICS, ImageLimits
from toolkit.training.data.cache_eviction import build_lock, entries, evict_until_fits, eviction_lock, touch
from toolkit.training.data.cache_files import (
    BUILDING,
    JOURNAL_BYTES,
    DecodeSpec,
    PixelBlock,
    discard,
    intact_blocks,
    map_pixels,
    open_pixels,
    read_blocks,
    writing,
)
from toolkit.training.data.catalogue import Catalogue, Remark, require_enough
from toolkit.training.data.decode import DecodedRow, DecodeJob, decode_images


@dataclass(frozen=True)
class Cache:
    """A folder of decoded images.

    Parameters
    ----------
    folder
        Created when needed.
    limit
        Maximum size in bytes; the least recently used entries are removed to stay below it.
    """

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
    """Decode every image with the decoder that also serves; broken ones are skipped.

    Parameters
    ----------
    catalogue
        The images to decode.
    size
        Side of the decoded images in pixels.
    cache
        The folder to store the pixels in and to map them from; without one they are kept in memory.
    progress
        Whether to show a progress bar.
    limits
        The largest image accepted.

    Returns
    -------
    CachedImages
        In the catalogue's order; its catalogue lists skipped images and remarks under the files'
        present names, also if they were decoded under others.

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
    blocks: list[PixelBlock] = []
    all_lost: dict[int, str] = {}
    with closing(decode_images(job, progress=progress)) as stream:
        for block, data, lost in stream:
            pixels[block.first : block.first + block.rows] = data
            blocks.append(block)
            all_lost |= lost
    return _images(job.without(all_lost), blocks, pixels[: _rows_of(blocks)])


def _in_cache(job: DecodeJob, cache: Cache, progress: bool) -> CachedImages:
    images = _opened(job, cache, progress)
    if images is not None:
        return images
    try:
        with build_lock(cache.folder, job.key):
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
            bar = tqdm(list(read_blocks(folder, spec)), "checking", leave=False, delay=1, disable=hidden)
            blocks = intact_blocks(pixels, bar, spec)
            if [digest for block in blocks for digest in block.hashes] != job.hashes:
                return None
            return _images(job, blocks, map_pixels(pixels, _rows_of(blocks), spec))
    except OSError:
        return None


def _build(job: DecodeJob, cache: Cache, progress: bool) -> DecodeJob:
    """Build an entry; the images in it, fewer than those of the job if files were lost meanwhile."""
    building, spec = cache.folder / f"{job.key}{BUILDING}", job.spec
    row_bytes = spec.row_bytes + JOURNAL_BYTES
    final = len(job) * row_bytes
    all_lost: dict[int, str] = {}
    discard(cache.folder / job.key)  # it is damaged
    try:
        with ExitStack() as stack:
            with eviction_lock(
                cache.folder
            ):  # or another process might remove the unfinished entry before it is in use
                done = _unfinished_blocks(building, job)
                evict_until_fits(
                    cache.folder, cache.limit, building, final, final - _rows_of(done) * row_bytes, str(job)
                )
                append = stack.enter_context(writing(building, spec, done, len(job)))
            known = _rows_of_other_entries(job, cache, building)
            for block, pixels, lost in stack.enter_context(closing(decode_images(job, done, known, progress=progress))):
                append(block, pixels)
                all_lost |= lost
        held = job.without(all_lost)
        touch(building)
        discard(cache.folder / held.key)
        building.rename(cache.folder / held.key)
    except OSError:
        discard(building)
        raise
    return held


def _unfinished_blocks(building: Path, job: DecodeJob) -> list[PixelBlock]:
    """The intact blocks of an entry that a killed process was building."""
    blocks: list[PixelBlock] = []
    with suppress(FileNotFoundError), open_pixels(building) as pixels:
        blocks = intact_blocks(pixels, read_blocks(building, job.spec), job.spec)
    hashes = [digest for block in blocks for digest in block.hashes]
    if hashes != job.hashes[: len(hashes)]:  # that process had lost some files
        discard(building)  # it is not truncated: others may copy rows from it
        return []
    return blocks


def _rows_of_other_entries(job: DecodeJob, cache: Cache, building: Path) -> dict[str, DecodedRow]:
    """The rows of the job's images in other entries of the same spec, by hash."""
    missing = set(job.hashes)
    known: dict[str, DecodedRow] = {}
    for _, _, folder in reversed(entries(cache.folder)):
        if folder != building and missing:
            known |= _cached(folder, missing, job.spec)
            missing -= known.keys()
    return known


def _cached(folder: Path, missing: set[str], spec: DecodeSpec) -> dict[str, DecodedRow]:
    found: dict[str, DecodedRow] = {}
    blocks = list(read_blocks(folder, spec))
    if missing.isdisjoint(digest for block in blocks for digest in block.hashes):
        return found
    with suppress(OSError), open_pixels(folder) as pixels:
        blocks = intact_blocks(pixels, blocks, spec)
        rows = iter(np.asarray(map_pixels(pixels, _rows_of(blocks), spec)))
        for block in blocks:
            statistics = iter(block.statistics)
            for place, digest in enumerate(block.hashes):
                remarks = block.remarks.get(place, ())
                if place in block.reasons:
                    found[digest] = DecodedRow(reason=block.reasons[place])
                else:
                    found[digest] = DecodedRow(next(rows), next(statistics), remarks)
    return found


def _images(job: DecodeJob, blocks: Sequence[PixelBlock], pixels: NDArray[np.uint8]) -> CachedImages:
    """The images in the blocks, under the files' present names."""
    reasons: dict[int, str] = {}
    remarks: list[Remark] = []
    start = 0
    for block in blocks:
        reasons |= {start + place: reason for place, reason in block.reasons.items()}
        for place, texts in block.remarks.items():
            remarks += [Remark(job.catalogue.path(start + place), text) for text in texts]
        start += len(block.hashes)
    kept = job.without(reasons).catalogue
    nothing = np.empty((0, len(STATISTICS)), np.float32)
    statistics = np.concatenate([nothing, *(block.statistics for block in blocks)])
    return CachedImages(replace(kept, remarks=(*kept.remarks, *remarks)), pixels, statistics)


def _rows_of(blocks: Sequence[PixelBlock]) -> int:
    return sum(block.rows for block in blocks)
