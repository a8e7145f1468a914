"""Entries on disk: what is written is read, damaged blocks are not, and the least recently used go first."""

import hashlib
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.errors import DataError
from toolkit.images.decoding import STATISTICS, ImageLimits
from toolkit.training.data import cache_files, decode
from toolkit.training.data.cache_files import (
    JOURNAL,
    PIXELS,
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
from toolkit.training.data.decode import DecodedRow, DecodeSpec

SPEC = DecodeSpec(4, ImageLimits())
COUNT = 5  # images of a block, of which the second could not be decoded


def rows_of(seed):
    statistics = np.random.default_rng(seed).normal(size=(COUNT, len(STATISTICS))).tolist()
    rows = [
        DecodedRow(hashlib.sha256(bytes([seed, place])).hexdigest(), values, ["grey", "turned"][: place % 3])
        for place, values in enumerate(statistics)
    ]
    return [rows[0], DecodedRow(rows[1].digest, [], [], "it is broken — badly"), *rows[2:]]


def images_of(seed):
    return np.random.default_rng(seed).integers(0, 256, (COUNT - 1, *SPEC.shape)).astype(np.uint8)


def write(folder, blocks=3):
    with writing(folder, SPEC, [], COUNT * blocks) as append:
        for seed in range(blocks):
            append(rows_of(seed), list(images_of(seed)))
    return read_journal(folder, SPEC), np.concatenate([images_of(seed) for seed in range(blocks)])


def read(folder):
    with open_pixels(folder) as pixels:
        blocks = intact_blocks(pixels, read_journal(folder, SPEC), SPEC)
        return blocks, np.array(map_pixels(pixels, sum(block.decoded for block in blocks), SPEC))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "entry"


def test_what_is_written_is_read(folder):
    _, pixels = write(folder)
    found, mapped = read(folder)
    assert [block.rows for block in found] == [rows_of(seed) for seed in range(3)]
    assert np.array_equal(mapped, pixels)
    assert (folder / PIXELS).stat().st_size == pixels.nbytes == 12 * 48


def test_writing_goes_on_after_the_blocks_that_are_whole(folder):
    blocks, pixels = write(folder)
    with writing(folder, SPEC, blocks[:1], 15) as append:
        assert (folder / PIXELS).stat().st_size == 15 * 48  # others reckon with its final size
        for seed in (1, 2):
            append(rows_of(seed), list(images_of(seed)))
    found, mapped = read(folder)
    assert found == blocks
    assert np.array_equal(mapped, pixels)


def test_images_of_another_spec_are_not_read(folder, monkeypatch):
    write(folder)
    for other in ((8, ImageLimits()), (4, ImageLimits(max_bytes=9)), (4, ImageLimits(max_pixels=9))):
        assert read_journal(folder, DecodeSpec(*other)) == []
    monkeypatch.setattr(decode, "DECODER_VERSION", "another")
    assert read_journal(folder, SPEC) == []


@pytest.fixture(scope="module")
def written():
    """An entry, and the bytes of its files."""
    with TemporaryDirectory() as root:
        folder = Path(root) / "entry"
        blocks, pixels = write(folder)
        yield folder, blocks, pixels, {path.name: path.read_bytes() for path in folder.iterdir()}


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
    assert found == blocks[: len(found)]
    assert np.array_equal(mapped, pixels[: len(mapped)])
    if name == PIXELS:
        assert len(found) >= at // (4 * 48)


@pytest.mark.parametrize("content", [b"", b"\n", b"null", b"[]", b"00000000 \n", b"\x00" * 100, b"ffffffff {}\n"])
def test_a_journal_of_garbage_holds_nothing(folder, content):
    write(folder)
    (folder / JOURNAL).write_bytes(content)
    assert read_journal(folder, SPEC) == []


def test_a_missing_entry_has_no_blocks_and_can_be_discarded(folder):
    assert read_journal(folder, SPEC) == []
    discard(folder)


def test_what_is_mapped_outlives_the_entry(folder):
    _, pixels = write(folder)
    with open_pixels(folder) as file:
        mapped = map_pixels(file, 12, SPEC)
    discard(folder)
    assert not folder.exists()
    assert np.array_equal(mapped, pixels)
    assert not mapped.flags.writeable


# --- eviction -----------------------------------------------------------------------------------

Disk = namedtuple("Disk", "total used free")


@pytest.fixture
def root(tmp_path):
    """Three entries of 1,000 bytes, used in the order c, a, b, and a folder that is no entry."""
    root = tmp_path / "cache"
    for age, name in enumerate("bac"):
        entry(root / name, age)
    (root / "photos").mkdir()
    (root / "photos" / "cat.png").write_bytes(b"a cat")
    return root


def entry(folder, age):
    folder.mkdir(parents=True)
    (folder / PIXELS).write_bytes(b"p" * 900)
    (folder / JOURNAL).write_bytes(b"j" * 100)
    os.utime(folder, (1e9 - age, 1e9 - age))


def stays(root):
    assert (root / "photos" / "cat.png").exists()
    return "".join(sorted(path.name for path in root.iterdir() if path.name != "photos"))


def evict(root, limit, final, to_write=0):
    evict_until_fits(root / "mine", limit, final, to_write, "5 images")


@pytest.mark.parametrize(
    ("limit", "names"), [(3500, "abc"), (3499, "ab"), (2500, "ab"), (2499, "b"), (1499, ""), (500, "")]
)
def test_the_least_recently_used_go_until_it_fits(root, limit, names):
    evict(root, limit, 500)
    assert stays(root) == names


def test_what_is_used_becomes_the_last_to_go(root):
    assert [folder.name for _, _, folder in entries(root)] == ["c", "a", "b"]
    touch(root / "c")
    assert [(size, folder.name) for _, size, folder in entries(root)] == [(1000, "a"), (1000, "b"), (1000, "c")]


def test_an_entry_in_the_making_is_not_in_its_own_way(root):
    entry(root / "mine", age=99)
    evict(root, 4000, 1000)
    assert stays(root) == "abcmine"


def test_more_than_the_limit_is_refused_and_nothing_removed(root):
    with pytest.raises(DataError) as caught:
        evict(root, 2048, 3 * 1024)
    assert str(caught.value) == (
        "5 images need 3.0 KiB in the image cache, and its limit is 2.0 KiB; raise --cache-limit"
    )
    assert stays(root) == "abc"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses to remove open files")
def test_what_another_process_has_open_stays(root):
    code = f"from toolkit.training.data.cache_files import *; f = open_pixels(Path({str(root / 'c')!r}))"
    code += "; m = map_pixels(f, 1, DecodeSpec(4, 0)); f.close(); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        reader.stdout.readline()  # its file is closed, its map is not
        evict(root, 2500, 500)
        assert stays(root) == "bc"
        with open_pixels(root / "b"), pytest.raises(DataError) as caught:
            evict(root, 2047, 1024)
        assert str(caught.value) == (
            "5 images need 1.0 KiB in the image cache, and its limit is 2.0 KiB, of which 2.0 KiB are in use;"
            " raise --cache-limit"
        )
        reader.kill()
    evict(root, 2047, 1024)
    assert stays(root) == "b"


def test_a_full_disk_makes_entries_go_too(root, monkeypatch):
    """A disk of 4,000 bytes on which only the entries are."""
    monkeypatch.setattr(cache_files, "disk_usage", lambda _: Disk(4000, 0, 4000 - 1000 * len(stays(root))))
    evict(root, 10**6, 5000, to_write=1001)
    assert stays(root) == "ab"
    with pytest.raises(DataError) as caught:
        evict(root, 10**6, 5000, to_write=4001)
    assert str(caught.value) == (
        f"5 images need 4.9 KiB in the image cache, and the disk of {root} has 3.9 KiB free; choose another --cache-dir"
    )
    assert stays(root) == "ab"
