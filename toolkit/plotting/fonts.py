"""Fonts for names in any script.

Matplotlib's own font has Latin, Greek, Cyrillic, Hebrew and Arabic letters, and draws empty boxes for others.
Those are drawn with another font of this machine; a letter that no font has is written as its number.
"""

import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import Any

from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

from toolkit.cli.safe_names import display_name

NORMAL_WEIGHT = 400  # of a font, where 700 is bold


def drawable_text(name: str) -> str:
    """A name that can be drawn on this machine, on one line, with its dollar signs escaped.

    Examples
    --------
    >>> print(drawable_text("US$ café"), drawable_text("two\\nlines"))
    US\\$ café two\\nlines
    """
    text = display_name(name)
    _, absent = _fonts(_beyond(text))
    return "".join(_spelled(letter) if letter in absent else letter for letter in text).replace("$", r"\$")


def draw_names(figure: Figure) -> Figure:
    """Give all texts of a figure the fonts that their letters need, and return it."""
    texts: list[Any] = figure.findobj(Text)
    families, _ = _fonts(_beyond("".join(text.get_text() for text in texts)))
    if families:
        for text in texts:
            text.set_fontfamily([*text.get_fontfamily(), *families])
    return figure


def _beyond(text: str) -> frozenset[str]:
    """The letters that matplotlib's own font lacks."""
    if text.isascii():
        return frozenset()
    font = get_font(findfont(FontProperties()))
    return frozenset(letter for letter in text if not letter.isspace() and not font.get_char_index(ord(letter)))


@cache
def _fonts(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families of fonts that together have the letters, and the letters that none has."""
    families, absent = [], set(letters)
    for entry in _candidates() if absent else ():
        found = {letter for letter in absent if _has(entry.fname, letter)}
        if found:
            families.append(entry.name)
            absent -= found
        if not absent:
            break
    return tuple(families), frozenset(absent)


def _candidates() -> Iterator[FontEntry]:
    """The upright fonts of this machine, those most like matplotlib's own first."""
    # Fonts of the last resort have a box for every letter.
    fonts = [entry for entry in fontManager.ttflist if not entry.name.replace(" ", "").startswith("LastResort")]
    upright = [entry for entry in fonts if entry.style == "normal"]
    yield from sorted(
        upright, key=lambda entry: (abs(_weight(entry) - NORMAL_WEIGHT), "Sans" not in entry.name, entry.name)
    )


def _weight(entry: FontEntry) -> int:
    return entry.weight if isinstance(entry.weight, int) else NORMAL_WEIGHT


def _has(path: str, letter: str) -> bool:
    try:
        return get_font(path).get_char_index(ord(letter)) != 0
    except (OSError, RuntimeError):  # a font of bitmaps alone, or one that was removed
        return False


def _spelled(letter: str) -> str:
    """A letter as its number; invisible marks are left out."""
    return "" if unicodedata.category(letter) in ("Cf", "Mn") else f"\\u{ord(letter):04x}"
