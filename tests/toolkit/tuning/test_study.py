"""A study proposes points of its space and nothing else, the same ones again, and better ones as it learns."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from toolkit.tuning.space import FULL, QUICK, Choice, Integers, LogUniform, Space
from toolkit.tuning.study import Study, Trial

RANDOM_ONLY = 10**9  # start-up trials: more than any study here has


def complete(number: int, settings: dict[str, Any], accuracy: float) -> Trial:
    return Trial(number, settings, "complete", mean_accuracy=accuracy, std_accuracy=0.0)


def run(study: Study, trials: int, score: Callable[[Mapping[str, Any]], float | None]) -> list[dict[str, Any]]:
    """Ask and tell; a score of None is a failed trial."""
    points = []
    for _ in range(trials):
        number, point = study.ask()
        accuracy = score(point)
        study.tell(
            Trial(number, point, "failed", reason="diverged") if accuracy is None else complete(number, point, accuracy)
        )
        points.append(point)
    return points


def wanted(point: Mapping[str, Any]) -> float:
    """An accuracy with one peak: a learning rate of 1e-4, a dropout of 0.2, a ResNet under sgd."""
    distance = abs(math.log10(point["learning_rate"]) + 4) + 2 * abs(point["dropout"] - 0.2)
    return 0.9 - 0.3 * distance - 0.1 * (point["model_type"] != "resnet18") - 0.1 * (point["optimizer"] != "sgd")


def assert_inside(point: Mapping[str, Any], space: Space) -> None:
    assert set(point) == set(space) - (set() if point["optimizer"] == "sgd" else {"momentum"})
    for name, value in point.items():
        dimension = space[name]
        assert type(value) in (int, float, str), f"{name} is of a kind that MLflow and JSON do not know"
        if isinstance(dimension, Choice):
            assert value in dimension.options
        else:
            assert dimension.low <= value <= dimension.high
            assert isinstance(value, int) == isinstance(dimension, Integers)


@pytest.fixture(scope="module")
def sampled() -> list[dict[str, Any]]:
    study = Study(FULL, seed=0, max_evals=400)
    study.start_up = RANDOM_ONLY
    return run(study, 400, wanted)


def test_every_sampled_point_lies_in_the_space(sampled: list[dict[str, Any]]) -> None:
    for point in sampled:
        assert_inside(point, FULL)


@pytest.mark.parametrize("name", FULL)
def test_both_ends_of_a_dimension_are_reached(name: str, sampled: list[dict[str, Any]]) -> None:
    """The outer fiftieth at either end, every option, both whole numbers at the ends."""
    values, dimension = [point[name] for point in sampled if name in point], FULL[name]
    if isinstance(dimension, Choice):
        counts = [values.count(option) / len(values) for option in dimension.options]
        assert min(counts) > 0.75 / len(dimension.options)
    elif isinstance(dimension, Integers):
        assert set(values) == set(range(dimension.low, dimension.high + 1))
    else:
        change = math.log if isinstance(dimension, LogUniform) else float
        low, high = change(dimension.low), change(dimension.high)
        shares = [(change(value) - low) / (high - low) for value in values]
        assert min(shares) < 0.02
        assert max(shares) > 0.98
        assert abs(np.mean(shares) - 0.5) < 0.08  # as many in one half as in the other, on the dimension's own scale


@pytest.mark.parametrize("space", [FULL, QUICK], ids=["full", "quick"])
def test_learning_stays_inside_the_space_too(space: Space) -> None:
    for point in run(Study(space, seed=1, max_evals=20), 60, wanted):
        assert_inside(point, space)


def test_the_same_seed_and_history_propose_the_same() -> None:
    first, second, other = (run(Study(FULL, seed, max_evals=20), 12, wanted) for seed in (3, 3, 4))
    assert first == second
    assert first != other
    assert first[0] != other[0]


def test_a_proposal_depends_on_the_results_before_it() -> None:
    """The random start does not, and what follows it does."""
    good, bad = (run(Study(FULL, 3, max_evals=20), 9, score) for score in (wanted, lambda point: 1 - wanted(point)))
    assert good[:5] == bad[:5]
    assert good[5:] != bad[5:]


@pytest.mark.parametrize(("planned", "random"), [(1, 5), (20, 5), (30, 7), (60, 15), (500, 20)])
def test_a_short_search_is_not_purely_random(planned: int, random: int) -> None:
    assert Study(FULL, 0, planned).start_up == random


def test_failed_trials_never_win() -> None:
    study = Study(QUICK, seed=0, max_evals=5)
    assert study.best is None
    assert study.ranking == []
    for accuracy, state in ((0.99, "failed"), (0.5, "complete"), (0.7, "complete"), (0.7, "complete")):
        number, point = study.ask()
        study.tell(Trial(number, point, state, mean_accuracy=accuracy))
    assert study.best is study.trials[2]  # of equals the first
    assert [trial.number for trial in study.ranking] == [2, 3, 1]
    assert [trial.state for trial in study.trials].count("failed") == 1


def test_a_study_of_failures_goes_on() -> None:
    study = Study(FULL, seed=0, max_evals=12)
    assert len(run(study, 12, lambda _: None)) == 12
    assert study.best is None


def test_what_fails_is_proposed_less_often() -> None:
    """A third of random points has this network."""
    points = run(
        Study(FULL, seed=0, max_evals=20),
        60,
        lambda point: None if point["model_type"] == "resnet18" else wanted(point),
    )
    share = sum(point["model_type"] == "resnet18" for point in points[20:]) / 40
    assert share < 0.25


def test_learning_beats_chance() -> None:
    """The best of 40 trials is nearer to the peak with TPE than at random, in the mean of ten seeds."""
    space = {name: FULL[name] for name in ("learning_rate", "dropout", "model_type", "optimizer", "momentum")}
    gained = []
    for seed in range(10):
        learning, random = (Study(space, seed, max_evals=40) for _ in range(2))
        random.start_up = RANDOM_ONLY
        for study in (learning, random):
            run(study, 40, wanted)
        assert learning.best is not None
        assert random.best is not None
        gained.append(learning.best.mean_accuracy - random.best.mean_accuracy)
    assert np.mean(gained) > 0.02
