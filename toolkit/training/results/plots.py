"""Plots of a training: learning curves, confusion, calibration, classes, mistakes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from toolkit.plotting.fonts import draw_names
from toolkit.plotting.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    ReliabilityCurve,
    class_label,
    empty_figure,
    reliability_figure,
    tidy_axes,
)
from toolkit.statistics.calibration import CalibrationBins
from toolkit.training.loop import EpochMetrics

MAX_COUNTED = 30  # classes whose confusions are written as numbers
MAX_NAMED = 200  # classes whose names are readable in one plot
ROWS_PER_COLUMN = 50  # of the per-class plot
MISTAKES_PER_ROW, MAX_MISTAKES, MIN_COLUMNS = 6, 24, 3
CELL, GAP, TITLE = (
    (2.2, 2.5),
    0.1,
    0.4,
)  # inches: width and height of each, around its image, and of the title above all
ONE_LINE_LENGTH = 26  # characters of two class names above a mistake


def learning_curves(history: Sequence[EpochMetrics], best_epoch: int) -> Figure:
    """Loss and accuracy of training and validation, and the learning rate, over epochs; the best epoch is marked."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3, width_ratios=(5, 5, 3))
    epochs = [epoch.epoch for epoch in history]
    marker = "o" if len(epochs) <= 50 else ""
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        for part, label, colour in (("train", "training", BLUE), ("val", "validation", ORANGE)):
            values = [getattr(epoch, f"{part}_{name}") for epoch in history]
            if np.isfinite(values).any():
                axes.plot(epochs, values, color=colour, marker=marker, markersize=3, label=label)
        axes.axvline(best_epoch, color=GREY, linestyle=":", label=f"best epoch {best_epoch}")
        axes.set_title(name)
        axes.legend(frameon=False)
    rate.plot(epochs, [epoch.learning_rate for epoch in history], color=GREY, marker=marker, markersize=3)
    rate.set_yscale("log")
    rate.set_title("learning rate")
    for axes in (loss, accuracy, rate):
        axes.set(xlabel="epoch", xlim=(epochs[0] - 0.5, epochs[-1] + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        tidy_axes(axes)
    return figure


def confusion_plot(matrix: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """The confusion matrix (K, K), rows true, as counts shaded by the share of each true class."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = max(4.5, 0.55 * len(classes) + 2) if len(classes) <= MAX_COUNTED else min(36, 0.16 * len(classes) + 4)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    if len(classes) <= MAX_NAMED:
        ticks, names, size = np.arange(len(classes)), [class_label(name) for name in classes], _size(len(classes))
        axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 3 else 0, fontsize=size)
        axes.set_yticks(ticks, names, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true", title=f"{int(matrix.sum())} held-out images")
    if len(classes) <= MAX_COUNTED:
        for row, column in np.argwhere(matrix > 0):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour, fontsize=8)
    return draw_names(figure)


def calibration_plot(before: CalibrationBins, after: CalibrationBins) -> Figure:
    """A reliability diagram of the same images before and after temperature scaling."""
    curves = [
        ReliabilityCurve(bins, f"{when} temperature scaling, ECE {bins.error:.3f}", colour)
        for bins, when, colour in ((before, "before", ORANGE), (after, "after", BLUE))
    ]
    figure = reliability_figure(curves, "images")
    figure.suptitle(f"calibration on {after.count.sum()} held-out images")
    return figure


def per_class_plot(per_class: Sequence[Mapping[str, Any]]) -> Figure:
    """Precision, recall, F1 and the number of images of each class, the lowest F1 first.

    Of more than 200 classes the lowest 200 are drawn. One without images comes last and has no points.
    """
    ordered = sorted(per_class, key=lambda row: (row["images"] == 0, row["f1"]))[:MAX_NAMED]
    columns = math.ceil(len(ordered) / ROWS_PER_COLUMN)
    height = math.ceil(len(ordered) / columns)
    figure = Figure(figsize=(5 * columns + 1, 0.2 * height + 1.4))
    figure.set_layout_engine("constrained", w_pad=0.15)
    for index, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        _class_rows(axes, ordered[index * height : (index + 1) * height], height)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    of = f", {len(ordered)} of {len(per_class)}" if len(ordered) < len(per_class) else ""
    figure.suptitle(f"classes on held-out images, lowest F1 first{of}")
    return draw_names(figure)


def _class_rows(axes: Axes, rows: Sequence[Mapping[str, Any]], height: int) -> None:
    """One row for each class from top to bottom, in a space for ``height`` rows."""
    places, size = np.arange(len(rows)), _size(len(rows))
    measured = [math.nan if row["images"] == 0 else 1.0 for row in rows]
    precision, recall, f1 = (
        np.multiply([row[name] for row in rows], measured) for name in ("precision", "recall", "f1")
    )
    axes.hlines(places, np.fmin(precision, recall), np.fmax(precision, recall), color=GREY, alpha=0.5, zorder=1)
    axes.plot(precision, places, "o", color=ORANGE, markersize=5, label="precision")
    axes.plot(recall, places, "o", color=BLUE, markersize=5, label="recall")
    axes.plot(f1, places, "|", color=INK, markersize=9, markeredgewidth=2, label="F1")
    axes.set_yticks(places, [class_label(row["class"]) for row in rows], fontsize=size)
    counts = axes.secondary_yaxis("right")
    counts.set_yticks(places, [f"{row['images']:,}" for row in rows], fontsize=size, color=GREY)
    counts.tick_params(length=0)
    counts.spines["right"].set_visible(False)
    axes.set_title("images", loc="right", fontsize=size, color=GREY)
    axes.set(xlim=(-0.03, 1.03), ylim=(height - 0.5, -0.5))
    tidy_axes(axes)


def mistakes_plot(
    pixels: NDArray[np.uint8],
    true: Sequence[int],
    predicted: Sequence[int],
    confidence: Sequence[float],
    classes: Sequence[str],
) -> Figure:
    """Wrongly classified images, each with its true class, the predicted class and the confidence.

    Of the images, uint8 (M, size, size, 3), the first 24 are drawn; with none, the plot says so.
    """
    shown = min(len(pixels), MAX_MISTAKES)
    if not shown:
        return empty_figure("no held-out image was classified wrongly")
    columns = min(MISTAKES_PER_ROW, shown)
    width = CELL[0] * max(columns, MIN_COLUMNS)  # wide enough for the title
    height = CELL[1] * math.ceil(shown / columns)
    figure = Figure(figsize=(width, height + TITLE))
    axes = figure.add_axes((0, 0, 1, height / (height + TITLE)))  # one of inches for all images: each costs 30 ms
    for index in range(shown):
        left, top = CELL[0] * (index % columns), CELL[1] * (index // columns)
        sides = (left + GAP, left + CELL[0] - GAP, top + CELL[1] - GAP, top + CELL[1] - CELL[0] + GAP)
        axes.imshow(pixels[index], extent=sides, aspect="auto")
        names = [class_label(classes[label]) for label in (true[index], predicted[index])]
        gap = "\n" if sum(map(len, names)) > ONE_LINE_LENGTH else " "
        title = f"{names[0]} →{gap}{names[1]} {confidence[index]:.2f}"
        axes.text(left + CELL[0] / 2, sides[-1] - GAP / 2, title, ha="center", va="bottom", fontsize=8)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    figure.suptitle(
        "the most confident mistakes: true → predicted, confidence", va="center", y=1 - TITLE / 2 / (height + TITLE)
    )
    return draw_names(figure)


def _size(rows: int) -> float:
    """Font size of class names in points; smaller if there are many."""
    return 9 if rows <= MAX_COUNTED else 7
