"""Decoded once: the same pixels as in memory, whatever happened to the cache before."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from support import MAX_WAIT_S, wait_until
from support.image_folders import fill, noise_image
from toolkit.errors import DataError
from toolkit.images import decoding
from toolkit.images.decoding import ImageLimits, load_image
from toolkit.training.data.cache import Cache, decode
from toolkit.training.data.catalogue import Catalogue, open_catalogue

ENOUGH = 2**30


def listed(images):
    """A catalogue of bytes in two classes."""
    return Catalogue(
        name="listed",
        classes=("even", "odd"),
        sources=images,
        labels=np.arange(len(images)) % 2,
        hashes=np.array([hashlib.sha256(data).hexdigest() for data in images]),
        parts=np.full(len(images), ""),
    )


class Observed(Sequence[Path | bytes]):
    """Sources that record the reads of decoding threads, and may do something first; the main thread reads names."""

    def __init__(self, sources, before=lambda _: None):
        self.sources = sources
        self.before = before
        self.reads = []

    def __len__(self):
        return len(self.sources)

    def __getitem__(self, index):
        if threading.current_thread() is not threading.main_thread():
            self.before(index)
            self.reads.append(index)
        return self.sources[index]


def observed(catalogue, cache, size=8):
    """The images, and the indices of those that were decoded for them."""
    sources = Observed(catalogue.sources)
    images = decode(replace(catalogue, sources=sources), size, cache=cache, progress=False)
    return images, sorted(sources.reads)


def assert_same(left, right):
    assert np.array_equal(left.pixels, right.pixels)
    assert np.array_equal(left.statistics, right.statistics)
    assert (left.pixels.dtype, left.statistics.dtype) == (np.uint8, np.float32)
    for name in ("hashes", "labels", "parts"):
        assert getattr(left.catalogue, name).tolist() == getattr(right.catalogue, name).tolist()
    assert left.catalogue.skipped == right.catalogue.skipped
    assert left.catalogue.remarks == right.catalogue.remarks


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "deep" / "cache", ENOUGH)


@pytest.fixture
def pets(tmp_path):
    """A folder of 600 tiny images: three blocks of an entry."""
    folder = tmp_path / "pets"
    fill(folder, 300, "cat", "dog", size=6)
    return folder


# --- what is decoded ----------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
def test_digits_are_decoded_as_they_are(cached, cache):
    digits = load_digits()
    images = decode(open_catalogue("digits"), 8, cache=cache if cached else None, progress=False)
    assert np.array_equal(images.labels, digits.target)
    assert np.array_equal(images.pixels[..., 0], (digits.images / 16 * 255).round())
    assert (images.pixels == images.pixels[..., :1]).all()
    assert images.size == 8


def test_an_image_above_the_limits_is_skipped_until_they_are_raised(tmp_path, cache):
    fill(tmp_path / "pets", 4, "cat", "dog")
    (tmp_path / "pets" / "cat" / "vast.png").write_bytes(noise_image(98, size=64))
    for where in (None, cache, cache):
        limits = ImageLimits(max_pixels=32 * 32)
        images = decode(open_catalogue("pets"), 16, cache=where, progress=False, limits=limits)
        assert len(images.catalogue) == len(images.pixels) == len(images.statistics) == 8
        (skipped,) = images.catalogue.skipped
        assert skipped.reason.startswith("the image has 64 x 64 pixels, at most 1,024 are allowed")
    assert len(decode(open_catalogue("pets"), 16, cache=cache, progress=False).pixels) == 9


def test_a_class_whose_images_are_all_broken_is_named(tmp_path, cache):
    fill(tmp_path / "pets" / "cat", 3)
    (tmp_path / "pets" / "dog").mkdir()
    for number in range(3):
        (tmp_path / "pets" / "dog" / f"{number}.png").write_text(f"nothing {number}")
    for where in (None, cache, cache):
        with pytest.raises(DataError, match=r"^class 'dog' has 0 usable images, .* needed \(3 files were skipped\)$"):
            decode(open_catalogue("pets"), 16, cache=where, progress=False)


def test_images_none_of_which_can_be_decoded_need_no_pixels(cache):
    for where in (None, cache, cache):
        with pytest.raises(DataError, match=r"^class 'even' has 0 usable images"):
            decode(listed([b"nothing", b"nought"]), 8, cache=where, progress=False)


def test_more_images_than_memory_are_refused_before_decoding():
    with pytest.raises(DataError, match=r"^2 images of 1000000 x 1000000 need 5587\.9 GiB of memory and .* are free"):
        decode(listed([b"a", b"b"]), 1_000_000, progress=False)


# --- from the cache -----------------------------------------------------------------------------


def test_the_cache_gives_what_decoding_in_memory_gives(pets, cache):
    (pets / "dog" / "broken.png").write_bytes(b"no image")
    catalogue = open_catalogue(str(pets))
    expected = decode(catalogue, 8, progress=False)
    assert isinstance(expected.pixels, np.ndarray)
    for expected_work in ([*range(601)], []):
        images, work = observed(catalogue, cache)
        assert work == expected_work
        assert_same(images, expected)
        assert isinstance(images.pixels, np.memmap)
        assert not images.pixels.flags.writeable
        batch = images.pixels[np.array([5, 599, 5])]
        assert type(batch) is np.ndarray
        assert batch.flags.writeable


NOISE = [noise_image(seed, size=5) for seed in range(12)] + [b"no image", b"nor this"]


@pytest.fixture(scope="module")
def lasting():
    """One cache for all examples of a property, so that each finds what those before it have left."""
    with TemporaryDirectory() as folder:
        yield Cache(Path(folder), 16_000)  # bytes, of about three entries


@settings(max_examples=40)
@given(st.lists(st.sampled_from(NOISE), min_size=1, unique=True), st.sampled_from((4, 6)))
def test_whatever_was_cached_before_the_images_are_right(lasting, chosen, size):
    catalogue = replace(listed([NOISE[0], NOISE[1], NOISE[2], NOISE[3]]), name="any")
    chosen = [*catalogue.sources, *(data for data in chosen if data not in NOISE[:4])]
    catalogue = listed(chosen[::-1] if size == 4 else chosen)
    assert_same(decode(catalogue, size, cache=lasting, progress=False), decode(catalogue, size, progress=False))
    assert sum(path.stat().st_size for path in lasting.folder.rglob("*") if path.is_file()) <= lasting.limit


def test_a_folder_that_grew_costs_its_new_images_only(pets, cache):
    decode(open_catalogue(str(pets)), 8, cache=cache, progress=False)
    fill(pets / "ant", 3, size=6)  # first in order, so that every index moves
    catalogue = open_catalogue(str(pets))
    images, work = observed(catalogue, cache)
    assert work == [0, 1, 2]
    assert_same(images, decode(catalogue, 8, progress=False))


def test_skipped_files_and_remarks_have_present_names(tmp_path, cache):
    fill(tmp_path / "pets", 3, "cat", "dog")
    Image.new("CMYK", (9, 9), (0, 99, 0, 0)).save(tmp_path / "pets" / "cat" / "print.jpg")
    (tmp_path / "pets" / "dog" / "broken.png").write_bytes(b"no image")
    remarks = load_image((tmp_path / "pets" / "cat" / "print.jpg").read_bytes(), 8).remarks
    assert remarks
    decode(open_catalogue("pets"), 8, cache=cache, progress=False)
    (tmp_path / "pets" / "cat" / "print.jpg").rename(tmp_path / "pets" / "cat" / "a.jpg")
    (tmp_path / "pets" / "dog" / "broken.png").rename(tmp_path / "pets" / "dog" / "a.png")
    (tmp_path / "pets").rename(tmp_path / "animals")
    catalogue = open_catalogue("animals")
    for _ in range(2):  # copied from the entry of other names, then from its own
        images, work = observed(catalogue, cache)
        assert work == []
        assert [(item.path, item.text) for item in images.catalogue.remarks] == [
            ("animals/cat/a.jpg", text) for text in remarks
        ]
        assert [item.path for item in images.catalogue.skipped] == ["animals/dog/a.png"]
        assert_same(images, decode(catalogue, 8, progress=False))


def test_what_a_package_was_missing_for_is_decoded_once_it_is_there(tmp_path, cache, monkeypatch):
    from pillow_heif import from_pillow

    fill(tmp_path / "pets", 3, "cat", "dog")
    from_pillow(Image.new("RGB", (64, 64), "red")).save(tmp_path / "pets" / "cat" / "phone.HEIC", quality=90)
    decoding._register_heif.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        without = decode(open_catalogue("pets"), 8, cache=cache, progress=False)
    assert [item.reason.split(":")[0] for item in without.catalogue.skipped] == ["HEIC needs the package pillow-heif"]
    images = decode(open_catalogue("pets"), 8, cache=cache, progress=False)
    assert images.catalogue.skipped == ()
    assert len(images.catalogue) == 7


def test_a_file_that_was_lost_meanwhile_is_left_out_and_comes_back(tmp_path, cache):
    fill(tmp_path / "pets", 4, "cat", "dog")
    catalogue = open_catalogue("pets")
    gone, changed = Path("pets/cat/1.png"), Path("pets/dog/2.png")
    kept = gone.read_bytes(), changed.read_bytes()
    gone.unlink()
    changed.write_bytes(noise_image(99))
    for _ in range(2):
        images = decode(catalogue, 8, cache=cache, progress=False)
        assert [(item.path, item.reason) for item in images.catalogue.skipped] == [
            (str(gone), "it cannot be read: No such file or directory"),
            (str(changed), "it changed after it was listed"),
        ]
        assert_same(images, decode(catalogue, 8, progress=False))
    gone.write_bytes(kept[0])
    changed.write_bytes(kept[1])
    images, work = observed(catalogue, cache)
    assert work == [1, 6]
    assert images.catalogue.skipped == ()
    assert_same(images, decode(catalogue, 8, progress=False))


def test_a_data_set_may_be_larger_than_memory(tmp_path, cache):
    """130 MB of pixels are never in memory together, neither when they are decoded nor later."""
    fill(tmp_path / "large", 60, "cat", "dog", size=4)
    catalogue = open_catalogue("large")
    tracemalloc.start()
    try:
        images = [decode(catalogue, 600, cache=cache, progress=False) for _ in range(2)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert images[1].pixels.nbytes == 120 * 600 * 600 * 3
    assert peak < 0.6 * images[1].pixels.nbytes


# --- damage -------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def garble(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(("kind", "damage"), [("*.u8", garble), ("*.u8", Path.unlink), ("*.jsonl", cut)])
def test_a_damaged_entry_is_made_again(kind, damage, pets, cache):
    catalogue = open_catalogue(str(pets))
    decode(catalogue, 8, cache=cache, progress=False)
    (path,) = cache.folder.rglob(kind)
    damage(path)
    expected = decode(catalogue, 8, progress=False)
    images, work = observed(catalogue, cache)
    assert work == list(range(600))
    assert_same(images, expected)
    images, work = observed(catalogue, cache)
    assert work == []
    assert_same(images, expected)


# --- several processes --------------------------------------------------------------------------

# Decodes the folder "pets", logs its reads and its output, and waits at one index for a file named "go".
WORKER = """
import os, sys, time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
import numpy as np
from toolkit.training.data.cache import Cache, decode
from toolkit.training.data.catalogue import open_catalogue

class Sources(Sequence):
    def __init__(self, sources): self.sources = sources
    def __len__(self): return len(self.sources)
    def __getitem__(self, index):
        with open(f"{name}.read", "a") as log: log.write(f"{index}\\n")
        while index == barrier and not Path("go").exists(): time.sleep(0.01)
        return self.sources[index]

os.chdir(home)
catalogue = open_catalogue("pets")
with open(f"{name}.out", "w") as output, redirect_stdout(output):
    sources = Sources(catalogue.sources)
    images = decode(replace(catalogue, sources=sources), 8, cache=Cache(Path(cache), 2**30), progress=False)
np.save(f"{name}.npy", images.pixels)
"""


def worker(name, cache, barrier=-1):
    """A process that decodes; the libraries are imported once for all of them, where the system can fork."""
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    context.set_forkserver_preload(["toolkit.training.data.cache"])
    arguments = {"name": name, "home": str(Path.cwd()), "cache": str(cache.folder), "barrier": barrier}
    process = context.Process(target=exec, args=(WORKER, arguments), daemon=True)
    process.start()
    return process


def read_by(name):
    log = Path(f"{name}.read")
    return sorted(int(line) for line in log.read_text().split()) if log.exists() else []


def waits(name):
    output = Path(f"{name}.out")
    return output.exists() and output.read_text() == "another process is decoding these images; waiting for it\n"


def ended(process):
    process.join(MAX_WAIT_S)
    return process.exitcode


def half_way(cache):
    """Whether a first block has been written."""
    return any(journal.read_bytes().count(b"\n") >= 2 for journal in cache.folder.glob("*/*.jsonl"))


def test_processes_that_start_together_decode_it_once(pets, cache):
    names = ("a", "b", "c")
    assert [ended(process) for process in [worker(name, cache) for name in names]] == [0, 0, 0]
    assert sorted(index for name in names for index in read_by(name)) == list(range(600))
    expected = decode(open_catalogue("pets"), 8, progress=False).pixels
    for name in names:
        assert np.array_equal(np.load(f"{name}.npy"), expected)


def test_a_waiting_process_takes_over_after_a_kill(pets, cache):
    killed = worker("killed", cache, barrier=300)
    wait_until(lambda: half_way(cache))
    second = worker("second", cache)
    wait_until(lambda: waits("second"))
    killed.kill()
    assert ended(second) == 0
    assert read_by("second") == list(range(256, 600))
    assert not list(cache.folder.glob("*.building"))
    assert np.array_equal(np.load("second.npy"), decode(open_catalogue("pets"), 8, progress=False).pixels)


def test_a_killed_process_leaves_blocks_for_a_grown_folder(pets, cache):
    killed = worker("killed", cache, barrier=300)
    wait_until(lambda: half_way(cache))
    killed.kill()
    killed.join()
    fill(pets / "ant", 2, size=6)
    catalogue = open_catalogue("pets")
    images, work = observed(catalogue, cache)
    assert work == [0, 1, *range(2 + 256, 602)]
    assert_same(images, decode(catalogue, 8, progress=False))


def test_an_interrupt_stops_at_once_and_keeps_whole_blocks(pets, cache):
    catalogue = open_catalogue("pets")

    def interrupt(index):
        if index == 300:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # the rest would be decoded in this time by the other threads, if they went on

    sources = Observed(catalogue.sources, interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode(replace(catalogue, sources=sources), 8, cache=cache, progress=False)
    assert 599 not in sources.reads
    images, work = observed(catalogue, cache)
    assert_same(images, decode(catalogue, 8, progress=False))
    assert work in ([*range(600)], [*range(256, 600)])  # 300 may be read before 255 was written
    assert not list(cache.folder.glob("*.building"))


# --- eviction -----------------------------------------------------------------------------------


def test_the_least_recently_used_entry_is_evicted(tmp_path):
    """An entry of four images of 8 x 8 has at most 4 x (192 + 256) bytes: two fit, three do not."""
    cache = Cache(tmp_path / "cache", 2 * 4 * (192 + 256))
    sets = [listed([noise_image(10 * number + place) for place in range(4)]) for number in range(3)]
    for number, expected in ((0, 4), (1, 4), (0, 0), (2, 4), (0, 0), (1, 4), (0, 0), (2, 4)):
        time.sleep(0.01)  # a file system's clock ticks every few milliseconds
        assert len(observed(sets[number], cache)[1]) == expected, number


def test_entries_in_use_are_not_evicted(tmp_path):
    cache = Cache(tmp_path / "cache", 4 * (192 + 256))
    sets = [listed([noise_image(10 * number + place) for place in range(4)]) for number in range(2)]
    images = decode(sets[0], 8, cache=cache, progress=False)
    with pytest.raises(
        DataError,
        match=r"^4 images of 8 x 8 need 1\.8 KiB in the image cache, and its limit is 1\.8 KiB,"
        r" of which 1\.\d KiB are in use; raise --cache-limit$",
    ):
        decode(sets[1], 8, cache=cache, progress=False)
    assert observed(sets[0], cache)[1] == []
    del images
    assert len(observed(sets[1], cache)[1]) == 4


def test_more_than_the_limit_is_refused_before_decoding(tmp_path):
    cache = Cache(tmp_path / "cache", 1024)
    sources = Observed([noise_image(number) for number in range(4)])
    with pytest.raises(DataError) as caught:
        decode(replace(listed(sources.sources), sources=sources), 8, cache=cache, progress=False)
    assert str(caught.value) == (
        "4 images of 8 x 8 need 1.8 KiB in the image cache, and its limit is 1.0 KiB; raise --cache-limit"
    )
    assert sources.reads == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file" / "cache", ENOUGH)
    with pytest.raises(DataError) as caught:
        decode(listed([noise_image(1), noise_image(2)]), 8, cache=cache, progress=False)
    assert str(caught.value) == (
        f"the image cache {cache.folder} cannot be used: Not a directory; choose another --cache-dir"
    )


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    words = ["-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if mount is None or subprocess.run([mount, *words], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_refused_before_decoding(pets, small_disk):
    sources = Observed(open_catalogue("pets").sources)
    with pytest.raises(
        DataError,
        match=r"^600 images of 16 x 16 need 600\.0 KiB in the image cache,"
        rf" and the disk of {small_disk}/cache has 5\d\d\.0 KiB free; choose another --cache-dir$",
    ):
        decode(
            replace(open_catalogue("pets"), sources=sources),
            16,
            cache=Cache(small_disk / "cache", ENOUGH),
            progress=False,
        )
    assert sources.reads == []


def test_a_disk_that_fills_up_meanwhile_ends_in_one_sentence(pets, small_disk):
    cache = Cache(small_disk / "cache", ENOUGH)
    catalogue = open_catalogue("pets")

    def fill_disk(index):
        if index == 300:
            with suppress(OSError):
                (small_disk / "another user's").write_bytes(b"x" * 512 * 1024)

    with pytest.raises(DataError) as caught:
        decode(replace(catalogue, sources=Observed(catalogue.sources, fill_disk)), 8, cache=cache, progress=False)
    assert str(caught.value) == (
        f"the image cache {cache.folder} cannot be used: No space left on device; choose another --cache-dir"
    )
    assert list(cache.folder.iterdir()) == []
    (small_disk / "another user's").unlink()
    assert_same(decode(catalogue, 8, cache=cache, progress=False), decode(catalogue, 8, progress=False))


def test_a_limit_on_the_size_of_files_ends_in_one_sentence(pets, cache):
    resource = pytest.importorskip("resource", reason="not on Windows")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(DataError) as caught:
            decode(open_catalogue("pets"), 8, cache=cache, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value) == (
        f"the image cache {cache.folder} cannot be used: File too large; choose another --cache-dir"
    )
    assert list(cache.folder.iterdir()) == []
