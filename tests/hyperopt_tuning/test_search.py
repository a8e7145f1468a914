"""A search as users run it, and the same search interrupted: what is printed, and what is logged at which level."""

import os
import re
import shlex
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from hyperopt_tuning import TuneSettings, print_status
from model_registry import ModelRegistry
from support import MAX_WAIT_S, wait_until
from support.colours import COLOURS
from support.forked_processes import forks
from support.tuning_studies import SEARCH
from toolkit.bundle.program import load_bundle
from toolkit.errors import SettingsError
from toolkit.tuning.mlflow_logger import STATUS


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    with forks(tmp_path_factory.mktemp("forks")) as started:
        yield started


@pytest.fixture(scope="module")
def whole(place, forked):
    """A search that nothing interrupts."""
    return place.start(forked, "--preset", "quick", *SEARCH, experiment="whole").end()


# --- a search that ends by itself ---------------------------------------------------------------


def test_a_script_prints_its_trials_a_table_and_the_next_command(place, whole):
    assert (whole.status, whole.err) == (0, "")
    assert "study colours-1: 8 trials of 3 folds each\n" in whole.out
    (study,) = place.runs("whole", "study")
    trials = place.json(study, "trials.json")
    complete = [trial for trial in trials if trial["state"] == "complete"]
    lines = re.findall(r"^trial +(\d+)/8  mean accuracy (\d\.\d{4}) \(spread (\d\.\d{4})\)", whole.out, re.MULTILINE)
    assert lines == [
        (str(trial["number"] + 1), f"{trial['mean_accuracy']:.4f}", f"{trial['std_accuracy']:.4f}")
        for trial in complete
    ]
    pruned = [trial for trial in trials if trial["state"] == "pruned"]
    assert len(pruned) + len(complete) == 8
    assert pruned, "this search has both"
    for trial in pruned:
        assert f"trial {trial['number'] + 1:>3}/8  pruned {trial['reason']}; " in whole.out
    assert re.search(r"^trial +mean +spread +multiply-adds +seconds +network +size +optimizer", whole.out, re.MULTILINE)
    assert f"8 trials: {len(complete)} complete, {len(pruned)} pruned, 0 failed; " in whole.out
    assert f"MLflow run: {study.info.run_id}\n" in whole.out
    assert whole.out.endswith(
        "next: python model_registry.py register --experiment-name whole --metric mean_cv_accuracy\n"
    )


def test_the_next_command_works(place, whole):
    (study,) = place.runs("whole", "study")
    registry = ModelRegistry(place.uri, "from-tuning")
    version = registry.register_best_model("whole", "mean_cv_accuracy")
    assert registry.get(version).run_id == study.info.run_id
    assert registry.load(version).bundle.card.classes == COLOURS


def test_folds_are_nested_in_trials_and_trials_in_the_study(place, whole):
    (study,) = place.runs("whole", "study")
    trials, folds = place.runs("whole", "trial"), place.runs("whole", "fold")
    assert (study.info.status, {fold.info.status for fold in folds}) == ("FINISHED", {"FINISHED"})
    assert [trial.data.tags["trial"] for trial in trials] == [str(number) for number in range(1, 9)]
    assert [trial.info.run_name for trial in trials] == [f"trial {number}" for number in range(1, 9)]
    assert {trial.data.tags["mlflow.parentRunId"] for trial in trials} == {study.info.run_id}
    assert {run.data.tags["data_fingerprint"] for run in (study, *trials, *folds)} == {
        study.data.tags["data_fingerprint"]
    }
    summary = place.json(study, "trials.json")
    for trial, row in zip(trials, summary, strict=True):
        own = [fold for fold in folds if fold.data.tags["mlflow.parentRunId"] == trial.info.run_id]
        accuracies = [fold.data.metrics["best_val_accuracy"] for fold in own]
        assert [fold.data.tags["fold"] for fold in own] == [str(number) for number in range(len(own))]
        assert accuracies == row["fold_accuracies"]
        metrics, tags = trial.data.metrics, trial.data.tags
        assert (trial.info.status, tags["state"]) == (STATUS[row["state"]], row["state"])
        assert (metrics["training_images"], metrics["training_multiply_adds"]) == (row["images"], row["multiply_adds"])
        history = place.client.get_metric_history(trial.info.run_id, "fold_accuracy")
        assert sorted((point.step, point.value) for point in history) == list(enumerate(accuracies))
        assert trial.data.params == {name: str(value) for name, value in row["settings"].items()}
        if row["state"] == "complete":
            assert len(own) == 3
            assert metrics["mean_cv_accuracy"] == pytest.approx(np.mean(accuracies))
            assert metrics["std_cv_accuracy"] == pytest.approx(np.std(accuracies, ddof=1))
        else:
            assert "mean_cv_accuracy" not in metrics  # the mean of a few folds could pass for the mean of all
            assert tags["reason"] == row["reason"]


def test_the_study_holds_the_best_trial_its_model_and_its_images(place, whole):
    (study,) = place.runs("whole", "study")
    trials = [trial for trial in place.runs("whole", "trial") if trial.data.tags["state"] == "complete"]
    best = max(trials, key=lambda trial: trial.data.metrics["mean_cv_accuracy"])
    metrics, params = study.data.metrics, study.data.params
    assert metrics["mean_cv_accuracy"] == pytest.approx(best.data.metrics["mean_cv_accuracy"])
    assert metrics["std_cv_accuracy"] == pytest.approx(best.data.metrics["std_cv_accuracy"])
    assert metrics["trials"] == metrics["complete_trials"] + metrics["pruned_trials"] == 8
    assert metrics["best_so_far"] == best.data.metrics["mean_cv_accuracy"]
    assert params["best_trial"] == best.data.tags["trial"]
    for name, value in best.data.params.items():
        assert params[name] == value
    assert (params["preset"], params["folds"], params["seed"]) == ("quick", "3", "4")
    assert {"f1_weighted", "held_out_accuracy", "training_time_s", "ram_mb"} <= set(metrics)
    model = place.client.get_logged_model(study.outputs.model_outputs[0].model_id)
    bundle = load_bundle(Path(model.artifact_location), study.data.tags["bundle_digest"])
    assert bundle.card.metrics["mean_cv_accuracy"].value == metrics["mean_cv_accuracy"]
    assert bundle.card.settings["learning_rate"] == pytest.approx(float(params["learning_rate"]))
    assert place.json(study, "search_space.json")["epochs"] == "2 to 6, whole"
    for name in ("study_history", "importance", "cost"):
        with Image.open(place.client.download_artifacts(study.info.run_id, f"{name}.png")) as image:
            assert min(image.size) > 300
    assert not any(trial.outputs.model_outputs for trial in trials)


def test_status_prints_a_study(place, whole):
    shown = print_status(TuneSettings(status="last", study_dir=place.folder / "whole"))
    assert shown.startswith("study colours-1, finished\n\ntrial    mean  spread  multiply-adds")
    assert whole.out[whole.out.index("\ntrial    mean") :].startswith(
        shown[shown.index("\ntrial ") : -1].split("\n\nbest")[0]
    )
    with pytest.raises(SettingsError, match=r"^--status must be last or a study in .*, got no; there are: colours-1$"):
        print_status(TuneSettings(status="no", study_dir=place.folder / "whole"))
    with pytest.raises(SettingsError, match=r"^there is no study in nowhere/, which --status needs$"):
        print_status(TuneSettings(status="last", study_dir=Path("nowhere")))


# --- what is interrupted ------------------------------------------------------------------------


def require_same(place, experiment):
    """A study has the result of the uninterrupted one, and MLflow has each of its runs once."""
    assert place.entries(experiment) == place.entries("whole")
    (one,), (other,) = place.runs("whole", "study"), place.runs(experiment, "study")
    names = ("mean_cv_accuracy", "std_cv_accuracy", "held_out_accuracy", "temperature", "calibration_error", "trials")
    assert [other.data.metrics[name] for name in names] == [one.data.metrics[name] for name in names]
    assert other.info.status == "FINISHED"
    for role in ("trial", "fold"):
        expected = [(run.info.run_name, run.info.status, run.data.params) for run in place.runs("whole", role)]
        found = [(run.info.run_name, run.info.status, run.data.params) for run in place.runs(experiment, role)]
        assert sorted(found, key=str) == sorted(expected, key=str)
    assert [path.name for path in (place.folder / experiment / "colours-1").glob("*.pt")] == []


def test_kills_and_ctrl_c_do_not_change_the_result(place, whole, forked):
    """Killed within the first trial, which has a checkpoint then, and between two trials."""
    words, checkpoint = ("--preset", "quick", *SEARCH), place.folder / "killed" / "colours-1" / "trial-1.resume.pt"
    moments = (lambda out: checkpoint.exists() or "trial   1/8" in out, lambda out: "trial   3/8" in out)
    for has_come in moments:
        script = place.start(forked, *words, experiment="killed")
        wait_until(lambda: has_come(script.out))  # noqa: B023  called at once
        workers = psutil.Process(script.pid).children(recursive=True)
        script.process.kill()
        script.process.join()
        _, alive = psutil.wait_procs(workers, MAX_WAIT_S)
        assert not alive
        words = ("--resume",)
    script = place.start(forked, *words, experiment="killed")
    script.wait_for(r"study colours-1: ")
    os.kill(script.pid, signal.SIGINT)
    require_stopped(place, script.end())
    assert place.start(forked, *words, experiment="killed").end().status == 0
    require_same(place, "killed")


def require_stopped(place, ended):
    """Ctrl-C kept all results and printed the command to resume."""
    assert (ended.status, ended.err) == (130, "hyperopt_tuning.py: interrupted\n")
    command = re.search(r"^stopped; resume with: (.*)$", ended.out, re.MULTILINE)
    assert command
    assert shlex.split(command[1])[2:] == ["--resume", "colours-1", "--study-dir", "killed"]
    (study,) = place.runs("killed", "study")
    assert study.info.status == "KILLED"
    trials = place.json(study, "trials.json")
    assert isinstance(trials, list)
    statuses = [run.info.status for run in place.runs("killed", "trial")]
    # One that a kill had left, when Ctrl-C came before it was resumed, still has the status RUNNING.
    assert set(statuses) <= {"FINISHED", "KILLED", "SCHEDULED", "RUNNING"}
    assert statuses.count("RUNNING") <= 1
    shown = print_status(TuneSettings(status="colours-1", study_dir=place.folder / "killed"))
    assert re.match(r"study colours-1, not finished, (0 trials|1 trial) under way(, \d paused)?\n", shown)
    assert re.search(rf"\n{len(trials)} trials?: ", shown)
