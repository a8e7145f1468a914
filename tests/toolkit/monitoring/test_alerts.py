"""What a look sees: levels by what is certain, one sentence with all that is known, alarms that vouch."""

import numpy as np
import pytest

from toolkit.baseline import Baseline
from toolkit.monitoring.alerts import look
from toolkit.monitoring.limits import Limits
from toolkit.monitoring.sequential import Alarm
from toolkit.monitoring.windows import Window
from toolkit.monitoring.yardstick import Yardstick

CLASSES = ("cat", "dog")
N = 2000


def rows(confident, n):
    return np.tile(np.array([confident, 1 - confident], np.float16), (n, 1))


def reference(right=0.9, **statistics):
    """Of 2,000 pictures, half are called cats; 90 % are right."""
    probabilities = rows(0.8, N)
    probabilities[1::2] = probabilities[1::2, ::-1]
    truth = np.arange(N) % 2
    truth[: round(N * (1 - right))] ^= 1
    return Yardstick(CLASSES, Baseline(CLASSES, probabilities, truth, statistics=statistics))


def window(n=1000, right=None, confident=0.8, broken=0, cats=0.5, **statistics):
    """Labelled where ``right`` says so, with that share of right answers."""
    probabilities = rows(confident, n)
    called = np.zeros(n, int)
    called[np.arange(n) >= n * cats] = 1
    called = called[np.random.default_rng(0).permutation(n)]
    probabilities[called == 1] = probabilities[called == 1, ::-1]
    labels = np.full(n, -1)
    if right is not None:
        labels = called.copy()
        labels[: round(n * (1 - right))] ^= 1
    predicted, confidence = called.copy(), probabilities.max(axis=1).astype(np.float32)
    probabilities[:broken], predicted[:broken], confidence[:broken] = np.nan, -1, np.nan
    return Window(
        CLASSES, np.full(n, 1.7e9), predicted, confidence, labels, statistics=statistics, probabilities=probabilities
    )


def seen(yardstick, now, metric, alarms=None, limits=None):
    found = look(yardstick.count(now), yardstick, limits or Limits(), "short", alarms)
    return next(sighting for sighting in found if sighting.metric == metric)


@pytest.mark.parametrize(
    ("right", "level", "status"),
    [
        (0.90, "ok", ""),
        (0.84, "warning", "suspected"),  # a drop of 6.7 %, of which 3.7 % is certain
        (0.82, "warning", "confirmed"),
        (0.70, "critical", "confirmed"),  # 22 %, of which 18 % is certain
        (0.60, "immediate", "confirmed"),
    ],
)
def test_the_level_is_what_is_certain_or_else_suspected(right, level, status):
    sighting = seen(reference(), window(right=right), "accuracy")
    assert (sighting.level, sighting.status) == (level, status)
    assert sighting.value == pytest.approx(1 - right / 0.9)


def test_an_accuracy_alert_says_all_that_is_known():
    message = seen(reference(), window(right=0.6), "accuracy").message
    assert message.startswith(
        "Accuracy fell from 90.0% to 60.0% in the last 1,000 predictions (since 2023-11-14 22:13 UTC)"
    )
    assert "by the 1,000 labels told so far: a drop of 33.3%, at least 2" in message
    assert "worst is 'cat', found" in message or "worst is 'dog', found" in message


def test_too_little_says_nothing():
    sighting = seen(reference(), window(n=40, right=0.1), "accuracy")
    assert (sighting.level, sighting.value) == ("ok", None)
    assert seen(reference(), window(n=40), "confidence_distribution").value is None
    without = Yardstick(CLASSES)
    for sighting in look(without.count(window(right=0.1)), without, Limits(), "short"):
        assert sighting.level == "ok"


@pytest.mark.parametrize(("broken", "level"), [(0, "ok"), (51, "warning"), (101, "critical"), (201, "immediate")])
def test_what_is_not_finite_counts_as_lost(broken, level):
    sighting = seen(reference(), window(broken=broken), "non_finite")
    assert sighting.level == level
    assert sighting.message.startswith(f"{broken / 1000:.1%} of the last 1,000 predictions")


def test_drift_without_labels_is_a_warning_with_the_pictures_and_an_estimate():
    usual = np.linspace(0.4, 0.6, N).astype(np.float32)
    yardstick = reference(brightness=usual)
    dark = window(confident=0.55, brightness=np.full(1000, 0.2, np.float32))
    sighting = seen(yardstick, dark, "confidence_distribution")
    assert (sighting.level, sighting.status) == ("warning", "estimate")
    for words in ("median 0.8 -> 0.55", "mean confidence: mean 0.8 -> 0.55", "the pictures changed too: brightness",
                  "accuracy is estimated at", "no label confirms: label about 107 of"):  # fmt: skip
        assert words in sighting.message
    assert seen(yardstick, dark, "prediction_distribution").level == "ok"


def test_a_class_that_stops_appearing_is_a_warning_at_most():
    sighting = seen(reference(), window(cats=0.0), "prediction_distribution")
    assert (sighting.level, sighting.status) == ("warning", "estimate")
    assert {one.level for one in look(reference().count(window(cats=0.0)), reference(), Limits(), "short")} <= {
        "ok", "warning"
    }  # fmt: skip


def test_an_alarm_makes_a_warning_of_what_the_window_does_not_show_yet():
    calm = window(right=0.9)
    alarm = Alarm(index=3, length=120, evidence=2e6, change="worse")
    labelled = seen(reference(), calm, "accuracy", {"accuracy": alarm})
    assert (labelled.level, labelled.status, labelled.like_before) == ("warning", "suspected", False)
    assert labelled.message.startswith("Accuracy fell from")
    assert labelled.message.endswith(". An alarm says that this began about 120 labels ago.")
    unlabelled = seen(reference(), calm, "confidence_distribution", {"confidence_distribution": alarm})
    assert (unlabelled.level, unlabelled.status) == ("warning", "estimate")
    early = seen(reference(), window(n=30), "confidence_distribution", {"confidence_distribution": alarm})
    assert (early.level, early.value) == ("warning", 0.0)
    assert early.message == "Confidence distribution changed. An alarm says that this began about 120 predictions ago."


def test_an_alarm_does_not_make_milder_what_is_worse():
    alarm = Alarm(index=3, length=120, evidence=2e6, change="worse")
    assert seen(reference(), window(right=0.6), "accuracy", {"accuracy": alarm}).level == "immediate"


def test_calm_is_what_cannot_be_told_from_the_reference():
    assert seen(reference(), window(), "confidence_distribution").like_before
    assert not seen(reference(), window(confident=0.55), "confidence_distribution").like_before
