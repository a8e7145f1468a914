"""Conversion of times to seconds since 1970: numbers, datetimes, dates and ISO 8601 texts."""

import math
import re
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from toolkit.errors import SettingsError

if TYPE_CHECKING:  # a command line reads times before anything slow is imported
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

TimeLike: TypeAlias = Union[float, datetime, date, str, "np.datetime64"]

NUMBER = re.compile(r"\d{9,}|\d+\.\d+")  # of seconds; eight digits are a date
END_OF_TIME = 32_503_680_000  # the year 3000 in seconds since 1970; larger numbers are taken for milliseconds


def to_timestamp(moment: TimeLike, name: str = "since") -> float:
    """Seconds since 1970 of a time between the years 1970 and 3000; ``name`` is that of the argument in an error.

    A datetime without a zone is in local time, a date or an ISO 8601 text without one in UTC; a number is of seconds.

    >>> to_timestamp("2020-01-01"), to_timestamp("2020-01-01T01:00+01:00"), to_timestamp(1577836800)
    (1577836800.0, 1577836800.0, 1577836800.0)
    >>> to_timestamp("soon")
    Traceback (most recent call last):
        ...
    toolkit.errors.SettingsError: since must be a time such as 2026-11-24T08:00Z, got soon
    """
    try:
        found = _seconds(moment)
    except (TypeError, ValueError, OverflowError):
        raise SettingsError(f"{name} must be a time such as 2026-11-24T08:00Z, got {moment}") from None
    if not 0 <= found < END_OF_TIME:  # NaN neither
        raise SettingsError(f"{name} must lie between the years 1970 and 3000, in seconds since 1970, got {moment}")
    return found


def _seconds(moment: TimeLike) -> float:
    if isinstance(moment, datetime):
        return moment.timestamp()
    if isinstance(moment, date):
        moment = moment.isoformat()
    if isinstance(moment, str):
        if NUMBER.fullmatch(moment):
            return float(moment)
        try:
            found = datetime.fromisoformat(moment)
        except ValueError:
            if len(moment) == 4:  # a year, not seconds
                raise
            return float(moment)
        return found.replace(tzinfo=found.tzinfo or UTC).timestamp()
    import numpy as np

    if isinstance(moment, np.datetime64):
        return float(_of_numpy(np.array(moment)))
    if isinstance(moment, bool | np.bool_ | bytes):
        raise TypeError
    return float(moment)


def to_timestamps(moments: "ArrayLike | Any", n: int, name: str = "times") -> list[float]:
    """Seconds since 1970 of ``n`` times, each as ``to_timestamp`` takes it.

    >>> to_timestamps(["2020-01-01", 5], 2)
    [1577836800.0, 5.0]
    """
    import numpy as np

    values = np.asarray(moments)
    if values.shape != (n,):
        raise SettingsError(f"{n:,} {name} are needed, one for each prediction, got shape {values.shape}")
    if values.dtype.kind == "M":
        values = _of_numpy(values)
    if values.dtype.kind not in "iuf":
        listed: Any = moments.tolist() if isinstance(moments, np.ndarray) else moments
        return [to_timestamp(moment, f"{name}[{place}]") for place, moment in enumerate(listed)]
    numbers = values.astype(np.float64)
    wrong = ~((numbers >= 0) & (numbers < END_OF_TIME))
    if wrong.any():
        place = int(wrong.argmax())
        to_timestamp(float(numbers[place]), f"{name}[{place}]")
    return [float(number) for number in numbers.tolist()]


def _of_numpy(moments: "NDArray[np.datetime64]") -> "NDArray[np.float64]":
    """(n,) seconds; NaN for NaT."""
    import numpy as np

    whole = moments.astype("datetime64[us]")
    return np.where(np.isnat(whole), math.nan, whole.astype(np.int64) / 1e6)
