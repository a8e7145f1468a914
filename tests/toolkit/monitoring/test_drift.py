"""The drift tests as a whole: found when it is there, not found when it is not, and never guessed."""

import json

import numpy as np
import pytest

from toolkit.baseline import Baseline
from toolkit.monitoring.drift import DriftReport, compare, judge, p_text
from toolkit.monitoring.limits import Limits
from toolkit.monitoring.windows import Window

CLASSES = ("bird", "cat", "dog")


def answers(n, rng, strength=3.0, prior=None):
    """Calibrated probabilities, and the truth drawn from them."""
    truth = rng.choice(3, n, p=prior)
    logits = rng.normal(0, 1, (n, 3))
    logits[np.arange(n), truth] += strength
    odds = np.exp(logits)
    return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float16), truth


def baseline_of(n, rng):
    probabilities, truth = answers(n, rng)
    return Baseline(CLASSES, probabilities, truth, statistics={"brightness": rng.normal(0.5, 0.1, n)})


def window_of(n, rng, brightness=0.5, labelled=1.0, **more):
    probabilities, truth = answers(n, rng, **more)
    return Window(
        CLASSES,
        np.arange(n, dtype=float),
        probabilities.argmax(axis=1),
        probabilities.max(axis=1).astype(np.float32),
        np.where(rng.random(n) < labelled, truth, -1),
        statistics={"brightness": rng.normal(brightness, 0.1, n).astype(np.float32)},
    )


def verdicts(window, baseline, **more):
    return {result.metric: result.status for result in compare(window, baseline, Limits(), "short", **more)}


def test_without_drift_a_report_is_wrong_no_more_often_than_stated():
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(150):
        results = compare(window_of(1000, rng), baseline_of(2000, rng), Limits(), "short")
        wrong += any(result.drifted for result in results if result.family == "model")
    assert wrong <= 14  # 0.05 of 150, and two and a half standard errors


def test_a_weaker_model_drifts_in_confidence_and_accuracy():
    rng = np.random.default_rng(1)
    found = verdicts(window_of(1000, rng, strength=1.0), baseline_of(2000, rng))
    assert found["confidence_distribution"] == found["mean_confidence"] == found["accuracy"] == "drift"
    assert found["prediction_distribution"] == found["brightness"] == "no_drift"


def test_other_classes_drift_in_predictions_and_the_classes_are_named():
    rng = np.random.default_rng(2)
    results = compare(window_of(1000, rng, prior=[0.7, 0.2, 0.1]), baseline_of(2000, rng), Limits(), "short")
    by_name = {result.metric: result for result in results}
    assert by_name["prediction_distribution"].status == "drift"
    assert by_name["prediction_distribution"].effect == pytest.approx(0.36, abs=0.06)
    assert by_name["prediction_distribution"].detail.startswith("'bird' 3")
    assert by_name["accuracy"].status == "no_drift"


def test_darker_pictures_are_input_drift_and_not_drift_of_the_model():
    rng = np.random.default_rng(3)
    results = compare(window_of(1000, rng, brightness=0.4), baseline_of(2000, rng), Limits(), "short")
    report = DriftReport("1", 0.05, tuple(results))
    assert (report.drifted, report.input_drifted) == (False, True)


def test_a_certain_change_too_small_to_matter_is_no_drift():
    rng = np.random.default_rng(4)
    results = compare(window_of(60_000, rng, prior=[0.36, 0.33, 0.31]), baseline_of(60_000, rng), Limits(), "long")
    shares = next(result for result in results if result.metric == "prediction_distribution")
    assert shares.corrected_p_value < 1e-6
    assert shares.effect < shares.minimum_effect
    assert shares.status == "no_drift"


@pytest.mark.parametrize(("n", "size", "status"), [(99, 2000, "insufficient_data"), (100, 2000, "no_drift")])
def test_too_little_data_is_neither_yes_nor_no(n, size, status):
    rng = np.random.default_rng(5)
    found = verdicts(window_of(n, rng), baseline_of(size, rng))
    assert found["confidence_distribution"] == found["brightness"] == status


def test_without_a_baseline_or_labels_nothing_is_claimed():
    rng = np.random.default_rng(6)
    window = window_of(1000, rng, labelled=0.0)
    assert set(verdicts(window, None).values()) == {"insufficient_data"}
    assert verdicts(window, baseline_of(2000, rng))["accuracy"] == "insufficient_data"
    assert DriftReport("1", 0.05, tuple(compare(window, None, Limits(), "short"))).drifted is None


def test_families_are_corrected_apart():
    rng = np.random.default_rng(7)
    results = compare(window_of(1000, rng), baseline_of(2000, rng), Limits(), "short")
    model = [result for result in results if result.family == "model"]
    assert min(r.corrected_p_value for r in model) == pytest.approx(min(1, 4 * min(r.p_value for r in model)))
    (alone,) = [result for result in results if result.family == "input"]
    assert alone.corrected_p_value == alone.p_value
    assert judge([], 0.05) == []


def test_a_report_is_json_and_reads_as_a_table_everywhere():
    rng = np.random.default_rng(8)
    results = compare(window_of(1000, rng, strength=1.0, labelled=0.0), baseline_of(2000, rng), Limits(), "short")
    report = DriftReport("<3>", 0.05, tuple(results))
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert again["drifted"] is True
    assert [result["status"] for result in again["results"]] == [result.status for result in results]
    text = str(report)
    assert text.startswith("Model version <3>: 2 of 4 tests found drift; 1 wait for more data.")
    assert "input: brightness" in text
    assert "&lt;3&gt;" in report._repr_html_()
    assert str(DriftReport(None, 0.05, ())).startswith("No predictions have been logged yet.")


def test_tiny_p_values_stay_readable():
    assert p_text(5e-324) == "< 1e-300"
