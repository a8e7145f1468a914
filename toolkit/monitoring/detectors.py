"""The alarms of one model version: what each listens to, and the budget that they share."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toolkit.baseline import Baseline
from toolkit.monitoring.sequential import (
    Alarm,
    ClassDetector,
    Detector,
    ErrorDetector,
    RankDetector,
    run_length,
    tie_breakers,
)
from toolkit.monitoring.windows import Window

ACCURACY, CONFIDENCE, PREDICTIONS = "accuracy", "confidence_distribution", "prediction_distribution"
LISTENED_TO = (ACCURACY, CONFIDENCE, PREDICTIONS)


class Found(NamedTuple):
    """An alarm, and the metric that it is about."""

    metric: str
    alarm: Alarm


class Detectors:
    """Three sequential alarms with one budget: accuracy by labels, confidence and predicted classes without.

    Parameters
    ----------
    baseline
        What the version did on pictures it had never seen; without one nothing can be told apart from it.
    false_alarms_per_million
        Of all three together, in predictions; the alarm that needs labels counts labels.

    Examples
    --------
    >>> sure = Baseline(("cat", "dog"), np.tile([[0.9, 0.1], [0.2, 0.8]], (500, 1)), np.tile([0, 1], 500))
    >>> detectors = Detectors(sure, false_alarms_per_million=1000)
    >>> cats = Window(("cat", "dog"), np.arange(60.0), np.zeros(60, int), np.full(60, np.float16(0.9), np.float32),
    ...               np.full(60, -1), sequence=np.arange(60))
    >>> {found.metric: found.alarm.change for found in detectors.hear(cats)}
    {'confidence_distribution': 'higher', 'prediction_distribution': 'more frequent'}
    """

    def __init__(self, baseline: Baseline | None, false_alarms_per_million: float) -> None:
        self._by_metric: dict[str, Detector] = {}
        if baseline is None or not baseline.size:
            return
        each = run_length(false_alarms_per_million, share=1 / len(LISTENED_TO))
        predicted = baseline.predicted
        self._errors = ErrorDetector(int((predicted == baseline.labels).sum()), baseline.size, each)
        self._ranks = RankDetector(baseline.confidence, each)
        self._by_metric = {ACCURACY: self._errors, CONFIDENCE: self._ranks}
        if len(baseline.classes) > 1:
            self._classes = ClassDetector(np.bincount(predicted, minlength=len(baseline.classes)), each)
            self._by_metric[PREDICTIONS] = self._classes

    @property
    def evidence(self) -> dict[str, float | None]:
        """How far each has come on its way to an alarm, in [0, 1]; None without a baseline."""
        return {
            metric: detector.evidence if (detector := self._by_metric.get(metric)) else None for metric in LISTENED_TO
        }

    def hear(self, rows: Window) -> list[Found]:
        """Take in predictions, oldest first, with the sequence numbers that break their ties."""
        found = []
        if CONFIDENCE in self._by_metric:
            ranked = self._ranks.update(rows.confidence, tie_breakers(rows.sequence))
            found += [Found(CONFIDENCE, alarm) for alarm in ranked]
        if PREDICTIONS in self._by_metric:
            found += [Found(PREDICTIONS, alarm) for alarm in self._classes.update(rows.predicted)]
        return found

    def hear_labels(self, right: NDArray[np.bool_]) -> list[Found]:
        """Take in whether predictions were right, in the order in which that was told."""
        if ACCURACY not in self._by_metric:
            return []
        return [Found(ACCURACY, alarm) for alarm in self._errors.update(right)]

    def state(self) -> dict[str, str]:
        """The worth of all bets, by metric, to go on with in another process."""
        return {metric: detector.state() for metric, detector in self._by_metric.items()}

    def restore(self, state: Mapping[str, str]) -> None:
        """Go on from a state; one of other bets, as after another reference, is left out."""
        for metric in self._by_metric.keys() & state.keys():
            self._by_metric[metric].restore(state[metric])
