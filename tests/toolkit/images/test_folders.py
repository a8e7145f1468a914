"""Folders as archives, file servers and people make them: what is a part, a class, a file of it, and what is none."""

import os
import tempfile
from pathlib import Path

import pytest

from toolkit.errors import DataError
from toolkit.images.folders import PART_NAMES, Ignored, find_parts, list_files, part_of, stray_files, sub_folders

SUFFIXES = (".png",)
NOT_MEANT = "hidden, or a program's own"


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def parts(folder):
    return [(part, str(path.relative_to(folder))) for part, path in find_parts(folder)]


def inside(folder):
    return [str(path.relative_to(folder)) for path in list_files(folder, SUFFIXES).files]


def passed(folder):
    ignored = list_files(folder, SUFFIXES).ignored
    return sorted((str(item.path.relative_to(folder)), item.reason, item.count) for item in ignored)


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "Validation", "Testing"),
        ("TRAIN", "VALID", "TEST"),
        ("train_set", "dev", "Test-Set"),
        ("training data", "validation data", "testing data"),
        ("seg_train", "seg_val", "seg_test"),
    ],
)
def test_parts_are_known_by_many_names(tmp_path, train, val, test):
    fill(tmp_path, *(f"{name}/{of}/1.png" for name in (train, val, test) for of in ("cat", "dog")))
    assert sorted(parts(tmp_path)) == sorted([("train", train), ("val", val), ("test", test)])


def test_each_name_on_the_list_is_of_one_part():
    for part, names in PART_NAMES.items():
        for name in names:
            assert part_of(name) == part_of(name.upper()) == part_of(name.replace("_", "-")) == part
    assert part_of("trains") is None


def test_a_part_may_be_in_a_folder_of_its_own_name(tmp_path):
    """Kaggle's archive of landscapes, with unlabelled images next to the parts."""
    fill(tmp_path, "seg_train/seg_train/sea/1.png", "seg_test/seg_test/sea/1.png", "seg_pred/seg_pred/1.png")
    assert parts(tmp_path) == [("test", "seg_test/seg_test"), ("train", "seg_train/seg_train")]
    assert stray_files(tmp_path, find_parts(tmp_path)) == [
        Ignored(tmp_path / "seg_pred", "its images have no label", 1)
    ]


def test_what_archivers_and_file_servers_leave_behind_is_no_class(tmp_path):
    fill(tmp_path, "train/cat/1.png", "test/cat/1.png", "__MACOSX/train/cat/._1.png", "@eaDir/x", ".git/config")
    assert parts(tmp_path) == [("test", "test"), ("train", "train")]
    found = stray_files(tmp_path, find_parts(tmp_path))
    assert [(item.path.name, item.reason, item.count) for item in found] == [
        ("@eaDir", NOT_MEANT, 1),
        ("__MACOSX", NOT_MEANT, 1),
    ]
    fill(tmp_path / "plain", "cat/1.png", "dog/1.png", "__MACOSX/cat/._1.png", "@eaDir/cat/1.png")
    assert [path.name for path in sub_folders(tmp_path / "plain")] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("Training/1.png", "Testing/2.png"), "holds only 'Testing' and 'Training', and no folders in there, so "),
        (("train/1.png",), "holds only 'train', and no folders in there, so what is a class is unclear; put the "),
        (("train/cat/1.png", "test/cat/1.png", "cat/1.png"), "holds 'cat' next to 'train', so what is a class is uncl"),
        (("cat/train/1.png", "cat/test/1.png", "dog/1.png"), "/cat holds 'test' and 'train', so what is a class is un"),
        (("images/train/1.png", "images/val/2.png"), "/images holds 'train' and 'val', so what is a class is unclear;"),
        (("1.png",), "holds no sub-folders; it needs one sub-folder of images a class"),
    ],
)
def test_what_is_ambiguous_is_refused_in_one_line(tmp_path, names, message):
    folder = fill(tmp_path / "pets", *names)
    with pytest.raises(DataError) as caught:
        find_parts(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_may_be_called_as_a_part_is(tmp_path):
    fill(tmp_path, "bus/1.png", "train/1.png", "tram/1.png")
    assert find_parts(tmp_path) == [("", tmp_path)]


# --- files ----------------------------------------------------------------------------------------


def test_inner_folders_belong_to_the_class_except_those_of_programs(tmp_path):
    fill(
        tmp_path, "1.png", "old/2.png", "@eaDir/1.png/thumb.jpg", "@eaDir/2.jpg", ".thumbnails/1.png", ".DS_Store",
        "old/.ipynb_checkpoints/2-checkpoint.png", "._1.png", ".empty/x",
    )  # fmt: skip
    (tmp_path / ".empty" / "x").unlink()
    assert inside(tmp_path) == ["1.png", "old/2.png"]
    assert passed(tmp_path) == [
        ("._1.png", NOT_MEANT, 1),
        (".thumbnails", NOT_MEANT, 1),
        ("@eaDir", NOT_MEANT, 2),
        ("old/.ipynb_checkpoints", NOT_MEANT, 1),
    ]


def test_a_link_to_a_folder_is_followed_once(tmp_path):
    fill(tmp_path, "elsewhere/2.png", "elsewhere/deep/3.png", "cat/1.png")
    (tmp_path / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "cat" / "same").symlink_to("more")
    (tmp_path / "cat" / "deep").symlink_to(tmp_path / "elsewhere" / "deep")
    listing = list_files(tmp_path / "cat", SUFFIXES)
    assert sorted(path.name for path in listing.files) == ["1.png", "2.png", "3.png"]
    assert len(listing.links) + len(listing.ignored) == 3
    assert {item.reason for item in listing.ignored} == {"a link to a folder that is read already"}


@pytest.mark.parametrize("target", ["..", ".", "../../pets", "old"])
def test_a_link_that_leads_back_is_not_followed(tmp_path, target):
    """Not to the folder itself, nor to what it lies in, with all other classes; nor to a folder of its own."""
    fill(tmp_path / "pets", "cat/1.png", "cat/old/2.png", "dog/3.png")
    (tmp_path / "pets" / "cat" / "loop").symlink_to(target)
    assert inside(tmp_path / "pets" / "cat") == ["1.png", "old/2.png"]
    assert passed(tmp_path / "pets" / "cat") == [("loop", "a link to a folder that is read already", 1)]


def test_what_is_no_file_is_not_opened(tmp_path):
    fill(tmp_path, "1.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "lost.png").symlink_to("nowhere")
    (tmp_path / "itself.png").symlink_to("itself.png")
    assert inside(tmp_path) == ["1.png", "itself.png", "lost.png"]  # opening them gives the error
    assert passed(tmp_path) == [("pipe.png", "it is a device or a pipe", 1)]


@pytest.fixture
def public():
    """A folder that every user can reach, while this process is none that may read everything."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("mode", [0o000, 0o444])
@pytest.mark.parametrize("locked", ["pets/dog", "pets/dog/old"])
def test_a_folder_that_cannot_be_read_is_an_error(public, mode, locked):
    fill(public, "pets/cat/1.png", "pets/dog/1.png", "pets/dog/old/2.png")
    (public / locked).chmod(mode)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(DataError) as caught:
            _ = [list_files(folder, SUFFIXES) for folder in sub_folders(public / "pets")]
    finally:
        os.seteuid(user)
        (public / locked).chmod(0o755)
    assert str(caught.value) == f"the folder {public / locked} cannot be read: Permission denied"
