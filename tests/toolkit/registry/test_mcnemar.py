"""Versions on the same images, against figures worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from toolkit.bundle.baseline import Baseline
from toolkit.registry.mcnemar import PairedComparison, PairedCounts, pair_by_hash

CLASSES = ("cat", "dog")
COUNTS = st.builds(PairedCounts, *[st.integers(0, 40)] * 4)


def baseline(right, labels=None, first=0, classes=CLASSES, hashes=True):
    """A baseline with images numbered from ``first``, classified correctly where ``right`` has a 1."""
    truth = np.array([int(label) for label in labels or "0" * len(right)])
    answers = np.where([result == "1" for result in right], truth, 1 - truth)
    names = np.array([f"image {first + index}" for index in range(len(right))])
    return Baseline(classes, np.eye(2)[answers], truth, names if hashes else np.zeros(0, "U1"))


def test_images_are_paired_by_content_hash():
    first = baseline("110100", first=0)  # images 0..5
    second = baseline("1011", first=2)  # images 2..5: right on 2, 4 and 5, wrong on 3
    turned = Baseline(CLASSES, second.probabilities[::-1], second.labels[::-1], second.hashes[::-1])
    for other in (second, turned):
        assert pair_by_hash(first, other) == PairedComparison({"cat": PairedCounts(lost=1, gained=3)})
        whole = pair_by_hash(first, other).whole
        assert (whole.images, whole.accuracies) == (4, (0.25, 0.75))
        assert whole.p_value == pytest.approx(2 * (1 + 4) / 16)


def test_each_class_has_its_own_counts():
    paired = pair_by_hash(baseline("1100", labels="0101"), baseline("1010", labels="0101"))
    assert paired.by_class == {"cat": PairedCounts(both=1, gained=1), "dog": PairedCounts(lost=1, neither=1)}
    assert paired.whole == PairedCounts(both=1, lost=1, gained=1, neither=1)


def test_classes_are_paired_by_name_without_relabelled_images():
    first = baseline("11", labels="01")  # a cat and a dog
    renumbered = baseline("10", labels="10", classes=("dog", "cat"))  # the same cat and dog
    assert pair_by_hash(first, renumbered).whole.images == 2
    relabelled = baseline("11", labels="11")  # the first image is called a dog now
    assert pair_by_hash(first, relabelled).whole.images == 1


def test_no_shared_images_have_no_difference():
    for other in (baseline("111", first=100), baseline("111", hashes=False)):
        whole = pair_by_hash(baseline("111"), other).whole
        assert whole == PairedCounts()
        assert all(math.isnan(value) for value in (whole.p_value, *whole.accuracies, *whole.difference))


@given(COUNTS)
def test_the_interval_matches_the_mean_of_paired_differences(counts):
    """Agresti and Min's: Wald's interval of the differences +1, -1 and 0 with half an image more of each kind."""
    if not counts.images:
        return
    weights = np.array([counts.gained, counts.lost, counts.both, counts.neither]) + 0.5
    values = np.array([1, -1, 0, 0])
    mean = np.average(values, weights=weights)
    spread = np.sqrt(np.average((values - mean) ** 2, weights=weights) / weights.sum())
    difference, low, high = counts.difference
    assert difference == pytest.approx(counts.accuracies[1] - counts.accuracies[0], abs=1e-12)
    assert low == pytest.approx(max(-1, mean - norm.ppf(0.975) * spread), abs=1e-9)
    assert high == pytest.approx(min(1, mean + norm.ppf(0.975) * spread), abs=1e-9)


@given(COUNTS)
def test_swapped_versions_have_the_same_p_value(counts):
    other = PairedCounts(counts.both, counts.gained, counts.lost, counts.neither)
    assert other.p_value == pytest.approx(counts.p_value, nan_ok=True)
    if counts.images:
        low, high = counts.difference[1:]
        assert other.difference[1:] == pytest.approx((-high, -low))
