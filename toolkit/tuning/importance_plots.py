"""What the accuracy of a study's trials depends on: a number a hyperparameter."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance
from sklearn.model_selection import KFold

from toolkit.plotting.style import BLUE, GREY, empty_figure, tidy_axes
from toolkit.tuning.plots import counts
from toolkit.tuning.space import Choice, Dimension, LogUniform, Space
from toolkit.tuning.trial import Trial

MIN_TRIALS = 8  # trials; with fewer, a forest sees nothing but chance
PARTS, TREES, SHUFFLES = 4, 32, 5  # more give the same and take their time


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
    if len(known) < MIN_TRIALS or not names:
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


def importance_plot(trials: Sequence[Trial], space: Space) -> Figure:
    """A bar a hyperparameter, the most important one on top; or that there are too few trials.

    Examples
    --------
    >>> importance_plot([], {}).texts[0].get_text()
    'importances need at least 8 trials with an accuracy, and there are 0'
    """
    if len(known := scored(trials)) < MIN_TRIALS:
        return empty_figure(
            f"importances need at least {MIN_TRIALS} trials with an accuracy, and there are {len(known)}"
        )
    if not (found := importances(trials, space)):
        return empty_figure("no hyperparameter varies")
    figure = Figure(figsize=(9, 0.34 * len(found) + 1.9), layout="constrained")
    axes = figure.subplots()
    heights, spreads = zip(*found.values(), strict=True)
    axes.barh([name.replace("_", " ") for name in found], heights, xerr=spreads, color=BLUE, height=0.65, ecolor=GREY)
    axes.invert_yaxis()
    axes.set_xlabel("growth of the error in predicted accuracy when the values are shuffled, mean ± standard deviation")
    tidy_axes(axes)
    figure.suptitle("what the accuracy depends on", x=0.01, ha="left", fontsize=12)
    counted = " and ".join(text for _, text in counts(known))
    caption = (
        f"permutation importance (scikit-learn) under random forests, on trials they did not learn from; {counted}"
    )
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8, color=GREY)
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
