"""Images decoded once, then shared by folds, trials and processes.

Every fold, trial and run wants the same pixels. So they are decoded by all cores and kept in a
folder, from which the next run only maps them into memory: the machine's page cache shares them
between processes, and a data set may be larger than memory.

Pixels are found by the images' content, their size and the decoder's version, never by a path.
What another entry of the same size holds is copied from it, so a folder that grew costs its new
images only. One process builds an entry while others that want it wait; when it is killed, the
next goes on where it stopped.
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
    ABOUT_BYTES,
    BUILDING,
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
    """Where decoded images are kept.

    Parameters
    ----------
    folder
        Made when it is needed.
    limit
        Bytes; what was not used for longest is removed to stay below.
    """

    folder: Path
    limit: int


@dataclass(frozen=True, eq=False)
class CachedImages:
    """A decoded data set, in memory or mapped into it.

    Parameters
    ----------
    catalogue
        The images that could be decoded.
    pixels
        uint8 (N, size, size, 3), RGB. A map is read-only; ``pixels[indices]`` with an index array
        is an array of its own either way, and takes no longer from a map in the page cache.
    statistics
        float32 (N, len(STATISTICS)), the figures of ``toolkit.images.decoding.STATISTICS``.
    """

    catalogue: Catalogue
    pixels: NDArray[np.uint8]
    statistics: NDArray[np.float32]

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 (N,)."""
        return self.catalogue.labels

    @property
    def size(self) -> int:
        """Side of an image in pixels."""
        return int(self.pixels.shape[1])


def decode(
    catalogue: Catalogue,
    size: int,
    *,
    cache: Cache | None = None,
    progress: bool = True,
    limits: ImageLimits | None = None,
) -> CachedImages:
    """Decode every image with the decoder that also serves; broken ones are left out and named.

    Parameters
    ----------
    catalogue
        What to decode.
    size
        Side of the result in pixels.
    cache
        Where the pixels are kept and mapped from; without one they live in memory.
    progress
        Whether it is shown how far it has come.
    limits
        The largest image accepted.

    Returns
    -------
    Images
        In the catalogue's order. What is skipped or remarked is told under the files' present names,
        also when they were decoded long ago under others.

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
    wanted = DecodeJob(catalogue, DecodeSpec(size, limits or ImageLimits()))
    images = _in_memory(wanted, progress) if cache is None else _in_cache(wanted, cache, progress)
    require_enough(images.catalogue)
    return images


def _in_memory(wanted: DecodeJob, progress: bool) -> CachedImages:
    needed, free = len(wanted) * wanted.spec.row_bytes, psutil.virtual_memory().available
    if needed > 0.8 * free:
        raise DataError(
            f"{wanted} need {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free;"
            " use a smaller --image-size or fewer images"
        )
    pixels = np.empty((len(wanted), *wanted.spec.shape), np.uint8)
    blocks: list[PixelBlock] = []
    all_lost: dict[int, str] = {}
    with closing(decode_images(wanted, progress=progress)) as stream:
        for block, data, lost in stream:
            pixels[block.first : block.first + block.rows] = data
            blocks.append(block)
            all_lost |= lost
    return _images(wanted.without(all_lost), blocks, pixels[: _rows_of(blocks)])


def _in_cache(wanted: DecodeJob, cache: Cache, progress: bool) -> CachedImages:
    images = _opened(wanted, cache, progress)
    if images is not None:
        return images
    try:
        with build_lock(cache.folder, wanted.key):
            images = _opened(wanted, cache, progress)  # another process may have made it meanwhile
            if images is None:
                images = _opened(_build(wanted, cache, progress), cache, progress)
    except OSError as error:
        raise DataError(
            f"the image cache {cache.folder} cannot be used: {error.strerror or first_line(error)};"
            " choose another --cache-dir"
        ) from None
    if images is None:
        raise DataError(f"the image cache {cache.folder} does not keep what is written; choose another --cache-dir")
    return images


def _opened(wanted: DecodeJob, cache: Cache, progress: bool) -> CachedImages | None:
    """The images of an entry, or None when there is none or anything is wrong with it."""
    folder, form = cache.folder / wanted.key, wanted.spec
    try:
        with open_pixels(folder) as pixels:
            touch(folder)
            shown = progress and on_terminal()
            bar = tqdm(list(read_blocks(folder, form)), "checking", leave=False, delay=1, disable=not shown)
            blocks = intact_blocks(pixels, bar, form)
            if [digest for block in blocks for digest in block.hashes] != wanted.hashes:
                return None
            return _images(wanted, blocks, map_pixels(pixels, _rows_of(blocks), form))
    except OSError:
        return None


def _build(wanted: DecodeJob, cache: Cache, progress: bool) -> DecodeJob:
    """Make an entry, and tell what it holds: less than was wanted when files were lost meanwhile."""
    building, form = cache.folder / f"{wanted.key}{BUILDING}", wanted.spec
    row_bytes = form.row_bytes + ABOUT_BYTES
    final = len(wanted) * row_bytes
    all_lost: dict[int, str] = {}
    discard(cache.folder / wanted.key)  # something is wrong with it
    try:
        with ExitStack() as stack:
            with eviction_lock(cache.folder):  # or another process might remove what was left before it is in use
                done = _left_by_a_killed_process(building, wanted)
                evict_until_fits(
                    cache.folder, cache.limit, building, final, final - _rows_of(done) * row_bytes, str(wanted)
                )
                append = stack.enter_context(writing(building, form, done, len(wanted)))
            known = _known(wanted, cache, building)
            for block, pixels, lost in stack.enter_context(
                closing(decode_images(wanted, done, known, progress=progress))
            ):
                append(block, pixels)
                all_lost |= lost
        held = wanted.without(all_lost)
        touch(building)
        discard(cache.folder / held.key)
        building.rename(cache.folder / held.key)
    except OSError:
        discard(building)
        raise
    return held


def _left_by_a_killed_process(building: Path, wanted: DecodeJob) -> list[PixelBlock]:
    """The whole blocks of an entry in the making, when it can be gone on with."""
    blocks: list[PixelBlock] = []
    with suppress(FileNotFoundError), open_pixels(building) as pixels:
        blocks = intact_blocks(pixels, read_blocks(building, wanted.spec), wanted.spec)
    hashes = [digest for block in blocks for digest in block.hashes]
    if hashes != wanted.hashes[: len(hashes)]:  # that process had lost some files
        discard(building)  # and is not cut, for others may copy rows from it
        return []
    return blocks


def _known(wanted: DecodeJob, cache: Cache, building: Path) -> dict[str, DecodedRow]:
    """What other entries of the same form hold of the images, by their hashes."""
    missing = set(wanted.hashes)
    known: dict[str, DecodedRow] = {}
    for _, _, folder in reversed(entries(cache.folder)):
        if folder != building and missing:
            known |= _cached(folder, missing, wanted.spec)
            missing -= known.keys()
    return known


def _cached(folder: Path, missing: set[str], form: DecodeSpec) -> dict[str, DecodedRow]:
    found: dict[str, DecodedRow] = {}
    blocks = list(read_blocks(folder, form))
    if missing.isdisjoint(digest for block in blocks for digest in block.hashes):
        return found
    with suppress(OSError), open_pixels(folder) as pixels:
        blocks = intact_blocks(pixels, blocks, form)
        rows = iter(np.asarray(map_pixels(pixels, _rows_of(blocks), form)))
        for block in blocks:
            figures = iter(block.statistics)
            for place, digest in enumerate(block.hashes):
                remarks = block.remarks.get(place, ())
                if place in block.reasons:
                    found[digest] = DecodedRow(reason=block.reasons[place])
                else:
                    found[digest] = DecodedRow(next(rows), next(figures), remarks)
    return found


def _images(wanted: DecodeJob, blocks: Sequence[PixelBlock], pixels: NDArray[np.uint8]) -> CachedImages:
    """What the blocks say, under the present names."""
    reasons: dict[int, str] = {}
    remarks: list[Remark] = []
    start = 0
    for block in blocks:
        reasons |= {start + place: reason for place, reason in block.reasons.items()}
        for place, texts in block.remarks.items():
            remarks += [Remark(wanted.catalogue.path(start + place), text) for text in texts]
        start += len(block.hashes)
    kept = wanted.without(reasons).catalogue
    nothing = np.empty((0, len(STATISTICS)), np.float32)
    statistics = np.concatenate([nothing, *(block.statistics for block in blocks)])
    return CachedImages(replace(kept, remarks=(*kept.remarks, *remarks)), pixels, statistics)


def _rows_of(blocks: Sequence[PixelBlock]) -> int:
    return sum(block.rows for block in blocks)
