"""A training from the command line: its output, its run, its bundle."""

import json
import math
import os
import re
import shlex
import sys
from contextlib import chdir

import numpy as np
import pytest
import torch
from PIL import Image

import model_registry
from model_registry import ModelRegistry
from support.colours import COLOURS, colour_image, colour_pixels
from support.tiny_networks import load_weights
from support.training_runs import (
    AT_THE_END,
    EACH_EPOCH,
    EPOCHS,
    last_line,
)
from toolkit.images.decoding import SUFFIXES, load_image
from toolkit.tracking.code_version import code_version
from toolkit.training.networks import SimpleCNN
from train_cnn import Hyperparameters, TrainSettings, load_images


def test_output_has_epochs_a_table_and_the_next_command(place, whole):
    assert (whole.status, whole.err) == (0, "")
    assert re.search(
        r"^training simple_cnn on \d+ images of 3 classes, validating on \d+, \d+ held out \(cpu, \w+\)$",
        whole.out,
        re.MULTILINE,
    )
    epochs = re.findall(rf"^epoch +\d/{EPOCHS}  train loss \d\.\d+  train accuracy ", whole.out, re.MULTILINE)
    assert len(epochs) == EPOCHS
    run = place.run_of("my training")
    metrics = run.data.metrics
    for name, value in {
        "best val accuracy": f"{metrics['best_val_accuracy']:.4f}",
        "held-out accuracy": f"{metrics['held_out_accuracy']:.4f}  (",
        "calibration error": f"{metrics['calibration_error']:.4f}  ({metrics['calibration_error_before']:.4f} before",
        "best epoch": f"{metrics['best_epoch']:.0f} of {EPOCHS}",
        "MLflow run": run.info.run_id,
    }.items():
        assert f"\n  {name:<22} {value}" in whole.out
    assert last_line(whole.out) == f"next: python model_registry.py register --run {run.info.run_id}"


def test_the_next_command_registers_the_model(place, whole, monkeypatch, capsys):
    _, _, *words = shlex.split(last_line(whole.out))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    monkeypatch.setattr(sys, "argv", words)
    model_registry.main()
    assert "next: python model_registry.py promote 1 Production" in capsys.readouterr().out
    registry = ModelRegistry(place.uri)
    assert registry.get(1).run_id == place.run_of("my training").info.run_id
    assert registry.load(1).bundle.card.classes == COLOURS


def test_metrics_and_their_steps(place, whole):
    run = place.run_of("my training")
    assert run.info.status == "FINISHED"
    assert set(run.data.metrics) == EACH_EPOCH | AT_THE_END
    for name in run.data.metrics:
        once, each = name in AT_THE_END, name in EACH_EPOCH
        assert place.steps(run, name) == [0] * once + list(range(1, EPOCHS + 1)) * each, name
    metrics = run.data.metrics
    assert all(math.isfinite(value) for value in metrics.values())
    accuracies = dict(place.history(run, "val_accuracy"))
    assert metrics["best_val_accuracy"] == max(accuracies.values()) == accuracies[int(metrics["best_epoch"])]
    rates = [rate for _, rate in place.history(run, "learning_rate")]
    assert max(rates) <= 0.003
    assert rates[-1] < rates[2]


def test_params_tags_and_data_set(place, whole):
    run = place.run_of("my training")
    assert set(run.data.params) == set(TrainSettings.model_fields)
    expected = {
        "data": "colours", "image_size": "48", "batch_size": "2", "epochs": str(EPOCHS), "seed": "3", "folds": "0",
        "learning_rate": "0.003", "dropout": "0.25", "optimizer": "adam", "experiment_name": "my training",
        "class_weights": "none", "deterministic": "False", "resume": "None",
        "cache_dir": f"{os.environ['XDG_CACHE_HOME']}/image-classification/images",
    }  # fmt: skip
    assert {name: run.data.params[name] for name in expected} == expected
    tags = run.data.tags
    with chdir(place.folder):
        images, _ = load_images(TrainSettings(data="colours"), 48)
    fingerprint = images.catalogue.fingerprint
    assert tags["data_fingerprint"] == fingerprint
    assert (tags["role"], tags["seed"], tags["data"], tags["skipped_files"]) == ("final", "3", "colours", "5")
    assert tags["weights"] == "random"
    assert tags["code_version"] == tags["mlflow.source.git.commit"] == code_version()
    assert tags["mlflow.runName"] == "simple_cnn-colours"
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest, json.loads(used.dataset.source)) == (
        "colours", fingerprint, {"uri": "colours"},
    )  # fmt: skip
    assert json.loads(used.dataset.profile) == {"images": len(images.catalogue), "classes": 3, "image_size": 48}
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]


def test_data_report_names_skipped_files(place, whole):
    report = json.loads(place.artifact(place.run_of("my training"), "data_report.json").read_text())
    skipped = {file["path"]: file["reason"] for group in report["skipped"] for file in group["files"]}
    broken = skipped.pop("colours/red/broken.png")
    assert "broken" in broken
    assert skipped == {
        "colours/stray.png": "it lies in no folder of a class",
        "colours/red/empty.png": "the file is empty",
        "colours/red/notes.txt": f"its ending is none of {', '.join(sorted(SUFFIXES))}",
    }
    assert report["images"] == 120
    training, validation = (sum(row[part] for row in report["classes"]) for part in ("development", "validation"))
    assert validation > 0
    assert f"training simple_cnn on {training} images of 3 classes, validating on {validation}, " in whole.out
    held_out = {row["class"]: row["held_out"] for row in report["classes"]}
    per_class = json.loads(place.artifact(place.run_of("my training"), "per_class.json").read_text())
    assert held_out == {row["class"]: row["images"] for row in per_class}
    assert whole.out.startswith(f"colours: 120 images of 3 classes, {sum(held_out.values())} of them held out\n")
    assert "\n1 file skipped as " in whole.out
    assert "\nnote on 1 file: it is a PNG, though its ending says JPEG (colours/blue/1.jpg)\n" in whole.out
    assert "--class-weights" not in whole.out


def test_tables_and_plots(place, whole):
    run = place.run_of("my training")
    confusion = json.loads(place.artifact(run, "confusion_matrix.json").read_text())
    assert confusion["classes"] == list(COLOURS)
    matrix = np.array(confusion["matrix"])
    rows = json.loads(place.artifact(run, "per_class.json").read_text())
    assert [(row["class"], row["images"]) for row in rows] == list(zip(COLOURS, matrix.sum(axis=1), strict=True))
    assert [row["recall"] for row in rows] == pytest.approx(matrix.diagonal() / matrix.sum(axis=1))
    accuracy = matrix.trace() / matrix.sum()
    assert accuracy == pytest.approx(run.data.metrics["held_out_accuracy"])
    assert run.data.metrics["recall_weighted"] == pytest.approx(accuracy)
    drawn = {"calibration", "class_balance", "confusion_matrix", "learning_curves", "per_class"}
    expected = {f"{name}.png" for name in drawn} | ({"mistakes.png"} if accuracy < 1 else set())
    assert {name for name in place.artifacts(run) if name.endswith(".png")} == expected
    for name in expected:
        with Image.open(place.artifact(run, name)) as image:
            assert min(image.size) > 150, name


def test_bundle_is_evaluated_on_held_out_images(place, whole):
    run = place.run_of("my training")
    bundle, metrics = place.bundle(run), run.data.metrics
    card = bundle.card
    assert (card.classes, card.image_size, card.network) == (COLOURS, 48, "simple_cnn")
    assert card.settings["learning_rate"] == 0.003
    assert card.metrics["accuracy"].value == metrics["held_out_accuracy"]
    assert card.metrics["calibration_error"].value == metrics["calibration_error"]
    assert card.metrics["best_val_accuracy"].value == metrics["best_val_accuracy"]
    assert card.temperature == pytest.approx(metrics["temperature"])
    with chdir(place.folder):
        images, divided = load_images(TrainSettings(data="colours"), 48)
    assert card.data["fingerprint"] == images.catalogue.fingerprint
    assert bundle.baseline.hashes.tolist() == images.catalogue.hashes[divided.held_out].tolist()
    assert card.metrics["accuracy"].images == bundle.baseline.size == len(divided.held_out)
    answer = bundle.predict(images.pixels[divided.held_out])
    assert answer == pytest.approx(bundle.baseline.probabilities.astype(np.float32), abs=2e-3)
    assert bundle.baseline.accuracy == metrics["held_out_accuracy"]
    assert set(bundle.baseline.statistics) == {"brightness", "contrast", "sharpness", "width", "height", "aspect"}
    unseen = np.stack([load_image(colour_image(COLOURS[n % 3], 5000 + n, 20), 48).pixels for n in range(30)])
    assert (bundle.predict(unseen).argmax(axis=1) == np.arange(30) % 3).mean() > 0.6  # one in three would be chance


def test_finished_weights_are_those_of_the_bundle(place, whole):
    run = place.run_of("my training")
    weights, description = load_weights(place.folder / "checkpoints" / f"{run.info.run_id}.pt")
    assert description["classes"] == list(COLOURS)
    hparams = Hyperparameters(**description["hparams"])
    assert (hparams.dropout, hparams.epochs) == (0.25, EPOCHS)
    network = SimpleCNN(3, hparams.dropout)
    network.load_state_dict(weights)
    batch = np.stack([colour_pixels(colour, 48, np.random.default_rng(9)) for colour in COLOURS])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        scaled = (torch.from_numpy(batch) / 255 - mean) / std
        logits = network.eval()(scaled.permute(0, 3, 1, 2))
        expected = torch.softmax(logits / run.data.metrics["temperature"], dim=1).numpy()
    assert place.bundle(run).predict(batch) == pytest.approx(expected, abs=1e-4)
