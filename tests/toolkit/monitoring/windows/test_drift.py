"""Drift tests: drift that is found, no false drift, and insufficient data."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from support.monitored_streams import CLASSES, answers
from toolkit.bundle.baseline import Baseline
from toolkit.errors import SettingsError
from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.stats.hypothesis_tests import population_stability_index
from toolkit.monitoring.windows import drift
from toolkit.monitoring.windows.drift import DriftReport, correct_and_decide
from toolkit.monitoring.windows.reference import ReferenceBins


def baseline_of(n, rng):
    probabilities, truth = answers(n, rng)
    return Baseline(CLASSES, probabilities, truth, statistics={"brightness": rng.normal(0.5, 0.1, n)})


def window_of(n, rng, brightness=0.5, labelled=1.0, **more):
    probabilities, truth = answers(n, rng, **more)
    probabilities = probabilities.astype(np.float16)
    return Predictions(
        CLASSES,
        np.arange(n, dtype=float),
        probabilities.argmax(axis=1),
        probabilities.max(axis=1).astype(np.float32),
        np.where(rng.random(n) < labelled, truth, -1),
        statistics={"brightness": rng.normal(brightness, 0.1, n).astype(np.float32)},
        probabilities=probabilities,
    )


def results_of(window, baseline, name="short", **more):
    bins = ReferenceBins(CLASSES, baseline)
    return drift.run_tests(bins.count(window), bins, Thresholds(), name, **more)


def by_metric(window, baseline, **more):
    return {result.metric: result for result in results_of(window, baseline, **more)}


def statuses(window, baseline, **more):
    return {metric: result.status for metric, result in by_metric(window, baseline, **more).items()}


def test_a_report_without_drift_keeps_alpha():
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(100):
        results = results_of(window_of(1000, rng), baseline_of(2000, rng))
        wrong += any(result.drifted for result in results if result.family == "model")
    assert wrong <= 10  # 0.05 of 100, and two and a half standard errors


def test_statistics_are_scipys_on_the_predictions():
    rng = np.random.default_rng(21)
    window, baseline = window_of(1000, rng, strength=2.0, prior=[0.5, 0.3, 0.2]), baseline_of(2000, rng)
    found = by_metric(window, baseline)
    exact = stats.ks_2samp(window.confidence, baseline.confidence)
    assert found["confidence_distribution"].effect == pytest.approx(exact.statistic, abs=0.002)
    gaps = [
        stats.ks_2samp(*(p[:, k].astype(float) for p in (window.probabilities, baseline.probabilities))).statistic
        for k in range(3)
    ]
    assert found["softmax_distribution"].effect == pytest.approx(max(gaps), abs=0.002)
    assert f"most of all {CLASSES[int(np.argmax(gaps))]!r}" in found["softmax_distribution"].detail
    z = stats.ttest_ind(window.confidence.astype(float), baseline.confidence.astype(float), equal_var=False)
    assert found["mean_confidence"].statistic == pytest.approx(z.statistic, rel=1e-6)
    edges = np.quantile(baseline.statistics["brightness"], np.arange(1, 10) / 10)
    tenths = [np.bincount(np.searchsorted(edges, side.statistics["brightness"])) for side in (window, baseline)]
    assert found["brightness"].psi == pytest.approx(population_stability_index(*tenths), abs=0.005)


def test_softmax_test_finds_a_change_of_second_choices():
    rng = np.random.default_rng(22)
    odds = rng.dirichlet([8, 3, 1], 3000)
    odds = -np.sort(-odds, axis=1)  # always 'bird', then 'cat', then 'dog'
    baseline = Baseline(CLASSES, odds[:2000], np.zeros(2000, int))
    swapped = odds[2000:, [0, 2, 1]].astype(np.float16)
    columns = np.zeros(1000), np.zeros(1000, int), swapped[:, 0].astype(np.float32), np.full(1000, -1)
    window = Predictions(CLASSES, *columns, probabilities=swapped)
    found = by_metric(window, baseline)
    assert [name for name, result in found.items() if result.drifted] == ["softmax_distribution"]
    assert found["softmax_distribution"].detail.startswith(("most of all 'cat': above", "most of all 'dog': above"))


def test_images_in_bursts_are_no_drift():
    rng = np.random.default_rng(23)
    baseline = baseline_of(5000, rng)
    bins = ReferenceBins(CLASSES, baseline)
    wrong = each_counted = 0
    for _ in range(30):
        images = window_of(50, rng, labelled=0.0)
        rows = np.repeat(np.arange(50), 20)  # 20 near-identical images of each
        burst = Predictions(CLASSES, np.arange(1000.0), images.predicted[rows], images.confidence[rows],
                       images.labels[rows], probabilities=images.probabilities[rows])  # fmt: skip
        shuffled = rng.permutation(1000)
        mixed = replace(burst, predicted=burst.predicted[shuffled], confidence=burst.confidence[shuffled],
                        probabilities=burst.probabilities[shuffled])  # fmt: skip
        results = drift.run_tests(bins.count(burst), bins, Thresholds(), "short")
        wrong += any(result.drifted for result in results)
        assert results[0].n == 1000
        assert results[0].n_effective < 60
        each_counted += any(
            result.drifted for result in drift.run_tests(bins.count(mixed), bins, Thresholds(), "short")
        )
    assert wrong <= 3
    assert each_counted >= 28


def test_windows_in_other_bins_are_refused():
    rng = np.random.default_rng(26)
    first, second = (ReferenceBins(CLASSES, baseline_of(500, rng)) for _ in range(2))
    with pytest.raises(SettingsError, match="counted in other bins"):
        drift.run_tests(first.count(window_of(200, rng)), second, Thresholds(), "short")


def test_missing_quantities_are_insufficient_data():
    rng = np.random.default_rng(25)
    window, baseline = window_of(1000, rng, strength=1.0), baseline_of(2000, rng)
    without = replace(window, statistics={}, probabilities=np.full((1000, 3), np.nan, np.float16))
    full, found = by_metric(window, baseline), by_metric(without, baseline)
    assert (found["brightness"].status, found["brightness"].n) == ("insufficient_data", 0)
    assert found["softmax_distribution"].status == "insufficient_data"
    assert found["confidence_distribution"].effect == full["confidence_distribution"].effect


def test_a_weaker_model_drifts_in_confidence_and_accuracy():
    rng = np.random.default_rng(1)
    found = statuses(window_of(1000, rng, strength=1.0), baseline_of(2000, rng))
    assert found["confidence_distribution"] == found["mean_confidence"] == found["accuracy"] == "drift"
    assert found["prediction_distribution"] == found["brightness"] == "no_drift"


def test_a_change_of_classes_is_prediction_drift():
    rng = np.random.default_rng(2)
    found = by_metric(window_of(1000, rng, prior=[0.7, 0.2, 0.1]), baseline_of(2000, rng))
    shares = found["prediction_distribution"]
    assert (shares.status, shares.effect) == ("drift", pytest.approx(0.36, abs=0.06))
    assert shares.detail.startswith("'bird' 3")
    assert found["accuracy"].status == "no_drift"


def test_darker_images_are_input_drift_only():
    rng = np.random.default_rng(3)
    results = results_of(window_of(1000, rng, brightness=0.4), baseline_of(2000, rng))
    report = DriftReport("1", 0.05, tuple(results))
    assert (report.drifted, report.input_drifted) == (False, True)


def test_a_significant_change_below_the_minimum_is_no_drift():
    rng = np.random.default_rng(4)
    found = by_metric(window_of(60_000, rng, prior=[0.36, 0.33, 0.31]), baseline_of(60_000, rng), name="long")
    shares = found["prediction_distribution"]
    assert shares.corrected_p_value < 1e-6
    assert shares.effect < shares.minimum_effect
    assert shares.status == "no_drift"


@pytest.mark.parametrize(("n", "size", "status"), [(99, 2000, "insufficient_data"), (100, 2000, "no_drift")])
def test_too_few_predictions_are_insufficient_data(n, size, status):
    rng = np.random.default_rng(5)
    found = statuses(window_of(n, rng), baseline_of(size, rng))
    assert found["confidence_distribution"] == found["brightness"] == status


def test_without_baseline_or_labels_data_is_insufficient():
    rng = np.random.default_rng(6)
    window = window_of(1000, rng, labelled=0.0)
    assert set(statuses(window, None).values()) == {"insufficient_data"}
    assert statuses(window, baseline_of(2000, rng))["accuracy"] == "insufficient_data"
    assert DriftReport("1", 0.05, tuple(results_of(window, None))).drifted is None


def test_families_are_corrected_apart():
    rng = np.random.default_rng(7)
    results = results_of(window_of(1000, rng), baseline_of(2000, rng))
    model = [result for result in results if result.family == "model"]
    weighed = [r.p_value * 8 / drift.WEIGHTS.get(r.metric, 1) for r in model]  # weights of 4 and four times 1
    assert min(r.corrected_p_value for r in model) == pytest.approx(min(1, *weighed))
    (alone,) = [result for result in results if result.family == "input"]
    assert alone.corrected_p_value == alone.p_value
    assert correct_and_decide([], 0.05) == []


def test_a_report_as_json_text_and_html():
    rng = np.random.default_rng(8)
    results = results_of(window_of(1000, rng, strength=1.0, labelled=0.0), baseline_of(2000, rng))
    report = DriftReport("<3>", 0.05, tuple(results))
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert again["drifted"] is True
    assert [result["status"] for result in again["results"]] == [result.status for result in results]
    text = str(report)
    assert text.startswith("Model version <3>: 3 of 5 tests found drift; 1 wait for more data.")
    assert "input: brightness" in text
    assert "&lt;3&gt;" in report._repr_html_()
    assert str(DriftReport(None, 0.05, ())).startswith("No predictions have been logged yet.")
