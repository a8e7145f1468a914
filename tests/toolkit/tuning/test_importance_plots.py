"""What decides comes out on top, what does not stays near zero, and every setting has its place."""

import io

import numpy as np
import pytest

from support.trials import trial
from toolkit.tuning.importance_plots import MIN_TRIALS, importance_plot, importances, place
from toolkit.tuning.space import FULL, QUICK, Choice, Integers, LogUniform, Uniform

SMALL = {
    "learning_rate": LogUniform(1e-5, 1e-3),
    "optimizer": Choice(("adam", "sgd")),
    "momentum": Uniform(0.9, 0.98),
    "epochs": Integers(10, 50),
    "image_size": Choice((32,)),
}


def sample(space, random):
    """A point of the space, with momentum only under sgd."""
    point = {}
    for name, dimension in space.items():
        if isinstance(dimension, Choice):
            point[name] = dimension.options[random.integers(len(dimension.options))]
        elif isinstance(dimension, LogUniform):
            point[name] = float(10 ** random.uniform(np.log10(dimension.low), np.log10(dimension.high)))
        elif isinstance(dimension, Integers):
            point[name] = int(random.integers(dimension.low, dimension.high + 1))
        else:
            point[name] = float(random.uniform(dimension.low, dimension.high))
    return {name: value for name, value in point.items() if name != "momentum" or point["optimizer"] == "sgd"}


def study(count, space, accuracy, seed=0):
    """Random points of the space; one in four was pruned after a fold, and one in ten of the others failed."""
    random = np.random.default_rng(seed)
    trials = []
    for number in range(count):
        point = sample(space, random)
        state = "pruned" if number % 4 == 3 else "failed" if number % 10 == 6 else "complete"
        folds = 2 if state == "complete" else 1
        trials.append(trial(number, *[accuracy(point, random)] * folds, settings=point, state=state))
    return trials


def noise(_, random):
    return float(random.uniform(0.7, 0.9))


@pytest.mark.parametrize("name", ["learning_rate", "batch_size", "epochs", "optimizer", "momentum"])
def test_the_only_influence_comes_first(name):
    """With four others without influence, and a little noise."""
    space = {**SMALL, "batch_size": Choice((16, 32, 64, 128))}

    def accuracy(point, random):
        where = place(space[name], point.get(name, 0.94))
        return float(0.6 + 0.3 * where + random.normal(0, 0.01))

    (first, (most, _)), *others = importances(study(80, space, accuracy), space).items()
    assert first == name
    assert most > 5 * max(abs(mean) for _, (mean, _) in others)


def test_a_constant_accuracy_depends_on_nothing():
    found = importances(study(40, SMALL, lambda *_: 0.9), SMALL)
    assert set(found) == {"learning_rate", "optimizer", "momentum", "epochs"}
    assert np.allclose(list(found.values()), 0, atol=1e-12)


def test_a_random_accuracy_depends_on_nothing():
    """Trees learn chance by heart; on trials that they have not seen it is no help. A mean error of noise is 0.05."""
    for seed in range(2):
        found = importances(study(60, SMALL, noise, seed), SMALL)
        assert all(abs(mean) < 0.01 for mean, _ in found.values())


def test_importances_are_reproducible():
    trials = study(20, SMALL, noise)
    assert importances(trials, SMALL) == importances(trials, SMALL)


@pytest.mark.parametrize(("state", "least", "most"), [("pruned", 0.1, 0.5), ("failed", 0, 1e-12)])
def test_pruned_trials_count_and_failed_ones_do_not(state, least, most):
    """All that learned slowly ended early, with 0.5 instead of 0.9."""
    slow = [trial(n, 0.5, settings={"learning_rate": 10 ** (-5 + n / 10)}, state=state) for n in range(10)]
    fast = [trial(n, 0.9, settings={"learning_rate": 10 ** (-5 + n / 10)}) for n in range(10, 20)]
    ((mean, _),) = importances(slow + fast, {"learning_rate": SMALL["learning_rate"]}).values()
    assert least <= mean <= most


def test_too_few_trials_have_no_importances():
    trials = [trial(n, 0.5 + n / 100, settings=sample(SMALL, np.random.default_rng(n))) for n in range(MIN_TRIALS)]
    assert importances(trials[1:], SMALL) == {}
    assert set(importances(trials, SMALL)) == {"learning_rate", "optimizer", "momentum", "epochs"}
    few = importance_plot([*trials[1:], trial(MIN_TRIALS, 0.9, state="failed")], SMALL)
    assert [text.get_text() for text in few.texts] == [
        "importances need at least 8 trials with an accuracy, and there are 7"
    ]


def test_the_importance_plot():
    trials = study(40, SMALL, lambda point, _: point["epochs"] / 50)
    found = importances(trials, SMALL)
    figure = importance_plot(trials, SMALL)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [name.replace("_", " ") for name in found]
    assert axes.get_yticklabels()[0].get_text() == "epochs"
    assert axes.yaxis_inverted()
    assert [bar.get_width() for bar in axes.patches] == [mean for mean, _ in found.values()]
    ((whiskers,),) = (container.lines[2] for container in axes.containers if hasattr(container, "has_xerr"))
    assert [float(np.ptp(segment[:, 0])) / 2 for segment in whiskers.get_segments()] == [
        pytest.approx(spread) for _, spread in found.values()
    ]
    assert figure.get_supxlabel() == (
        "permutation importance (scikit-learn) under random forests, on unseen trials; 26 complete and 10 pruned"
    )


@pytest.mark.parametrize(("count", "space"), [(1, SMALL), (2, SMALL), (300, FULL), (6, QUICK)])
def test_a_study_of_any_size_can_be_drawn(count, space):
    buffer = io.BytesIO()
    importance_plot(study(count, space, noise), space).savefig(buffer, format="png", dpi=50)
    assert buffer.getvalue().startswith(b"\x89PNG")


def test_a_fixed_space_has_no_importances():
    trials = [trial(n, 0.5 + n / 100, settings={"image_size": 32}) for n in range(MIN_TRIALS)]
    figure = importance_plot(trials, {"image_size": Choice((32,))})
    assert [text.get_text() for text in figure.texts] == ["no hyperparameter varies"]


@pytest.mark.parametrize(
    ("dimension", "value", "where"),
    [
        (Choice(("a", "b", "c")), "b", 0.5),
        (Choice((0.0, 1e-4, 1e-3)), 0.0, 0),
        (Uniform(0.1, 0.5), 0.2, 0.25),
        (LogUniform(1e-5, 1e-3), 1e-4, 0.5),
        (Integers(10, 50), 40, 0.75),
    ],
)
def test_place_of_a_value(dimension, value, where):
    assert place(dimension, value) == pytest.approx(where)


@pytest.mark.parametrize("dimension", SMALL.values(), ids=SMALL.keys())
def test_missing_values_have_no_place(dimension):
    assert np.isnan(place(dimension, None))
    assert np.isnan(place(Choice((16, 32)), 64))
