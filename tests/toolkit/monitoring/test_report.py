"""The report in a terminal: no number contradicts another, and the worst comes first."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.prediction_fixtures import alert_of
from toolkit.bundle.baseline import Baseline
from toolkit.monitoring import report
from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.windows.metrics import window_metrics
from toolkit.monitoring.windows.reference import ReferenceBins

CLASSES = ("cat", "dog")
ALERT = alert_of()


def metrics(right, n=200, usual=1000):
    """The metrics of ``n`` labelled predictions and of 2,000 held-out images of which ``usual`` were right."""
    sure = np.tile(np.array([0.75, 0.25], np.float16), (2000, 1))
    bins = ReferenceBins(CLASSES, Baseline(CLASSES, sure, np.arange(2000) >= usual))
    labels = (np.arange(n) >= right).astype(int)
    now = Predictions(CLASSES, np.full(n, 1.7e9), np.zeros(n, int), np.full(n, 0.75, np.float32), labels,
                 probabilities=sure[:n])  # fmt: skip
    return window_metrics(bins.count(now), bins, Thresholds(), "short", "1")


@given(st.integers(0, 200), st.sampled_from([0, 3, 60, 200]), st.sampled_from([40, 1000, 1700, 2000]))
@settings(max_examples=40)
def test_a_report_has_no_negative_drop(right, n, usual):
    lines = report.metrics_text(metrics(min(right, n), n, usual))
    (line,) = (line for line in lines if line.startswith("degradation:"))
    assert "-" not in line.removeprefix("degradation:").replace("-: unknown", "")
    assert " 0.0% certain" not in line
    assert " 0 % certain" not in line


def test_a_model_that_got_better_shows_no_drop():
    (line,) = (line for line in report.metrics_text(metrics(140)) if line.startswith("degradation:"))
    assert line == f"{'degradation:':<22} none: ok (none)"


@pytest.mark.parametrize(
    ("active", "right", "drifted", "level"),
    [
        ([], 100, False, "ok"),
        ([], 100, True, "warning"),
        ([ALERT], 100, True, "critical"),
        ([ALERT], 20, False, "immediate"),  # the labels show worse than the active alert
        ([ALERT, alert_of(level="immediate")], 100, False, "immediate"),
    ],
)
def test_the_headline_is_the_worst_that_is_known(active, right, drifted, level):
    found = report.headline(active, metrics(right), drifted)
    assert found.level == level
    assert str(found).upper().count(level.upper()) == 1


def test_without_labels_the_headline_is_no_all_clear():
    found = report.headline([], metrics(0, 0), None)
    assert found == ("ok", "", "no alert is active; there are too few labels to know the accuracy")
