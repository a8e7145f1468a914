"""The statistics against scipy, against numbers worked out by hand, and against simulated truth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from toolkit.monitoring.stats.hypothesis_tests import (
    Moments,
    accuracy_drop_test,
    chi_square,
    degradation_lower_bound,
    effective_sample_size,
    ks_p_value,
    ks_statistics,
    mean_shift,
    population_stability_index,
    quantile_groups,
    required_labels,
    sparse_chi_square,
    total_variation,
)

counts = st.lists(st.integers(0, 200), min_size=2, max_size=12)


@pytest.mark.parametrize(("n", "m"), [(100, 300), (100, 5000), (1000, 2000)])
@pytest.mark.parametrize("shift", [0.1, 0.3])
def test_ks_p_value_is_close_to_the_exact_one(n, m, shift):
    rng = np.random.default_rng(n + m)
    exact = stats.ks_2samp(rng.normal(shift, 1, n), rng.normal(0, 1, m), method="exact")
    assert ks_p_value(exact.statistic, n, m) == pytest.approx(exact.pvalue, rel=0.12)  # the exact one has steps
    assert ks_p_value(0.0, n, m) == pytest.approx(1)


@given(st.lists(counts, min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
def test_ks_statistics_are_scipys(pieces):
    windows = [np.array(piece) + 1 for piece in pieces]
    references = [window[::-1] for window in windows]
    starts = np.concatenate([[0], np.cumsum([len(window) for window in windows])[:-1]])
    differences = [w / w.sum() - r / r.sum() for w, r in zip(windows, references, strict=True)]
    alone = [
        stats.ks_2samp(*(np.repeat(np.arange(len(each)), each) for each in pair), method="asymp").statistic
        for pair in zip(windows, references, strict=True)
    ]
    assert ks_statistics(np.concatenate(differences), starts) == pytest.approx(alone, abs=1e-12)


def test_chi_square_without_rare_classes_is_scipys():
    window, reference = np.array([30, 50, 20, 40]), np.array([300, 350, 250, 300])
    expected = stats.chi2_contingency(np.stack([window, reference]), correction=False)
    outcome = chi_square(window, reference)
    assert outcome.statistic == pytest.approx(expected.statistic)
    assert outcome.p_value == pytest.approx(expected.pvalue)


def test_rare_classes_are_merged_into_one():
    window, reference = np.array([50, 44, 3, 3]), np.array([500, 440, 25, 25])
    merged = stats.chi2_contingency([[50, 44, 6], [500, 440, 50]], correction=False)
    outcome = chi_square(window, reference)
    assert outcome.statistic == pytest.approx(merged.statistic)
    assert outcome.p_value == pytest.approx(merged.pvalue)


def test_chi_square_counts_classes_without_reference_cases():
    exact = stats.hypergeom(1100, 20, 100).sf(19)
    assert chi_square(np.array([80, 20]), np.array([1000, 0])).p_value == pytest.approx(exact, rel=1e-6)
    assert chi_square(np.array([80, 0, 20]), np.array([900, 100, 0])).p_value < 1e-15


@pytest.mark.parametrize("lonely", [0.0005, 0.004])
def test_one_rare_class_keeps_level_and_power(lonely):
    rng = np.random.default_rng(12)
    shares = np.r_[np.full(9, (1 - lonely) / 9), lonely]
    changed = shares.copy()
    changed[:2] *= 1.25, 0.75
    more = shares.copy()
    more[[0, 9]] += -0.008, 0.008
    reference = rng.multinomial(10_000, shares, 1500)

    def found(now):
        windows = rng.multinomial(1000, now, 1500)
        return np.mean([chi_square(*pair).p_value < 0.05 for pair in zip(windows, reference, strict=True)])

    def found_without(now):
        tables = np.stack([rng.multinomial(1000, now, 500)[:, :9], reference[:500, :9]], axis=1)
        return np.mean([stats.chi2_contingency(table, correction=False).pvalue < 0.05 for table in tables])

    assert 0.036 < found(shares) < 0.062
    assert found(changed) > found_without(changed) - 0.09
    assert found(more) > 0.6  # of the rare class itself


def test_a_rare_class_among_millions_is_tested():
    outcome = chi_square(np.r_[np.full(9, 1_111_111), 4], np.r_[np.full(9, 1000), 3])
    assert outcome.p_value == pytest.approx(1, abs=0.3)
    assert chi_square(np.array([500, 500, 0]), np.array([5000, 5000, 1])).p_value == pytest.approx(1, abs=1e-6)


def test_many_rare_classes_keep_the_level():
    rng = np.random.default_rng(11)
    shares = np.r_[0.5, 0.3, np.full(40, 0.2 / 40)]  # 2 expected of each rare class in the window
    trials = [chi_square(rng.multinomial(400, shares), rng.multinomial(2000, shares)).p_value for _ in range(2000)]
    assert np.mean(np.array(trials) < 0.05) < 0.065
    lonely = [0.5, 0.498, 0.002]
    trials = [chi_square(rng.multinomial(400, lonely), rng.multinomial(2000, lonely)).p_value for _ in range(2000)]
    assert np.mean(np.array(trials) < 0.05) < 0.065


def dealt(window, reference, rng, times):
    """Chi-square of as many tables with the same margins, the cases dealt to the two samples at random."""
    columns, n = (window + reference)[window + reference > 0], int(window.sum())
    first = rng.multivariate_hypergeometric(columns, n, times)
    share = n / columns.sum()
    return ((first - columns * share) ** 2 / (columns * share * (1 - share))).sum(axis=1)


@pytest.mark.parametrize(("k", "n", "m"), [(60, 100, 500), (300, 200, 1000), (300, 400, 3000)])
def test_sparse_chi_square_is_close_to_a_permutation_test(k, n, m):
    rng = np.random.default_rng(k + n)
    shares = rng.dirichlet(np.full(k, 0.5))
    reference = rng.multinomial(m, shares)
    for lean in (0.0, 0.3):  # of the window's classes, drawn from others
        window = rng.multinomial(n, (1 - lean) * shares + lean * rng.permutation(shares))
        outcome = sparse_chi_square(window, reference)
        trials = dealt(window, reference, rng, 4000)
        assert outcome.p_value == pytest.approx((trials >= outcome.statistic).mean(), abs=0.025)


def test_a_change_among_a_thousand_rare_classes_is_found():
    rng = np.random.default_rng(13)
    usual, now = np.full(1000, 1.0), np.full(1000, 1.0)
    now[::2], now[1::2] = 1.8, 0.2
    reference, window = rng.multinomial(10_000, usual / 1000), rng.multinomial(1000, now / now.sum())
    assert chi_square(window, reference).p_value < 1e-6
    assert chi_square(rng.multinomial(1000, usual / 1000), reference).p_value > 0.01


def test_sparse_chi_square_of_one_class_or_sample_is_one():
    assert sparse_chi_square(np.array([5, 0]), np.array([7, 0])) == (0.0, 1.0)
    assert sparse_chi_square(np.array([0, 0]), np.array([7, 2])) == (0.0, 1.0)


@pytest.mark.parametrize(("bins", "true"), [(10, 0.9261424), (20, 0.9632963), (50, 0.9848757)])
def test_psi_of_a_normal_shift_tends_to_its_true_value(bins, true):
    edges = stats.norm.ppf(np.arange(bins + 1) / bins)
    reference, window = np.full(bins, 1e9 / bins), 1e9 * np.diff(stats.norm.cdf(edges - 1))
    assert population_stability_index(window, reference) == pytest.approx(true, abs=1e-6)


def test_psi_of_an_empty_bin_is_finite():
    by_hand = (100.5 / 101 - 50.5 / 101) * math.log(100.5 / 50.5) + (0.5 / 101 - 50.5 / 101) * math.log(0.5 / 50.5)
    assert population_stability_index(np.array([100, 0]), np.array([50, 50])) == pytest.approx(by_hand)
    assert population_stability_index(np.array([3, 4]), np.array([3, 4])) == 0


@given(st.lists(st.integers(0, 9), min_size=30, max_size=100).filter(any))
@settings(max_examples=40)
def test_quantile_groups_are_ordered_and_hold_a_tenth(cases):
    reference = np.array(cases)
    groups = quantile_groups(reference)
    assert set(np.diff(groups)) <= {0, 1}
    assert np.bincount(groups, reference).max() <= reference.sum() / 10 + reference.max()


@pytest.mark.parametrize("kept", [0.3, 0.8])
def test_effective_sample_size_gives_the_variance_of_the_mean(kept):
    rng = np.random.default_rng(14)
    n, chains = 400, 2000
    series = np.empty((n, chains))
    series[0] = rng.normal(0, 1, chains)
    for step in range(1, n):
        series[step] = kept * series[step - 1] + rng.normal(0, math.sqrt(1 - kept**2), chains)
    assert 1 / series.mean(axis=0).var() == pytest.approx(effective_sample_size(n, kept, n - 1), rel=0.12)


def test_effective_sample_size_ignores_chance_autocorrelation():
    assert effective_sample_size(1000, 0.07, 999) == effective_sample_size(1000, -0.9, 999) == 1000
    assert effective_sample_size(1000, 0.5, 0) == 1000
    assert effective_sample_size(1000, 1.0, 999) == 1


@given(counts)
def test_chi_square_does_not_depend_on_order(values):
    window = np.array(values) + 1
    order = np.random.default_rng(0).permutation(len(window))
    assert chi_square(window, window).p_value >= 0.5  # exact and one-sided where a class is rare
    assert total_variation(window, 3 * window) == pytest.approx(0, abs=1e-12)
    other = window[::-1].copy()
    assert chi_square(window[order], other[order]).p_value == pytest.approx(chi_square(window, other).p_value)


def test_mean_shift_is_welchs_test():
    outcome, shift = mean_shift(Moments(400, 0.71, 0.2), Moments(900, 0.75, 0.1))
    welch = stats.ttest_ind_from_stats(0.71, 0.2, 400, 0.75, 0.1, 900, equal_var=False)
    assert outcome.statistic == pytest.approx(welch.statistic)
    assert outcome.p_value == pytest.approx(2 * stats.norm.sf(abs(welch.statistic)))
    assert shift == pytest.approx(-0.4)


def test_mean_shift_of_constant_samples_is_finite():
    outcome, shift = mean_shift(Moments(50, 1.0, 0.0), Moments(50, 0.999, 0.0), resolution=2**-11)
    assert math.isfinite(outcome.statistic)
    assert shift == pytest.approx(0.001 / 2**-11)
    assert mean_shift(Moments(50, 1.0, 0.0), Moments(50, 1.0, 0.0)) == ((0.0, 1.0), 0.0)


def test_accuracy_drop_test_is_half_of_chi_square():
    outcome = accuracy_drop_test(80, 100, 900, 1000)
    table = stats.chi2_contingency([[80, 20], [900, 100]], correction=False)
    assert outcome.statistic**2 == pytest.approx(table.statistic)
    assert outcome.p_value == pytest.approx(table.pvalue / 2)
    assert accuracy_drop_test(100, 100, 10, 10).p_value == 0.5


@pytest.mark.parametrize(("accuracy", "n"), [(0.9, 100), (0.9, 1000), (0.99, 300), (0.5, 60)])
def test_degradation_lower_bound_keeps_its_confidence(accuracy, n):
    rng = np.random.default_rng(7)
    true_drop, m, trials = 0.1, 2000, 4000
    windows = rng.binomial(n, accuracy * (1 - true_drop), trials)
    references = rng.binomial(m, accuracy, trials)
    wrong = sum(degradation_lower_bound(w, n, r, m, 0.95) > true_drop for w, r in zip(windows, references, strict=True))
    assert wrong / trials < 0.065  # 0.05 and three standard errors of the simulation


@given(st.integers(1, 500), st.integers(1, 500), st.data())
def test_degradation_lower_bound_is_below_the_observed_drop(n, m, data):
    right, usual = data.draw(st.integers(0, n)), data.draw(st.integers(1, m))
    seen = 1 - (right / n) / (usual / m)
    assert degradation_lower_bound(right, n, usual, m) <= seen + 1e-9


def test_degradation_lower_bound_of_a_reference_of_zero():
    assert degradation_lower_bound(0, 100, 0, 100) == -math.inf


def test_required_labels_are_enough_nine_times_in_ten():
    rng = np.random.default_rng(3)
    n, m = required_labels(0.9, drop=0.2), 1_000_000
    proved = [degradation_lower_bound(int(r), n, int(0.9 * m), m, 0.99) > 0.05 for r in rng.binomial(n, 0.72, 2000)]
    assert 0.85 < np.mean(proved) < 0.95
