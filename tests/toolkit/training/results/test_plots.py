"""The images show the numbers that they are given, and can be read."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from toolkit.plotting.style import BLUE, ORANGE
from toolkit.statistics.calibration import calibration_bins
from toolkit.training.loop import EpochMetrics
from toolkit.training.results.plots import (
    calibration_plot,
    confusion_plot,
    learning_curves,
    mistakes_plot,
    per_class_plot,
)

FIRST = EpochMetrics(1, 0.9, 0.5, 0.8, 0.6, 1e-3, 10.0, 12.0, 1.0, 100.0)
HISTORY = [FIRST, replace(FIRST, epoch=2, train_loss=0.4, train_accuracy=0.8, val_loss=0.3, val_accuracy=0.9)]


def lines(figure, title):
    axes = next(axes for axes in figure.axes if axes.get_title() == title)
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def drawn(figure):
    """The figure as a PNG; drawing it lays everything out."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return buffer.getvalue()


def apart(boxes):
    """Whether no two boxes overlap."""
    return not any(box.overlaps(other) for n, box in enumerate(boxes) for other in boxes[:n])


def images_in(figure):
    """Title, which is above it, and pixels of each image of a figure, row by row."""
    (axes,) = figure.axes
    shown = []
    for image, title in zip(axes.images, axes.texts, strict=True):
        left, right, bottom, top = image.get_extent()
        assert left < title.get_position()[0] < right
        assert bottom > top > title.get_position()[1] > top - 0.1
        shown.append((title.get_text(), np.asarray(image.get_array())))
    return shown


def texts(labels):
    return [label.get_text() for label in labels]


def test_learning_curves_show_both_parts_and_mark_the_best_epoch():
    figure = learning_curves(HISTORY, best_epoch=2)
    loss, accuracy = lines(figure, "loss"), lines(figure, "accuracy")
    assert loss["training"] == ([1, 2], [0.9, 0.4])
    assert loss["validation"] == ([1, 2], [0.8, 0.3])
    assert accuracy["training"] == ([1, 2], [0.5, 0.8])
    assert accuracy["validation"] == ([1, 2], [0.6, 0.9])
    assert loss["best epoch 2"][0] == accuracy["best epoch 2"][0] == [2, 2]
    assert all(axes.get_legend() is not None for axes in figure.axes[:2])


def test_learning_rate_has_its_own_logarithmic_axis():
    history = [replace(FIRST, epoch=n, learning_rate=10.0**-n) for n in (1, 2, 3)]
    axes = learning_curves(history, best_epoch=1).axes[2]
    assert (axes.get_title(), axes.get_yscale()) == ("learning rate", "log")
    assert list(axes.lines[0].get_ydata()) == [0.1, 0.01, 0.001]


@pytest.mark.parametrize("epochs", [1, 2, 300])
def test_epochs_are_whole_numbers(epochs):
    figure = learning_curves([replace(FIRST, epoch=n + 1) for n in range(epochs)], best_epoch=1)
    drawn(figure)
    for axes in figure.axes:
        ticks = [label.get_text() for label in axes.get_xticklabels()]
        assert ticks
        assert all(tick.isdigit() for tick in ticks)
        assert apart([label.get_window_extent() for label in axes.get_xticklabels()])


def test_without_validation_there_is_one_curve():
    history = [replace(epoch, val_loss=math.nan, val_accuracy=math.nan) for epoch in HISTORY]
    assert set(lines(learning_curves(history, best_epoch=2), "loss")) == {"training", "best epoch 2"}


def test_the_confusion_matrix_shows_counts_shaded_by_share():
    matrix = np.array([[8, 2], [0, 5]])
    figure = confusion_plot(matrix, ["cat", "dog"])
    axes = figure.axes[0]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(0, 0): "8", (1, 0): "2", (1, 1): "5"}
    assert np.asarray(axes.images[0].get_array()).tolist() == [[0.8, 0.2], [0.0, 1.0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("predicted", "true", "15 held-out images")


def test_a_class_that_was_not_held_out_and_many_classes_can_be_drawn():
    figure = confusion_plot(np.diag([3] * 39 + [0]), [f"class {label}" for label in range(40)])
    assert np.isfinite(np.asarray(figure.axes[0].images[0].get_array())).all()
    assert not figure.axes[0].texts
    assert figure.get_figwidth() > confusion_plot(np.eye(2, dtype=int), ["a", "b"]).get_figwidth()


@pytest.mark.parametrize("count", [2, 31, 201])
def test_confusion_plot_names_are_readable_or_absent(count):
    figure = confusion_plot(np.eye(count, dtype=int), [f"the class number {label}" for label in range(count)])
    drawn(figure)
    axes = figure.axes[0]
    assert len(axes.get_yticklabels()) == count or count > 200
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert apart([label.get_window_extent() for label in labels[:40]])
    assert max(figure.get_size_inches()) < 40


def test_class_names_are_shortened_and_escaped():
    figure = confusion_plot(np.eye(2, dtype=int), ["northern_mockingbird_female_juvenile", r"$\nothing$"])
    assert drawn(figure)
    assert texts(figure.axes[0].get_yticklabels()) == ["northern_moc…le_juvenile", r"\$\nothing\$"]


def test_the_calibration_image_shows_the_bins_before_and_after():
    """By hand: 0.95 twenty times and half right, error 0.45; then 0.55 twenty times and half right, error 0.05."""
    labels = np.arange(20) % 2
    before, after = (calibration_bins(np.array([[p, 1 - p]] * 20), labels) for p in (0.95, 0.55))
    figure = calibration_plot(before, after)
    upper, lower = figure.axes
    points = {
        str(dots.get_label()): dots.get_offsets().tolist() for dots in upper.collections if len(dots.get_offsets())
    }
    assert points == {
        "before temperature scaling, ECE 0.450": [[pytest.approx(0.95), 0.5]],
        "after temperature scaling, ECE 0.050": [[pytest.approx(0.55), 0.5]],
    }
    assert figure.get_suptitle() == "calibration on 20 held-out images"
    counts = {to_hex(patch.get_facecolor()): patch.get_data().values.tolist() for patch in lower.patches}
    assert counts == {ORANGE: [0] * 14 + [20], BLUE: [0] * 8 + [20] + [0] * 6}
    assert drawn(figure)


def rows_of(count):
    """Rows of ``Evaluation.per_class``: F1 rises and falls with the number, and so do its neighbours."""
    return [
        {
            "class": f"the class number {n}",
            "precision": 0.5 + 0.5 * math.sin(n),
            "recall": 0.9,
            "f1": 0.6 + 0.3 * math.sin(n),
            "images": 1000 + n,
        }
        for n in range(count)
    ]


def shown_rows(axes):
    """Texts of each row: name, precision, recall, F1, images."""
    points = {str(line.get_label()): line.get_ydata() for line in axes.lines}
    values = {str(line.get_label()): line.get_xdata() for line in axes.lines}
    assert all(list(places) == list(axes.get_yticks()) for places in points.values())
    counts = texts(axes.child_axes[0].get_yticklabels())
    columns = (texts(axes.get_yticklabels()), values["precision"], values["recall"], values["F1"], counts)
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("count", [2, 200])
def test_the_per_class_image_shows_every_row_by_rising_f1(count):
    rows = rows_of(count)
    figure = per_class_plot(rows)
    drawn(figure)
    seen = [row for axes in figure.axes for row in shown_rows(axes)]
    assert seen == [
        (row["class"], row["precision"], row["recall"], row["f1"], f"{row['images']:,}")
        for row in sorted(rows, key=lambda row: row["f1"])
    ]
    assert texts(figure.legends[0].get_texts()) == ["precision", "recall", "F1"]
    for axes in figure.axes:
        assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first row is the topmost"
        names = [label.get_window_extent() for label in axes.get_yticklabels()]
        assert apart(names + [label.get_window_extent() for label in axes.child_axes[0].get_yticklabels()])
        assert all(figure.bbox.fully_contains(*corner) for box in names for corner in (box.min, box.max))
    assert max(figure.get_size_inches()) < 25


def test_of_very_many_classes_the_weakest_are_shown():
    rows = rows_of(230)
    figure = per_class_plot(rows)
    seen = [row[0] for axes in figure.axes for row in shown_rows(axes)]
    assert seen == [row["class"] for row in sorted(rows, key=lambda row: row["f1"])[:200]]
    assert figure.get_suptitle().endswith("200 of 230")


def test_a_class_that_was_not_held_out_comes_last_without_points():
    empty = {"class": "none", "precision": 0.0, "recall": 0.0, "f1": 0.0, "images": 0}
    seen = shown_rows(per_class_plot([empty, *rows_of(2)]).axes[0])
    assert seen[-1] == ("none", *[pytest.approx(math.nan, nan_ok=True)] * 3, "0")
    assert np.isfinite([row[1:4] for row in seen[:-1]]).all()


def noise(count, size=8):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def test_mistakes_show_true_and_predicted_class():
    pixels = noise(2)
    figure = mistakes_plot(pixels, [1, 0], [0, 2], [0.974, 0.6], ["cat", "dog", "golden retriever"])
    (first, one), (second, other) = images_in(figure)
    assert (first, second) == ("dog → cat 0.97", "cat → golden retriever 0.60")
    assert (one == pixels[0]).all()
    assert (other == pixels[1]).all()


@pytest.mark.parametrize("count", [1, 7, 30])
def test_at_most_24_mistakes_with_titles_that_do_not_overlap(count):
    pixels, names = noise(count), ["a name that goes on and on and on", "cat", "golden retriever"]
    true, predicted = [n % 3 for n in range(count)], [(n + 1) % 3 for n in range(count)]
    figure = mistakes_plot(pixels, true, predicted, [1 / (n + 1) for n in range(count)], names)
    drawn(figure)
    seen = images_in(figure)
    assert len(seen) == min(count, 24)
    assert all((shown == pixels[n]).all() for n, (_, shown) in enumerate(seen))
    boxes = [each.get_window_extent() for each in (*figure.axes[0].images, *figure.axes[0].texts, figure._suptitle)]
    assert apart(boxes)
    assert all(figure.bbox.fully_contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_where_there_is_no_mistake_the_figure_says_so():
    figure = mistakes_plot(noise(0), [], [], [], ["cat", "dog"])
    assert texts(figure.texts) == ["no held-out image was classified wrongly"]
    assert drawn(figure)
