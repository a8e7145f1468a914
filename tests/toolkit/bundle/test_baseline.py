"""Baselines: what goes in comes out, what does not fit is refused, and nothing is unpickled."""

import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.bundles import Trap
from toolkit.bundle.baseline import Baseline
from toolkit.errors import BundleError
from toolkit.statistics.calibration import calibration_bins

CLASSES = ("cat", "dog", "owl")
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1]])


def baseline(**changes):
    parts = {
        "classes": CLASSES,
        "probabilities": PROBABILITIES,
        "labels": np.array([0, 2, 2, 0]),
        "hashes": np.array([f"{number:064x}" for number in range(4)]),
        "statistics": {"brightness": np.array([0.1, 0.2, 0.3, 0.4]), "width": np.arange(4)},
    }
    return Baseline(**{**parts, **changes})


def test_figures_by_hand():
    whole = baseline()
    assert whole.size == 4
    assert whole.predicted.tolist() == [0, 2, 1, 0]
    assert whole.accuracy == 0.75
    assert whole.confidence.tolist() == pytest.approx([0.7, 0.4, 0.8, 0.6], abs=1e-3)
    assert whole.confidence.dtype == np.float32


@given(st.integers(0, 30), st.integers(2, 6), st.integers(0, 1000))
def test_any_baseline_comes_out_as_it_went_in(count, classes, seed):
    generator = np.random.default_rng(seed)
    names = tuple(f"Klasse {number} ü" for number in range(classes))
    rows, labels = generator.dirichlet(np.ones(classes), count), generator.integers(0, classes, count)
    hashes, widths = np.array([f"{number:064x}" for number in range(count)], "U64"), generator.random(count)
    whole = Baseline(names, rows.reshape(count, classes), labels, hashes, {"width": widths})
    again = Baseline.from_bytes(whole.to_bytes())
    assert (again.classes, again.size, again.probabilities.dtype) == (names, count, np.float16)
    assert np.allclose(again.probabilities, rows, atol=1e-3)
    assert (again.labels.tolist(), again.hashes.tolist()) == (labels.tolist(), hashes.tolist())
    assert set(again.statistics) == {"width"}
    assert again.statistics["width"].tolist() == pytest.approx(widths.tolist(), abs=1e-6)
    assert np.isnan(again.accuracy) if count == 0 else again.accuracy == (again.predicted == labels).mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probabilities": PROBABILITIES[:3]}, r"a baseline of 4 labels and 3 classes cannot hold \(3, 3\)"),
        ({"classes": ("cat", "dog")}, r"a baseline of 4 labels and 2 classes cannot hold \(4, 3\)"),
        ({"probabilities": PROBABILITIES * np.nan}, "a baseline must hold finite probabilities"),
        ({"labels": np.array([0, 1, 2, 3])}, r"the labels of a baseline must lie in 0\.\.2"),
        ({"labels": np.array([0, 1, 2, -1])}, r"the labels of a baseline must lie in 0\.\.2"),
        ({"hashes": np.array(["a"])}, "a baseline of 4 images has 1 values of hashes"),
        ({"statistics": {"width": np.zeros(5)}}, "a baseline of 4 images has 5 values of width"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(BundleError, match=f"^{message}$"):
        baseline(**changes)


def in_bins(confidence, right, bins):
    """The expected calibration error as its definition reads, bin by bin."""
    total = 0.0
    for number in range(bins):
        inside = [n for n, c in enumerate(confidence) if number / bins <= c < (number + 1) / bins + (c == 1)]
        if inside:
            sure = sum(confidence[n] for n in inside) / len(inside)
            hit = sum(right[n] for n in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(sure - hit)
    return total


@given(st.integers(1, 60), st.integers(2, 6), st.integers(1, 20), st.integers(0, 1000))
def test_the_calibration_error_is_its_definition(count, classes, bins, seed):
    generator = np.random.default_rng(seed)
    rows, labels = generator.dirichlet(np.ones(classes), count), generator.integers(0, classes, count)
    found = calibration_bins(rows, labels, bins)
    right = (rows.argmax(axis=1) == labels).tolist()
    assert found.error == pytest.approx(in_bins(rows.max(axis=1).tolist(), right, bins))
    assert found.count.sum() == count
    answers = Baseline(tuple("abcdef"[:classes]), rows, labels)
    rounded = answers.probabilities.astype(np.float64).max(axis=1)
    expected = in_bins(rounded.tolist(), (answers.predicted == labels).tolist(), 15)
    assert answers.calibration_error == pytest.approx(expected, abs=1e-6)


def test_without_images_there_is_no_calibration_error():
    empty = Baseline(("cat", "dog"), np.zeros((0, 2)), np.zeros(0))
    assert np.isnan(empty.calibration_error)
    assert empty.calibration().count.tolist() == [0] * 15


def test_a_damaged_file_is_refused(tmp_path):
    data = baseline().to_bytes()
    lacking = io.BytesIO()
    np.savez(lacking, classes=np.array(CLASSES))
    for broken in (b"", b"noise", data[:-100], data[:200], lacking.getvalue()):
        with pytest.raises(BundleError, match=r"^the baseline cannot be read: "):
            Baseline.from_bytes(broken)


def test_what_would_need_pickle_is_refused_and_never_run(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, classes=np.array([Trap()], dtype=object))
    for trap in (buffer.getvalue(), pickle.dumps(Trap())):
        with pytest.raises(BundleError, match=r"^the baseline cannot be read: "):
            Baseline.from_bytes(trap)
    assert not (tmp_path / "sprung").exists()
