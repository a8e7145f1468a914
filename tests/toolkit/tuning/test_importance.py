"""What decides comes out on top, what does not stays near zero, and the pictures show every setting in its place."""

import io
from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from toolkit.tuning.figures import COLOURS, GREY, INK, ORANGE
from toolkit.tuning.importance import (
    BELOW,
    FEWEST,
    SCATTER,
    importance_picture,
    importances,
    parallel_coordinates_picture,
    place,
    slices_picture,
)
from toolkit.tuning.space import FULL, QUICK, Choice, Dimension, Integers, LogUniform, Space, Uniform
from toolkit.tuning.trial import Fold, Trial

SMALL: Space = {
    "learning_rate": LogUniform(1e-5, 1e-3),
    "optimizer": Choice(("adam", "sgd")),
    "momentum": Uniform(0.9, 0.98),
    "epochs": Integers(10, 50),
    "image_size": Choice((32,)),
}


def trial(number: int, settings: dict[str, Any], *accuracies: float, state: str = "complete") -> Trial:
    folds = tuple(Fold(({"epoch": 1, "val_accuracy": accuracy},), 1, 1.0, 100) for accuracy in accuracies)
    return Trial(number, settings, state, folds)


def sample(space: Space, random: np.random.Generator) -> dict[str, Any]:
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


def study(
    count: int, space: Space, accuracy: Callable[[dict[str, Any], np.random.Generator], float], seed: int = 0
) -> list[Trial]:
    """Random points of the space; one in four was cut after a fold, and one in ten of the others failed."""
    random = np.random.default_rng(seed)
    trials = []
    for number in range(count):
        point = sample(space, random)
        state = "cut" if number % 4 == 3 else "failed" if number % 10 == 6 else "complete"
        folds = 2 if state == "complete" else 1
        trials.append(trial(number, point, *[accuracy(point, random)] * folds, state=state))
    return trials


def noise(_: dict[str, Any], random: np.random.Generator) -> float:
    return float(random.uniform(0.7, 0.9))


def drawn(figure: Figure) -> bytes:
    """The figure as a PNG, so that everything has found its place."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    return buffer.getvalue()


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def lines(figure: Figure, label: str) -> LineCollection:
    (found,) = [each for each in figure.axes[0].collections if each.get_label() == label]
    return found


def heights(figure: Figure, label: str) -> list[list[float]]:
    """Of each line of a state, its height at each axis."""
    return [[float(point[1]) for point in segment] for segment in lines(figure, label).get_segments()]


@pytest.mark.parametrize("name", ["learning_rate", "batch_size", "epochs", "optimizer", "momentum"])
def test_what_alone_decides_comes_out_on_top(name: str) -> None:
    """Beside four that do nothing, with a little noise."""
    space = {**SMALL, "batch_size": Choice((16, 32, 64, 128))}

    def accuracy(point: dict[str, Any], random: np.random.Generator) -> float:
        where = place(space[name], point.get(name, 0.94))
        return float(0.6 + 0.3 * where + random.normal(0, 0.01))

    (first, (most, _)), *others = importances(study(80, space, accuracy), space).items()
    assert first == name
    assert most > 5 * max(abs(mean) for _, (mean, _) in others)


def test_an_accuracy_that_never_changes_depends_on_nothing() -> None:
    found = importances(study(40, SMALL, lambda *_: 0.9), SMALL)
    assert set(found) == {"learning_rate", "optimizer", "momentum", "epochs"}
    assert np.allclose(list(found.values()), 0, atol=1e-12)


def test_chance_depends_on_nothing_either() -> None:
    """Trees learn chance by heart; on trials that they have not seen it is no help. A mean error of noise is 0.05."""
    for seed in range(2):
        found = importances(study(60, SMALL, noise, seed), SMALL)
        assert all(abs(mean) < 0.01 for mean, _ in found.values())


def test_the_same_trials_give_the_same() -> None:
    trials = study(20, SMALL, noise)
    assert importances(trials, SMALL) == importances(trials, SMALL)


@pytest.mark.parametrize(("state", "least", "most"), [("cut", 0.1, 0.5), ("failed", 0, 1e-12)])
def test_cut_trials_count_and_failed_ones_do_not(state: str, least: float, most: float) -> None:
    """All that learned slowly ended early, with 0.5 instead of 0.9."""
    slow = [trial(n, {"learning_rate": 10 ** (-5 + n / 10)}, 0.5, state=state) for n in range(10)]
    fast = [trial(n, {"learning_rate": 10 ** (-5 + n / 10)}, 0.9) for n in range(10, 20)]
    ((mean, _),) = importances(slow + fast, {"learning_rate": SMALL["learning_rate"]}).values()
    assert least <= mean <= most


def test_too_few_trials_have_no_importances_and_the_picture_says_so() -> None:
    trials = [trial(n, sample(SMALL, np.random.default_rng(n)), 0.5 + n / 100) for n in range(FEWEST)]
    assert importances(trials[1:], SMALL) == {}
    assert set(importances(trials, SMALL)) == {"learning_rate", "optimizer", "momentum", "epochs"}
    few = importance_picture([*trials[1:], trial(FEWEST, {}, 0.9, state="failed")], SMALL)
    assert [text.get_text() for text in few.texts] == [
        "importances need at least 8 trials with an accuracy, and there are 7"
    ]


def test_the_importance_picture_has_a_bar_for_each_hyperparameter_the_highest_on_top() -> None:
    trials = study(40, SMALL, lambda point, _: point["epochs"] / 50)
    found = importances(trials, SMALL)
    figure = importance_picture(trials, SMALL)
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
        "permutation importance (scikit-learn) under random forests, on trials they did not learn from;"
        " 26 complete and 10 cut"
    )


BY_HAND = [
    trial(0, {"learning_rate": 1e-4, "optimizer": "sgd", "momentum": 0.92, "epochs": 20, "image_size": 32}, 0.6, 0.8),
    trial(1, {"learning_rate": 1e-3, "optimizer": "adam", "epochs": 50, "image_size": 32}, 0.8, 0.8),
    trial(2, {"learning_rate": 1e-5, "optimizer": "adam", "epochs": 10, "image_size": 32}, 0.5, state="cut"),
    trial(3, {"learning_rate": 1e-5, "optimizer": "adam", "epochs": 30, "image_size": 32}, 0.9, state="failed"),
    trial(4, {"learning_rate": 1e-4, "optimizer": "adam", "epochs": 40, "image_size": 32}, 0.6, 0.6),
]


def test_a_line_passes_through_the_settings_of_its_trial_and_ends_at_its_accuracy() -> None:
    """The accuracies of complete trials are 0.6, 0.7 and 0.8, and that of the cut one is below. Options are spread."""
    figure = parallel_coordinates_picture(BY_HAND, SMALL)
    expected = {
        "complete": [[0.5, 0, BELOW, 0.75, 0], [0.5, 1, 0.25, 0.25, 0.5], [1, 0, BELOW, 1, 1]],
        "cut": [[0, 0, BELOW, 0, 0]],
        "failed": [[0, 0, BELOW, 0.5, BELOW]],
        "best": [[1, 0, BELOW, 1, 1]],
    }
    for state, wanted in expected.items():
        apart = np.abs(np.subtract(heights(figure, state), wanted))
        assert np.allclose(apart * [1, 0, 1, 1, 1], 0)
        assert apart.max() < SCATTER
    assert legend(figure) == ["3 complete", "1 cut", "1 failed", "best"]


def test_lines_are_coloured_by_accuracy_beside_a_bar_of_the_same_colours() -> None:
    figure = parallel_coordinates_picture(BY_HAND, SMALL)
    drawn(figure)
    expected = [COLOURS(height)[:3] for height in (0.0, 0.5, 1.0)]
    assert np.allclose(lines(figure, "complete").get_colors()[:, :3], expected, atol=0.01)
    assert to_hex(lines(figure, "cut").get_colors()[0]) == GREY
    assert to_hex(lines(figure, "failed").get_colors()[0]) == ORANGE
    assert to_hex(lines(figure, "best").get_colors()[0]) == INK
    (bar,) = figure.axes[0].child_axes
    assert bar.get_ylim() == (0.6, 0.8)


def test_the_worst_tenth_does_not_take_the_colours_from_the_others() -> None:
    """Of eleven trials, one did not learn."""
    accuracies = [0.1, *np.linspace(0.9, 0.99, 10)]
    trials = [trial(n, {"epochs": 10 + n}, float(accuracy)) for n, accuracy in enumerate(accuracies)]
    for some, scale, second in ((trials, (0.9, 0.99), 0), (trials[:10], (0.1, 0.98), 0.8 / 0.88)):
        figure = parallel_coordinates_picture(some, SMALL)
        (bar,) = figure.axes[0].child_axes
        assert bar.get_ylim() == pytest.approx(scale)
        assert [line[-1] for line in heights(figure, "complete")][:2] == pytest.approx([0, second])


def test_axes_are_named_and_labelled_in_the_units_of_their_hyperparameter() -> None:
    axes = parallel_coordinates_picture(BY_HAND, SMALL).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "learning\nrate",
        "optimizer",
        "momentum",
        "epochs",
        "mean\naccuracy",
    ]
    written = {(int(text.get_position()[0]), round(text.get_position()[1], 3)): text.get_text() for text in axes.texts}
    assert written == {
        (0, 0): "1e-05",
        (0, 0.5): "0.0001",
        (0, 1): "0.001",
        (1, 0): "adam",
        (1, 1): "sgd",
        (2, 0): "0.9",
        (2, 0.5): "0.94",
        (2, 1): "0.98",
        (2, BELOW): "none",
        (3, 0): "10",
        (3, 0.5): "30",
        (3, 1): "50",
        (4, BELOW): "failed",
    }


def test_slices_show_each_value_against_the_accuracy() -> None:
    figure = slices_picture(BY_HAND, SMALL)
    panels = {axes.get_xlabel(): axes for axes in figure.axes if axes.get_xlabel()}
    assert list(panels) == ["learning rate", "optimizer", "momentum (1 of 5 trials)", "epochs"]
    complete = {name: np.asarray(axes.collections[0].get_offsets()) for name, axes in panels.items()}
    assert np.allclose(complete["learning rate"], [[0.5, 0.7], [1, 0.8], [0.5, 0.6]])
    assert np.allclose(complete["epochs"], [[0.25, 0.7], [1, 0.8], [0.75, 0.6]])
    assert np.allclose(complete["optimizer"], [[1, 0.7], [0, 0.8], [0, 0.6]], atol=SCATTER)
    assert np.allclose(complete["momentum (1 of 5 trials)"][0], [0.25, 0.7])
    cut, failed, best = panels["epochs"].lines
    assert (list(cut.get_xdata()), list(cut.get_ydata())) == ([0], [0.5])
    assert list(failed.get_xdata()) == [0.5]
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([1], [0.8])
    assert len({axes.get_ylim() for axes in panels.values()}) == 1
    ticks = panels["learning rate"]
    assert [label.get_text() for label in ticks.get_xticklabels()] == ["1e-05", "0.0001", "0.001"]
    assert legend(figure) == ["3 complete", "1 cut, mean so far", "1 failed", "best"]


def test_slices_colour_trials_by_their_number() -> None:
    figure = slices_picture(BY_HAND, SMALL)
    points = figure.axes[0].collections[0]
    assert [to_hex(colour) for colour in points.get_facecolors()] == [to_hex(COLOURS(at)) for at in (0, 0.25, 1.0)]
    bar = figure.axes[-1]
    assert (bar.get_ylabel(), bar.get_ylim()) == ("trial", (1, 5))


def test_trials_of_one_choice_are_spread_so_that_each_can_be_seen() -> None:
    trials = [trial(n, {"optimizer": "adam"}, 0.5) for n in range(20)]
    places = np.sort(np.asarray(slices_picture(trials, SMALL).axes[0].collections[0].get_offsets())[:, 0])
    assert np.abs(places).max() <= SCATTER / 2
    assert np.diff(places).min() > SCATTER / 100


WITH_SPACE = (parallel_coordinates_picture, slices_picture, importance_picture)


@pytest.mark.parametrize("picture", WITH_SPACE)
@pytest.mark.parametrize(("count", "space"), [(1, SMALL), (2, SMALL), (300, FULL), (6, QUICK)])
def test_a_study_of_any_size_can_be_drawn(picture, count: int, space: Space) -> None:
    figure = picture(study(count, space, noise), space)
    assert drawn(figure).startswith(b"\x89PNG")
    for axes in figure.axes:
        labels = [label for label in axes.get_xticklabels() if label.get_text()]
        boxes = [label.get_window_extent() for label in labels if axes.get_visible() and axes.axison]
        assert not any(box.overlaps(other) for box, other in combinations(boxes, 2))


@pytest.mark.parametrize("picture", WITH_SPACE[:2])
def test_a_study_of_failures_or_without_trials_says_so(picture) -> None:
    for trials in ([], [trial(0, {"epochs": 20}, 0.9, state="failed")]):
        figure = picture(trials, SMALL)
        assert [text.get_text() for text in figure.texts] == ["no trial has an accuracy yet"]
        assert drawn(figure)


@pytest.mark.parametrize("picture", WITH_SPACE[:2])
def test_a_study_without_a_complete_trial_has_no_best(picture) -> None:
    figure = picture(BY_HAND[2:4], SMALL)
    assert [text.split(",")[0] for text in legend(figure)] == ["1 cut", "1 failed"]
    assert drawn(figure)


def test_a_space_with_nothing_to_vary_has_no_slices_and_no_importances() -> None:
    space = {"image_size": Choice((32,))}
    trials = [trial(n, {"image_size": 32}, 0.5 + n / 100) for n in range(FEWEST)]
    for picture in (slices_picture, importance_picture):
        assert [text.get_text() for text in picture(trials, space).texts] == ["no hyperparameter varies"]
    assert len(heights(parallel_coordinates_picture(trials, space), "complete")) == FEWEST


def test_of_many_options_some_are_labelled() -> None:
    space = {"batch_size": Choice(tuple(range(1, 101)))}
    (axes, *_) = slices_picture([trial(0, {"batch_size": 7}, 0.5)], space).axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert (labels[0], len(labels) <= 12) == ("1", True)


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
def test_a_value_has_its_place(dimension: Dimension, value: Any, where: float) -> None:
    assert place(dimension, value) == pytest.approx(where)


@pytest.mark.parametrize("dimension", SMALL.values(), ids=SMALL.keys())
def test_what_is_missing_or_no_option_has_no_place(dimension: Dimension) -> None:
    assert np.isnan(place(dimension, None))
    assert np.isnan(place(Choice((16, 32)), 64))


@given(st.floats(1e-8, 1e3), st.floats(1.1, 1e6), st.lists(st.floats(0, 1), min_size=2))
def test_places_go_from_0_to_1_in_the_order_of_values(low: float, factor: float, shares: list[float]) -> None:
    for dimension in (Uniform(low, low * factor), LogUniform(low, low * factor)):
        assert (place(dimension, low), place(dimension, low * factor)) == (0, pytest.approx(1))
        places = [place(dimension, min(low * factor**share, low * factor)) for share in sorted(shares)]
        assert all(-1e-9 <= at <= 1 + 1e-9 for at in places)
        assert all(next_one >= at - 1e-9 for at, next_one in pairwise(places))
