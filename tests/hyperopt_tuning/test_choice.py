"""The trial whose settings are trained on everything: the best one, or the cheapest of those as good."""

import json
from functools import partial
from pathlib import Path

import pytest

import hyperopt_tuning
from hyperopt_tuning import final_seconds, report, tune
from support.trials import trial
from support.tuning_studies import QUICKEST, settings
from toolkit.tuning.search import Search
from toolkit.tuning.space import Choice


@pytest.mark.parametrize("cheapest", [False, True])
def test_the_chosen_trial_is_trained_on_everything(quickest, tmp_path, cheapest):
    (tmp_path / "first.yaml").write_text("- {epochs: 2, batch_size: 8}\n- {epochs: 1, batch_size: 8}")
    outcome = tune(
        settings(
            quickest, f"chosen-{cheapest}", max_trials=2, prune=False, initial_points=tmp_path / "first.yaml",
            one_standard_error=cheapest,
        )
    )  # fmt: skip
    study, chosen = outcome.study, outcome.chosen
    assert chosen is study.chosen(one_standard_error=cheapest)
    assert chosen.full_cost <= study.best.full_cost
    (run,) = quickest.runs(f"chosen-{cheapest}", "study")
    assert run.data.params["best_trial"] == str(chosen.number + 1)
    assert run.data.params["epochs"] == str(chosen.settings["epochs"])
    assert run.data.metrics["mean_cv_accuracy"] == pytest.approx(chosen.mean_accuracy)
    (journal,) = Path("studies").glob("*/journal.jsonl")
    assert json.loads(journal.read_text().splitlines()[-1]) == {"finished": chosen.number}
    assert not list(Path("studies").glob("*/logits-*.npy"))
    words = "best settings: " if chosen is study.best else f"trial {chosen.number + 1}, within one standard error of "
    assert f"\n{words}" in report(outcome)


def test_a_study_that_ends_with_its_time_trains_the_best_and_leaves_no_checkpoint(quickest, monkeypatch):
    """The time is up at the first complete trial, while others are paused."""

    def clock():
        return 0.0 if not list(Path("studies").glob("*/logits-*.npy")) else 1e9

    monkeypatch.setattr(hyperopt_tuning, "Search", partial(Search, clock=clock))
    monkeypatch.setitem(hyperopt_tuning.PRESETS, "quick", {**QUICKEST, "epochs": Choice((6,))})
    outcome = tune(settings(quickest, "in-time", max_trials=9, time_budget=3600))
    study = outcome.study
    assert (outcome.chosen, study.count("complete")) == (study.best, 1)
    assert study.paused
    assert not list(Path("studies").glob("*/*.resume.pt"))


def test_the_final_training_is_estimated_from_the_slowest_fold():
    """Folds of 2 seconds train four fifths of the images; 30 seconds are for the bundle."""
    assert final_seconds(trial(0, *[0.5] * 5)) == 2 * 5 / 4 + 30
