"""Pictures of a training, for people who would rather look than read."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from toolkit.training.loop import Epoch

BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#6b7280"


def learning_curves(history: Sequence[Epoch], best_epoch: int) -> Figure:
    """Loss and accuracy over epochs, training and validation, with the best epoch marked."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = [epoch.epoch for epoch in history]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, colour in (("train", BLUE), ("val", ORANGE)):
            values = [getattr(epoch, f"{part}_{name}") for epoch in history]
            if np.isfinite(values).any():
                label = "training" if part == "train" else "validation"
                axes.plot(epochs, values, color=colour, marker="o", markersize=3, label=label)
        axes.axvline(best_epoch, color=GREY, linestyle=":", label=f"best epoch {best_epoch}")
        axes.set(xlabel="epoch", title=name)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def confusion_picture(matrix: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """The confusion matrix (K, K): counts, shaded by the share of each true class."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = max(4.5, 0.55 * len(classes) + 2)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    ticks = np.arange(len(classes))
    axes.set_xticks(ticks, classes, rotation=90 if max(map(len, classes)) > 3 else 0)
    axes.set_yticks(ticks, classes)
    axes.set(xlabel="predicted", ylabel="true", title=f"{int(matrix.sum())} held-out pictures")
    if len(classes) <= 30:
        for row, column in np.argwhere(matrix > 0):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour, fontsize=8)
    return figure
