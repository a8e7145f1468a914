"""The figures: what is on them, and that they exist whatever the data."""

import io

import numpy as np
import pytest

from toolkit.baseline import Baseline
from toolkit.monitoring import plots
from toolkit.monitoring.drift import DriftReport, compare
from toolkit.monitoring.limits import Limits
from toolkit.monitoring.windows import Window

CLASSES = tuple(f"class {k}" for k in range(30))


def window_of(n, labelled=lambda i: i >= 0):
    rng = np.random.default_rng(0)
    predicted = rng.integers(0, 30, n)
    labels = np.where(labelled(np.arange(n)), predicted, -1)
    return Window(CLASSES, np.arange(n, dtype=float), predicted, rng.random(n, np.float32), labels)


@pytest.fixture(scope="module")
def baseline():
    rng = np.random.default_rng(1)
    odds = rng.random((500, 30)) ** 4
    return Baseline(CLASSES, odds / odds.sum(axis=1, keepdims=True), odds.argmax(axis=1))


def drawn(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    return len(buffer.getvalue()) > 1000


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [figure.get_suptitle()]


def test_accuracy_has_its_levels_gaps_labels_and_alerts(baseline):
    window = window_of(3000, labelled=lambda i: (i < 1000) | (i >= 2000))
    alert = {"metric": "accuracy", "time": 2500.0, "level": "critical"}
    figure = plots.accuracy("3", window, baseline, Limits(), [alert, {**alert, "metric": "mean_confidence"}])
    upper, lower = figure.axes
    line = next(line for line in upper.lines if line.get_label() == "accuracy")
    values = np.asarray(line.get_ydata())
    middle = np.asarray(line.get_xdata())
    assert np.isnan(values[(middle > 1000) & (middle < 2000)]).all()
    assert (values[middle < 1000] == 1).all()
    assert sum(bar.get_height() for bar in lower.patches) == 2000
    assert {"warning -5%", "critical -10%", "immediate -20%"} <= set(texts(figure))
    diamonds = [line for line in upper.lines if line.get_marker() == "D"]
    assert [float(line.get_xdata()[0]) for line in diamonds] == [2500]
    assert texts(figure)[-1] == "Accuracy of model version 3: 100.0% in the last 1,000 predictions, reference 100.0%"
    assert drawn(figure)


@pytest.mark.parametrize("n", [1, 49, 51, 5000])
@pytest.mark.parametrize("with_baseline", [True, False])
def test_every_figure_is_drawn_for_any_number_of_predictions(n, with_baseline, baseline):
    reference = baseline if with_baseline else None
    window = window_of(n, labelled=lambda i: i < 0)
    assert drawn(
        plots.accuracy("3", window, reference, Limits(), [{"metric": "accuracy", "time": 0, "level": "warning"}])
    )
    assert drawn(plots.confidence("3", window, reference))
    assert drawn(plots.predictions("3", window, reference))
    assert drawn(plots.drift(DriftReport("3", 0.05, tuple(compare(window, reference, Limits(), "short")))))


def test_predictions_that_are_all_broken_are_drawn_too(baseline):
    n = 120
    broken = Window(CLASSES, np.zeros(n), np.full(n, -1), np.full(n, np.nan, np.float32), np.full(n, -1))
    assert drawn(plots.confidence("3", broken, baseline))
    assert drawn(plots.predictions("3", broken, baseline))


def test_a_long_history_stays_a_small_picture(baseline):
    figure = plots.accuracy("3", window_of(200_000), baseline, Limits(), [])
    assert len(figure.axes[1].patches) <= plots.MOST_BINS


def test_no_data_is_said():
    assert plots.nothing("No predictions").texts[0].get_text() == "No predictions"
    assert "No predictions" in plots.drift(DriftReport(None, 0.05, ())).texts[0].get_text()
