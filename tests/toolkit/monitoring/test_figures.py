"""Figures from counts are those from the predictions themselves."""

import json

import numpy as np
import pytest
from watched import baseline_of, names, window_of

from toolkit.monitoring import windows
from toolkit.monitoring.figures import measure
from toolkit.monitoring.limits import Limits
from toolkit.monitoring.yardstick import Yardstick


def flat(figures):
    """Nested figures as one row of numbers."""
    if isinstance(figures, dict):
        return [number for value in figures.values() for number in flat(value)]
    return [number for value in figures for number in flat(value)] if isinstance(figures, list) else [figures]


@pytest.mark.parametrize(("n", "labelled", "broken"), [(0, 0, 0), (1, 0, 1), (1, 1, 0), (2000, 0.5, 0.1)])
@pytest.mark.parametrize("size", [0, 800])
def test_counted_and_read_in_full_the_figures_are_the_same(n, labelled, broken, size):
    rng = np.random.default_rng(n + size)
    window, baseline = window_of(n, rng, labelled=labelled, broken=broken), baseline_of(size, rng)
    yardstick = Yardstick(names(3), baseline)
    found, expected = measure(yardstick.count(window), yardstick, Limits()), windows.measure(window, baseline, Limits())
    assert list(found) == list(expected)
    json.dumps(found, allow_nan=False)
    latency, exact = found.pop("latency_ms"), expected.pop("latency_ms")
    assert list(found) == list(expected)
    for one, other in zip(flat(found), flat(expected), strict=True):
        assert one == pytest.approx(other)
    if exact["median"] is not None:
        assert latency == pytest.approx(exact, rel=0.04)


def test_a_thousand_classes_need_no_matrix():
    yardstick = Yardstick(names(1000))
    window = window_of(300, np.random.default_rng(0), k=1000)
    figures = measure(yardstick.count(window), yardstick, Limits())
    assert figures["f1_weighted"] == pytest.approx(windows.measure(window, None, Limits())["f1_weighted"])
