"""Plots of a study: accuracy over trials, accuracy against cost, and the importance of each hyperparameter."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance
from sklearn.model_selection import KFold

from toolkit.plotting.style import BLUE, GREY, INK, ORANGE, YELLOW, empty_figure, tidy_axes
from toolkit.tuning.space import Choice, Dimension, LogUniform, Space
from toolkit.tuning.trial import Trial

Style = Mapping[str, Any]  # keywords of a matplotlib artist

POINTS: Mapping[str, Style] = {  # the states differ in colour, in lightness and in shape
    "complete": {"color": BLUE, "marker": "o", "markersize": 5, "zorder": 3},
    "pruned": {"color": GREY, "marker": "v", "markersize": 4.5, "fillstyle": "none", "alpha": 0.6},
    "failed": {"color": ORANGE, "marker": "|", "markersize": 9, "markeredgewidth": 2},
}
BEST: Style = {
    "color": YELLOW, "marker": "*", "markersize": 13, "markeredgecolor": INK, "linestyle": "none", "zorder": 5,
}  # fmt: skip
ACCURACY = "mean cross-validation accuracy"
FAILED_HEIGHT = 0.03  # of the ticks of failed trials, as a share of the axis
MIN_TRIALS = 8  # with fewer, a forest learns chance
PARTS, TREES, SHUFFLES = 4, 32, 5  # more give the same result more slowly


def history_plot(trials: Sequence[Trial]) -> Figure:
    """Accuracy of each trial in the order of proposal, with its spread over the folds, and the best so far.

    Examples
    --------
    >>> history_plot([]).texts[0].get_text()
    'no trial has ended yet'
    """
    if not trials:
        return empty_figure("no trial has ended yet")
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    axes = figure.subplots()
    complete, last = _in_state(trials, "complete"), max(_numbers(trials))
    spread = [trial.std_accuracy for trial in complete]
    handles = _points(axes, trials, lambda trial: trial.number + 1)
    bars: Style = {"fmt": "none", "ecolor": BLUE, "alpha": 0.35, "label": "standard deviation over folds"}
    if complete:
        handles.append(axes.errorbar(_numbers(complete), _means(complete), spread, **bars))
    if best := _best_of(trials):
        so_far = [*accumulate(_means(complete), max), best.mean_accuracy]
        handles += axes.step([*_numbers(complete), last], so_far, where="post", color=INK, label="best so far")
        handles += axes.plot(best.number + 1, best.mean_accuracy, label="best", **BEST)
    axes.set(xlabel="trial", ylabel=ACCURACY, xlim=(0.5 - 0.02 * last, 0.5 + 1.02 * last))
    axes.set_xticks([tick for tick in MaxNLocator(integer=True).tick_values(1, last) if 1 <= tick <= last])
    _lay_out(figure, axes, trials, handles)
    return figure


def cost_plot(trials: Sequence[Trial]) -> Figure:
    """Accuracy against cost, the complete trials that no other beats in both, and what all trials cost together.

    The cost is counted in multiply-adds of training and validation: unlike seconds, it is the same on
    every machine. Trials without a cost, such as repeated ones, are left out.

    Examples
    --------
    >>> cost_plot([]).texts[0].get_text()
    'no trial has cost anything yet'
    """
    paid = [trial for trial in trials if trial.cost]
    if not paid:
        return empty_figure("no trial has cost anything yet")
    figure = Figure(figsize=(10, 5.8), layout="constrained")
    axes, total = figure.subplots(2, 1, height_ratios=(12, 1))
    handles = _points(axes, paid, lambda trial: trial.cost)
    if best := _best_of(paid):
        front = pareto_front(paid)
        label, costs = "Pareto front of complete trials", [trial.cost for trial in front]
        handles += axes.step(costs, _means(front), where="post", color=INK, label=label)
        handles += axes.plot(best.cost, best.mean_accuracy, label="best", **BEST)
    if max(trial.cost for trial in paid) > 10 * min(trial.cost for trial in paid):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set(xlabel="multiply-adds of training and validation", ylabel=ACCURACY)
    _totals(total, paid)
    _lay_out(figure, axes, paid, handles)
    return figure


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """The complete trials that no other beats in both cost and accuracy, the cheapest first."""
    front: list[Trial] = []
    for trial in sorted(_in_state(trials, "complete"), key=lambda trial: (trial.cost, -trial.mean_accuracy)):
        if not front or trial.mean_accuracy > front[-1].mean_accuracy:
            front.append(trial)
    return front


def saved_cost(trials: Sequence[Trial]) -> float:
    """An estimate of the multiply-adds that pruning saved: folds not started, at the mean cost of the trial's own.

    The last fold of a pruned trial may be unfinished, so the estimate is rather too low than too high.
    """
    folds = max((len(trial.folds) for trial in _in_state(trials, "complete")), default=0)
    pruned = [trial for trial in _in_state(trials, "pruned") if 0 < len(trial.folds) < folds]
    return sum(trial.cost * (folds / len(trial.folds) - 1) for trial in pruned)


def _totals(axes: Axes, trials: Sequence[Trial]) -> None:
    """One bar of the cost of the trials of each state, and of what pruning saved."""
    spent = {state: sum(trial.cost for trial in _in_state(trials, state)) for state in POINTS}
    start, saved = sum(spent.values()), saved_cost(trials)
    for index, (state, amount) in enumerate(spent.items()):
        axes.barh(0, amount, left=sum([*spent.values()][:index]), color=POINTS[state]["color"], label=state)
    axes.barh(0, saved, left=start, facecolor="none", edgecolor=GREY, hatch="////", linewidth=0, label="saved")
    parts = ", ".join(f"{text} {_amount(spent[state])}" for state, text in counts(trials))
    pruning = f"; pruning saved about {_amount(saved)} ({saved / (start + saved):.0%})" if saved else ""
    axes.set_title(f"{_amount(start)} multiply-adds in all: {parts}{pruning}", loc="left", fontsize=10)
    axes.set_axis_off()


def _points(axes: Axes, trials: Sequence[Trial], at: Callable[[Trial], float]) -> list[Any]:
    """Each trial's accuracy at its place, failed ones as ticks at the bottom; handles for a legend with counts."""
    handles: list[Any] = []
    for state, text in counts(trials):
        some, style = _in_state(trials, state), {**POINTS[state], "linestyle": "none"}
        if state == "failed":
            axes.plot([*map(at, some)], [FAILED_HEIGHT] * len(some), transform=axes.get_xaxis_transform(), **style)
        else:
            axes.plot([*map(at, some)], _means(some), **style)
        handles.append(Line2D([], [], label=f"{text}, mean so far" if state == "pruned" else text, **style))
    return handles


def _lay_out(figure: Figure, axes: Axes, trials: Sequence[Trial], handles: Sequence[Any]) -> None:
    """Add a title, a legend below, and margins for the ticks at the bottom."""
    tidy_axes(axes)
    axes.margins(y=0.09)
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.02))
    best = _best_of(trials)
    spread = f" ± {best.std_accuracy:.4f}" if best and math.isfinite(best.std_accuracy) else ""
    result = f"the best {best.mean_accuracy:.4f}{spread} (trial {best.number + 1})" if best else "none complete"
    plural = "" if len(trials) == 1 else "s"
    figure.suptitle(f"{len(trials)} trial{plural}, {result}", x=0.01, ha="left", fontsize=12)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def counts(trials: Sequence[Trial]) -> list[tuple[str, str]]:
    """The states that occur, each with a text such as ``24 complete``."""
    return [(state, f"{len(some)} {state}") for state in POINTS if (some := _in_state(trials, state))]


def _in_state(trials: Sequence[Trial], state: str) -> list[Trial]:
    """The trials in a state, in the order of proposal."""
    return sorted((trial for trial in trials if trial.state == state), key=lambda trial: trial.number)


def _best_of(trials: Sequence[Trial]) -> Trial | None:
    """The complete trial with the highest mean accuracy; of equals the one that ended first."""
    complete = (trial for trial in trials if trial.state == "complete")
    return max(complete, key=lambda trial: trial.mean_accuracy, default=None)


def _means(trials: Sequence[Trial]) -> list[float]:
    """The mean accuracies of trials."""
    return [trial.mean_accuracy for trial in trials]


def _numbers(trials: Sequence[Trial]) -> list[int]:
    """The numbers of trials, from 1."""
    return [trial.number + 1 for trial in trials]


def _amount(count: float) -> str:
    return str(EngFormatter(places=1 if count >= 1000 else 0)(count)).strip()


# --- importances --------------------------------------------------------------------------------


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
