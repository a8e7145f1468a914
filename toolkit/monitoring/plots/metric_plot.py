"""The plot of any metric of a model version."""

from collections.abc import Callable, Iterable

from matplotlib.figure import Figure

from toolkit.monitoring.pipeline.stream_state import StreamState
from toolkit.monitoring.plots import over_time, snapshot
from toolkit.monitoring.plots.style import NO_PREDICTIONS
from toolkit.monitoring.plots.timeline import timeline
from toolkit.monitoring.store.alerts import Alert
from toolkit.monitoring.windows.drift import DriftReport
from toolkit.plotting.style import empty_figure


def metric_plot(
    metric: str, version: str, state: StreamState, alerts: Iterable[Alert], drift: Callable[[], DriftReport]
) -> Figure:
    """The plot of one of the metrics of ``ModelMonitor.plot_metrics``; ``drift`` tests all windows."""
    if not version:
        return empty_figure(NO_PREDICTIONS)
    if metric == "drift":
        return snapshot.drift(drift())
    bins = state.bins
    if metric == "calibration":
        return snapshot.calibration(version, state.counts("medium"), bins)
    line, now = timeline(*state.history(), bins), state.counts("short")
    if not line.points:
        return empty_figure(NO_PREDICTIONS)
    if metric == "accuracy":
        return over_time.accuracy(version, line, now, bins, state.thresholds, alerts)
    if metric == "volume":
        return over_time.volume(version, line, alerts)
    if metric == "inputs":
        return over_time.inputs(version, line, bins, drift())
    draw = over_time.confidence if metric == "confidence" else over_time.predictions
    return draw(version, line, now, bins, alerts)
