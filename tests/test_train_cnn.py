"""Training as people run it: what a run records, what is logged, how it is interrupted, what is refused."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import toolkit.settings
import train_cnn
from model_registry import ModelRegistry
from support import COLOURS, ROOT, colour_picture, colour_pixels, free_port
from toolkit.bundle import Bundle, load_bundle
from toolkit.errors import DataError
from toolkit.tracking import MlflowClient, code_version, connect, mlflow
from toolkit.training.checkpoints import load_checkpoint
from toolkit.training.loop import Device
from toolkit.training.networks import SimpleCNN
from train_cnn import Data, Recipe, TrainSettings, cross_validate, load_pictures, main, report, train

EACH_EPOCH = {
    "train_loss", "val_loss", "train_accuracy", "val_accuracy", "learning_rate", "batch_time_ms", "batch_time_ms_p95",
    "epoch_duration_s", "images_per_s", "gpu_memory_mb", "cpu_percent", "ram_mb",
}  # fmt: skip
AT_THE_END = {
    "precision_weighted", "recall_weighted", "f1_weighted", "training_time_s", "best_val_accuracy", "best_epoch",
    "held_out_accuracy", "calibration_error", "temperature",
}  # fmt: skip
SMALL = ("--image-size", "16", "--batch-size", "8", "--learning-rate", "0.003")


@dataclass(frozen=True)
class Place:
    """A folder with pictures and an MLflow store, and the scripts that were run in it."""

    folder: Path
    uri: str

    @property
    def client(self) -> MlflowClient:
        return connect(self.uri)

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(ROOT / words[0]), *words[1:]],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": self.uri, **variables},
        )

    def run_of(self, experiment: str, role: str = "final") -> mlflow.entities.Run:
        found = self.client.get_experiment_by_name(experiment)
        (run,) = self.client.search_runs([found.experiment_id], f"tags.role = '{role}'")
        return run

    def artifact(self, run: mlflow.entities.Run, name: str) -> Path:
        return Path(self.client.download_artifacts(run.info.run_id, name, str(self.folder)))

    def bundle(self, run: mlflow.entities.Run) -> Bundle:
        """The verified and loaded bundle of a run."""
        model = self.client.get_logged_model(run.outputs.model_outputs[0].model_id)
        assert model.status == "READY"
        return load_bundle(Path(model.artifact_location), run.data.tags["bundle_digest"])

    def steps(self, run: mlflow.entities.Run, metric: str) -> list[int]:
        return [point.step for point in self.client.get_metric_history(run.info.run_id, metric)]


def fill(folder: Path, count: int = 24, size: int = 20) -> Path:
    """Red, green and blue pictures; one is broken, one is there twice."""
    for index, colour in enumerate(COLOURS):
        (folder / colour).mkdir(parents=True)
        for number in range(count):
            (folder / colour / f"{number}.png").write_bytes(colour_picture(colour, 100 * index + number, size))
    (folder / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    shutil.copy(folder / "green" / "0.png", folder / "green" / "copy.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("training")
    uri = f"sqlite:///{folder}/mlflow.db"
    with chdir(folder):
        connect(uri)
    fill(folder / "colours")
    return Place(folder, uri)


@dataclass(frozen=True)
class Ended:
    out: str
    err: str
    status: int


def wait_for(process: subprocess.Popen[str], pattern: str) -> str:
    """Everything a script printed up to a line that matches."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if re.match(pattern, line):
            return said
    raise AssertionError(f"no line matched {pattern!r}: {said}{process.communicate()[1]}")


@pytest.fixture(scope="module")
def scripts(place: Place) -> dict[str, Ended]:
    """A training that ends by itself, one that is stopped by Ctrl-C and one by SIGTERM, side by side."""
    endless = ("--epochs", "9999", "--patience", "9999", "--data", "colours", *SMALL)
    started = {
        "whole": place.start(
            "train_cnn.py", "--data", "colours", *SMALL, "--epochs", "4", "--patience", "4", "--seed", "3",
            "--experiment-name", "my training", TRAIN_DROPOUT="0.25",
        ),
        "ctrl-c": place.start("train_cnn.py", *endless, "--experiment-name", "ctrl-c"),
        "sigterm": place.start("train_cnn.py", *endless, "--experiment-name", "sigterm"),
    }  # fmt: skip
    ended = {}
    for name, sent in (("ctrl-c", signal.SIGINT), ("sigterm", signal.SIGTERM), ("whole", None)):
        process, said = started[name], ""
        if sent is not None:
            said = wait_for(process, r"epoch +2/")
            process.send_signal(sent)
        out, err = process.communicate(timeout=120)
        ended[name] = Ended(said + out, err, process.returncode)
    return ended


@pytest.fixture
def store(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The same store for trainings inside this process."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    return place


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[object]:
    """A function that runs the script's ``main`` as the guard at its end does, in this process."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["train_cnn.py", *words])
        with pytest.raises(SystemExit) as caught:
            toolkit.settings.run_script(main)
        out, err = capsys.readouterr()
        return Ended(out, err, caught.value.code)

    yield run
    signal.signal(signal.SIGTERM, before)


# --- a training that ends by itself -------------------------------------------------------------


def test_a_script_prints_its_epochs_a_table_and_the_next_command(place: Place, scripts: dict[str, Ended]) -> None:
    whole = scripts["whole"]
    assert (whole.status, whole.err) == (0, "")
    assert "2 files were skipped, see the run's skipped_files.json; the first: " in whole.out
    assert re.search(
        r"^training simple_cnn on \d+ pictures of 3 classes, validating on \d+, \d+ held out", whole.out, re.MULTILINE
    )
    assert len(re.findall(r"^epoch +\d/4  train loss \d\.\d{4}  train accuracy ", whole.out, re.MULTILINE)) == 4
    run = place.run_of("my training")
    for name, value in {
        "best val accuracy": f"{run.data.metrics['best_val_accuracy']:.4f}",
        "held-out accuracy": f"{run.data.metrics['held_out_accuracy']:.4f}  (",
        "best epoch": f"{run.data.metrics['best_epoch']:.0f} of 4",
        "MLflow run": run.info.run_id,
    }.items():
        assert f"\n  {name:<22} {value}" in whole.out
    last = whole.out.rstrip().splitlines()[-1]
    assert last == "next: python model_registry.py register --experiment-name 'my training' --metric best_val_accuracy"


def test_the_next_command_works(place: Place, scripts: dict[str, Ended]) -> None:
    _, _, _, *words = shlex.split(scripts["whole"].out.rstrip().splitlines()[-1])
    assert words[0] == "register"
    options = dict(zip(words[1::2], words[2::2], strict=True))
    registry = ModelRegistry(place.uri, "from-training")
    version = registry.register_best_model(options["--experiment-name"], options["--metric"])
    assert registry.get(version).run_id == place.run_of("my training").info.run_id
    assert registry.load(version).bundle.card.classes == COLOURS


def test_a_run_records_every_metric_with_its_steps(place: Place, scripts: dict[str, Ended]) -> None:
    run = place.run_of("my training")
    assert run.info.status == "FINISHED"
    assert set(run.data.metrics) >= EACH_EPOCH | AT_THE_END
    for name in EACH_EPOCH - {"images_per_s", "gpu_memory_mb"}:
        assert place.steps(run, name) == [1, 2, 3, 4], name
    for name in ("images_per_s", "gpu_memory_mb"):  # and once more for the whole training
        assert sorted(place.steps(run, name)) == [0, 1, 2, 3, 4], name
    for name in AT_THE_END:
        assert place.steps(run, name) == [0], name
    metrics = run.data.metrics
    assert all(math.isfinite(value) for value in metrics.values())
    history = place.client.get_metric_history(run.info.run_id, "val_accuracy")
    assert metrics["best_val_accuracy"] == max(point.value for point in history)
    assert history[int(metrics["best_epoch"]) - 1].value == metrics["best_val_accuracy"]
    rates = [point.value for point in place.client.get_metric_history(run.info.run_id, "learning_rate")]
    assert max(rates) <= 0.003
    assert rates[-1] < rates[1]


def test_a_run_records_its_settings_and_where_it_comes_from(place: Place, scripts: dict[str, Ended]) -> None:
    run = place.run_of("my training")
    assert set(run.data.params) == set(TrainSettings.model_fields)
    expected = {
        "data": "colours", "image_size": "16", "batch_size": "8", "epochs": "4", "seed": "3", "folds": "0",
        "learning_rate": "0.003", "dropout": "0.25", "optimizer": "adam", "experiment_name": "my training",
    }  # fmt: skip
    assert {name: run.data.params[name] for name in expected} == expected
    tags = run.data.tags
    with chdir(place.folder):
        pictures, _ = load_pictures(TrainSettings(data="colours"), 16)
    assert tags["data_fingerprint"] == pictures.catalogue.fingerprint
    assert (tags["role"], tags["seed"], tags["data"], tags["skipped_files"]) == ("final", "3", "colours", "2")
    assert tags["weights"] == "random"
    assert tags["code_version"] == tags["mlflow.source.git.commit"] == code_version()
    assert tags["mlflow.runName"] == "simple_cnn-colours"


def test_a_run_keeps_tables_and_pictures(place: Place, scripts: dict[str, Ended]) -> None:
    run = place.run_of("my training")
    skipped = json.loads(place.artifact(run, "skipped_files.json").read_text())
    assert {Path(item["path"]).name: item["reason"] for item in skipped} == {
        "copy.png": "same content as colours/green/0.png",
        "broken.png": skipped[-1]["reason"],
    }
    assert "broken" in skipped[-1]["reason"]
    confusion = json.loads(place.artifact(run, "confusion_matrix.json").read_text())
    assert confusion["classes"] == list(COLOURS)
    matrix = np.array(confusion["matrix"])
    rows = json.loads(place.artifact(run, "per_class.json").read_text())
    assert [(row["class"], row["pictures"]) for row in rows] == list(zip(COLOURS, matrix.sum(axis=1), strict=True))
    assert [row["recall"] for row in rows] == pytest.approx(matrix.diagonal() / matrix.sum(axis=1))
    assert matrix.trace() / matrix.sum() == pytest.approx(run.data.metrics["held_out_accuracy"])
    assert run.data.metrics["recall_weighted"] == pytest.approx(run.data.metrics["held_out_accuracy"])
    for name in ("confusion_matrix.png", "learning_curves.png"):
        with Image.open(place.artifact(run, name)) as picture:
            assert min(picture.size) > 300


def test_the_bundle_is_measured_on_pictures_that_did_not_train_it(place: Place, scripts: dict[str, Ended]) -> None:
    run = place.run_of("my training")
    bundle, metrics = place.bundle(run), run.data.metrics
    card = bundle.card
    assert (card.classes, card.image_size, card.network) == (COLOURS, 16, "simple_cnn")
    assert card.settings["learning_rate"] == 0.003
    assert card.metrics["accuracy"].value == metrics["held_out_accuracy"]
    assert card.metrics["best_val_accuracy"].value == metrics["best_val_accuracy"]
    assert card.temperature == pytest.approx(metrics["temperature"])
    with chdir(place.folder):
        pictures, divided = load_pictures(TrainSettings(data="colours"), 16)
    assert card.data["fingerprint"] == pictures.catalogue.fingerprint
    assert bundle.baseline.hashes.tolist() == pictures.catalogue.hashes[divided.held_out].tolist()
    assert card.metrics["accuracy"].pictures == bundle.baseline.size == len(divided.held_out)
    answer = bundle.predict(pictures.pixels[divided.held_out])
    assert answer == pytest.approx(bundle.baseline.probabilities.astype(np.float32), abs=2e-3)
    assert bundle.baseline.accuracy == metrics["held_out_accuracy"]
    assert set(bundle.baseline.statistics) == {"brightness", "contrast", "sharpness", "width", "height", "aspect"}
    generator = np.random.default_rng(5)
    unseen = np.stack([colour_pixels(colour, 16, generator) for colour in COLOURS * 10])
    assert (bundle.predict(unseen).argmax(axis=1) == np.arange(30) % 3).mean() > 0.8


def test_the_checkpoint_is_the_best_epoch(place: Place, scripts: dict[str, Ended]) -> None:
    run = place.run_of("my training")
    weights, description = load_checkpoint(place.folder / "checkpoints" / f"{run.info.run_id}.pt")
    assert description["epoch"] == run.data.metrics["best_epoch"]
    assert description["classes"] == list(COLOURS)
    recipe = Recipe(**description["recipe"])
    network = SimpleCNN(3, recipe.dropout)
    network.load_state_dict(weights)
    batch = np.stack([colour_pixels(colour, 16, np.random.default_rng(9)) for colour in COLOURS])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        scaled = (torch.from_numpy(batch) / 255 - mean) / std
        logits = network.eval()(scaled.permute(0, 3, 1, 2))
        expected = torch.softmax(logits / run.data.metrics["temperature"], dim=1).numpy()
    assert place.bundle(run).predict(batch) == pytest.approx(expected, abs=1e-4)


# --- a training that is stopped -----------------------------------------------------------------


@pytest.mark.parametrize(("name", "status"), [("ctrl-c", 130), ("sigterm", 143)])
def test_a_stopped_training_keeps_what_it_has(name: str, status: int, place: Place, scripts: dict[str, Ended]) -> None:
    stopped = scripts[name]
    assert stopped.status == status
    assert "Traceback" not in stopped.err
    assert stopped.err == ("train_cnn.py: interrupted\n" if name == "ctrl-c" else "")
    run = place.run_of(name)
    assert run.info.status == "KILLED"
    path = f"checkpoints/{run.info.run_id}.pt"
    assert stopped.out.rstrip().splitlines()[-1] == f"stopped; the best epoch so far is in {path}"
    _, description = load_checkpoint(place.folder / path)
    assert description["epoch"] >= 1
    done = [int(number) for number in re.findall(r"^epoch +(\d+)/", stopped.out, re.MULTILINE)]
    assert place.steps(run, "val_accuracy")[: len(done)] == done
    assert not run.outputs.model_outputs


# --- cross-validation ---------------------------------------------------------------------------


def test_cross_validation_judges_the_recipe_and_trains_on_everything(
    store: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = TrainSettings(
        data=str(store.folder / "colours"), folds=3, epochs=3, image_size=16, batch_size=8, learning_rate=0.003,
        experiment_name="folds", seed=5,
    )  # fmt: skip
    outcome = train(settings)
    assert len(re.findall(r"^fold \d: validation accuracy ", capsys.readouterr().out, re.MULTILINE)) == 3
    run = store.run_of("folds")
    experiment = run.info.experiment_id
    folds = store.client.search_runs([experiment], "tags.role = 'fold'", order_by=["tags.fold"])
    accuracies = [fold.data.metrics["best_val_accuracy"] for fold in folds]
    assert [fold.data.tags["fold"] for fold in folds] == ["0", "1", "2"]
    assert {fold.data.tags["mlflow.parentRunId"] for fold in folds} == {run.info.run_id}
    assert {fold.info.status for fold in folds} == {"FINISHED"}
    assert all(store.steps(fold, "val_loss") == [1, 2, 3] for fold in folds)
    metrics = run.data.metrics
    assert metrics["mean_cv_accuracy"] == pytest.approx(sum(accuracies) / 3)
    squares = sum((accuracy - sum(accuracies) / 3) ** 2 for accuracy in accuracies)
    assert metrics["std_cv_accuracy"] == pytest.approx(math.sqrt(squares / 2))
    history = store.client.get_metric_history(run.info.run_id, "fold_accuracy")
    assert [(point.step, point.value) for point in history] == list(enumerate(accuracies))
    epochs = round(float(np.median([fold.data.metrics["best_epoch"] for fold in folds])))
    assert len(outcome.fitted.history) == epochs
    assert store.steps(run, "train_loss") == list(range(1, epochs + 1))
    assert "val_loss" not in metrics
    card = store.bundle(run).card
    assert card.metrics["mean_cv_accuracy"].value == metrics["mean_cv_accuracy"]
    assert card.metrics["mean_cv_accuracy"].pictures == card.data["development"]
    said = report(outcome, settings)
    assert f"mean cv accuracy       {metrics['mean_cv_accuracy']:.4f}" in said
    assert f"spread over the folds  {metrics['std_cv_accuracy']:.4f}" in said
    assert said.endswith("register --experiment-name folds --metric mean_cv_accuracy")


def test_cross_validation_depends_on_recipe_data_and_seed_alone(place: Place) -> None:
    with chdir(place.folder):
        data = Data(*load_pictures(TrainSettings(data="colours"), 16), None, "random")
    recipe, cpu = Recipe(image_size=16, epochs=1, batch_size=16), Device("cpu", torch.float32)
    torch.manual_seed(1)
    first = cross_validate(recipe, data, 2, 7, cpu)
    torch.manual_seed(2)
    second = cross_validate(recipe, data, 2, 7, cpu)
    assert np.array_equal(first.logits, second.logits)
    assert first.metrics == second.metrics
    assert not np.array_equal(first.logits, cross_validate(recipe, data, 2, 8, cpu).logits)
    assert first.logits.shape == (len(data.development), 3)
    assert (first.logits != 0).any(axis=1).all()  # every development picture was judged


# --- other data ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "mirror", "mirrored"),
    [("digits", None, False), ("colours", None, True), ("digits", True, True), ("colours", False, False)],
)
def test_flips_are_for_pictures_that_keep_their_class(
    place: Place, data: str, mirror: bool | None, mirrored: bool
) -> None:
    with chdir(place.folder):
        pictures, _ = load_pictures(TrainSettings(data=data, mirror=mirror), 16)
    assert pictures.catalogue.mirrored is mirrored


def test_a_folder_with_its_own_parts_is_split_as_it_says(store: Place, tmp_path: Path) -> None:
    for index, (part, count) in enumerate((("train", 10), ("val", 4), ("test", 5))):
        for label, colour in enumerate(COLOURS):
            (tmp_path / "parted" / part / colour).mkdir(parents=True)
            for number in range(count):
                picture = colour_picture(colour, 1000 * index + 100 * label + number, 20)
                (tmp_path / "parted" / part / colour / f"{number}.png").write_bytes(picture)
    outcome = train(
        TrainSettings(data="parted", epochs=1, image_size=16, experiment_name="parted", model_type="resnet18",
                      weights="none", batch_size=29)
    )  # fmt: skip
    run = store.run_of("parted")
    assert outcome.evaluation.pictures == 15
    card = store.bundle(run).card
    assert card.metrics["best_val_accuracy"].pictures == 12
    assert (card.network, card.data["development"], card.data["held_out"]) == ("resnet18", 42, 15)


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
        (["--data", "missing"], "the folder missing does not exist"),
        (["--data", "one"], "the folder one holds only the class 'cat'; at least two are needed"),
        (["--data", "pairs"], "no class has a second picture to validate on; add pictures or make a val/ folder"),
        (
            ["--data", "{colours}", "--folds", "30"],
            "class '{class}' has {count} pictures to cross-validate on, fewer than the 30 folds; add pictures or lower",
        ),
        (
            ["--data", "{colours}", "--checkpoint-dir", "file"],
            "the checkpoint file/{run}.pt cannot be written: [Errno 17] File exists: 'file'",
        ),
        (
            ["--model-type", "resnet18", "--weights", "file", "--data", "{colours}"],
            "--weights file cannot be read: ",
        ),
        (
            ["--model-type", "resnet18", "--weights", "nowhere.pth", "--data", "{colours}"],
            "--weights must be auto, imagenet, none or a .pth file, got nowhere.pth, which does not exist",
        ),
        (
            ["--model-type", "resnet18", "--weights", "imagenet", "--data", "{colours}"],
            "ImageNet weights cannot be downloaded (",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_status_2(
    words: list[str], message: str, store: Place, command_line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "file").write_text("no weights, no folder")
    (tmp_path / "one" / "cat").mkdir(parents=True)
    for number in range(2):
        (tmp_path / "one" / "cat" / f"{number}.png").write_bytes(colour_picture("red", number, 20))
    for label, colour in enumerate(("red", "blue")):  # of each class one picture is held out, and one is left
        (tmp_path / "pairs" / "train" / colour).mkdir(parents=True)
        (tmp_path / "pairs" / "test" / colour).mkdir(parents=True)
        for number, part in enumerate(("train", "test")):
            picture = colour_picture(colour, 10 * label + number, 20)
            (tmp_path / "pairs" / part / colour / "0.png").write_bytes(picture)
    colours = str(store.folder / "colours")
    experiment = f"refused {tmp_path.name}"
    small = [] if "--data" not in words else ["--image-size", "16", "--epochs", "1", "--experiment-name", experiment]
    ended = command_line(*[word.format(colours=colours) for word in words], *small)
    assert (ended.status, ended.err.count("\n")) == (2, 1 + ended.err.count("Downloading: "))
    runs = []
    if (found := store.client.get_experiment_by_name(experiment)) is not None:
        runs = store.client.search_runs([found.experiment_id])
        assert [run.info.status for run in runs] == ["FAILED"]
    pictures, divided = load_pictures(TrainSettings(data=colours), 16)
    counts = np.bincount(pictures.labels[divided.development])
    smallest = {"class": COLOURS[counts.argmin()], "count": counts.min()}
    expected = message.format(run=runs[0].info.run_id if runs else "", **smallest)
    assert ended.err.splitlines()[-1].startswith(f"train_cnn.py: error: {expected}")


def test_a_server_that_is_not_there_is_found_out_before_a_picture_is_read(
    command_line, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert command_line("--data", "missing") == Ended(
        "",
        f"train_cnn.py: error: MLflow at {uri} does not answer: connection refused; start it with: mlflow server\n",
        2,
    )


def test_everything_that_is_public_is_there() -> None:
    assert all(hasattr(train_cnn, name) for name in train_cnn.__all__)


def test_a_notebook_gets_the_same_errors(store: Place) -> None:
    with pytest.raises(DataError, match=r"^the folder missing does not exist$"):
        train(TrainSettings(data="missing"))
