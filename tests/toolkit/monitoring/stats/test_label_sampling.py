"""Samples for labelling: random, and the same in every process."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from toolkit.monitoring.base.ids import new_prediction_id, parse_prediction_id
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.stats.hypothesis_tests import required_labels
from toolkit.monitoring.stats.label_sampling import labels_to_confirm, sample_for_labelling


@given(
    st.lists(st.integers(0, 2**63 - 1), max_size=60, unique=True), st.integers(1, 30), st.integers(0, 5), st.randoms()
)
@settings(max_examples=80, deadline=None)
def test_the_sample_is_deterministic_and_extends_a_smaller_one(ids, n, seed, random):
    drawn = sample_for_labelling(ids, n, seed).tolist()
    assert sample_for_labelling(random.sample(ids, len(ids)), n, seed).tolist() == drawn
    assert sample_for_labelling(ids, n + 7, seed)[:n].tolist() == drawn
    assert set(drawn) <= set(ids)
    assert len(set(drawn)) == len(drawn) == min(n, len(ids))


def test_predictions_and_pairs_are_drawn_equally_often():
    ids = [parse_prediction_id(new_prediction_id(lambda: 1.7e9)) for _ in range(20)]  # of one burst
    draws = np.array([np.isin(ids, sample_for_labelling(ids, 5, seed)) for seed in range(4000)])  # (4000, 20)
    assert stats.chisquare(draws.sum(axis=0)).pvalue > 0.001
    pairs = (draws.T.astype(int) @ draws)[np.triu_indices(20, 1)]
    assert stats.chisquare(pairs).pvalue > 0.001
    assert pairs.mean() == pytest.approx(4000 * (5 / 20) * (4 / 19))


def test_samples_of_overlapping_windows_overlap():
    rng = np.random.default_rng(0)
    ids = rng.permutation(10**6)[:1100]
    before, after = sample_for_labelling(ids[:1000], 100), sample_for_labelling(ids[100:], 100)
    assert len(set(before) & set(after)) > 75  # of the 90 that one would hope for


def test_a_smaller_drop_takes_more_labels():
    thresholds = Thresholds()
    assert labels_to_confirm(0.9, 0.2, thresholds) == required_labels(0.9, drop=0.2)
    assert labels_to_confirm(0.9, 0.4, thresholds) < 107 < labels_to_confirm(0.9, 0.12, thresholds)
    assert labels_to_confirm(0.9, -0.1, thresholds) == required_labels(0.9, drop=0.1)
