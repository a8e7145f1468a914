"""A worker is killed, the server is away, the time runs out: nothing is lost, and the search continues where it can."""

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import hyperopt_tuning
import toolkit.tuning.search
from hyperopt_tuning import tune
from support import children_that_run, wait_until
from support.servers import MlflowServer
from support.tuning_studies import QUICKEST, settings
from toolkit.errors import TrainingError
from toolkit.tuning.search import Search
from toolkit.tuning.space import Choice
from toolkit.tuning.study_storage import read_study

ENDLESS = {**QUICKEST, "epochs": Choice((1, 10_000)), "patience": Choice((10_000,)), "batch_size": Choice((2,))}


def test_a_killed_worker_is_a_failed_trial(quickest, tmp_path, monkeypatch):
    def kill():
        """Kill the process of the endless trial once it has a checkpoint."""
        wait_until(lambda: list(Path("studies").glob("*/trial-1.resume.pt")))
        (worker,) = children_that_run("toolkit.tuning.worker_pool")
        worker.kill()

    monkeypatch.setitem(hyperopt_tuning.PRESETS, "quick", ENDLESS)
    (tmp_path / "first.yaml").write_text("- {epochs: 10000}\n- {epochs: 1}\n- {epochs: 1, optimizer: adam}")
    killer = threading.Thread(target=kill)
    killer.start()
    study = tune(settings(quickest, "worker", max_trials=3, prune=False, initial_points=tmp_path / "first.yaml")).study
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
        if text.startswith("trial   3/"):
            server.start()

    monkeypatch.setattr(toolkit.tuning.search, "echo", eventful)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    try:
        study = tune(settings(quickest, "outage", max_trials=4, prune=False)).study
        there = replace(quickest, uri=server.url)
        assert [run.info.status for run in there.runs("outage", "study")] == ["FINISHED"]
        assert [run.data.params["learning_rate"] for run in there.runs("outage", "trial")] == [
            str(trial.settings["learning_rate"]) for trial in study.trials
        ]
        assert [run.info.status for run in there.runs("outage", "fold")] == ["FINISHED"] * 8
    finally:
        if server.running:
            server.kill()
    assert capsys.readouterr().out.count("the search continues, and pending data is sent later\n") == 1


def test_the_end_of_the_time_interrupts_a_trial_that_can_be_resumed(quickest, monkeypatch):
    monkeypatch.setitem(hyperopt_tuning.PRESETS, "quick", {**ENDLESS, "epochs": Choice((10_000,))})
    checkpoint = Path("studies/slow/trial-1.resume.pt")

    def clock():
        return 60.0 if checkpoint.exists() else 0.0  # the time is up when there is something to resume

    monkeypatch.setattr(hyperopt_tuning, "Search", partial(Search, clock=clock))
    with pytest.raises(
        TrainingError, match=r"^no trial was complete when the time was up; raise --time-budget and --resume slow$"
    ):
        tune(settings(quickest, "timeout", time_budget=60, study_name="slow"))
    assert [run.info.status for run in quickest.runs("timeout", "trial")] == ["KILLED"]
    study, finished = read_study(Path("studies"), "slow")
    assert (list(study.under_way), study.trials, finished) == ([0], [], False)
    assert checkpoint.exists()
