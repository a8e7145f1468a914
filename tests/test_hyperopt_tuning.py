"""A search as users run it: what is logged at which level, what interrupts it, and how it is resumed."""

import json
import os
import re
import shlex
import shutil
import signal
import threading
import time
from contextlib import chdir
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision.models import resnet18

import hyperopt_tuning
import toolkit.tuning.search
from hyperopt_tuning import (
    TrialTask,
    TuneSettings,
    data_for,
    evaluate,
    print_status,
    report,
    start_study,
    tune,
)
from model_registry import ModelRegistry
from support import ROOT
from support.colours import COLOURS, colour_image
from support.forked_processes import forks
from support.servers import MlflowServer
from toolkit.bundle.program import load_bundle
from toolkit.errors import DataError, SettingsError, TrainingError
from toolkit.tracking.connection import connect
from toolkit.tuning.pruning import Incumbent
from toolkit.tuning.search import FoldDone, Search, Step
from toolkit.tuning.space import QUICK, Choice, Integers
from toolkit.tuning.study import Proposal, StudyConfig
from toolkit.tuning.study_storage import read_study

SPACE = """
image_size: 16
model_type: simple_cnn
batch_size: [4, 8]
epochs: {low: 2, high: 6}
learning_rate: {low: 1e-5, high: 1e-2, log: true}
"""
QUICKEST = {**QUICK, "image_size": Choice((16,)), "epochs": Integers(1, 2), "batch_size": Choice((8, 16))}
BROKEN = {**QUICKEST, "image_size": Choice((32,)), "model_type": Choice(("resnet18_backbone",))}
SEARCH = ("--data", "colours", "--space", "space.yaml", "--folds", "3", "--seed", "4", "--max-trials", "10")
STATES = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


# --- where it happens ---------------------------------------------------------------------------


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
        spent = ("seconds", "epoch_duration_s", "batch_time_ms", "batch_time_ms_p95", "images_per_s")
        return {name: timeless(item) for name, item in value.items() if name not in spent}
    return [timeless(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    for index, colour in enumerate(COLOURS):
        (folder / "colours" / colour).mkdir(parents=True)
        for number in range(14):
            image = colour_image(colour, 100 * index + number, 20)
            (folder / "colours" / colour / f"{number}.png").write_bytes(image)
    (folder / "space.yaml").write_text(SPACE)
    uri = f"sqlite:///{folder}/mlflow.db"
    with chdir(folder):
        connect(uri)
    return Workspace(folder, uri)


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    with forks(tmp_path_factory.mktemp("forks")) as started:
        yield started


@pytest.fixture(scope="module")
def whole(place, forked):
    """A search that nothing interrupts."""
    return place.start(forked, "--preset", "quick", *SEARCH, experiment="whole").end()


@pytest.fixture
def quickest(place, monkeypatch, tmp_path):
    """The same store, studies of their own, and a space of tiny trainings behind ``--preset quick``."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    monkeypatch.setitem(hyperopt_tuning.PRESETS, "quick", QUICKEST)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield place
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def hopeless(tmp_path_factory):
    """A weights file of NaN: every training that starts from it fails."""
    path = tmp_path_factory.mktemp("weights") / "nan.pth"
    state = resnet18(weights=None).state_dict()
    state["bn1.weight"].fill_(float("nan"))
    torch.save(state, path)
    return str(path)


def settings(place, experiment, **more):
    common = {"data": place.colours, "preset": "quick", "folds": 2, "max_trials": 2, "experiment_name": experiment}
    return TuneSettings(**{**common, **more})


# --- a search that ends by itself ---------------------------------------------------------------


def test_a_script_prints_its_trials_a_table_and_the_next_command(place, whole):
    assert (whole.status, whole.err) == (0, "")
    assert "study colours-1: 10 trials of 3 folds each\n" in whole.out
    (study,) = place.runs("whole", "study")
    trials = place.json(study, "trials.json")
    complete = [trial for trial in trials if trial["state"] == "complete"]
    lines = re.findall(r"^trial +(\d+)/10  mean accuracy (\d\.\d{4}) \(spread (\d\.\d{4})\)", whole.out, re.MULTILINE)
    assert lines == [
        (str(trial["number"] + 1), f"{trial['mean_accuracy']:.4f}", f"{trial['std_accuracy']:.4f}")
        for trial in complete
    ]
    pruned = [trial for trial in trials if trial["state"] == "pruned"]
    assert len(pruned) + len(complete) == 10
    assert pruned, "this search has both"
    for trial in pruned:
        assert f"trial {trial['number'] + 1:>3}/10  pruned {trial['reason']}; " in whole.out
    assert re.search(r"^trial +mean +spread +images +seconds +network +size +optimizer", whole.out, re.MULTILINE)
    assert f"10 trials: {len(complete)} complete, {len(pruned)} pruned, 0 failed; " in whole.out
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
    assert [trial.data.tags["trial"] for trial in trials] == [str(number) for number in range(1, 11)]
    assert [trial.info.run_name for trial in trials] == [f"trial {number}" for number in range(1, 11)]
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
        assert (trial.info.status, tags["state"]) == (STATES[row["state"]], row["state"])
        assert metrics["training_images"] == row["images"]
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
    assert metrics["trials"] == metrics["complete_trials"] + metrics["pruned_trials"] == 10
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
    assert shown.startswith("study colours-1, finished\n\ntrial    mean  spread  images")
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
    words = ("--preset", "quick", *SEARCH)
    for moment in (0.1, 0.5, 0.3):
        script = place.start(forked, *words, experiment="killed")
        script.wait_for(r"study colours-1: ")
        time.sleep(moment * whole.seconds)
        workers = psutil.Process(script.pid).children(recursive=True)
        script.process.kill()
        script.process.join()
        _, alive = psutil.wait_procs(workers, 30)
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
    assert set(statuses[: len(trials)]) <= {"FINISHED", "KILLED"}
    # One that a kill had left, when Ctrl-C came before it was resumed, still has the status RUNNING.
    assert set(statuses[len(trials) :]) <= {"KILLED", "RUNNING"}
    shown = print_status(TuneSettings(status="colours-1", study_dir=place.folder / "killed"))
    assert re.match(r"study colours-1, not finished, (0 trials|1 trial) under way\n", shown)
    assert re.search(rf"\n{len(trials)} trials?: ", shown)


def test_a_killed_worker_is_a_failed_trial(quickest):
    def kill():
        """Kill the process of a trial with a checkpoint."""
        while not list(Path("studies").glob("*/trial-1.resume.pt")):
            time.sleep(0.01)
        (worker,) = (one for one in psutil.Process().children() if "toolkit.tuning.worker_pool" in one.cmdline())
        worker.kill()

    long = Choice((8,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hyperopt_tuning.PRESETS, "quick", {**QUICKEST, "epochs": long, "patience": long})
        killer = threading.Thread(target=kill)
        killer.start()
        study = tune(settings(quickest, "worker", max_trials=3, prune=False)).study
        killer.join()
    assert [trial.state for trial in study.trials] == ["failed", "complete", "complete"]
    assert study.trials[0].reason.startswith("its process was killed by SIGKILL")
    trials = quickest.runs("worker", "trial")
    assert [trial.info.status for trial in trials] == ["FAILED", "FINISHED", "FINISHED"]
    assert trials[0].data.tags["failure"] == study.trials[0].reason
    assert not list(Path("studies").glob("*/*.resume.pt"))


def test_a_server_gets_everything_after_an_outage(quickest, monkeypatch, tmp_path, capsys):
    (tmp_path / "server").mkdir()
    server = MlflowServer(tmp_path / "server")
    server.start()
    echo = toolkit.tuning.search.echo

    def eventful(text):
        echo(text)
        if text.startswith("trial   1/"):
            server.kill()
        if text.startswith("trial   4/"):
            server.start()

    monkeypatch.setattr(toolkit.tuning.search, "echo", eventful)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    try:
        study = tune(settings(quickest, "outage", max_trials=6, prune=False)).study
        there = replace(quickest, uri=server.url)
        assert [run.info.status for run in there.runs("outage", "study")] == ["FINISHED"]
        assert [run.data.params["learning_rate"] for run in there.runs("outage", "trial")] == [
            str(trial.settings["learning_rate"]) for trial in study.trials
        ]
        assert [run.info.status for run in there.runs("outage", "fold")] == ["FINISHED"] * 12
    finally:
        if server.running:
            server.kill()
    output = capsys.readouterr().out
    assert output.count("the search continues, and pending data is sent later\n") == 1


# --- what cannot be resumed ---------------------------------------------------------------------


def test_a_changed_study_is_not_resumed(quickest, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(quickest.colours, folder)
    chosen = settings(quickest, "changed", data=str(folder), study_name="mine")
    start_study(chosen).journal.close()

    def refusal(**more):
        with pytest.raises(SettingsError) as error:
            tune(TuneSettings(resume="mine", **more))
        return str(error.value)

    end = "; --warm-start mine starts another one that knows its trials"
    start = "study mine cannot be resumed: "
    assert refusal(folds=3, seed=1) == f"{start}folds was 2 and is 3; seed was 0 and is 1{end}"
    (tmp_path / "space.yaml").write_text("dropout: [0.1, 0.2]")
    assert refusal(space=Path("space.yaml"), preset="quick") == (
        f"{start}dropout was 0.1 to 0.3 and is one of 0.1, 0.2{end}"
    )
    (folder / "red" / "another.png").write_bytes(colour_image("red", 5000, 20))
    fingerprint = r"[0-9a-f]{8,}"
    assert re.fullmatch(f"{start}data_fingerprint was {fingerprint} and is {fingerprint}{end}", refusal())
    (folder / "red" / "another.png").unlink()
    outcome = tune(TuneSettings(resume="last", max_trials=1))  # overridable settings may change
    assert len(outcome.study.trials) == 1
    with pytest.raises(
        SettingsError, match=r"^study mine is finished; --warm-start mine starts another one that knows its"
    ):
        tune(TuneSettings(resume="mine"))
    with pytest.raises(SettingsError, match=r"there is a journal studies/mine/journal.jsonl already$"):
        tune(chosen)


def test_a_warm_start_begins_with_the_best_and_knows_the_other_trials(quickest, capsys):
    first = tune(settings(quickest, "fork", max_trials=3, study_name="first")).study
    capsys.readouterr()
    second = tune(settings(quickest, "fork", max_trials=2, warm_start="first", folds=3, study_name="second")).study
    assert "3 of 3 trials of the former study lie in this space and are known here\n" in capsys.readouterr().out
    assert first.best is not None
    assert second.trials[0].settings == first.best.settings
    assert [len(trial.folds) for trial in second.trials if trial.state == "complete"] == [3] * second.count("complete")


def test_a_study_is_written_by_one_search(quickest):
    job = start_study(settings(quickest, "two", study_name="both"))
    with (
        job.journal,
        pytest.raises(SettingsError, match=r"^the journal studies/both/journal.jsonl is being written by "),
    ):
        tune(TuneSettings(resume="both"))


def test_errors_of_files_name_the_file(quickest, tmp_path):
    def refusal(**more):
        with pytest.raises(SettingsError) as error:
            tune(settings(quickest, "files", **more))
        return str(error.value)

    (tmp_path / "s.yaml").write_text("epochs: {low: 20, high: 10}")
    assert refusal(space=Path("s.yaml")) == "s.yaml: epochs: low must be less than high, got 20 and 10"
    assert refusal(space=Path("no.yaml")) == "no.yaml: cannot be read: No such file or directory"
    (tmp_path / "f.yaml").write_text("- {epochs: 2}\n- {epoch: 1}")
    assert refusal(initial_points=Path("f.yaml")).startswith(
        "f.yaml: entry 2: epoch: is not searched; there are: epochs, "
    )
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert refusal(initial_points=Path("b.yaml")) == "b.yaml: is not text in UTF-8"
    assert quickest.runs("files", "study") == []


def test_too_few_images_are_refused_before_anything_is_written(quickest, tmp_path):
    with pytest.raises(DataError, match=r"^class '\w+' has \d+ images to cross-validate on, fewer than the 14 folds"):
        tune(settings(quickest, "folds", folds=14))
    assert quickest.runs("folds", "study") == []
    assert not (tmp_path / "studies").exists()


# --- failing trials -----------------------------------------------------------------------------


def test_a_failing_trial_is_recorded(quickest, hopeless, monkeypatch, capsys):
    both = {**BROKEN, "model_type": Choice(("simple_cnn", "resnet18_backbone"))}
    monkeypatch.setitem(hyperopt_tuning.PRESETS, "quick", both)
    outcome = tune(settings(quickest, "failing", weights=hopeless, max_trials=5, prune=False))
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
    assert [trial.info.status for trial in nested] == [STATES[trial.state] for trial in study.trials]
    assert [trial.data.tags.get("failure", "") for trial in nested] == [trial.reason for trial in study.trials]
    output = capsys.readouterr().out
    assert len(re.findall(r"^trial +\d/5  failed after \d+ s: the loss became nan", output, re.MULTILINE)) == len(
        failed
    )
    text = report(outcome)
    assert "resnet18_backbone" not in text
    assert "best settings: " in text


def test_a_study_of_failures_is_refused(quickest, hopeless, monkeypatch):
    monkeypatch.setitem(hyperopt_tuning.PRESETS, "quick", BROKEN)
    with pytest.raises(TrainingError, match=r"^all 2 trials failed; the first: the loss became nan in epoch 1; try a "):
        tune(settings(quickest, "hopeless", weights=hopeless))
    (study,) = quickest.runs("hopeless", "study")
    assert study.info.status == "FAILED"
    assert study.data.tags["failure"].startswith("all 2 trials failed; the first: ")
    assert [trial["state"] for trial in quickest.json(study, "trials.json")] == ["failed", "failed"]
    assert not study.outputs.model_outputs


# --- limits -------------------------------------------------------------------------------------


def test_the_timeout_interrupts_a_trial_that_can_be_resumed(quickest, monkeypatch):
    endless = {**QUICKEST, "epochs": Choice((10_000,)), "patience": Choice((10_000,)), "batch_size": Choice((2,))}
    monkeypatch.setitem(hyperopt_tuning.PRESETS, "quick", endless)
    checkpoint = Path("studies/slow/trial-1.resume.pt")

    def clock():
        return 60.0 if checkpoint.exists() else 0.0  # the time is up when there is something to resume

    monkeypatch.setattr(hyperopt_tuning, "Search", partial(Search, clock=clock))
    with pytest.raises(
        TrainingError, match=r"^no trial was complete when the time was up; raise --timeout and --resume"
    ):
        tune(settings(quickest, "timeout", timeout=60, study_name="slow"))
    assert [run.info.status for run in quickest.runs("timeout", "trial")] == ["KILLED"]
    study, finished = read_study(Path("studies"), "slow")
    assert (list(study.under_way), study.trials, finished) == ([0], [], False)
    assert checkpoint.exists()


def test_study_patience_ends_a_search(quickest, capsys):
    study = tune(settings(quickest, "patience", max_trials=50, study_patience=2, prune=False)).study
    assert study.best is not None
    assert len(study.trials) == study.trials.index(study.best) + 3
    text = f"none better than the best in 2 trials, after {len(study.trials)} of 50 trials\n"
    assert text in capsys.readouterr().out


def test_two_trials_at_a_time(quickest):
    study = tune(settings(quickest, "parallel", max_trials=4, parallel=2)).study
    assert sorted(trial.number for trial in study.trials) == [0, 1, 2, 3]
    assert study.count("complete") >= 2  # the first two had no incumbent
    assert [run.info.status for run in quickest.runs("parallel", "trial")] == [
        STATES[trial.state] for trial in sorted(study.trials, key=lambda trial: trial.number)
    ]


def test_known_settings_are_not_run_again(quickest, monkeypatch):
    monkeypatch.setitem(
        hyperopt_tuning.PRESETS, "quick", {name: Choice((first_of(QUICKEST[name]),)) for name in QUICKEST}
    )
    study = tune(settings(quickest, "again", max_trials=3)).study
    assert [trial.state for trial in study.trials] == ["complete"] * 3
    assert [trial.images > 0 for trial in study.trials] == [True, False, False]
    assert {trial.mean_accuracy for trial in study.trials} == {study.trials[0].mean_accuracy}
    assert study.trials[2].reason == "as trial 1, which had the same settings"


def first_of(dimension):
    return dimension.options[0] if isinstance(dimension, Choice) else dimension.low


# --- a trial by itself --------------------------------------------------------------------------


def task_of(place, incumbent=None, **more):
    point = {"image_size": 16, "epochs": 4, "batch_size": 8, "learning_rate": 1e-3, "patience": 4, **more}
    return TrialTask(Proposal(0, point, incumbent), 3, settings(place, "task"), ("simple_cnn",))


def test_a_trial_depends_on_its_task_alone(quickest, tmp_path, monkeypatch):
    monkeypatch.setattr(hyperopt_tuning, "STEP_INTERVAL_S", 0.0)
    reports = []
    torch.manual_seed(1)
    one = evaluate(task_of(quickest), reports.append)
    torch.manual_seed(2)
    other = evaluate(task_of(quickest)._replace(folder=tmp_path))
    assert timeless(one.trial.json()) == timeless(other.trial.json())
    assert one.logits is not None
    assert np.array_equal(one.logits, other.logits)
    data = data_for(task_of(quickest).data, 16, ("simple_cnn",))
    assert one.logits.shape == (len(data.development), 3)
    steps = [step for step in reports if isinstance(step, Step)]
    assert list(dict.fromkeys(step for step in steps if 4 * step.share == step.epoch)) == [
        Step(fold, epoch, epoch / 4) for fold in range(3) for epoch in range(1, 1 + len(one.trial.folds[fold].epochs))
    ]
    shares = [step.fold + step.share for step in steps]
    assert shares == sorted(shares)
    assert len(shares) > 2 * 3 * 4, "also within the epochs"
    assert [done for done in reports if isinstance(done, FoldDone)] == [
        FoldDone(number, fold) for number, fold in enumerate(one.trial.folds)
    ]
    third = len(data.development) - len(data.development) // 3
    for fold in one.trial.folds:
        assert abs(fold.images / len(fold.epochs) - third) <= 3


@pytest.mark.parametrize(
    ("curve", "folds", "reason"),
    [
        ((0.1, 1.0, 1.0, 1.0), 1, "in fold 1 after epoch "),
        ((0.0, 0.0, 0.0, 0.999), 1, "after fold 1 of 3: "),
        ((0.0, 0.0, 0.0, 0.1), 3, ""),
    ],
)
def test_a_trial_is_pruned(quickest, curve, folds, reason):
    task = task_of(quickest, Incumbent(6, (curve,) * 3, epochs=4), learning_rate=1e-6)
    result = evaluate(task)
    assert result.trial.state == ("pruned" if reason else "complete")
    assert result.trial.reason.startswith(reason)
    assert len(result.trial.folds) == folds
    assert (result.logits is None) == bool(reason)
    assert result.trial.images == sum(fold.images for fold in result.trial.folds) > 0


def test_changed_images_are_refused(quickest):
    task = task_of(quickest)._replace(fingerprint="of others")
    with pytest.raises(DataError, match=r"^the images of .*colours have changed since the study began$"):
        evaluate(task)


def test_incompatible_settings_are_a_failed_trial(quickest):
    trial = evaluate(task_of(quickest, model_type="resnet18_backbone", mixup=0.4)).trial
    assert (trial.state, trial.folds) == ("failed", ())
    assert trial.reason.startswith("--mixup and --cutmix change images")


# --- settings -----------------------------------------------------------------------------------


def test_default_number_of_trials():
    assert TuneSettings().trials == 30
    assert TuneSettings(preset="quick").trials == 6
    assert TuneSettings(preset="quick", max_trials=2).trials == 2
    assert (TuneSettings().folds, TuneSettings().prune) == (5, True)


@pytest.mark.parametrize("name", ["last", "", "..", "a/b", ".hidden", "x" * 101])
def test_study_names(name):
    with pytest.raises(ValidationError):
        TuneSettings(study_name=name)
    assert TuneSettings(study_name="flowers_2.1-b").study_name == "flowers_2.1-b"


def test_the_next_command_is_quoted_for_the_shell(quickest):
    words = shlex.split(
        report(tune(settings(quickest, "two words", max_trials=1))).splitlines()[-1].removeprefix("next: ")
    )
    assert words[-4:] == ["--experiment-name", "two words", "--metric", "mean_cv_accuracy"]
