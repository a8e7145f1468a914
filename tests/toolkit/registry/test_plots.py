"""The comparison shows the numbers that it is given, and can be read."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import SubFigure
from matplotlib.text import Annotation

from toolkit.bundle.baseline import Baseline
from toolkit.errors import SettingsError
from toolkit.plotting.style import BLUE, ORANGE
from toolkit.registry.metrics import share_score
from toolkit.registry.plots import comparison_figure

NOTHING = Baseline(("cat", "dog"), np.zeros((0, 2)), np.zeros(0))


def baseline(right, labels, classes=("cat", "dog"), confidence=0.75):
    """Images that are classified rightly where ``right`` has a 1, else as the class after the true one."""
    truth = np.array([int(label) for label in labels])
    answers = np.where([result == "1" for result in right], truth, (truth + 1) % len(classes))
    rows = np.full((len(truth), len(classes)), (1 - confidence) / (len(classes) - 1))
    rows[np.arange(len(truth)), answers] = confidence
    return Baseline(tuple(classes), rows, truth, np.array([f"image {index}" for index in range(len(truth))]))


def figure_of(*baselines):
    return comparison_figure({f"v{number}": baseline for number, baseline in enumerate(baselines, 1)})


def drawn(figure):
    """The figure after everything has found its place."""
    figure.savefig(io.BytesIO(), format="png")
    return figure


def chart(figure, title):
    return next(axes for axes in figure.axes if axes.get_title(loc="left").startswith(title))


def cells(axes):
    """What is written inside a chart, by column and row."""
    return {text.get_position(): text.get_text() for text in axes.texts if not isinstance(text, Annotation)}


def ends(axes):
    """What is written at the ends of bars, and where."""
    return [(text.xy[0], text.get_text()) for text in axes.texts if getattr(text, "xycoords", "") == "data"]


def notes(axes):
    """What is written to the right of a chart, from top to bottom, below the heading."""
    lines = [text for text in axes.texts if getattr(text, "xycoords", "") == ("axes fraction", "data")]
    return [text.get_text() for text in sorted(lines, key=lambda text: text.xy[1]) if text.xy[1] >= 0]


def points(axes):
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "o"]


def segments(axes):
    return [[tuple(end) for end in segment] for lines in axes.collections for segment in lines.get_segments()]


def bars(axes):
    """Row, length and colour of each horizontal bar."""
    rows = [(round(bar.get_y() + bar.get_height() / 2), bar) for bar in axes.patches]
    return [(row, bar.get_width(), to_hex(bar.get_facecolor())) for row, bar in rows]


def some(seed, count, classes):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    rows = generator.dirichlet(np.ones(classes), count)
    rows[np.arange(count), labels] += generator.uniform(0, 0.3 + 0.05 * seed, count)
    hashes = np.array([f"image {index}" for index in range(count)])
    names = tuple(f"the class number {number}" for number in range(classes))
    return Baseline(names, rows / rows.sum(axis=1, keepdims=True), labels, hashes)


# --- a line a version ---------------------------------------------------------------------------


def test_accuracies_have_wilson_intervals():
    figure = figure_of(baseline("1100", "0011"), baseline("1110", "0011"))
    axes = chart(figure, "accuracy, 95 % interval")
    assert points(axes) == [(0.5, 0), (0.75, 1)]
    expected = [[(end, row) for end in share_score(right, 4)[1:]] for row, right in ((0, 2), (1, 3))]
    assert np.allclose(segments(axes), expected)
    (dashed,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert list(dashed.get_xdata()) == [0.5, 0.5]
    assert notes(axes) == ["0.500 of 4", "0.750 of 4"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["v1", "v2"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first version is the topmost"


def test_lost_and_gained_are_diverging_bars():
    first = baseline("1110000000", "0011001100")
    second = baseline("0011111110", "0011001100")  # loses images 0 and 1, gains 3 to 8
    figure = figure_of(first, second)
    axes = chart(figure, "images lost and gained against v1")
    assert bars(axes) == [(1, -2, ORANGE), (1, 6, BLUE)]
    assert ends(axes) == [(-2, "−2"), (6, "+6")]
    assert notes(axes) == [f"p = {2 * (1 + 8 + 28) / 2**8:.3f}, 10 shared"]


def test_a_tiny_p_value_is_not_zero():
    first, second = baseline("0" * 400 + "1" * 900, "0" * 1300), baseline("1" * 1300, "0" * 1300)
    assert notes(chart(figure_of(first, second), "images lost")) == ["p < 0.001, 1,300 shared"]


# --- classes ------------------------------------------------------------------------------------


def test_cells_have_accuracy_and_colour_of_the_difference():
    """A class that only one version was given images of has a number there and no colour."""
    first = baseline("1100", "0011")
    second = baseline("10011", "00112", ("cat", "dog", "owl"))
    axes = chart(figure_of(first, second), "accuracy by class")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dog", "cat", "owl"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["v1", "v2"]
    assert cells(axes) == {(0, 0): "0.00", (1, 0): "0.50", (0, 1): "1.00", (1, 1): "0.50", (1, 2): "1.00"}
    differences = np.ma.filled(axes.images[0].get_array().astype(float), np.nan)
    assert np.array_equal(differences, [[0, 0.5], [0, -0.5], [np.nan, np.nan]], equal_nan=True)
    colours = [to_hex(colour) for colour in axes.images[0].to_rgba(np.array([-0.5, 0.5]))]
    assert colours == [ORANGE, BLUE]
    assert axes.get_xlabel() == "orange: below v1, blue: above\nfull colour at a difference of 0.50"
    assert notes(axes) == ["2", "2", "1"]


def test_a_small_difference_has_a_faint_colour():
    first, second = baseline("1" * 100, "0" * 100), baseline("0" + "1" * 99, "0" * 100)
    image = chart(figure_of(first, second), "accuracy by class").images[0]
    assert image.get_clim() == (-0.05, 0.05)


def test_differing_numbers_of_images_are_a_range():
    figure = figure_of(baseline("111", "001"), baseline("1111", "0000"), NOTHING)
    assert notes(chart(figure, "accuracy by class")) == ["2–4", "1"]


def test_the_most_different_classes_are_drawn():
    """Class 10 + n has 100 - n of 100 right in one version and all in the other, and the rest are equal."""
    labels = np.repeat(np.arange(40), 100)
    wrong = [(label - 10 if label >= 10 else 0) for label in range(40)]
    answers = np.concatenate([[(label + 1) % 40] * n + [label] * (100 - n) for label, n in enumerate(wrong)])
    names = tuple(f"class {label}" for label in range(40))
    first, second = Baseline(names, np.eye(40)[labels], labels), Baseline(names, np.eye(40)[answers], labels)
    axes = chart(figure_of(first, second), "accuracy by class")
    assert axes.get_title(loc="left") == "accuracy by class: 20 of 40 that differ most"
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"class {label}" for label in range(39, 19, -1)]
    alone = chart(figure_of(second), "accuracy by class")
    assert alone.get_title(loc="left") == "accuracy by class: 20 of 40 that are weakest"
    assert [label.get_text() for label in alone.get_yticklabels()] == [f"class {label}" for label in range(39, 19, -1)]


def test_classes_of_a_single_version_are_points_with_intervals():
    axes = chart(figure_of(baseline("10111", "00011")), "accuracy by class")
    assert points(axes) == [(pytest.approx(2 / 3), 0), (1, 1)]
    assert np.allclose(
        segments(axes), [[(end, y) for end in share_score(r, n)[1:]] for y, (r, n) in enumerate([(2, 3), (2, 2)])]
    )
    assert notes(axes) == ["3", "2"]
    assert axes.get_xlim()[1] < 1.1


# --- calibration --------------------------------------------------------------------------------


def test_the_reliability_diagram_shows_the_bins_and_the_error():
    """Four images at 0.75 of which three are right, and two at 0.625 of which none is."""
    confident, unsure = baseline("1101", "0011"), baseline("00", "01", confidence=0.625)
    whole = Baseline(
        ("cat", "dog"),
        np.concatenate([confident.probabilities, unsure.probabilities]),
        np.concatenate([confident.labels, unsure.labels]),
    )
    axes = chart(figure_of(baseline("1", "0"), whole), "v2")
    bounds, solid, hollow, _ = axes.collections
    assert hollow.get_offsets().tolist() == [[0.625, 0], [0.75, 0.75]]
    assert not len(solid.get_offsets()), "no bin has ten images"
    expected = [[(x, share_score(r, n)[1]), (x, share_score(r, n)[2])] for x, r, n in ((0.625, 0, 2), (0.75, 3, 4))]
    assert np.allclose(bounds.get_segments(), expected)
    assert axes.get_title(loc="right") == f"ECE {2 / 6 * 0.625:.3f}"
    diagonal = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert [list(line.get_xdata()) for line in diagonal] == [list(line.get_ydata()) for line in diagonal] == [[0, 1]]


def test_every_version_has_a_reliability_diagram():
    figure = figure_of(*[some(seed, 50, 3) for seed in range(5)])
    diagrams = [chart(figure, f"v{number}") for number in range(1, 6)]
    assert [axes.get_xlabel() for axes in diagrams] == ["", "", "confidence", "confidence", "confidence"]
    assert [axes.get_ylabel() for axes in diagrams] == ["accuracy", "", "", "accuracy", ""]


# --- the whole ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("versions", "classes"), [(1, 100), (2, 2), (10, 100)])
def test_labels_do_not_overlap(versions, classes):
    """No two texts overlap and none is cut off."""
    figure = drawn(figure_of(*[some(seed, 400, classes) for seed in range(versions)]))
    found = [text for text in written(figure) if text.get_text().strip() and text.get_visible()]
    assert len(found) > 30
    boxes = [text.get_window_extent() for text in found]
    for n, box in enumerate(boxes):
        assert figure.bbox.contains(*box.min), found[n]
        assert figure.bbox.contains(*box.max), found[n]
        for m, other in enumerate(boxes[:n]):
            assert not box.overlaps(other), (found[n], found[m])
    assert max(figure.get_size_inches()) < 15


def written(figure):
    """Every text; of ticks only those within the limits of their axis are drawn."""
    yield figure._suptitle
    for legend in [legend for part in figure.findobj(SubFigure) for legend in part.legends]:
        yield from (legend.get_title(), *legend.get_texts())
    for axes in figure.axes:
        yield from (axes.title, axes._left_title, axes._right_title, *axes.texts)
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            yield from (axis.label, *(label for tick in ticks for label in (tick.label1, tick.label2)))


def test_versions_without_images():
    figure = drawn(figure_of(NOTHING, baseline("11", "01"), NOTHING))
    assert notes(chart(figure, "accuracy, 95 %")) == ["no images", "1.000 of 2", "no images"]
    assert notes(chart(figure, "images lost")) == ["no shared images", "no shared images"]
    assert [text.get_text() for text in chart(figure, "v1").texts] == ["no images"]
    assert not [line for line in chart(figure, "accuracy, 95 %").lines if line.get_linestyle() == "--"]
    alone = drawn(figure_of(NOTHING))
    assert [text.get_text() for text in chart(alone, "accuracy by class").texts] == ["no images"]


def test_the_title():
    images = [some(seed, 20, 3) for seed in range(6)]
    alone = figure_of(*images[:1])
    assert alone.get_suptitle() == "v1 on 20 images"
    assert not [axes for axes in alone.axes if axes.get_title(loc="left").startswith("images lost")]
    assert figure_of(*images[:3]).get_suptitle() == "v2, v3 against v1 on 20 images"
    assert figure_of(*images).get_suptitle() == "5 versions against v1 on 20 images"
    assert figure_of(images[0], some(1, 30, 3)).get_suptitle() == "v2 against v1"


def test_long_names_and_dollar_signs():
    names = ("northern_mockingbird_female_juvenile", r"$\nothing$")
    figure = drawn(figure_of(*[baseline("10", "01", names)] * 2))
    labels = chart(figure, "accuracy by class").get_yticklabels()
    assert [label.get_text() for label in labels] == [r"\$\nothing\$", "northern_moc…le_juvenile"]


@pytest.mark.parametrize("count", [0, 11])
def test_too_few_and_too_many_versions_are_refused(count):
    with pytest.raises(SettingsError, match=rf"^a plot compares 1 to 10 versions, got {count}$"):
        figure_of(*[NOTHING] * count)
