"""A search as people run it: what is logged at which level, what a failing trial does, how it ends early."""

import json
import os
import re
import shlex
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
from torchvision.models import resnet18

import hyperopt_tuning
from hyperopt_tuning import StudyOutcome, TuneSettings, report, tune
from model_registry import ModelRegistry
from support import COLOURS, ROOT, colour_picture
from toolkit.bundle import load_bundle
from toolkit.errors import DataError, TrainingError
from toolkit.tracking import MlflowClient, connect, mlflow
from toolkit.tuning.space import QUICK, Choice, Integers, Space
from train_cnn import Recipe

QUICKEST: Space = {**QUICK, "image_size": Choice((16,)), "epochs": Integers(1, 2), "batch_size": Choice((8, 16))}
BROKEN: Space = {**QUICKEST, "image_size": Choice((32,)), "model_type": Choice(("resnet18_backbone",))}


@dataclass(frozen=True)
class Place:
    """A folder with pictures and an MLflow store."""

    folder: Path
    uri: str

    @property
    def client(self) -> MlflowClient:
        return connect(self.uri)

    @property
    def colours(self) -> str:
        return str(self.folder / "colours")

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "hyperopt_tuning.py"), "--data", "colours", *words],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": self.uri},
        )

    def runs(self, experiment: str, role: str) -> list[mlflow.entities.Run]:
        """Runs of a role, in the order of their names."""
        found = self.client.get_experiment_by_name(experiment)
        runs = self.client.search_runs([found.experiment_id], f"tags.role = '{role}'")
        return sorted(runs, key=lambda run: (run.data.tags.get("mlflow.parentRunId", ""), run.info.run_name))

    def json(self, run: mlflow.entities.Run, name: str) -> object:
        return json.loads(Path(self.client.download_artifacts(run.info.run_id, name, str(self.folder))).read_text())


@dataclass(frozen=True)
class Ended:
    out: str
    err: str
    status: int


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("tuning")
    for index, colour in enumerate(COLOURS):
        (folder / "colours" / colour).mkdir(parents=True)
        for number in range(14):
            picture = colour_picture(colour, 100 * index + number, 20)
            (folder / "colours" / colour / f"{number}.png").write_bytes(picture)
    uri = f"sqlite:///{folder}/mlflow.db"
    with chdir(folder):
        connect(uri)
    return Place(folder, uri)


@pytest.fixture(scope="module")
def scripts(place: Place) -> dict[str, Ended]:
    """A search that ends by itself, and one that is stopped by Ctrl-C in its second trial, side by side."""
    common = ("--preset", "quick", "--folds", "2", "--seed", "4")
    whole = place.start(*common, "--max-evals", "2")
    stopped = place.start(*common, "--max-evals", "999", "--experiment-name", "ctrl-c")
    assert stopped.stdout is not None
    said = ""
    while not re.search(r"^trial +1/999 ", said, re.MULTILINE):
        line = stopped.stdout.readline()
        assert line, stopped.communicate()[1]
        said += line
    stopped.send_signal(signal.SIGINT)
    out, err = stopped.communicate(timeout=120)
    ended = {"ctrl-c": Ended(said + out, err, stopped.returncode)}
    out, err = whole.communicate(timeout=120)
    return {**ended, "whole": Ended(out, err, whole.returncode)}


@pytest.fixture
def quickest(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The same store, and a space of tiny trainings behind ``--preset quick``."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    monkeypatch.setitem(hyperopt_tuning.PRESETS, "quick", QUICKEST)
    threads = torch.get_num_threads()
    yield place
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def hopeless(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A weights file that fits and whose numbers are none: every training that starts from it fails."""
    path = tmp_path_factory.mktemp("weights") / "nan.pth"
    state = resnet18(weights=None).state_dict()
    state["bn1.weight"].fill_(float("nan"))
    torch.save(state, path)
    return str(path)


def settings(place: Place, experiment: str, **more: object) -> TuneSettings:
    common = {"data": place.colours, "preset": "quick", "folds": 2, "max_evals": 2, "experiment_name": experiment}
    return TuneSettings(**{**common, **more})


# --- a search that ends by itself ---------------------------------------------------------------


def test_a_script_prints_its_trials_a_table_and_the_next_command(place: Place, scripts: dict[str, Ended]) -> None:
    whole = scripts["whole"]
    assert (whole.status, whole.err) == (0, "")
    assert "searching the quick space: 2 trials of 2 folds each\n" in whole.out
    (study,) = place.runs("hyperopt_tuning", "study")
    trials = place.json(study, "trials.json")
    lines = re.findall(r"^trial +(\d)/2  mean accuracy (\d\.\d{4}) \(spread (\d\.\d{4})\)", whole.out, re.MULTILINE)
    assert lines == [
        (str(trial["number"] + 1), f"{trial['mean_accuracy']:.4f}", f"{trial['std_accuracy']:.4f}") for trial in trials
    ]
    assert re.search(r"^trial +mean +spread +seconds +network +size +optimizer", whole.out, re.MULTILINE)
    assert f"MLflow run: {study.info.run_id}\n" in whole.out
    assert whole.out.endswith(
        "next: python model_registry.py register --experiment-name hyperopt_tuning --metric mean_cv_accuracy\n"
    )


def test_the_next_command_works(place: Place, scripts: dict[str, Ended]) -> None:
    (study,) = place.runs("hyperopt_tuning", "study")
    registry = ModelRegistry(place.uri, "from-tuning")
    version = registry.register_best_model("hyperopt_tuning", "mean_cv_accuracy")
    assert registry.get(version).run_id == study.info.run_id
    assert registry.load(version).bundle.card.classes == COLOURS


def test_folds_are_nested_in_trials_and_trials_in_the_study(place: Place, scripts: dict[str, Ended]) -> None:
    (study,) = place.runs("hyperopt_tuning", "study")
    trials, folds = place.runs("hyperopt_tuning", "trial"), place.runs("hyperopt_tuning", "fold")
    assert {run.info.status for run in (study, *trials, *folds)} == {"FINISHED"}
    assert (len(trials), len(folds)) == (2, 4)
    assert {trial.data.tags["mlflow.parentRunId"] for trial in trials} == {study.info.run_id}
    fingerprint = study.data.tags["data_fingerprint"]
    assert {run.data.tags["data_fingerprint"] for run in (*trials, *folds)} == {fingerprint}
    for trial in trials:
        own = [fold for fold in folds if fold.data.tags["mlflow.parentRunId"] == trial.info.run_id]
        accuracies = [fold.data.metrics["best_val_accuracy"] for fold in own]
        assert [fold.data.tags["fold"] for fold in own] == ["0", "1"]
        metrics = trial.data.metrics
        assert metrics["mean_cv_accuracy"] == pytest.approx(np.mean(accuracies))
        assert metrics["std_cv_accuracy"] == pytest.approx(np.std(accuracies, ddof=1))
        history = place.client.get_metric_history(trial.info.run_id, "fold_accuracy")
        assert [(point.step, point.value) for point in history] == list(enumerate(accuracies))
        assert set(trial.data.params) == set(Recipe.model_fields)
        assert trial.data.params == own[0].data.params


def test_the_study_holds_the_best_trial_and_its_model(place: Place, scripts: dict[str, Ended]) -> None:
    (study,) = place.runs("hyperopt_tuning", "study")
    trials = place.runs("hyperopt_tuning", "trial")
    best = max(trials, key=lambda trial: trial.data.metrics["mean_cv_accuracy"])
    metrics, params = study.data.metrics, study.data.params
    assert metrics["mean_cv_accuracy"] == best.data.metrics["mean_cv_accuracy"]
    assert metrics["std_cv_accuracy"] == best.data.metrics["std_cv_accuracy"]
    assert (metrics["trials"], metrics["failed_trials"]) == (2, 0)
    assert params["best_trial"] == best.data.tags["trial"]
    for name in set(Recipe.model_fields):
        assert params[name] == best.data.params[name]
    assert (params["preset"], params["folds"], params["seed"]) == ("quick", "2", "4")
    assert {"f1_weighted", "held_out_accuracy", "training_time_s", "ram_mb"} <= set(metrics)
    model = place.client.get_logged_model(study.outputs.model_outputs[0].model_id)
    bundle = load_bundle(Path(model.artifact_location), study.data.tags["bundle_digest"])
    assert bundle.card.metrics["mean_cv_accuracy"].value == metrics["mean_cv_accuracy"]
    assert bundle.card.settings["learning_rate"] == pytest.approx(float(params["learning_rate"]))
    assert set(place.json(study, "search_space.json")) == set(QUICK)
    with Image.open(place.client.download_artifacts(study.info.run_id, "study_history.png")) as picture:
        assert min(picture.size) > 300
    assert not any(trial.outputs.model_outputs for trial in trials)


# --- failing trials -----------------------------------------------------------------------------


def test_a_failing_trial_is_recorded_and_the_study_goes_on(
    quickest: Place, hopeless: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = {**BROKEN, "model_type": Choice(("simple_cnn", "resnet18_backbone"))}
    monkeypatch.setitem(hyperopt_tuning.PRESETS, "quick", both)
    chosen = settings(quickest, "failing", weights=hopeless, max_evals=5)
    outcome: StudyOutcome = tune(chosen)
    study = outcome.study
    states = {trial.settings["model_type"]: trial.state for trial in study.trials}
    assert states == {"simple_cnn": "complete", "resnet18_backbone": "failed"}
    assert len(study.trials) == 5
    failed = [trial for trial in study.trials if trial.state == "failed"]
    assert study.best is not None
    assert study.best.settings["model_type"] == "simple_cnn"
    assert {trial.reason[:31] for trial in failed} == {"the loss became nan in epoch 1;"}
    (run,) = quickest.runs("failing", "study")
    assert (run.info.status, run.data.metrics["failed_trials"]) == ("FINISHED", len(failed))
    nested = quickest.runs("failing", "trial")
    assert sorted(trial.info.status for trial in nested) == ["FAILED"] * len(failed) + ["FINISHED"] * (5 - len(failed))
    for trial in nested:
        assert trial.data.tags.get("failure") == next(
            other.reason or None for other in study.trials if other.number == int(trial.data.tags["trial"])
        )
    said = capsys.readouterr().out
    assert len(re.findall(r"^trial +\d/5  failed after \d+ s: the loss became nan", said, re.MULTILINE)) == len(failed)
    text = report(outcome, chosen)
    assert "resnet18_backbone" not in text
    assert "best settings: " in text


def test_a_study_of_failures_is_one_sentence(
    quickest: Place, hopeless: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(hyperopt_tuning.PRESETS, "quick", BROKEN)
    with pytest.raises(TrainingError, match=r"^all 2 trials failed; the first: the loss became nan in epoch 1; try a "):
        tune(settings(quickest, "hopeless", weights=hopeless))
    (study,) = quickest.runs("hopeless", "study")
    assert study.info.status == "FAILED"
    assert study.data.tags["failure"].startswith("all 2 trials failed; the first: ")
    assert [trial["state"] for trial in quickest.json(study, "trials.json")] == ["failed", "failed"]
    assert not study.outputs.model_outputs


def test_data_that_cannot_be_folded_ends_the_study_at_once(quickest: Place) -> None:
    with pytest.raises(DataError, match=r"^class '\w+' has \d+ pictures to cross-validate on, fewer than the 14 folds"):
        tune(settings(quickest, "folds", folds=14))
    assert len(quickest.runs("folds", "trial")) == 1


# --- ending early, and the same again -----------------------------------------------------------


def test_no_trial_starts_when_the_time_is_up(quickest: Place, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = tune(settings(quickest, "timeout", max_evals=50, timeout=1e-3))
    assert len(outcome.study.trials) == 1
    assert "the time is up after 1 of 50 trials\n" in capsys.readouterr().out
    (study,) = quickest.runs("timeout", "study")
    assert study.info.status == "FINISHED"
    assert study.outputs.model_outputs


def test_the_same_seed_finds_the_same(quickest: Place) -> None:
    chosen = settings(quickest, "again", precision="float32", seed=9)
    torch.manual_seed(1)
    first = tune(chosen)
    torch.manual_seed(2)
    second = tune(chosen)
    assert [(trial.settings, trial.mean_accuracy) for trial in first.study.trials] == [
        (trial.settings, trial.mean_accuracy) for trial in second.study.trials
    ]
    names = ("held_out_accuracy", "temperature", "calibration_error", "mean_cv_accuracy")
    assert [first.model.metrics[name] for name in names] == [second.model.metrics[name] for name in names]


def test_ctrl_c_keeps_every_finished_trial(place: Place, scripts: dict[str, Ended]) -> None:
    stopped = scripts["ctrl-c"]
    assert (stopped.status, stopped.err) == (130, "hyperopt_tuning.py: interrupted\n")
    (study,) = place.runs("ctrl-c", "study")
    assert study.info.status == "KILLED"
    trials = place.runs("ctrl-c", "trial")
    done = [trial for trial in trials if trial.info.status == "FINISHED"]
    assert {trial.info.status for trial in trials} <= {"FINISHED", "KILLED"}
    assert len(trials) - 1 <= len(done)
    lines = re.findall(r"^trial +\d+/999  mean accuracy (\d\.\d{4})", stopped.out, re.MULTILINE)
    assert 1 <= len(lines) <= len(done)
    assert set(lines) <= {f"{trial.data.metrics['mean_cv_accuracy']:.4f}" for trial in done}
    kept = place.json(study, "trials.json")
    assert [trial["number"] for trial in kept] == list(range(len(kept)))
    assert len(lines) <= len(kept) <= len(done)
    assert study.data.metrics["trials"] == len(kept)


# --- settings -----------------------------------------------------------------------------------


def test_how_many_trials_are_planned() -> None:
    assert TuneSettings().evaluations == 30
    assert TuneSettings(preset="quick").evaluations == 6
    assert TuneSettings(preset="quick", max_evals=2).evaluations == 2
    assert TuneSettings().folds == 5


def test_the_next_command_is_quoted_for_the_shell(quickest: Place) -> None:
    chosen = settings(quickest, "two words", max_evals=1)
    words = shlex.split(report(tune(chosen), chosen).splitlines()[-1].removeprefix("next: "))
    assert words[-4:] == ["--experiment-name", "two words", "--metric", "mean_cv_accuracy"]
