"""Statistics against figures worked out by hand."""

import math
from datetime import UTC, datetime
from math import comb, sqrt

import numpy as np
import pytest

from support import colour_card
from toolkit.baseline import Baseline
from toolkit.bundle import Card, Measured
from toolkit.registry.comparison import Candidate, differing, mcnemar, pair, side_by_side, wilson
from toolkit.registry.versions import Version

CLASSES = ("cat", "dog")


def baseline(
    right: str, labels: str | None = None, first: int = 0, classes: tuple[str, str] = CLASSES, hashes: bool = True
) -> Baseline:
    """A baseline whose pictures number from ``first``, classified rightly where ``right`` has a 1."""
    truth = np.array([int(label) for label in labels or "0" * len(right)])
    answers = np.where([verdict == "1" for verdict in right], truth, 1 - truth)
    names = np.array([f"picture {first + index}" for index in range(len(right))])
    return Baseline(classes, np.eye(2)[answers], truth, names if hashes else np.zeros(0, "U1"))


def candidate(number: int, pictures: Baseline, card: Card | None = None, **metrics: float) -> Candidate:
    version = Version(
        "cats", number, "None", "run", "m-1", "digest", datetime(2026, 5, number, tzinfo=UTC), metrics=metrics
    )
    return Candidate(version, card or colour_card(), pictures, size=number * 1_500_000)


@pytest.mark.parametrize(("right", "pictures"), [(0, 7), (8, 10), (93, 100), (300, 300)])
def test_wilson_solves_its_own_equation(right: int, pictures: int) -> None:
    z, share = 1.959963984540054, right / pictures
    centre = (share + z * z / (2 * pictures)) / (1 + z * z / pictures)
    half = z * sqrt(share * (1 - share) / pictures + z * z / (4 * pictures**2)) / (1 + z * z / pictures)
    assert wilson(right, pictures) == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_wilson_of_no_picture_is_not_a_number() -> None:
    assert all(math.isnan(bound) for bound in wilson(0, 0))


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 5), (1, 6), (6, 1), (3, 3), (10, 25)])
def test_mcnemar_counts_the_tails_of_a_fair_coin(lost: int, gained: int) -> None:
    n = lost + gained
    tail = sum(comb(n, k) for k in range(min(lost, gained) + 1)) / 2**n
    assert mcnemar(lost, gained) == pytest.approx(min(1.0, 2 * tail))


def test_versions_are_paired_by_the_content_of_pictures_not_by_their_order() -> None:
    first = baseline("110100", first=0)  # pictures 0..5
    second = baseline("1011", first=2)  # pictures 2..5: right on 2, 4 and 5, wrong on 3
    turned = Baseline(CLASSES, second.probabilities[::-1], second.labels[::-1], second.hashes[::-1])
    for other in (second, turned):
        paired = pair(first, other)
        assert (paired.pictures, paired.accuracy, paired.lost, paired.gained) == (4, 0.75, 1, 3)
        assert paired.p_value == pytest.approx(2 * (1 + 4) / 16)


def test_classes_are_compared_by_name_and_relabelled_pictures_are_left_out() -> None:
    first = baseline("11", labels="01")  # a cat and a dog
    renumbered = baseline("10", labels="10", classes=("dog", "cat"))  # the same cat and dog
    assert pair(first, renumbered).pictures == 2
    relabelled = baseline("11", labels="11")  # the first picture is called a dog now
    assert pair(first, relabelled).pictures == 1


def test_without_shared_pictures_nothing_is_said_about_the_difference() -> None:
    for other in (baseline("111", first=100), baseline("111", hashes=False)):
        paired = pair(baseline("111"), other)
        assert paired.pictures == 0
        assert math.isnan(paired.accuracy)
        assert math.isnan(paired.p_value)


def test_side_by_side_has_one_row_a_version_and_compares_with_the_first() -> None:
    card = colour_card()
    other = card.model_copy(
        update={
            "settings": {"learning_rate": 0.01, "epochs": 5},
            "data": {**card.data, "fingerprint": "other"},
            "metrics": {
                "f1_weighted": Measured(value=0.7, pictures=5),
                "calibration_error": Measured(value=0.1, pictures=5),
            },
        }
    )
    table = side_by_side(
        [candidate(4, baseline("11110"), mean_cv_accuracy=0.8), candidate(2, baseline("01111"), other)]
    )
    assert list(table.index) == [4, 2]
    first, second = table.loc[4], table.loc[2]
    assert (first.accuracy, first.pictures, first.shared_accuracy, first.size_mb) == (0.8, 5, 0.8, 6.0)
    assert (first.accuracy_low, first.accuracy_high) == pytest.approx(wilson(4, 5))
    assert table[["gained", "lost", "p_value"]].isna().all(axis=1).tolist() == [True, False]
    assert (second.gained, second.lost, second.p_value) == (1, 1, 1.0)
    assert (first.mean_cv_accuracy, second.f1_weighted, second.calibration_error) == (0.8, 0.7, 0.1)
    assert math.isnan(second.mean_cv_accuracy)
    different = [name for name in table if name.startswith(("setting.", "data."))]
    assert different == ["setting.epochs", "setting.learning_rate", "data.fingerprint"]
    assert table["setting.learning_rate"].tolist() == [0.001, 0.01]


def test_what_is_the_same_in_all_is_no_difference() -> None:
    assert differing([{"seed": 1}, {"seed": 1}]) == []
    assert differing([{"mean": [0.5, 0.5]}, {"mean": [0.5, 0.6]}]) == ["mean"]
