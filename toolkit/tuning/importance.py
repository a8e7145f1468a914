"""What the accuracy of a study's trials depends on: a number a hyperparameter, and pictures of settings."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance
from sklearn.model_selection import KFold

from toolkit.tuning.figures import (
    ACCURACY,
    BEST,
    BLUE,
    COLOURS,
    GREY,
    INK,
    MEDIUM,
    ORANGE,
    Look,
    accuracy_of,
    best_of,
    counts,
    finish,
    in_state,
    means,
    message,
    numbers,
    plain,
    points,
)
from toolkit.tuning.space import Choice, Dimension, Integers, LogUniform, Space, Uniform
from toolkit.tuning.trial import Trial

FEWEST = 8  # trials; with fewer, a forest sees nothing but chance
PARTS, TREES, SHUFFLES = 4, 32, 5  # more give the same and take their time
LINES: Mapping[str, Look] = {  # the last one on top
    "failed": {"color": ORANGE, "linewidth": 0.9, "linestyle": ":"},
    "cut": {"color": GREY, "linewidth": 0.7, "alpha": 0.35},
    "complete": {"linewidth": 1.3, "alpha": 0.8},
}
BELOW = -0.14  # of an axis from 0 to 1: where a trial's line passes that has no value there
SCATTER = 0.08  # of an axis from 0 to 1, over which trials of one choice are spread
MOST_TICKS = 12  # options of a choice that are labelled


def importances(trials: Sequence[Trial], space: Space) -> dict[str, tuple[float, float]]:
    """How much the accuracy depends on each hyperparameter: permutation importance under random forests.

    Forests learn to predict a trial's mean accuracy from its settings. The importance of a
    hyperparameter is by how much their mean absolute error grows, on trials that they did not learn
    from, when its values are shuffled among these. One that decides nothing is near zero, on either
    side of it, however well a forest could have learnt chance by heart.

    Complete trials count with their mean accuracy and cut ones with that of the folds they began:
    without these, what makes a trial bad would go unseen. Failed trials have no accuracy and are
    left out. The options of a choice are taken in their order. Where a trial has no such
    hyperparameter, as momentum with adam, the middle of the range stands in.

    Returns
    -------
    dict
        Of each hyperparameter that ``varied`` names, the mean and the standard deviation over 4
        parts and 5 shuffles, in units of accuracy, the highest mean first. Empty with fewer than 8
        trials that have an accuracy.

    References
    ----------
    Breiman: Random Forests, Machine Learning 45, 2001.

    Examples
    --------
    >>> importances([], {"dropout": Choice((0.1, 0.5))})
    {}
    """
    known = scored(trials)
    names = varied(known, space)
    if len(known) < FEWEST or not names:
        return {}
    places = np.array([[place(space[name], trial.settings.get(name)) for name in names] for trial in known])
    places[np.isnan(places)] = 0.5  # (trials, names) in [0, 1]
    accuracies = np.array([trial.mean_accuracy for trial in known])
    parts = []
    for learnt, unseen in KFold(PARTS, shuffle=True, random_state=0).split(places):
        forest = RandomForestRegressor(TREES, random_state=0, n_jobs=1).fit(places[learnt], accuracies[learnt])
        judged = {"scoring": "neg_mean_absolute_error", "n_repeats": SHUFFLES, "random_state": 0, "n_jobs": 1}
        parts.append(permutation_importance(forest, places[unseen], accuracies[unseen], **judged).importances)
    growth = np.hstack(parts)  # (names, PARTS * SHUFFLES)
    found = {name: (float(row.mean()), float(row.std())) for name, row in zip(names, growth, strict=True)}
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def importance_picture(trials: Sequence[Trial], space: Space) -> Figure:
    """A bar a hyperparameter, the most important one on top; or that there are too few trials.

    Examples
    --------
    >>> importance_picture([], {"dropout": Uniform(0.1, 0.5)}).texts[0].get_text()
    'importances need at least 8 trials with an accuracy, and there are 0'
    """
    if len(known := scored(trials)) < FEWEST:
        return message(f"importances need at least {FEWEST} trials with an accuracy, and there are {len(known)}")
    if not (found := importances(trials, space)):
        return message("no hyperparameter varies")
    figure = Figure(figsize=(9, 0.34 * len(found) + 1.9), layout="constrained")
    axes = figure.subplots()
    heights, spreads = zip(*found.values(), strict=True)
    axes.barh([_label(name) for name in found], heights, xerr=spreads, color=BLUE, height=0.65, ecolor=GREY)
    axes.invert_yaxis()
    axes.set_xlabel("growth of the error in predicted accuracy when the values are shuffled, mean ± standard deviation")
    plain(axes)
    figure.suptitle("what the accuracy depends on", x=0.01, ha="left", fontsize=12)
    counted = " and ".join(text for _, text in counts(known))
    caption = (
        f"permutation importance (scikit-learn) under random forests, on trials they did not learn from; {counted}"
    )
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8, color=GREY)
    return figure


def parallel_coordinates_picture(trials: Sequence[Trial], space: Space) -> Figure:
    """A line a trial through its hyperparameters, which ends at its accuracy in the bar of colours.

    A line passes below an axis where its trial has no such hyperparameter, such as momentum with
    adam. Trials of one choice are spread a little, so that they can be told apart. What the space
    does not vary has no axis. Of more than ten complete trials the worst tenth, and cut ones that are
    worse still, end at the bottom of the bar: a few of them would take the colours from the others.

    Examples
    --------
    >>> parallel_coordinates_picture([], {"dropout": Uniform(0.1, 0.5)}).texts[0].get_text()
    'no trial has an accuracy yet'
    """
    if not (known := scored(trials)):
        return message("no trial has an accuracy yet")
    names, accuracies = varied(trials, space), means(in_state(known, "complete") or known)
    low, high = float(np.quantile(accuracies, 0.1, method="lower")), max(accuracies)
    scale = Uniform(low, high) if low < high else Uniform(low - 0.01, high + 0.01)
    figure = Figure(figsize=(max(7, 1.25 * len(names) + 2.5), 5.6), layout="constrained")
    axes = figure.subplots()

    def paths(some: Sequence[Trial]) -> list[list[tuple[int, float]]]:
        ends = np.clip([accuracy_of(trial) for trial in some], scale.low, scale.high)
        heights = [[*_places(trial, names, space), place(scale, end)] for trial, end in zip(some, ends, strict=True)]
        return [list(enumerate(np.nan_to_num(line, nan=BELOW))) for line in heights]

    for state, look in LINES.items():
        some = sorted(in_state(trials, state), key=accuracy_of)  # the best on top
        lines = LineCollection(paths(some), label=state, **look)
        axes.add_collection(lines)
    lines.set(array=means(some), cmap=COLOURS, norm=Normalize(scale.low, scale.high))  # those of complete trials
    handles = [Line2D([], [], label=text, **{"color": MEDIUM, **LINES[state]}) for state, text in counts(trials)]
    if best := best_of(trials):
        emphasis: Look = {"color": INK, "linewidth": 2.5, "path_effects": [withStroke(linewidth=5, foreground="white")]}
        axes.add_collection(LineCollection(paths([best]), label="best", zorder=3, **emphasis))
        handles.append(Line2D([], [], label="best", **emphasis))
    for at, name in enumerate(names):
        missing = any(math.isnan(place(space[name], trial.settings.get(name))) for trial in trials)
        _upright(axes, at, _ticks(space[name]) + [(BELOW, "none")] * missing)
    if in_state(trials, "failed"):
        axes.text(len(names) + 0.04, BELOW, "failed", va="center", fontsize=8, color=ORANGE)
    bar = axes.inset_axes((len(names), 0, 0.15, 1), transform=axes.transData)
    figure.colorbar(lines, cax=bar, extend="min" if min(means(known)) < scale.low else "neither", extendfrac=0.04)
    axes.set_xticks(range(len(names) + 1), [name.replace("_", "\n") for name in [*names, "mean_accuracy"]])
    axes.tick_params(axis="x", bottom=False, labelbottom=False, labeltop=True)
    axes.set(xlim=(-0.1, len(names) + 0.2), ylim=(BELOW - 0.04, 1.03), yticks=[])
    axes.spines[:].set_visible(False)
    finish(figure, [], trials, handles)
    return figure


def slices_picture(trials: Sequence[Trial], space: Space) -> Figure:
    """Accuracy against each hyperparameter, complete trials coloured by when they were proposed.

    Trials of one choice are spread a little, so that they can be told apart. What the space does
    not vary has no panel.

    Examples
    --------
    >>> slices_picture([], {"dropout": Uniform(0.1, 0.5)}).texts[0].get_text()
    'no trial has an accuracy yet'
    """
    if not scored(trials):
        return message("no trial has an accuracy yet")
    if not (names := varied(trials, space)):
        return message("no hyperparameter varies")
    columns = min(len(names), 3 if -len(names) % 3 < -len(names) % 4 else 4)  # the fewest empty places
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(2.9 * columns + 1.6, 2.5 * rows + 1), layout="constrained")
    cells = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    colours = ScalarMappable(Normalize(1, max(2, *numbers(trials))), COLOURS)
    for name, axes in zip(names, cells, strict=False):
        at = {trial.number: _places(trial, [name], space)[0] for trial in trials}
        handles = points(axes, trials, at, colours)
        if best := best_of(trials):
            handles += axes.plot(at[best.number], best.mean_accuracy, label="best", **BEST)
        at_ticks, texts = zip(*_ticks(space[name]), strict=True)
        axes.set_xticks(at_ticks, [text.replace("_", "\n") for text in texts], fontsize=8)
        having = sum(math.isfinite(where) for where in at.values())
        axes.set_xlabel(_label(name) + ("" if having == len(trials) else f" ({having} of {len(trials)} trials)"))
        axes.set_xlim(-SCATTER, 1 + SCATTER)
    for axes in cells[len(names) :]:
        axes.set_axis_off()
    figure.supylabel(ACCURACY, fontsize=10)
    figure.colorbar(colours, ax=list(cells), label="trial", aspect=40, ticks=MaxNLocator(integer=True))
    finish(figure, cells[: len(names)], trials, handles)
    return figure


def scored(trials: Sequence[Trial]) -> list[Trial]:
    """Those with an accuracy: complete ones, and cut ones with that of the folds they began."""
    return [trial for trial in trials if trial.state != "failed" and math.isfinite(trial.mean_accuracy)]


def varied(trials: Sequence[Trial], space: Space) -> list[str]:
    """The hyperparameters of which the space leaves a choice and some trial has a value."""
    return [
        name
        for name, dimension in space.items()
        if (len(dimension.options) > 1 if isinstance(dimension, Choice) else dimension.low < dimension.high)
        and any(name in trial.settings for trial in trials)
    ]


def place(dimension: Dimension, value: Any) -> float:
    """Where a value lies between 0, the low end, and 1; not a number for None, or what the dimension does not contain.

    Options are at even distances, and the logarithm decides where the dimension is logarithmic.

    Examples
    --------
    >>> place(Choice((16, 32, 64)), 32), place(LogUniform(1e-5, 1e-3), 1e-4), place(LogUniform(1e-5, 1e-3), None)
    (0.5, 0.5, nan)
    """
    if not dimension.contains(value):
        return math.nan
    if isinstance(dimension, Choice):
        return dimension.options.index(value) / (len(dimension.options) - 1)
    low, high = dimension.low, dimension.high
    if isinstance(dimension, LogUniform):
        low, high, value = math.log10(low), math.log10(high), math.log10(value)
    return float((value - low) / (high - low))


def _ticks(dimension: Dimension) -> list[tuple[float, str]]:
    """Labelled places from 0 to 1: options, or the bounds and what is round between them."""
    values: list[Any]
    if isinstance(dimension, Choice):
        values = list(dimension.options[:: math.ceil(len(dimension.options) / MOST_TICKS)])
    elif isinstance(dimension, LogUniform):
        exponents = range(math.ceil(math.log10(dimension.low)), math.floor(math.log10(dimension.high)) + 1)
        decades = [10.0**exponent for exponent in exponents if 0.15 < place(dimension, 10.0**exponent) < 0.85]
        values = [dimension.low, *decades[:: math.ceil(len(decades) / 3) or 1], dimension.high]
    else:
        middle = (dimension.low + dimension.high) / 2
        values = [dimension.low, int(middle) if isinstance(dimension, Integers) else middle, dimension.high]
    texts = {f"{value:.3g}" if isinstance(value, float) else str(value): value for value in values}
    return [(place(dimension, value), text) for text, value in texts.items()]


def _places(trial: Trial, names: Sequence[str], space: Space) -> list[float]:
    """A trial's places on some axes; on those of choices a little aside, evenly by the golden ratio."""
    aside = SCATTER * (trial.number * 0.618034 % 1 - 0.5)
    return [
        place(space[name], trial.settings.get(name)) + (aside if isinstance(space[name], Choice) else 0)
        for name in names
    ]


def _upright(axes: Axes, at: int, marks: Iterable[tuple[float, str]]) -> None:
    """The axis of one hyperparameter, with its labels."""
    axes.vlines(at, 0, 1, color=INK, linewidth=0.8)
    background = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.6}
    for height, text in marks:
        axes.text(at + 0.04, height, text, va="center", fontsize=8, bbox=background, zorder=4)


def _label(name: str) -> str:
    return name.replace("_", " ")
