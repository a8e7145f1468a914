"""Plots over time, drawn from counts: ten million predictions take no longer than a thousand.

Each function returns a matplotlib Figure made without pyplot or global state, which works in a thread and without a
screen. The timeline has a point at least; ``now`` are the counts of the short window, and ``alerts`` those of the model
version, of any metric.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from toolkit.monitoring.base.thresholds import LEVELS, Thresholds
from toolkit.monitoring.plots import style
from toolkit.monitoring.plots.style import DRIFT_COLOURS, LEVEL_COLOURS, SHADE
from toolkit.monitoring.plots.timeline import Timeline
from toolkit.monitoring.store.alerts import Alert
from toolkit.monitoring.windows.drift import DriftReport
from toolkit.monitoring.windows.label_bias import effective_labels
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.monitoring.windows.summary import WindowSummary
from toolkit.plotting.style import BLUE, GREY, class_label, empty_figure, tidy_axes
from toolkit.statistics.intervals import wilson

MAX_CLASSES = 20  # rows of the class chart, of the classes that changed most
MAX_LINES = 5
ROW_INCHES = 0.28
PER_ROW = 3  # plots of image statistics
MIN_PER_UNIT = 10  # so that a rate is not a fraction
RATES = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}

Floats = NDArray[np.float64]


def accuracy(
    version: str,
    timeline: Timeline,
    now: WindowSummary,
    bins: ReferenceBins,
    thresholds: Thresholds,
    alerts: Iterable[Alert] = (),
) -> Figure:
    """Accuracy over time against the reference and the three levels, and what it is estimated to be without labels.

    A strip below counts the labels; where there are none the line has a gap. Diamonds are the
    accuracy alerts, at the time when they were raised.
    """
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    labels = np.array([point.n_labels for point in timeline.points])
    right = np.array([point.n_correct for point in timeline.points])
    values = np.divide(right, labels, out=np.full(len(labels), np.nan), where=labels > 0)
    worth = np.array([effective_labels(point) for point in timeline.points])  # fewer than the labels, in bursts
    low, high = np.array(
        [
            wilson(r / n * kept, kept) if n else (np.nan, np.nan)
            for r, n, kept in zip(right.tolist(), labels.tolist(), worth.tolist(), strict=True)
        ]
    ).T
    style.band(upper, timeline, low, high, label="95 % interval")
    style.line(upper, timeline, values, lw=1.4, label="accuracy")
    style.points(upper, timeline, values)
    guesses, least, most = _estimates(timeline, bins)
    if np.isfinite(guesses).any():
        style.band(upper, timeline, least, most, label="its 95 % interval", alpha=0.2)
        style.line(upper, timeline, guesses, lw=0.9, ls="--", label="estimate, no labels")
    if bins.reference is not None:
        _reference_lines(upper, bins.reference, thresholds)
    shown = np.where(np.isfinite(values), values, guesses)
    style.alert_markers(upper, timeline, alerts, "accuracy", shown)
    style.shares(upper.yaxis)
    upper.set_ylabel("accuracy")
    style.legend(upper)
    style.bars(lower, timeline, labels)
    lower.set_ylabel("labels")
    lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    tidy_axes(upper, lower)
    style.time_axis(lower, timeline)
    return style.with_title(figure, _accuracy_title(version, now, timeline, bins))


def confidence(
    version: str, timeline: Timeline, now: WindowSummary, bins: ReferenceBins, alerts: Iterable[Alert] = ()
) -> Figure:
    """Confidence over time, and its distribution in the short window against the reference."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    median = _spread(left, timeline, bins, 0)
    style.alert_markers(left, timeline, alerts, "confidence_distribution", median)
    left.set_ylim(0, 1.02)
    left.set_ylabel("confidence")
    style.legend(left)
    edges = np.linspace(0, 1, 41)
    if bins.reference is not None:
        usual = bins.reference
        right.stairs(_histogram(usual, bins, edges), edges, fill=True, color=GREY, alpha=0.35,
                     label=f"reference, {usual.n_finite:,}")  # fmt: skip
    right.stairs(_histogram(now, bins, edges), edges, color=BLUE, lw=1.5, label=f"last {now.n_finite:,}")
    style.shares(right.yaxis)
    right.set_xlim(0, 1.02)
    right.set_xlabel("confidence")
    right.set_ylabel("share of predictions")
    right.legend(frameon=False, fontsize=8, loc="upper left")
    tidy_axes(left, right)
    style.time_axis(left, timeline)
    return style.with_title(figure, f"Confidence of model version {version}")


def predictions(
    version: str, timeline: Timeline, now: WindowSummary, bins: ReferenceBins, alerts: Iterable[Alert] = ()
) -> Figure:
    """Shares of the predicted classes: over time for those that changed most, and of all against the reference.

    Of more than twenty classes the ones that changed most have a row, and the others a sum.
    """
    recent = _shares(now.classes)
    usual = _shares(bins.reference.classes) if bins.reference is not None else recent
    over_time = np.array([_shares(point.classes) for point in timeline.points])  # (P, K)
    order = _most_changed(recent, usual, over_time)
    shown = order if len(order) <= MAX_CLASSES + 1 else order[:MAX_CLASSES]  # the last one needs no sum
    figure = Figure(figsize=(10, max(4.6, ROW_INCHES * len(shown) + 1.6)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for index, c in enumerate(order[:MAX_LINES]):
        style.line(left, timeline, over_time[:, c], lw=1.5, color=f"C{index}", label=class_label(bins.classes[c]))
        if bins.reference is not None:
            left.axhline(usual[c], lw=0.8, ls="--", color=f"C{index}", alpha=0.6)
    style.alert_markers(left, timeline, alerts, "prediction_distribution", over_time[:, order[0]])
    left.legend(frameon=False, fontsize=8, ncols=MAX_LINES, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    left.set_ylabel("share of predictions" + (" (dashed: reference)" if bins.reference is not None else ""))
    left.set_ylim(bottom=0)
    _dumbbells(right, bins, shown, recent, usual, now.n_finite)
    style.shares(left.yaxis)
    tidy_axes(left, right)
    style.time_axis(left, timeline)
    return style.with_title(figure, f"Predicted classes of model version {version}")


def volume(version: str, timeline: Timeline, alerts: Iterable[Alert] = ()) -> Figure:
    """Rate of predictions, share that is not finite, and latency."""
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    rate, broken, latency = figure.subplots(3, 1, sharex=True)
    unit, rates = _rates(timeline)
    style.bars(rate, timeline, rates, width=1)
    rate.set_ylabel(f"predictions\nper {unit}")
    shares = np.array([point.non_finite / point.n for point in timeline.points])
    style.line(broken, timeline, shares, lw=1.4)
    style.alert_markers(broken, timeline, alerts, "non_finite", shares)
    broken.set_ylabel("NaN or infinite")
    style.shares(broken.yaxis)
    broken.set_ylim(0, max(0.01, 1.15 * shares.max()))
    if not shares.any():
        style.note(broken, "none")
    latencies = [[point.latency_quantile(q) for q in (0.5, 0.95)] for point in timeline.points]
    median, slow = np.array(latencies, np.float64).T  # None becomes NaN
    if np.isfinite(median).any():
        style.line(latency, timeline, slow, lw=1.0, color=GREY, label="95 % below")
        style.line(latency, timeline, median, lw=1.4, label="median")
        latency.set_ylim(0, 1.15 * np.nanmax(slow))
        style.legend(latency)
    else:
        style.note(latency, "no latency was given")
    latency.set_ylabel("latency, ms")
    tidy_axes(rate, broken, latency)
    style.time_axis(latency, timeline)
    return style.with_title(figure, f"Volume of model version {version}: {timeline.n:,} predictions")


def inputs(version: str, timeline: Timeline, bins: ReferenceBins, report: DriftReport | None = None) -> Figure:
    """Statistics of the images over time against the reference; red is what the report found drifted."""
    names = bins.statistics
    if not names:
        return empty_figure("Nothing is known of the images: there is no baseline that holds statistics of any.")
    rows = -(-len(names) // PER_ROW)
    figure = Figure(figsize=(11, 2.3 * rows + 1), layout="constrained")
    grid = figure.subplots(rows, min(PER_ROW, len(names)), squeeze=False).ravel()
    drifted = [result for result in report.results if result.family == "input" and result.drifted] if report else []
    changed = {result.metric: result for result in reversed(drifted)}  # each in the shortest window that shows it
    for quantity, (axes, name) in enumerate(zip(grid, names, strict=False), start=1 + len(bins.classes)):
        found = changed.get(name)
        _spread(axes, timeline, bins, quantity, DRIFT_COLOURS["drift"] if found else BLUE)
        text = class_label(name) + (f": {found.detail} ({found.window})" if found else "")
        axes.set_title(text, fontsize=9, loc="left", color=DRIFT_COLOURS["drift"] if found else "black")
        axes.tick_params(labelsize=8)
        tidy_axes(axes)
        style.time_axis(axes, timeline, few=True)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    for axes in grid[: len(names)][:-PER_ROW]:
        axes.set_xlabel("")
    plain = next((axes for axes, name in zip(grid, names, strict=False) if name not in changed), grid[0])
    handles = plain.get_legend_handles_labels()[0]
    figure.legend(handles=handles, frameon=False, fontsize=8, ncols=4, loc="outside upper right")
    return style.with_title(figure, f"Images that model version {version} was given")


# What is drawn, from counts


def _estimates(timeline: Timeline, bins: ReferenceBins) -> Floats:
    """(3, P), the accuracy that no label confirms and its 95 % interval; NaN where nothing is known."""
    found = np.full((3, len(timeline)), np.nan)
    if bins.estimator is None:
        return found
    for index, point in enumerate(timeline.points):
        unknown = point.cells[bins.missing[1]] > point.non_finite  # answers were logged, probabilities were not
        guess = None if unknown else bins.estimator.from_sums(point.score_sums, point.n_finite, point.effective_n)
        if guess:
            found[:, index] = guess.accuracy, guess.low, guess.high
    return found


def _histogram(counts: WindowSummary, bins: ReferenceBins, edges: Floats) -> Floats:
    """Share of the confidences in each of these bins, to which the bins's bins fit."""
    values = bins.values(0)
    place = np.searchsorted(edges[1:-1].astype(np.float16), values)  # an upper end belongs to its bin
    return _shares(np.bincount(place, counts.cells[bins.bin_slice(0)], len(edges) - 1))


def _shares(counts: NDArray[Any]) -> Floats:
    return np.asarray(counts / counts.sum() if counts.sum() else np.full(len(counts), np.nan), np.float64)


def _rates(timeline: Timeline) -> tuple[str, Floats]:
    """The smallest unit with ten predictions in it, and (P,) how many there are to it; NaN where unknown."""
    seconds = np.array([point.until - point.since for point in timeline.points])
    intervals = np.array([point.n - 1.0 for point in timeline.points])
    rates = np.divide(intervals, seconds, out=np.full(len(seconds), np.nan), where=seconds > 0)
    usual = float(np.median(rates[np.isfinite(rates)])) if np.isfinite(rates).any() else 1.0
    unit = next((unit for unit, length in RATES.items() if usual * length >= MIN_PER_UNIT), "day")
    return unit, rates * RATES[unit]


# How it is drawn


def _spread(axes: Axes, timeline: Timeline, bins: ReferenceBins, quantity: int, colour: str = BLUE) -> Floats:
    """Median and 10 to 90 % of a quantity over time, and of the reference as a band; return the medians."""
    shares = 0.1, 0.5, 0.9
    low, median, high = (np.array([bins.quantile(point, quantity, q) for point in timeline.points]) for q in shares)
    if bins.reference is not None:
        least, usual, most = (bins.quantile(bins.reference, quantity, q) for q in shares)
        axes.axhspan(least, most, color=GREY, alpha=0.1, lw=0, label="reference (dashed: median)")
        axes.axhline(usual, color=GREY, ls="--", lw=1)
    style.band(axes, timeline, low, high, label="10 % to 90 %")
    style.line(axes, timeline, median, lw=1.4, color=colour, label="median")
    return median


def _reference_lines(axes: Axes, reference: WindowSummary, thresholds: Thresholds) -> None:
    usual = reference.n_correct / reference.n
    axes.axhspan(*wilson(reference.n_correct, reference.n), color=GREY, alpha=0.12, lw=0)
    axes.axhline(usual, color=GREY, lw=1.2, label=f"reference {usual:.1%}")
    for level in LEVELS[1:]:
        drop = thresholds.threshold(level)
        axes.axhline(usual * (1 - drop), color=LEVEL_COLOURS[level], lw=1, ls="--")
        axes.annotate(f"{level} -{drop:.0%}", (1, usual * (1 - drop)), xycoords=("axes fraction", "data"),
                      xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5,
                      color=LEVEL_COLOURS[level], annotation_clip=False)  # fmt: skip


def _most_changed(recent: Floats, usual: Floats, over_time: Floats) -> NDArray[np.intp]:
    """(K,), the classes by how much their share differs now, then by how much it ever did."""
    ever = np.nan_to_num(np.abs(over_time - usual)).max(axis=0)
    return np.lexsort((-ever, -np.nan_to_num(np.abs(recent - usual))))


def _dumbbells(axes: Axes, bins: ReferenceBins, shown: NDArray[np.intp], recent: Floats, usual: Floats, n: int) -> None:
    """The share of each of these classes, before and now, and of the others together."""
    shown = shown[::-1]
    rows = np.arange(len(shown))
    axes.hlines(rows, usual[shown], recent[shown], color=SHADE, lw=3)
    if bins.reference is not None:
        axes.plot(usual[shown], rows, "o", mfc="white", mec=GREY, ms=6, label="reference")
    axes.plot(recent[shown], rows, "o", color=BLUE, ms=6, label=f"last {n:,}")
    axes.set_yticks(rows, [class_label(bins.classes[c]) for c in shown])
    axes.set_xlim(0, 1.08 * np.nanmax(np.append(np.fmax(usual[shown], recent[shown]), 0.01)))
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    rest = np.setdiff1d(np.arange(len(recent)), shown)
    others = f"; {len(rest):,} others together {usual[rest].sum():.1%} -> {recent[rest].sum():.1%}" if len(rest) else ""
    axes.set_xlabel(f"share of predictions{others}", fontsize=8 if others else None)
    style.shares(axes.xaxis)


def _accuracy_title(version: str, now: WindowSummary, timeline: Timeline, bins: ReferenceBins) -> str:
    title = f"Accuracy of model version {version}"
    if not any(point.n_labels for point in timeline.points):
        return title + ": no labels yet"
    if not now.n_labels:
        return title + f": no labels in the last {now.n:,} predictions"
    usual = bins.reference
    text = f", reference {usual.n_correct / usual.n:.1%}" if usual is not None else ""
    return title + f": {now.n_correct / now.n_labels:.1%} in the last {now.n:,} predictions{text}"
