"""Intervals and corrections against scipy and numbers worked out by hand."""

from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from toolkit.statistics.intervals import holm, mcnemar, wilson


@given(st.integers(1, 3000), st.data())
def test_wilson_is_scipys(n, data):
    right = data.draw(st.integers(0, n))
    expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_weighted_holm_spends_alpha_by_weight():
    assert holm([0.01, 0.04, 0.03], [2, 2, 2]) == pytest.approx(holm([0.01, 0.04, 0.03]))
    # Of weights 4, 1, 1 in all 6: 0.012 * 6 / 4, then 0.01 * 2 / 1, then 0.5 * 1 / 1.
    assert holm([0.012, 0.01, 0.5], [4, 1, 1]) == pytest.approx([0.018, 0.02, 0.5])


@given(st.lists(st.floats(0, 1), max_size=8))
@settings(max_examples=60)
def test_holm_keeps_the_order_and_only_raises_p_values(p_values):
    corrected = holm(p_values)
    assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [corrected[i] for i in order] == sorted(corrected)
    if p_values:
        assert min(corrected) == pytest.approx(min(1, len(p_values) * min(p_values)))


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 5), (1, 6), (6, 1), (3, 3), (10, 25)])
def test_mcnemar_counts_the_tails_of_a_fair_coin(lost, gained):
    n = lost + gained
    tail = sum(comb(n, k) for k in range(min(lost, gained) + 1)) / 2**n
    assert mcnemar(lost, gained) == pytest.approx(min(1.0, 2 * tail))
