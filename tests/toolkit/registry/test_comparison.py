"""Versions in a table."""

import math
from datetime import UTC, datetime

import numpy as np
import pytest

from support.colours import colour_card
from toolkit.bundle.baseline import Baseline
from toolkit.registry.comparison import Candidate, comparison_frame, differing
from toolkit.registry.mcnemar import PairedCounts
from toolkit.registry.metrics import share_score
from toolkit.registry.versions import Version

CLASSES = ("cat", "dog")


def baseline(right):
    """A baseline of cats that is right where ``right`` has a 1."""
    answers = np.array([int(result == "0") for result in right])
    hashes = np.array([f"image {index}" for index in range(len(right))])
    return Baseline(CLASSES, np.eye(2)[answers], np.zeros(len(right)), hashes)


def candidate(number, images, card=None, **metrics):
    version = Version(
        "cats", number, "None", "run", "m-1", "digest", datetime(2026, 5, number, tzinfo=UTC), metrics=metrics
    )
    return Candidate(version, card or colour_card(), images, size=number * 1_500_000, latency_ms=4.0 * number)


def test_one_row_a_version_compared_with_the_first():
    card = colour_card()
    settings, data = {"learning_rate": 0.01, "epochs": 5}, {**card.data, "fingerprint": "other"}
    other = card.model_copy(update={"settings": settings, "data": data})
    first = candidate(4, baseline("11110"), mean_cv_accuracy=0.8)
    table = comparison_frame([first, candidate(2, baseline("01111"), other)])
    assert list(table.index) == [4, 2]
    first, second = table.loc[4], table.loc[2]
    assert (first.accuracy, first.images, first.shared_accuracy, first.size_mb) == (0.8, 5, 0.8, 6.0)
    assert (first.accuracy_low, first.accuracy_high) == pytest.approx(share_score(4, 5)[1:])
    assert table[["gained", "lost", "p_value"]].isna().all(axis=1).tolist() == [True, False]
    assert (second.gained, second.lost, second.p_value) == (1, 1, 1.0)
    assert (second.difference, second.difference_low, second.difference_high) == PairedCounts(3, 1, 1, 0).difference
    assert (first.mean_cv_accuracy, first.latency_ms, second.latency_ms) == (0.8, 16.0, 8.0)
    assert first.f1_weighted == pytest.approx(2 * 0.8 / 1.8)  # 4 of 5 cats, nothing else was a cat
    assert first.calibration_error == pytest.approx(0.2)  # always sure, right 4 times of 5
    assert math.isnan(second.mean_cv_accuracy)
    different = [name for name in table if name.startswith(("setting.", "data."))]
    assert different == ["setting.epochs", "setting.learning_rate", "data.fingerprint"]
    assert table["setting.learning_rate"].tolist() == [0.001, 0.01]


def test_differing_values():
    assert differing([{"seed": 1}, {"seed": 1}]) == []
    assert differing([{"mean": [0.5, 0.5]}, {"mean": [0.5, 0.6]}]) == ["mean"]
