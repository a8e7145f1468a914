"""train_cnn.py as people run it: what a run records, how it is interrupted and resumed, what is refused."""

import io
import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, chdir
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import ResNet

import model_registry
import toolkit.cli.settings
import train_cnn
from model_registry import ModelRegistry
from support import ROOT
from support.colours import COLOURS, colour_image, colour_pixels
from support.forked_processes import Ended, forks
from support.servers import MlflowServer, free_port
from support.tiny_networks import load_weights
from toolkit.bundle.program import load_bundle
from toolkit.errors import DataError, TrainingError
from toolkit.images.decoding import SUFFIXES, load_image
from toolkit.registry.bundles import download
from toolkit.tracking.code_version import code_version
from toolkit.tracking.connection import connect, mlflow
from toolkit.training.checkpointing.checkpoint import Checkpoint, open_checkpoint
from toolkit.training.device import Device
from toolkit.training.networks import SimpleCNN
from train_cnn import FitConfig, Hyperparameters, TrainingData, TrainSettings, cross_validate, load_images, main, train

EACH_EPOCH = {
    "train_loss", "val_loss", "train_accuracy", "val_accuracy", "learning_rate", "batch_time_ms", "batch_time_ms_p95",
    "epoch_duration_s", "images_per_s", "gpu_memory_mb", "cpu_percent", "ram_mb",
    "system/gpu_memory_mb", "system/cpu_percent", "system/ram_mb",
}  # fmt: skip
AT_THE_END = {
    "precision_weighted", "recall_weighted", "f1_weighted", "training_time_s", "best_val_accuracy", "best_epoch",
    "held_out_accuracy", "calibration_error", "calibration_error_before", "temperature", "images_per_s",
    "gpu_memory_mb",
}  # fmt: skip
# Those that the same training gives again, bit for bit.
REPEATABLE = {"train_loss", "val_loss", "train_accuracy", "val_accuracy", "learning_rate"}
REPEATABLE |= AT_THE_END - {"training_time_s", "images_per_s", "gpu_memory_mb"}
REPEATABLE |= {"mean_cv_accuracy", "std_cv_accuracy", "fold_accuracy"}

EPOCHS = 6
SMALL = ("--batch-size", "2", "--learning-rate", "0.003")
STORY = (
    "--data", "colours", "--image-size", "48", *SMALL, "--epochs", str(EPOCHS), "--patience", str(EPOCHS),
    "--seed", "3", "--dropout", "0.25",
)  # fmt: skip
FOLDS = (
    "--data", "colours", "--image-size", "16", "--batch-size", "2", "--learning-rate", "0.0003", "--epochs", "4",
    "--folds", "3", "--seed", "5",
)  # fmt: skip
KILLS = int(os.environ.get("KILLS", "5"))


# --- where it happens ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A folder with images, and an MLflow store."""

    folder: Path
    uri: str

    @property
    def client(self):
        return connect(self.uri)

    @property
    def variables(self):
        """Those of a shell in which a person types."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return {"MLFLOW_TRACKING_URI": self.uri, "PYTHONPATH": str(ROOT), "PATH": path}

    def typed(self, words, **variables):
        """What a shell does with a line."""
        return subprocess.Popen(
            ["bash", "-c", f"exec {words}"],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **self.variables, **variables},
        )

    def runs(self, experiment, role="final"):
        found = self.client.get_experiment_by_name(experiment)
        runs = self.client.search_runs([found.experiment_id], f"tags.role = '{role}'") if found else []
        return sorted(runs, key=lambda run: run.data.tags.get("fold", ""))

    def run_of(self, experiment):
        (run,) = self.runs(experiment)
        return run

    def artifacts(self, run):
        return {item.path for item in self.client.list_artifacts(run.info.run_id)}

    def artifact(self, run, name):
        return Path(self.client.download_artifacts(run.info.run_id, name, str(self.folder)))

    def bundle(self, run):
        """The verified and loaded bundle of a run, which has no other."""
        (model,) = self.client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
        assert model.status == "READY"
        assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
        with download(self.client, model.artifact_location) as folder:
            return load_bundle(folder, run.data.tags["bundle_digest"])

    def history(self, run, metric):
        points = self.client.get_metric_history(run.info.run_id, metric)
        return sorted((point.step, point.value) for point in points)

    def steps(self, run, metric):
        return [step for step, _ in self.history(run, metric)]


def fill(folder, count=40, size=20):
    """Red, green and blue images, and what else lies about in such a folder."""
    for index, colour in enumerate(COLOURS):
        (folder / colour).mkdir(parents=True)
        for number in range(count):
            (folder / colour / f"{number}.png").write_bytes(colour_image(colour, 100 * index + number, size))
    (folder / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "red" / "empty.png").touch()
    (folder / "red" / "notes.txt").write_text("red ones")
    (folder / "beside.png").write_bytes(colour_image("red", 999, size))
    shutil.copy(folder / "green" / "0.png", folder / "green" / "copy.png")
    (folder / "blue" / "1.png").rename(folder / "blue" / "1.jpg")
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_core():
    """Tiny networks are slower on several cores than on one, above all beside other work; scripts inherit this."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with ExitStack() as after:
        after.callback(torch.set_num_threads, threads)
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})
            after.callback(os.sched_setaffinity, 0, cores)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    uri = f"sqlite:///{folder}/mlflow.db"
    with chdir(folder):
        connect(uri)
    fill(folder / "colours")
    return Place(folder, uri)


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    with forks(tmp_path_factory.mktemp("output")) as started:
        yield started


@pytest.fixture
def store(place, monkeypatch):
    """The same store for trainings inside this process."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    threads = torch.get_num_threads()
    yield place
    torch.set_num_threads(threads)


@pytest.fixture
def command_line(monkeypatch, capsys):
    """A function that runs the script's ``main`` as the guard at its end does, in this process."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["train_cnn.py", *words])
        with pytest.raises(SystemExit) as caught:
            toolkit.cli.settings.run_script(main)
        out, err = capsys.readouterr()
        return Ended(out, err, caught.value.code)

    yield run
    signal.signal(signal.SIGTERM, before)


def last_line(text):
    return text.rstrip().splitlines()[-1]


# --- a training that ends by itself -------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(place, forked):
    """A training that nothing happens to; the others are compared with it."""
    *words, _, dropout = STORY
    variables = {**place.variables, "TRAIN_DROPOUT": dropout}
    return forked.start(
        "train_cnn.py", *words, "--experiment-name", "my training", folder=place.folder, **variables
    ).end()


def test_a_script_prints_its_epochs_a_table_and_the_next_command(place, whole):
    assert (whole.status, whole.err) == (0, "")
    assert re.search(
        r"^training simple_cnn on \d+ images of 3 classes, validating on \d+, \d+ held out \(cpu, \w+\)$",
        whole.out,
        re.MULTILINE,
    )
    assert len(re.findall(r"^epoch +\d/6  train loss \d\.\d{4}  train accuracy ", whole.out, re.MULTILINE)) == EPOCHS
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


def test_the_next_command_works(place, whole, monkeypatch, capsys):
    _, _, *words = shlex.split(last_line(whole.out))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    monkeypatch.setattr(sys, "argv", words)
    model_registry.main()
    assert "next: python model_registry.py promote 1 Production" in capsys.readouterr().out
    registry = ModelRegistry(place.uri)
    assert registry.get(1).run_id == place.run_of("my training").info.run_id
    assert registry.load(1).bundle.card.classes == COLOURS


def test_a_run_records_every_metric_with_its_steps(place, whole):
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


def test_a_run_records_its_settings_and_where_it_comes_from(place, whole):
    run = place.run_of("my training")
    assert set(run.data.params) == set(TrainSettings.model_fields)
    expected = {
        "data": "colours", "image_size": "48", "batch_size": "2", "epochs": "6", "seed": "3", "folds": "0",
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


def test_a_run_names_each_file_that_was_odd(place, whole):
    report = json.loads(place.artifact(place.run_of("my training"), "data_report.json").read_text())
    skipped = {file["path"]: file["reason"] for group in report["skipped"] for file in group["files"]}
    broken = skipped.pop("colours/red/broken.png")
    assert "broken" in broken
    assert skipped == {
        "colours/beside.png": "it lies in no folder of a class",
        "colours/red/empty.png": "the file is empty",
        "colours/red/notes.txt": f"its ending is none of {', '.join(sorted(SUFFIXES))}",
    }
    (duplicate,) = report["duplicates"]
    assert (duplicate["path"], duplicate["original"]) == ("colours/green/copy.png", "colours/green/0.png")
    assert [file for group in report["remarks"] for file in group["files"]] == [
        {"path": "colours/blue/1.jpg", "reason": "it is a PNG, though its ending says JPEG"}
    ]
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


def test_a_run_keeps_tables_and_images(place, whole):
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


def test_the_bundle_is_measured_on_images_that_did_not_train_it(place, whole):
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


def test_the_weights_that_are_left_are_those_of_the_bundle(place, whole):
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


def require_same(place, run, weights, of, whole):
    """A run came to the same as another that nothing happened to, and has everything once."""
    other = of.run_of(whole)
    assert run.info.status == "FINISHED"
    assert "failure" not in run.data.tags
    assert set(run.data.metrics) == set(other.data.metrics)
    for name in run.data.metrics:
        own, others = place.history(run, name), of.history(other, name)
        if name in REPEATABLE:
            assert set(own) == set(others), name
        # What is measured at the end, at step 0, is there twice if a kill fell between that and the end of the run.
        assert [step for step, _ in own if step] == [step for step, _ in others if step], name
    assert place.bundle(run).card.metrics.keys() == of.bundle(other).card.metrics.keys()
    if weights is not None:
        reached, description = load_weights(weights)
        expected, as_described = load_weights(of.folder / "checkpoints" / f"{other.info.run_id}.pt")
        assert description == as_described
        assert reached.keys() == expected.keys()
        assert all(torch.equal(reached[name], expected[name]) for name in expected)


# --- a training that is stopped, and gone on with -----------------------------------------------


@dataclass(frozen=True)
class Stopped:
    """A training that was sent a signal in the middle of an epoch, its checkpoint, and what going on gave."""

    run: mlflow.entities.Run
    ended: Ended
    checkpoint: Path
    resumed: Ended


def stop(place, script, sent):
    """Send a signal in the middle of an epoch, after the second one; the script gives way to whoever watches it."""
    os.setpriority(os.PRIO_PROCESS, script.pid, 10)
    script.wait_for("epoch +2/")
    time.sleep(0.1)
    os.kill(script.pid, sent)
    return script.end()


@pytest.fixture(scope="module")
def stopped(place, forked):
    """One training stopped by Ctrl-C, whose last line is then typed, and one by SIGTERM, gone on with elsewhere."""
    both = {}
    for name, sent in (("ctrl-c", signal.SIGINT), ("sigterm", signal.SIGTERM)):
        words = ("train_cnn.py", *STORY, "--experiment-name", name)
        ended = stop(place, forked.start(*words, folder=place.folder, **place.variables), sent)
        run = place.run_of(name)
        kept = shutil.copy(place.folder / "checkpoints" / f"{run.info.run_id}.resume.pt", place.folder / f"{name}.pt")
        if name == "ctrl-c":
            line = last_line(ended.out).removeprefix(f"stopped; resume with: python {ROOT}{os.sep}")
            resumed = forked.start(*shlex.split(line), folder=place.folder, **place.variables).end()
        else:
            words = ("train_cnn.py", "--resume", run.info.run_id, "--cache-dir", "other cache")
            resumed = forked.start(*words, folder=place.folder, **place.variables).end()
        both[name] = Stopped(run, ended, Path(kept), resumed)
    return both


@pytest.mark.parametrize(("name", "status"), [("ctrl-c", 130), ("sigterm", 143)])
def test_a_stopped_training_keeps_its_step_and_says_how_to_go_on(name, status, place, stopped):
    run, ended = stopped[name].run, stopped[name].ended
    assert ended.status == status
    assert ended.err == ("train_cnn.py: interrupted\n" if name == "ctrl-c" else "")
    assert run.info.status == "KILLED"
    assert not run.outputs.model_outputs
    assert last_line(ended.out) == f"stopped; resume with: python {ROOT / 'train_cnn.py'} --resume {run.info.run_id}"
    facts = open_checkpoint(str(stopped[name].checkpoint), place.folder).phases["final"].facts
    done = [int(number) for number in re.findall(r"^epoch +(\d+)/", ended.out, re.MULTILINE)]
    assert done == [epoch["epoch"] for epoch in facts["history"]]
    assert facts["step"] > 0


@pytest.mark.parametrize("name", ["ctrl-c", "sigterm"])
def test_a_stopped_training_comes_to_the_same_when_it_is_gone_on_with(name, place, whole, stopped):
    resumed, run = stopped[name].resumed, place.run_of(name)
    assert (resumed.status, resumed.err) == (0, "")
    assert resumed.out.startswith(f"resuming run {run.info.run_id}\n")
    printed = stopped[name].ended.out + resumed.out
    assert re.findall(r"^epoch +(\d+)/", printed, re.MULTILINE) == [str(epoch + 1) for epoch in range(EPOCHS)]
    require_same(place, run, place.folder / "checkpoints" / f"{run.info.run_id}.pt", place, "my training")


def test_images_may_be_kept_elsewhere_from_then_on(place, stopped):
    assert stopped["sigterm"].resumed.status == 0
    assert any((place.folder / "other cache").iterdir())


# --- a training that is killed ------------------------------------------------------------------


@dataclass
class Chance:
    """Kills scripts at random moments, so often in all."""

    generator: random.Random
    longest: float  # seconds
    left: int = KILLS

    def strike(self, script):
        """Kill a script at some moment; whether it was still running, and so dies of it."""
        if not self.left:
            return False
        script.process.join(self.generator.uniform(0, self.longest))
        if not script.running:
            return False
        os.kill(script.pid, signal.SIGKILL)
        self.left -= script.end().status == -signal.SIGKILL
        return True


def survive(place, forked, folder, chance):
    """Start a training, and go on with it each time that it is killed, until it is complete."""
    experiment = folder.name
    begin = (*STORY[2:], "--data", str(place.folder / "colours"), "--experiment-name", experiment)
    words, status = begin, -1
    while status:
        script = forked.start(
            "train_cnn.py", *words, folder=folder, **place.variables, XDG_CACHE_HOME=str(folder / "cache")
        )
        chance.strike(script)
        ended = script.end()
        status = ended.status
        if status == 2:
            assert words == ("--resume",)
            assert ended.err == (
                "train_cnn.py: error: there is no interrupted training in checkpoints/; --resume has nothing to"
                " resume\n"
            )
            if any(run.info.status == "FINISHED" for run in place.runs(experiment)):
                return  # it was killed when all was done
            words = begin
        else:
            assert (status, ended.err) in ((0, ""), (-signal.SIGKILL, ""))
            words = ("--resume",)


def test_a_training_killed_at_random_moments_comes_to_the_same(place, whole, forked, tmp_path):
    chance = Chance(random.Random(20), longest=0.7 * whole.seconds)
    attempts = 0
    while chance.left:
        folder = tmp_path / f"killed {attempts}"
        folder.mkdir()
        survive(place, forked, folder, chance)
        runs = place.runs(folder.name)
        finished = [run for run in runs if run.info.status == "FINISHED"]
        assert len(finished) == 1
        assert not any(run.data.metrics for run in runs if run not in finished)  # killed before its first checkpoint
        left = [path.name for path in (folder / "checkpoints").iterdir()]
        for run in runs:  # of one that was killed before its first checkpoint, half of that and its lock are left
            if run not in finished:
                left = [name for name in left if not name.startswith(f".{run.info.run_id}.resume.pt.")]
        assert left == [f"{finished[0].info.run_id}.pt"]
        require_same(place, finished[0], folder / "checkpoints" / left[0], place, "my training")
        attempts += 1


# --- a disk that is full, a server that is lost -------------------------------------------------


def test_a_disk_that_takes_no_checkpoint_stops_nothing(place, whole, forked):
    words = (*STORY, "--experiment-name", "full", "--checkpoint-dir", "full")
    script = forked.start("train_cnn.py", *words, folder=place.folder, **place.variables)
    script.wait_for("epoch +2/")
    script.pause()
    (place.folder / "full").rename(place.folder / "before")
    (place.folder / "full").write_text("no folder: nothing can be written into it, not even by root")
    script.go_on()
    ended = script.end()
    run = place.run_of("full")
    assert (ended.status, ended.err) == (0, "")
    why = "cannot be written: [Errno 17] File exists: 'full'"
    progress, weights = re.findall(r"^warning: the checkpoint full/(.*)$", ended.out, re.MULTILINE)
    consequence = "training goes on, and could only be resumed from an earlier epoch"
    assert progress == f"{run.info.run_id}.resume.pt {why}; {consequence}"
    assert weights == f"{run.info.run_id}.pt {why}"
    require_same(place, run, None, place, "my training")


@dataclass(frozen=True)
class Outage:
    """What trainings came to whose server was killed: one that it came back to, and one that it did not."""

    place: Place
    back: Ended
    lost: Ended
    left: mlflow.entities.Run  # of the lost one, when the server was there again
    resumed: Ended


@pytest.fixture(scope="module")
def outage(place, forked, tmp_path_factory):
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    shutil.copy(place.folder / "mlflow.db", server.folder)  # a first start is slow
    elsewhere = replace(place, uri=server.url)
    server.start()
    try:
        scripts = []
        for name in ("back", "lost"):
            words = ("train_cnn.py", *STORY, "--experiment-name", name)
            scripts.append(forked.start(*words, folder=place.folder, **elsewhere.variables))
            scripts[-1].wait_for("epoch +2/")
            scripts[-1].pause()
        back, lost = scripts
        server.kill()
        back.go_on()
        back.wait_for("MLflow cannot take the metrics")
        back.pause()
        lost.go_on()
        ended = lost.end()
        server.start()
        left = elsewhere.run_of("lost")
        back.go_on()
        line = ended.err.rpartition(f" python {ROOT}{os.sep}")[2]
        resumed = forked.start(*shlex.split(line), folder=place.folder, **elsewhere.variables)
        yield Outage(elsewhere, back.end(), ended, left, resumed.end())
    finally:
        server.kill()


GONE = "MLflow cannot take the metrics: connection refused; training goes on, they are kept and will be sent later\n"
BACK = "MLflow takes the metrics again; those that were kept have been sent\n"


def test_a_training_outlives_its_server_and_says_how_to_finish(outage):
    lost = outage.lost
    assert lost.status == 2
    assert lost.out.count(GONE) == lost.out.count("MLflow") == 1
    assert f"\nepoch   {EPOCHS}/{EPOCHS}  " in lost.out
    assert re.fullmatch(
        r"train_cnn\.py: error: cannot log \S+: connection refused; the training is saved: resume it"
        rf" when MLflow answers again: python {ROOT}/train_cnn\.py --resume {outage.left.info.run_id}\n",
        lost.err,
    )
    assert outage.left.info.status == "RUNNING"


def test_a_training_whose_server_was_lost_is_finished_when_it_is_back(place, whole, outage):
    resumed = outage.resumed
    assert (resumed.status, resumed.err) == (0, "")
    assert "epoch " not in resumed.out.replace("best epoch ", "")
    run = outage.place.run_of("lost")
    assert run.info.run_id == outage.left.info.run_id
    require_same(outage.place, run, place.folder / "checkpoints" / f"{run.info.run_id}.pt", place, "my training")


def test_a_training_whose_server_comes_back_has_everything_in_the_end(place, whole, outage):
    back = outage.back
    assert (back.status, back.err) == (0, "")
    assert (back.out.count(GONE), back.out.count(BACK)) == (1, 1)
    run = outage.place.run_of("back")
    require_same(outage.place, run, place.folder / "checkpoints" / f"{run.info.run_id}.pt", place, "my training")


# --- cross-validation ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folds(place):
    """A cross-validation that nothing happens to, by a process that begins with nothing imported."""
    process = place.typed(
        f"python {ROOT}/train_cnn.py {shlex.join(FOLDS)} --experiment-name folds --register from-folds"
    )
    out, err = process.communicate(timeout=120)
    return Ended(out, err, process.returncode)


def test_cross_validation_judges_the_recipe_and_trains_on_everything(place, folds):
    assert (folds.status, folds.err) == (0, "")
    assert re.findall(r"^fold (\d): validation accuracy ", folds.out, re.MULTILINE) == ["1", "2", "3"]
    run, nested = place.run_of("folds"), place.runs("folds", "fold")
    accuracies = [fold.data.metrics["best_val_accuracy"] for fold in nested]
    assert [fold.data.tags["fold"] for fold in nested] == ["0", "1", "2"]
    assert {fold.data.tags["mlflow.parentRunId"] for fold in nested} == {run.info.run_id}
    assert {fold.info.status for fold in nested} == {"FINISHED"}
    assert all(place.steps(fold, "val_loss") == [1, 2, 3, 4] for fold in nested)
    metrics = run.data.metrics
    assert metrics["mean_cv_accuracy"] == pytest.approx(sum(accuracies) / 3)
    squares = sum((accuracy - sum(accuracies) / 3) ** 2 for accuracy in accuracies)
    assert metrics["std_cv_accuracy"] == pytest.approx(math.sqrt(squares / 2))
    assert place.history(run, "fold_accuracy") == list(enumerate(accuracies))
    epochs = round(float(np.median([fold.data.metrics["best_epoch"] for fold in nested])))
    assert place.steps(run, "train_loss") == list(range(1, epochs + 1))
    assert "val_loss" not in metrics
    card = place.bundle(run).card
    assert card.metrics["mean_cv_accuracy"].value == metrics["mean_cv_accuracy"]
    assert card.metrics["mean_cv_accuracy"].images == card.data["development"]
    assert f"mean cv accuracy       {metrics['mean_cv_accuracy']:.4f}" in folds.out
    assert f"spread over the folds  {metrics['std_cv_accuracy']:.4f}" in folds.out


def test_a_training_registers_its_model_when_asked_to(place, folds):
    run = place.run_of("folds")
    version = ModelRegistry(place.uri, "from-folds").get(1)
    assert (version.run_id, version.tags["selected_by"]) == (run.info.run_id, "by hand")
    assert folds.out.splitlines()[-2:] == [
        f"v1 of from-folds registered from run {run.info.run_id}",
        "next: python model_registry.py --model-name 'from-folds' promote 1 Production",
    ]


def test_a_name_that_no_model_can_have_is_refused_before_the_training(command_line):
    ended = command_line("--register", "cats/dogs")
    assert (ended.status, ended.err) == (
        2,
        "train_cnn.py: error: --register must be letters, digits, spaces and any of . _ - only, got 'cats/dogs'\n",
    )


def test_cross_validation_stopped_in_a_fold_and_killed_in_the_end_comes_to_the_same(place, folds, forked):
    def started(*words):
        return forked.start("train_cnn.py", *words, folder=place.folder, **place.variables)

    first = started(*FOLDS, "--experiment-name", "folds again", "--register", "gone on with")
    first.wait_for("fold 1: ")
    (run,) = place.runs("folds again")
    while "fold 2" not in open_checkpoint(run.info.run_id, place.folder / "checkpoints").phases:
        first.go_on()
        time.sleep(0.02)
        first.pause()
    refused = started("--resume", run.info.run_id).end()
    reason = f"run {run.info.run_id} is being trained by process {first.pid}; wait for it or stop it"
    assert (refused.status, refused.err) == (2, f"train_cnn.py: error: {reason}\n")
    os.kill(first.pid, signal.SIGTERM)
    first.go_on()
    assert first.end().status == 143
    phases = open_checkpoint(run.info.run_id, place.folder / "checkpoints").phases
    assert list(phases) == ["fold 1", "fold 2"]
    assert len(phases["fold 2"].facts["history"]) < 4
    second = started("--resume", run.info.run_id)
    said = second.wait_for("epoch +1/")
    os.kill(second.pid, signal.SIGKILL)
    assert second.end().status == -signal.SIGKILL
    assert re.findall(r"^fold (\d): ", said, re.MULTILINE) == ["2", "3"]
    last = started("--resume", run.info.run_id).end()
    assert (last.status, last.err) == (0, "")
    assert not re.findall(r"^fold (\d): ", last.out, re.MULTILINE)
    assert ModelRegistry(place.uri, "gone on with").get(1).run_id == run.info.run_id  # as it was begun to
    run, nested = place.run_of("folds again"), place.runs("folds again", "fold")
    require_same(place, run, place.folder / "checkpoints" / f"{run.info.run_id}.pt", place, "folds")
    for fold, other in zip(nested, place.runs("folds", "fold"), strict=True):
        for name in REPEATABLE & set(other.data.metrics):
            assert place.history(fold, name) == place.history(other, name), name


def test_cross_validation_depends_on_recipe_data_and_seed_alone(place):
    with chdir(place.folder):
        data = TrainingData(*load_images(TrainSettings(data="colours"), 16), None, "random")
    hparams, cpu = Hyperparameters(image_size=16, epochs=1, batch_size=16), Device("cpu", torch.float32)
    torch.manual_seed(1)
    first = cross_validate(data, FitConfig(hparams, 7, cpu), 2)
    torch.manual_seed(2)
    second = cross_validate(data, FitConfig(hparams, 7, cpu), 2)
    assert np.array_equal(first.logits, second.logits)
    assert first.metrics == second.metrics
    assert not np.array_equal(first.logits, cross_validate(data, FitConfig(hparams, 8, cpu), 2).logits)
    assert first.logits.shape == (len(data.development), 3)
    assert (first.logits != 0).any(axis=1).all()  # every development image was judged


def test_a_frozen_backbone_sees_each_image_once_for_all_folds_and_the_final_training(store):
    seen = []

    def look(module, inputs):
        if isinstance(module, ResNet):
            seen.append(len(inputs[0]))

    settings = TrainSettings(
        data=str(store.folder / "colours"), model_type="resnet18_backbone", weights="none", image_size=32, folds=2,
        epochs=2, feature_views=3, experiment_name="frozen",
    )  # fmt: skip
    _, divided = load_images(settings, 32)
    hook = nn.modules.module.register_module_forward_pre_hook(look)
    outcome = train(settings)
    hook.remove()
    once = 3 * len(divided.development)
    # Then come the held-out images, and examples of a few images when the program is made.
    assert once + len(divided.held_out) <= sum(seen) < once + len(divided.held_out) + 20
    assert len(outcome.fitted.history) >= 1


# --- several processes --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(place, forked):
    """A training by two processes of torchrun that is stopped by SIGTERM, and two that go on with it."""
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    words = shlex.join([*STORY, "--batch-size", "4", "--epochs", "5", "--experiment-name", "several"])
    line = f"torchrun --nproc-per-node 2 --master-port {world['MASTER_PORT']} {ROOT}/train_cnn.py {words}"
    with place.typed(line) as process:
        assert process.stdout is not None
        said = ""
        while not re.search("^epoch +2/", said, re.MULTILINE):
            added = process.stdout.readline()
            assert added, process.communicate()[1]
            said += added
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    resumed = [
        forked.start(
            "train_cnn.py", "--resume", folder=place.folder, **place.variables, **world, RANK=rank, LOCAL_RANK=rank
        )
        for rank in ("0", "1")
    ]
    return Ended(said + out, err, process.returncode), [script.end() for script in resumed]


def test_two_processes_keep_one_record(place, several):
    stopped, (first, second) = several
    assert stopped.status != 0
    assert [(ended.status, ended.err) for ended in (first, second)] == [(0, ""), (0, "")]
    assert second.out == ""
    run = place.run_of("several")
    torchrun = f"torchrun --nproc-per-node 2 {ROOT}/train_cnn.py"
    assert last_line(stopped.out) == f"stopped; resume with: {torchrun} --resume {run.info.run_id}"
    assert re.findall(r"^epoch +(\d+)/", stopped.out + first.out, re.MULTILINE) == ["1", "2", "3", "4", "5"]
    assert stopped.out.count(", 2 processes)\n") == first.out.count(", 2 processes)\n") == 1
    assert first.out.count("\nnext: ") == 1
    assert run.info.status == "FINISHED"
    assert place.steps(run, "val_accuracy") == [1, 2, 3, 4, 5]
    assert run.data.metrics["best_val_accuracy"] > 0.8
    assert place.bundle(run).card.metrics["accuracy"].value > 0.8
    assert (place.folder / "checkpoints" / f"{run.info.run_id}.pt").is_file()


# --- other data ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "flip", "allow_flip"),
    [("digits", None, False), ("colours", None, True), ("digits", True, True), ("colours", False, False)],
)
def test_flips_are_for_images_that_keep_their_class(place, data, flip, allow_flip):
    with chdir(place.folder):
        images, _ = load_images(TrainSettings(data=data, flip=flip), 16)
    assert images.catalogue.allow_flip is allow_flip


def test_images_are_kept_where_it_is_said_or_nowhere(place, tmp_path):
    colours = str(place.folder / "colours")
    kept, divided = load_images(TrainSettings(data=colours, cache_dir=tmp_path / "kept"), 16)
    assert any((tmp_path / "kept").iterdir())
    fresh, again = load_images(TrainSettings(data=colours, cache_dir=tmp_path / "none", cache_limit=0), 16)
    assert not (tmp_path / "none").exists()
    assert np.array_equal(kept.pixels, fresh.pixels)
    assert np.array_equal(divided.held_out, again.held_out)


def test_a_folder_with_its_own_parts_is_split_as_it_says(store, tmp_path):
    for index, (part, count) in enumerate((("train", 10), ("val", 4), ("test", 5))):
        for label, colour in enumerate(COLOURS):
            (tmp_path / "parted" / part / colour).mkdir(parents=True)
            for number in range(count):
                image = colour_image(colour, 1000 * index + 100 * label + number, 20)
                (tmp_path / "parted" / part / colour / f"{number}.png").write_bytes(image)
    outcome = train(
        TrainSettings(data="parted", epochs=1, image_size=16, experiment_name="parted", model_type="resnet18",
                      weights="none", batch_size=29)
    )  # fmt: skip
    run = store.run_of("parted")
    assert outcome.evaluation.images == 15
    card = store.bundle(run).card
    assert card.metrics["best_val_accuracy"].images == 12
    assert (card.network, card.data["development"], card.data["held_out"]) == ("resnet18", 42, 15)


def test_classes_with_names_of_any_kind_are_trained_and_recorded(store, tmp_path, monkeypatch):
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


def test_rare_classes_are_pointed_out_and_can_be_weighted(store, tmp_path, capsys):
    for index, (colour, count) in enumerate(zip(COLOURS, (40, 10, 10), strict=True)):
        for part, images in (("train", count), ("test", 10)):
            folder = tmp_path / "unequal" / part / colour
            folder.mkdir(parents=True)
            for number in range(images):
                seed = 1000 * index + 100 * (part == "test") + number
                (folder / f"{number}.png").write_bytes(colour_image(colour, seed, 20))
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


# --- what belongs together ----------------------------------------------------------------------


@pytest.fixture
def twins(tmp_path):
    """Photographs of two classes, each beside itself saved again: smaller, and mirrored."""
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
def test_no_photograph_is_on_two_sides(store, twins, how, folds, monkeypatch, capsys):
    """Neither of held out and trained on, nor of validated on and trained on, whether found or said."""
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


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model-type", "resnet8"],
            "--model-type must be one of simple_cnn, resnet18, resnet18_backbone, got resnet8",
        ),
        (["--learning-rate", "5"], "--learning-rate must be at most 1, got 5"),
        (["--folds", "1"], "--folds must be 0 (no cross-validation) or at least 2, got 1"),
        (
            ["--model-type", "resnet18_backbone", "--mixup", "0.2"],
            "--mixup and --cutmix change images, and resnet18_backbone is trained on features that were computed ",
        ),
        (["--data", "mnits"], "the folder mnits does not exist, and no data set has that name; there are: mnist, "),
        (["--data", "./missing"], "the folder ./missing does not exist"),
        (["--data", "one"], "the folder one holds only the class 'cat'; at least two are needed"),
        (["--data", "pairs"], "no class has a second image to validate on; add images or make a val/ folder"),
        (
            ["--data", "{colours}", "--folds", "50"],
            "class '{class}' has {count} images to cross-validate on, fewer than the 50 folds; add images or lower",
        ),
        (
            ["--data", "{colours}", "--group-by", "(red"],
            "--group-by must be a number or a regular expression, got (red (missing ), unterminated subpattern at",
        ),
        (
            ["--data", "{colours}", "--group-by", "0"],
            "--group-by must be at least 1 as a number of folders below the class's, got 0",
        ),
        (["--data", "{colours}", "--group-by", "1"], "--group-by 1 matches none of the "),
        (["--group-by", "1"], "--group-by 1 needs the paths of images, and those of digits are no files"),
        (["--data", "{colours}", "--cache-dir", "file"], "the image cache file cannot be used: "),
        (
            ["--model-type", "resnet18", "--weights", "file", "--data", "{colours}"],
            "--weights file cannot be read: ",
        ),
        (
            ["--model-type", "resnet18", "--weights", "nowhere.pth", "--data", "{colours}"],
            "--weights must be auto, imagenet, none or a file of weights, got nowhere.pth, which does not exist",
        ),
        (
            ["--model-type", "resnet18", "--weights", "imagenet", "--data", "{colours}"],
            "ImageNet weights cannot be downloaded (",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_status_2(words, message, store, command_line, tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "file").write_text("no weights, no folder")
    (tmp_path / "one" / "cat").mkdir(parents=True)
    for number in range(2):
        (tmp_path / "one" / "cat" / f"{number}.png").write_bytes(colour_image("red", number, 20))
    for label, colour in enumerate(("red", "blue")):  # of each class one image is held out, and one is left
        (tmp_path / "pairs" / "train" / colour).mkdir(parents=True)
        (tmp_path / "pairs" / "test" / colour).mkdir(parents=True)
        for number, part in enumerate(("train", "test")):
            image = colour_image(colour, 10 * label + number, 20)
            (tmp_path / "pairs" / part / colour / "0.png").write_bytes(image)
    colours = str(store.folder / "colours")
    experiment = f"refused {tmp_path.name}"
    small = [] if "--data" not in words else ["--image-size", "16", "--epochs", "1", "--experiment-name", experiment]
    ended = command_line(*[word.format(colours=colours) for word in words], *small)
    assert (ended.status, ended.err.count("\n")) == (2, 1 + ended.err.count("Downloading: "))
    assert {run.info.status for run in store.runs(experiment)} <= (set() if "--folds" in words else {"FAILED"})
    images, divided = load_images(TrainSettings(data=colours), 16)
    counts = np.bincount(images.labels[divided.development])
    smallest = {"class": COLOURS[counts.argmin()], "count": counts.min()}
    assert ended.err.splitlines()[-1].startswith(f"train_cnn.py: error: {message.format(**smallest)}")


def test_a_server_that_is_not_there_is_found_out_before_a_image_is_read(command_line, monkeypatch):
    uri = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert command_line("--data", "missing") == Ended(
        "",
        f"train_cnn.py: error: MLflow at {uri} does not answer: connection refused; start it with: mlflow server\n",
        2,
    )


# --- what cannot be gone on with ----------------------------------------------------------------


@pytest.fixture
def interrupted(store, stopped, monkeypatch):
    """The checkpoint of an interrupted training, in the folder where it was begun."""
    monkeypatch.chdir(store.folder)
    return open_checkpoint(str(stopped["sigterm"].checkpoint), Path("checkpoints"))


def require_refused(ended, message):
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == f"train_cnn.py: error: {message}\n"


def test_a_setting_cannot_change_on_the_way(store, interrupted, command_line, monkeypatch):
    rest = f"when run {interrupted.run_id} began and cannot become"
    path = str(store.folder / "sigterm.pt")
    leave = "leave it out, or start a run without --resume"
    require_refused(
        command_line("--resume", path, "--learning-rate", "0.1"), f"--learning-rate was 0.003 {rest} 0.1; {leave}"
    )
    monkeypatch.setenv("TRAIN_EPOCHS", "20")
    require_refused(command_line("--resume", path, "--seed", "3"), f"--epochs was {EPOCHS} {rest} 20; {leave}")


def test_images_cannot_change_on_the_way(store, interrupted, command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "colours", count=41)
    require_refused(
        command_line("--resume", str(store.folder / "sigterm.pt")),
        f"the images of colours have changed since run {interrupted.run_id} was interrupted, so it cannot be"
        " resumed; start a run without --resume",
    )


def test_other_weights_are_refused(store, interrupted, command_line, tmp_path):
    interrupted.metadata["weights"] = "file mine.pth (0123456789ab)"
    other = Checkpoint(tmp_path, interrupted.run_id, interrupted.metadata, interrupted.phases)
    other.save()
    require_refused(
        command_line("--resume", str(other.path)),
        f"run {other.run_id} began with file mine.pth (0123456789ab) weights, and here --weights auto gives random"
        " ones, so it cannot be resumed",
    )


def test_what_is_no_interrupted_training_is_refused(store, interrupted, whole, command_line, tmp_path, monkeypatch):
    run_id = store.run_of("my training").info.run_id
    finished = f"checkpoints/{run_id}.pt"
    require_refused(
        command_line("--resume", finished),
        f"the checkpoint {finished} cannot be read: it is not of an interrupted training",
    )
    Path("notes").write_text("nothing that torch wrote")
    ended = command_line("--resume", "notes")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert ended.err.startswith("train_cnn.py: error: the checkpoint notes cannot be read: ")
    monkeypatch.chdir(tmp_path)
    none = "there is no interrupted training in checkpoints/; --resume has nothing to resume"
    require_refused(command_line("--resume"), none)
    require_refused(command_line("--resume", "last"), none)
    replace(interrupted, folder=tmp_path / "checkpoints").save()
    require_refused(
        command_line("--resume", run_id),
        f"--resume must be last, a run's id or a checkpoint file, got {run_id}; in checkpoints/ there are:"
        f" {interrupted.run_id}",
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"run_id": "f" * 32}, f"cannot reopen run '{'f' * 32}': "),
        ({"settings": {"eras": 3}}, "run {run} was started by another version of train_cnn.py\n"),
        (
            {"weights": "ImageNet"},
            "run {run} began with ImageNet weights, and here --weights auto gives random ones, so it cannot be resumed",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_elsewhere_is_refused(changed, message, interrupted, command_line, tmp_path):
    metadata = {name: changed.get(name, value) for name, value in interrupted.metadata.items()}
    run_id = str(changed.get("run_id", interrupted.run_id))
    foreign = replace(interrupted, folder=tmp_path, run_id=run_id, metadata=metadata)
    foreign.save()
    ended = command_line("--resume", str(foreign.path))
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert ended.err.startswith(f"train_cnn.py: error: {message.format(run=run_id)}")


# --- in a notebook ------------------------------------------------------------------------------


def test_everything_that_is_public_is_there():
    assert all(hasattr(train_cnn, name) for name in train_cnn.__all__)


def test_a_notebook_gets_the_same_errors(store):
    with pytest.raises(DataError, match=r"^the folder \./missing does not exist$"):
        train(TrainSettings(data="./missing"))
