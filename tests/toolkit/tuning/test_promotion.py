"""Promotions worked out by hand: what a paused trial is predicted to reach, what it costs, and which one goes on."""

from dataclasses import replace

import pytest

from support.trials import fold
from toolkit.tuning.promotion import (
    RUNGS,
    hoped_accuracy,
    is_left_behind,
    next_promoted,
    pause_epoch,
    predicted_accuracy,
    price,
    reason_to_end,
)
from toolkit.tuning.space import Choice
from toolkit.tuning.study import Study, StudyConfig
from toolkit.tuning.trial import Trial

WHOLE = len(RUNGS)


def paused(number, *curve, epochs=12, rung=1, cost=1.0):
    return Trial(number, {"epochs": epochs}, "paused", (measured(*curve),), rung=rung, full_cost=cost)


def complete(number, *accuracies, epochs=12, cost=1.0):
    """All folds alike in their course: an accuracy of 0.2 until half of the schedule."""
    folds = tuple(measured(*[0.2] * (epochs // 2), accuracy) for accuracy in accuracies)
    return Trial(number, {"epochs": epochs}, "complete", folds, rung=WHOLE, full_cost=cost)


def measured(*curve):
    """A fold whose loss is the error."""
    bare = fold(*curve)
    return replace(bare, epochs=tuple({**epoch, "val_loss": 1 - epoch["val_accuracy"]} for epoch in bare.epochs))


# --- where a trial pauses -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "expected"), [(50, [9, 25, 50]), (10, [2, 5, 10]), (3, [2, 2, 3]), (2, [2, 2, 2]), (1, [1, 1, 1])]
)
def test_a_trial_pauses_after_a_sixth_and_a_half_and_the_whole_of_its_first_fold(epochs, expected):
    assert [pause_epoch(rung, epochs) for rung in range(WHOLE)] == expected


# --- what it is predicted to reach, and its price -----------------------------------------------


def test_without_a_complete_trial_it_counts_as_it_is():
    assert predicted_accuracy(paused(0, 0.1, 0.4, 0.3), []) == pytest.approx(0.4)


def test_the_error_shrinks_as_it_did_for_complete_trials():
    """After 2 of 12 epochs these had an error of 0.8, and in the end 0.2, 0.4 and 0.1: a quarter in the middle."""
    others = [complete(1, 0.8, 0.8), complete(2, 0.6, 0.6), complete(3, 0.9, 0.9, epochs=24)]
    assert predicted_accuracy(paused(0, 0.1, 0.4), others) == pytest.approx(1 - 0.6 / 4)


def test_whole_folds_are_compared_with_the_same_folds():
    """The first fold was easy for the other one: an error of 0.1 there, and of 0.2 in the mean."""
    other = complete(1, 0.9, 0.7)
    assert predicted_accuracy(paused(0, 0.2, 0.95, rung=WHOLE), [other]) == pytest.approx(0.95)
    assert predicted_accuracy(paused(0, 0.2, 0.85, rung=WHOLE), [complete(1, 0.8, 0.9)]) == pytest.approx(
        1 - 0.15 * 0.75
    )


def test_the_price_is_a_standard_error_for_each_doubling_of_cost():
    """The folds 0.7 and 0.9 have a standard deviation of 0.1414, and their mean a standard error of 0.1."""
    incumbent = complete(1, 0.7, 0.9, cost=8.0)
    costs = (1.0, 4.0, 8.0, 16.0, 64.0)
    assert [price(paused(0, 0.5, cost=cost), incumbent, 2.0) for cost in costs] == pytest.approx(
        [-0.2, 0.0, 0.1, 0.2, 0.4]
    )
    assert price(paused(0, 0.5, cost=64.0), incumbent, 32.0) == pytest.approx(0.2), "half of it is typical"


@pytest.mark.parametrize(
    ("accuracy", "cost", "reason"),
    [
        (0.90, 1.0, ""),
        (0.60, 1.0, "as good as trial 2 at 1 times its cost: 0.8414 at best, and it has 0.8000"),
        (0.50, 0.25, ""),
        (0.70, 4.0, "as good as trial 2 at 4 times its cost: 0.9414 at best, and it has 0.8000"),
        (0.30, 0.5, "worse than trial 2 at 0.5 times its cost: 0.5414 at best, and it has 0.8000"),
    ],
)
def test_what_does_not_promise_its_price_ends(accuracy, cost, reason):
    """The incumbent had 0.7 in the first fold and 0.8 in the mean; a standard deviation of 0.1414 is chance."""
    incumbent = complete(1, 0.7, 0.9)
    one = paused(0, accuracy, rung=WHOLE, cost=cost)
    assert reason_to_end(one, [incumbent], 1.0) == reason


def test_what_perfect_accuracy_would_not_pay_is_not_begun():
    """The incumbent lacks 0.02, of 0.01 a standard error of its mean."""
    incumbent = complete(1, 0.97, 0.99)
    begun = Trial(0, {"epochs": 12}, "paused", full_cost=1.9)
    assert reason_to_end(begun, [incumbent], 1.0) == ""
    assert reason_to_end(replace(begun, full_cost=2.1), [incumbent], 1.0) == (
        "before its first epoch: not worth 2.1 times the cost of trial 2, which has 0.9800"
    )
    assert reason_to_end(replace(begun, full_cost=2.1), [incumbent], 1.2) == "", "others cost as much"


def test_within_the_first_fold_twice_the_greatest_gain_of_any_trial_is_hoped_for():
    """Errors of 0.8 after 2 of 12 epochs came down to 0.2 and to 0.04."""
    incumbent = complete(1, 0.95, 0.97)
    hoped = hoped_accuracy(paused(0, 0.1, 0.4), incumbent, [incumbent, complete(2, 0.8, 0.8)])
    assert hoped == pytest.approx(1 - 0.6 * 0.02 / 0.8 + incumbent.std_accuracy)


def test_without_an_incumbent_nothing_ends():
    assert reason_to_end(paused(0, 0.0), [], 1.0) == ""


# --- which one goes on --------------------------------------------------------------------------


def test_a_third_of_those_at_a_rung_is_promoted():
    trials = [paused(number, 0.1, accuracy) for number, accuracy in enumerate((0.5, 0.7, 0.6))]
    assert next_promoted(trials[:2], trials[:2], last=False, first=False) is None, "of two, a third is none"
    assert next_promoted(trials, trials, last=False, first=False) is trials[1]
    ended = replace(trials[1], state="pruned")
    assert next_promoted([trials[0], trials[2]], [*trials[::2], ended], last=False, first=False) is None, (
        "its place is taken"
    )


def test_the_last_third_is_rounded_up():
    trials = [paused(number, 0.1, accuracy) for number, accuracy in enumerate((0.5, 0.7))]
    assert next_promoted(trials, trials, last=True, first=False) is trials[1]
    assert next_promoted(trials[:1], trials, last=True, first=False) is None
    assert next_promoted([], trials, last=True, first=False) is None


def test_for_the_first_complete_trial_the_best_of_those_that_have_come_furthest_goes_on():
    trials = [paused(number, 0.1, accuracy) for number, accuracy in enumerate((0.5, 0.7, 0.6))]
    ahead = paused(1, 0.1, 0.7, 0.7, 0.7, 0.7, 0.7, rung=2)
    others = [trials[0], trials[2]]
    assert next_promoted([*others, ahead], [*others, ahead], last=False, first=True) is ahead
    assert next_promoted([*others, ahead], [*others, ahead], last=False, first=False) is None


def test_a_whole_first_fold_is_followed_by_the_others():
    trials = [paused(number, 0.1, accuracy, rung=WHOLE) for number, accuracy in enumerate((0.5, 0.7))]
    assert next_promoted(trials[:1], trials, last=False, first=False) is trials[0]


def test_what_cannot_become_one_of_the_best_third_is_left_behind():
    """Three trials have one place; with one more there are two places, and with four more three."""
    trials = [paused(number, 0.1, accuracy) for number, accuracy in enumerate((0.5, 0.7, 0.6))]
    left = [[is_left_behind(trial, trials, to_come) for trial in trials] for to_come in (0, 1, 4)]
    assert left == [[True, False, True], [True, False, False], [False, False, False]]
    assert not is_left_behind(paused(3, 0.1, 0.1, rung=WHOLE), [*trials, paused(4, 0.9, rung=WHOLE)], 0)


def test_the_loss_decides_between_equals():
    worse, better = paused(0, 0.5, 0.5), paused(1, 0.5, 0.5)
    epochs = tuple({**epoch, "val_loss": epoch["val_loss"] / 2} for epoch in better.folds[0].epochs)
    better = replace(better, folds=(replace(better.folds[0], epochs=epochs),))
    assert next_promoted([worse, better], [worse, better, paused(2, 0.1)], last=False, first=False) is better


def test_the_cheapest_of_the_promoted_goes_first():
    dear, cheap = paused(0, 0.9, cost=8.0), paused(1, 0.8, cost=1.0)
    rest = [paused(number, 0.1) for number in range(2, 6)]
    assert next_promoted([dear, cheap, *rest], [dear, cheap, *rest], last=False, first=False) is cheap


def test_a_rung_compares_what_trials_had_then():
    """One that has gone on since counts with its accuracy at that rung: 0.3 after 2 of 12 epochs."""
    ahead = paused(0, 0.2, 0.3, 0.4, 0.5, 0.9, 0.9, rung=2)
    behind = [paused(1, 0.2, 0.6), paused(2, 0.1, 0.2)]
    assert next_promoted(behind, [ahead, *behind], last=False, first=False) is behind[0]


# --- in a study ---------------------------------------------------------------------------------


def test_a_study_pauses_promotes_and_is_read_back_from_its_entries():
    space, entries = {"epochs": Choice((12,)), "optimizer": Choice(("adam",)), "dropout": Choice((0.1, 0.2))}, []
    config = StudyConfig(space, seed=0, n_startup_trials=10**9)
    study = Study(config, record=entries.append)
    for accuracy in (0.5, 0.7, 0.6):
        proposal = study.ask()
        assert (proposal.rung, proposal.incumbent) == (0, None)
        study.tell(replace(paused(proposal.number, 0.1, accuracy), settings=proposal.settings))
    assert (len(study.trials), [*study.paused], [*study.under_way]) == (0, [0, 1, 2], [])
    promoted = study.promote(last=False)
    assert (promoted.number, promoted.rung) == (1, 1)
    assert study.promote(last=False) is None
    read = Study(config, entries)
    assert (read.paused, read.under_way, read.n_proposed) == (study.paused, study.under_way, 3)
    study.tell(replace(complete(1, 0.9, 0.9), settings=promoted.settings))
    assert study.best.number == 1
    assert study.rejected(1) == [], "one to come, and two of four have a place"
    (left_behind,) = study.rejected(0)
    assert (left_behind.number, left_behind.state) == (0, "pruned")
    assert left_behind.reason == "not among the best third at rung 1 of 3"
    study.tell(left_behind)
    assert ([trial.number for trial in study.trials], [*study.paused]) == ([1, 0], [2])
    assert study.promote(last=True).number == 2
    assert Study(config, entries).trials == study.trials


def test_without_pruning_trials_run_all_folds_at_once():
    study = Study(StudyConfig({"epochs": Choice((5,)), "optimizer": Choice(("adam",))}, seed=0, prune=False))
    assert study.ask().rung == WHOLE
