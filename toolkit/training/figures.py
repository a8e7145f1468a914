"""Pictures of a training, for people who would rather look than read."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from toolkit.baseline import CALIBRATION_BINS, CalibrationBins
from toolkit.lettering import drawn, lettered
from toolkit.training.augment import augment
from toolkit.training.loop import Epoch

BLUE, ORANGE, GREY, INK = "#2563eb", "#ea580c", "#6b7280", "#111827"
LONGEST_NAME = 24  # characters; a longer class name loses its middle
MOST_COUNTED = 30  # classes whose confusions are written as numbers
MOST_NAMED = 200  # classes whose names can be read in one picture
ROWS_A_COLUMN = 50  # of the per-class picture
MISTAKES_A_ROW, MOST_MISTAKES = 6, 24
ON_ONE_LINE = 26  # characters of two class names above a mistake
SAMPLES, VERSIONS = 6, 7  # rows of the augmentation picture, and its columns beside the original


def learning_curves(history: Sequence[Epoch], best_epoch: int) -> Figure:
    """Loss, accuracy and learning rate over epochs, training and validation, with the best epoch marked."""
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
        _plain(axes)
    return figure


def confusion_picture(matrix: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """The confusion matrix (K, K): counts, shaded by the share of each true class."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = max(4.5, 0.55 * len(classes) + 2) if len(classes) <= MOST_COUNTED else min(36, 0.16 * len(classes) + 4)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    if len(classes) <= MOST_NAMED:
        ticks, names, size = np.arange(len(classes)), [class_label(name) for name in classes], _size(len(classes))
        axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 3 else 0, fontsize=size)
        axes.set_yticks(ticks, names, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true", title=f"{int(matrix.sum())} held-out pictures")
    if len(classes) <= MOST_COUNTED:
        for row, column in np.argwhere(matrix > 0):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour, fontsize=8)
    return lettered(figure)


def calibration_picture(before: CalibrationBins, after: CalibrationBins) -> Figure:
    """A reliability diagram: how often predictions of each confidence are right, and how many there are.

    Parameters
    ----------
    before, after
        The same pictures without and with the temperature.

    References
    ----------
    Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017.
    """
    figure = Figure(figsize=(6, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    upper.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="as right as confident")
    left = np.arange(CALIBRATION_BINS) / CALIBRATION_BINS
    width = 1 / CALIBRATION_BINS
    for bins, when, colour, place in ((before, "before", ORANGE, 0.3), (after, "after", BLUE, 0.7)):
        full = bins.count > 0
        label = f"{when} temperature scaling, ECE {bins.error:.3f}"
        upper.plot(bins.confidence[full], bins.accuracy[full], color=colour, marker="o", markersize=5, label=label)
        lower.bar(left + place * width, bins.count, width=0.4 * width, color=colour)
    upper.set(ylabel="accuracy", ylim=(-0.02, 1.02), title=f"calibration on {after.count.sum()} held-out pictures")
    upper.legend(frameon=False, loc="upper left")
    lower.set(xlabel="confidence", ylabel="pictures", xlim=(-0.02, 1.02), yscale="log", ylim=(0.7, None))
    _plain(upper)
    _plain(lower)
    return figure


def per_class_picture(per_class: Sequence[Mapping[str, Any]]) -> Figure:
    """Precision, recall, F1 and the number of pictures of each class, the lowest F1 first.

    Parameters
    ----------
    per_class
        Rows of ``Evaluation.per_class``. Of more than 200 the lowest 200 are drawn. A class without
        pictures comes last and has no points.
    """
    ordered = sorted(per_class, key=lambda row: (row["pictures"] == 0, row["f1"]))[:MOST_NAMED]
    columns = math.ceil(len(ordered) / ROWS_A_COLUMN)
    height = math.ceil(len(ordered) / columns)
    figure = Figure(figsize=(5 * columns + 1, 0.2 * height + 1.4))
    figure.set_layout_engine("constrained", w_pad=0.15)
    for index, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        _class_rows(axes, ordered[index * height : (index + 1) * height], height)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    of = f", {len(ordered)} of {len(per_class)}" if len(ordered) < len(per_class) else ""
    figure.suptitle(f"classes on held-out pictures, lowest F1 first{of}")
    return lettered(figure)


def _class_rows(axes: Axes, rows: Sequence[Mapping[str, Any]], height: int) -> None:
    """One line a class from top to bottom, in a space for ``height`` of them."""
    places, size = np.arange(len(rows)), _size(len(rows))
    measured = [math.nan if row["pictures"] == 0 else 1.0 for row in rows]
    precision, recall, f1 = (
        np.multiply([row[name] for row in rows], measured) for name in ("precision", "recall", "f1")
    )
    axes.hlines(places, np.fmin(precision, recall), np.fmax(precision, recall), color=GREY, alpha=0.5, zorder=1)
    axes.plot(precision, places, "o", color=ORANGE, markersize=5, label="precision")
    axes.plot(recall, places, "o", color=BLUE, markersize=5, label="recall")
    axes.plot(f1, places, "|", color=INK, markersize=9, markeredgewidth=2, label="F1")
    axes.set_yticks(places, [class_label(row["class"]) for row in rows], fontsize=size)
    counts = axes.secondary_yaxis("right")
    counts.set_yticks(places, [f"{row['pictures']:,}" for row in rows], fontsize=size, color=GREY)
    counts.tick_params(length=0)
    counts.spines["right"].set_visible(False)
    axes.set_title("pictures", loc="right", fontsize=size, color=GREY)
    axes.set(xlim=(-0.03, 1.03), ylim=(height - 0.5, -0.5))
    _plain(axes)


def mistakes_picture(
    pixels: NDArray[np.uint8],
    true: Sequence[int],
    predicted: Sequence[int],
    confidence: Sequence[float],
    classes: Sequence[str],
) -> Figure:
    """Pictures that were classified wrongly, each with its true class, the predicted one and the confidence.

    Parameters
    ----------
    pixels
        uint8 (M, size, size, 3), the surest mistake first; the first 24 are drawn. Without any, the
        figure says so.
    true, predicted
        M indices into the classes.
    confidence
        M probabilities of the predicted classes.
    classes
        K names.
    """
    shown = min(len(pixels), MOST_MISTAKES)
    if not shown:
        figure = Figure(figsize=(6, 2), layout="constrained")
        figure.text(0.5, 0.5, "no held-out picture was classified wrongly", ha="center", va="center", color=GREY)
        return figure
    columns = min(MISTAKES_A_ROW, shown)
    rows = math.ceil(shown / columns)
    figure = Figure(figsize=(2.2 * columns, 2.5 * rows + 0.4), layout="constrained")
    cells = figure.subplots(rows, columns, squeeze=False).flat
    for index, axes in enumerate(cells):
        axes.set_axis_off()
        if index < shown:
            axes.imshow(pixels[index])
            names = [class_label(classes[label]) for label in (true[index], predicted[index])]
            gap = "\n" if sum(map(len, names)) > ON_ONE_LINE else " "
            axes.set_title(f"{names[0]} →{gap}{names[1]} {confidence[index]:.2f}", fontsize=8)
    figure.suptitle("the most confident mistakes: true → predicted, confidence")
    return lettered(figure)


def augmentation_picture(pixels: NDArray[np.uint8], strength: float, mirrored: bool, seed: int = 0) -> Figure:
    """What an augmentation strength does: a picture a row, first as it is, then seven versions to train on.

    Parameters
    ----------
    pixels
        uint8 (M, size, size, 3); the first six are drawn.
    strength, mirrored
        As for ``toolkit.training.augment.augment``.
    seed
        Of the versions.
    """
    originals = torch.tensor(pixels[:SAMPLES]).permute(0, 3, 1, 2).float() / 255  # (M, 3, size, size)
    copies = originals.repeat_interleave(VERSIONS, dim=0)
    changed = augment(copies, strength, mirrored=mirrored, generator=torch.Generator().manual_seed(seed))
    versions = changed.view(len(originals), VERSIONS, *originals.shape[1:])
    sheet = torch.cat([originals[:, None], versions], dim=1).permute(0, 1, 3, 4, 2).numpy()  # (M, 8, size, size, 3)
    figure = Figure(figsize=(1.4 * (VERSIONS + 1), 1.4 * len(originals) + 0.6), layout="constrained")
    cells = figure.subplots(len(originals), VERSIONS + 1, squeeze=False)
    for row, pictures in zip(cells, sheet, strict=True):
        for axes, picture in zip(row, pictures, strict=True):
            axes.imshow(picture)
            axes.set_axis_off()
    cells[0, 0].set_title("original", fontsize=8)
    figure.suptitle(f"augmentation {strength:g}{', half of them mirrored' if mirrored and strength > 0 else ''}")
    return figure


def _plain(axes: Axes) -> None:
    """What all charts share: a faint grid and no box."""
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _size(rows: int) -> float:
    """Points of the names, smaller where there are many."""
    return 9 if rows <= MOST_COUNTED else 7


def class_label(name: str) -> str:
    """A class name for a picture: short, and in letters that can be drawn."""
    half = LONGEST_NAME // 2
    return drawn(name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[1 - half :]}")
