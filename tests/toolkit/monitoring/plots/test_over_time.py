"""The plots over time: what is drawn is what was counted, and they exist whatever the data."""

from dataclasses import replace

import numpy as np
import pytest

from support.prediction_fixtures import alert_of, baseline_of, names, window_of
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.plots import over_time
from toolkit.monitoring.plots.timeline import timeline
from toolkit.monitoring.windows.drift import DriftReport, run_tests
from toolkit.monitoring.windows.label_bias import effective_labels
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.statistics.intervals import wilson

K = 3
DAY = 86_400.0
THRESHOLDS = Thresholds()
BINS = ReferenceBins(names(K), baseline_of(500, np.random.default_rng(0)))
BARE = ReferenceBins(names(K))


def rows_of(n, span=DAY, labelled=lambda i: i >= 0, **more):
    """Predictions evenly spread over a time from 1970 on."""
    window = window_of(n, np.random.default_rng(n), **more)
    labels = np.where(labelled(np.arange(n)), window.labels, -1)
    return replace(window, time=np.linspace(0, span, n), labels=labels)


def parts(window, size=50):
    return [window.slice(start, min(start + size, window.n)) for start in range(0, window.n, size)]


def texts(figure):
    within = [text.get_text() for axes in figure.axes for text in axes.texts]
    return within + [text.get_text() for text in figure.texts] + [figure.get_suptitle()]


def called(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return line


def values_of(line, n):
    """Values drawn at the middles of n points that have no gap between them."""
    y = np.asarray(line.get_ydata(), float)
    assert len(y) == n + 3  # the first and the last are drawn to their ends, and a gap closes the line
    return y[1:-2]


def heights_of(axes, label):
    """The heights of the corners of a band, (n, 1)."""
    (band,) = [each for each in axes.collections if each.get_label() == label]
    return np.concatenate([path.vertices[:, 1:] for path in band.get_paths()])


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def accuracy_of(window, bins=BINS, alerts=(), **more):
    line = timeline([], [window], bins)
    return over_time.accuracy("3", line, bins.count(window.last(1_000)), bins, THRESHOLDS, alerts, **more)


def test_accuracy_is_the_share_of_right_answers_at_each_point():
    window = rows_of(1_000, labelled=lambda i: (i < 400) | (i >= 600))
    upper, lower = accuracy_of(window).axes
    labels = [part.n_labels for part in parts(window)]
    right = [part.n_correct for part in parts(window)]
    assert [bar.get_height() for bar in lower.patches] == labels
    (dots,) = [line for line in upper.lines if line.get_marker() == "o"]
    expected = [r / n if n else np.nan for r, n in zip(right, labels, strict=True)]
    np.testing.assert_array_equal(dots.get_ydata(), expected)
    middles = [part.time[[0, -1]].mean() / DAY for part in parts(window)]
    np.testing.assert_allclose(dots.get_xdata(), middles)


def test_accuracy_has_a_gap_without_labels_the_estimate_none():
    window = rows_of(1_000, labelled=lambda i: (i < 400) | (i >= 600))
    upper = accuracy_of(window).axes[0]
    y = np.asarray(called(upper, "accuracy").get_ydata(), float)
    assert np.isnan(y).sum() == 2
    x = np.asarray(called(upper, "accuracy").get_xdata(), float)
    assert not ((x > 0.4) & (x < 0.6)).any()
    expected = [BINS.estimator.estimate(part.probabilities).accuracy for part in parts(window)]
    np.testing.assert_allclose(values_of(called(upper, "estimate, no labels"), 20), expected)


def test_the_estimate_without_labels_has_an_interval():
    window = rows_of(1_000, labelled=lambda i: i < 0)
    upper = accuracy_of(window).axes[0]
    heights = heights_of(upper, "its 95 % interval")
    for point in timeline([], [window], BINS).points:
        guess = BINS.estimator.from_sums(point.score_sums, point.n_finite, point.effective_n)
        assert np.isclose(heights, [guess.low, guess.high]).any(axis=0).all()


def test_labels_in_bursts_have_a_wider_interval():
    rows, bursts = rows_of(50, broken=0), np.repeat(np.arange(50), 20)
    many = {name: getattr(rows, name)[bursts] for name in ("predicted", "confidence", "labels", "probabilities")}
    window = replace(rows_of(1_000), **many)
    heights = heights_of(accuracy_of(window).axes[0], "95 % interval")
    labelled = [point for point in timeline([], [window], BINS).points if point.n_labels]
    assert sum(map(effective_labels, labelled)) < sum(point.n_labels for point in labelled) / 2
    for point in labelled:
        kept, share = effective_labels(point), point.n_correct / point.n_labels
        assert np.isclose(heights, wilson(share * kept, kept)).any(axis=0).all()


def test_accuracy_has_the_reference_and_the_levels_below_it():
    figure = accuracy_of(rows_of(200))
    usual = BINS.baseline.accuracy
    assert called(figure.axes[0], f"reference {usual:.1%}").get_ydata()[0] == usual
    lines = {round(line.get_ydata()[0] / usual, 6) for line in figure.axes[0].lines if line.get_ls() == "--"}
    assert {0.95, 0.9, 0.8} <= lines
    assert {"warning -5%", "critical -10%", "immediate -20%"} <= set(texts(figure))
    span = wilson(round(usual * 500), 500)
    boxes = [patch.get_bbox() for patch in figure.axes[0].patches]
    assert any(np.allclose([box.y0, box.y1], span) for box in boxes)


@pytest.mark.parametrize(("span", "expected"), [(DAY, 0.75), (60.0, 750)])
def test_diamonds_are_at_the_time_of_the_alert_on_the_line(span, expected):
    window = rows_of(1_000, span, labelled=lambda i: i >= 0)
    alerts = [alert_of(metric, time=0.75 * span) for metric in ("accuracy", "non_finite")]
    upper = accuracy_of(window, alerts=alerts).axes[0]
    (mark,) = [line for line in upper.lines if line.get_marker() == "D"]
    assert mark.get_xdata()[0] == pytest.approx(expected, rel=0.01)
    (dots,) = [line for line in upper.lines if line.get_marker() == "o"]
    expected_height = np.interp(mark.get_xdata()[0], dots.get_xdata(), dots.get_ydata())
    assert mark.get_ydata()[0] == pytest.approx(expected_height)
    assert legend_of(upper)[-1] == "alert"


def test_the_title_says_how_accurate_it_is_now():
    window = rows_of(2_000)
    recent = window.last(1_000)
    now, usual = recent.n_correct / recent.n_labels, BINS.baseline.accuracy
    expected = f"Accuracy of model version 3: {now:.1%} in the last 1,000 predictions, reference {usual:.1%}"
    assert accuracy_of(window).get_suptitle() == expected
    for n, labelled, end in ((2_000, 500, "no labels in the last 1,000 predictions"), (90, 0, "no labels yet")):
        assert accuracy_of(rows_of(n, labelled=lambda i, end=labelled: i < end)).get_suptitle().endswith(end)


def test_answers_without_probabilities_are_not_taken_for_wrong():
    window = replace(rows_of(100), probabilities=np.zeros((0, 0), np.float16))
    assert "estimate, no labels" not in legend_of(accuracy_of(window).axes[0])


def test_confidence_has_the_quantiles_of_each_point():
    window = rows_of(400)
    left, _ = over_time.confidence("3", timeline([], [window], BINS), BINS.count(window), BINS).axes
    medians = values_of(called(left, "median"), 8)
    for part, median in zip(parts(window), medians, strict=True):
        sure = np.sort(part.confidence[part.finite])
        assert (sure <= median).mean() >= 0.5
        assert (sure < median - 0.01).mean() <= 0.5  # to the width of a bin


@pytest.mark.parametrize("bins", [BINS, BARE])
def test_confidence_shows_the_short_window(bins):
    window = rows_of(1_500)
    now = window.last(1_000)
    figure = over_time.confidence("3", timeline([], [window], bins), bins.count(now), bins)
    stairs = {patch.get_label(): patch.get_data() for patch in figure.axes[1].patches}
    sure = now.confidence[now.finite]
    shares, edges, _ = stairs[f"last {len(sure):,}"]
    upto = [(sure <= np.float16(edge)).mean() for edge in edges[1:]]
    np.testing.assert_allclose(np.cumsum(shares), upto, atol=1e-9 if bins is BINS else 0.01)
    assert ("reference, 500" in stairs) == (bins is BINS)


def test_predictions_are_shares_of_the_finite_ones():
    window = rows_of(400)
    figure = over_time.predictions("3", timeline([], [window], BINS), BINS.count(window), BINS)
    left, right = figure.axes
    for index, name in enumerate(names(K)):
        expected = [part.counts[index] / part.finite.sum() for part in parts(window)]
        np.testing.assert_allclose(values_of(called(left, name), 8), expected)
    now = called(right, f"last {window.finite.sum():,}")
    rows = [label.get_text() for label in right.get_yticklabels()]
    shares = dict(zip(rows, now.get_xdata(), strict=True))
    assert shares == pytest.approx(dict(zip(names(K), window.counts / window.finite.sum(), strict=True)))


def test_of_many_classes_those_that_changed_most_are_shown():
    k = 30
    bins = ReferenceBins(names(k), baseline_of(3_000, np.random.default_rng(0), k))
    rng = np.random.default_rng(1)
    window = window_of(1_000, rng, k, broken=0)
    window = replace(window, predicted=np.where(rng.random(1_000) < 0.3, 7, window.predicted))
    figure = over_time.predictions("3", timeline([], [window], bins), bins.count(window), bins)
    left, right = figure.axes
    assert len(right.get_yticklabels()) == over_time.MAX_CLASSES
    assert right.get_yticklabels()[-1].get_text() == "class 7"
    assert legend_of(left)[0] == "class 7"
    rest = [int(label.get_text().split()[-1]) for label in right.get_yticklabels()]
    usual, now = (counts.classes / counts.classes.sum() for counts in (bins.reference, bins.count(window)))
    before, after = (1 - shares[rest].sum() for shares in (usual, now))
    assert right.get_xlabel() == f"share of predictions; 10 others together {before:.1%} -> {after:.1%}"


@pytest.mark.parametrize("k", [12, 21])
def test_no_class_is_left_out_while_there_is_room(k):
    bins = ReferenceBins(names(k), baseline_of(3_000, np.random.default_rng(0), k))
    window = window_of(1_000, np.random.default_rng(1), k, broken=0)
    window = replace(window, predicted=np.where(window.predicted == 4, 7, window.predicted))  # 4 is never said any more
    figure = over_time.predictions("3", timeline([], [window], bins), bins.count(window), bins)
    left, right = figure.axes
    assert {label.get_text() for label in right.get_yticklabels()} == set(names(k))
    assert right.get_xlabel() == "share of predictions"
    assert set(legend_of(left)[:2]) == {"class 4", "class 7"}  # the lines are of those that changed most
    figure.draw_without_rendering()


def test_volume_has_rates_non_finite_and_latency():
    window = rows_of(1_000)
    later = np.where(np.arange(1_000) < 500, window.time, window.time + DAY)
    window = replace(window, time=later)
    line = timeline([], [window], BINS)
    rate, broken, latency = over_time.volume("3", line).axes
    assert rate.get_ylabel() == "predictions\nper hour"
    steps = rate.patches
    assert [bar.get_height() for bar in steps] == pytest.approx([999 / 24] * 20)
    assert sum(bar.get_width() for bar in steps) < 1.01  # one day of two is without
    y = np.asarray(broken.lines[0].get_ydata(), float)
    assert np.nanmax(y) == max(part.non_finite / part.n for part in parts(window))
    latencies = [part.latency[np.isfinite(part.latency)] for part in parts(window)]
    median = np.asarray(called(latency, "median").get_ydata(), float)
    assert np.nanmin(median) == pytest.approx(min(np.quantile(each, 0.5) for each in latencies), rel=0.08)


def test_volume_says_what_there_is_none_of():
    window = replace(rows_of(100, broken=0), latency=np.zeros(0, np.float32))
    assert {"none", "no latency was given"} <= set(texts(over_time.volume("3", timeline([], [window], BINS))))


def test_inputs_that_drifted_are_red_and_say_what_changed():
    window = rows_of(1_000)
    counts = BINS.count(window)
    results = [replace(result, drifted=result.metric == "brightness") if result.family == "input" else result
               for result in run_tests(counts, BINS, THRESHOLDS, "short")]  # fmt: skip
    figure = over_time.inputs("3", timeline([], [window], BINS), BINS, DriftReport("3", 0.05, tuple(results)))
    brightness, width = figure.axes
    (found,) = [result for result in results if result.metric == "brightness"]
    assert brightness.get_title(loc="left") == f"brightness: {found.detail} (short)"
    assert width.get_title(loc="left") == "width"
    assert called(brightness, "median").get_color() == over_time.DRIFT_COLOURS["drift"]
    assert called(width, "median").get_color() == over_time.BLUE
    part = parts(window)[4].statistics["brightness"]
    medians = values_of(called(brightness, "median"), 20)
    assert medians[4] == pytest.approx(np.nanmedian(part), abs=0.02)
    band = next(patch.get_bbox() for patch in brightness.patches)
    usual = np.quantile(BINS.baseline.statistics["brightness"], [0.1, 0.9])
    assert (band.y0, band.y1) == pytest.approx(tuple(usual), abs=0.005)


def test_inputs_without_statistics_say_so():
    line = timeline([], [rows_of(100)], BARE)
    assert texts(over_time.inputs("3", line, BARE))[0].startswith("Nothing is known of the images")


def test_class_names_are_drawn_literally():
    odd = (r"$\nothing$", "_hidden", "x" * 90)
    bins = ReferenceBins(odd)
    window = replace(rows_of(100, broken=0), classes=odd)
    figure = over_time.predictions("$3$", timeline([], [window], bins), bins.count(window), bins)
    assert {"\\$\\nothing\\$", " _hidden", "x" * 12 + "…" + "x" * 11} == set(legend_of(figure.axes[0]))
    figure.draw_without_rendering()


def all_figures(window, bins, alerts=()):
    line, now = timeline([], [window], bins), bins.count(window.last(1_000))
    yield over_time.accuracy("3", line, now, bins, THRESHOLDS, alerts)
    for draw in (over_time.confidence, over_time.predictions):
        yield draw("3", line, now, bins, alerts)
    yield over_time.volume("3", line, alerts)
    yield over_time.inputs("3", line, bins)


@pytest.mark.parametrize(
    ("n", "bins", "broken", "span"),
    [(1, BINS, 0, 0), (130, BINS, 1, DAY), (60, BARE, 0, 0)],
)
def test_every_plot_is_drawn_whatever_the_data(n, bins, broken, span):
    window = rows_of(n, span, labelled=lambda i: i < 60, broken=broken)
    metrics = ("accuracy", "confidence_distribution", "prediction_distribution", "non_finite")
    alerts = [alert_of(metric, level="warning") for metric in metrics]
    for figure in all_figures(window, bins, alerts):
        figure.draw_without_rendering()
