"""Data sets, splits and groups as the settings say."""

import io
import json
import os
import sys
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train_cnn
from support.colours import COLOURS, colour_image
from support.image_folders import fill_colours
from toolkit.errors import TrainingError
from train_cnn import TrainingData, TrainSettings, load_images, train


@pytest.mark.parametrize(
    ("data", "flip", "allow_flip"),
    [("digits", None, False), ("colours", None, True), ("digits", True, True), ("colours", False, False)],
)
def test_flip_defaults_by_data_set(place, data, flip, allow_flip):
    with chdir(place.folder):
        images, _ = load_images(TrainSettings(data=data, flip=flip), 16)
    assert images.catalogue.allow_flip is allow_flip


def test_cache_dir_and_cache_limit(place, tmp_path):
    colours = str(place.folder / "colours")
    kept, divided = load_images(TrainSettings(data=colours, cache_dir=tmp_path / "kept"), 16)
    assert any((tmp_path / "kept").iterdir())
    fresh, again = load_images(TrainSettings(data=colours, cache_dir=tmp_path / "none", cache_limit=0), 16)
    assert not (tmp_path / "none").exists()
    assert np.array_equal(kept.pixels, fresh.pixels)
    assert np.array_equal(divided.held_out, again.held_out)


def test_train_val_and_test_folders(store, tmp_path):
    for part, count in (("train", 10), ("val", 4), ("test", 5)):
        fill_colours(tmp_path / "parted" / part, count)
    outcome = train(
        TrainSettings(data="parted", epochs=1, image_size=16, experiment_name="parted", model_type="resnet18",
                      weights="none", batch_size=29)
    )  # fmt: skip
    run = store.run_of("parted")
    assert outcome.evaluation.images == 15
    card = store.bundle(run).card
    assert card.metrics["best_val_accuracy"].images == 12
    assert (card.network, card.data["development"], card.data["held_out"]) == ("resnet18", 42, 15)


def test_class_names_in_any_script_and_bytes(store, tmp_path, monkeypatch):
    """Latin-1, a newline with an escape sequence, accents as a Mac writes them, Chinese; on an ASCII terminal."""
    names = (b"caf\xe9", b"two\n\x1b[31mlines", "e\u0301te\u0301".encode(), "猫".encode())
    for index, name in enumerate(names):
        folder = tmp_path / os.fsdecode(b"any\xe9") / os.fsdecode(name)
        folder.mkdir(parents=True)
        for number in range(12 + index):
            image = colour_image(COLOURS[index % 3], 100 * index + number, 20)
            (folder / os.fsdecode(b"%d\xff.png" % number)).write_bytes(image)
        (folder / os.fsdecode(b"br\xfbl\xe9.png")).write_bytes(b"no image, " + name)
    said = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(said, encoding="ascii", write_through=True))
    data = os.fsdecode(b"any\xe9")
    train(TrainSettings(data=data, epochs=1, image_size=16, experiment_name="any names", cache_limit=0))
    run = store.run_of("any names")
    assert run.info.status == "FINISHED"
    classes = ("caf\\xe9", "two\\n\\x1b[31mlines", "été", "猫")
    assert store.bundle(run).card.classes == classes
    report = json.loads(store.artifact(run, "data_report.json").read_bytes().decode("utf-8"))
    assert [row["class"] for row in report["classes"]] == list(classes)
    assert report["skipped"][0]["files"][0]["path"] == "any\\xe9/caf\\xe9/br\\xfbl\\xe9.png"
    assert run.data.tags["data"] == run.data.params["data"] == "any\\xe9"
    assert b"any\\xe9: 54 images of 4 classes" in said.getvalue()
    assert b"skipped 4 files" in said.getvalue()


def test_rare_classes_are_reported_and_can_be_weighted(store, tmp_path, capsys):
    fill_colours(tmp_path / "unequal" / "train", 40, "blue")
    fill_colours(tmp_path / "unequal" / "train", 10, "green", "red")
    fill_colours(tmp_path / "unequal" / "test", 10)
    hopeless = {"data": "unequal", "epochs": 1, "image_size": 16, "learning_rate": 1e-6}
    outcome = train(TrainSettings(**hopeless, class_weights="balanced", experiment_name="unequal"))
    hint = "8 (green) to 34 (blue) images to train on, 4.2 times as many; consider --class-weights"
    assert hint in capsys.readouterr().out
    run = store.run_of("unequal")
    report = json.loads(store.artifact(run, "data_report.json").read_text())
    assert report["imbalance"] == 34 / 8
    assert run.data.params["class_weights"] == "balanced"
    assert store.bundle(run).card.settings["class_weights"] == "balanced"
    assert outcome.evaluation.accuracy < 1
    assert "mistakes.png" in store.artifacts(run)


# --- groups -------------------------------------------------------------------------------------


@pytest.fixture
def twins(tmp_path):
    """Photographs of two classes, each with a copy: smaller, or flipped."""
    generator = np.random.default_rng(0)
    for colour in ("red", "blue"):
        (tmp_path / "twins" / colour).mkdir(parents=True)
        for number in range(60):
            shapes = Image.fromarray(generator.integers(0, 256, (7, 7, 3)).astype(np.uint8)).resize((64, 64))
            shapes.save(tmp_path / "twins" / colour / f"{number}-first.png")
            again = shapes.resize((48, 48)) if number % 2 else shapes.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            again.save(tmp_path / "twins" / colour / f"{number}-second.jpg", quality=80)
    return tmp_path / "twins"


def photographs(data, indices):
    paths = [Path(data.images.catalogue.path(index)) for index in indices.tolist()]
    return {(path.parent.name, path.name.split("-")[0]) for path in paths}


@pytest.mark.parametrize("how", [{}, {"near_duplicates": False, "group_by": r"(\w+/\d+)-"}])
@pytest.mark.parametrize("folds", [0, 3])
def test_copies_of_a_photograph_are_on_one_side(store, twins, how, folds, monkeypatch, capsys):
    """Neither held out and trained on, nor validated on and trained on, whether found or by ``group_by``."""
    settings = TrainSettings(data=str(twins), image_size=32, folds=folds, experiment_name="twins", **how)
    torn = TrainingData(
        *load_images(settings.model_copy(update={"near_duplicates": False, "group_by": None}), 32), None, ""
    )
    assert photographs(torn, torn.split.held_out) & photographs(torn, torn.development)
    data = TrainingData(*load_images(settings, 32), None, "random")
    assert not photographs(data, data.split.held_out) & photographs(data, data.development)
    assert 4 <= len(data.split.held_out) <= 60
    sides = []

    def fit(network, training, validation, *_, **__):
        sides.append((photographs(data, training.indices), photographs(data, validation.indices)))
        raise TrainingError("seen enough")

    monkeypatch.setattr(train_cnn, "fit", fit)
    with pytest.raises(TrainingError, match="seen enough"):
        train(settings)
    ((training, validation),) = sides
    assert validation
    assert not training & validation
    said = capsys.readouterr().out
    assert ("near-duplicates: 120 pairs of images show one photograph, such as " in said) == (not how)
    assert "240 images belong together in 120 groups, the largest of 2; none is split" in said
