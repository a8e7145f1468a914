"""The yardstick: what goes in comes out, what does not fit is refused, and nothing is unpickled."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.baseline import Baseline
from toolkit.errors import BundleError

CLASSES = ("cat", "dog", "owl")
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1]])


def baseline(**changes: object) -> Baseline:
    parts: dict[str, object] = {
        "classes": CLASSES,
        "probabilities": PROBABILITIES,
        "labels": np.array([0, 2, 2, 0]),
        "hashes": np.array([f"{number:064x}" for number in range(4)]),
        "statistics": {"brightness": np.array([0.1, 0.2, 0.3, 0.4]), "width": np.arange(4)},
    }
    return Baseline(**{**parts, **changes})


def test_figures_by_hand() -> None:
    whole = baseline()
    assert whole.size == 4
    assert whole.predicted.tolist() == [0, 2, 1, 0]
    assert whole.accuracy == 0.75
    assert whole.confidence.tolist() == pytest.approx([0.7, 0.4, 0.8, 0.6], abs=1e-3)
    assert whole.confidence.dtype == np.float32


def test_what_goes_in_comes_out() -> None:
    whole = baseline()
    again = Baseline.from_bytes(whole.to_bytes())
    assert again.classes == CLASSES
    assert np.array_equal(again.probabilities, whole.probabilities)
    assert again.probabilities.dtype == np.float16
    assert again.labels.tolist() == [0, 2, 2, 0]
    assert again.hashes.tolist() == whole.hashes.tolist()
    assert set(again.statistics) == {"brightness", "width"}
    assert again.statistics["brightness"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])


@given(st.integers(0, 30), st.integers(2, 6), st.integers(0, 1000))
def test_any_baseline_comes_out_as_it_went_in(count: int, classes: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    names = tuple(f"Klasse {number} ü" for number in range(classes))
    rows, labels = generator.dirichlet(np.ones(classes), count), generator.integers(0, classes, count)
    again = Baseline.from_bytes(Baseline(names, rows.reshape(count, classes), labels).to_bytes())
    assert (again.classes, again.size) == (names, count)
    assert np.allclose(again.probabilities, rows, atol=1e-3)
    assert again.labels.tolist() == labels.tolist()
    assert np.isnan(again.accuracy) if count == 0 else again.accuracy == (again.predicted == labels).mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probabilities": PROBABILITIES[:3]}, r"a baseline of 4 labels and 3 classes cannot hold \(3, 3\)"),
        ({"classes": ("cat", "dog")}, r"a baseline of 4 labels and 2 classes cannot hold \(4, 3\)"),
        ({"probabilities": PROBABILITIES * np.nan}, "a baseline must hold finite probabilities"),
        ({"labels": np.array([0, 1, 2, 3])}, r"the labels of a baseline must lie in 0\.\.2"),
        ({"labels": np.array([0, 1, 2, -1])}, r"the labels of a baseline must lie in 0\.\.2"),
        ({"hashes": np.array(["a"])}, "a baseline of 4 pictures has 1 values of hashes"),
        ({"statistics": {"width": np.zeros(5)}}, "a baseline of 4 pictures has 5 values of width"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=f"^{message}$"):
        baseline(**changes)


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("sprung",)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    data = baseline().to_bytes()
    lacking = io.BytesIO()
    np.savez(lacking, classes=np.array(CLASSES))
    for broken in (b"", b"noise", data[:-100], data[:200], lacking.getvalue()):
        with pytest.raises(BundleError, match=r"^the baseline cannot be read: "):
            Baseline.from_bytes(broken)


def test_what_would_need_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, classes=np.array([Trap()], dtype=object))
    for trap in (buffer.getvalue(), pickle.dumps(Trap())):
        with pytest.raises(BundleError, match=r"^the baseline cannot be read: "):
            Baseline.from_bytes(trap)
    assert not (tmp_path / "sprung").exists()
