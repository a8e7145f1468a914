"""The promotion gate: decisions worked out by hand, and how often chance decides."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from support.colours import colour_card
from toolkit.bundle.baseline import Baseline
from toolkit.registry.comparison import Candidate
from toolkit.registry.mcnemar import PairedComparison, PairedCounts, mcnemar
from toolkit.registry.promotion_gate import ALPHA, MIN_LOST, check_promotion, worse_classes
from toolkit.registry.versions import Version

CLASSES = ("cat", "dog", "owl")


def candidate(number, right, labels=None, classes=CLASSES, first=0, latency=None, confidence=1.0):
    """A version that is right where ``right`` is true; its images number from ``first``."""
    truth = np.arange(len(right)) % len(classes) if labels is None else labels
    answers = np.where(right, truth, (truth + 1) % len(classes))
    rest = (1 - confidence) / (len(classes) - 1)
    probabilities = np.where(np.eye(len(classes))[answers] > 0, confidence, rest)
    hashes = np.array([f"{first + index:064x}" for index in range(len(right))])
    version = Version("cats", number, "None", "run", "m-1", "digest", datetime(2026, 5, number, tzinfo=UTC))
    return Candidate(version, colour_card(classes=classes), Baseline(classes, probabilities, truth, hashes), 1, latency)


def gate_result(lost, gained, images=300):
    """Version 2 against 1, which is right on the first half; losses and gains are spread over the classes."""
    before = np.arange(images) < images // 2
    after = before.copy()
    after[:lost] = False
    after[images - gained :] = True
    return check_promotion(candidate(2, after), candidate(1, before))


@pytest.mark.parametrize(
    ("lost", "gained", "passed"),
    [(0, 0, True), (5, 0, True), (6, 0, False), (0, 6, True), (12, 4, True), (14, 4, False), (4, 14, True)],
)
def test_only_a_significantly_worse_version_is_refused(lost, gained, passed):
    result = gate_result(lost, gained)
    assert result.passed == passed == (mcnemar(lost, gained) >= ALPHA or gained > lost)
    assert result.objections == (() if passed else ("it is significantly worse",))


def test_the_summary_is_one_line():
    assert gate_result(14, 4).summary == (
        "accuracy 0.4667 [0.411, 0.523] against 0.5 [0.444, 0.556] of v1 on the same 300 images, 4 gained and"
        " 14 lost, p 0.031"
    )
    assert str(gate_result(14, 4)).removeprefix(gate_result(14, 4).summary).startswith("; it is significantly worse; ")
    assert "\n" not in str(gate_result(14, 4))


def test_min_lost_is_the_least_significant_number():
    assert mcnemar(MIN_LOST, 0) < ALPHA <= mcnemar(MIN_LOST - 1, 0)


def test_a_worse_class_is_detected_despite_a_higher_accuracy():
    labels = np.arange(300) % 3
    before = labels != 1  # never right on dogs
    after = before.copy()
    after[np.flatnonzero(labels == 1)] = True  # all dogs gained
    after[np.flatnonzero(labels == 0)[:30]] = False  # 30 cats lost
    result = check_promotion(candidate(2, after, labels), candidate(1, before, labels))
    assert result.paired.whole.gained > result.paired.whole.lost
    assert result.objections == (
        "it is significantly worse in class 'cat': of 100 images of 'cat' 30 lost and 0 gained",
    )


def test_holm_corrects_for_the_number_of_classes():
    seven, equal, better = PairedCounts(lost=7), PairedCounts(both=9), PairedCounts(gained=30)  # p = 2 / 2**7 = 0.0156

    def worse(*others):
        return worse_classes(PairedComparison(dict(zip("abcd", (seven, *others), strict=False))))

    assert worse() == worse(equal, equal) == ["a"]  # below 0.05 / 3
    assert worse(equal, equal, equal) == []  # not below 0.05 / 4
    assert worse(better, equal, equal) == ["a"]


def test_an_equal_version_is_rarely_refused():
    """Over 150 pairs of equally good versions: at most the rate that is promised, within chance."""
    generator, pairs = np.random.default_rng(0), 150
    refused = 0
    for _ in range(pairs):
        before, after = generator.random((2, 100)) < 0.8
        refused += not check_promotion(candidate(2, after), candidate(1, before)).passed
    assert refused <= pairs * ALPHA + 3 * np.sqrt(pairs * ALPHA * (1 - ALPHA))


def test_a_missing_class_is_refused():
    before = candidate(1, np.ones(30, bool))
    result = check_promotion(candidate(2, np.ones(30, bool), classes=("cat", "dog"), labels=np.arange(30) % 2), before)
    assert result.objections[0] == "it does not know class 'owl', which v1 knows"
    other = check_promotion(before, candidate(1, np.ones(300, bool), classes=("cat", "dog"), labels=np.arange(300) % 2))
    assert other.passed
    assert "new: class 'owl'" in other.remarks


def test_no_shared_image_is_refused():
    result = check_promotion(candidate(2, np.ones(30, bool), first=100), candidate(1, np.ones(30, bool)))
    assert result.summary == "not compared with v1"
    (objection,) = result.objections
    assert objection.startswith("it shares no held-out image with v1, so they cannot be compared; name a folder of ")


def test_remarks_refuse_nothing():
    few = gate_result(0, 0, images=50)
    assert few.remarks == ("50 images are few: 5 mistakes more, 10%, would not be significant",)
    assert gate_result(0, 0).remarks == ()
    right = np.ones(300, bool)
    result = check_promotion(candidate(2, right, latency=12.0, confidence=0.9), candidate(1, right, latency=8.0))
    assert result.passed
    assert result.remarks == ("less well calibrated: error 0.1 against 0", "slower: 12 ms an image against 8")
    decoder = candidate(2, right)
    decoder = replace(decoder, card=decoder.card.model_copy(update={"decoder": "0 (pillow 9)"}))
    (remark,) = check_promotion(decoder, candidate(1, right)).remarks
    assert remark.startswith("measured with decoder 0 (pillow 9), v1 with 2 (")
