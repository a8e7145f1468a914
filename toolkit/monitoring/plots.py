"""Pictures of a model at work, drawn without any global state: good in a thread and without a screen."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter
from numpy.typing import NDArray

from toolkit.baseline import Baseline
from toolkit.monitoring import statistics
from toolkit.monitoring.drift import DriftReport, DriftResult
from toolkit.monitoring.limits import LEVELS, Limits
from toolkit.monitoring.windows import WINDOWS, Window, reference_right

INK, REFERENCE, SHADE = "#1f4e79", "#555555", "#9db8d2"
LEVEL_COLOURS = {"warning": "#e0a100", "critical": "#e05a00", "immediate": "#b00020"}
DRIFT_COLOURS = {"drift": "#b00020", "no_drift": "#2e7d5b", "insufficient_data": "#b5b5b5"}
MOST_BINS = 60  # narrower ones cannot be told apart
FEWEST_IN_A_BIN = 50
MOST_CLASSES = 12  # rows of the class chart: the classes that changed most
MOST_LINES = 5
FARTHEST = 6.0  # times the least effect that matters, where the drift chart ends


def nothing(text: str) -> Figure:
    """A figure that says why there is none."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    figure.text(0.5, 0.5, text, ha="center", va="center", color=REFERENCE, fontsize=13)
    return figure


def accuracy(
    version: str, window: Window, reference: Baseline | None, limits: Limits, alerts: Iterable[Mapping[str, Any]]
) -> Figure:
    """Accuracy by prediction number, against the reference and the three levels.

    A strip below counts the labels; where there are none the line has a gap. Diamonds are the
    accuracy alerts, at the prediction after which they were raised.
    """
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    edges = _edges(window.n)
    centres = (edges[1:] + edges[:-1]) / 2
    told = [_slice(window.labelled, edges, k) for k in range(len(centres))]
    labels = np.array([int(part.sum()) for part in told])
    rights = np.equal(window.predicted, window.labels) & window.labelled
    right = np.array([int(_slice(rights, edges, k).sum()) for k in range(len(centres))])
    bands = np.array(
        [statistics.wilson(int(r), int(n)) if n else (np.nan, np.nan) for r, n in zip(right, labels, strict=True)]
    )
    values = np.where(labels > 0, right / np.maximum(labels, 1), np.nan)
    upper.fill_between(centres, bands[:, 0], bands[:, 1], color=SHADE, alpha=0.45, lw=0, label="95 % interval")
    upper.plot(centres, values, color=INK, marker="o", ms=3, lw=1.4, label="accuracy")
    if reference is not None and reference.size:
        _reference_lines(upper, reference, limits)
    _alert_marks(upper, window, alerts, centres, values)
    upper.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    upper.set_ylabel("accuracy")
    upper.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=4, fontsize=8)
    lower.bar(centres, labels, width=np.diff(edges) * 0.9, color=SHADE)
    lower.set_ylabel("labels")
    lower.set_xlabel(f"prediction number, {int(edges[1] - edges[0]):,} to a point")
    _finish(upper, lower)
    lower.set_xlim(0, window.n)
    figure.suptitle(_accuracy_title(version, window, reference), x=0.01, ha="left", fontsize=12)
    return figure


def confidence(version: str, window: Window, reference: Baseline | None) -> Figure:
    """Confidence by prediction number, and its distribution in the short window against the reference."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    edges = _edges(window.n)
    centres = (edges[1:] + edges[:-1]) / 2
    parts = [_slice(window.confidence, edges, k) for k in range(len(centres))]
    parts = [part[np.isfinite(part)] for part in parts]
    low, middle, high = (
        np.array([np.quantile(part, share) if len(part) else np.nan for part in parts]) for share in (0.1, 0.5, 0.9)
    )
    left.fill_between(centres, low, high, color=SHADE, alpha=0.45, lw=0, label="10 % to 90 %")
    left.plot(centres, middle, color=INK, lw=1.4, label="median")
    recent = window.last(WINDOWS["short"])
    now = recent.confidence[recent.finite]
    bins = np.linspace(0, 1, 41)
    if reference is not None and reference.size:
        usual = float(np.median(reference.confidence))
        left.axhline(usual, color=REFERENCE, ls="--", lw=1, label=f"median of the reference {usual:.2f}")
        right.hist(reference.confidence, bins, weights=_even(reference.confidence), color=REFERENCE, alpha=0.35,
                   label=f"reference, {reference.size:,}")  # fmt: skip
    right.hist(now, bins, weights=_even(now), histtype="step", color=INK, lw=1.5, label=f"last {len(now):,}")
    right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    right.set_xlabel("confidence")
    right.set_ylabel("share of predictions")
    right.legend(frameon=False, fontsize=8, loc="upper left")
    left.set_ylim(0, 1.02)
    left.set_xlim(0, window.n)
    left.set_ylabel("confidence")
    left.set_xlabel("prediction number")
    left.legend(loc="lower left", frameon=False, fontsize=8)
    _finish(left, right)
    right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1f}"))
    figure.suptitle(f"Confidence of model version {version}", x=0.01, ha="left", fontsize=12)
    return figure


def predictions(version: str, window: Window, reference: Baseline | None) -> Figure:
    """Shares of the predicted classes: over time for those that changed most, and against the reference."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    names, k = window.classes, len(window.classes)
    now = _shares(window.last(WINDOWS["short"]).counts)
    known = reference is not None and reference.size
    usual = _shares(np.bincount(reference.predicted, minlength=k)) if reference is not None and known else now
    order = np.lexsort((-now, -np.abs(now - usual)))  # most changed first, then most frequent
    edges = _edges(window.n)
    centres = (edges[1:] + edges[:-1]) / 2
    parts = [_slice(window.predicted, edges, index) for index in range(len(centres))]
    counted = [_shares(np.bincount(part[part >= 0], minlength=k)) for part in parts]
    shares = np.array(counted).reshape(-1, k)  # (bins, K)
    restless = np.argsort(-np.nan_to_num(np.abs(shares - usual)).max(axis=0), kind="stable")
    for index, c in enumerate(restless[:MOST_LINES]):
        left.plot(centres, shares[:, c], lw=1.5, color=f"C{index}", label=names[c])
        if known:
            left.axhline(usual[c], lw=0.8, ls="--", color=f"C{index}", alpha=0.6)
    left.legend(frameon=False, fontsize=8, ncols=MOST_LINES, loc="upper center", bbox_to_anchor=(0.5, 1.1))
    left.set_ylabel("share of predictions")
    left.set_xlabel("prediction number" + (" (dashed: reference)" if known else ""))
    left.set_xlim(0, window.n)
    left.set_ylim(bottom=0)
    shown = order[:MOST_CLASSES][::-1]
    rows = np.arange(len(shown))
    right.hlines(rows, usual[shown], now[shown], color=SHADE, lw=3)
    if known:
        right.plot(usual[shown], rows, "o", mfc="white", mec=REFERENCE, ms=6, label="reference")
    right.plot(now[shown], rows, "o", color=INK, ms=6, label=f"last {window.last(WINDOWS['short']).n:,}")
    right.set_yticks(rows, [names[c] for c in shown])
    right.set_xlim(0, 1.08 * np.nanmax(np.append(np.fmax(usual[shown], now[shown]), 0.01)))
    right.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.1), ncols=2)
    right.set_xlabel("share of predictions" + (f" ({len(shown)} of {k} classes)" if len(shown) < k else ""))
    _finish(left, right)
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    right.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.suptitle(f"Predicted classes of model version {version}", x=0.01, ha="left", fontsize=12)
    return figure


def drift(report: DriftReport) -> Figure:
    """How large each change is, in units of the least that matters; red is drift, grey is too little data."""
    if not report.results:
        return nothing("No predictions have been logged yet.")
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
    figure.suptitle(f"Drift of model version {report.model_version}: {verdict}", x=0.01, ha="left", fontsize=12)
    return figure


def _edges(n: int) -> NDArray[np.int64]:
    """Where the points of a line begin and end: a round number of predictions each."""
    size = FEWEST_IN_A_BIN
    while size * MOST_BINS < n:
        size *= 2
    return np.append(np.arange(0, n, size), n)


def _slice(values: NDArray[Any], edges: NDArray[np.int64], k: int) -> NDArray[Any]:
    return values[edges[k] : edges[k + 1]]


def _shares(counts: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(counts / counts.sum() if counts.sum() else np.full(len(counts), np.nan), np.float64)


def _even(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.full(len(values), 1 / max(len(values), 1))


def _reference_lines(axes: Axes, reference: Baseline, limits: Limits) -> None:
    usual = reference.accuracy
    low, high = statistics.wilson(reference_right(reference), reference.size)
    axes.axhspan(low, high, color=REFERENCE, alpha=0.12, lw=0)
    axes.axhline(usual, color=REFERENCE, lw=1.2, label=f"reference {usual:.1%}")
    for level in LEVELS[1:]:
        drop = limits.threshold(level)
        axes.axhline(usual * (1 - drop), color=LEVEL_COLOURS[level], lw=1, ls="--")
        axes.annotate(f"{level} -{drop:.0%}", (1, usual * (1 - drop)), xycoords=("axes fraction", "data"),
                      xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5,
                      color=LEVEL_COLOURS[level], annotation_clip=False)  # fmt: skip


def _alert_marks(
    axes: Axes,
    window: Window,
    alerts: Iterable[Mapping[str, Any]],
    centres: NDArray[np.float64],
    values: NDArray[np.float64],
) -> None:
    """A diamond on the line for each accuracy alert."""
    told = np.isfinite(values)
    raised = [alert for alert in alerts if alert["metric"] == "accuracy"] if told.any() else []
    for index, alert in enumerate(raised):
        x = int(np.searchsorted(np.sort(window.time), alert["time"]))
        y = float(np.interp(x, centres[told], values[told]))
        colour, label = LEVEL_COLOURS[alert["level"]], "alert" if index == 0 else None
        axes.plot(x, y, "D", ms=8, color=colour, mec="white", zorder=5, ls="none", label=label)


def _accuracy_title(version: str, window: Window, reference: Baseline | None) -> str:
    recent = window.last(WINDOWS["short"])
    title = f"Accuracy of model version {version}"
    if not window.n_labels:
        return title + ": no labels have been told yet"
    if not recent.n_labels:
        return title + f": no labels in the last {recent.n:,} predictions"
    usual = f", reference {reference.accuracy:.1%}" if reference is not None and reference.size else ""
    return title + f": {recent.right / recent.n_labels:.1%} in the last {recent.n:,} predictions{usual}"


def _in_units(result: DriftResult) -> float:
    return 0.0 if result.effect is None else result.effect / result.minimum_effect


def _called(family: str, metric: str) -> str:
    return metric.replace("_", " ") if family == "model" else f"input: {metric}"


def _finish(*axes: Axes) -> None:
    """What all charts share: few lines, thousands separated."""
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(axis="y", alpha=0.2)
        each.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
