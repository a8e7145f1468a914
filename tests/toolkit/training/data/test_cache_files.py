"""Entries on disk: what is written is read, and what was damaged is never taken for whole."""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.images.decoding import STATISTICS, ImageLimits
from toolkit.training.data import cache_files
from toolkit.training.data.cache_files import (
    DecodeSpec,
    PixelBlock,
    discard,
    intact_blocks,
    map_pixels,
    open_pixels,
    read_blocks,
    writing,
)

FORM = DecodeSpec(4, ImageLimits())


def some_block(seed, count=5, first=0):
    """A block of which the second image could not be decoded, and its pixels."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count - 1, *FORM.shape)).astype(np.uint8)
    block = PixelBlock(
        hashes=[hashlib.sha256(bytes([seed, place])).hexdigest() for place in range(count)],
        statistics=generator.normal(size=(count - 1, len(STATISTICS))).astype(np.float32),
        reasons={1: "it is broken — badly"},
        remarks={0: ["grey", "turned"], 3: ["grey"]},
        checksum=crc32(pixels),
        first=first,
    )
    return block, pixels


def write(folder, blocks=3):
    made = [some_block(seed, first=4 * seed) for seed in range(blocks)]
    with writing(folder, FORM, [], 5 * blocks) as append:
        for block, pixels in made:
            append(block, pixels)
    return [block for block, _ in made], np.concatenate([pixels for _, pixels in made])


def read(folder, form=FORM):
    with open_pixels(folder) as pixels:
        blocks = intact_blocks(pixels, read_blocks(folder, form), form)
        return blocks, np.array(map_pixels(pixels, sum(block.rows for block in blocks), form))


def assert_same(left, right):
    for one, other in zip(left, right, strict=True):
        assert (one.hashes, one.reasons, one.remarks) == (other.hashes, other.reasons, other.remarks)
        assert (one.first, one.rows, one.checksum) == (other.first, other.rows, other.checksum)
        assert np.array_equal(one.statistics, other.statistics)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "entry"


def test_what_is_written_is_read(folder):
    blocks, pixels = write(folder)
    found, mapped = read(folder)
    assert_same(found, blocks)
    assert np.array_equal(mapped, pixels)
    assert (folder / "pixels.u8").stat().st_size == pixels.nbytes == 12 * 48


def test_writing_goes_on_after_the_blocks_that_are_whole(folder):
    blocks, pixels = write(folder)
    with writing(folder, FORM, blocks[:1], 15) as append:
        assert (folder / "pixels.u8").stat().st_size == 15 * 48  # others reckon with its final size
        for index in (1, 2):
            append(blocks[index], pixels[4 * index : 4 * index + 4])
    found, mapped = read(folder)
    assert_same(found, blocks)
    assert np.array_equal(mapped, pixels)


def test_images_of_another_form_are_not_read(folder, monkeypatch):
    write(folder)
    for other in (
        DecodeSpec(8, ImageLimits()),
        DecodeSpec(4, ImageLimits(max_bytes=9)),
        DecodeSpec(4, ImageLimits(max_pixels=9)),
    ):
        assert list(read_blocks(folder, other)) == []
        assert other.key(["a"]) != FORM.key(["a"])
    before = FORM.key(["a"])
    monkeypatch.setattr(cache_files, "DECODER_VERSION", "another")
    assert list(read_blocks(folder, FORM)) == []
    assert FORM.key(["a"]) != before


def test_the_key_is_of_the_images_and_their_order():
    assert FORM.key(["a", "b"]) == DecodeSpec(4, ImageLimits()).key(["a", "b"])
    assert len({FORM.key(hashes) for hashes in (["a", "b"], ["b", "a"], ["a"], ["ab"], [])}) == 5


@pytest.fixture(scope="module")
def written():
    """An entry, and the bytes of its files."""
    with TemporaryDirectory() as root:
        folder = Path(root) / "entry"
        blocks, pixels = write(folder)
        yield folder, blocks, pixels, {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(deadline=None)  # a disk may be slow
@given(data=st.data())
def test_of_a_damaged_entry_only_whole_blocks_are_read(written, data):
    """A byte changed anywhere, a file cut anywhere, or anything put in its place."""
    folder, blocks, pixels, whole = written
    name = data.draw(st.sampled_from(sorted(whole)))
    content = bytearray(whole[name])
    at = data.draw(st.integers(0, len(content) - 1))
    damage = data.draw(st.sampled_from(("change", "cut", "replace")))
    if damage == "change":
        content[at] ^= data.draw(st.integers(1, 255))
    elif damage == "cut":
        del content[at:]
    else:
        content[at:] = data.draw(st.binary(max_size=200))
    for other in whole:
        (folder / other).write_bytes(bytes(content) if other == name else whole[other])
    found, mapped = read(folder)
    assert_same(found, blocks[: len(found)])
    assert np.array_equal(mapped, pixels[: len(mapped)])
    if name == "pixels.u8":
        assert len(found) >= at // (4 * 48)


@pytest.mark.parametrize("content", [b"", b"\n", b"null", b"[]", b"00000000 \n", b"\x00" * 100, b"ffffffff {}\n"])
def test_a_journal_of_garbage_holds_nothing(folder, content):
    write(folder)
    (folder / "blocks.jsonl").write_bytes(content)
    assert list(read_blocks(folder, FORM)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"hashes": 3},
        {"reasons": ["broken"]},
        {"reasons": {"first": "broken"}},
        {"statistics": [[1, 2]]},
        {"statistics": "none"},
        {"remarks": None},
    ],
)
def test_a_block_of_the_wrong_shape_ends_an_entry(folder, change):
    """Such a line has a right checksum: another version of this program may have written it."""
    blocks, _ = write(folder)
    lines = (folder / "blocks.jsonl").read_bytes().splitlines()
    second = cache_files._without_checksum(lines[2]) | change
    (folder / "blocks.jsonl").write_bytes(
        b"\n".join([*lines[:2], cache_files._with_checksum(second).strip(), lines[3]])
    )
    assert_same(list(read_blocks(folder, FORM)), blocks[:1])


def test_a_missing_entry_has_no_blocks_and_can_be_discarded(folder):
    assert list(read_blocks(folder, FORM)) == []
    discard(folder)
    write(folder)
    discard(folder)
    assert not folder.exists()


def test_what_is_mapped_outlives_the_entry(folder):
    _, pixels = write(folder)
    with open_pixels(folder) as file:
        mapped = map_pixels(file, 12, FORM)
    discard(folder)
    assert np.array_equal(mapped, pixels)
    assert not mapped.flags.writeable
