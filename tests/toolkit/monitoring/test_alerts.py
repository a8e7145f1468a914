"""What a look sees, and when that becomes an alert."""

import numpy as np
import pytest

from toolkit.baseline import Baseline
from toolkit.monitoring.alerts import Sighting, Watch, look, worth_adding
from toolkit.monitoring.limits import Limits
from toolkit.monitoring.windows import Window

CLASSES = ("cat", "dog")
LEVELS = {"warning": 0.05, "critical": 0.10, "immediate": 0.20}


def seen(level, value, status="confirmed", window="short"):
    return Sighting("accuracy", window, level, status if level != "ok" else "", value, LEVELS)


def play(*sightings, standing=None, blocks=1):
    """The actions of a watch, which is told what stands as the store would tell it."""
    watch, actions = Watch(), []
    for sighting in sightings:
        decision = watch.decide("1", sighting, standing, blocks)
        if decision.action == "raise":
            standing = (decision.level, decision.status)
        elif decision.action == "clear":
            standing = None
        actions.append(decision.action if decision.action != "raise" else decision.level)
    return actions


def test_it_takes_two_blocks_to_raise_and_then_it_is_quiet():
    assert play(*[seen("warning", 0.08)] * 4) == ["wait", "warning", "wait", "wait"]


def test_one_bad_block_between_good_ones_is_no_alert():
    assert play(*[seen("critical", 0.15), seen("ok", 0.01)] * 4) == ["wait"] * 8


def test_immediate_needs_one_block():
    assert play(seen("immediate", 0.3), seen("immediate", 0.3)) == ["immediate", "wait"]


def test_news_of_two_blocks_in_one_look_counts_as_two():
    assert play(seen("warning", 0.08), blocks=2) == ["warning"]


def test_what_is_held_for_two_blocks_is_raised_even_if_the_level_wavers():
    assert play(seen("warning", 0.08), seen("critical", 0.12), seen("critical", 0.12)) == [
        "wait",
        "warning",
        "critical",
    ]


def test_becoming_certain_is_told_becoming_milder_is_not():
    suspected = seen("warning", 0.08, "suspected")
    assert play(suspected, suspected, seen("warning", 0.08)) == ["wait", "warning", "warning"]
    assert play(*[seen("warning", 0.08)] * 3, standing=("critical", "confirmed")) == ["wait"] * 3


def test_three_calm_looks_clear_it_and_they_must_be_in_a_row():
    calm, close = seen("ok", 0.029), seen("ok", 0.031)  # 0.6 of 0.05 is 0.03
    standing = ("warning", "confirmed")
    assert play(calm, calm, calm, standing=standing) == ["wait", "wait", "clear"]
    assert play(calm, calm, close, calm, calm, standing=standing) == ["wait"] * 5
    assert play(*[seen("ok", 0.055)] * 3, standing=("critical", "confirmed")) == ["wait", "wait", "clear"]


def test_a_cleared_alert_can_come_back():
    bad, calm = seen("warning", 0.08), seen("ok", 0.0)
    assert play(bad, bad, calm, calm, calm, bad, bad)[-3:] == ["clear", "wait", "warning"]


def test_too_little_data_is_no_news():
    assert play(seen("warning", 0.08), Sighting("accuracy", "short"), seen("warning", 0.08))[-1] == "warning"


def test_versions_metrics_and_windows_are_watched_apart():
    watch = Watch()
    assert watch.decide("1", seen("warning", 0.08), None).action == "wait"
    assert watch.decide("2", seen("warning", 0.08), None).action == "wait"
    assert watch.decide("1", seen("warning", 0.08, window="medium"), None).action == "wait"
    assert watch.decide("1", seen("warning", 0.08), None).action == "raise"


def test_a_longer_window_adds_only_what_the_short_one_leaves_open():
    slow = seen("warning", 0.07, window="medium")
    assert worth_adding(slow, seen("ok", 0.04), None) == slow
    assert worth_adding(slow, seen("ok", 0.01), None).level == "ok"  # it has passed
    assert worth_adding(slow, seen("critical", 0.15), ("critical", "confirmed")).level == "ok"  # it has been told
    assert worth_adding(slow, seen("warning", 0.08), ("warning", "suspected")) == slow  # now it is certain


def window_of(right, n, confidence=0.9, non_finite=0, labelled=True):
    predicted = np.zeros(n, np.int64)
    predicted[:non_finite] = -1
    truth = np.where(np.arange(n) < right, 0, 1) if labelled else np.full(n, -1)
    return Window(CLASSES, np.full(n, 1.7e9), predicted, np.full(n, np.float16(confidence), np.float32), truth)


@pytest.fixture(scope="module")
def baseline():
    rng = np.random.default_rng(0)
    brightness = rng.normal(0.5, 0.1, 4000)
    probabilities = np.tile([0.9, 0.1], (4000, 1))
    return Baseline(CLASSES, probabilities, np.repeat([0, 1], [3600, 400]), statistics={"brightness": brightness})


@pytest.mark.parametrize(
    ("right", "n", "level", "status"),
    [
        (880, 1000, "ok", ""),
        (845, 1000, "warning", "suspected"),
        (800, 1000, "warning", "confirmed"),
        (740, 1000, "critical", "confirmed"),
        (600, 1000, "immediate", "confirmed"),
        (44, 60, "ok", ""),  # a drop of 18 % in 60 labels may be chance
        (10, 49, "ok", ""),
    ],
)
def test_the_level_of_an_accuracy_alert_is_what_is_certain(baseline, right, n, level, status):
    accuracy = next(s for s in look(window_of(right, n), baseline, Limits(), "short") if s.metric == "accuracy")
    assert (accuracy.level, accuracy.status) == (level, status)


def test_the_message_says_what_how_sure_since_when_which_class_and_what_to_do(baseline):
    predicted, n = np.repeat([1, 0], [400, 600]), 1000
    window = Window(CLASSES, np.full(n, 1.7e9), predicted, np.full(n, 0.9, np.float32), np.zeros(n, np.int64))
    accuracy = next(s for s in look(window, baseline, Limits(), "short") if s.metric == "accuracy")
    assert accuracy.message == (
        "Accuracy fell from 90.0% to 60.0% in the last 1,000 predictions (since 2023-11-14 22:13 UTC), by the 1,000 "
        "labels told so far: a drop of 33.3%, at least 26.0% of it certain; worst is 'cat', found 60% of the time "
        "instead of 100%; go back to the version before now."
    )


def test_drift_without_labels_is_never_more_than_a_warning(baseline):
    window = window_of(0, 1000, confidence=0.2, labelled=False)
    dark = {"brightness": np.full(1000, 0.1, np.float32)}
    window = Window(CLASSES, window.time, window.predicted, window.confidence, window.labels, statistics=dark)
    found = {s.metric: s for s in look(window, baseline, Limits(), "short")}
    drift = found["confidence_distribution"]
    assert (drift.level, drift.status) == ("warning", "estimate")
    assert "the pictures changed too: brightness (median 0.497 -> 0.1)" in drift.message
    assert "label about 107 of these predictions" in drift.message
    assert found["accuracy"].value is None


@pytest.mark.parametrize(("broken", "level"), [(40, "ok"), (60, "warning"), (110, "critical"), (1000, "immediate")])
def test_predictions_that_are_not_finite_count_as_lost(baseline, broken, level):
    sightings = look(window_of(0, 1000, non_finite=broken, labelled=False), baseline, Limits(), "short")
    assert sightings[0].metric == "non_finite"
    assert sightings[0].level == level


def test_an_empty_window_is_no_news(baseline):
    assert all(s.value is None for s in look(Window.empty(CLASSES), baseline, Limits(), "short"))
    assert all(s.value is None for s in look(Window.empty(), None, Limits(), "short"))
