"""A study proposes points of its space and nothing else, the same ones again, and better ones as it learns."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from support.trials import POINT, ended, fold, run_trial
from toolkit.errors import DataError
from toolkit.tuning.promotion import RUNGS
from toolkit.tuning.pruning import Incumbent
from toolkit.tuning.space import FULL, QUICK, Choice, Integers, contains
from toolkit.tuning.study import Study, StudyConfig, default_startup_trials
from toolkit.tuning.trial import Trial

RANDOM_ONLY = 10**9  # start-up trials: more than any study here has


def run(study, trials, score):
    """Propose and record trials; a score of None is a failed trial."""
    points = []
    for _ in range(trials):
        proposal = study.ask()
        accuracy = score(proposal.settings)
        study.tell(
            Trial(proposal.number, proposal.settings, "failed", reason="diverged")
            if accuracy is None
            else ended(proposal, accuracy)
        )
        points.append(proposal.settings)
    return points


def wanted(point):
    """An accuracy with one peak: a learning rate of 1e-4, a dropout of 0.2, a ResNet under sgd."""
    distance = abs(math.log10(point["learning_rate"]) + 4) + 2 * abs(point["dropout"] - 0.2)
    return 0.9 - 0.3 * distance - 0.1 * (point["model_type"] != "resnet18") - 0.1 * (point["optimizer"] != "sgd")


def losses(study):
    """The losses in Hyperopt, in the order of proposal; infinity without a loss."""
    documents = sorted(study._history.trials, key=lambda document: document["tid"])
    return [document["result"].get("loss", math.inf) for document in documents]


# --- what is proposed ---------------------------------------------------------------------------


def assert_inside(point, space):
    assert contains(space, point)
    assert set(point) == set(space) - (set() if point["optimizer"] == "sgd" else {"momentum"})
    for name, value in point.items():
        dimension = space[name]
        assert type(value) in (int, float, str), f"{name} is of a kind that MLflow and JSON do not know"
        if isinstance(dimension, Choice):
            assert value in dimension.options
        else:
            assert dimension.low <= value <= dimension.high
            assert isinstance(value, int) == isinstance(dimension, Integers)


@pytest.mark.parametrize("space", [FULL, QUICK], ids=["full", "quick"])
def test_proposals_stay_inside_the_space(space):
    for point in run(Study(StudyConfig(space, seed=1)), 60, wanted):
        assert_inside(point, space)


def test_the_same_seed_and_history_propose_the_same():
    first, second, other = (run(Study(StudyConfig(FULL, seed)), 12, wanted) for seed in (3, 3, 4))
    assert first == second
    assert first != other
    assert first[0] != other[0]


# --- learning -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("planned", "random"), [(1, 5), (20, 5), (24, 6), (30, 7), (60, 15), (80, 20), (500, 20), (100_000, 20)]
)
def test_a_short_search_is_not_purely_random(planned, random):
    assert default_startup_trials(planned) == random


@pytest.mark.parametrize("startup", [3, 8])
def test_a_proposal_depends_on_the_results_before_it_after_the_random_start(startup):
    scores = (wanted, lambda point: 1 - wanted(point))
    good, bad = (run(Study(StudyConfig(FULL, 3, startup)), startup + 4, score) for score in scores)
    assert good[:startup] == bad[:startup]
    assert good[startup] != bad[startup]


def test_failing_settings_are_proposed_less_often():
    """A third of random points has this network."""
    points = run(
        Study(StudyConfig(FULL, seed=0)), 60, lambda point: None if point["model_type"] == "resnet18" else wanted(point)
    )
    share = sum(point["model_type"] == "resnet18" for point in points[20:]) / 40
    assert share < 0.25


def test_learning_beats_chance():
    """The best of 40 trials is nearer to the peak with TPE than at random, in the mean of five seeds."""
    space = {name: FULL[name] for name in ("learning_rate", "dropout", "model_type", "optimizer", "momentum")}
    gained = []
    for seed in range(5):
        learning, random = (
            max(map(wanted, run(Study(StudyConfig(space, seed, startup, prune=False)), 40, wanted)))
            for startup in (default_startup_trials(40), RANDOM_ONLY)
        )
        gained.append(learning - random)
    assert np.mean(gained) > 0.02


# --- what comes of trials -----------------------------------------------------------------------


def test_failed_and_pruned_trials_never_win():
    study = Study(StudyConfig(QUICK, seed=0))
    assert study.best is None
    assert study.ranking == []
    for accuracy, state in (
        (0.99, "failed"), (0.98, "pruned"), (0.5, "complete"), (0.7, "complete"), (0.97, "pruned"), (0.7, "complete"),
    ):  # fmt: skip
        run_trial(study, accuracy, state)
    assert study.best is study.trials[3]  # of equals the first
    assert [trial.number for trial in study.ranking] == [3, 5, 2]
    assert [study.count(state) for state in ("complete", "pruned", "failed")] == [3, 2, 1]


def test_of_equals_the_one_that_ended_first_is_the_best():
    study = Study(StudyConfig(QUICK, seed=0))
    early, late = study.ask(), study.ask()
    assert list(study.under_way.values()) == [early, late]
    for proposal in (late, early):
        study.tell(ended(proposal, 0.7))
    assert study.best is not None
    assert study.best.number == late.number
    assert [trial.number for trial in study.trials] == [1, 0]
    assert study.under_way == {}


def test_the_cheapest_within_one_standard_error_is_chosen_if_asked_for():
    """Folds of 0.7 and 0.9 have a standard error of 0.1 of their mean, 0.8."""
    study = Study(StudyConfig(QUICK, seed=0))
    assert study.chosen(one_standard_error=True) is None
    for low, high, cost in ((0.7, 0.9, 8.0), (0.71, 0.71, 4.0), (0.69, 0.69, 1.0), (0.75, 0.75, 5.0)):
        one = ended(study.ask(), low)
        study.tell(replace(one, folds=(fold(low), fold(high)), full_cost=cost))
    assert study.chosen(one_standard_error=False) is study.trials[0]
    assert study.chosen(one_standard_error=True) is study.trials[1]


def test_the_random_points_come_cheapest_first():
    def points(**options):
        study = Study(StudyConfig(FULL, 3, 5, **options), cost_of=lambda point: point["epochs"])
        return [(proposal := study.ask()).settings | {"cost": proposal.full_cost} for _ in range(5)]

    cheapest_first, as_drawn = points(), points(prune=False)
    assert cheapest_first == sorted(as_drawn, key=lambda point: point["cost"])
    assert cheapest_first != as_drawn
    assert all(point["cost"] == point["epochs"] for point in cheapest_first)


def test_what_is_not_worth_its_first_epoch_ends_without_one_and_is_the_last_to_learn_from():
    study = Study(StudyConfig(QUICK, 0, RANDOM_ONLY), cost_of=lambda _: 2.0**20)
    study.tell(replace(ended(study.ask(), 0.99), full_cost=1.0))
    outcome = study.ask().outcome
    assert (outcome.state, outcome.folds, outcome.reason[:24]) == ("pruned", (), "before its first epoch: ")
    study.tell(outcome)
    assert losses(study) == [pytest.approx(0.01), 1.0]


def test_since_best_counts_in_the_order_of_results():
    study = Study(StudyConfig(QUICK, seed=0))
    assert study.since_best == 0
    counts = []
    for accuracy, state in (
        (0.9, "failed"), (0.9, "pruned"), (0.5, "complete"), (0.4, "complete"), (0.9, "failed"), (0.5, "complete"),
        (0.6, "complete"), (0.9, "pruned"),
    ):  # fmt: skip
        run_trial(study, accuracy, state)
        counts.append(study.since_best)
    assert counts == [0, 0, 0, 1, 2, 3, 0, 1]
    slow, quick = study.ask(), study.ask()
    study.tell(ended(quick, 0.7))
    study.tell(ended(slow, 0.6))
    assert study.since_best == 1


def test_a_study_of_failures_continues():
    study = Study(StudyConfig(FULL, seed=0))
    assert len(run(study, 12, lambda _: None)) == 12
    assert study.best is None
    assert losses(study) == [math.inf] * 12


# --- losses in Hyperopt -------------------------------------------------------------------------


def test_a_pruned_trial_has_a_higher_loss_than_the_best():
    """Its few folds may be lucky ones."""
    study = Study(StudyConfig(QUICK, seed=0))
    run_trial(study, 0.75)
    for accuracy in (0.9375, 0.75, 0.5):
        run_trial(study, accuracy, "pruned")
    run_trial(study, 0.25)
    just_worse = 0.25 + 1e-9
    assert losses(study) == [0.25, just_worse, just_worse, 0.5, 0.75]
    study.ask()
    run_trial(study, 0.9375, "failed")
    study.tell(Trial(5, study.under_way[5].settings, "pruned", reason="before its first fold was done"))
    assert losses(study)[5:] == [1.0, math.inf], "what ended without an epoch is the last to learn from"


def test_the_loss_of_a_pruned_trial_is_what_it_would_have_come_to():
    """The first fold is easy: the best one had an error of 0.125 in it and of 0.375 in the mean of all."""
    study = Study(StudyConfig(QUICK, seed=0))
    for accuracies in ((0.875, 0.5, 0.5), (0.75,), (0.875, 0.25), (1.0, 0.25), (1.0,)):
        number, state = study.ask().number, "complete" if len(accuracies) == 3 else "pruned"
        folds = tuple(fold(own) for own in accuracies)
        study.tell(Trial(number, study.under_way[number].settings, state, folds, rung=len(RUNGS)))
    assert losses(study) == pytest.approx([0.375, 0.375 + 1e-9, 0.4375, 0.375 + 1e-9, 0.375 + 1e-9])


states = st.lists(st.tuples(st.integers(0, 50).map(lambda right: right / 50), st.sampled_from(["complete", "pruned"])))


@budget(max_examples=25)
@given(states.filter(bool))
def test_no_pruned_trial_has_the_loss_of_the_best(ends):
    study = Study(
        StudyConfig({"epochs": Integers(1, 9), "optimizer": Choice(("adam",))}, seed=0, n_startup_trials=RANDOM_ONLY)
    )
    run_trial(study, 0.5)
    for accuracy, state in ends:
        run_trial(study, accuracy, state)
    assert study.best is not None
    pruned = [loss for loss, trial in zip(losses(study), study.trials, strict=True) if trial.state == "pruned"]
    assert all(loss > 1 - study.best.mean_accuracy for loss in pruned)
    assert min(losses(study)) == 1 - study.best.mean_accuracy


# --- pruning ------------------------------------------------------------------------------------


def test_a_proposal_carries_the_incumbent():
    study = Study(StudyConfig(FULL, seed=0))
    first, second = study.ask(), study.ask()
    assert first.incumbent is second.incumbent is None
    study.tell(ended(second, 0.5))
    third = study.ask()
    assert third.incumbent == Incumbent(1, ((0.25, 0.5), (0.25, 0.5)), epochs=second.settings["epochs"], noise=0.001)
    study.tell(ended(first, 0.9, "pruned"))
    fourth = study.ask()
    assert fourth.incumbent == third.incumbent, "a pruned trial is never the incumbent"
    study.tell(ended(third, 0.75))
    assert study.under_way[3].incumbent == third.incumbent, "a running trial keeps its incumbent"
    assert study.ask().incumbent == Incumbent(
        2, ((0.375, 0.75), (0.375, 0.75)), epochs=third.settings["epochs"], noise=0.001
    )


def test_without_pruning_there_is_no_incumbent_and_the_same_points():
    with_it, without = Study(StudyConfig(FULL, seed=0)), Study(StudyConfig(FULL, seed=0, prune=False))
    for _ in range(8):
        one, other = with_it.ask(), without.ask()
        assert other.incumbent is None
        assert one.settings == other.settings
        for study, proposal in ((with_it, one), (without, other)):
            study.tell(ended(proposal, 0.5))
    assert with_it.ask().incumbent is not None


# --- the same point again -----------------------------------------------------------------------

ONE_POINT = {"epochs": Choice((5,)), "optimizer": Choice(("adam",))}


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("complete", "as trial 1, which had the same settings"),
        ("pruned", "as trial 1, which had the same settings: too bad"),
        ("failed", "as trial 1, which had the same settings: too bad"),
    ],
)
def test_a_known_point_is_repeated_at_no_cost(state, reason):
    study = Study(StudyConfig(ONE_POINT, seed=0))
    proposal = study.ask()
    assert study.ask().known is None, "the first one is still under way"
    assert proposal.outcome is None
    study.tell(ended(proposal, 0.5, state, reason="" if state == "complete" else "too bad"))
    again = study.ask()
    assert again.known is study.trials[0]
    repeated = again.outcome
    assert repeated is not None
    assert (repeated.number, repeated.state, repeated.settings) == (2, state, proposal.settings)
    assert (repeated.reason, repeated.seconds, repeated.images) == (reason, 0.0, 0)
    assert repeated.accuracies == study.trials[0].accuracies
    assert [one.curve for one in repeated.folds] == [one.curve for one in study.trials[0].folds]
    assert study.trials[0].images > 0
    study.tell(repeated)
    if state == "complete":
        assert study.best is study.trials[0]
    assert study.ask().known is study.trials[0], "and not a repetition"


# --- what it begins with ------------------------------------------------------------------------


def test_complete_initial_points_come_first():
    sgd = {**POINT, "optimizer": "sgd", "momentum": 0.95}
    study = Study(StudyConfig(FULL, seed=0, initial_points=[POINT, sgd]))
    assert [study.ask().settings for _ in range(2)] == [POINT, sgd]
    assert [study.ask().settings for _ in range(3)] == run(Study(StudyConfig(FULL, seed=0)), 5, wanted)[2:]


def test_missing_values_of_an_initial_point_are_proposed():
    """As it would have been: here at random, with the seed of its number."""
    given = [{"learning_rate": 1e-4, "epochs": 33}, {"image_size": 256}, {}]
    free = run(Study(StudyConfig(FULL, seed=0)), 4, wanted)
    expected = [{**point, **parts} for point, parts in zip(free, [*given, {}], strict=True)]
    assert run(Study(StudyConfig(FULL, seed=0, initial_points=given)), 4, wanted) == expected


@pytest.mark.parametrize("given", [{"optimizer": "adam"}, {"optimizer": "sgd", "momentum": 0.95}])
def test_initial_points_have_momentum_with_sgd_only(given):
    """Of twenty proposals, about half have the other optimizer."""
    replaced = 0
    for seed in range(20):
        (free,), (settings,) = (
            run(Study(StudyConfig(FULL, seed, initial_points=first)), 1, wanted) for first in ([], [given])
        )
        replaced += free["optimizer"] != settings["optimizer"]
        assert_inside(settings, FULL)
        assert settings == {name: free[name] for name in free if name not in ("optimizer", "momentum")} | given
    assert 5 <= replaced <= 15


# --- what it knows from another study -----------------------------------------------------------


@cache
def of_another_study(count):
    """A third complete, a third pruned and a third failed: those without a ResNet under sgd."""
    study = Study(StudyConfig(FULL, seed=99, n_startup_trials=RANDOM_ONLY))
    for number in range(count):
        proposal = study.ask()
        study.tell(ended(proposal, wanted(proposal.settings), ("complete", "pruned", "failed")[number % 3]))
    return study.trials


def test_earlier_trials_improve_proposals():
    """Its very first proposals are nearer to the peak than random ones, in the mean of five seeds."""
    earlier = of_another_study(60)
    taught, random = (
        [wanted(point) for seed in range(5) for point in run(Study(StudyConfig(FULL, seed, earlier=known)), 3, wanted)]
        for known in (earlier, ())
    )
    assert np.mean(taught) > np.mean(random) + 0.1


def test_earlier_trials_are_not_counted():
    earlier = of_another_study(9)
    study = Study(StudyConfig(FULL, seed=0, earlier=earlier))
    assert (study.trials, study.best, study.since_best, study.under_way) == ([], None, 0, {})
    proposal = study.ask()
    assert (proposal.number, proposal.incumbent, proposal.known) == (0, None, None)
    repeated = Study(StudyConfig(FULL, seed=0, initial_points=[earlier[0].settings], earlier=earlier)).ask()
    assert repeated.known is None, "its folds or its data may be others"
    study.tell(ended(proposal, 0.1))
    assert study.best is not None
    assert study.best.number == 0


def test_earlier_trials_have_the_losses_of_others():
    earlier = of_another_study(9)
    best = max(trial.mean_accuracy for trial in earlier if trial.state == "complete")
    study = Study(StudyConfig(FULL, seed=0, earlier=earlier))
    run_trial(study, 0.5)
    *before, own = losses(study)
    assert own == 0.5, "they were before its own"
    for trial, loss in zip(earlier, before, strict=True):
        if trial.state == "pruned":
            assert 1 - best < loss < 1
        else:
            assert loss == (1 - trial.mean_accuracy if trial.state == "complete" else math.inf)


def test_earlier_trials_outside_the_space_are_left_out():
    earlier = of_another_study(40)
    narrow = {**FULL, "image_size": Choice((128, 224)), "batch_size": Choice((32, 64, 256))}
    inside = [
        trial for trial in earlier if trial.settings["image_size"] != 256 and trial.settings["batch_size"] in (32, 64)
    ]
    assert 5 <= len(inside) < 30
    assert len(losses(Study(StudyConfig(narrow, seed=0, earlier=earlier)))) == len(inside)
    assert run(Study(StudyConfig(narrow, 0, earlier=earlier)), 2, wanted) == run(
        Study(StudyConfig(narrow, 0, earlier=inside)), 2, wanted
    )
    for space in (QUICK, {**FULL, "label_smoothing": Choice((0.1,))}):
        assert run(Study(StudyConfig(space, 0, earlier=earlier)), 2, wanted) == run(
            Study(StudyConfig(space, 0)), 2, wanted
        )


# --- resumed ------------------------------------------------------------------------------------

ENDS = {"complete": 0.6, "pruned": 0.25, "failed": 0.15}


def worked(study, count, random):
    """Up to two running trials at a time, which end in any order and state; some never end."""
    proposals = []
    while len(proposals) < count:
        if len(study.under_way) < 2 and random.random() < 0.7:
            proposals.append(study.ask())
        elif study.under_way:
            proposal = study.under_way[random.choice(list(study.under_way))]
            state = str(random.choice(list(ENDS), p=list(ENDS.values())))
            study.tell(ended(proposal, max(0.0, round(wanted(proposal.settings), 1)), state))
    return proposals


def through_text(entries):
    """As a journal gives them back."""
    return [json.loads(json.dumps(entry)) for entry in entries]


def assert_resumes(make, entries, proposals):
    """A study resumed after some entries proposes and records the rest of them."""
    for end in range(len(entries) + 1):
        recorded = entries[:end]
        again = make(entries=through_text(recorded), record=recorded.append)
        done = sum("proposal" in entry for entry in entries[:end])
        ended_numbers = {entry["result"]["number"] for entry in entries[:end] if "result" in entry}
        assert again.under_way == {number: proposals[number] for number in range(done) if number not in ended_numbers}
        for entry in entries[end : end + 4]:  # later ones are reached from later ends
            if "proposal" in entry:
                assert again.ask() == proposals[entry["proposal"]["number"]]
            else:
                again.tell(Trial.from_json(entry["result"]))
        assert through_text(recorded) == through_text(entries[: len(recorded)])


@budget(max_examples=3)
@given(st.integers(0, 2**31))
def test_a_resumed_study_proposes_the_same_rest(seed):
    """Trials of every state, two at a time and out of order, with initial points and earlier trials."""

    def make(**given):
        first = [{"epochs": 12}, {"optimizer": "adam"}]
        return Study(
            StudyConfig(FULL, seed, n_startup_trials=4, initial_points=first, earlier=of_another_study(2)), **given
        )

    entries = []
    proposals = worked(make(record=entries.append), 9, np.random.default_rng(seed))
    assert_resumes(make, entries, proposals)


def test_a_resumed_study_knows_the_same_points():
    def make(**given):
        return Study(
            StudyConfig({"epochs": Integers(1, 4), "optimizer": Choice(("adam",))}, 0, n_startup_trials=2), **given
        )

    entries = []
    study = make(record=entries.append)
    proposals = []
    for number in range(10):
        proposals.append(study.ask())
        repeated = proposals[-1].outcome
        study.tell(repeated or ended(proposals[-1], number / 10))
    assert sum(proposal.known is not None for proposal in proposals) >= 6
    assert_resumes(make, entries, proposals)


IN_ANOTHER_PROCESS = """
import json, sys
from toolkit.tuning.space import FULL
from toolkit.tuning.study import Study, StudyConfig

print(json.dumps(Study(StudyConfig(FULL, 7, n_startup_trials=4), entries=json.load(sys.stdin)).ask().settings))
"""


def test_another_process_proposes_the_same():
    """A process in which strings have other hashes, and sets another order."""
    entries = []
    study = Study(StudyConfig(FULL, 7, n_startup_trials=4), record=entries.append)
    worked(study, 10, np.random.default_rng(7))
    found = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS], input=json.dumps(entries), capture_output=True, text=True,
        check=True, env={**os.environ, "PYTHONHASHSEED": "12345"},
    )  # fmt: skip
    assert json.loads(found.stdout) == study.ask().settings


def test_other_entries_are_skipped():
    """The journal has some about MLflow too."""
    entries = [{"run": "abc"}]
    study = Study(StudyConfig(QUICK, 0), record=entries.append)
    run_trial(study, 0.5)
    entries += [{"finished": 0}]
    assert Study(StudyConfig(QUICK, 0), entries=entries).trials == study.trials


def test_what_cannot_be_recorded_does_not_count():
    full = False

    def record(entry):
        if full:
            raise DataError("the disk is full")

    study, other = Study(StudyConfig(FULL, 0), record=record), Study(StudyConfig(FULL, 0))
    run_trial(study, 0.5)
    run_trial(other, 0.5)
    full = True
    with pytest.raises(DataError):
        study.ask()
    full = False
    proposal = study.ask()
    assert proposal == other.ask()
    full = True
    with pytest.raises(DataError):
        study.tell(ended(proposal, 0.9))
    assert list(study.under_way) == [1]
    assert [trial.number for trial in study.trials] == [0]
    assert losses(study) == [0.5, math.inf]
