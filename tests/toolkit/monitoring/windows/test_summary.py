"""Summaries: parts add up to the whole, bytes are read back or refused, properties are those of the values."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from support.prediction_fixtures import baseline_of, names, window_of
from toolkit.bundle.baseline import Baseline
from toolkit.errors import PredictionStoreError
from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.monitoring.windows.summary import BANDS, WindowSummary

BINS = ReferenceBins(names(3), baseline_of(500, np.random.default_rng(0)))


def plain(confidence, predicted):
    """The summary of predictions with nothing but these columns."""
    n = len(confidence)
    return BINS.count(Predictions(names(3), np.arange(n, dtype=float), predicted, confidence, np.full(n, -1)))


@given(st.integers(0, 2**32), st.integers(0, 300), st.lists(st.integers(0, 300), max_size=4))
@settings(max_examples=40, deadline=None)
def test_parts_add_up_to_the_whole(seed, n, cuts):
    window = window_of(n, np.random.default_rng(seed))
    edges = [0, *sorted(min(cut, n) for cut in cuts), n]
    parts = [BINS.count(window.slice(start, stop)) for start, stop in pairwise(edges)]
    whole = BINS.count(window)
    assert sum(parts[1:], parts[0]) == whole
    middle = sum(parts[2:], parts[1]) if len(parts) > 1 else BINS.empty()
    assert parts[0] + middle == whole  # in any order of addition
    if n > edges[1]:
        assert whole.minus_head(parts[0], middle.head, middle.since, middle.until) == middle


@given(st.integers(0, 2**32), st.integers(0, 200))
@settings(max_examples=25, deadline=None)
def test_bytes_come_back_as_they_were(seed, n):
    counts = BINS.count(window_of(n, np.random.default_rng(seed)))
    assert WindowSummary.from_bytes(counts.to_bytes()) == counts


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_damaged_bytes_are_refused_in_one_sentence(data):
    whole = BINS.count(window_of(50, np.random.default_rng(1))).to_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytes([whole[place] ^ data.draw(st.integers(1, 255))])
    for damaged in (whole[:place] + flipped + whole[place + 1 :], whole[:place], whole + flipped, flipped * place):
        with pytest.raises(PredictionStoreError, match=r"^a summary is damaged: "):
            WindowSummary.from_bytes(damaged)


def test_a_summary_takes_a_few_kilobytes():
    rng = np.random.default_rng(2)
    baseline, window = baseline_of(10_000, rng, k=10), window_of(1000, rng, k=10)
    six = {f"statistic {index}": rng.normal(size=10_000).astype(np.float32) for index in range(6)}
    bins = ReferenceBins(names(10), Baseline(names(10), baseline.probabilities, baseline.labels, statistics=six))
    values = {name: column[:1000] for name, column in six.items()}
    counts = bins.count(replace(window, statistics=values))
    assert len(counts.to_bytes()) < 10_000


def test_counts_in_other_bins_are_not_mixed():
    other = ReferenceBins(names(3), baseline_of(500, np.random.default_rng(3)))
    with pytest.raises(PredictionStoreError, match="cannot be put together"):
        BINS.empty() + other.empty()


@pytest.mark.parametrize("n", [1, 2, 3, 5000])
def test_mean_and_deviation_are_those_of_the_values(n):
    window = window_of(n, np.random.default_rng(4), broken=0.0)
    size, mean, deviation = BINS.count(window).confidence
    assert size == n
    assert mean == pytest.approx(window.confidence.mean(dtype=np.float64), rel=1e-15)
    if n > 1:
        assert deviation == pytest.approx(window.confidence.std(ddof=1, dtype=np.float64), rel=1e-12)


def test_counts_of_labels_are_scikit_learns_and_the_baselines():
    window = window_of(2000, np.random.default_rng(5), k=4, broken=0.1)
    counts = ReferenceBins(names(4)).count(window)
    known = window.labelled
    matrix = confusion_matrix(window.labels[known], window.predicted[known], labels=range(4))
    assert counts.confusion_matrix.tolist() == matrix.tolist()
    assert (counts.n_labels, counts.n_correct) == (window.n_labels, window.n_correct)
    bins = Baseline(names(4), window.probabilities[known], window.labels[known]).calibration()
    assert counts.calibration[0].tolist() == bins.count.tolist()
    among = np.maximum(counts.calibration[0], 1)
    assert counts.calibration[1] / among == pytest.approx(np.nan_to_num(bins.accuracy))
    assert counts.calibration[2] / 2**24 / among == pytest.approx(np.nan_to_num(bins.confidence))


def test_late_labels_count_like_early_ones():
    window = window_of(400, np.random.default_rng(6))
    bare = replace(window, labels=np.full(400, -1))
    wrong = np.where(window.labels >= 0, (window.labels + 1) % 3, -1)
    steps = np.rint(np.nan_to_num(window.confidence) * 2.0**24).astype(np.int64)
    counts = BINS.count(bare).with_labels(window.predicted, steps, bare.labels, wrong)
    assert counts.with_labels(window.predicted, steps, wrong, window.labels) == BINS.count(window)
    assert counts.with_labels(window.predicted, steps, wrong, bare.labels) == BINS.count(bare)


def test_latency_quantiles_are_within_3_5_percent():
    window = window_of(3000, np.random.default_rng(7))
    counts = BINS.count(window)
    for share in (0.01, 0.5, 0.95, 0.999):
        exact = np.nanquantile(window.latency, share, method="inverted_cdf")
        assert counts.latency_quantile(share) == pytest.approx(exact, rel=0.035)
    assert BINS.empty().latency_quantile(0.5) is None
    assert plain(np.array([0.5]), np.array([0])).latency_quantile(0.5) is None


def test_independent_predictions_all_count():
    rng = np.random.default_rng(8)
    counts = plain(rng.uniform(0.4, 1, 5000).astype(np.float16), rng.integers(0, 3, 5000))
    assert abs(counts.autocorrelation) < 0.05
    assert counts.effective_n > 4500


def test_autocorrelation_is_numpys():
    rng = np.random.default_rng(9)
    noise = rng.normal(0, 0.02, 5000)
    for step in range(1, 5000):
        noise[step] += 0.8 * noise[step - 1]
    values = (0.6 + noise).clip(0.34, 1).astype(np.float16)
    counts = plain(values, rng.integers(0, 3, 5000))
    series = values.astype(float)
    assert counts.autocorrelation == pytest.approx(np.corrcoef(series[1:], series[:-1])[0, 1], abs=0.002)


def test_repeated_images_count_less():
    rng = np.random.default_rng(10)
    confidence, predicted = rng.uniform(0.4, 1, 500).astype(np.float16), rng.integers(0, 3, 500)
    bursts = plain(np.repeat(confidence, 10), np.repeat(predicted, 10))
    assert bursts.autocorrelation == pytest.approx(0.9, abs=0.02)
    assert 200 < bursts.effective_n < 500
    only_classes = plain(rng.uniform(0.4, 1, 5000).astype(np.float16), np.repeat(predicted, 10))
    assert only_classes.effective_n < 500
    assert plain(np.full(50, 0.5), np.zeros(50, int)).effective_n == 50  # nothing varies, so nothing is said


def test_strata_add_up_to_the_other_counts():
    window = window_of(800, np.random.default_rng(11))
    drawn = window.labelled & (np.arange(800) % 3 == 0)
    counts = BINS.count(replace(window, drawn=drawn))
    everything, labelled, right, sampled, hits = counts.strata
    assert everything.reshape(-1, 3).sum(axis=0).tolist() == counts.classes.tolist()
    assert (labelled.sum(), right.sum()) == (counts.n_labels, counts.n_correct)
    assert labelled.reshape(-1, 3).sum(axis=0).tolist() == counts.confusion_matrix.sum(axis=0).tolist()
    assert sampled.sum() == drawn.sum()
    assert hits.sum() == (window.predicted == window.labels)[drawn].sum()
    bands = np.searchsorted(BANDS, window.confidence[window.finite], side="right") - 1
    assert everything.reshape(-1, 3).sum(axis=1).tolist() == np.bincount(bands, minlength=len(BANDS)).tolist()
    assert WindowSummary.from_bytes(counts.to_bytes()) == counts
