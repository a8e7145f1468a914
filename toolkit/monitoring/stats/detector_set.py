"""The detectors of one model version, and the budget of false alarms that they share."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.baseline import Baseline
from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.stats.e_detectors import (
    Alarm,
    ClassDetector,
    Detector,
    ErrorDetector,
    RankDetector,
    uniform_ties,
)

ACCURACY, CONFIDENCE, PREDICTIONS = "accuracy", "confidence_distribution", "prediction_distribution"
SAMPLED = "sampled"  # name of the detector of accuracy by labels of samples drawn at random
DETECTED_METRICS = (ACCURACY, CONFIDENCE, PREDICTIONS)


class DetectorAlarm(NamedTuple):
    """An alarm and its metric."""

    metric: str
    alarm: Alarm


def _kinds(predicted: NDArray[np.integer[Any]], labels: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    return (labels.astype(np.int64) << 32) + predicted


class DetectorSet:
    """Detectors of accuracy (by labels), confidence and predicted classes (without labels) with one budget.

    Accuracy has two detectors, each with half of its share: one for all labels, one for those of samples drawn
    at random, which would be lost among many others.
    The budget is false alarms of all three together per million predictions, for accuracy per million labels. Without
    a baseline there are no detectors.

    Examples
    --------
    >>> sure = Baseline(("cat", "dog"), np.tile([[0.9, 0.1], [0.2, 0.8]], (500, 1)), np.tile([0, 1], 500))
    >>> detectors = DetectorSet(sure, false_alarms_per_million=1000)
    >>> cats = Predictions(("cat", "dog"), np.arange(60.0), np.zeros(60, int), np.full(60, np.float16(0.9), np.float32),
    ...               np.full(60, -1), sequence=np.arange(60))
    >>> {found.metric: found.alarm.change for found in detectors.update(cats)}
    {'confidence_distribution': 'higher', 'prediction_distribution': 'more frequent'}
    """

    def __init__(self, baseline: Baseline | None, false_alarms_per_million: float) -> None:
        self._detectors: dict[str, Detector] = {}
        if baseline is None or not baseline.size:
            return
        each = 1e6 / (false_alarms_per_million * (1 / len(DETECTED_METRICS)))  # predictions to a false alarm
        predicted = baseline.predicted
        kinds, numbers = np.unique(_kinds(predicted, baseline.labels), return_counts=True)
        frequencies = dict(zip(kinds.tolist(), numbers.tolist(), strict=True))
        right = int((predicted == baseline.labels).sum())
        self._errors, self._sampled = (ErrorDetector(right, baseline.size, 2 * each, frequencies) for _ in range(2))
        self._ranks = RankDetector(baseline.confidence, each)
        self._detectors = {ACCURACY: self._errors, SAMPLED: self._sampled, CONFIDENCE: self._ranks}
        if len(baseline.classes) > 1:
            self._classes = ClassDetector(np.bincount(predicted, minlength=len(baseline.classes)), each)
            self._detectors[PREDICTIONS] = self._classes

    @property
    def evidence(self) -> dict[str, float | None]:
        """Evidence of each metric's detector in [0, 1], where 1 is an alarm; None without a baseline."""
        found: dict[str, float | None] = dict.fromkeys(DETECTED_METRICS)
        for name, detector in self._detectors.items():
            metric = ACCURACY if name == SAMPLED else name
            found[metric] = max(found[metric] or 0.0, detector.evidence)
        return found

    def update(self, rows: Predictions) -> list[DetectorAlarm]:
        """Take in predictions, oldest first; their sequence numbers break ties."""
        found = []
        if CONFIDENCE in self._detectors:
            ranked = self._ranks.update(rows.confidence, uniform_ties(rows.sequence))
            found += [DetectorAlarm(CONFIDENCE, alarm) for alarm in ranked]
        if PREDICTIONS in self._detectors:
            found += [DetectorAlarm(PREDICTIONS, alarm) for alarm in self._classes.update(rows.predicted)]
        return found

    def update_labels(
        self,
        predicted: NDArray[np.integer[Any]],
        labels: NDArray[np.integer[Any]],
        drawn: NDArray[np.bool_] | None = None,
        first: NDArray[np.bool_] | None = None,
    ) -> list[DetectorAlarm]:
        """Take in labelled predictions in the order in which their labels came.

        Parameters
        ----------
        predicted, labels
            (n,), index of the predicted and of the true class.
        drawn
            (n,), whether the label is of a sample drawn at random; False when None.
        first
            (n,), whether this is the first label of its prediction, True when None; another one counts only in the
            drawn sample.
        """
        if ACCURACY not in self._detectors:
            return []
        right, kinds = predicted == labels, _kinds(predicted, labels)
        parts = [(self._errors, np.flatnonzero(first) if first is not None else np.arange(len(right)))]
        if drawn is not None and drawn.any():
            parts.append((self._sampled, np.flatnonzero(drawn)))
        return [
            DetectorAlarm(ACCURACY, replace(alarm, index=int(part[alarm.index])))
            for detector, part in parts
            for alarm in detector.update(right[part], kinds[part])
        ]

    def state(self) -> dict[str, Any]:
        """State of all detectors, ready for JSON."""
        return {name: detector.state() for name, detector in self._detectors.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of ``state()``; that of a detector with other bets is ignored."""
        for name in self._detectors.keys() & state.keys():
            self._detectors[name].restore(state[name])
