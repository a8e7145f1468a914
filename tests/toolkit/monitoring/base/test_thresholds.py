"""Thresholds: the levels, and the values that are refused."""

import pytest

from toolkit.errors import SettingsError
from toolkit.monitoring.base.thresholds import Thresholds


@pytest.mark.parametrize(
    ("drop", "level"),
    [(-0.2, "ok"), (0.05, "ok"), (0.051, "warning"), (0.10, "warning"), (0.11, "critical"), (0.21, "immediate")],
)
def test_a_level_begins_above_its_threshold(drop, level):
    assert Thresholds().level(drop) == level


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alpha": 0}, "alpha must lie between 0 and 1, got 0"),
        ({"confidence": float("nan")}, "confidence must lie between 0 and 1, got nan"),
        ({"mean_shift": -1}, "mean_shift must be more than 0, got -1"),
        ({"minimum_labels": 1}, "minimum_labels must be at least 2, got 1"),
        ({"max_false_alarms_per_million": 0}, "must be more than 0 and at most 10,000, got 0"),
        ({"max_false_alarms_per_million": float("nan")}, "at most 10,000, got nan"),
        ({"warning": 0.15}, "the levels must grow"),
        ({"trust_labels": 0.5}, "trust_labels must be True or False, got 0.5"),
    ],
)
def test_impossible_thresholds_are_refused(wrong, message):
    with pytest.raises(SettingsError, match=message):
        Thresholds(**wrong)


def test_an_unknown_level_is_answered_with_those_that_exist():
    with pytest.raises(SettingsError, match="no level 'critcal'; the levels are critical, ok"):
        Thresholds.severity("critcal")
