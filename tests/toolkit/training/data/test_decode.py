"""Many images at once: in order, from each source once, never far ahead, and stopped at once."""

import hashlib
import threading
import time
from collections.abc import Sequence
from contextlib import closing

import numpy as np
import pytest

from support.colours import encode
from toolkit.images.decoding import STATISTICS, ImageLimits, load_image
from toolkit.training.data.cache_files import DecodeSpec
from toolkit.training.data.catalogue import Catalogue
from toolkit.training.data.decode import DecodedRow, DecodeJob, decode_images


def image(seed):
    return encode(np.random.default_rng(seed).integers(0, 256, (6, 9, 3)).astype(np.uint8))


class Sources(Sequence[bytes]):
    """Images made when they are asked for; the first take longest."""

    def __init__(self, count):
        self.count = count
        self.reads = []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        self.reads.append(index)
        time.sleep(0.02 if index < 2 else 0)
        return b"no image" if index % 100 == 7 else image(index)


def wanted(sources, size=8):
    read = [source if isinstance(source, bytes) else source.read_bytes() for source in sources]
    catalogue = Catalogue(
        name="noise",
        classes=("noise",),
        sources=sources,
        labels=np.zeros(len(sources), np.int64),
        hashes=np.array([hashlib.sha256(data).hexdigest() for data in read]),
        parts=np.full(len(sources), ""),
    )
    return DecodeJob(catalogue, DecodeSpec(size, ImageLimits()))


def test_images_come_in_order_each_read_once():
    sources = Sources(600)
    want = wanted(sources)
    sources.reads.clear()
    pieces = list(decode_images(want, progress=False))
    assert sorted(sources.reads) == list(range(600))
    assert [len(block.hashes) for block, _, _ in pieces] == [256, 256, 88]
    assert [digest for block, _, _ in pieces for digest in block.hashes] == want.hashes
    assert [block.first for block, _, _ in pieces] == [
        0,
        253,
        506,
    ]  # 7, 107 and 207 are no images, nor are 307, 407 and 507
    assert list(pieces[1][0].reasons) == [307 - 256, 407 - 256, 507 - 256]
    good = [index for index in range(600) if index % 100 != 7]
    expected = [load_image(image(index), 8) for index in good]
    pixels = np.concatenate([pixels for _, pixels, _ in pieces])
    assert np.array_equal(pixels, np.stack([one.pixels for one in expected]))
    statistics = np.concatenate([block.statistics for block, _, _ in pieces])
    assert np.array_equal(
        statistics, np.array([[one.statistics()[name] for name in STATISTICS] for one in expected], np.float32)
    )


def test_what_is_done_or_known_is_not_decoded():
    sources = Sources(300)
    want = wanted(sources)
    whole = list(decode_images(want, progress=False))
    known = {want.hashes[260]: DecodedRow(np.full((8, 8, 3), 9, np.uint8), [0.0] * len(STATISTICS), ["known"])}
    sources.reads.clear()
    ((block, pixels, _),) = decode_images(want, [whole[0][0]], known, progress=False)
    assert sorted(sources.reads) == [index for index in range(256, 300) if index != 260]
    assert block.first == whole[1][0].first
    assert (pixels[4] == 9).all()
    assert block.remarks == {4: ["known"]}
    assert np.array_equal(np.delete(pixels, 4, 0), np.delete(whole[1][1], 4, 0))


def test_decoding_stays_at_most_a_block_ahead_and_stops_when_left():
    """With 1,200 x 1,200 pixels a block is three images."""
    sources = Sources(60)
    want = wanted(sources, size=1200)
    sources.reads.clear()
    before = set(threading.enumerate())  # other tests of this process may have left some
    with closing(decode_images(want, progress=False)) as stream:
        next(stream)
        time.sleep(0.3)
        assert len(sources.reads) <= 3 + max(3, 2 * 64)
    count = len(sources.reads)
    time.sleep(0.1)
    assert len(sources.reads) == count
    assert set(threading.enumerate()) <= before


def test_a_file_that_changed_or_went_away_is_lost(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        path.write_bytes(image(number))
    want = wanted(paths)
    paths[1].unlink()
    paths[2].write_bytes(image(99))
    ((block, pixels, lost),) = decode_images(want, progress=False)
    assert lost == {1: "it cannot be read: No such file or directory", 2: "it changed after it was listed"}
    assert block.hashes == [want.hashes[0], want.hashes[3]]
    assert np.array_equal(pixels[1], load_image(image(3), 8).pixels)
    rest = want.without(lost)
    assert rest.hashes == block.hashes
    assert [item.path for item in rest.catalogue.skipped] == [str(paths[1]), str(paths[2])]


@pytest.mark.parametrize("count", [0, 1])
def test_few_images_need_no_special_case(count):
    assert [len(block.hashes) for block, _, _ in decode_images(wanted(Sources(count)), progress=False)] == [1] * count
