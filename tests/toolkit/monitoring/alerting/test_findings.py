"""Findings: levels by what is certain, sentences made of the numbers they state, alarms as evidence."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.bundle.baseline import Baseline
from toolkit.monitoring.alerting.findings import evaluate_window
from toolkit.monitoring.base import formatting
from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.stats.e_detectors import Alarm
from toolkit.monitoring.windows.reference import ReferenceBins

CLASSES = ("cat", "dog")
N = 2000


def rows(confident, n):
    return np.tile(np.array([confident, 1 - confident], np.float16), (n, 1))


def reference(right=0.9, **statistics):
    """Of 2,000 images, half are called cats; 90 % are right."""
    probabilities = rows(0.8, N)
    probabilities[1::2] = probabilities[1::2, ::-1]
    truth = np.arange(N) % 2
    truth[: round(N * (1 - right))] ^= 1
    return ReferenceBins(CLASSES, Baseline(CLASSES, probabilities, truth, statistics=statistics))


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
    return Predictions(
        CLASSES, np.full(n, 1.7e9), predicted, confidence, labels, statistics=statistics, probabilities=probabilities
    )


def seen(bins, now, metric, alarms=None, thresholds=None):
    found = evaluate_window(bins.count(now), bins, thresholds or Thresholds(), "short", alarms)
    return next(finding for finding in found if finding.metric == metric)


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
    finding = seen(reference(), window(right=right), "accuracy")
    assert (finding.level, finding.status) == (level, status)
    assert finding.value == pytest.approx(1 - right / 0.9)


def test_an_accuracy_alert_says_all_that_is_known():
    finding = seen(reference(), window(right=0.6), "accuracy")
    since = formatting.clock_time(1.7e9, 1.7e9)
    assert finding.alert_text("immediate") == (
        f"ACCURACY 90 -> 60 % since {since} (1,000 labels), at least 26 points certain; "
        "worst: dog, recall 90 -> 60 %. Next: python model_registry.py rollback"
    )
    window_line, right_line, *lines = finding.text.details.splitlines()
    assert window_line.startswith("Window: the last 1,000 predictions, ")
    assert right_line.startswith("Right: 60 % of 1,000 labels; before: 90 % of 2,000 held-out images; a drop of 33 % ")
    assert right_line.endswith(" of that, at least 29.1 % certain.")
    assert lines == [
        "Levels of the drop: warning above 5 %, critical above 10 %, immediate above 20 %.",
        "Classes that lost most: dog, recall 90 -> 60 % (512 labels); cat, recall 90 -> 60 % (488 labels).",
    ]


def test_too_little_says_nothing():
    finding = seen(reference(), window(n=40, right=0.1), "accuracy")
    assert (finding.level, finding.value) == ("ok", None)
    assert seen(reference(), window(n=40), "confidence_distribution").value is None
    without = ReferenceBins(CLASSES)
    for finding in evaluate_window(without.count(window(right=0.1)), without, Thresholds(), "short"):
        assert finding.level == "ok"


@pytest.mark.parametrize(("broken", "level"), [(0, "ok"), (51, "warning"), (101, "critical"), (201, "immediate")])
def test_what_is_not_finite_counts_as_lost(broken, level):
    finding = seen(reference(), window(broken=broken), "non_finite")
    assert finding.level == level
    assert finding.text.headline.startswith(f"BROKEN ANSWERS: {broken} of 1,000 predictions since ")
    assert finding.text.headline.endswith(f"({broken / 10:.1f} %)")


def test_drift_without_labels_is_a_warning_with_an_estimate():
    usual = np.linspace(0.4, 0.6, N).astype(np.float32)
    bins = reference(brightness=usual)
    dark = window(confident=0.55, brightness=np.full(1000, 0.2, np.float32))
    finding = seen(bins, dark, "confidence_distribution")
    assert (finding.level, finding.status) == ("warning", "estimate")
    since = formatting.clock_time(1.7e9, 1.7e9)
    assert finding.alert_text("warning").startswith(f"CONFIDENCE changed since {since} (1,000 predictions): ")
    for words in ("median 0.8 -> 0.55", "; accuracy maybe ", "(before 90 %), no labels",
                  "the images changed too: brightness", ". Next: python monitoring.py labels"):  # fmt: skip
        assert words in finding.alert_text("warning")
    assert "Changed: mean 0.8 -> 0.55." in finding.text.details
    assert "; label about 107 such predictions to know." in finding.text.details
    assert seen(bins, dark, "prediction_distribution").level == "ok"


def test_a_class_that_stops_appearing_is_a_warning_at_most():
    finding = seen(reference(), window(cats=0.0), "prediction_distribution")
    assert (finding.level, finding.status) == ("warning", "estimate")
    assert {
        one.level for one in evaluate_window(reference().count(window(cats=0.0)), reference(), Thresholds(), "short")
    } <= {"ok", "warning"}


def test_an_alarm_warns_before_the_window_shows_it():
    calm = window(right=0.9)
    alarm = Alarm(index=3, length=120, evidence=2e6, change="worse")
    labelled = seen(reference(), calm, "accuracy", {"accuracy": alarm})
    assert (labelled.level, labelled.status, labelled.unchanged) == ("warning", "suspected", False)
    assert labelled.alert_text("warning") == (
        "ACCURACY below 90 % in the last 120 labels, suspected; the window since "
        f"{formatting.clock_time(1.7e9, 1.7e9)} does not show it yet. Next: python monitoring.py labels"
    )
    assert "Began about 120 labels ago, by the alarm." in labelled.text.details
    lower = Alarm(index=3, length=120, evidence=2e6, change="lower")
    unlabelled = seen(reference(), calm, "confidence_distribution", {"confidence_distribution": lower})
    assert (unlabelled.level, unlabelled.status) == ("warning", "estimate")
    assert "accuracy 90 % by 1,000 labels (before 90 %)" in unlabelled.alert_text("warning")
    early = seen(reference(), window(n=30), "confidence_distribution", {"confidence_distribution": lower})
    assert (early.level, early.value) == ("warning", 0.0)
    assert early.text.headline.startswith("CONFIDENCE: lower in the last 120 predictions than before; harm unknown")
    rarer = Alarm(index=3, length=77, evidence=2e6, change="rarer", label=1)
    classes = seen(reference(), calm, "prediction_distribution", {"prediction_distribution": rarer})
    assert classes.text.headline.startswith("PREDICTED CLASSES: dog rarer in the last 77 predictions (after ")


def test_a_better_window_is_never_a_drop():
    alarm = Alarm(index=3, length=68, evidence=2e6, change="worse")
    finding = seen(reference(), window(right=0.97), "accuracy", {"accuracy": alarm})
    assert (finding.level, finding.status, finding.value) == ("warning", "suspected", 0.0)
    assert "97" not in finding.alert_text("warning")
    assert "Right: 97 % of 1,000 labels; before: 90 % of 2,000 held-out images; no drop." in finding.text.details


def test_enough_labels_replace_the_estimate():
    bins, dark = reference(), window(confident=0.55, right=0.88)
    text = seen(bins, dark, "confidence_distribution").alert_text("warning")
    assert "accuracy 88 % by 1,000 labels (before 90 %)" in text
    assert "maybe" not in text
    few = window(confident=0.55)
    few.labels[:20] = few.predicted[:20]
    assert "20 labels are too few" in seen(bins, few, "confidence_distribution").alert_text("warning")


def test_an_alarm_does_not_make_milder_what_is_worse():
    alarm = Alarm(index=3, length=120, evidence=2e6, change="worse")
    assert seen(reference(), window(right=0.6), "accuracy", {"accuracy": alarm}).level == "immediate"


def test_calm_is_what_equals_the_reference():
    assert seen(reference(), window(), "confidence_distribution").unchanged
    assert not seen(reference(), window(confident=0.55), "confidence_distribution").unchanged


def test_what_is_ignored_raises_nothing_and_clears_what_stood():
    alarm = {"prediction_distribution": Alarm(index=3, length=120, evidence=2e6, change="rarer", label=0)}
    thresholds = Thresholds(ignore=("prediction_distribution", "confidence_distribution/medium"))
    day = window(cats=0.0, confident=0.55)
    ignored = seen(reference(), day, "prediction_distribution", alarm, thresholds)
    assert (ignored.level, ignored.below_clear_threshold, ignored.text.headline) == ("ok", True, "")
    assert seen(reference(), day, "prediction_distribution", alarm).level == "warning"
    assert (
        seen(reference(), day, "confidence_distribution", alarm, thresholds).level == "warning"
    )  # of the short window


# Whatever the window: every sentence fits its numbers

NUMBER = r"(-?[\d.,]+)"
NAMES = st.sampled_from([("cat", "dog"), ("a" * 60, "b" * 60), ("new\nline", "\x1b[31mred"), ("été", "犬")])


def alarms(*changes, label=st.none()):  # noqa: B008  a strategy never changes
    return st.builds(Alarm, st.just(0), st.integers(1, 20_000), st.just(2e6), st.sampled_from(changes), label)


ALARMS = {
    "accuracy": alarms("worse"),
    "confidence_distribution": alarms("lower", "higher", "wider"),
    "prediction_distribution": alarms("rarer", label=st.integers(0, 1)),
}


def random_window(names, n, seed, labelled, right, confident, cats, broken, span):
    """Some labelled, some broken, in any order and over any time."""
    rng = np.random.default_rng(seed)
    probabilities = rows(confident, n)
    called = (rng.random(n) >= cats).astype(int)
    probabilities[called == 1] = probabilities[called == 1, ::-1]
    labels = np.where(rng.random(n) < right, called, 1 - called)
    labels[rng.random(n) >= labelled] = -1
    gone = rng.random(n) < broken
    probabilities[gone], called[gone] = np.nan, -1
    confidence = probabilities.max(axis=1).astype(np.float32)
    return Predictions(names, 1.7e9 + np.linspace(0, span, n), called, confidence, labels, probabilities=probabilities)


shares = st.floats(0, 1)


@settings(max_examples=60, deadline=None)
@given(
    names=NAMES, n=st.integers(1, 1500), seed=st.integers(0, 99), labelled=shares, right=shares, usual=shares,
    confident=st.floats(0.5, 1), cats=shares, broken=st.sampled_from([0, 0, 0.04, 0.3]),
    span=st.sampled_from([0.0, 3600.0, 1e6]), alarms=st.fixed_dictionaries({}, optional=ALARMS),
)  # fmt: skip
def test_no_sentence_contradicts_its_numbers_or_its_level(names, n, seed, usual, alarms, **how):
    thresholds = Thresholds()
    before = random_window(names, 1000, 1, 1.0, usual, 0.8, 0.5, 0.0, 0.0)
    bins = ReferenceBins(names, Baseline(names, before.probabilities, before.labels))
    now = random_window(names, n, seed, **how)
    for finding in evaluate_window(bins.count(now), bins, thresholds, "short", alarms):
        if finding.level == "ok":
            assert finding.metric not in alarms or finding.metric == "accuracy"  # a reference that is never right
            continue
        for level in ("warning", "critical", "immediate")[: Thresholds.severity(finding.level)]:
            line = finding.alert_text(level)
            assert len(line) <= 200
            assert line.isprintable()
            assert re.search(r"Next: python \w+\.py \w+$", line)
        text = line + finding.text.details
        assert not re.search(r"\W-\d|\bnan\b|\binf\b|\bD \d|\bp \d|softmax", text.replace("NaN or inf", ""))
        assert "at least 0 " not in text
        assert "0.0 % certain" not in text
        assert finding.value is not None
        assert finding.value >= 0
        check_levels(finding, line, thresholds, bins.reference.n_correct / bins.reference.n)


def check_levels(finding, line, thresholds, usual):
    """The numbers in the line are such as the level and its status call for."""
    if found := re.match(rf"ACCURACY {NUMBER} -> {NUMBER} %", line):
        before, after = map(float, found.groups())
        assert before > after
        assert 1 - after / before > thresholds.threshold(finding.level) - 2 / before  # rounded to points
        certain = re.search(rf"at least {NUMBER} points certain", line)
        assert certain or finding.status == "suspected" or usual < 0.05
        if certain:
            assert 0 < float(certain[1]) <= before - after + 1
            if finding.status == "confirmed":
                assert float(certain[1]) / before > thresholds.threshold(finding.level) - 2 / before
    elif finding.metric == "accuracy":
        assert (finding.level, finding.status) == ("warning", "suspected")
        assert " -> " not in line
    if finding.metric == "non_finite":
        assert float(re.search(rf"\({NUMBER} %\)", line)[1]) >= 100 * thresholds.threshold(finding.level)
    if finding.metric.endswith("distribution"):
        assert (finding.level, finding.status) == ("warning", "estimate")
        assert (" changed since " in line) == (
            finding.value >= finding.threshold and "Changed:" in finding.text.details
        )
