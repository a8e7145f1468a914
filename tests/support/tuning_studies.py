"""Searches as people run them: the folder and the store they run in, tiny spaces, and what they leave."""

import json
from dataclasses import dataclass
from pathlib import Path

from hyperopt_tuning import TuneSettings
from support import ROOT
from toolkit.tracking.connection import connect
from toolkit.tuning.space import QUICK, Choice, Integers
from toolkit.tuning.study import StudyConfig

SPACE = """
image_size: 16
model_type: simple_cnn
batch_size: [4, 8]
epochs: {low: 2, high: 6}
learning_rate: {low: 1e-5, high: 1e-2, log: true}
"""
QUICKEST = {**QUICK, "image_size": Choice((16,)), "epochs": Integers(1, 2), "batch_size": Choice((8, 16))}
SEARCH = ("--data", "colours", "--space", "space.yaml", "--folds", "3", "--seed", "4", "--max-trials", "8")
MEASURED = {"seconds", "epoch_duration_s", "batch_time_ms", "batch_time_ms_p95", "images_per_s"}


@dataclass(frozen=True)
class Workspace:
    """A folder with images and an MLflow store."""

    folder: Path
    uri: str

    @property
    def client(self):
        return connect(self.uri)

    @property
    def colours(self):
        return str(self.folder / "colours")

    def runs(self, experiment, role):
        """Runs of a role, those of trials in their order."""
        found = self.client.get_experiment_by_name(experiment)
        runs = self.client.search_runs([found.experiment_id], f"tags.role = '{role}'") if found else []
        return sorted(runs, key=lambda run: (int(run.data.tags.get("trial", 0)), run.info.run_name))

    def json(self, run, name):
        return json.loads(Path(self.client.download_artifacts(run.info.run_id, name, str(self.folder))).read_text())

    def start(self, forked, *words, experiment):
        variables = {"MLFLOW_TRACKING_URI": self.uri, "PYTHONPATH": str(ROOT)}
        words = (*words, "--experiment-name", experiment, "--study-dir", experiment)
        return forked.start("hyperopt_tuning.py", *words, folder=self.folder, **variables)

    def entries(self, experiment):
        """The entries of a study's journal, without durations."""
        (journal,) = (self.folder / experiment).glob("*/journal.jsonl")
        about, *entries = [json.loads(line) for line in journal.read_text().splitlines()]
        assert StudyConfig.from_json(about["about"]).data_identity["data"] == "colours"
        return [timeless(entry) for entry in entries if "run" not in entry]


def timeless(value):
    if isinstance(value, dict):
        return {name: timeless(item) for name, item in value.items() if name not in MEASURED}
    return [timeless(item) for item in value] if isinstance(value, list | tuple) else value


def settings(place, experiment, **more):
    common = {"data": place.colours, "preset": "quick", "folds": 2, "max_trials": 2, "experiment_name": experiment}
    return TuneSettings(**{**common, **more})
