"""Plots of a study: accuracy over trials, and accuracy against cost."""

import math
from collections.abc import Iterable, Mapping, Sequence
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
    "color": YELLOW,
    "marker": "*",
    "markersize": 13,
    "markeredgecolor": INK,
    "linestyle": "none",
    "zorder": 5,
}
ACCURACY = "mean cross-validation accuracy"
FAILED_HEIGHT = 0.03  # of the ticks of failed trials, as a share of the axis


def history_plot(trials: Sequence[Trial]) -> Figure:
    """Accuracy of each trial in the order of proposal, with its spread over the folds, and the best so far.

    Examples
    --------
    >>> history_plot([Trial(0, {}, "failed", reason="diverged")]).get_suptitle()
    '1 trial, none complete'
    """
    if not trials:
        return empty_figure("no trial has ended yet")
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    axes = figure.subplots()
    complete, last = in_state(trials, "complete"), max(numbers(trials))
    spread = [trial.std_accuracy for trial in complete]
    handles = points(axes, trials, {trial.number: trial.number + 1 for trial in trials})
    bars: Style = {"fmt": "none", "ecolor": BLUE, "alpha": 0.35, "label": "standard deviation over folds"}
    if complete:
        handles.append(axes.errorbar(numbers(complete), means(complete), spread, **bars))
    if best := best_of(trials):
        so_far = [*accumulate(means(complete), max), best.mean_accuracy]
        handles += axes.step([*numbers(complete), last], so_far, where="post", color=INK, label="best so far")
        handles += axes.plot(best.number + 1, best.mean_accuracy, label="best", **BEST)
    axes.set(xlabel="trial", ylabel=ACCURACY, xlim=(0.5 - 0.02 * last, 0.5 + 1.02 * last))
    axes.set_xticks([tick for tick in MaxNLocator(integer=True).tick_values(1, last) if 1 <= tick <= last])
    lay_out(figure, [axes], trials, handles)
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
    costs = {trial.number: trial.images for trial in paid}
    handles = points(axes, paid, costs)
    if best := best_of(paid):
        front = pareto_front(paid)
        at = [trial.images for trial in front]
        handles += axes.step(at, means(front), where="post", color=INK, label="Pareto front of complete trials")
        handles += axes.plot(best.images, best.mean_accuracy, label="best", **BEST)
    if max(costs.values()) > 10 * min(costs.values()):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set(xlabel="images passed through training", ylabel=ACCURACY)
    _totals(total, paid)
    lay_out(figure, [axes], paid, handles)
    return figure


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """The complete trials that no other beats in both cost and accuracy, the cheapest first."""
    front: list[Trial] = []
    for trial in sorted(in_state(trials, "complete"), key=lambda trial: (trial.images, -trial.mean_accuracy)):
        if not front or trial.mean_accuracy > front[-1].mean_accuracy:
            front.append(trial)
    return front


def saved_images(trials: Sequence[Trial]) -> float:
    """An estimate of the images that pruning saved: folds not started, each at the mean cost of the trial's own folds.

    The last fold of a pruned trial may be unfinished, so the estimate is rather too low than too high.
    """
    folds = max((len(trial.folds) for trial in in_state(trials, "complete")), default=0)
    pruned = [trial for trial in in_state(trials, "pruned") if 0 < len(trial.folds) < folds]
    return sum(trial.images * (folds / len(trial.folds) - 1) for trial in pruned)


def _totals(axes: Axes, trials: Sequence[Trial]) -> None:
    """One bar of the cost of the trials of each state, and of what pruning saved."""
    spent = {state: sum(trial.images for trial in in_state(trials, state)) for state in POINTS}
    start, saved = sum(spent.values()), saved_images(trials)
    for index, (state, amount) in enumerate(spent.items()):
        axes.barh(0, amount, left=sum([*spent.values()][:index]), color=POINTS[state]["color"], label=state)
    axes.barh(0, saved, left=start, facecolor="none", edgecolor=GREY, hatch="////", linewidth=0, label="saved")
    parts = ", ".join(f"{text} {_amount(spent[state])}" for state, text in counts(trials))
    pruning = f"; pruning saved about {_amount(saved)} ({saved / (start + saved):.0%})" if saved else ""
    axes.set_title(f"{_amount(start)} images in all: {parts}{pruning}", loc="left", fontsize=10)
    axes.set_axis_off()


def points(axes: Axes, trials: Sequence[Trial], at: Mapping[int, float]) -> list[Any]:
    """Each trial's accuracy at its place, failed ones as ticks at the bottom; handles for a legend with counts."""
    handles: list[Any] = []
    for state, text in counts(trials):
        some, style = in_state(trials, state), {**POINTS[state], "linestyle": "none"}
        where = [at[trial.number] for trial in some]
        if state == "failed":
            axes.plot(where, [FAILED_HEIGHT] * len(some), transform=axes.get_xaxis_transform(), **style)
        else:
            axes.plot(where, means(some), **style)
        handles.append(Line2D([], [], label=f"{text}, mean so far" if state == "pruned" else text, **style))
    return handles


def lay_out(figure: Figure, charts: Iterable[Axes], trials: Sequence[Trial], handles: Sequence[Any]) -> None:
    """Add a title, a legend below, and margins for the ticks at the bottom."""
    for axes in charts:
        tidy_axes(axes)
        axes.margins(y=0.09)
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.02))
    best = best_of(trials)
    spread = f" ± {best.std_accuracy:.4f}" if best and math.isfinite(best.std_accuracy) else ""
    result = f"the best {best.mean_accuracy:.4f}{spread} (trial {best.number + 1})" if best else "none complete"
    plural = "" if len(trials) == 1 else "s"
    figure.suptitle(f"{len(trials)} trial{plural}, {result}", x=0.01, ha="left", fontsize=12)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def counts(trials: Sequence[Trial]) -> list[tuple[str, str]]:
    """The states that occur, each with a text such as ``24 complete``."""
    return [(state, f"{len(some)} {state}") for state in POINTS if (some := in_state(trials, state))]


def in_state(trials: Sequence[Trial], state: str) -> list[Trial]:
    """The trials in a state, in the order of proposal."""
    return sorted((trial for trial in trials if trial.state == state), key=lambda trial: trial.number)


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The complete trial with the highest mean accuracy; of equals the one that ended first."""
    return max((trial for trial in trials if trial.state == "complete"), key=accuracy_of, default=None)


def accuracy_of(trial: Trial) -> float:
    """The mean accuracy; NaN for a failed trial."""
    return math.nan if trial.state == "failed" else trial.mean_accuracy


def means(trials: Sequence[Trial]) -> list[float]:
    return [trial.mean_accuracy for trial in trials]


def numbers(trials: Sequence[Trial]) -> list[int]:
    """The numbers of trials, from 1."""
    return [trial.number + 1 for trial in trials]


def _amount(images: float) -> str:
    return str(EngFormatter(places=1 if images >= 1000 else 0)(images)).strip()
