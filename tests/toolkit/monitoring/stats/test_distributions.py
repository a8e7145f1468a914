"""The distributions against scipy, far into the tails where alarms are decided."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import special, stats

from toolkit.monitoring.stats.distributions import (
    chi_square_survival,
    hypergeometric,
    kolmogorov_survival,
    normal_survival,
)


@given(st.floats(-30, 30))
def test_normal_survival(z):
    assert normal_survival(z) == pytest.approx(special.ndtr(-z), rel=1e-9)


def test_kolmogorov_on_both_sides_of_the_change_of_series():
    for x in np.r_[-1, 0, np.linspace(0.05, 12, 500), 1.18, np.nextafter(1.18, 0)]:
        assert kolmogorov_survival(x) == pytest.approx(special.kolmogorov(x), rel=1e-9, abs=1e-15)


@given(st.integers(1, 1200), st.floats(0, 3000))
@example(10, 5e-324)
def test_chi_square(degrees, x):
    assert chi_square_survival(x, degrees) == pytest.approx(special.chdtrc(degrees, x), rel=1e-8, abs=1e-300)


@given(st.integers(1, 60), st.integers(1, 2000), st.integers(1, 2000), st.data())
@settings(deadline=None)
def test_hypergeometric(rare, n, m, data):
    rare = min(rare, n + m)
    seen = data.draw(st.integers(0, rare))
    expected = stats.hypergeom(n + m, rare, n).pmf(seen)
    assert hypergeometric(seen, rare, n, m) == pytest.approx(expected, rel=1e-7, abs=1e-12)
