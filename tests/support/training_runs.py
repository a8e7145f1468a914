"""Trainings as people run them: the folder and the store they run in, and how their results are compared."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from support import ROOT
from support.colours import COLOURS, colour_image
from support.tiny_networks import load_weights
from toolkit.bundle.program import load_bundle
from toolkit.registry.bundles import download
from toolkit.tracking.connection import connect

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
STEPS = 42  # of an epoch of the story
SMALL = ("--batch-size", "2", "--learning-rate", "0.003")
STORY = (
    "--data", "colours", "--image-size", "48", *SMALL, "--epochs", str(EPOCHS), "--patience", str(EPOCHS),
    "--seed", "3", "--dropout", "0.25",
)  # fmt: skip
FOLDS = (
    "--data", "colours", "--image-size", "16", "--batch-size", "2", "--learning-rate", "0.0003", "--epochs", "4",
    "--folds", "3", "--seed", "5",
)  # fmt: skip


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
        """The environment variables of a shell."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return {"MLFLOW_TRACKING_URI": self.uri, "PYTHONPATH": str(ROOT), "PATH": path}

    def typed(self, words, **variables):
        """Run a line in a shell."""
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
        """The verified and loaded bundle of a run, its only one."""
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
    """Red, green and blue images, and files to be skipped."""
    for index, colour in enumerate(COLOURS):
        (folder / colour).mkdir(parents=True)
        for number in range(count):
            (folder / colour / f"{number}.png").write_bytes(colour_image(colour, 100 * index + number, size))
    (folder / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "red" / "empty.png").touch()
    (folder / "red" / "notes.txt").write_text("red ones")
    (folder / "stray.png").write_bytes(colour_image("red", 999, size))
    shutil.copy(folder / "green" / "0.png", folder / "green" / "copy.png")
    (folder / "blue" / "1.png").rename(folder / "blue" / "1.jpg")
    return folder


def last_line(text):
    return text.rstrip().splitlines()[-1]


def require_same(place, run, weights, of, whole):
    """A run came to the same result as an uninterrupted one, and has everything once."""
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
