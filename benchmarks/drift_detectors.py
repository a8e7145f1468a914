"""Monitors of a model: this project, libraries, and plain tests.

``DriftTests`` test one window for a change; ``by_labels`` and ``by_answers`` give detectors for a stream.
One that never alarms and one that always does are among them.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pandas.core.dtypes.common as pandas_types
from numpy.typing import NDArray
from scipy import stats

from toolkit.bundle.baseline import Baseline
from toolkit.errors import SettingsError
from toolkit.monitoring.base.predictions import NO_CLASS, Predictions
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.stats.detector_set import DetectorSet
from toolkit.monitoring.stats.e_detectors import ErrorDetector
from toolkit.monitoring.windows.drift import DriftResult, run_tests
from toolkit.monitoring.windows.reference import ReferenceBins

os.environ |= {"DO_NOT_TRACK": "1", "NML_DISABLE_USAGE_LOGGING": "1"}  # Evidently's word for it, and NannyML's
# Evidently 0.7 asks pandas 3 for a name that is gone; only its tests of column types would use it.
pandas_types.infer_dtype_from_object = type

try:
    from evidently import DataDefinition, Dataset, Report
    from evidently.legacy.calculations.stattests import get_stattest
    from evidently.legacy.core import ColumnType
    from evidently.presets import DataDriftPreset
    from nannyml import CBPE, UnivariateDriftCalculator
    from river import drift
except ImportError as error:
    raise SettingsError(f"{error}; run pip install -r requirements-bench.txt") from None

ALPHA = 0.05
ANY_SIZE = Thresholds(minimum_predictions=2)
PREDICTED = "predicted"  # the one column of a table that is no number
CHUNK = 1_000  # predictions that NannyML takes together

OURS, BBSDS, EVIDENTLY = "ours", "BBSDs", "Evidently, any column"
OURS_ANY_SIZE, OURS_ANY_EFFECT = "ours, from 2 predictions on", "ours, from 2 and of any effect"
EVIDENTLY_HALF = "Evidently, half of the columns"
NEVER, ALWAYS = "never", "always"

Whole = NDArray[np.int64]
Flags = NDArray[np.bool_]
ByLabels = Callable[[Flags], Iterator[int]]  # takes whether answers were right, gives the places of alarms
ByAnswers = Callable[[Predictions], Iterator[int]]


# One window


class DriftTests:
    """The drift tests of one window of answers, each at the error rate of 0.05 that it promises."""

    def __init__(self, baseline: Baseline) -> None:
        self._bins = ReferenceBins(baseline.classes, baseline)
        self._columns = np.sort(baseline.probabilities.astype(np.float64), axis=0)  # (m, K)
        self._confidence = np.sort(baseline.confidence)
        self._classes = np.bincount(baseline.predicted, minlength=len(baseline.classes))
        self._frame = as_frame(baseline.probabilities)

    def results(self, window: Predictions, evidently: bool = True) -> dict[str, bool]:
        """Whether the window has drifted, by the name of each test."""
        counts = self._bins.count(replace(window, labels=np.full(window.n, NO_CLASS)))
        usual, free = (run_tests(counts, self._bins, limits, "short") for limits in (Thresholds(), ANY_SIZE))
        gap, share, z = plain_tests(window, self._confidence, self._classes)
        results = {
            OURS: any(result.drifted for result in usual),
            OURS_ANY_SIZE: any(result.drifted for result in free),
            OURS_ANY_EFFECT: any(map(_certain, free)),
            BBSDS: bbsds(window, self._columns) < ALPHA,
            "chi-square of classes": share < ALPHA,
            "KS of confidence": gap < ALPHA,
            "KS, chi-square and z at 0.05": min(gap, share, z) < ALPHA,
        }
        if evidently:
            columns = evidently_columns(as_frame(window.probabilities), self._frame)
            results |= {EVIDENTLY: any(columns), EVIDENTLY_HALF: float(np.mean(columns)) >= 0.5}
        return results | {NEVER: False, ALWAYS: True}


def _certain(result: DriftResult) -> bool:
    return result.corrected_p_value is not None and result.corrected_p_value < ALPHA


def ks(window: NDArray[Any], reference: NDArray[Any]) -> float:
    """The p-value of scipy's two-sample test in its limit form, as alibi-detect takes it."""
    return float(stats.ks_2samp(window, reference, method="asymp").pvalue)


def bbsds(window: Predictions, reference: NDArray[np.float64]) -> float:
    """Black-box shift detection on softmax, a KS test for each class and Bonferroni: alibi-detect's KSDrift.

    References
    ----------
    Lipton, Z. C., Wang, Y.-X. and Smola, A. (2018). Detecting and correcting for label shift with black
    box predictors. ICML.
    """
    columns = zip(window.probabilities.astype(np.float64).T, reference.T, strict=True)
    return len(reference.T) * min(ks(now, usual) for now, usual in columns)


def plain_tests(window: Predictions, confidence: NDArray[Any], classes: Whole) -> tuple[float, float, float]:
    """The p-values of three tests by scipy, as people write them: KS, chi-square of the classes, z."""
    counts = np.stack([window.counts, classes])
    share = stats.chi2_contingency(counts[:, counts.sum(axis=0) > 0]).pvalue
    z = stats.ttest_ind(window.confidence, confidence, equal_var=False).pvalue
    return ks(window.confidence, confidence), float(share), float(z)


def as_frame(probabilities: NDArray[Any], labels: Whole | None = None) -> pd.DataFrame:
    """K probabilities, the confidence and the predicted class, as Evidently and NannyML like them."""
    frame = pd.DataFrame(probabilities.astype(np.float64)).rename(columns="p{}".format)
    frame["confidence"] = frame.max(axis=1)
    frame[PREDICTED] = probabilities.argmax(axis=1).astype(str)
    return frame if labels is None else frame.assign(truth=labels.astype(str))


def evidently_columns(window: pd.DataFrame, reference: pd.DataFrame) -> list[bool]:
    """Whether each column drifts by the test and the threshold that Evidently picks for it.

    Its report decides by these functions too, but also draws, which takes many times as long.
    """
    drifted = []
    for name in window:
        kind = ColumnType.Categorical if name == PREDICTED else ColumnType.Numerical
        test = get_stattest(reference[name], window[name], kind, None)
        drifted.append(bool(test(reference[name], window[name], kind, None).drifted))
    return drifted


def evidently_report(window: pd.DataFrame, reference: pd.DataFrame) -> object:
    """Evidently's preset for drift."""
    numbers = [name for name in window if name != PREDICTED]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=[PREDICTED])
    now, usual = (Dataset.from_pandas(frame, definition) for frame in (window, reference))
    return Report([DataDriftPreset()]).run(now, usual).dict()


def nannyml_drift(reference: pd.DataFrame) -> Callable[[pd.DataFrame], object]:
    """NannyML's drift of each column in chunks of a thousand, fitted to the reference."""
    calculator = UnivariateDriftCalculator(
        column_names=list(reference), treat_as_categorical=[PREDICTED], chunk_size=CHUNK
    ).fit(reference)
    return lambda window: calculator.calculate(window).to_df()


def cbpe(baseline: Baseline) -> Callable[[Predictions], float]:
    """NannyML's estimate of accuracy without labels, of one chunk."""
    estimator = CBPE(
        y_pred_proba={str(k): f"p{k}" for k in range(len(baseline.classes))},
        y_pred=PREDICTED,
        y_true="truth",
        problem_type="classification_multiclass",
        metrics=["accuracy"],
        chunk_size=CHUNK,
    ).fit(as_frame(baseline.probabilities, baseline.labels))

    def estimate(window: Predictions) -> float:
        found = estimator.estimate(as_frame(window.probabilities)).filter(period="analysis").to_df()
        return float(found["accuracy", "value"].iloc[0])

    return estimate


# A stream


def by_labels(right: int, n: int) -> dict[str, ByLabels]:
    """Detectors of wrong answers, for a model that was right for so many of n images."""
    return {
        OURS: lambda right_answers: (
            alarm.index for alarm in ErrorDetector(right, n, run_length=1e6).update(right_answers)
        ),
        "ADWIN": lambda right_answers: _river(drift.ADWIN(), ~right_answers),
        "HDDM_A": lambda right_answers: _river(drift.binary.HDDMA(), ~right_answers),
        "HDDM_W": lambda right_answers: _river(drift.binary.HDDMW(), ~right_answers),
        "Page-Hinkley": lambda right_answers: _river(drift.PageHinkley(), ~right_answers),
        "DDM": lambda right_answers: _river(drift.binary.DDM(), ~right_answers),
        NEVER: lambda _: iter(()),
        ALWAYS: lambda right_answers: iter(range(len(right_answers))),
    }


def by_answers(baseline: Baseline, per_million: float) -> dict[str, ByAnswers]:
    """Detectors of changed answers without labels; those with a budget of false alarms get this one."""
    confidence = np.sort(baseline.confidence)
    return {
        OURS: lambda window: iter(
            sorted(found.alarm.index for found in DetectorSet(baseline, per_million).update(window))
        ),
        "KS of each 1,000": partial(_tumbling, confidence, per_million),
        "ADWIN": lambda window: _river(drift.ADWIN(), window.confidence),
        "KSWIN": lambda window: _river(drift.KSWIN(seed=0), window.confidence),
        NEVER: lambda _: iter(()),
        ALWAYS: lambda window: iter(range(window.n)),
    }


def repeated_tests(baseline: Baseline, window: Predictions, size: int = 1_000, step: int = 100) -> Iterator[int]:
    """Three tests at 0.05 on the last thousand predictions, after every hundred."""
    confidence, classes = np.sort(baseline.confidence), np.bincount(baseline.predicted, minlength=len(baseline.classes))
    for end in range(size, window.n + 1, step):
        if min(plain_tests(window.slice(end - size, end), confidence, classes)) < ALPHA:
            yield end - 1


def _river(detector: Any, values: NDArray[Any]) -> Iterator[int]:
    """One of river's detectors with its defaults; it restarts after an alarm."""
    for place, value in enumerate(values.tolist()):
        detector.update(value)
        if detector.drift_detected:
            yield place


def _tumbling(reference: NDArray[Any], per_million: float, window: Predictions, size: int = 1_000) -> Iterator[int]:
    """A KS test of each block of predictions, as strict as the budget asks for."""
    for end in range(size, window.n + 1, size):
        if ks(window.confidence[end - size : end], reference) < per_million * size / 1e6:
            yield end - 1
