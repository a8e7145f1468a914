"""Data sets as people have them: what is found, what is left out and why, and that each image is listed once."""

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from support.colours import encode
from support.image_folders import fill, noise_image, write_idx
from toolkit.errors import DataError
from toolkit.images.decoding import load_image
from toolkit.training.data.catalogue import Duplicate, Remark, Skipped, open_catalogue, read
from toolkit.training.data.splits import split

NO_ENDING = "its ending is none of .avif, .bmp, .gif, .heic, .heif, .hif, .jpeg, .jpg, .png, .tif, .tiff, .webp"


# --- what is found ------------------------------------------------------------------------------


def test_a_plain_folder(tmp_path):
    fill(tmp_path / "pets" / "dog", 3)
    fill(tmp_path / "pets" / "cat" / "kittens", 2)  # folders inside a class belong to it
    (tmp_path / "pets" / "cat" / "old.PNG").write_bytes(noise_image(20))
    catalogue = open_catalogue("pets")
    assert (catalogue.name, catalogue.classes, len(catalogue)) == ("pets", ("cat", "dog"), 6)
    assert catalogue.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert set(catalogue.parts) == {""}
    assert catalogue.skipped == ()
    assert catalogue.allow_flip
    for source, digest in zip(catalogue.sources, catalogue.hashes, strict=True):
        assert hashlib.sha256(Path(source).read_bytes()).hexdigest() == digest


def test_train_val_and_test_folders(tmp_path):
    for index, part in enumerate(("Train", "valid", "validation", "test")):
        fill(tmp_path / "pets" / part, 2 + index, "cat", "dog")
    catalogue = open_catalogue("pets")
    assert catalogue.classes == ("cat", "dog")
    counts = dict(zip(*np.unique(catalogue.parts, return_counts=True), strict=True))
    assert counts == {"train": 4, "val": 6 + 8, "test": 10}
    divided = split(catalogue, 0.15)
    assert set(catalogue.parts[divided.held_out]) == {"test"}
    assert set(catalogue.parts[divided.validation]) == {"val"}
    assert set(catalogue.parts[divided.development]) == {"train"}
    assert len(divided.held_out) + len(divided.validation) + len(divided.development) == len(catalogue)


def test_a_val_folder_alone_leaves_the_held_out_part_to_the_content(tmp_path):
    fill(tmp_path / "pets" / "train", 30, "cat", "dog")
    fill(tmp_path / "pets" / "val", 10, "cat", "dog")
    catalogue = open_catalogue("pets")
    divided = split(catalogue, 0.2)
    assert len(divided.validation) == 20
    assert set(catalogue.parts[divided.held_out]) == {"train"}


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path / "vehicles", 2, "bus", "train", "tram")
    assert open_catalogue("vehicles").classes == ("bus", "train", "tram")


def test_a_folder_beside_train_that_is_no_part_is_refused(tmp_path):
    """Otherwise the parts would be taken for classes, and a network trained to separate train from test."""
    fill(tmp_path / "pets", 2, "train/cat", "train/dog", "test/cat", "test/dog", "extra/cat")
    with pytest.raises(
        DataError, match=r"^the folder pets holds 'extra' next to 'train', so what is a class is unclear"
    ):
        open_catalogue("pets")


def test_parts_with_other_names_are_parts(tmp_path):
    fill(tmp_path / "pets", 3, "Training/cat", "Training/dog", "Testing/cat", "Testing/dog")
    (tmp_path / "pets" / "__MACOSX" / "Training").mkdir(parents=True)
    (tmp_path / "pets" / "__MACOSX" / "Training" / "._0.png").write_bytes(b"x")
    catalogue = open_catalogue("pets")
    assert (catalogue.classes, len(catalogue)) == (("cat", "dog"), 12)
    assert catalogue.parts.tolist() == ["test"] * 6 + ["train"] * 6
    assert catalogue.skipped == (Skipped("pets/__MACOSX", "hidden, or a program's own", count=1),)
    assert open_catalogue("pets/Training").name == "pets/Training"


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("Testing/cat", "Testing/dog", "val/cat"), "the folder pets holds images to test and val and none to train"),
        (("train", "test/cat", "test/dog"), "the folder pets holds images to test and none to train on in folders"),
        (
            ("Train/Cat", "Train/Dog", "test/cat"),
            "the class 'cat' has images to test and none to train on; in train/",
        ),
        (("Training", "Testing"), "the folder pets holds only 'Testing' and 'Training', and no folders in there, so"),
        (("archive/cat", "archive/dog"), "the folder pets holds only the class 'archive'; at least two are needed; if"),
    ],
)
def test_parts_from_which_nothing_can_be_learnt_are_refused(tmp_path, paths, message):
    fill(tmp_path / "pets", 3, *paths)
    with pytest.raises(DataError) as caught:
        open_catalogue("pets")
    assert str(caught.value).startswith(message)


def test_names_in_any_bytes_are_classes_that_can_be_written(tmp_path):
    """Latin-1 from an old disk, a newline, an escape sequence; and the catalogue has a fingerprint."""
    pets = os.fsencode(tmp_path / "pets")
    for name in (b"caf\xe9", "été".encode(), b"two\nlines", b"\x1b[31mred"):
        fill(Path(os.fsdecode(pets + b"/" + name)), 3)
    broken = Path(os.fsdecode(pets + b"/caf\xe9/br\xfbl\xe9.png"))
    broken.write_bytes(b"")
    catalogue = open_catalogue("pets")
    assert catalogue.classes == ("\\x1b[31mred", "caf\\xe9", "two\\nlines", "été")
    assert [item.path for item in catalogue.skipped] == ["pets/caf\\xe9/br\\xfbl\\xe9.png"]
    assert re.fullmatch(r"[0-9a-f]{16}", catalogue.fingerprint)
    assert all(Path(source).is_file() for source in catalogue.sources)
    assert all(catalogue.path(index).isprintable() for index in range(len(catalogue)))


def test_an_accent_that_is_written_in_two_ways_is_one_class(tmp_path):
    """Some photographs came from a Mac."""
    fill(tmp_path / "seasons", 3, "e\u0301te\u0301", "été", "hiver")
    catalogue = open_catalogue("seasons")
    assert catalogue.classes == ("hiver", "été")
    assert np.bincount(catalogue.labels).tolist() == [3, 6]
    assert [remark.text for remark in catalogue.remarks] == [
        "its accents are written in other characters than those of the same class"
    ]


def test_names_that_would_be_shown_alike_are_refused(tmp_path):
    fill(tmp_path / "pets", 3, "a\nb", "a\\nb")
    with pytest.raises(DataError, match=r"would both be the class .* rename one of them$"):
        open_catalogue("pets")


def test_links_to_folders_are_followed_and_reported(tmp_path):
    fill(tmp_path, 3, "pets/cat", "pets/dog", "elsewhere")
    (tmp_path / "pets" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pets" / "dog" / "all").symlink_to("..")
    catalogue = open_catalogue("pets")
    assert np.bincount(catalogue.labels).tolist() == [6, 3]
    assert catalogue.remarks == (Remark("pets/cat/more", "a link to a folder, followed"),)
    assert catalogue.skipped == (Skipped("pets/dog/all", "a link to a folder that is read already"),)


def test_a_class_of_which_no_file_can_be_read_is_an_error(tmp_path):
    fill(tmp_path / "pets", 3, "cat", "dog")
    (tmp_path / "pets" / "owl").mkdir()
    (tmp_path / "pets" / "owl" / "1.png").symlink_to("gone.png")
    with pytest.raises(DataError, match=r"^not one image of the class 'owl' can be read; pets/owl/1.png: it cannot"):
        open_catalogue("pets")


@pytest.mark.parametrize(
    ("path", "name"), [("photos/pets", "pets"), ("photos/pets/", "pets"), ("photos/pets/train", "pets/train")]
)
def test_the_name_is_what_people_call_it(tmp_path, path, name):
    fill(tmp_path / path, 2, "cat", "dog")
    assert open_catalogue(path).name == name


def test_classes_are_in_natural_order(tmp_path):
    names = ("001", "01", "1", "2b", "9", "10", "a", "class 9", "class 10", "²")
    fill(tmp_path / "many", 2, *reversed(names))
    assert open_catalogue("many").classes == names


def test_digits_need_no_file_and_are_what_they_always_were():
    """Held-out parts, models and tuned settings of earlier runs refer to these hashes."""
    catalogue = open_catalogue("digits")
    digits = load_digits()
    assert open_catalogue(None).fingerprint == catalogue.fingerprint == "ba9aae514f99f07a"
    assert hashlib.sha256("".join(catalogue.hashes).encode()).hexdigest() == (
        "0694e0dc08c801b4f1f39ea37848f58cb993fa7bdee6d1065508223ceb39f6c7"
    )
    assert catalogue.classes == tuple("0123456789")
    assert not catalogue.allow_flip
    assert set(catalogue.parts) == {""}
    assert np.array_equal(catalogue.labels, digits.target)
    for index in (0, 1000, 1796):
        pixels = load_image(read(catalogue.sources[index]), 8).pixels
        assert np.array_equal(pixels[..., 1], (digits.images[index] / 16 * 255).round())
        assert hashlib.sha256(read(catalogue.sources[index])).hexdigest() == catalogue.hashes[index]


def test_of_equal_images_in_arrays_the_one_of_the_test_part_is_kept(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 4, 4)).astype(np.uint8)
    pixels[1] = pixels[6]  # once in training, once in the test part
    pixels[2] = pixels[3]  # twice in training, under two classes
    write_idx(tmp_path / "signs", "train", pixels[:6], [0, 1, 0, 1, 0, 1])
    write_idx(tmp_path / "signs", "t10k", pixels[6:], [1, 0, 1, 0])
    catalogue = open_catalogue("signs")
    assert (catalogue.name, catalogue.classes, catalogue.allow_flip) == ("signs", ("0", "1"), False)
    assert catalogue.parts.tolist() == ["test"] * 4 + ["train"] * 4
    assert catalogue.labels.tolist() == [1, 0, 1, 0, 0, 0, 0, 1]
    assert split(catalogue, 0.15).held_out.tolist() == [0, 1, 2, 3]
    assert catalogue.skipped == (
        Duplicate("signs[5]", "same content as signs[0]", "signs[0]", ("1", "1"), ("train", "test")),
        Duplicate(
            "signs[7]", "same content as signs[6], under another class", "signs[6]", ("1", "0"), ("train", "train")
        ),
    )
    kept = [0, 1, 2, 3, 4, 6, 8, 9]
    in_order = np.concatenate([pixels[6:], pixels[:6]])[kept]
    for source, digest, expected in zip(catalogue.sources, catalogue.hashes, in_order, strict=True):
        assert hashlib.sha256(read(source)).hexdigest() == digest
        assert np.array_equal(load_image(read(source), 4).pixels[..., 0], expected)


def test_a_data_set_can_be_asked_for_by_name(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28)).astype(np.uint8)
    write_idx(tmp_path / "store" / "FashionMNIST" / "raw", "train", pixels[:20], [*range(10)] * 2)
    write_idx(tmp_path / "store" / "FashionMNIST" / "raw", "t10k", pixels[20:], [*range(10)] * 2)
    named = open_catalogue("fashion-mnist", root=tmp_path / "store")
    as_folder = open_catalogue("store/FashionMNIST/raw")
    assert (as_folder.name, as_folder.classes, as_folder.fingerprint) == (
        "fashion-mnist", named.classes, named.fingerprint,
    )  # fmt: skip


def test_a_folder_with_the_name_of_a_data_set_is_reached_by_its_path(tmp_path):
    fill(tmp_path / "digits", 2, "cat", "dog")
    assert open_catalogue("./digits").classes == ("cat", "dog")
    assert open_catalogue("digits").classes == tuple("0123456789")


# --- what cannot be used ------------------------------------------------------------------------


def test_what_is_no_folder_of_classes_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "file.zip").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    fill(tmp_path / "flat", 3)
    fill(tmp_path / "one" / "cat", 3)
    fill(tmp_path / "few" / "cat", 3)
    fill(tmp_path / "few" / "dog", 1)
    for data, message in {
        "minst": "the folder minst does not exist, and no data set has that name;"
        " there are: mnist, kmnist, digits, fashion-mnist, cifar10, cifar100",
        "my/photos": "the folder my/photos does not exist",
        "file.zip": "file.zip is a file; give a folder with one sub-folder a class, or one of"
        " digits, mnist, fashion-mnist, kmnist, cifar10, cifar100",
        "empty": "the folder empty holds no sub-folders; it needs one sub-folder of images a class",
        "flat": "the folder flat holds no sub-folders; it needs one sub-folder of images a class",
        "hollow": "the folder hollow holds no images; it needs one sub-folder of images a class",
        "one": "the folder one holds only the class 'cat'; at least two are needed",
        "few": "class 'dog' has 1 usable images, at least 2 are needed",
    }.items():
        with pytest.raises(DataError) as caught:
            open_catalogue(data)
        assert str(caught.value) == message


def test_an_overlong_name_is_refused_in_one_sentence():
    with pytest.raises(DataError, match=r"^the folder x+ cannot be read: .*File name too long"):
        open_catalogue("x" * 5000)


@pytest.fixture
def pets(tmp_path):
    """Four good images each of cats and dogs."""
    fill(tmp_path / "pets", 4, "cat", "dog")
    return tmp_path / "pets"


def test_what_is_no_image_is_skipped_with_its_reason(pets):
    cat = pets / "cat"
    (cat / "empty.png").write_bytes(b"")
    (cat / "notes.txt").write_text("about cats")
    (cat / "empty.txt").write_text("")
    (cat / "lost.png").symlink_to("nowhere.png")
    (cat / ".hidden.png").write_bytes(b"")
    (cat / ".thumbnails").mkdir()
    (cat / ".thumbnails" / "small.png").write_bytes(b"")
    (cat / ".thumbnails" / "index").write_bytes(b"")
    (cat / ".DS_Store").write_bytes(b"")
    (pets / ".cache").mkdir()
    catalogue = open_catalogue("pets")
    assert set(catalogue.skipped) == {
        Skipped("pets/cat/empty.png", "the file is empty"),
        Skipped("pets/cat/notes.txt", NO_ENDING),
        Skipped("pets/cat/empty.txt", NO_ENDING),
        Skipped("pets/cat/lost.png", "it cannot be read: No such file or directory"),
        Skipped("pets/cat/.hidden.png", "hidden, or a program's own"),
        Skipped("pets/cat/.thumbnails", "hidden, or a program's own", count=2),
    }
    assert catalogue.remarks == ()
    assert len(catalogue) == 8


def test_an_image_with_a_foreign_suffix_is_skipped_with_advice(pets):
    blank = np.zeros((4, 4, 3), np.uint8)
    (pets / "cat" / "photo.jfif").write_bytes(encode(blank, "JPEG"))
    (pets / "cat" / "scan").write_bytes(encode(blank, "TIFF"))
    (pets / "cat" / "moving.txt").write_bytes(encode(blank, "WEBP"))
    assert set(open_catalogue("pets").skipped) == {
        Skipped("pets/cat/photo.jfif", "it is a JPEG, though its name ends in .jfif; rename it to end in .jpg"),
        Skipped("pets/cat/scan", "it is a TIFF, though its name has no ending; rename it to end in .tif"),
        Skipped("pets/cat/moving.txt", "it is a WEBP, though its name ends in .txt; rename it to end in .webp"),
    }


def test_an_image_with_another_formats_suffix_is_used_with_a_remark(pets):
    (pets / "cat" / "png.JPG").write_bytes(noise_image(50))
    (pets / "cat" / "copy.jpg").write_bytes(noise_image(50))  # left out, so not remarked on
    (pets / "dog" / "jpeg.png").write_bytes(encode(np.zeros((4, 4, 3), np.uint8), "JPEG"))
    (pets / "dog" / "right.tiff").write_bytes(encode(np.ones((4, 4, 3), np.uint8), "TIFF"))
    (pets / "dog" / "text.png").write_text("I am a letter")  # for the decoder to judge
    catalogue = open_catalogue("pets")
    assert catalogue.remarks == (
        Remark("pets/cat/copy.jpg", "it is a PNG, though its ending says JPEG"),
        Remark("pets/dog/jpeg.png", "it is a JPEG, though its ending says PNG"),
    )
    assert [item.path for item in catalogue.skipped] == ["pets/cat/png.JPG"]
    assert len(catalogue) == 12
    without = catalogue.subset(np.array([Path(source).name != "jpeg.png" for source in catalogue.sources]))
    assert [remark.path for remark in without.remarks] == ["pets/cat/copy.jpg"]


def test_images_in_no_class_and_folders_without_images_are_named(pets):
    (pets / "stray.png").write_bytes(noise_image(60))
    (pets / "README.md").write_text("my pets")
    (pets / "fish").mkdir()
    (pets / "birds").mkdir()
    (pets / "birds" / "wing.psd").write_bytes(b"8BPS")
    assert open_catalogue("pets").classes == ("cat", "dog")
    assert {item.path: item.reason for item in open_catalogue("pets").skipped} == {
        "pets/stray.png": "it lies in no folder of a class",
        "pets/fish": "it holds no image, so it is no class",
        "pets/birds": "it holds no image, so it is no class",
        "pets/birds/wing.psd": NO_ENDING,
    }


def test_an_image_beside_the_folders_of_train_and_test_is_named(tmp_path):
    fill(tmp_path / "pets", 2, "train/cat", "train/dog", "test/cat", "test/dog")
    (tmp_path / "pets" / "above.png").write_bytes(noise_image(60))
    (tmp_path / "pets" / "train" / "stray.png").write_bytes(noise_image(61))
    assert [item.path for item in open_catalogue("pets").skipped] == ["pets/above.png", "pets/train/stray.png"]


# --- equal images -----------------------------------------------------------------------------


def test_of_equal_images_one_is_kept_and_the_others_are_named(tmp_path):
    fill(tmp_path / "pets", 3, "cat", "dog")
    same = (tmp_path / "pets" / "cat" / "0.png").read_bytes()
    (tmp_path / "pets" / "cat" / "copy.png").write_bytes(same)
    (tmp_path / "pets" / "dog" / "cat.png").write_bytes(same)
    catalogue = open_catalogue("pets")
    assert len(catalogue) == len(set(catalogue.hashes)) == 6
    original, here = "pets/cat/0.png", ("", "")
    assert catalogue.skipped == (
        Duplicate("pets/cat/copy.png", f"same content as {original}", original, ("cat", "cat"), here),
        Duplicate(
            "pets/dog/cat.png", f"same content as {original}, under another class", original, ("dog", "cat"), here
        ),
    )


def test_an_image_of_the_test_folder_is_not_trained_on_as_well(tmp_path):
    fill(tmp_path / "pets", 3, "train/cat", "train/dog", "val/cat", "val/dog", "test/cat", "test/dog")
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


def test_the_fingerprint_is_of_the_content_alone(tmp_path):
    fill(tmp_path / "pets", 3, "cat", "dog")
    before = open_catalogue("pets").fingerprint
    assert re.fullmatch(r"[0-9a-f]{16}", before)
    (tmp_path / "pets" / "cat" / "0.png").rename(tmp_path / "pets" / "cat" / "zero.png")
    (tmp_path / "pets" / "cat" / "copy.png").write_bytes((tmp_path / "pets" / "cat" / "1.png").read_bytes())
    (tmp_path / "pets").rename(tmp_path / "animals")
    assert open_catalogue("animals").fingerprint == before
    (tmp_path / "animals" / "cat" / "zero.png").rename(tmp_path / "animals" / "dog" / "zero.png")
    moved = open_catalogue("animals").fingerprint
    (tmp_path / "animals" / "dog" / "another.png").write_bytes(noise_image(77))
    assert len({before, moved, open_catalogue("animals").fingerprint}) == 3
