"""The lines and tables of a search have the right numbers, in a few words, and a bar is on a terminal only."""

import io
import sys
import time
from contextlib import closing
from dataclasses import replace
from functools import partial

import pytest

from support import trials
from support.trials import ended, fold
from toolkit.cli import terminal
from toolkit.cli.terminal import SILENCE_S, echo
from toolkit.tuning.progress import (
    LONG_FOLD_S,
    MIN_MEASURED,
    StudyProgressBar,
    all_settings,
    counts_text,
    describe,
    leaderboard,
    trial_line,
)  # fmt: skip
from toolkit.tuning.space import FULL
from toolkit.tuning.study import Study, StudyConfig
from toolkit.tuning.trial import Trial

SETTINGS = {
    "learning_rate": 0.000123456, "batch_size": 32, "epochs": 20, "image_size": 224, "model_type": "resnet18",
    "optimizer": "sgd", "weight_decay": 0.0001, "momentum": 0.9512345, "dropout": 0.25, "augmentation": 0.5,
    "patience": 10, "min_delta": 0.0001,
}  # fmt: skip
SHORTLY = "resnet18, 224 px, sgd, batch 32, 20 epochs, lr 0.00012"
trial = partial(trials.trial, settings=SETTINGS, seconds=12.4, images=1_500)


def study_of(*trials):
    """A study with these trials."""
    study = Study(StudyConfig(FULL, 0, initial_points=[one.settings for one in trials]))
    for one in trials:
        study.ask()
        study.tell(one)
    return study


# --- a line -------------------------------------------------------------------------------------


BELOW = "after fold 1 of 5: 0.5000 is below 0.7000, the worst fold of trial 3"
KNOWN = "as trial 3, which had the same settings"


@pytest.mark.parametrize(
    ("ended", "line"),
    [
        (trial(2, 0.5, 0.75, 1.0), f"trial   3/30  mean accuracy 0.7500 (spread 0.2500)  12 s  {SHORTLY}"),
        (
            trial(4, 0.5, 0.5, reason=KNOWN),
            f"trial   5/30  mean accuracy 0.5000 (spread 0.0000)  12 s  {SHORTLY}  {KNOWN}",
        ),
        (trial(4, 0.5, state="pruned", reason=BELOW), f"trial   5/30  pruned {BELOW}; 12 s  {SHORTLY}"),
        (trial(99, state="failed", reason="it diverged"), f"trial 100/30  failed after 12 s: it diverged  {SHORTLY}"),
    ],
    ids=["complete", "known", "pruned", "failed"],
)
def test_a_trial_is_a_line(ended, line):
    assert trial_line(ended, 30, best=False) == line


def test_the_line_of_the_best_trial_says_so():
    line = f"trial  12/30  mean accuracy 0.7500 (spread 0.2500)  3600 s  {SHORTLY}  best"
    assert trial_line(trial(11, 0.5, 0.75, 1.0, seconds=3_600.4), 30, best=True) == line


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (SETTINGS, SHORTLY),
        ({}, ""),
        ({"dropout": 0.5}, ""),
        ({"learning_rate": 1e-5, "epochs": 3}, "3 epochs, lr 1e-05"),
        ({"optimizer": "adam", "model_type": "simple_cnn"}, "simple_cnn, adam"),
    ],
)
def test_settings_in_a_few_words(settings, words):
    assert describe(settings) == words


def test_all_settings_are_named():
    assert all_settings(SETTINGS) == (
        "learning_rate 0.000123, batch_size 32, epochs 20, image_size 224, model_type resnet18, optimizer sgd,"
        " weight_decay 0.0001, momentum 0.951, dropout 0.25, augmentation 0.5, patience 10, min_delta 0.0001"
    )
    assert all_settings({}) == ""


# --- tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        ([], "0 trials: 0 complete, 0 pruned, 0 failed; 0 multiply-adds, 0 seconds"),
        ([trial(0, 0.5, 0.5)], "1 trial: 1 complete, 0 pruned, 0 failed; 3e+03 multiply-adds, 12 seconds"),
        (
            [trial(0, state="failed", seconds=119.4)],
            "1 trial: 0 complete, 0 pruned, 1 failed; 0 multiply-adds, 119 seconds",
        ),
        (
            [trial(0, *[0.5] * 5, seconds=119.6), trial(1, 0.5, state="pruned"), trial(2, state="failed")],
            "3 trials: 1 complete, 1 pruned, 1 failed; 9e+03 multiply-adds, 2 minutes",
        ),
    ],
)
def test_counts_and_costs_of_trials(ended, said):
    assert counts_text(ended) == said


def test_the_leaderboard_has_the_best_five_and_the_counts():
    accuracies = (0.5, 0.75, 0.625, 0.25, 0.875, 0.125)
    complete = [trial(number, accuracy, accuracy + 0.125) for number, accuracy in enumerate(accuracies)]
    others = [trial(6, 0.99, state="pruned"), trial(7, state="failed", seconds=300)]
    assert leaderboard(study_of(*complete, *others)).splitlines() == [
        "trial    mean  spread  multiply-adds  seconds  network   size  optimizer  batch  epochs  learning rate",
        "    5  0.9375  0.0884          3e+03       12  resnet18   224  sgd           32      20       0.000123",
        "    2  0.8125  0.0884          3e+03       12  resnet18   224  sgd           32      20       0.000123",
        "    3  0.6875  0.0884          3e+03       12  resnet18   224  sgd           32      20       0.000123",
        "    1  0.5625  0.0884          3e+03       12  resnet18   224  sgd           32      20       0.000123",
        "    4  0.3125  0.0884          3e+03       12  resnet18   224  sgd           32      20       0.000123",
        "",
        "8 trials: 6 complete, 1 pruned, 1 failed; 1.95e+04 multiply-adds, 6 minutes",
    ]


def test_without_a_complete_trial_there_is_no_table():
    study = study_of(trial(0, state="failed"))
    assert leaderboard(study) == "1 trial: 0 complete, 0 pruned, 1 failed; 0 multiply-adds, 12 seconds"


def test_a_missing_hyperparameter_is_a_dash_in_the_table():
    names = ("optimizer", "momentum", "epochs", "learning_rate")
    space = {name: FULL[name] for name in names}
    settings = {name: SETTINGS[name] for name in names}
    study = Study(StudyConfig(space, 0, initial_points=[settings]))
    study.ask()
    study.tell(Trial(0, settings, "complete", trial(0, 0.5, 0.5).folds, 1.0))
    assert leaderboard(study).splitlines()[:2] == [
        "trial    mean  spread  multiply-adds  seconds  network  size  optimizer  batch  epochs  learning rate",
        "    1  0.5000  0.0000          3e+03        1        -     -  sgd            -      20       0.000123",
    ]


# --- the bar ------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True

    @property
    def line(self):
        """The present text of the last line."""
        return [part for part in self.getvalue().split("\n")[-1].split("\r") if part][-1].strip()


def at_a_terminal(monkeypatch):
    """A terminal for standard output and standard error."""
    terminal = Terminal()
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, terminal)
    return terminal


def test_the_bar_on_a_terminal(monkeypatch):
    terminal = at_a_terminal(monkeypatch)
    study = Study(StudyConfig(FULL, 0, initial_points=[SETTINGS, {**SETTINGS, "epochs": 30}]))
    bar = StudyProgressBar(study, planned=10, folds=5)
    assert terminal.line.startswith("trials:   0%|")
    assert " 0/10 " in terminal.line
    one, other = study.ask(), study.ask()
    bar.step(one, fold=0, epoch=1, share=0.05)
    assert terminal.line.endswith("trial/s, trial 1: fold 1/5, epoch 1/20, 1 % done]")
    bar.step(other, fold=0, epoch=1, share=0.05)
    bar.step(one, fold=4, epoch=20, share=0.9)
    parts = terminal.line.split("; ")
    assert parts[0].endswith("trial 1: fold 5/5, epoch 20/20, 98 % done, 00:00 left")
    assert parts[1] == "trial 2: fold 1/5, epoch 1/30, 1 % done]"

    ended = trial(0, *[0.75] * 5)
    study.tell(ended)
    bar.on_trial_end(ended)
    assert " 1/10 " in terminal.line
    assert terminal.line.endswith(f"best 0.7500 ({SHORTLY}); trial 2: fold 1/5, epoch 1/30, 1 % done]")
    echo(trial_line(ended, 10, best=True))
    lines = terminal.getvalue().split("\n")
    assert trial_line(ended, 10, best=True) in [part.strip() for line in lines for part in line.split("\r")]
    assert terminal.line.startswith("trials:"), "a line leaves the bar whole"

    failed = Trial(1, other.settings, "failed")
    study.tell(failed)
    bar.on_trial_end(failed)
    assert " 2/10 " in terminal.line
    assert terminal.line.endswith(f"best 0.7500 ({SHORTLY})]")
    bar.close()


def test_a_closed_bar_is_wiped(monkeypatch):
    terminal = at_a_terminal(monkeypatch)
    bar = StudyProgressBar(Study(StudyConfig(FULL, 0)), planned=10, folds=5)
    assert "trials:   0%|" in terminal.getvalue()
    bar.close()
    assert [part.strip() for part in terminal.getvalue().split("\r")][-2:] == ["", ""], "it was wiped"


def test_a_resumed_study_continues_to_count(monkeypatch):
    terminal = at_a_terminal(monkeypatch)
    study = study_of(*(trial(number, 0.5, 0.5) for number in range(3)))
    with closing(StudyProgressBar(study, planned=4, folds=2)):
        assert terminal.line.startswith("trials:  75%|")
        assert " 3/4 " in terminal.line


def test_no_bar_without_a_terminal(capsys):
    study = Study(StudyConfig(FULL, 0))
    with closing(StudyProgressBar(study, planned=10, folds=5)) as bar:
        proposal = study.ask()
        bar.step(proposal, 0, 1, 0.05)
        ended = Trial(0, proposal.settings, "complete", trial(0, 0.5, 0.5).folds)
        study.tell(ended)
        bar.on_trial_end(ended)
    assert capsys.readouterr() == ("", "")


def test_a_log_has_a_line_after_a_long_silence(monkeypatch, capsys):
    study = Study(StudyConfig(FULL, 0, initial_points=[SETTINGS]))
    now = 1e9
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(terminal, "_last_line", 0.0)
    with closing(StudyProgressBar(study, planned=10, folds=5)) as bar:
        proposal = study.ask()
        now += SILENCE_S
        bar.tick([0])
        bar.step(proposal, 0, 1, 0.05)
        now += 10
        bar.step(proposal, 0, 2, 0.1)
        bar.tick([0])
        now += SILENCE_S
        bar.step(proposal, 0, 5, 0.25)
        bar.tick([0, 1])
    assert capsys.readouterr().out.splitlines() == [
        "trial   1/10  preparing its images",
        "trial   1/10  fold 1/5, epoch 5/20, 5 % done, 15:50 left",  # 4 % in 40 seconds
        "trial   2/10  preparing its images",
    ]


@pytest.mark.parametrize(("budget", "workers", "left"), [(1e4, 1, "08:00"), (1e4, 2, "04:00"), (120.0, 1, "02:00")])
def test_the_time_left_for_the_study_is_that_of_the_trials_to_come(monkeypatch, capsys, budget, workers, left):
    """The median of the first trials took 60 seconds, and 8 are to come."""
    study, now = Study(StudyConfig(FULL, 0, prune=False)), 1e9
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(terminal, "_last_line", 0.0)
    with closing(StudyProgressBar(study, planned=MIN_MEASURED + 8, folds=5, workers=workers)) as bar:
        for seconds in (20.0, 30.0, 60.0, 90.0, 1200.0):
            study.tell(replace(ended(study.ask(), 0.5), seconds=seconds))
        now += SILENCE_S
        bar.tick([5], budget)
    assert capsys.readouterr().out == f"trial   6/13  preparing its images; study: about {left} left\n"


@pytest.mark.parametrize(
    ("done", "line"),
    [
        (fold(*[0.9512] * 12, seconds=310.4), "trial   1/30  fold 2/5  accuracy 0.9512 after 12 epochs, 310 s\n"),
        (fold(0.5, seconds=LONG_FOLD_S + 1), "trial   1/30  fold 2/5  accuracy 0.5000 after 1 epoch, 31 s\n"),
        (fold(0.5, seconds=LONG_FOLD_S), ""),
    ],
)
def test_a_long_fold_is_a_line_without_a_bar(monkeypatch, capsys, done, line):
    study = Study(StudyConfig(FULL, 0))
    proposal = study.ask()
    StudyProgressBar(study, 30, 5).on_fold_end(proposal, 1, done)
    assert capsys.readouterr() == (line, "")
    terminal = at_a_terminal(monkeypatch)
    StudyProgressBar(study, 30, 5).on_fold_end(proposal, 1, done)
    assert "accuracy" not in terminal.getvalue()
