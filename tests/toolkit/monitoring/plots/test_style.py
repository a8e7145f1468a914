"""Where things are on an axis of time, and how it is written."""

import itertools
from datetime import UTC, datetime

import numpy as np
import pytest
from matplotlib.dates import date2num
from matplotlib.figure import Figure

from support.prediction_fixtures import alert_of
from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.plots import style
from toolkit.monitoring.plots.timeline import timeline
from toolkit.monitoring.windows.reference import ReferenceBins

PLAIN = ReferenceBins(("cat", "dog"))
MORNING = datetime(2026, 11, 24, 8, tzinfo=UTC)


def line_of(seconds, n=200):
    """Predictions evenly spread from eight in the morning on."""
    times = MORNING.timestamp() + np.linspace(0, seconds, n)
    return timeline([], [Predictions(("cat", "dog"), times, np.zeros(n, int), np.ones(n), np.full(n, -1))], PLAIN)


def drawn(axes):
    axes.figure.canvas.draw()
    return axes


def axes_of():
    return Figure(layout="constrained").subplots()


@pytest.mark.parametrize("seconds", [601, 7_200, 86_400, 20 * 86_400, 500 * 86_400])
@pytest.mark.parametrize("few", [True, False])
def test_any_span_has_a_few_dates_that_do_not_overlap(seconds, few):
    axes, line = axes_of(), line_of(seconds)
    if few:
        axes.figure.set_size_inches(3.2, 2.2)
    style.line(axes, line, np.ones(len(line)))
    style.time_axis(axes, line, few=few)
    drawn(axes)
    boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert 2 <= len(boxes) <= 10
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_times_are_in_utc_at_their_places():
    axes, line = axes_of(), line_of(4 * 3600)
    style.line(axes, line, np.ones(len(line)))
    style.time_axis(axes, line)
    drawn(axes)
    assert axes.get_xlim() == (date2num(MORNING), date2num(MORNING.replace(hour=12)))
    labels = {label.get_text(): place for label, place in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)}
    assert labels["10:00"] == date2num(MORNING.replace(hour=10))
    assert axes.get_xlabel() == "time (UTC), about 50 predictions to a point"


def test_what_came_in_one_go_is_numbered():
    axes, line = axes_of(), line_of(5, n=3_000)
    style.line(axes, line, np.ones(len(line)))
    style.time_axis(axes, line)
    drawn(axes)
    assert axes.get_xlim() == (0, 3_000)
    assert "1,200" in [label.get_text() for label in axes.get_xticklabels()]
    assert axes.get_xlabel().startswith("prediction number")


def test_an_alert_after_the_last_prediction_is_on_the_figure():
    axes, line = axes_of(), line_of(4 * 3600)
    late = MORNING.replace(hour=14)
    style.line(axes, line, np.linspace(0, 1, len(line)))
    alerts = [alert_of(metric, time=late.timestamp()) for metric in ("accuracy", "other")]
    style.alert_markers(axes, line, alerts, "accuracy", np.linspace(0, 1, len(line)))
    style.time_axis(axes, line)
    (mark,) = [each for each in axes.lines if each.get_marker() == "D"]
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (date2num(late), 1)
    assert axes.get_xlim()[1] == date2num(late)


def test_without_a_value_there_is_no_diamond():
    axes, line = axes_of(), line_of(4 * 3600)
    style.alert_markers(axes, line, [alert_of(time=MORNING.timestamp())], "accuracy", np.full(len(line), np.nan))
    assert not axes.lines


def test_a_short_moment_has_a_bar_that_can_be_seen():
    times = np.concatenate([np.zeros(50), np.linspace(9e5, 1e6, 50)])
    line = timeline([], [Predictions(("cat", "dog"), times, np.zeros(100, int), np.ones(100), np.full(100, -1))], PLAIN)
    axes = axes_of()
    style.bars(axes, line, np.array([7, 8]))
    assert [bar.get_height() for bar in axes.patches] == [7, 8]
    assert axes.patches[0].get_width() == pytest.approx(style.MIN_BAR_WIDTH * 1e6 / 86_400)


def test_shares_are_in_per_cent():
    axes = axes_of()
    style.shares(axes.yaxis)
    written = [axes.yaxis.get_major_formatter()(value) for value in (0.3, 0.995, 0.0025, 1)]
    assert written == ["30%", "99.5%", "0.25%", "100%"]
