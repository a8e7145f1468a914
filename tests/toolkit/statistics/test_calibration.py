"""Calibration bins: worked out by hand, and by their definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.statistics.calibration import CALIBRATION_BINS, calibration_bins


def test_calibration_bins_by_hand():
    """A confidence of 1 belongs to the last bin, and an edge to the bin above it."""
    confidence = np.array([0.61, 0.65, 0.9, 0.9, 0.9, 1.0, 0.8])
    bins = calibration_bins(np.stack([confidence, 1 - confidence], axis=1), np.array([0, 1, 0, 0, 0, 1, 0]))
    assert bins.count.tolist() == [0] * 9 + [2, 0, 0, 1, 3, 1]
    assert bins.confidence == pytest.approx([np.nan] * 9 + [0.63, np.nan, np.nan, 0.8, 0.9, 1.0], nan_ok=True)
    assert bins.accuracy == pytest.approx([np.nan] * 9 + [0.5, np.nan, np.nan, 1.0, 1.0, 0.0], nan_ok=True)
    assert bins.error == pytest.approx((2 * 0.13 + 0.2 + 3 * 0.1 + 1.0) / 7)


@given(st.integers(0, 200), st.integers(2, 6), st.integers(0, 1000))
def test_each_prediction_is_in_one_bin_near_its_confidence(count, classes, seed):
    """And the error is the definition's, bin by bin."""
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.ones(classes), count).astype(np.float32)
    labels = generator.integers(0, classes, count)
    bins = calibration_bins(probabilities, labels)
    assert bins.count.sum() == count
    lower = np.arange(CALIBRATION_BINS) / CALIBRATION_BINS
    full = bins.count > 0
    assert (bins.confidence[full] >= lower[full] - 1e-6).all()
    assert (bins.confidence[full] <= lower[full] + 1 / CALIBRATION_BINS + 1e-6).all()
    assert np.isnan(bins.accuracy[~full]).all()
    assert bins.accuracy[full] @ bins.count[full] == pytest.approx((probabilities.argmax(axis=1) == labels).sum())
    rows = zip(bins.count, bins.confidence, bins.accuracy, strict=True)
    expected = sum(n / count * abs(c - a) for n, c, a in rows if n)
    assert bins.error == pytest.approx(expected)
