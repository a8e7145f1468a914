"""The report on a data set: counts worked out by hand, and a folder with everything that goes wrong."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from support.colours import encode
from support.image_folders import fill, noise_image
from toolkit.images.decoding import SUFFIXES
from toolkit.training.data.cache import Cache, decode
from toolkit.training.data.catalogue import Catalogue, Remark, Skipped, open_catalogue
from toolkit.training.data.report import class_balance_plot, data_report, report_lines
from toolkit.training.data.splits import Split, split


def saved(image, format, **options):  # noqa: A002
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def catalogue_of(counts, **more):
    """A data set with so many images a class in the development, validation and held-out part."""
    labels = np.repeat(np.arange(len(counts)), [sum(parts) for parts in counts.values()])
    place = np.concatenate([np.repeat(np.arange(3), parts) for parts in counts.values()])
    hashes = np.array([f"{index:064x}" for index in range(len(labels))])
    listed = Catalogue("zoo", tuple(counts), [b""] * len(labels), labels, hashes, np.full(len(labels), ""), **more)
    development, validation, held_out = (np.flatnonzero(place == part) for part in range(3))
    return listed, Split(development, held_out, validation)


# --- the report ---------------------------------------------------------------------------------


def test_images_are_counted_by_class_and_part():
    listed, divided = catalogue_of({"ape": (10, 2, 3), "bee": (4, 0, 1), "cow": (7, 5, 0)})
    report = data_report(listed, divided)
    assert report == {
        "name": "zoo",
        "fingerprint": listed.fingerprint,
        "images": 32,
        "classes": [
            {"class": "ape", "development": 10, "validation": 2, "held_out": 3},
            {"class": "bee", "development": 4, "validation": 0, "held_out": 1},
            {"class": "cow", "development": 7, "validation": 5, "held_out": 0},
        ],
        "imbalance": 2.5,
        "duplicates": [],
        "near_duplicates": [],
        "groups": {"count": 0, "images": 0, "largest": 0},
        "held_out_groups": 4,
        "unused": [],
        "skipped": [],
        "remarks": [],
    }
    assert json.loads(json.dumps(report)) == report


def test_files_are_grouped_by_reason_the_most_frequent_first():
    skipped = [
        Skipped("a", "the file is empty"),
        Skipped("b", "the image is broken: image file is truncated (3 bytes not processed)"),
        Skipped("c", "the image has 64 x 64 pixels, at most 1,024 are allowed"),
        Skipped("d", "the image is broken: unrecognized data stream contents when reading image file"),
        Skipped("e", "the image has 70 x 9 pixels, at most 1,024 are allowed"),
        Skipped("f", "the image is broken: broken PNG file"),
    ]
    remarks = [
        Remark("g", "16-bit grey, scaled to 8 bits"),
        Remark("h", "32-bit grey, scaled to 8 bits"),
        Remark("i", "the first of 3 frames"),
        Remark("j", "the first of 12 frames"),
        Remark("k", "the first of 12 frames"),
    ]
    report = data_report(*catalogue_of({"ape": (2, 0, 1), "bee": (2, 0, 1)}, skipped=skipped, remarks=remarks))
    assert [(group["reason"], [file["path"] for file in group["files"]]) for group in report["skipped"]] == [
        ("the image is broken", ["b", "d", "f"]),
        ("the image has N x N pixels, at most N are allowed", ["c", "e"]),
        ("the file is empty", ["a"]),
    ]
    assert report["skipped"][0]["files"][0]["reason"] == skipped[1].reason
    assert [(group["reason"], group["count"]) for group in report["remarks"]] == [
        ("the first of N frames", 3),
        ("16-bit grey, scaled to 8 bits", 1),
        ("32-bit grey, scaled to 8 bits", 1),
    ]


# --- the lines ----------------------------------------------------------------------------------


def lines(counts, **more):
    return report_lines(data_report(*catalogue_of(counts, **more)))


def test_a_balanced_data_set_in_order_takes_two_lines():
    assert lines({"ape": (1200, 50, 300), "bee": (1000, 50, 200)}) == [
        "zoo: 2,800 images of 2 classes, 500 of them held out",
        "a class has 1,000 (bee) to 1,200 (ape) images to train on",
    ]
    alike = lines({"ape": (1200, 0, 300), "bee": (1200, 0, 200)})
    assert alike[1] == "each class has 1,200 images to train and validate on"


def test_class_weights_are_suggested_from_threefold_imbalance():
    below, at = ({"ape": (number, 0, 1), "bee": (100, 0, 1)} for number in (299, 300))
    assert "--class-weights" not in " ".join(lines(below))
    assert lines(at)[1] == (
        "a class has 100 (bee) to 300 (ape) images to train and validate on, 3.0 times as many;"
        " consider --class-weights balanced"
    )


def test_reasons_are_few_and_the_rest_is_counted():
    skipped = [
        Skipped(f"{reason}{number}.png", reason * 3) for reason in "abcde" for number in range(ord("f") - ord(reason))
    ]
    remarks = [Remark("x.tif", "CMYK, converted to RGB"), Remark("y.gif", "the first of 2 frames")]
    assert lines({"ape": (5, 0, 100), "bee": (5, 0, 100)}, skipped=skipped, remarks=remarks)[2:] == [
        "skipped 5 files: aaa, such as a0.png",
        "skipped 4 files: bbb, such as b0.png",
        "skipped 3 files: ccc, such as c0.png; and 3 more for other reasons",
        "note on 1 file: CMYK, converted to RGB (x.tif); and 1 more for other reasons",
    ]


def test_classes_that_a_part_lacks_are_named():
    counts = {"ape": (5, 0, 1), **dict.fromkeys(("bee", "cow", "doe", "eel"), (5, 0, 0))}
    assert lines(counts)[2] == "these have no held-out image to be measured on: bee, cow, doe and 1 more"
    assert lines({"ape": (5, 0, 100), "bee": (5, 2, 100), "cow": (5, 0, 0)})[2:] == [
        "these have no image to be validated on: ape, cow",
        "these have no held-out image to be measured on: cow",
    ]
    assert lines({"ape": (5, 0, 100), "bee": (5, 0, 100)})[2:] == []  # validation is yet to be drawn


def test_a_folder_counts_as_the_files_in_it():
    skipped = [Skipped("a.txt", "no image"), Skipped("b.txt", "no image"), Skipped("@eaDir", "hidden", count=12)]
    report = data_report(*catalogue_of({"ape": (5, 0, 100), "bee": (5, 0, 100)}, skipped=skipped))
    most = report["skipped"][0]
    assert (most["count"], most["files"]) == (12, [{"path": "@eaDir", "reason": "hidden", "count": 12}])
    assert report_lines(report)[2] == "skipped 12 files: hidden (@eaDir)"


@pytest.mark.parametrize(("held_out", "within"), [(1, "45%"), (20, "20%"), (92, "10%"), (93, None)])
def test_how_little_a_few_held_out_images_tell_is_said(held_out, within):
    """Half of Wilson's interval of 95 % where it is widest, at an accuracy of a half."""
    said = lines({"ape": (200, 0, held_out), "bee": (200, 0, 0)})
    plural = "images" if held_out > 1 else "image"
    line = f"{held_out} held-out {plural} give an accuracy to within {within} only; more make it worth comparing"
    assert (line in said) == bool(within)
    if within and held_out > 1:
        interval = binomtest(held_out // 2, held_out // 2 * 2).proportion_ci(method="wilson")
        assert (interval.high - interval.low) / 2 == pytest.approx(float(within[:-1]) / 100, abs=0.006)


def test_held_out_groups_count_as_one_measurement():
    catalogue, divided = catalogue_of({"ape": (200, 0, 100), "bee": (200, 0, 100)})
    report = data_report(catalogue, replace(divided, groups=np.repeat(np.arange(len(catalogue) // 20), 20)))
    assert report["held_out_groups"] == 10
    line = "200 held-out images in 10 groups give an accuracy to within 26% only; more make it worth comparing"
    assert line in report_lines(report)


def test_classes_with_one_image_to_train_on_are_reported():
    assert "2 classes have one image to train on and none to validate on, such as ape" in lines(
        {"ape": (1, 0, 1), "bee": (1, 0, 1), "cow": (3, 0, 1)}
    )
    assert "class bee has one image to train on" in lines({"ape": (2, 0, 1), "bee": (1, 1, 1)})


def test_copies_and_groups_are_reported():
    catalogue, divided = catalogue_of({"ape": (4, 0, 100), "bee": (4, 0, 100)})
    groups = np.arange(len(catalogue))
    groups[[0, 1, 104]] = 0
    groups[[2, 3]] = 2
    changed = replace(
        divided,
        development=np.setdiff1d(divided.development, [1]),
        unused=np.array([1]),
        groups=groups,
        copies=np.array([[0, 1], [0, 104], [2, 3]]),
    )
    report = data_report(catalogue, changed)
    assert report["near_duplicates"][1] == {
        "path": "zoo[0]", "class": "ape", "part": "", "other": "zoo[104]", "other_class": "bee", "other_part": "",
    }  # fmt: skip
    assert report["unused"] == ["zoo[1]"]
    assert json.loads(json.dumps(report)) == report
    pairs = "near-duplicates: 3 pairs of images show one photograph; 1 of them under two classes, such as "
    assert report_lines(report)[2:] == [
        f"{pairs}zoo[0] and zoo[104]",
        "5 images belong together in 2 groups, the largest of 3; none is split, for which 1 image is not used",
    ]
    report = data_report(catalogue, replace(divided, groups=groups, copies=np.array([[2, 3]])))
    assert report_lines(report)[2] == (
        "near-duplicates: 1 pair of images show one photograph, such as zoo[2] and zoo[3]"
    )


# --- the plot -----------------------------------------------------------------------------------


def labels_of(figure):
    return [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]


def test_classes_are_drawn_as_bars_of_their_parts_the_largest_first():
    figure = class_balance_plot(data_report(*catalogue_of({"ape": (4, 0, 1), "$bee$": (10, 2, 3), "cow": (7, 5, 0)})))
    assert labels_of(figure) == [r"\$bee\$", "cow", "ape"]  # which matplotlib shows as $bee$
    assert [[bar.get_width() for bar in bars] for bars in figure.axes[0].containers] == [
        [10, 7, 4],
        [2, 5, 0],
        [3, 0, 1],
    ]
    assert [bar.get_x() for bar in figure.axes[0].containers[2]] == [12, 12, 4]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["to train on", "to validate on", "held out"]
    figure.savefig(io.BytesIO())


def test_cross_validated_images_are_labelled_so_in_the_plot():
    figure = class_balance_plot(data_report(*catalogue_of({"ape": (4, 0, 1), "bee": (10, 0, 3)})))
    assert [[bar.get_width() for bar in bars] for bars in figure.axes[0].containers] == [[10, 4], [3, 1]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["to train and validate on", "held out"]


@pytest.mark.parametrize(("count", "drawn"), [(2, 2), (51, 51), (301, 200)])
def test_many_classes_fit_into_one_image(count, drawn):
    figure = class_balance_plot(data_report(*catalogue_of({f"class {n}": (n + 1, 0, 1) for n in range(count)})))
    names = labels_of(figure)
    assert len(names) == drawn
    assert (names[0], names[-1]) == (f"class {count - 1}", "class 0")  # the largest and the smallest
    width, height = figure.get_size_inches()
    assert width < 25
    assert height < 13
    figure.savefig(io.BytesIO(), dpi=40)


# --- everything at once -------------------------------------------------------------------------


def fill_with_everything(folder):
    """Good images of cats and dogs to train and test on, and everything that can be wrong with files."""
    fill(folder, 4, "train/cat", "train/dog", "test/cat", "test/dog")
    frames = [Image.fromarray(np.full((20, 20, 3), value, np.uint8)) for value in (10, 90, 200)]
    jpeg = noise_image(1000, format="JPEG")
    for name, content in {
        "corrupt.png": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "truncated.jpg": jpeg[: len(jpeg) * 9 // 10],
        "text.jpg": b"I am a letter",
        "empty.png": b"",
        "empty.gif": b"",
        "inks.jpg": saved(Image.new("CMYK", (20, 20), (0, 99, 200, 30)), "JPEG"),
        "deep.png": encode(np.full((20, 20), 40_000, np.uint16)),
        "moving.gif": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "moving.webp": saved(frames[1], "WEBP", save_all=True, append_images=frames[2:]),
        "png.jpg": noise_image(1001),
        "photo.jfif": noise_image(1002, format="JPEG"),
        "notes.txt": b"about cats",
        "same.png": (folder / "train" / "cat" / "1.png").read_bytes(),
        "held_out.png": (folder / "test" / "cat" / "1.png").read_bytes(),
    }.items():
        (folder / "train" / "cat" / name).write_bytes(content)
    (folder / "train" / "dog" / "cat.png").write_bytes((folder / "train" / "cat" / "0.png").read_bytes())
    (folder / "stray.png").write_bytes(noise_image(1003))


@pytest.mark.parametrize("cached", [False, True])
def test_each_file_of_a_messy_folder_is_named_rightly(tmp_path, cached):
    fill_with_everything(tmp_path / "pets")
    cache = Cache(tmp_path / "cache", 2**30) if cached else None
    for _ in range(1 + cached):  # the second time, what was decoded comes from the cache
        images = decode(open_catalogue("pets"), 16, cache=cache, progress=False)
    report = data_report(images.catalogue, split(images.catalogue, 0.15))
    cat = "pets/train/cat"
    skipped = {file["path"]: file["reason"] for group in report["skipped"] for file in group["files"]}
    remarks = {file["path"]: file["reason"] for group in report["remarks"] for file in group["files"]}
    broken = {path: skipped.pop(f"{cat}/{path}") for path in ("corrupt.png", "truncated.jpg", "text.jpg")}
    assert skipped == {
        "pets/stray.png": "it lies in no folder of a class",
        f"{cat}/empty.gif": "the file is empty",
        f"{cat}/empty.png": "the file is empty",
        f"{cat}/notes.txt": f"its ending is none of {', '.join(sorted(SUFFIXES))}",
        f"{cat}/photo.jfif": "it is a JPEG, though its name ends in .jfif; rename it to end in .jpg",
    }
    assert re.match(r"(the image|the header) is broken: |not an image, or its header is broken", broken["corrupt.png"])
    assert re.match(r"the image is broken: .*truncated", broken["truncated.jpg"])
    assert broken["text.jpg"].startswith("not an image, or its header is broken")
    assert remarks == {
        f"{cat}/inks.jpg": "CMYK, converted to RGB",
        f"{cat}/deep.png": "16-bit grey, scaled to 8 bits",
        f"{cat}/moving.gif": "the first of 3 frames",
        f"{cat}/moving.webp": "the first of 2 frames",
        f"{cat}/png.jpg": "it is a PNG, though its ending says JPEG",
    }
    where = ("path", "class", "part", "original", "original_class", "original_part")
    assert sorted(tuple(pair[key] for key in where) for pair in report["duplicates"]) == [
        ("pets/train/cat/held_out.png", "cat", "train", "pets/test/cat/1.png", "cat", "test"),
        ("pets/train/cat/same.png", "cat", "train", "pets/train/cat/1.png", "cat", "train"),
        ("pets/train/dog/cat.png", "dog", "train", "pets/train/cat/0.png", "cat", "train"),
    ]
    assert report["classes"] == [
        {"class": "cat", "development": 9, "validation": 0, "held_out": 4},
        {"class": "dog", "development": 4, "validation": 0, "held_out": 4},
    ]
    assert json.loads(json.dumps(report)) == report
    copies = (
        "3 files skipped as copies of others; 1 of them under another class,"
        " such as pets/train/dog/cat.png and pets/train/cat/0.png"
    )
    said = report_lines(report)
    assert said[:4] == [
        "pets: 21 images of 2 classes, 8 of them held out",
        "a class has 4 (dog) to 9 (cat) images to train and validate on",
        "8 held-out images give an accuracy to within 28% only; more make it worth comparing",
        copies,
    ]
    assert "skipped 2 files: the file is empty, such as pets/train/cat/empty.gif" in said
    assert (
        said[-1]
        == "note on 2 files: the first of N frames, such as pets/train/cat/moving.gif; and 3 more for other reasons"
    )
