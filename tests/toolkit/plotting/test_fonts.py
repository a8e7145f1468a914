"""Names in any script: drawn with a font that has the letters, else spelled out, and never with a warning."""

import io

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from PIL import Image

from toolkit.plotting import fonts
from toolkit.plotting.fonts import draw_names, drawable_text

LETTERS = "\U00013000\U00013001"  # hieroglyphs, of which no test machine has a font


def font_of(letters, path):
    """A font in which each of the letters is a black square."""
    names = {ord(letter): f"glyph{index}" for index, letter in enumerate(letters)}
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(point)
    pen.closePath()
    square, empty = pen.glyph(), TTGlyphPen(None).glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    builder.setupGlyf({".notdef": empty, **dict.fromkeys(names.values(), square)})
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names.values()], (900, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def squares(tmp_path):
    """A machine with a font for such letters."""
    font_of(LETTERS, tmp_path / "squares.ttf")
    before = list(fontManager.ttflist)
    fontManager.addfont(tmp_path / "squares.ttf")
    fonts._fonts.cache_clear()
    yield
    fontManager.ttflist[:] = before
    fonts._fonts.cache_clear()


def rendered(label):
    figure = Figure(figsize=(2, 1), dpi=100)
    axes = figure.subplots()
    axes.set_yticks([0], [label])
    figure.suptitle(label)
    buffer = io.BytesIO()
    draw_names(figure).savefig(buffer)
    return np.asarray(Image.open(buffer).convert("L"))


def test_letters_of_an_installed_font_are_drawn_with_it(squares):
    assert drawable_text(f"{LETTERS} é") == f"{LETTERS} é"
    assert (rendered(LETTERS) < 50).sum() > (rendered("") < 50).sum() + 300  # four black squares more


def test_letters_of_no_font_are_spelled_out_and_nothing_is_warned_of():
    """Warnings are errors in these tests."""
    assert drawable_text(LETTERS) == "\\u13000\\u13001"
    assert drawable_text("café, кот, γάτα, US$") == r"café, кот, γάτα, US\$"
    assert drawable_text("x\u0301\ufe0f" + LETTERS[0]).endswith("\\u13000")
    rendered(drawable_text(f"cat {LETTERS}"))


def test_what_is_plain_looks_as_before():
    figure = Figure()
    figure.suptitle("accuracy")
    family = figure.findobj(lambda artist: hasattr(artist, "get_fontfamily"))[0].get_fontfamily()
    assert draw_names(figure).findobj(lambda artist: hasattr(artist, "get_fontfamily"))[0].get_fontfamily() == family
