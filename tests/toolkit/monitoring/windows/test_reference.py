"""Bins: their error against scipy's exact statistics, and odd values."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from support.prediction_fixtures import answers, baseline_of, names, window_of
from toolkit.bundle.baseline import Baseline
from toolkit.errors import SettingsError
from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.stats.hypothesis_tests import ks_statistics
from toolkit.monitoring.windows.reference import ReferenceBins

# Numbers near each other and far apart, many of them equal.
VALUES = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 1e-30]), st.floats(-(2.0**100), 2.0**100, width=32))
SAMPLES = st.lists(VALUES, min_size=1, max_size=60)


def with_statistic(values, probabilities=None):
    n = len(values)
    rows = np.tile(np.float16([0.75, 0.25]), (n, 1)) if probabilities is None else probabilities
    return Baseline(("a", "b"), rows, np.zeros(n, int), statistics={"x": np.array(values, np.float32)})


def window_with(values, **columns):
    n = len(values)
    statistics = {"x": np.array(values, np.float32)}
    whole = {"predicted": np.zeros(n, int), "confidence": np.full(n, 0.75, np.float32)} | columns
    return Predictions(("a", "b"), np.zeros(n), labels=np.full(n, -1), statistics=statistics, **whole)


def exact_gap(window, reference):
    first, second = stats.ecdf(window).cdf, stats.ecdf(reference).cdf
    steps = np.concatenate([first.quantiles, second.quantiles])
    return np.abs(first.evaluate(steps) - second.evaluate(steps)).max()


def gap(bins, window, quantity):
    cells = bins.bin_slice(quantity)
    found, usual = bins.count(window).cells[cells], bins.reference.cells[cells]
    return ks_statistics(found / found.sum() - usual / usual.sum(), np.zeros(1, int))[0]


def error(bins, quantity):
    """The largest share of the reference in one bin of several values."""
    kind = np.float32 if quantity > len(bins.classes) else np.float16
    ends, cells = bins.values(quantity)[:-1].astype(kind), bins.reference.cells[bins.bin_slice(quantity)]
    several = np.r_[True, np.nextafter(ends[1:], kind(-np.inf)) != ends[:-1], True]
    return (cells * several).max() / cells.sum()


@given(SAMPLES, SAMPLES, st.sampled_from([1, 40]))
@settings(max_examples=80, deadline=None)
def test_ks_in_bins_is_exact_up_to_the_stated_error(reference, values, repeat):
    bins = ReferenceBins(("a", "b"), with_statistic(reference * repeat))
    exact = exact_gap(np.float64(np.float32(values)), np.float64(np.float32(reference)))
    found = gap(bins, window_with(values), 3)
    assert found - 1e-12 <= exact <= found + error(bins, 3) + 1e-12


@given(st.integers(0, 2**32), st.integers(1, 4000), st.integers(1, 400))
@settings(max_examples=25, deadline=None)
def test_ks_in_bins_of_every_quantity_of_larger_samples(seed, m, n):
    rng = np.random.default_rng(seed)
    baseline, window = baseline_of(m, rng), window_of(n, rng, broken=0.0)
    bins = ReferenceBins(names(3), baseline)
    columns = {"confidence": (baseline.confidence, window.confidence)}
    columns |= {
        f"probability of class {c}": (baseline.probabilities[:, c], window.probabilities[:, c]) for c in range(3)
    }
    columns |= {name: (baseline.statistics[name], window.statistics[name]) for name in ("brightness", "width")}
    assert tuple(columns) == bins.quantities
    for quantity, (usual, now) in enumerate(columns.values()):
        given = now[np.isfinite(now)]
        if len(given):
            exact = exact_gap(given.astype(np.float64), usual.astype(np.float64))
            found = gap(bins, window, quantity)
            assert found - 1e-12 <= exact <= found + error(bins, quantity) + 1e-12


def test_the_error_of_binning_is_small_with_ties():
    rng = np.random.default_rng(0)
    rows, _ = answers(10_000, rng, k=2)
    rows[:4000] = [1.0, 0.0]
    values = np.where(rng.random(10_000) < 0.5, 224, rng.normal(300, 50, 10_000))
    bins = ReferenceBins(("a", "b"), with_statistic(values, rows))
    assert max(error(bins, quantity) for quantity in range(4)) < 0.0025
    constant = ReferenceBins(("a", "b"), with_statistic([224.0] * 1000))
    assert [error(constant, quantity) for quantity in range(4)] == [0, 0, 0, 0]


def test_a_shift_of_a_tied_value_by_one_step_is_measured():
    ones, below = np.full(1000, 1.0), np.full(1000, np.nextafter(np.float16(1), np.float16(0)), np.float32)
    bins = ReferenceBins(("a", "b"), with_statistic(ones, np.tile(np.float16([1, 0]), (1000, 1))))
    assert gap(bins, window_with(ones, confidence=below), 0) == 1
    assert gap(bins, window_with(np.nextafter(np.float32(ones), np.float32(2))), 3) == 1


def test_nan_infinite_and_absent_values_are_missing():
    bins = ReferenceBins(("a", "b"), with_statistic(np.linspace(0, 1, 200)))
    broken = window_with(
        [np.nan, np.inf, -np.inf, 3e38, -3e38],
        predicted=np.array([-1, -1, 0, 0, 0]),
        confidence=np.array([np.nan, np.inf, 0.5, 0.75, 1.0], np.float32),
    )
    counts = bins.count(broken)
    assert counts.cells[bins.missing].tolist() == [2, 5, 5, 3]
    assert (counts.n, counts.non_finite, counts.n_finite) == (5, 2, 3)
    assert counts.cells.sum() == 5 * 4
    without = replace(broken, statistics={})
    assert bins.count(without).cells[bins.missing].tolist() == [2, 5, 5, 5]


def test_bins_without_a_baseline_are_of_equal_width():
    for empty in (None, Baseline(("a", "b"), np.zeros((0, 2)), np.zeros(0, int))):
        bins = ReferenceBins(("a", "b"), empty)
        assert bins.quantities == ("confidence", "probability of a", "probability of b")
        assert bins.reference is None
        widths = np.diff(bins.values(1)[:-1])
        assert widths == pytest.approx(np.full(len(widths), widths[0]), abs=1e-6)


@pytest.mark.parametrize(("k", "size", "bytes_each"), [(2, 1024, 2), (128, 1024, 2), (1000, 131, 1), (9000, 16, 1)])
def test_many_classes_have_fewer_bins_each(k, size, bytes_each):
    bins = ReferenceBins(names(k))
    sizes = np.diff(bins.starts)
    assert set(sizes[1:]) == {size}
    assert sizes[0] == max(size, 256)
    (rows,) = bins.bin(window_of(2, np.random.default_rng(0), k=k))
    assert rows.bins.itemsize == bytes_each


def test_quantiles_are_found_to_the_width_of_a_bin():
    rng = np.random.default_rng(1)
    usual, now = rng.normal(0, 1, 5000), rng.normal(0.5, 1, 3000)
    bins = ReferenceBins(("a", "b"), with_statistic(usual))
    counts = bins.count(window_with(now))
    for share in (0.05, 0.5, 0.9):
        exact = np.quantile(now, share, method="inverted_cdf")
        assert bins.quantile(counts, 3, share) == pytest.approx(exact, abs=0.01)
    assert np.isnan(bins.quantile(bins.empty(), 3, 0.5))


def test_quantiles_outside_the_reference_are_round_numbers():
    bins = ReferenceBins(("a", "b"), with_statistic(np.linspace(0.3, 0.7, 500)))
    for value in (0.1, 0.2, 0.9):
        assert bins.quantile(bins.count(window_with([value])), 3, 0.5) == pytest.approx(value)


def test_the_same_baseline_gives_the_same_fingerprint():
    baseline = baseline_of(300, np.random.default_rng(2))
    again = Baseline.from_bytes(baseline.to_bytes())
    first, second = ReferenceBins(names(3), baseline), ReferenceBins(names(3), again)
    assert first.fingerprint == second.fingerprint
    assert first.reference == second.reference
    assert first.fingerprint != ReferenceBins(names(3), baseline_of(300, np.random.default_rng(3))).fingerprint
    assert (first.reference.n, first.reference.n_correct / 300) == (300, pytest.approx(baseline.accuracy))


def test_a_baseline_of_other_classes_is_refused():
    with pytest.raises(SettingsError, match="is no reference for"):
        ReferenceBins(("dog", "cat"), baseline_of(10, np.random.default_rng(4)))
