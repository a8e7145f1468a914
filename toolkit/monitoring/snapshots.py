"""Figures of one moment: how far windows are from the reference, and whether confidence can be believed."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from toolkit.monitoring import canvas, performance
from toolkit.monitoring.canvas import DRIFT_COLOURS, INK, REFERENCE, SHADE
from toolkit.monitoring.counts import Counts
from toolkit.monitoring.drift import DriftReport, DriftResult
from toolkit.monitoring.figures import calibration_of
from toolkit.monitoring.yardstick import Yardstick

FARTHEST = 6.0  # times the least effect that matters, where the drift chart ends
FEWEST_IN_A_BIN = 10  # labels below which the share of a bin is mostly chance
LARGEST_DOT, SMALLEST_DOT = 60.0, 6.0  # of a bin in the reliability diagram, in square points
MEANINGS = {
    "drift": "drift",
    "unproven": "large enough to matter, but may be chance",
    "no_drift": "no drift",
    "insufficient_data": "too little data",
}


def drift(report: DriftReport) -> Figure:
    """How large each change is, in units of the least that matters.

    Red is drift; amber is large enough to matter and may be chance all the same; grey is too little data.
    """
    if not report.results:
        return canvas.nothing()
    windows = list(dict.fromkeys(result.window for result in report.results))
    metrics = list(dict.fromkeys((result.family, result.metric) for result in report.results))
    figure = Figure(figsize=(3.6 * len(windows) + 2, 0.36 * len(metrics) + 2.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(windows), sharey=True, squeeze=False)[0], windows, strict=True):
        results = [result for result in report.results if result.window == name]
        rows = [len(metrics) - 1 - metrics.index((result.family, result.metric)) for result in results]
        sizes = [_in_units(result) for result in results]
        axes.barh(
            rows, np.clip(sizes, 0, FARTHEST), height=0.62, color=[DRIFT_COLOURS[_kind(result)] for result in results]
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
    patches = [Patch(color=DRIFT_COLOURS[kind], label=meaning) for kind, meaning in MEANINGS.items()]
    figure.legend(handles=patches, frameon=False, fontsize=8, ncols=len(patches), loc="outside lower center")
    verdict = {True: "drift", False: "no drift", None: "too little data"}[report.drifted]
    return canvas.titled(figure, f"Drift of model version {report.model_version}: {verdict}")


def calibration(version: str, counts: Counts, yardstick: Yardstick) -> Figure:
    """Reliability diagram of any window: how often predictions of each confidence were right, and how they were before.

    A dot is as large as its bin has labels. Bins with fewer than ten are hollow, and no line leads to them: two
    images are right together half of the time, whatever the model.
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
        label = f"reference, {usual['n_labels']:,} images, ECE {usual['calibration_error']:.1%}"
        _reliability(upper, usual, REFERENCE, 0.6, label)
    _reliability(upper, figures, INK, 1.0, f"{counts.n_labels:,} labels, 95 % intervals", intervals=True)
    upper.set_ylabel("share that was right")
    upper.set_ylim(-0.03, 1.03)
    canvas.shares(upper.yaxis)
    upper.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=2, fontsize=8)  # hides nothing
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


def _kind(result: DriftResult) -> str:
    """Which of ``MEANINGS`` a result has."""
    return "unproven" if result.status == "no_drift" and _in_units(result) >= 1 else result.status


def _called(family: str, metric: str) -> str:
    return metric.replace("_", " ") if family == "model" else f"input: {canvas.named(metric)}"


def _reliability(
    axes: Axes, figures: Mapping[str, Any], colour: str, alpha: float, label: str, *, intervals: bool = False
) -> None:
    """One curve of the diagram; the line leads through the bins that hold enough."""
    x, y, ends, n = _curve(figures)
    enough = n >= FEWEST_IN_A_BIN
    if intervals:
        for chosen, width in ((enough, 2.5), (~enough, 1.0)):
            axes.vlines(x[chosen], *ends[chosen].T, color=SHADE, lw=width, zorder=1)
    sizes = np.clip(LARGEST_DOT * n / n.max(), SMALLEST_DOT, None)
    axes.plot(x[enough], y[enough], "-", color=colour, alpha=alpha, lw=1.4)
    axes.scatter(x[enough], y[enough], sizes[enough], color=colour, alpha=alpha, zorder=3, label=label)
    axes.scatter(x[~enough], y[~enough], sizes[~enough], facecolors="white", edgecolors=colour, alpha=alpha, zorder=3,
                 label=f"bins of fewer than {FEWEST_IN_A_BIN}" if intervals and not enough.all() else None)  # fmt: skip


def _curve(figures: Mapping[str, Any]) -> Iterator[NDArray[np.float64]]:
    """(B,) confidence and accuracy, (B, 2) its interval, and (B,) the labels, of the bins that hold anything."""
    for key in ("confidence", "accuracy", "accuracy_interval", "n"):
        yield np.array([entry[key] for entry in figures["calibration_curve"]], np.float64)
