"""Eviction: which entries are removed for another to fit."""

import os
import subprocess
import sys
from collections import namedtuple

import pytest

from toolkit.errors import DataError
from toolkit.training.data import cache_eviction
from toolkit.training.data.cache_eviction import build_lock, entries, evict_until_fits, touch
from toolkit.training.data.cache_files import JOURNAL, PIXELS, open_pixels

Disk = namedtuple("Disk", "total used free")


@pytest.fixture
def root(tmp_path):
    """Three entries of 1,000 bytes, used in the order c, a, b, and things that are no entries."""
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


def names(root):
    return {path.name for path in root.iterdir() if path.is_dir()}


def make(root, limit, final, to_write=0):
    evict_until_fits(root, limit, root / "mine", final, to_write, "5 images")


@pytest.mark.parametrize(
    ("limit", "stay"), [(3500, "abc"), (3499, "ab"), (2500, "ab"), (2499, "b"), (1499, ""), (500, "")]
)
def test_the_least_recently_used_go_until_it_fits(root, limit, stay):
    make(root, limit, 500)
    assert names(root) == {*stay, "photos"}
    assert (root / "photos" / "cat.png").exists()


def test_what_is_used_becomes_the_last_to_go(root):
    assert [folder.name for _, _, folder in entries(root)] == ["c", "a", "b"]
    touch(root / "c")
    assert [(size, folder.name) for _, size, folder in entries(root)] == [(1000, "a"), (1000, "b"), (1000, "c")]
    make(root, 2500, 500)
    assert names(root) == {"b", "c", "photos"}


def test_an_entry_in_the_making_is_not_in_its_own_way(root):
    entry(root / "mine", age=99)
    make(root, 4000, 1000)
    assert names(root) == {"a", "b", "c", "mine", "photos"}


def test_more_than_the_limit_is_refused_and_nothing_removed(root):
    with pytest.raises(DataError) as caught:
        make(root, 2048, 3 * 1024)
    assert str(caught.value) == (
        "5 images need 3.0 KiB in the image cache, and its limit is 2.0 KiB; raise --cache-limit"
    )
    assert names(root) == {"a", "b", "c", "photos"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses to remove open files")
def test_what_another_process_has_open_stays(root):
    code = f"from toolkit.training.data.cache_files import *; f = open_pixels(Path({str(root / 'c')!r}))"
    code += "; print(1, flush=True); import numpy"
    code += "; m = map_pixels(f, 1, DecodeSpec(4, ImageLimits())); f.close(); print(2, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout
        reader.stdout.readline()
        reader.stdout.readline()  # its file is closed, its map is not
        make(root, 2500, 500)
        assert names(root) == {"b", "c", "photos"}
        with open_pixels(root / "b"), pytest.raises(DataError) as caught:
            make(root, 2047, 1024)
        assert str(caught.value) == (
            "5 images need 1.0 KiB in the image cache, and its limit is 2.0 KiB, of which 2.0 KiB are in use;"
            " raise --cache-limit"
        )
        reader.kill()
    make(root, 2047, 1024)
    assert names(root) == {"b", "photos"}


def test_a_full_disk_makes_entries_go_too(root, monkeypatch):
    """A disk of 4,000 bytes on which only the entries are."""
    monkeypatch.setattr(cache_eviction, "disk_usage", lambda _: Disk(4000, 0, 4000 - 1000 * (len(names(root)) - 1)))
    make(root, 10**6, 5000, to_write=1001)
    assert names(root) == {"a", "b", "photos"}
    with pytest.raises(DataError) as caught:
        make(root, 10**6, 5000, to_write=4001)
    assert str(caught.value) == (
        f"5 images need 4.9 KiB in the image cache, and the disk of {root} has 3.9 KiB free; choose another --cache-dir"
    )
    assert names(root) == {"a", "b", "photos"}


def test_a_builder_leaves_no_lock_behind(root):
    with build_lock(root, "key"):
        assert (root / "key.lock").exists()
    assert not (root / "key.lock").exists()
    with build_lock(root, "key"):
        pass
