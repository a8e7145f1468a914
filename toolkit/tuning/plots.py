"""Plots of a study: accuracy over trials, and accuracy against cost."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from toolkit.plotting.style import BLUE, GREY, INK, ORANGE, YELLOW, empty_figure, tidy_axes
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

    The cost is the number of images passed through training: unlike seconds, it is the same on
    every machine. Trials without a cost, such as repeated ones, are left out.

    Examples
    --------
    >>> cost_plot([]).texts[0].get_text()
    'no trial has cost anything yet'
    """
    paid = [trial for trial in trials if trial.images]
    if not paid:
        return empty_figure("no trial has cost anything yet")
    figure = Figure(figsize=(10, 5.8), layout="constrained")
    axes, total = figure.subplots(2, 1, height_ratios=(12, 1))
    handles = _points(axes, paid, lambda trial: trial.images)
    if best := _best_of(paid):
        front = pareto_front(paid)
        label, costs = "Pareto front of complete trials", [trial.images for trial in front]
        handles += axes.step(costs, _means(front), where="post", color=INK, label=label)
        handles += axes.plot(best.images, best.mean_accuracy, label="best", **BEST)
    if max(trial.images for trial in paid) > 10 * min(trial.images for trial in paid):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set(xlabel="images passed through training", ylabel=ACCURACY)
    _totals(total, paid)
    _lay_out(figure, axes, paid, handles)
    return figure


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """The complete trials that no other beats in both cost and accuracy, the cheapest first."""
    front: list[Trial] = []
    for trial in sorted(_in_state(trials, "complete"), key=lambda trial: (trial.images, -trial.mean_accuracy)):
        if not front or trial.mean_accuracy > front[-1].mean_accuracy:
            front.append(trial)
    return front


def saved_images(trials: Sequence[Trial]) -> float:
    """An estimate of the images that pruning saved: folds not started, each at the mean cost of the trial's own folds.

    The last fold of a pruned trial may be unfinished, so the estimate is rather too low than too high.
    """
    folds = max((len(trial.folds) for trial in _in_state(trials, "complete")), default=0)
    pruned = [trial for trial in _in_state(trials, "pruned") if 0 < len(trial.folds) < folds]
    return sum(trial.images * (folds / len(trial.folds) - 1) for trial in pruned)


def _totals(axes: Axes, trials: Sequence[Trial]) -> None:
    """One bar of the cost of the trials of each state, and of what pruning saved."""
    spent = {state: sum(trial.images for trial in _in_state(trials, state)) for state in POINTS}
    start, saved = sum(spent.values()), saved_images(trials)
    for index, (state, amount) in enumerate(spent.items()):
        axes.barh(0, amount, left=sum([*spent.values()][:index]), color=POINTS[state]["color"], label=state)
    axes.barh(0, saved, left=start, facecolor="none", edgecolor=GREY, hatch="////", linewidth=0, label="saved")
    parts = ", ".join(f"{text} {_amount(spent[state])}" for state, text in counts(trials))
    pruning = f"; pruning saved about {_amount(saved)} ({saved / (start + saved):.0%})" if saved else ""
    axes.set_title(f"{_amount(start)} images in all: {parts}{pruning}", loc="left", fontsize=10)
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


def _amount(images: float) -> str:
    return str(EngFormatter(places=1 if images >= 1000 else 0)(images)).strip()
