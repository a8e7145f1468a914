"""The pictures show the numbers that they are given."""

import math
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from toolkit.training.figures import confusion_picture, learning_curves
from toolkit.training.loop import Epoch

FIRST = Epoch(1, 0.9, 0.5, 0.8, 0.6, 1e-3, 10.0, 12.0, 1.0, 100.0)
HISTORY = [FIRST, replace(FIRST, epoch=2, train_loss=0.4, train_accuracy=0.8, val_loss=0.3, val_accuracy=0.9)]


def lines(figure: Figure, title: str) -> dict[str, tuple[list[float], list[float]]]:
    axes = next(axes for axes in figure.axes if axes.get_title() == title)
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_learning_curves_show_both_parts_and_mark_the_best_epoch() -> None:
    figure = learning_curves(HISTORY, best_epoch=2)
    loss, accuracy = lines(figure, "loss"), lines(figure, "accuracy")
    assert loss["training"] == ([1, 2], [0.9, 0.4])
    assert loss["validation"] == ([1, 2], [0.8, 0.3])
    assert accuracy["training"] == ([1, 2], [0.5, 0.8])
    assert accuracy["validation"] == ([1, 2], [0.6, 0.9])
    assert loss["best epoch 2"][0] == accuracy["best epoch 2"][0] == [2, 2]
    assert all(axes.get_legend() is not None for axes in figure.axes)


def test_without_validation_there_is_one_curve() -> None:
    history = [replace(epoch, val_loss=math.nan, val_accuracy=math.nan) for epoch in HISTORY]
    assert set(lines(learning_curves(history, best_epoch=2), "loss")) == {"training", "best epoch 2"}


def test_the_confusion_matrix_shows_counts_shaded_by_share() -> None:
    matrix = np.array([[8, 2], [0, 5]])
    figure = confusion_picture(matrix, ["cat", "dog"])
    axes = figure.axes[0]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(0, 0): "8", (1, 0): "2", (1, 1): "5"}
    assert np.asarray(axes.images[0].get_array()).tolist() == [[0.8, 0.2], [0.0, 1.0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("predicted", "true", "15 held-out pictures")


def test_a_class_that_was_not_held_out_and_many_classes_can_be_drawn() -> None:
    figure = confusion_picture(np.diag([3] * 39 + [0]), [f"class {label}" for label in range(40)])
    assert np.isfinite(np.asarray(figure.axes[0].images[0].get_array())).all()
    assert not figure.axes[0].texts
    assert figure.get_figwidth() > confusion_picture(np.eye(2, dtype=int), ["a", "b"]).get_figwidth()
