"""Figures of one moment: how far windows are from the reference, and whether confidence can be believed."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from toolkit.monitoring import canvas, performance
from toolkit.monitoring.canvas import DRIFT_COLOURS, INK, REFERENCE, SHADE
from toolkit.monitoring.counts import Counts
from toolkit.monitoring.drift import DriftReport, DriftResult
from toolkit.monitoring.figures import calibration_of
from toolkit.monitoring.yardstick import Yardstick

FARTHEST = 6.0  # times the least effect that matters, where the drift chart ends


def drift(report: DriftReport) -> Figure:
    """How large each change is, in units of the least that matters; red is drift, grey is too little data."""
    if not report.results:
        return canvas.nothing()
    windows = list(dict.fromkeys(result.window for result in report.results))
    metrics = list(dict.fromkeys((result.family, result.metric) for result in report.results))
    figure = Figure(figsize=(3.6 * len(windows) + 2, 0.36 * len(metrics) + 1.9), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(windows), sharey=True, squeeze=False)[0], windows, strict=True):
        results = [result for result in report.results if result.window == name]
        rows = [len(metrics) - 1 - metrics.index((result.family, result.metric)) for result in results]
        sizes = [_in_units(result) for result in results]
        axes.barh(
            rows, np.clip(sizes, 0, FARTHEST), height=0.62, color=[DRIFT_COLOURS[result.status] for result in results]
        )
        axes.axvline(1, color=REFERENCE, ls="--", lw=1)
        for result, row, size in zip(results, rows, sizes, strict=True):
            text = "too little data" if result.effect is None else f"{result.effect:.3f}"
            axes.text(min(max(size, 1), FARTHEST) + 0.08, row, text, va="center", fontsize=8, color=REFERENCE)
        axes.set_xlim(0, FARTHEST + 1.4)
        axes.set_title(f"{name}, {max(result.n for result in results):,} predictions", fontsize=9, loc="left")
        axes.set_yticks(range(len(metrics)), [_called(*metric) for metric in reversed(metrics)])
        axes.set_xlabel("times the least that matters", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    verdict = {True: "drift", False: "no drift", None: "too little data"}[report.drifted]
    return canvas.titled(figure, f"Drift of model version {report.model_version}: {verdict}")


def calibration(version: str, counts: Counts, yardstick: Yardstick) -> Figure:
    """Reliability diagram of any window: how often predictions of each confidence were right, and how they were before.

    The title has the expected calibration error (ECE) and its 95 % interval.
    """
    if not counts.n:
        return canvas.nothing()
    if not counts.n_labels:
        return canvas.nothing(f"No labels have been told for the last {counts.n:,} predictions.")
    figure = Figure(figsize=(7, 6.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    figures = performance.calibration(calibration_of(counts))
    upper.plot([0, 1], [0, 1], color=REFERENCE, ls=":", lw=1, label="as sure as right")
    if yardstick.reference is not None:
        usual = performance.calibration(calibration_of(yardstick.reference))
        label = f"reference, {usual['n_labels']:,} pictures, ECE {usual['calibration_error']:.1%}"
        x, y, _ = _curve(usual)
        upper.plot(x, y, "o-", color=REFERENCE, alpha=0.6, ms=3, lw=1.2, label=label)
    x, y, ends = _curve(figures)
    upper.errorbar(x, y, np.abs(ends.T - y), fmt="o-", color=INK, ecolor=SHADE, ms=5, lw=1.4, elinewidth=2.5,
                   label=f"{counts.n_labels:,} labels, 95 % intervals")  # fmt: skip
    upper.set_ylabel("share that was right")
    canvas.shares(upper.yaxis)
    upper.legend(frameon=False, fontsize=8, loc="upper left")
    bins = counts.calibration.shape[1]
    lower.stairs(counts.calibration[0], np.linspace(0, 1, bins + 1), fill=True, color=SHADE)
    lower.set_ylabel("labels")
    lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    lower.set_xlabel(f"confidence, labelled among the last {counts.n:,} predictions")
    lower.set_xlim(0, 1.01)
    canvas.finish(upper, lower)
    low, high = figures["calibration_error_interval"]
    error = f"ECE {figures['calibration_error']:.1%} ({low:.1%} to {high:.1%})"
    return canvas.titled(figure, f"Calibration of model version {version}: {error}")


def _in_units(result: DriftResult) -> float:
    return 0.0 if result.effect is None else result.effect / result.minimum_effect


def _called(family: str, metric: str) -> str:
    return metric.replace("_", " ") if family == "model" else f"input: {canvas.named(metric)}"


def _curve(figures: Mapping[str, Any]) -> Iterator[NDArray[np.float64]]:
    """(B,) confidence and accuracy, and (B, 2) its interval, of the bins that hold anything."""
    for key in ("confidence", "accuracy", "accuracy_interval"):
        yield np.array([entry[key] for entry in figures["calibration_curve"]])
