"""The plot of any metric of a model version."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from matplotlib.figure import Figure

from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.plots import over_time, snapshot, style
from toolkit.monitoring.plots.timeline import timeline
from toolkit.monitoring.store.alerts import Alert
from toolkit.monitoring.windows.drift import DriftReport
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.monitoring.windows.summary import WindowSummary


class WindowSource(Protocol):
    """The windows and the history of a model version, such as a ``StreamState``."""

    bins: ReferenceBins

    @property
    def thresholds(self) -> Thresholds:
        """Sizes at which levels begin."""

    def counts(self, window: str) -> WindowSummary:
        """Counts of a window."""

    def history(self) -> tuple[Sequence[WindowSummary], Iterable[Predictions]]:
        """Counts of older predictions, and the predictions after them."""


def metric_plot(
    metric: str, version: str, source: WindowSource, alerts: Iterable[Alert], drift: Callable[[], DriftReport]
) -> Figure:
    """The plot of one of the metrics of ``ModelMonitor.plot_metrics``; ``drift`` tests all windows."""
    if not version:
        return style.no_data()
    if metric == "drift":
        return snapshot.drift(drift())
    bins = source.bins
    if metric == "calibration":
        return snapshot.calibration(version, source.counts("medium"), bins)
    line, now = timeline(*source.history(), bins), source.counts("short")
    if metric == "accuracy":
        return over_time.accuracy(version, line, now, bins, source.thresholds, alerts)
    if metric == "volume":
        return over_time.volume(version, line, alerts)
    if metric == "inputs":
        return over_time.inputs(version, line, bins, drift())
    draw = over_time.confidence if metric == "confidence" else over_time.predictions
    return draw(version, line, now, bins, alerts)
