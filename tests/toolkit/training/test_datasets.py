"""Folders as people have them: what is found, what is left out and why, and who sees which picture."""

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from support import encode
from toolkit.errors import DataError
from toolkit.images import STATISTICS, Limits
from toolkit.training.datasets import (
    Catalogue,
    decode,
    open_catalogue,
    split,
    stratified,
    stratified_folds,
)


def picture(seed: int, size: int = 20) -> bytes:
    return encode(np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8))


def fill(folder: Path, count: int, first: int = 0) -> None:
    """Pictures no two of which are alike, as long as ``first`` differs."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(picture(first + number))


def listed(hashes: list[str], labels: list[int] | None = None, parts: list[str] | None = None) -> Catalogue:
    """A catalogue of which only the hashes matter."""
    count = len(hashes)
    return Catalogue(
        name="listed",
        classes=("only",) if labels is None else tuple(f"class {label}" for label in range(max(labels) + 1)),
        sources=[b""] * count,
        labels=np.array(labels or [0] * count, np.int64),
        hashes=np.array(hashes),
        parts=np.array(parts or [""] * count),
    )


# --- what is found ------------------------------------------------------------------------------


def test_a_plain_folder(tmp_path: Path) -> None:
    fill(tmp_path / "pets" / "dog", 3)
    fill(tmp_path / "pets" / "cat" / "kittens", 2, first=10)  # folders inside a class belong to it
    (tmp_path / "pets" / "cat" / "old.PNG").write_bytes(picture(20))
    catalogue = open_catalogue("pets")
    assert (catalogue.name, catalogue.classes, len(catalogue)) == ("pets", ("cat", "dog"), 6)
    assert catalogue.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert set(catalogue.parts) == {""}
    assert catalogue.skipped == ()
    assert catalogue.mirrored
    for source, digest in zip(catalogue.sources, catalogue.hashes, strict=True):
        assert hashlib.sha256(Path(source).read_bytes()).hexdigest() == digest


def test_train_val_and_test_folders(tmp_path: Path) -> None:
    for index, part in enumerate(("Train", "valid", "validation", "test")):
        for label, name in enumerate(("cat", "dog")):
            fill(tmp_path / "pets" / part / name, 2 + index, first=100 * index + 10 * label)
    catalogue = open_catalogue("pets")
    assert catalogue.classes == ("cat", "dog")
    counts = dict(zip(*np.unique(catalogue.parts, return_counts=True), strict=True))
    assert counts == {"train": 4, "val": 6 + 8, "test": 10}
    divided = split(catalogue, 0.15)
    assert set(catalogue.parts[divided.held_out]) == {"test"}
    assert set(catalogue.parts[divided.validation]) == {"val"}
    assert set(catalogue.parts[divided.development]) == {"train"}
    assert len(divided.held_out) + len(divided.validation) + len(divided.development) == len(catalogue)


def test_a_val_folder_alone_leaves_the_held_out_part_to_the_content(tmp_path: Path) -> None:
    for index, (part, count) in enumerate((("train", 30), ("val", 10))):
        for label, name in enumerate(("cat", "dog")):
            fill(tmp_path / "pets" / part / name, count, first=1000 * index + 100 * label)
    catalogue = open_catalogue("pets")
    divided = split(catalogue, 0.2)
    assert len(divided.validation) == 20
    assert set(catalogue.parts[divided.held_out]) == {"train"}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for index, name in enumerate(("bus", "train", "tram")):
        fill(tmp_path / "vehicles" / name, 2, first=10 * index)
    assert open_catalogue("vehicles").classes == ("bus", "train", "tram")


def test_a_folder_beside_train_that_is_no_part_is_refused(tmp_path: Path) -> None:
    """Otherwise the parts would be taken for classes, and a network be trained to tell train from test."""
    for index, path in enumerate(("train/cat", "train/dog", "test/cat", "test/dog", "extra/cat")):
        fill(tmp_path / "pets" / path, 2, first=10 * index)
    with pytest.raises(
        DataError, match=r"^the folder pets holds 'extra' beside 'train', so what is a class is unclear"
    ):
        open_catalogue("pets")


@pytest.mark.parametrize(
    ("path", "name"), [("photos/pets", "pets"), ("photos/pets/", "pets"), ("photos/pets/train", "pets/train")]
)
def test_the_name_is_what_people_call_it(tmp_path: Path, path: str, name: str) -> None:
    for label, of_class in enumerate(("cat", "dog")):
        fill(tmp_path / path / of_class, 2, first=10 * label)
    assert open_catalogue(path).name == name


def test_classes_are_in_natural_order(tmp_path: Path) -> None:
    names = ("001", "01", "1", "2b", "9", "10", "a", "class 9", "class 10", "²")
    for index, name in enumerate(reversed(names)):
        fill(tmp_path / "many" / name, 2, first=10 * index)
    assert open_catalogue("many").classes == names


def test_digits_need_no_file() -> None:
    catalogue = open_catalogue("digits")
    pictures = decode(catalogue, 8, progress=False)
    digits = load_digits()
    assert open_catalogue(None).fingerprint == catalogue.fingerprint
    assert catalogue.classes == tuple("0123456789")
    assert not catalogue.mirrored
    assert np.array_equal(pictures.labels, digits.target)
    assert np.array_equal(pictures.pixels[..., 0], (digits.images / 16 * 255).round())
    assert (pictures.pixels == pictures.pixels[..., :1]).all()
    assert pictures.size == 8


# --- what cannot be used ------------------------------------------------------------------------


def test_what_is_no_folder_of_classes_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file.zip").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    fill(tmp_path / "flat", 3)
    fill(tmp_path / "one" / "cat", 3)
    fill(tmp_path / "few" / "cat", 3)
    fill(tmp_path / "few" / "dog", 1, first=10)
    for data, message in {
        "missing": "the folder missing does not exist",
        "file.zip": "file.zip is a file; give a folder with one sub-folder a class, or 'digits'",
        "empty": "the folder empty holds no sub-folders; it needs one sub-folder of pictures a class",
        "flat": "the folder flat holds no sub-folders; it needs one sub-folder of pictures a class",
        "hollow": "the folder hollow holds no pictures; it needs one sub-folder of pictures a class",
        "one": "the folder one holds only the class 'cat'; at least two are needed",
        "few": "class 'dog' has 1 usable pictures, at least 2 are needed",
    }.items():
        with pytest.raises(DataError) as caught:
            open_catalogue(data)
        assert str(caught.value) == message


def test_what_is_no_picture_is_skipped_with_its_reason(tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        fill(tmp_path / "pets" / name, 4, first=10 * label)
    cat = tmp_path / "pets" / "cat"
    whole = picture(99)
    (cat / "empty.png").write_bytes(b"")
    (cat / "cut.png").write_bytes(whole[: len(whole) // 2])
    (cat / "text.jpg").write_text("I am a letter")
    (cat / "print.jpeg").write_bytes(b"%PDF-1.7 and so on")
    (cat / "notes.txt").write_text("about cats")
    (cat / "lost.png").symlink_to("nowhere.png")
    (cat / "vast.png").write_bytes(picture(98, size=64))
    (cat / ".hidden.png").write_bytes(whole)
    (cat / ".thumbnails").mkdir()
    (cat / ".thumbnails" / "small.png").write_bytes(whole)
    (tmp_path / "pets" / ".cache").mkdir()
    pictures = decode(open_catalogue("pets"), 16, progress=False, limits=Limits(max_pixels=32 * 32))
    assert len(pictures.catalogue) == len(pictures.pixels) == len(pictures.statistics) == 8
    reasons = {Path(item.path).name: item.reason for item in pictures.catalogue.skipped}
    patterns = {
        "empty.png": "the file is empty",
        "cut.png": "the picture is broken: ",
        "text.jpg": "not a picture, or its header is broken",
        "print.jpeg": "PDF is not supported",
        "notes.txt": r"its ending is none of \.bmp, \.gif, ",
        "lost.png": "it cannot be read: No such file or directory",
        "vast.png": "the picture has 64 x 64 pixels, at most 1,024 are allowed",
    }
    assert set(reasons) == set(patterns)
    for name, pattern in patterns.items():
        assert re.match(pattern, reasons[name]), reasons[name]


def test_a_class_whose_pictures_are_all_broken_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "pets" / "cat", 3)
    (tmp_path / "pets" / "dog").mkdir()
    for number in range(3):
        (tmp_path / "pets" / "dog" / f"{number}.png").write_text(f"nothing {number}")
    with pytest.raises(DataError, match=r"^class 'dog' has 0 usable pictures, .* needed \(3 files were skipped\)$"):
        decode(open_catalogue("pets"), 16, progress=False)


def test_more_pictures_than_fit_into_memory_are_refused_before_any_is_decoded() -> None:
    with pytest.raises(DataError, match=r"^2 pictures of 1000000 x 1000000 need 5587\.9 GiB of memory and .* are free"):
        decode(listed(["a" * 64, "b" * 64], [0, 1]), 1_000_000, progress=False)


def test_pixels_and_statistics_are_the_decoders(tmp_path: Path) -> None:
    """A white and a black picture of 40 x 20 pixels: every figure is known by hand."""
    for name, value in (("white", 255), ("black", 0)):
        (tmp_path / "tones" / name).mkdir(parents=True)
        for number in range(2):
            wide = np.full((20, 40 + number, 3), value, np.uint8)
            (tmp_path / "tones" / name / f"{number}.png").write_bytes(encode(wide))
    pictures = decode(open_catalogue("tones"), 16, progress=False)
    assert pictures.catalogue.classes == ("black", "white")
    assert [int(tone.max()) for tone in pictures.pixels] == [0, 0, 255, 255]
    assert [int(tone.min()) for tone in pictures.pixels] == [0, 0, 255, 255]
    columns = dict(zip(STATISTICS, pictures.statistics.T.tolist(), strict=True))
    assert columns["brightness"] == pytest.approx([0, 0, 1, 1], abs=1e-6)
    assert columns["contrast"] == pytest.approx([0] * 4, abs=1e-6)
    assert columns["width"] == [40, 41, 40, 41]
    assert columns["height"] == [20] * 4
    assert columns["aspect"] == pytest.approx([2, 2.05, 2, 2.05])


# --- equal pictures -----------------------------------------------------------------------------


def test_of_equal_pictures_one_is_kept_and_the_others_are_named(tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        fill(tmp_path / "pets" / name, 3, first=10 * label)
    same = (tmp_path / "pets" / "cat" / "0.png").read_bytes()
    (tmp_path / "pets" / "cat" / "copy.png").write_bytes(same)
    (tmp_path / "pets" / "dog" / "cat.png").write_bytes(same)
    catalogue = open_catalogue("pets")
    assert len(catalogue) == len(set(catalogue.hashes)) == 6
    assert {item.path: item.reason for item in catalogue.skipped} == {
        "pets/cat/copy.png": "same content as pets/cat/0.png",
        "pets/dog/cat.png": "same content as pets/cat/0.png, under another class",
    }


def test_a_picture_of_the_test_folder_is_not_trained_on_as_well(tmp_path: Path) -> None:
    for index, path in enumerate(("train/cat", "train/dog", "val/cat", "val/dog", "test/cat", "test/dog")):
        fill(tmp_path / "pets" / path, 3, first=10 * index)
    held_out = tmp_path / "pets" / "test" / "cat" / "0.png"
    (tmp_path / "pets" / "train" / "cat" / "leak.png").write_bytes(held_out.read_bytes())
    (tmp_path / "pets" / "val" / "cat" / "leak.png").write_bytes(held_out.read_bytes())
    catalogue = open_catalogue("pets")
    assert {item.path: item.reason for item in catalogue.skipped} == {
        "pets/val/cat/leak.png": "same content as pets/test/cat/0.png",
        "pets/train/cat/leak.png": "same content as pets/test/cat/0.png",
    }
    divided = split(catalogue, 0.15)
    digest = hashlib.sha256(held_out.read_bytes()).hexdigest()
    assert np.flatnonzero(catalogue.hashes == digest).tolist() == [
        index for index in divided.held_out if catalogue.hashes[index] == digest
    ]
    assert digest in catalogue.hashes[divided.held_out]


# --- fingerprint --------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_content_alone(tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        fill(tmp_path / "pets" / name, 3, first=10 * label)
    before = open_catalogue("pets").fingerprint
    assert re.fullmatch(r"[0-9a-f]{16}", before)
    (tmp_path / "pets" / "cat" / "0.png").rename(tmp_path / "pets" / "cat" / "zero.png")
    (tmp_path / "pets" / "cat" / "copy.png").write_bytes((tmp_path / "pets" / "cat" / "1.png").read_bytes())
    (tmp_path / "pets").rename(tmp_path / "animals")
    assert open_catalogue("animals").fingerprint == before
    (tmp_path / "animals" / "cat" / "zero.png").rename(tmp_path / "animals" / "dog" / "zero.png")
    moved = open_catalogue("animals").fingerprint
    (tmp_path / "animals" / "dog" / "another.png").write_bytes(picture(77))
    assert len({before, moved, open_catalogue("animals").fingerprint}) == 3


# --- held out -----------------------------------------------------------------------------------

HASHES = st.lists(
    st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}"), min_size=30, max_size=60, unique=True
)


@given(HASHES, st.floats(0.1, 0.5), st.randoms())
def test_a_picture_is_held_out_by_its_content_whatever_else_there_is(hashes: list[str], share: float, random) -> None:
    """The place of each picture is the same in the whole folder, in a part of it, and in any order."""
    below = {digest for digest in hashes if int(digest, 16) / 16**64 < share}
    some = random.sample(hashes, len(hashes) // 2)
    for chosen in (hashes, some):
        expected = below & set(chosen)
        if not 0 < len(expected) < len(chosen):
            with pytest.raises(DataError):
                split(listed(chosen), share)
            continue
        catalogue = listed(chosen)
        divided = split(catalogue, share)
        assert set(catalogue.hashes[divided.held_out]) == expected
        assert set(catalogue.hashes[divided.development]) == set(chosen) - expected
        assert divided.validation.tolist() == []


def test_about_the_share_is_held_out() -> None:
    """Of 1,797 digits 270 are expected; four standard deviations are 61."""
    divided = split(open_catalogue("digits"), 0.15)
    assert 270 - 61 < len(divided.held_out) < 270 + 61


def test_a_folder_that_grows_keeps_every_picture_in_its_place(tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        fill(tmp_path / "pets" / name, 20, first=100 * label)
    before = open_catalogue("pets")
    fill(tmp_path / "pets" / "ant", 20, first=500)  # first in order, so that every index moves
    for number in range(20):
        (tmp_path / "pets" / "dog" / f"0{number}.png").write_bytes(picture(700 + number))
    after = open_catalogue("pets")
    held_out = set(before.hashes[split(before, 0.25).held_out])
    assert 0 < len(held_out) < 40
    assert set(after.hashes[split(after, 0.25).held_out]) & set(before.hashes) == held_out


def test_a_split_that_leaves_a_part_empty_is_refused() -> None:
    high, low = "f" * 64, "0" * 64
    with pytest.raises(
        DataError, match=r"^none of the 2 pictures falls into the held-out share of 0\.15; add pictures"
    ):
        split(listed([high, "e" * 64]), 0.15)
    with pytest.raises(DataError, match=r"^class 'class 1' has no picture to train on$"):
        split(listed([high, low], [0, 1]), 0.15)
    with pytest.raises(DataError, match=r"^class 'class 1' has no picture to train on$"):
        split(listed([high, low], [0, 1], ["train", "test"]), 0.15)


# --- validation and folds -----------------------------------------------------------------------

LABELS = st.lists(st.integers(2, 30), min_size=2, max_size=5).flatmap(
    lambda counts: st.permutations([label for label, count in enumerate(counts) for _ in range(count)])
)


@given(LABELS, st.floats(0.05, 0.5), st.integers(0, 100))
def test_the_validation_part_has_its_share_of_every_class(labels: list[int], share: float, seed: int) -> None:
    array = np.array(labels)
    training, validation = stratified(array, share, seed)
    assert sorted([*training, *validation]) == list(range(len(labels)))
    for label in set(labels):
        members = labels.count(label)
        inside = int((array[validation] == label).sum())
        assert abs(inside - share * members) <= 1
        assert 1 <= inside < members
    again = stratified(array, share, seed)
    assert np.array_equal(training, again[0])


def test_another_seed_validates_on_other_pictures() -> None:
    labels = np.repeat([0, 1], 50)
    assert not np.array_equal(stratified(labels, 0.2, 0)[1], stratified(labels, 0.2, 1)[1])


def test_a_class_of_one_picture_is_trained_on() -> None:
    training, validation = stratified(np.array([0, 1, 1, 1, 1]), 0.25, seed=0)
    assert 0 in training
    assert len(validation) == 1


@given(LABELS, st.integers(2, 6), st.integers(0, 100))
def test_each_fold_is_stratified_and_each_picture_validated_once(labels: list[int], folds: int, seed: int) -> None:
    array = np.array(labels)
    names = [f"class {label}" for label in range(array.max() + 1)]
    counts = np.bincount(array)
    if counts.min() < folds:
        smallest = counts.argmin()
        with pytest.raises(DataError) as caught:
            stratified_folds(array, folds, seed, names)
        assert str(caught.value) == (
            f"class 'class {smallest}' has {counts[smallest]} pictures to cross-validate on,"
            f" fewer than the {folds} folds; add pictures or lower --folds"
        )
        return
    cuts = list(stratified_folds(array, folds, seed, names))
    assert len(cuts) == folds
    assert sorted(np.concatenate([validation for _, validation in cuts])) == list(range(len(labels)))
    for training, validation in cuts:
        assert sorted([*training, *validation]) == list(range(len(labels)))
        inside = np.bincount(array[validation], minlength=len(counts))
        assert (np.abs(inside - counts / folds) < 1).all()


def test_a_class_without_any_picture_is_the_smallest() -> None:
    with pytest.raises(DataError, match=r"^class 'b' has 0 pictures to cross-validate on, fewer than the 2 folds"):
        stratified_folds(np.array([0, 0, 0]), 2, 0, ["a", "b"])


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="a file that exists and cannot be read")  # noqa: PTH110
def test_a_file_that_cannot_be_read_is_skipped(tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        fill(tmp_path / "pets" / name, 2, first=10 * label)
    (tmp_path / "pets" / "dog" / "bad.png").symlink_to("/proc/self/mem")
    catalogue = open_catalogue("pets")
    assert [(item.path, item.reason) for item in catalogue.skipped] == [
        ("pets/dog/bad.png", "it cannot be read: Input/output error")
    ]
    assert len(catalogue) == 4
