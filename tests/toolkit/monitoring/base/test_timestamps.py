"""Times in every form, against Python's own conversions."""

import math
from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.errors import SettingsError
from toolkit.monitoring.base.timestamps import END_OF_TIME, to_timestamp, to_timestamps

MOMENT = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
INSIDE = {"min_value": datetime(1971, 1, 1), "max_value": datetime(2999, 1, 1)}


@pytest.mark.parametrize(
    "given",
    [
        "2026-11-24T08:00Z",
        "2026-11-24T08:00",
        "2026-11-24 08:00:00",
        "20261124T080000",
        "2026-11-24T10:00+02:00",
        MOMENT.timestamp(),
        int(MOMENT.timestamp()),
        str(MOMENT.timestamp()),
        np.float64(MOMENT.timestamp()),
        np.datetime64("2026-11-24T08:00"),
        pd.Timestamp("2026-11-24T08:00Z"),
        MOMENT,
        MOMENT.astimezone(timezone(timedelta(hours=-7))),
        MOMENT.astimezone().replace(tzinfo=None),
    ],
)
def test_every_form_of_a_time_gives_the_same_timestamp(given):
    assert to_timestamp(given) == MOMENT.timestamp()
    assert to_timestamps([given, given], 2) == [MOMENT.timestamp()] * 2


@given(st.datetimes(**INSIDE, timezones=st.timezones() | st.none()))
def test_isoformat_and_repr_are_read_back(moment):
    wanted = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    assert to_timestamp(moment.isoformat()) == pytest.approx(wanted, abs=1e-6)
    assert to_timestamp(repr(wanted)) == wanted


def test_a_day_begins_in_utc():
    assert to_timestamp("2020-01-01") == to_timestamp(date(2020, 1, 1)) == to_timestamp("20200101") == 1577836800


@pytest.mark.parametrize("wrong", ["soon", "", "2026-13-01", "2026-02-30T00:00", None, [], {}, True, b"2026", "2026"])
def test_invalid_times_are_refused(wrong):
    with pytest.raises(SettingsError, match=r"^until must be a time such as 2026-11-24T08:00Z, got "):
        to_timestamp(wrong, "until")


@pytest.mark.parametrize(
    "wrong", [1.7e12, END_OF_TIME, -1, math.nan, math.inf, "nan", "9999-12-31", "0001-01-01T00:00+14:00",
              np.datetime64("NaT"), "1700000000000"],
)  # fmt: skip
def test_times_out_of_range_are_refused(wrong):
    with pytest.raises(SettingsError, match=r"^since must lie between the years 1970 and 3000, in seconds since 1970"):
        to_timestamp(wrong)
    with pytest.raises(SettingsError, match=r"^times\[1\] must lie between the years"):
        to_timestamps([5.0, wrong], 2)


def test_to_timestamps_takes_any_column():
    days = pd.date_range("2026-11-24", periods=3, tz="UTC")
    wanted = [day.timestamp() for day in days]
    for column in (days, days.tz_localize(None).to_numpy(), days.to_pydatetime(), list(days.strftime("%Y-%m-%d"))):
        assert to_timestamps(column, 3) == wanted
    assert to_timestamps(np.float32([1, 2, 3]), 3) == [1, 2, 3]
    with pytest.raises(SettingsError, match=r"^3 times are needed, one for each prediction, got shape \(2,\)$"):
        to_timestamps([1, 2], 3)
    with pytest.raises(SettingsError, match=r"^times\[1\] must be a time such as 2026-11-24T08:00Z, got soon$"):
        to_timestamps(["2026-11-24", "soon"], 2)
