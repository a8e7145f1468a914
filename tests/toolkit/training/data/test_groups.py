"""Groups of images: by the paths of the files, and by what they show."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.colours import encode
from toolkit.errors import DataError
from toolkit.training.data.cache import decode
from toolkit.training.data.catalogue import Catalogue, open_catalogue
from toolkit.training.data.groups import Groups, find_groups, keys_of


def listed(*paths, part=""):
    count = len(paths)
    return Catalogue(
        "scans", ("sick", "well"), [Path(path) for path in paths], np.zeros(count, np.int64),
        np.array([f"{number:064x}" for number in range(count)]), np.full(count, part),
    )  # fmt: skip


def shapes(seed, size):
    """An image with something in it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture
def scans(tmp_path):
    """Four patients in two classes, one image of each class saved again, smaller, as another patient's."""
    for label, name in enumerate(("sick", "well")):
        for patient in range(2):
            folder = tmp_path / "scans" / name / f"p{patient}"
            folder.mkdir(parents=True)
            for number in range(3):
                size = 64 if number else 24
                image = shapes(100 * label + 10 * patient + number, size)
                (folder / f"{number}.png").write_bytes(encode(np.asarray(image)))
        shapes(100 * label + 1, 64).resize((48, 48)).save(tmp_path / "scans" / name / "p1" / "9.jpg", quality=85)
        shapes(100 * label, 24).resize((48, 48)).resize((24, 24)).save(tmp_path / "scans" / name / "p1" / "8.png")
    return decode(open_catalogue("scans"), 32, progress=False)


def test_copies_are_found_in_files_that_are_large_enough(scans):
    """Images of 24 pixels are not compared."""
    belonging = find_groups(scans, "scans", None, copies=True)
    assert belonging.keys is None
    names = [
        tuple(sorted("/".join(Path(scans.catalogue.path(index)).parts[-3:]) for index in pair))
        for pair in belonging.copies.tolist()
    ]
    assert sorted(names) == [("sick/p0/1.png", "sick/p1/9.jpg"), ("well/p0/1.png", "well/p1/9.jpg")]
    assert len(find_groups(scans, "scans", None, copies=False).copies) == 0


def test_copies_and_keys_make_one_grouping(scans):
    """A patient has images in both classes, and each class a copy that links the patients."""
    apart = find_groups(scans, "scans", "1", copies=False).numbers(len(scans.catalogue))
    linked = find_groups(scans, "scans", "1", copies=True).numbers(len(scans.catalogue))
    assert sorted(np.bincount(apart)) == [6, 10]
    assert set(linked.tolist()) == {0}


def test_arrays_are_left_as_they_are():
    digits = decode(open_catalogue("digits"), 32, progress=False)
    assert len(find_groups(digits, "digits", None, copies=True).copies) == 0
    with pytest.raises(DataError, match=r"^--group-by 1 needs the paths of images, and those of digits are no files$"):
        find_groups(digits, "digits", "1", copies=True)


@pytest.mark.parametrize(
    ("group_by", "keys"),
    [
        ("1", ["p1", "p1", "p2", ""]),
        ("2", ["monday", "", "", ""]),
        (r"p\d", ["p1", "p1", "p2", ""]),
        (r"/p(\d)/", ["1", "1", "2", ""]),
        (r"([^/]+)/(p\d)", ["sick", "well", "sick", ""]),
        (r"(x)?\.png$", ["", "", "x", ""]),
        (r"^(sick|well)/", ["sick", "well", "sick", "well"]),
    ],
)
def test_a_key_is_the_name_of_a_folder_or_what_an_expression_finds(group_by, keys):
    paths = ("a/scans/sick/p1/monday/1.png", "a/scans/well/p1/2.png", "a/scans/sick/p2/3x.png", "a/scans/well/4.png")
    assert keys_of(listed(*paths), Path("a/scans"), group_by).tolist() == keys


def test_folders_count_from_that_of_the_class_below_train_as_well():
    catalogue = listed("scans/train/sick/p1/1.png", "scans/train/well/p2/2.png", part="train")
    assert keys_of(catalogue, Path("scans"), "1").tolist() == ["p1", "p2"]


def test_an_expression_that_fits_nothing_is_refused():
    with pytest.raises(DataError, match=r"^--group-by 3 matches none of the 2 images, such as sick/p1/1\.png$"):
        keys_of(listed("scans/sick/p1/1.png", "scans/well/p2/2.png"), Path("scans"), "3")


def test_without_keys_and_copies_each_is_on_its_own():
    assert Groups().numbers(3) is None
    assert Groups(np.array(["", "", ""])).numbers(3) is None
    assert Groups(np.array(["a", "", "a"])).numbers(3).tolist() == [0, 1, 0]
