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
from toolkit.system.metrics import usable_cores
from toolkit.training.data.catalogue import Catalogue
from toolkit.training.data.decode import DecodedRow, DecodeJob, DecodeSpec, decode_images


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


def job_of(sources, size=8, hashes=None):
    read = [source if isinstance(source, bytes) else source.read_bytes() for source in sources]
    hashes = np.array([hashlib.sha256(data).hexdigest() for data in read]) if hashes is None else np.array(hashes)
    count = len(sources)
    catalogue = Catalogue("noise", ("noise",), sources, np.zeros(count, np.int64), hashes, np.full(count, ""))
    return DecodeJob(catalogue, DecodeSpec(size, ImageLimits()))


def test_images_come_in_order_each_read_once():
    sources = Sources(300)
    job = job_of(sources)
    sources.reads.clear()
    rows, images = zip(*decode_images(job, progress=False), strict=True)
    assert sorted(sources.reads) == list(range(300))
    assert [row.digest for row in rows] == job.hashes
    for index, row in enumerate(rows):
        if index % 100 == 7:
            assert row.reason.startswith("not an image, or its header is broken")
            assert images[index] is None
        else:
            expected = load_image(image(index), 8)
            assert np.array_equal(images[index], expected.pixels)
            assert row.statistics == [expected.statistics()[name] for name in STATISTICS]
            assert not row.reason


def test_what_is_done_or_known_is_not_decoded():
    sources = Sources(100)
    job = job_of(sources)
    known = {job.hashes[60]: (DecodedRow(job.hashes[60], remarks=["known"]), np.full((8, 8, 3), 9, np.uint8))}
    sources.reads.clear()
    decoded = list(decode_images(job, 56, known, progress=False))
    assert sorted(sources.reads) == [index for index in range(56, 100) if index != 60]
    assert decoded[4] == known[job.hashes[60]]
    assert [row.digest for row, _ in decoded] == job.hashes[56:]


def test_decoding_stays_at_most_a_block_ahead_and_stops_when_left():
    """With 1,200 x 1,200 pixels a block is three images."""
    sources = Sources(60)
    job = job_of(sources, size=1200)
    sources.reads.clear()
    before = set(threading.enumerate())  # other tests of this process may have left some
    with closing(decode_images(job, progress=False)) as stream:
        next(stream)
        time.sleep(0.3)
        assert len(sources.reads) <= max(3, 2 * usable_cores())
    count = len(sources.reads)
    time.sleep(0.1)
    assert len(sources.reads) == count
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("count", [0, 1])
def test_few_images_need_no_special_case(count):
    assert len(list(decode_images(job_of(Sources(count)), progress=False))) == count


def test_the_key_is_of_the_images_their_order_and_the_spec():
    keys = {job_of([b""] * len(hashes), hashes=hashes).key for hashes in (["a", "b"], ["b", "a"], ["a"], ["ab"], [])}
    keys |= {job_of([b"", b""], size, ["a", "b"]).key for size in (4, 8, 8)}
    assert len(keys) == 6
