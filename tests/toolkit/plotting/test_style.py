"""The reliability diagram shows its bins, and class names can be drawn."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from toolkit.plotting.style import DOT_AREAS, ReliabilityCurve, class_label, reliability_diagram, reliability_figure
from toolkit.statistics.calibration import calibration_bins

# Forty predictions of 0.9, thirty of them right, and four of 0.6, one of them right: in ten bins, the last and the 7th.
CONFIDENCE = np.repeat([0.9, 0.6], [40, 4])
RIGHT = np.array([1] * 30 + [0] * 10 + [1] + [0] * 3)
BINS = calibration_bins(np.stack([CONFIDENCE, 1 - CONFIDENCE], axis=1), 1 - RIGHT, bins=10)


def test_small_bins_are_hollow_and_not_joined():
    axes = Figure().subplots()
    reliability_diagram(axes, [ReliabilityCurve(BINS, "some")])
    diagonal, joined = axes.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert joined.get_xydata() == pytest.approx(np.array([[0.9, 0.75]]))
    solid, hollow, key = axes.collections
    assert np.asarray(solid.get_offsets()) == pytest.approx(np.array([[0.9, 0.75]]))
    assert np.asarray(hollow.get_offsets()) == pytest.approx(np.array([[0.6, 0.25]]))
    assert (solid.get_sizes(), hollow.get_sizes()) == ([DOT_AREAS[1]], [DOT_AREAS[0]])
    assert (solid.get_label(), key.get_label()) == ("some", "bins of fewer than 10")


def test_intervals_are_those_of_how_many_of_how_many_are_right():
    asked = []

    def interval(right, n):
        asked.append((right, n))
        return right / n - 0.1, right / n + 0.2

    axes = Figure().subplots()
    reliability_diagram(axes, [ReliabilityCurve(BINS, "some", interval=interval)])
    assert asked == [(1, 4), (30, 40)]
    segments = np.array(axes.collections[0].get_segments())
    assert segments == pytest.approx(np.array([[[0.6, 0.15], [0.6, 0.45]], [[0.9, 0.65], [0.9, 0.95]]]))


def test_without_predictions_there_is_the_diagonal_alone():
    nothing = calibration_bins(np.zeros((0, 2)), np.zeros(0, int))
    axes = Figure().subplots()
    reliability_diagram(axes, [ReliabilityCurve(nothing, "none", interval=lambda *_: (0.0, 1.0))])
    assert not any(len(dots.get_offsets()) for dots in axes.collections)


def test_below_the_diagram_each_curve_has_its_histogram():
    figure = reliability_figure([ReliabilityCurve(BINS, "some")], "images")
    upper, lower = figure.axes
    assert (upper.get_ylabel(), lower.get_xlabel(), lower.get_ylabel()) == ("accuracy", "confidence", "images")
    values, edges, _ = lower.patches[0].get_data()
    assert values.tolist() == BINS.count.tolist() == [0] * 6 + [4, 0, 0, 40]
    assert edges == pytest.approx(np.linspace(0, 1, 11))


@pytest.mark.parametrize(
    ("name", "label"), [("cat", "cat"), ("x" * 24, "x" * 24), ("x" * 12 + "y" * 13, "x" * 12 + "…" + "y" * 11)]
)
def test_a_label_has_24_characters_at_most(name, label):
    assert class_label(name) == label
