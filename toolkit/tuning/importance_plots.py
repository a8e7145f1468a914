"""The importance of each hyperparameter for the accuracy of a study's trials."""

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

MIN_TRIALS = 8  # with fewer, a forest learns chance
PARTS, TREES, SHUFFLES = 4, 32, 5  # more give the same result more slowly


def importances(trials: Sequence[Trial], space: Space) -> dict[str, tuple[float, float]]:
    """Permutation importance of each hyperparameter under random forests: mean and deviation, the highest mean first.

    Forests learn to predict a trial's mean accuracy from its settings. The importance of a
    hyperparameter is the growth of their mean absolute error on unseen trials when its values are
    shuffled among these, over 4 parts and 5 shuffles. It is near zero, on either side, for one without
    influence, even where a forest overfits.

    Failed trials have no accuracy and are left out; pruned ones count with that of their folds, since they show what
    makes a trial bad. The options of a choice are taken in their order. Where a trial lacks a hyperparameter, such as
    momentum with adam, the middle of the range stands in.

    References
    ----------
    Breiman: Random Forests, Machine Learning 45, 2001.
    """
    known = scored(trials)
    names = varied(known, space)
    if len(known) < MIN_TRIALS or not names:
        return {}
    places = np.array([[place(space[name], trial.settings.get(name)) for name in names] for trial in known])
    places[np.isnan(places)] = 0.5  # (trials, names) in [0, 1]
    accuracies = np.array([trial.mean_accuracy for trial in known])
    parts = []
    for seen, unseen in KFold(PARTS, shuffle=True, random_state=0).split(places):
        forest = RandomForestRegressor(TREES, random_state=0, n_jobs=1).fit(places[seen], accuracies[seen])
        options = {"scoring": "neg_mean_absolute_error", "n_repeats": SHUFFLES, "random_state": 0, "n_jobs": 1}
        parts.append(permutation_importance(forest, places[unseen], accuracies[unseen], **options).importances)
    growth = np.hstack(parts)  # (names, PARTS * SHUFFLES)
    found = {name: (float(row.mean()), float(row.std())) for name, row in zip(names, growth, strict=True)}
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def importance_plot(trials: Sequence[Trial], space: Space) -> Figure:
    """A bar for each hyperparameter, the most important one on top; or a note that there are too few trials.

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
    figure.suptitle("hyperparameter importance", x=0.01, ha="left", fontsize=12)
    counted = " and ".join(text for _, text in counts(known))
    caption = f"permutation importance (scikit-learn) under random forests, on unseen trials; {counted}"
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8, color=GREY)
    return figure


def scored(trials: Sequence[Trial]) -> list[Trial]:
    """The trials with an accuracy: complete ones, and pruned ones with that of their folds."""
    return [trial for trial in trials if trial.state != "failed" and math.isfinite(trial.mean_accuracy)]


def varied(trials: Sequence[Trial], space: Space) -> list[str]:
    """The hyperparameters with more than one possible value that some trial has."""
    return [
        name
        for name, dimension in space.items()
        if (len(dimension.options) > 1 if isinstance(dimension, Choice) else dimension.low < dimension.high)
        and any(name in trial.settings for trial in trials)
    ]


def place(dimension: Dimension, value: Any) -> float:
    """The position of a value from 0, the low end, to 1; NaN for None and values outside the dimension.

    Options are evenly spaced; a logarithmic dimension is scaled by the logarithm.

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
