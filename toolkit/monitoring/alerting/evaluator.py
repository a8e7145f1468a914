"""Alerts of one model version as a function of its predictions and labels in their order, and of nothing else."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from toolkit.monitoring.alerting.findings import EVALUATION_INTERVALS, NON_FINITE, Finding, evaluate_window
from toolkit.monitoring.alerting.state import ActiveAlert, AlertState, AlertTransition
from toolkit.monitoring.base.predictions import NO_CLASS, Predictions
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.stats.detector_set import ACCURACY, DetectorSet
from toolkit.monitoring.stats.e_detectors import Alarm
from toolkit.monitoring.store.events import Events
from toolkit.monitoring.store.labels import LabelRows
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.monitoring.windows.rolling import RollingWindows
from toolkit.monitoring.windows.summary import WindowSummary

EVALUATION_INTERVAL = min(EVALUATION_INTERVALS.values())  # predictions and labels between two evaluations

Key = tuple[str, str]  # metric and window


class Transition(NamedTuple):
    """A change of an alert, and its place in the stream.

    Parameters
    ----------
    position, n
        Predictions and labels until then, and predictions alone.
    sequence, label
        Number of the last prediction and of the last label in the store; 0 for none.
    time
        That of the last of both, in seconds since 1970.
    finding, change
        Why, and how the alert changes.
    """

    position: int
    n: int
    sequence: int
    label: int
    time: float
    finding: Finding
    change: AlertTransition

    @property
    def key(self) -> Key:
        """Metric and window of the alert."""
        return self.finding.metric, self.finding.window


class _PendingAlarm(NamedTuple):
    """An alarm of a detector after the first ``end`` of the events at hand."""

    end: int
    metric: str
    alarm: Alarm


class AlertEvaluator:
    """Windows, detectors and alerts of one model version, advanced prediction by prediction and label by label.

    The short window is evaluated after every 100 predictions and labels, the medium one after every 1,000, and both
    at once when a detector raises the first alarm of its metric. The result does not depend on how the stream is cut
    into calls, nor on a state that is saved and restored on the way: evaluators of the same events come to the same
    alerts in any process.

    Parameters
    ----------
    before
        Counts of still older predictions, for the ``long`` window; none when None.
    repeat_interval
        Seconds, by the times of predictions and labels, between two reminders of an alert; none by default.

    Examples
    --------
    >>> from toolkit.bundle.baseline import Baseline
    >>> sure = Baseline(("cat", "dog"), np.tile([[0.9, 0.1], [0.2, 0.8]], (500, 1)), np.tile([0, 1], 500))
    >>> evaluator = AlertEvaluator(ReferenceBins(sure.classes, sure), Thresholds(max_false_alarms_per_million=100))
    >>> sure = np.full(300, np.float16(0.9), np.float32)
    >>> cats = Predictions(("cat", "dog"), np.arange(300.0), np.zeros(300, int), sure, np.full(300, -1),
    ...                    sequence=np.arange(300))
    >>> for transition in evaluator.process(Events(cats, LabelRows.empty(), np.zeros(0, np.int64))):
    ...     print(transition.n, transition.change.event, transition.change.level, *transition.key)
    24 raised warning prediction_distribution short
    55 raised warning confidence_distribution short
    """

    def __init__(
        self,
        bins: ReferenceBins,
        thresholds: Thresholds,
        *,
        before: WindowSummary | None = None,
        repeat_interval: float = math.inf,
    ) -> None:
        self.position = 0  # predictions and labels processed
        self.sequence = self.label = 0  # numbers of the last prediction and of the last label
        self.detectors = DetectorSet(bins.baseline, thresholds.max_false_alarms_per_million)
        self._bins = bins
        self._thresholds = thresholds
        self._repeat_interval = repeat_interval
        self._rolling = RollingWindows(bins, before)
        self._states: dict[Key, AlertState] = {}
        self._active: dict[Key, ActiveAlert] = {}
        self._alarms: dict[str, Alarm] = {}  # that have fired since the last evaluation

    def counts(self, window: str) -> WindowSummary:
        """Counts of the ``short``, ``medium`` or ``long`` window."""
        return self._rolling.counts(window)

    def process(self, events: Events, counted: np.ndarray[Any, np.dtype[np.bool_]] | None = None) -> list[Transition]:
        """Process the predictions and labels that follow; return the changes of alerts.

        ``counted`` (m,) says whether each label is still to be counted in the windows: all of them when None.
        """
        rows, labels, due = events
        ends = np.arange(1, rows.n + 1) + np.searchsorted(due, np.arange(rows.n), side="right")
        pending = self._fired(rows, labels, ends, due)
        plain = rows.non_finite == 0
        counted = np.full(labels.n, True) if counted is None else counted
        transitions: list[Transition] = []
        done = row = label = 0
        while done < rows.n + labels.n:
            cut = self._next_cut(done, rows.n + labels.n, pending, plain)
            next_row = int(np.searchsorted(ends, cut, side="right"))
            next_label = cut - next_row
            self.add(rows.slice(row, next_row))
            self.add_labels(labels.take(np.flatnonzero(counted[label:next_label]) + label))
            if next_label > label:
                self.label = int(labels.number[next_label - 1])
            is_row = next_row > row and ends[next_row - 1] == cut
            now = float(rows.time[next_row - 1] if is_row else labels.time[next_label - 1])
            due_now = (self.position + cut - done) % EVALUATION_INTERVAL == 0 or any(
                fired.end == cut and self._is_first(fired.metric) for fired in pending
            )
            self._alarms |= {fired.metric: fired.alarm for fired in pending if fired.end <= cut}
            pending = [fired for fired in pending if fired.end > cut]
            self.position += cut - done
            done, row, label = cut, next_row, next_label
            if due_now:
                transitions += self._evaluate(now)
        return transitions

    def add(self, rows: Predictions) -> None:
        """Count predictions with their labels without evaluating anything: those before a restored state."""
        if rows.n:
            self._rolling.add(rows)
            self.sequence = int(rows.sequence[-1])

    def add_labels(self, labels: LabelRows) -> None:
        """Count labels, without evaluating anything."""
        if labels.n:
            self._rolling.label(
                labels.sequence,
                old=labels.before,
                new=labels.labels,
                predicted=labels.predicted,
                confidence=labels.confidence,
                drawn_before=labels.drawn_before,
                drawn=labels.drawn,
            )

    def _fired(self, rows: Predictions, labels: LabelRows, ends: Any, due: Any) -> list[_PendingAlarm]:
        """The alarms of these events in their order: detectors do not depend on evaluations."""
        fired = [_PendingAlarm(int(ends[alarm.index]), metric, alarm) for metric, alarm in self.detectors.update(rows)]
        # A corrected label counts once, and a label that joins a drawn sample once more, as one of the sample.
        known = labels.predicted != NO_CLASS
        first, sampled = known & (labels.before == NO_CLASS), known & labels.drawn & ~labels.drawn_before
        used = np.flatnonzero(first | sampled)
        columns = labels.predicted[used], labels.labels[used], sampled[used], first[used]
        fired += [
            _PendingAlarm(int(due[used[alarm.index]] + used[alarm.index]) + 1, metric, alarm)
            for metric, alarm in self.detectors.update_labels(*columns)
        ]
        return sorted(fired, key=lambda entry: (entry.end, entry.metric != ACCURACY))

    def _next_cut(self, done: int, total: int, pending: list[_PendingAlarm], plain: bool) -> int:
        """The number of events after which the next evaluation is due."""
        first = next((fired.end for fired in pending if self._is_first(fired.metric)), total)
        if plain and self._nothing_to_do() and not any(self.counts(name).non_finite for name in EVALUATION_INTERVALS):
            return min(first, total)
        return min(first, total, done + EVALUATION_INTERVAL - self.position % EVALUATION_INTERVAL)

    def _is_first(self, metric: str) -> bool:
        """Whether an alarm of this metric is the first for one of the windows."""
        return not all(self._states.get((metric, window), AlertState()).evidence for window in EVALUATION_INTERVALS)

    def _nothing_to_do(self) -> bool:
        """Whether an evaluation would change nothing, since an alert begins with an alarm."""
        if self._alarms or self._active or any(state.evidence for state in self._states.values()):
            return False
        return all(
            counts.non_finite <= self._thresholds.warning * counts.n
            for counts in (self.counts(name) for name in EVALUATION_INTERVALS)
        )

    def _evaluate(self, now: float) -> list[Transition]:
        if self._nothing_to_do():
            return []
        alarms, self._alarms = self._alarms, {}
        recent: dict[str, Finding] = {}  # of the short window
        transitions = []
        for window, size in EVALUATION_INTERVALS.items():
            intervals = int(self.position % size == 0)
            if not (intervals or alarms):
                continue
            for found in evaluate_window(self.counts(window), self._bins, self._thresholds, window, alarms):
                short = recent.setdefault(found.metric, found)
                inhibiting = self._active.get((found.metric, "short"))
                finding = found if found is short else found.inhibited(short, inhibiting)
                change = self._advance(finding, now, finding.metric in alarms, intervals)
                if change is not None:
                    place = self.position, self.counts("long").n, self.sequence, self.label
                    transitions.append(Transition(*place, now, finding, change))
        return transitions

    def _advance(self, finding: Finding, now: float, alarm: bool, intervals: int) -> AlertTransition | None:
        """Advance the state of one alert."""
        key = finding.metric, finding.window
        active = self._active.get(key)
        # A healthy model gives no NaN at all: here the finding itself is the evidence.
        alarm = alarm or (finding.metric == NON_FINITE and finding.level != "ok")
        self._states[key], change = self._states.get(key, AlertState()).advance(
            finding, active, now, alarm=alarm, intervals=intervals, repeat_interval=self._repeat_interval
        )
        if change is None:
            return None
        after = change.applied(active, now)
        if after is not None:
            self._active[key] = after
            return change
        del self._active[key]
        if finding.window == "short":  # a longer window, which still holds the fault, must not raise it again
            for window in EVALUATION_INTERVALS:
                if (finding.metric, window) not in self._active:
                    self._states.pop((finding.metric, window), None)
        return change

    def state(self) -> dict[str, Any]:
        """All that further alerts depend on, except the windows; ready for JSON."""
        return {
            "detectors": self.detectors.state(),
            "alarms": {metric: asdict(alarm) for metric, alarm in self._alarms.items()},
            "states": [[*key, asdict(state)] for key, state in self._states.items()],
            "active": [[*key, asdict(active)] for key, active in self._active.items()],
        }

    def restore(self, position: int, label: int, state: Mapping[str, Any]) -> None:
        """Resume from a state and the last label before it, once the predictions before it were added."""
        self.position, self.label = position, label
        self.detectors.restore(state["detectors"])
        self._alarms = {metric: Alarm(**alarm) for metric, alarm in state["alarms"].items()}
        self._states = {
            (metric, window): AlertState(**saved | {"consecutive": tuple(saved["consecutive"])})
            for metric, window, saved in state["states"]
        }
        self._active = {(metric, window): ActiveAlert(**entries) for metric, window, entries in state["active"]}
