"""Near-duplicates: images of one photograph, saved again, resized, flipped, or cropped by a few percent.

Every image has a perceptual hash of 128 bits: whether brightness rises to the right, and downwards,
at 64 places each. A copy has nearly the hash of the original, of its mirror image, or of the part
that a crop keeps. Hashes that agree in one of eight bands of 16 bits are compared; if they are close
the images are registered on each other, and only images that agree everywhere make a pair. The work
grows linearly with the number of images, and takes a fraction of decoding them.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from toolkit.system.metrics import usable_cores

HASHED_SIDE, SIDE = 32, 64  # pixels of the images that are hashed, and compared
MIN_SIDE = 32  # pixels of an image, before and after decoding, with enough detail to recognise a copy
CELLS = 8  # places of a hash in each direction
BITS, BANDS = 2 * CELLS * CELLS, 8
NEIGHBOURS = 32  # hashes on either side that one is compared with in a band; a band that thousands share says nothing
MAX_DISTANCE = 20  # differing bits; of 960 photographs cropped at random by 5 % the worst differed in 19
MAX_CANDIDATES = 8  # of one image, whose pixels are compared
MIN_DEVIATION = 3.0  # grey levels, the standard deviation of an image that can be recognised
MIN_CORRELATION = 0.95  # of the grey values of copies
MAX_DIFFERENCE = 14.0  # levels of 255, the mean in each of 64 blocks
MIN_OVERLAP = 0.8  # of the area
MAX_STEP = 0.05  # of the registration, as a fraction of the side
STEPS = 6  # of the registration; three suffice for most
PIXELS_PER_CHUNK, PAIRS_PER_CHUNK, ROWS_PER_CHUNK = 2**22, 512, 2**15

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Hashes = NDArray[np.uint16]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_SHUFFLED = np.random.default_rng(0).permutation(BITS)  # so that each band sees the whole image
_KEPT = 0.95  # of a side, by the windows that represent a crop
# Left, top and side as fractions of the image's side.
_WINDOWS = np.array(
    [(0, 0, 1), *(((1 - _KEPT) * x, (1 - _KEPT) * y, _KEPT) for x, y in ((0.5, 0.5), (0, 0), (0, 1), (1, 0), (1, 1)))],
    np.float32,
)


def near_duplicates(pixels: NDArray[np.uint8], among: Indices | None = None) -> Indices:
    """Find the pairs that show one photograph.

    Parameters
    ----------
    pixels
        uint8 (N, S, S, 3), RGB; it may be mapped from a file. Nothing is found if S is below ``MIN_SIDE``.
    among
        int64 (K,), indices of the images to search; None searches all.

    Returns
    -------
    int64 (M, 2)
        Pairs of indices, the smaller first, in order. Not every two of many copies are paired, but the
        pairs connect all of them.

    Notes
    -----
    Copies are found that differ in compression, in size, by a crop of up to about 5 % of each side, by
    a horizontal flip, or in several of these; not rotations, larger crops, changes of colour, and images
    of nearly one colour.

    References
    ----------
    Krawetz: Kind of Like That, 2013, for the difference hash. Norouzi, Punjani, Fleet: Fast Search in
    Hamming Space with Multi-Index Hashing, CVPR 2012, for the bands. Lucas, Kanade: An Iterative Image
    Registration Technique, IJCAI 1981.

    Examples
    --------
    >>> noise = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    >>> images = noise.repeat(8, axis=1).repeat(8, axis=2)  # (3, 64, 64, 3)
    >>> near_duplicates(np.concatenate([images, images[1:2, :, ::-1]])).tolist()
    [[1, 3]]
    """
    searched = np.arange(len(pixels)) if among is None else among
    found = np.empty((0, 2), np.int64)
    if len(searched) < 2 or pixels.shape[1] < MIN_SIDE:
        return found
    chunks = _slices(len(searched), max(1, PIXELS_PER_CHUNK // pixels[0].size))
    with ThreadPoolExecutor(usable_cores()) as pool:
        parts = pool.map(lambda rows: _hash(pixels[searched[rows]]), chunks)
        hashes, recognisable = (np.concatenate(column) for column in zip(*parts, strict=True))
    searched = searched[recognisable]
    rows = _candidates(hashes[recognisable])
    while len(rows):
        image, other, variant, _ = rows[:PAIRS_PER_CHUNK].T
        same = _agree(pixels[searched[image]], pixels[searched[other]], variant)
        found = np.concatenate([found, np.stack([image, other], axis=1)[same]])
        known = groups_of(found, len(searched))
        rows = rows[PAIRS_PER_CHUNK:]
        rows = rows[known[rows[:, 0]] != known[rows[:, 1]]]
    found = np.sort(searched[found], axis=1)
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def groups_of(pairs: Indices, count: int) -> Indices:
    """Number the groups of ``count`` items that ``pairs`` (M, 2) connect, int64 (count,).

    Examples
    --------
    >>> groups_of(np.array([[0, 2], [2, 3]]), 4).tolist()
    [0, 1, 0, 0]
    """
    links = coo_array((np.ones(len(pairs), np.bool_), (pairs[:, 0], pairs[:, 1])), (count, count))
    numbers: Indices = connected_components(links, directed=False)[1].astype(np.int64)
    return numbers


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, count, step))


# --- hashes -------------------------------------------------------------------------------------


def _hash(pixels: NDArray[np.uint8]) -> tuple[Hashes, NDArray[np.bool_]]:
    """Hashes, uint16 (N, 2 * windows, BANDS), even rows plain, odd ones flipped; and which are recognisable, (N,)."""
    grey = _resized(pixels, HASHED_SIDE) @ _LUMA
    rises = grey.reshape(len(grey), -1) @ _rises() > 0  # (N, 2 * windows * BITS)
    return np.packbits(rises, axis=1).view(np.uint16).reshape(len(grey), -1, BANDS), grey.std(
        axis=(1, 2)
    ) >= MIN_DEVIATION


@cache
def _rises() -> Floats:
    """(HASHED_SIDE ** 2, 2 * windows * BITS): the product with a grey image is positive where it grows brighter."""
    columns = []
    for left, top, side in (HASHED_SIDE * _WINDOWS).tolist():
        rows, across = (_cells(HASHED_SIDE, start, side, CELLS) for start in (top, left))
        down, columns_ = (np.diff(_cells(HASHED_SIDE, start, side, CELLS + 1), axis=0) for start in (top, left))
        for order in (1, -1):
            rising = np.kron(rows, order * columns_[::order]), np.kron(down, across[::order])
            columns.append(np.concatenate(rising).take(_SHUFFLED, axis=0))
    return np.ascontiguousarray(np.concatenate(columns).T, np.float32)


def _resized(pixels: NDArray[np.uint8], side: int) -> Floats:
    """uint8 (N, S, S, 3) to float32 (N, side, side, 3)."""
    how = Image.Resampling.BOX if pixels.shape[1] >= side else Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side), how), np.float32) for image in pixels])


def _cells(size: int, start: float, length: float, count: int) -> Floats:
    """Weights (count, size) of the means of ``count`` equal cells of the pixels from ``start`` on."""
    edges, pixels = start + length * np.arange(count + 1) / count, np.arange(size)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = covered.clip(0)
    means: Floats = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return means


# --- candidates ---------------------------------------------------------------------------------


def _candidates(hashes: Hashes) -> Indices:
    """Pairs whose hashes are close, the closest first: int64 (M, 4) of image, other, variant and distance.

    The variant is the row of the image's hashes that is close to the plain hash of the other.
    """
    rows = np.empty((0, 4), np.int64)
    for band in range(BANDS):
        for found in _sharing(hashes.reshape(-1, BANDS), hashes.shape[1], band):
            rows = np.concatenate([rows, found])
        rows = _closest(rows)  # bounds the memory for thousands of similar images
    return rows


def _closest(rows: Indices) -> Indices:
    """Each pair once, if it is among the closest of either image, the closest first."""
    low, high = rows[:, :2].min(axis=1), rows[:, :2].max(axis=1)
    order = np.lexsort((rows[:, 2], rows[:, 3], high, low))
    repeated = (np.diff(low[order], prepend=-1) == 0) & (np.diff(high[order], prepend=-1) == 0)
    first = order[~repeated]
    first = first[np.argsort(rows[first, 3], kind="stable")]
    closest: Indices = rows[first[(_rank(low[first]) < MAX_CANDIDATES) | (_rank(high[first]) < MAX_CANDIDATES)]]
    return closest


def _sharing(hashes: Hashes, variants: int, band: int) -> Iterator[Indices]:
    """The rows of candidates whose hashes agree in a band."""
    keys = np.zeros(len(hashes), np.uint64)  # the band, and three more that sort hashes within it
    for place in range(4):
        keys = keys << np.uint64(16) | hashes[:, (band + place) % BANDS]
    order = np.argsort(keys[::variants], kind="stable")
    ordered, start = keys[::variants][order], keys >> np.uint64(48) << np.uint64(48)
    at = np.searchsorted(ordered, keys)
    low = np.maximum(np.searchsorted(ordered, start), at - NEIGHBOURS)
    high = np.minimum(np.searchsorted(ordered, start | np.uint64(2**48 - 1), "right"), at + NEIGHBOURS)
    for chunk in _slices(len(hashes), ROWS_PER_CHUNK):
        count = high[chunk] - low[chunk]
        query = np.repeat(np.arange(chunk.start, chunk.start + len(count)), count)
        within = np.arange(len(query)) - np.repeat(np.cumsum(count) - count, count)
        other = order[np.repeat(low[chunk], count) + within]
        distance = np.bitwise_count(hashes[query] ^ hashes[other * variants]).sum(axis=1, dtype=np.int64)
        image, variant = np.divmod(query, variants)
        near = (distance <= MAX_DISTANCE) & (image != other)
        yield np.stack([image, other, variant, distance], axis=1)[near]


def _rank(values: Indices) -> Indices:
    """Number of earlier occurrences of each value."""
    order = np.argsort(values, kind="stable")
    ranked = np.empty(len(values), np.int64)
    starts = np.flatnonzero(np.diff(values[order], prepend=-1))
    ranked[order] = np.arange(len(values)) - np.repeat(starts, np.diff(starts, append=len(values)))
    return ranked


# --- pixels -------------------------------------------------------------------------------------


def _agree(images: NDArray[np.uint8], others: NDArray[np.uint8], variant: Indices) -> NDArray[np.bool_]:
    """Whether a part of each image, registered on all of the other, is the same everywhere; bool (P,)."""
    whole, part = (_resized(pixels, SIDE) for pixels in (images, others))
    flipped = variant % 2 == 1
    part[flipped] = part[flipped, :, ::-1]
    left, top, side = _WINDOWS[variant // 2].T
    start, extent = np.stack([top, left], axis=1), np.stack([side, side], axis=1)
    return _same_content(whole, part, *_register(_halved(whole @ _LUMA), _halved(part @ _LUMA), start, extent))


def _register(whole: Floats, part: Floats, start: Floats, extent: Floats) -> tuple[Floats, Floats]:
    """Move and stretch the windows until the image in them is most similar to the other.

    Images are float32 (P, S, S), grey; windows (P, 2), vertical and horizontal, as fractions of the side.
    """
    size = whole.shape[1]
    along = np.arange(size, dtype=np.float32) + 0.5
    ridge = np.diag([size**2, along @ along, size**2, along @ along]).astype(np.float32)
    for _ in range(STEPS):
        (rows, inside_rows), (columns, inside_columns) = (
            _window(size, start[:, axis], extent[:, axis]) for axis in (0, 1)
        )
        seen = rows @ whole @ columns.transpose(0, 2, 1)
        valid = (inside_rows[:, :, None] & inside_columns[:, None]).astype(np.float32)
        down, across = (slope * valid for slope in np.gradient(seen, axis=(1, 2)))
        slopes = np.stack([size * down, along[:, None] * down, size * across, along * across], axis=1)
        slopes = slopes.reshape(len(whole), 4, -1)
        rest = ((part - seen) * valid).reshape(len(whole), -1, 1)
        change = np.linalg.solve(slopes @ slopes.transpose(0, 2, 1) + ridge, slopes @ rest)[..., 0]
        change = change.clip(-MAX_STEP, MAX_STEP)  # images with nothing in common take large steps
        start, extent = start + change[:, ::2], extent + change[:, 1::2]
    return start, extent


def _same_content(whole: Floats, part: Floats, start: Floats, extent: Floats) -> NDArray[np.bool_]:
    """Whether the windows (P, 2) of images (P, SIDE, SIDE, 3) show what the others do, in each of 64 blocks."""
    (rows, inside_rows), (columns, inside_columns) = (_window(SIDE, start[:, axis], extent[:, axis]) for axis in (0, 1))
    channels = whole.transpose(3, 0, 1, 2)
    seen = np.asarray(rows @ channels @ columns.transpose(0, 2, 1), np.float32).transpose(1, 2, 3, 0)
    valid = inside_rows[:, :, None] & inside_columns[:, None]
    weights = _halved(valid.astype(np.float32)) == 1
    blocks = (len(whole), CELLS, SIDE // 2 // CELLS, CELLS, SIDE // 2 // CELLS)
    # Both are halved, since reading a window blurs it a little.
    difference = np.abs(_halved(seen) - _halved(part)).mean(axis=-1) * weights
    difference = difference.reshape(blocks).sum(axis=(2, 4)) / weights.reshape(blocks).sum(axis=(2, 4)).clip(1)
    correlation = _correlation(_halved(seen @ _LUMA), _halved(part @ _LUMA), weights)
    overlap = weights.mean(axis=(1, 2))
    everywhere = difference.max(axis=(1, 2)) <= MAX_DIFFERENCE
    return np.asarray(everywhere & (correlation >= MIN_CORRELATION) & (overlap >= MIN_OVERLAP), np.bool_)


def _window(size: int, start: Floats, extent: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Weights (P, size, size) that read a line of pixels through windows, linearly, and which are inside (P, size)."""
    pixels = np.arange(size, dtype=np.float32)
    places = (start * size - 0.5)[:, None] + extent[:, None] * (pixels + 0.5)
    weights = (1 - np.abs(places.clip(0, size - 1)[:, :, None] - pixels)).clip(0)
    return weights, (places >= -0.5) & (places <= size - 0.5)


def _halved(images: Floats) -> Floats:  # (P, S, S, ...) -> (P, S / 2, S / 2, ...)
    count, size = images.shape[:2]
    halved: Floats = images.reshape(count, size // 2, 2, size // 2, 2, *images.shape[3:]).mean(axis=(2, 4))
    return halved


def _correlation(images: Floats, others: Floats, weights: NDArray[np.bool_]) -> Floats:
    """(P,), of grey values (P, S, S) where the weights are true."""
    count = weights.sum(axis=(1, 2)).clip(1)
    first, second = (
        (values - ((values * weights).sum(axis=(1, 2)) / count)[:, None, None]) * weights for values in (images, others)
    )
    spread = np.sqrt((first**2).sum(axis=(1, 2)) * (second**2).sum(axis=(1, 2)))
    product: Floats = (first * second).sum(axis=(1, 2)) / np.maximum(spread, 1e-6)
    return product
