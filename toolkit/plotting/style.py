"""Colours, class names, tidy axes and the reliability diagram of all plots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from toolkit.plotting.fonts import drawable_text
from toolkit.statistics.calibration import CalibrationBins

BLUE, ORANGE, GREY, INK, YELLOW = "#2563eb", "#ea580c", "#6b7280", "#111827", "#facc15"
MAX_NAME_LENGTH = 24  # characters
MIN_IN_BIN = 10  # predictions below which the accuracy of a bin is mostly chance
DOT_AREAS = 6.0, 60.0  # square points, for the smallest and the largest bin of a reliability diagram


def class_label(name: str) -> str:
    """A class name for a plot: short, drawable, and visible in a legend in spite of an underscore.

    Examples
    --------
    >>> class_label("US$"), class_label("_rest"), class_label("northern_mockingbird_female_juvenile")
    ('US\\\\$', ' _rest', 'northern_moc…le_juvenile')
    """
    half = MAX_NAME_LENGTH // 2
    short = name if len(name) <= MAX_NAME_LENGTH else f"{name[:half]}…{name[1 - half :]}"
    return (" " if short.startswith("_") else "") + drawable_text(short)


def empty_figure(text: str) -> Figure:
    """A figure with a text instead of data."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    figure.text(0.5, 0.5, text, ha="center", va="center", color=GREY, fontsize=13)
    return figure


def tidy_axes(*axes: Axes) -> None:
    """Draw a faint grid behind the data, and no box."""
    for each in axes:
        each.grid(alpha=0.25)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """One curve of a reliability diagram: predictions by confidence, and the label of the legend.

    ``interval`` gives the bounds of an accuracy, from the numbers of right and of all predictions; None draws none.
    """

    bins: CalibrationBins
    label: str
    colour: str = BLUE
    interval: Callable[[int, int], Sequence[float]] | None = None


def reliability_diagram(axes: Axes, curves: Sequence[ReliabilityCurve]) -> None:
    """Draw accuracy by confidence, the last curve on top, and the diagonal of perfect calibration.

    The area of a dot is the size of its bin. Bins of fewer than ten predictions are hollow and not
    joined by the line: their accuracy is mostly chance.

    References
    ----------
    Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017.
    """
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="as right as confident")
    for curve in curves:
        filled = curve.bins.count > 0
        x, y, n = (values[filled] for values in (curve.bins.confidence, curve.bins.accuracy, curve.bins.count))
        if curve.interval and len(n):
            bounds = [curve.interval(round(share * cases), cases) for share, cases in zip(y, n, strict=True)]
            axes.vlines(x, *zip(*bounds, strict=True), color=curve.colour, alpha=0.4)
        areas, enough = np.clip(DOT_AREAS[1] * n / n.max(initial=1), *DOT_AREAS), n >= MIN_IN_BIN
        axes.plot(x[enough], y[enough], color=curve.colour, linewidth=1.4)
        axes.scatter(x[enough], y[enough], areas[enough], color=curve.colour, zorder=3, label=curve.label)
        axes.scatter(x[~enough], y[~enough], areas[~enough], "white", edgecolors=curve.colour, zorder=3)
    if any(((curve.bins.count > 0) & (curve.bins.count < MIN_IN_BIN)).any() for curve in curves):
        axes.scatter([], [], color="white", edgecolors=GREY, label=f"bins of fewer than {MIN_IN_BIN}")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    tidy_axes(axes)


def reliability_figure(curves: Sequence[ReliabilityCurve], counted: str) -> Figure:
    """A reliability diagram above a histogram of the confidences; ``counted`` names what it counts, such as images."""
    figure = Figure(figsize=(7, 6.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    reliability_diagram(upper, curves)
    upper.set_ylabel("accuracy")
    upper.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=2, fontsize=8)  # hides nothing
    for curve in curves:
        edges = np.linspace(0, 1, len(curve.bins.count) + 1)
        lower.stairs(curve.bins.count, edges, fill=True, color=curve.colour, alpha=0.4)
    lower.set(xlabel="confidence", ylabel=counted)
    lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    tidy_axes(lower)
    return figure
