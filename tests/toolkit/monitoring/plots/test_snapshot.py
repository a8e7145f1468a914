"""The plots of the present windows: drift in units of what matters, and the reliability diagram."""

from dataclasses import replace

import numpy as np
import pytest

from support.prediction_fixtures import baseline_of, names, window_of
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.plots import snapshot
from toolkit.monitoring.windows.drift import DriftReport, run_tests
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.plotting.style import MIN_IN_BIN
from toolkit.statistics.calibration import calibration_bins
from toolkit.statistics.intervals import wilson

BINS = ReferenceBins(names(3), baseline_of(500, np.random.default_rng(0)))
WINDOW = window_of(1_000, np.random.default_rng(1))


def report_of(window, bins=BINS):
    names_of = ("short", "medium")
    results = [result for name in names_of for result in run_tests(bins.count(window), bins, Thresholds(), name)]
    return DriftReport("3", 0.05, tuple(results))


def test_drift_is_as_long_as_its_effect_in_units_of_what_matters():
    report = report_of(WINDOW)
    figure = snapshot.drift(report)
    finite = WINDOW.finite.sum()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [f"short, {finite:,} predictions", f"medium, {finite:,} predictions"]
    results = [result for result in report.results if result.window == "short"]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()][::-1]
    assert labels[3:] == ["softmax distribution", "accuracy", "input: brightness", "input: width"]
    for bar, result in zip(figure.axes[0].patches, results, strict=True):
        expected = np.clip(result.effect / result.minimum_effect, 0, snapshot.MAX_EFFECT)
        assert bar.get_width() == pytest.approx(expected)
    assert [text.get_text() for text in figure.axes[0].texts] == [f"{result.effect:.3f}" for result in results]
    figure.draw_without_rendering()


def test_what_passes_the_line_without_being_drift_is_not_green():
    report = report_of(WINDOW.last(120))
    figure = snapshot.drift(report)
    legend = {text.get_text(): patch.get_facecolor() for text, patch in
              zip(figure.legends[0].get_texts(), figure.legends[0].get_patches(), strict=True)}  # fmt: skip
    results = [result for result in report.results if result.window == "short"]
    kinds = set()
    for bar, result in zip(figure.axes[0].patches, results, strict=True):
        beyond = (result.effect or 0) >= result.minimum_effect
        kind = "drift" if result.drifted else "too little data" if result.drifted is None else "no drift"
        kind = "large enough to matter, but may be chance" if kind == "no drift" and beyond else kind
        assert bar.get_facecolor() == legend[kind]
        kinds.add(kind)
    assert "large enough to matter, but may be chance" in kinds


def test_too_little_data_is_said():
    figure = snapshot.drift(report_of(WINDOW.last(20)))
    assert {text.get_text() for text in figure.axes[0].texts} == {"too little data"}
    assert figure.get_suptitle() == "Drift of model version 3: too little data"
    assert "No predictions" in snapshot.drift(DriftReport(None, 0.05, ())).texts[0].get_text()


@pytest.mark.parametrize("with_baseline", [True, False])
def test_calibration_is_that_of_the_labelled_predictions(with_baseline):
    bins = BINS if with_baseline else ReferenceBins(names(3))
    figure = snapshot.calibration("3", bins.count(WINDOW), bins)
    known = WINDOW.labelled
    bins = calibration_bins(WINDOW.probabilities[known].astype(np.float32), WINDOW.labels[known])
    filled = bins.count > 0
    upper, lower = figure.axes
    ends = [segment[:, 1] for segment in upper.collections[-4].get_segments()]
    right = np.rint(bins.accuracy[filled] * bins.count[filled])
    np.testing.assert_allclose(ends, [wilson(r, n) for r, n in zip(right, bins.count[filled], strict=True)])
    drawn = np.column_stack([bins.confidence, bins.accuracy])[bins.count >= MIN_IN_BIN]
    np.testing.assert_allclose(upper.lines[-1].get_xydata(), drawn)
    np.testing.assert_array_equal(lower.patches[-1].get_data()[0], bins.count)
    assert f": ECE {bins.error:.1%} (" in figure.get_suptitle()
    grey = [drawn for drawn in upper.collections if str(drawn.get_label()).startswith("reference")]
    assert len(grey) == with_baseline
    if with_baseline:
        usual = BINS.baseline.calibration()
        np.testing.assert_allclose(grey[0].get_offsets()[:, 1], usual.accuracy[usual.count >= 10])
        assert grey[0].get_label() == f"reference, 500 images, ECE {usual.error:.1%}"
    figure.draw_without_rendering()
    data, legend = upper.get_window_extent(), upper.get_legend().get_window_extent()
    assert not data.overlaps(legend)
    assert figure.bbox.contains(legend.x0, legend.y1)


def test_calibration_without_labels_says_so():
    unlabelled = replace(WINDOW, labels=np.full(WINDOW.n, -1))
    figure = snapshot.calibration("3", BINS.count(unlabelled), BINS)
    assert figure.texts[0].get_text() == "There are no labels for the last 1,000 predictions."
    figure = snapshot.calibration("3", BINS.empty(), BINS)
    assert figure.texts[0].get_text() == "No predictions have been logged yet."
