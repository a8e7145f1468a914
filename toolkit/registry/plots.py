"""A figure of versions side by side: accuracy, classes, calibration."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from toolkit.bundle.baseline import Baseline
from toolkit.errors import SettingsError
from toolkit.plotting.fonts import draw_names, drawable_text
from toolkit.plotting.style import BLUE, GREY, INK, ORANGE, ReliabilityCurve, class_label, reliability_diagram
from toolkit.registry.mcnemar import PairedCounts, pair_by_hash
from toolkit.registry.metrics import Score, accuracy_of, share_score
from toolkit.statistics.intervals import wilson

DIFFERENCE = LinearSegmentedColormap.from_list("difference", [ORANGE, "white", BLUE])
MAX_VERSIONS, MAX_CLASSES = 10, 20  # in one figure
QUARTERS = (0, 0.25, 0.5, 0.75, 1)
MIN_FULL_DIFFERENCE = 0.05  # of accuracies, with the full colour; less would paint noise
DARK = 0.6  # share of the full colour from which on a text is white
WIDTH, ROW, MARGIN = 14.0, 0.36, 1.1  # inches: of the figure, of a version's line, of headings and axes
NAMES, CLASS, CELL = 2.6, 0.27, 0.46  # inches, of classes: the names' width, a class's height, a version's width
PANEL, GAP, LEGEND = 2.8, 0.6, 5.6  # inches: of a reliability diagram at most, between them, and of their legend
Versions = Mapping[str, Baseline]  # results by name such as "v3"; the first is the one to compare with


def comparison_figure(versions: Versions) -> Figure:
    """Accuracy, and what was gained and lost; accuracy by class; and calibration.

    Above, each version has a line: its accuracy with the 95 % Wilson interval, that of the first version as
    a dashed line; the images that only it, and only the first, classified correctly, with McNemar's
    exact p-value. Below on the left is the accuracy by class, coloured by the difference from the first
    version: the 20 classes in which the versions differ most, or the 20 weakest of a single version. On
    the right, each version has a reliability diagram with the expected calibration error.

    Parameters
    ----------
    versions
        1 to 10 versions; all are compared with the first.

    Raises
    ------
    SettingsError
        The number of versions is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> one = Baseline(("cat", "dog"), np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 1]))
    >>> comparison_figure({"v1": one}).get_suptitle()
    'v1 on 2 images'
    """
    if not 1 <= len(versions) <= MAX_VERSIONS:
        raise SettingsError(f"a plot compares 1 to {MAX_VERSIONS} versions, got {len(versions)}")
    table = _ByClass.of(list(versions.values()))
    across = len(versions) if len(versions) <= 3 else math.ceil(math.sqrt(len(versions)))  # about a square
    down = math.ceil(len(versions) / across)
    left = max(NAMES + CELL * len(versions), WIDTH - max(LEGEND, across * (PANEL + GAP)))
    classes_height, panels_height = CLASS * len(table.names), down * min(PANEL, (WIDTH - left) / across)
    heights = (ROW * len(versions) + MARGIN, max(classes_height, panels_height) + MARGIN)
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.3))
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
    classes, calibration = below.subfigures(1, 2, width_ratios=(left, WIDTH - left))
    _lines(above, versions)
    _classes(classes, list(versions), table, max(0, panels_height - classes_height))
    _reliability(calibration, versions, (down, across))
    figure.suptitle(drawable_text(_title(versions)), x=0.01, ha="left", fontsize=13)
    return draw_names(figure)


class _ByClass(NamedTuple):
    """The classes to draw, R of ``known``: how many of their images each of V versions classified correctly."""

    names: Sequence[str]
    correct: NDArray[np.int64]  # (R, V)
    images: NDArray[np.int64]  # (R, V)
    accuracy: NDArray[np.float64]  # (R, V); NaN where a version has no image of the class
    known: int

    @classmethod
    def of(cls, versions: Sequence[Baseline]) -> Self:
        """The classes in which versions differ most; of equal ones, the weakest."""
        names = list(dict.fromkeys(name for baseline in versions for name in baseline.classes))
        correct, images = np.zeros((2, len(names), len(versions)), np.int64)
        for index, baseline in enumerate(versions):
            rows, labels = [names.index(name) for name in baseline.classes], baseline.labels
            images[rows, index] = np.bincount(labels, minlength=len(rows))
            correct[rows, index] = np.bincount(labels[baseline.predicted == labels], minlength=len(rows))
        accuracy = np.where(images > 0, correct / np.maximum(images, 1), np.nan)
        known = np.flatnonzero(images.any(axis=1))
        lowest, highest = np.nanmin(accuracy[known], axis=1), np.nanmax(accuracy[known], axis=1)
        chosen = known[np.lexsort((lowest, lowest - highest))[:MAX_CLASSES]]
        return cls([names[row] for row in chosen], correct[chosen], images[chosen], accuracy[chosen], len(known))


def _lines(figure: SubFigure, versions: Versions) -> None:
    """One line a version across the charts."""
    charts = [_accuracy, _lost_and_gained] if len(versions) > 1 else [_accuracy]
    row = figure.subplots(1, len(charts), sharey=True, squeeze=False)[0]
    for axes, draw in zip(row, charts, strict=True):
        draw(axes, versions)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    row[0].set_yticks(range(len(versions)), [class_label(name) for name in versions])
    row[0].set_ylim(len(versions) - 0.4, -0.6)


def _accuracy(axes: Axes, versions: Versions) -> None:
    axes.set_title("accuracy, 95 % interval", loc="left", fontsize=10)
    for row, baseline in enumerate(versions.values()):
        if baseline.size:
            _with_interval(axes, accuracy_of(baseline), row)
        _note_right(axes, row, f"{baseline.accuracy:.3f} of {baseline.size:,}" if baseline.size else "no images")
    first = next(iter(versions.values()))
    if first.size:
        axes.axvline(first.accuracy, color=GREY, linestyle="--", linewidth=1, zorder=1)
    _accuracies(axes)


def _lost_and_gained(axes: Axes, versions: Versions) -> None:
    """Diverging bars of the disagreements with the first version."""
    (name, first), *others = versions.items()
    axes.set_title(f"images lost and gained against {class_label(name)}", loc="left", fontsize=10)
    pairs = [pair_by_hash(first, other).whole for _, other in others]
    for row, counts in enumerate(pairs, 1):
        _note_right(axes, row, _significance(counts))
        axes.barh(row, -counts.lost, height=0.6, color=ORANGE)
        axes.barh(row, counts.gained, height=0.6, color=BLUE)
        if counts.images:
            _note_at(axes, -counts.lost, row, f"−{counts.lost:,}", left=True)
            _note_at(axes, counts.gained, row, f"+{counts.gained:,}")
    longest = max([1, *(max(counts.lost, counts.gained) for counts in pairs)])
    axes.set_xlim(-1.5 * longest, 1.5 * longest)  # with space for the numbers
    axes.axvline(0, color=GREY, linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):,.0f}"))
    axes.grid(axis="x", alpha=0.25)


def _significance(counts: PairedCounts) -> str:
    if not counts.images:
        return "no shared images"
    p = "p < 0.001" if counts.p_value < 0.001 else f"p = {counts.p_value:.3f}"
    return f"{p}, {counts.images:,} shared"


def _classes(figure: SubFigure, versions: Sequence[str], table: _ByClass, spare: float) -> None:
    """One line a class, of constant height, above an empty space of ``spare`` inches."""
    shown = len(table.names)
    axes, empty = figure.subplots(2, 1, height_ratios=(CLASS * max(shown, 1), spare or 1e-3))
    empty.set_axis_off()
    some = f": {shown} of {table.known} that {'differ most' if len(versions) > 1 else 'are weakest'}"
    axes.set_title(f"accuracy by class{some if shown < table.known else ''}", loc="left", fontsize=10)
    if not shown:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no images", transform=axes.transAxes, ha="center", va="center", color=GREY)
        return
    if len(versions) > 1:
        _heat_map(axes, versions, table)
    else:
        for row, (correct, images) in enumerate(zip(table.correct[:, 0], table.images[:, 0], strict=True)):
            _with_interval(axes, share_score(int(correct), int(images)), row)
        axes.set_ylim(shown - 0.5, -0.5)
        _accuracies(axes)
        axes.tick_params(labelsize=8)
    _note_right(axes, -0.9, "images")
    for row, counts in enumerate(table.images.tolist()):  # as a range where they differ between versions
        low, high = min(filter(None, counts)), max(counts)
        _note_right(axes, row, f"{low:,}" if low == high else f"{low:,}–{high:,}")
    axes.set_yticks(range(shown), [class_label(name) for name in table.names], fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _heat_map(axes: Axes, versions: Sequence[str], table: _ByClass) -> None:
    """A cell a class and version, with the accuracy as a number and the difference from the first as a colour."""
    difference = table.accuracy - table.accuracy[:, :1]
    full = max(MIN_FULL_DIFFERENCE, float(np.abs(np.nan_to_num(difference)).max()))
    axes.imshow(difference, cmap=DIFFERENCE, vmin=-full, vmax=full, aspect="auto")
    for row, index in np.argwhere(table.images > 0).tolist():
        colour = "white" if abs(difference[row, index]) > DARK * full else INK
        axes.text(index, row, f"{table.accuracy[row, index]:.2f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(versions)), [class_label(name) for name in versions], fontsize=8)
    axes.xaxis.tick_top()
    key = f"orange: below {class_label(versions[0])}, blue: above\nfull colour at a difference of {full:.2f}"
    axes.set_xlabel(key, fontsize=8, color=GREY)


def _reliability(figure: SubFigure, versions: Versions, shape: tuple[int, int]) -> None:
    """A reliability diagram a version."""
    charts = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False)
    for axes in charts.flat[len(versions) :]:
        axes.remove()
    for index, (axes, (name, baseline)) in enumerate(zip(charts.flat, versions.items(), strict=False)):
        bins = baseline.calibration()
        some = [ReliabilityCurve(bins, "accuracy, 95 % interval", interval=wilson)] if baseline.size else []
        reliability_diagram(axes, some)
        axes.set(xticks=QUARTERS, yticks=QUARTERS)
        axes.set_title(class_label(name), loc="left", fontsize=9)
        lowest, leftmost = index + shape[1] >= len(versions), index % shape[1] == 0
        axes.tick_params(labelsize=7, labelbottom=lowest)
        axes.set_xlabel("confidence" if lowest else "", fontsize=8)
        axes.set_ylabel("accuracy" if leftmost else "", fontsize=8)
        if some:
            axes.set_title(f"ECE {bins.error:.3f}", loc="right", fontsize=9, color=GREY)
        else:
            axes.text(0.65, 0.2, "no images", ha="center", va="center", color=GREY, fontsize=8)
    handles, labels = max((axes.get_legend_handles_labels() for axes in charts.flat), key=lambda pair: len(pair[1]))
    figure.legend(
        handles, labels, title="calibration", title_fontsize=10, alignment="left", loc="outside upper left", ncols=3,
        frameon=False, fontsize=8,
    )  # fmt: skip


def _title(versions: Versions) -> str:
    first, *others = versions
    sizes = {baseline.size for baseline in versions.values()}
    on = f" on {sizes.pop():,} images" if len(sizes) == 1 else ""
    if not others:
        return f"{first}{on}"
    return f"{', '.join(others) if len(others) <= 3 else f'{len(others)} versions'} against {first}{on}"


def _accuracies(axes: Axes) -> None:
    """Fit the horizontal axis to the accuracies, with space for a point at 0 or 1."""
    low, high = axes.get_xlim() if axes.has_data() else (0, 1)
    edge = 0.03 * (high - low)
    axes.set_xlim(max(low, -edge), min(high, 1 + edge))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.grid(axis="x", alpha=0.25)


def _with_interval(axes: Axes, accuracy: Score, row: int) -> None:
    axes.hlines(row, accuracy.low, accuracy.high, color=BLUE, linewidth=2, alpha=0.5)
    axes.plot(accuracy.value, row, "o", color=BLUE, markersize=6)


def _note_right(axes: Axes, row: float, text: str) -> None:
    """Write a text to the right of a chart, at one of its lines."""
    axes.annotate(
        text, (1, row), xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points", va="center",
        fontsize=8, color=GREY,
    )  # fmt: skip


def _note_at(axes: Axes, end: float, row: int, text: str, *, left: bool = False) -> None:
    """Write a text at the end of a bar."""
    axes.annotate(
        text, (end, row), xytext=(-3 if left else 3, 0), textcoords="offset points", ha="right" if left else "left",
        va="center", fontsize=8, color=INK,
    )  # fmt: skip
