"""Names of images, given with a prediction: plain text of bounded length that is never opened or fetched."""

import os
from collections.abc import Sequence

from toolkit.errors import SettingsError

MAX_LENGTH = 256  # characters that are kept of a name
_GAP = "..."  # in place of the middle, since both ends of a path or URL say most


def image_name(source: str | os.PathLike[str] | None, name: str = "source") -> str | None:
    """The name of an image, such as a path, a URL or a content hash, as it is stored and shown; None when it has none.

    Characters that do not print, such as line ends and escape sequences, are escaped; of a name longer than
    256 characters the middle is left out. ``name`` is that of the argument in an error message.

    >>> image_name("cats/7.jpg"), image_name("a\\nb\\x1b[31m"), image_name("")
    ('cats/7.jpg', 'a\\\\nb\\\\x1b[31m', None)
    >>> len(image_name("x" * 1000))
    256
    """
    if source is None:
        return None
    given = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    if not isinstance(given, str):
        raise SettingsError(f"{name} must be a text such as a file name, got {type(source).__name__}")
    text = _bounded(given)
    if not text.isprintable():
        text = _bounded("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))
    return text or None


def image_names(sources: Sequence[str | os.PathLike[str] | None], n: int) -> list[str | None]:
    """The names of ``n`` images, each as ``image_name`` returns it."""
    if isinstance(sources, str | bytes) or len(sources) != n:
        got = type(sources).__name__ if isinstance(sources, str | bytes) else f"{len(sources):,}"
        raise SettingsError(f"{n:,} sources are needed, one for each prediction, got {got}")
    return [image_name(source, f"sources[{place}]") for place, source in enumerate(sources)]


def _bounded(text: str) -> str:
    if len(text) <= MAX_LENGTH:
        return text
    kept = MAX_LENGTH - len(_GAP)
    return text[: kept // 2] + _GAP + text[len(text) - (kept - kept // 2) :]
