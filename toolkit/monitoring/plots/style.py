"""Style shared by all plots, and timelines on an axis."""

from collections.abc import Iterable
from datetime import UTC
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from toolkit.monitoring.plots.timeline import Timeline
from toolkit.monitoring.store.alerts import Alert
from toolkit.plotting.fonts import draw_names, drawable_text
from toolkit.plotting.style import BLUE, GREY

NO_PREDICTIONS = "No predictions have been logged yet."
SHADE = "#9db8d2"
LEVEL_COLOURS = {"warning": "#e0a100", "critical": "#e05a00", "immediate": "#b00020"}
DRIFT_COLOURS = {"drift": "#b00020", "unproven": "#e0a100", "no_drift": "#2e7d5b", "insufficient_data": "#b5b5b5"}
MIN_BAR_WIDTH = 1 / 250  # of the axis: thinner ones disappear

Floats = NDArray[np.float64]


def with_title(figure: Figure, text: str) -> Figure:
    """The figure under its title."""
    figure.suptitle("\n".join(map(drawable_text, text.split("\n"))), x=0.01, ha="left", fontsize=12)
    return draw_names(figure)


def shares(axis: Axis) -> None:
    """Show numbers from 0 to 1 as per cent."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def legend(axes: Axes) -> None:
    """A legend above the axes, where it hides nothing."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=5, fontsize=8, columnspacing=1.5)


def note(axes: Axes, text: str) -> None:
    """Words in the middle of axes that show nothing."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=9)


# A timeline on an axis


def time_axis(axes: Axes, timeline: Timeline, *, few: bool = False) -> None:
    """The axis below: dates, or the number of predictions when they came in one go; a short axis has few ticks."""
    begin, end = _x(timeline, np.array([timeline.starts.min(), timeline.ends.max()]))
    drawn = [each.dataLim for each in axes.get_shared_x_axes().get_siblings(axes)]  # an alert may come later
    axes.set_xlim(min(begin, *(each.x0 for each in drawn)), max(end, *(each.x1 for each in drawn)))
    usual = f"about {int(np.median([point.n for point in timeline.points])):,} predictions to a point"
    if timeline.by_time:
        # Its coarsest step of each kind is half of the next unit: more than twice minticks always fit.
        locator = AutoDateLocator(tz=UTC, minticks=2 if few else 3, maxticks=6 if few else 9)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4 if few else 9, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    unit = "time (UTC)" if timeline.by_time else "prediction number"
    axes.set_xlabel(unit if few else f"{unit}, {usual}", fontsize=8 if few else None, loc="left")


def line(axes: Axes, timeline: Timeline, values: Floats, *, color: str = BLUE, **style: Any) -> None:
    """Values of all points, with gaps."""
    x, y = timeline.path(values)
    axes.plot(_x(timeline, x), y, color=color, **style)


def points(axes: Axes, timeline: Timeline, values: Floats) -> None:
    """Draw the points of a line."""
    axes.plot(_x(timeline, timeline.middles), values, "o", ms=3, color=BLUE)


def band(axes: Axes, timeline: Timeline, low: Floats, high: Floats, *, label: str, alpha: float = 0.45) -> None:
    """Draw a band from a low to a high value of each point, with gaps; a lone short point is a stroke."""
    x, bottom, top = timeline.path(low, high)
    axes.fill_between(_x(timeline, x), bottom, top, color=SHADE, alpha=alpha, lw=0.8, label=label)


def bars(axes: Axes, timeline: Timeline, heights: NDArray[Any], *, width: float = 0.9) -> None:
    """A number for each point, as wide as this part of its time; 0 in the pauses between."""
    starts, ends = _x(timeline, timeline.starts), _x(timeline, timeline.ends)
    widths = np.maximum(width * (ends - starts), MIN_BAR_WIDTH * (ends.max() - starts.min()))
    axes.bar((starts + ends) / 2, heights, width=widths, color=SHADE)


def alert_markers(axes: Axes, timeline: Timeline, alerts: Iterable[Alert], metric: str, values: Floats) -> None:
    """A diamond on the line of these values for each alert of a metric, at its time."""
    known = np.isfinite(values)
    raised = [alert for alert in alerts if alert.metric == metric] if known.any() else []
    for index, alert in enumerate(raised):
        place = timeline.place(alert.time)
        y = float(np.interp(place, timeline.middles[known], values[known]))
        axes.plot(_x(timeline, np.array([place])), [y], "D", ms=8, color=LEVEL_COLOURS[alert.level], mec="white",
                  zorder=5, label="alert" if index == 0 else None)  # fmt: skip


def _x(timeline: Timeline, places: Floats) -> Floats:
    """Places as matplotlib has them: days for times."""
    if not timeline.by_time:
        return places
    known = np.isfinite(places)
    times = np.where(known, places * 1e6, 0).astype("datetime64[us]")
    return np.where(known, date2num(times), np.nan)
