"""The plots of a study show its trials, whatever came of them, and which hyperparameters mattered."""

import io
from itertools import combinations

import numpy as np
import pytest
from hyperopt.pyll.stochastic import sample
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex, to_rgb

from support.trials import trial
from toolkit.plotting.style import BLUE, GREY, ORANGE
from toolkit.tuning.plots import (
    FAILED_HEIGHT,
    MIN_TRIALS,
    POINTS,
    cost_plot,
    history_plot,
    importance_plot,
    importances,
    pareto_front,
    place,
    saved_cost,
)  # fmt: skip
from toolkit.tuning.space import FULL, QUICK, Choice, Integers, LogUniform, Uniform, expression, flatten

IMAGES = (history_plot, cost_plot)


def study(count):
    """Many trials: a tenth failed, a third was pruned, and costs over two decades."""
    random = np.random.default_rng(count)
    states = random.choice(["complete", "pruned", "failed"], count, p=[0.57, 0.33, 0.1])
    return [
        trial(
            number,
            *random.normal(0.9, 0.02, 5 if state == "complete" else 2).clip(0, 1),
            state=state,
            images=int(10 ** random.uniform(3, 5)),
        )
        for number, state in enumerate(states)
    ]


def drawn(figure):
    """The figure as a PNG, so that everything has found its place."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    return buffer.getvalue()


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def line(figure, key):
    """The data of a line with this label, or of points with this colour."""
    (found,) = [each for each in figure.axes[0].lines if key in (each.get_label(), to_hex(each.get_color()))]
    return list(found.get_xdata()), [round(float(y), 9) for y in found.get_ydata()]


MIXED = [
    trial(0, 0.5, 0.7),
    trial(1, 0.3, state="pruned", reason="its first fold was worse than the worst of the best trial"),
    trial(2, 0.9, state="failed", reason="diverged"),
    trial(3, 0.5, 0.5),
    trial(4, 0.75, 0.85),
    trial(5, 0.6, 0.62, state="pruned"),
]


def test_the_history_shows_every_trial_by_its_state():
    figure = history_plot(MIXED)
    assert line(figure, BLUE) == ([1, 4, 5], [0.6, 0.5, 0.8])
    assert line(figure, GREY) == ([2, 6], [0.3, 0.61])
    assert line(figure, ORANGE) == ([3], [FAILED_HEIGHT])
    (axes,) = figure.axes
    assert axes.lines[2].get_transform().transform((0, 0))[1] == axes.transAxes.transform((0, 0))[1]
    counted = ["3 complete", "2 pruned, mean so far", "1 failed"]
    assert legend(figure) == [*counted, "standard deviation over folds", "best so far", "best"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("trial", "mean cross-validation accuracy")
    assert figure.get_suptitle() == "6 trials, the best 0.8000 ± 0.0707 (trial 5)"


def test_the_history_shows_the_spread_over_folds_and_the_best_so_far():
    """Two folds a distance d apart have a standard deviation of d / sqrt(2)."""
    figure = history_plot(MIXED)
    (container,) = figure.axes[0].containers
    (bars,) = container.lines[2]
    ends = [[point[1] for point in segment] for segment in bars.get_segments()]
    halves = np.array([0.2, 0, 0.1]) / np.sqrt(2)
    assert np.allclose(ends, [[mean - half, mean + half] for mean, half in zip((0.6, 0.5, 0.8), halves, strict=True)])
    assert line(figure, "best so far") == ([1, 4, 5, 6], [0.6, 0.6, 0.8, 0.8])
    assert line(figure, "best") == ([5], [0.8])


def test_trials_are_in_the_order_of_proposal():
    for key in (BLUE, GREY, ORANGE, "best so far", "best"):
        assert line(history_plot(MIXED[::-1]), key) == line(history_plot(MIXED), key)


def test_of_equals_the_one_that_ended_first_is_the_best():
    figure = history_plot([trial(2, 0.8), trial(0, 0.7), trial(1, 0.8)])
    assert line(figure, "best") == ([3], [0.8])
    assert figure.get_suptitle() == "3 trials, the best 0.8000 (trial 3)"


def test_a_failed_or_pruned_trial_is_never_the_best():
    figure = history_plot([trial(0, 0.99, state="pruned"), trial(1, 0.99, state="failed")])
    assert legend(figure) == ["1 pruned, mean so far", "1 failed"]
    assert figure.get_suptitle() == "2 trials, none complete"


def test_the_cost_plot_has_the_pareto_front():
    trials = [
        trial(0, 0.7, 0.9, images=500),
        trial(1, 0.7, 0.7, images=400),
        trial(2, 0.6, 0.6, images=450),  # dearer than the one before, and worse
        trial(3, 0.9, state="pruned", images=300),
        trial(4, state="failed", images=0),
        trial(5, 0.2, state="failed", images=100),
    ]
    figure = cost_plot(trials)
    assert line(figure, BLUE) == ([1000, 800, 900], [0.8, 0.7, 0.6])
    assert line(figure, GREY) == ([300], [0.9])
    assert line(figure, ORANGE) == ([100], [FAILED_HEIGHT])
    assert line(figure, "Pareto front of complete trials") == ([800, 1000], [0.7, 0.8])
    assert line(figure, "best") == ([1000], [0.8])
    assert figure.axes[0].get_xscale() == "linear"
    assert figure.axes[0].get_xlabel() == "multiply-adds of training and validation"
    assert legend(figure)[:3] == ["3 complete", "1 pruned, mean so far", "1 failed"]


def test_costs_far_apart_have_a_logarithmic_axis():
    assert cost_plot([trial(0, 0.5, images=100), trial(1, 0.5, images=1000)]).axes[0].get_xscale() == "linear"
    assert cost_plot([trial(0, 0.5, images=100), trial(1, 0.5, images=1001)]).axes[0].get_xscale() == "log"


def test_the_bar_below_sums_the_costs_and_the_savings():
    """The pruned trial paid 2 of 5 folds, 1,000 each: three more would have cost 3,000."""
    trials = [
        trial(0, *[0.9] * 5),
        trial(1, 0.5, 0.5, state="pruned"),
        trial(2, 0.5, state="failed", images=500),
    ]
    assert saved_cost(trials) == pytest.approx(3000)
    bar = cost_plot(trials).axes[1]
    assert [(patch.get_x(), patch.get_width()) for patch in bar.patches] == [
        (0, 5000),
        (5000, 2000),
        (7000, 500),
        (7500, pytest.approx(3000)),
    ]
    assert bar.get_title(loc="left") == (
        "7.5 k multiply-adds in all: 1 complete 5.0 k, 1 pruned 2.0 k, 1 failed 500; pruning saved about 3.0 k (29%)"
    )


def test_savings_need_a_complete_trial_and_folds_left():
    assert saved_cost([trial(0, 0.5, state="pruned")]) == 0
    assert saved_cost([trial(0, 0.5, 0.6), trial(1, 0.5, 0.4, state="pruned"), trial(2, state="pruned")]) == 0
    assert "saved" not in cost_plot([trial(0, 0.5)]).axes[1].get_title(loc="left")


def test_repeated_trials_are_not_in_the_cost_plot():
    known = trial(1, 0.9, images=0, reason="as trial 1, which had the same settings")
    assert line(cost_plot([trial(0, 0.9), known]), BLUE) == ([1000], [0.9])
    assert cost_plot([known]).texts[0].get_text() == "no trial has cost anything yet"


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(0, 6), st.sampled_from(["complete", "pruned", "failed"])), max_size=12
    )
)
def test_the_pareto_front(drawn):
    trials = [trial(n, height / 6, state=state, images=cost) for n, (cost, height, state) in enumerate(drawn)]
    complete = {(cost, height) for cost, height, state in drawn if state == "complete"}
    free = {
        point
        for point in complete
        if not any(other != point and other[0] <= point[0] and other[1] >= point[1] for other in complete)
    }
    assert [(each.cost, round(each.mean_accuracy * 6)) for each in pareto_front(trials)] == sorted(free)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("count", [1, 2, 300])
def test_a_study_of_any_size_can_be_drawn(image, count):
    figure = image(study(count))
    assert drawn(figure).startswith(b"\x89PNG")
    for axes in figure.axes[:1]:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        inside = [box for box in boxes if axes.bbox.x0 - 1 <= (box.x0 + box.x1) / 2 <= axes.bbox.x1 + 1]
        assert inside
        assert not any(box.overlaps(other) for box, other in combinations(inside, 2))


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("state", ["complete", "pruned", "failed"])
def test_a_study_of_one_state_alone_can_be_drawn(image, state):
    figure = image([trial(number, 1.0, state=state) for number in range(3)])
    assert legend(figure)[0].startswith(f"3 {state}")
    assert drawn(figure)
    assert figure.axes[0].get_ylim()[1] <= 1.02


SEEN = {  # linear RGB as seen without one kind of cone; Machado, Oliveira, Fernandes, IEEE TVCG 15 (6), 2009
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # of sRGB, IEC 61966-2-1


def lab(colour, seen):
    """CIELAB as seen with some cones."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(XYZ @ (np.array(seen) @ linear).clip(0, 1) / (XYZ @ np.ones(3)))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("seen", SEEN.values(), ids=SEEN.keys())
def test_the_states_differ_in_colour_and_shape(seen):
    """20 is ten times the smallest difference that is noticed side by side."""
    colours = [lab(style["color"], seen) for style in POINTS.values()]
    assert all(np.linalg.norm(first - second) > 20 for first, second in combinations(colours, 2))
    assert len({style["marker"] for style in POINTS.values()}) == len(POINTS) == 3


# --- importances --------------------------------------------------------------------------------

SMALL = {
    "learning_rate": LogUniform(1e-5, 1e-3),
    "optimizer": Choice(("adam", "sgd")),
    "momentum": Uniform(0.9, 0.98),
    "epochs": Integers(10, 50),
    "image_size": Choice((32,)),
}


def searched(count, space, accuracy, seed=0):
    """Random points of the space; one in four was pruned after a fold, and one in ten of the others failed."""
    random = np.random.default_rng(seed)
    trials = []
    for number in range(count):
        point = flatten(sample(expression(space), random))
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

    (first, (most, _)), *others = importances(searched(80, space, accuracy), space).items()
    assert first == name
    assert most > 5 * max(abs(mean) for _, (mean, _) in others)


def test_a_constant_accuracy_depends_on_nothing():
    found = importances(searched(40, SMALL, lambda *_: 0.9), SMALL)
    assert set(found) == {"learning_rate", "optimizer", "momentum", "epochs"}
    assert np.allclose(list(found.values()), 0, atol=1e-12)


def test_a_random_accuracy_depends_on_nothing():
    """Trees learn chance by heart; on trials that they have not seen it is no help. A mean error of noise is 0.05."""
    for seed in range(2):
        found = importances(searched(60, SMALL, noise, seed), SMALL)
        assert all(abs(mean) < 0.01 for mean, _ in found.values())


def test_importances_are_reproducible():
    trials = searched(20, SMALL, noise)
    assert importances(trials, SMALL) == importances(trials, SMALL)


@pytest.mark.parametrize(("state", "least", "most"), [("pruned", 0.1, 0.5), ("failed", 0, 1e-12)])
def test_pruned_trials_count_and_failed_ones_do_not(state, least, most):
    """All that learned slowly ended early, with 0.5 instead of 0.9."""
    slow = [trial(n, 0.5, settings={"learning_rate": 10 ** (-5 + n / 10)}, state=state) for n in range(10)]
    fast = [trial(n, 0.9, settings={"learning_rate": 10 ** (-5 + n / 10)}) for n in range(10, 20)]
    ((mean, _),) = importances(slow + fast, {"learning_rate": SMALL["learning_rate"]}).values()
    assert least <= mean <= most


def test_too_few_trials_have_no_importances():
    trials = [
        trial(n, 0.5 + n / 100, settings=flatten(sample(expression(SMALL), np.random.default_rng(n))))
        for n in range(MIN_TRIALS)
    ]
    assert importances(trials[1:], SMALL) == {}
    assert set(importances(trials, SMALL)) == {"learning_rate", "optimizer", "momentum", "epochs"}
    few = importance_plot([*trials[1:], trial(MIN_TRIALS, 0.9, state="failed")], SMALL)
    assert [text.get_text() for text in few.texts] == [
        "importances need at least 8 trials with an accuracy, and there are 7"
    ]


def test_the_importance_plot():
    trials = searched(40, SMALL, lambda point, _: point["epochs"] / 50)
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
def test_importances_of_a_study_of_any_size_can_be_drawn(count, space):
    assert drawn(importance_plot(searched(count, space, noise), space)).startswith(b"\x89PNG")


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
