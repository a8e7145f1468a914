"""Numbers, names and times within sentences."""

import math
from datetime import UTC, datetime

MAX_NAME = 24  # characters of a class name in a sentence
MIN_SHARE = 0.001  # smallest share that is worth mentioning


def clock_time(seconds: float, today: float) -> str:
    """A moment by the clock on the wall of this machine, with the day unless it is that of ``today``."""
    moment, now = _local(seconds), _local(today)
    if moment is None:
        return "an unknown time"
    same_day = now is not None and moment.date() == now.date()
    return f"{moment:%H:%M}" if same_day else f"{moment:%Y-%m-%d %H:%M}"


def local_time(seconds: float) -> str:
    """A moment with its day and its offset from UTC, in seconds since 1970."""
    moment = _local(seconds)
    return "an unknown time" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S %z}"


def _local(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).astimezone()
    except (ValueError, OverflowError, OSError):  # a time that a caller made up
        return None


def percent_change(before: float, now: float) -> str:
    """Two shares that differ, to as many places as show it.

    >>> percent_change(0.84, 0.66), percent_change(0.842, 0.831), percent_change(0.5, 0.5)
    ('84 -> 66 %', '84.2 -> 83.1 %', '50 -> 50 %')
    """
    places = 0 if abs(before - now) >= 0.02 or before == now else 1 if abs(before - now) >= 0.002 else 2
    return f"{100 * before:.{places}f} -> {100 * now:.{places}f} %"


def percent(value: float, places: int | None = None) -> str:
    """A share in per cent, to a tenth when it is small.

    >>> percent(0.842), percent(0.0333), percent(0.842, 1)
    ('84 %', '3.3 %', '84.2 %')
    """
    if places is None:
        places = 0 if value >= 0.1 else 1
    return f"{100 * value:.{places}f} %"


def percent_floor(value: float) -> str:
    """A share in per cent, rounded down to a tenth: what is certain must not grow by rounding.

    >>> percent_floor(0.0999)
    '9.9 %'
    """
    return f"{math.floor(1000 * value + 1e-9) / 10:g} %"


def percentage_points(value: float) -> str:
    """A difference of shares in points of a hundred, rounded down; empty when it is none.

    >>> percentage_points(0.1099), percentage_points(0.0349), percentage_points(0.0009)
    ('10', '3.4', '')
    """
    tenths = math.floor(1000 * value + 1e-9)
    return "" if tenths < 1 else f"{tenths // 10}" if tenths >= 100 else f"{tenths / 10:g}"


def pluralise(n: int, what: str) -> str:
    """A number and its noun, such as ``2 images``.

    >>> pluralise(1, "label"), pluralise(1200, "label")
    ('1 label', '1,200 labels')
    """
    return f"{n:,} {what}{'s' * (n != 1)}"


def class_name(text: str) -> str:
    r"""The name of a class, short and on one line.

    >>> class_name("cat"), class_name("two\nlines"), class_name("a class with a very long name")
    ('cat', 'two\\nlines', 'a class with a very lon…')
    """
    return truncate("".join(each if each.isprintable() else repr(each)[1:-1] for each in text), MAX_NAME)


def truncate(text: str, longest: int) -> str:
    """A text of at most so many characters.

    >>> truncate("confidence", 5)
    'conf…'
    """
    return text if len(text) <= longest else text[: longest - 1] + "…"
