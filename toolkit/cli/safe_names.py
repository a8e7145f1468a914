"""Names of files, folders and classes, as text for terminals, JSON, MLflow, HTML and logs.

A file system holds names that are no text: bytes that are not UTF-8, newlines, sequences that control a
terminal, marks that change the direction of text. They are escaped.
"""

import os
import sys
import unicodedata
from pathlib import Path

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_JOINERS = "\u200c\u200d"  # invisible, and needed to spell Persian, Hindi and emoji
_ACTING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories: controls, formats, halves of characters, line ends


def display_name(name: str | Path) -> str:
    """A name or a path as one line of valid Unicode text, with escapes for bytes, controls and line ends.

    Python gives bytes that are not UTF-8 as lone surrogates.

    Examples
    --------
    >>> print(display_name("cats\\nand\\x1b[31m dogs"), display_name("caf\\udce9"), display_name("naïve 猫"))
    cats\\nand\\x1b[31m dogs caf\\xe9 naïve 猫
    """
    return _escaped(_decoded(str(name)) if isinstance(name, Path) else name, keep="")


def printable(text: str, encoding: str | None = None) -> str:
    """A text that a stream of an encoding, or of UTF-8, can write; newlines and tabs stay.

    Examples
    --------
    >>> print(printable("épo\\udce9que\\n2", "ascii"))
    \\xe9po\\xe9que
    2
    """
    encoding = encoding or "utf-8"
    return _escaped(text, keep="\n\t").encode(encoding, "backslashreplace").decode(encoding)


def class_name(folder: str) -> str:
    """The class name of a folder, given without its path: the same on all systems, and safe to display.

    A letter with an accent may be one character, or two as on macOS; both are one class (NFC).
    Names are UTF-8 in every locale.

    Examples
    --------
    >>> class_name("e\\u0301te\\u0301") == class_name("été") == "été"
    True
    """
    return display_name(unicodedata.normalize("NFC", _decoded(folder)))


def _decoded(name: str) -> str:
    """A name of the file system read as UTF-8, whatever encoding Python uses for file names."""
    if sys.getfilesystemencoding() == "utf-8":
        return name
    try:
        return os.fsencode(name).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # no name of this file system
        return name


def _escaped(text: str, keep: str) -> str:
    if text.isprintable():
        return text
    return "".join(letter if letter in keep else _as_text(letter) for letter in text)


def _as_text(letter: str) -> str:
    if letter in _JOINERS or unicodedata.category(letter) not in _ACTING:
        return letter
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return _SHORT.get(letter) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
