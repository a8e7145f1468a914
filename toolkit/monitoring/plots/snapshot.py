"""Plots of the present windows: drift from the reference, and calibration."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from toolkit.monitoring.plots import style
from toolkit.monitoring.plots.style import DRIFT_COLOURS
from toolkit.monitoring.stats import performance
from toolkit.monitoring.windows.drift import DriftReport, DriftResult
from toolkit.monitoring.windows.metrics import calibration_of
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.monitoring.windows.summary import WindowSummary
from toolkit.plotting.style import BLUE, GREY, ReliabilityCurve, class_label, empty_figure, reliability_figure
from toolkit.statistics.intervals import wilson

MAX_EFFECT = 6.0  # times the least effect that matters, where the drift chart ends
MEANINGS = {
    "drift": "drift",
    "unproven": "large enough to matter, but may be chance",
    "no_drift": "no drift",
    "insufficient_data": "too little data",
}


def drift(report: DriftReport) -> Figure:
    """Size of each change, in units of the minimum effect.

    Red is drift; amber is large enough to matter and may be chance all the same; grey is too little data.
    """
    if not report.results:
        return empty_figure(style.NO_PREDICTIONS)
    windows = list(dict.fromkeys(result.window for result in report.results))
    metrics = list(dict.fromkeys((result.family, result.metric) for result in report.results))
    figure = Figure(figsize=(3.6 * len(windows) + 2, 0.36 * len(metrics) + 2.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(windows), sharey=True, squeeze=False)[0], windows, strict=True):
        results = [result for result in report.results if result.window == name]
        rows = [len(metrics) - 1 - metrics.index((result.family, result.metric)) for result in results]
        sizes = [_in_units(result) for result in results]
        axes.barh(
            rows, np.clip(sizes, 0, MAX_EFFECT), height=0.62, color=[DRIFT_COLOURS[_kind(result)] for result in results]
        )
        axes.axvline(1, color=GREY, ls="--", lw=1)
        for result, row, size in zip(results, rows, sizes, strict=True):
            text = "too little data" if result.effect is None else f"{result.effect:.3f}"
            axes.text(min(max(size, 1), MAX_EFFECT) + 0.08, row, text, va="center", fontsize=8, color=GREY)
        axes.set_xlim(0, MAX_EFFECT + 1.4)
        axes.set_title(f"{name}, {max(result.n for result in results):,} predictions", fontsize=9, loc="left")
        axes.set_yticks(range(len(metrics)), [_label(*metric) for metric in reversed(metrics)])
        axes.set_xlabel("times the least that matters", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    patches = [Patch(color=DRIFT_COLOURS[kind], label=meaning) for kind, meaning in MEANINGS.items()]
    figure.legend(handles=patches, frameon=False, fontsize=8, ncols=len(patches), loc="outside lower center")
    answer = {True: "drift", False: "no drift", None: "too little data"}[report.drifted]
    return style.with_title(figure, f"Drift of model version {report.model_version}: {answer}")


def calibration(version: str, counts: WindowSummary, bins: ReferenceBins) -> Figure:
    """Reliability diagram of any window: how often predictions of each confidence were right, and how they were before.

    The title has the expected calibration error (ECE) and its 95 % interval.
    """
    if not counts.n:
        return empty_figure(style.NO_PREDICTIONS)
    if not counts.n_labels:
        return empty_figure(f"There are no labels for the last {counts.n:,} predictions.")
    curves = [ReliabilityCurve(calibration_of(counts), f"{counts.n_labels:,} labels, 95 % intervals", BLUE, wilson)]
    if bins.reference is not None:
        usual = calibration_of(bins.reference)
        label = f"reference, {usual.count.sum():,} images, ECE {usual.error:.1%}"
        curves.insert(0, ReliabilityCurve(usual, label, GREY))
    figure = reliability_figure(curves, "labels")
    upper, lower = figure.axes
    style.shares(upper.yaxis)
    lower.set_xlabel(f"confidence, labelled among the last {counts.n:,} predictions")
    ece = performance.calibration(calibration_of(counts))
    low, high = ece["calibration_error_interval"]
    error = f"ECE {ece['calibration_error']:.1%} ({low:.1%} to {high:.1%})"
    return style.with_title(figure, f"Calibration of model version {version}: {error}")


def _in_units(result: DriftResult) -> float:
    return 0.0 if result.effect is None else result.effect / result.minimum_effect


def _kind(result: DriftResult) -> str:
    """Which of ``MEANINGS`` a result has."""
    return "unproven" if result.status == "no_drift" and _in_units(result) >= 1 else result.status


def _label(family: str, metric: str) -> str:
    return metric.replace("_", " ") if family == "model" else f"input: {class_label(metric)}"
