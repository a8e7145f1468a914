"""What becomes of the alerts of one model version: a function of its predictions and labels in their order, alone."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from toolkit.monitoring.alerting.findings import EVALUATION_INTERVALS, NON_FINITE, Finding, evaluate_window
from toolkit.monitoring.alerting.state import ActiveAlert, AlertState, AlertTransition, inhibit
from toolkit.monitoring.base.predictions import NO_CLASS, Predictions
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.stats.detector_set import ACCURACY, DETECTED_METRICS, DetectorSet, labelled_outcomes
from toolkit.monitoring.stats.e_detectors import Alarm
from toolkit.monitoring.store.events import Events
from toolkit.monitoring.store.labels import LabelRows
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.monitoring.windows.rolling import RollingWindows
from toolkit.monitoring.windows.summary import WindowSummary

EVALUATION_INTERVAL = min(EVALUATION_INTERVALS.values())  # predictions and labels between two evaluations

Key = tuple[str, str]  # metric and window


class Transition(NamedTuple):
    """An alert that changes.

    ``position`` counts the predictions and labels until then, ``n`` the predictions alone; ``sequence`` is the
    number of the last prediction in the store and ``label`` that of the last label, 0 for none; ``time`` is that of
    the last of all, in seconds since 1970.
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
        """Which alert it is."""
        return self.finding.metric, self.finding.window


class _PendingAlarm(NamedTuple):
    """An alarm of a detector, after so many of the events at hand."""

    end: int
    metric: str
    alarm: Alarm


class AlertEvaluator:
    """Windows, detectors and alerts of one model version, advanced by one prediction or label after the other.

    The short window is evaluated after every 100 predictions and labels, the medium one after every
    1,000, and both at once when a detector raises the first alarm of its metric. Where a caller cuts the
    stream changes nothing, and neither does a state that is saved and restored on the way: two evaluators
    that took the same events come to the same alerts, whichever process they are in.

    Parameters
    ----------
    yardstick
        The bins to count in, and the reference.
    limits
        What counts as too much, and the budget of false alarms.
    before
        Counts of still older predictions, so that the window of all holds them too.
    cool_down
        Seconds, by the times of predictions and labels, between two reminders of an alert; none by default.

    Examples
    --------
    >>> from toolkit.bundle.baseline import Baseline
    >>> sure = Baseline(("cat", "dog"), np.tile([[0.9, 0.1], [0.2, 0.8]], (500, 1)), np.tile([0, 1], 500))
    >>> evaluator = Evaluator(Yardstick(sure.classes, sure), Limits(max_false_alarms_per_million=100))
    >>> cats = Window(("cat", "dog"), np.arange(300.0), np.zeros(300, int), np.full(300, np.float16(0.9), np.float32),
    ...               np.full(300, -1), sequence=np.arange(300))
    >>> for change in evaluator.take(Events(cats, Feedback.empty(), np.zeros(0, np.int64))):
    ...     print(change.n, change.change.event, change.change.level, *change.key)
    24 raised warning prediction_distribution short
    55 raised warning confidence_distribution short
    """

    def __init__(
        self,
        yardstick: ReferenceBins,
        limits: Thresholds,
        *,
        before: WindowSummary | None = None,
        cool_down: float = math.inf,
    ) -> None:
        self.position = 0  # predictions and labels taken
        self._sequence = self._label = 0  # numbers of the last prediction and of the last label
        self.detectors = DetectorSet(yardstick.baseline, limits.max_false_alarms_per_million)
        self._bins = yardstick
        self._thresholds = limits
        self._repeat_interval = cool_down
        self._rolling = RollingWindows(yardstick, before)
        self._states: dict[Key, AlertState] = {}
        self._active: dict[Key, ActiveAlert] = {}
        self._alarms: dict[str, Alarm] = {}  # that have fired since the last evaluation

    def counts(self, window: str) -> WindowSummary:
        """Counts of the ``short``, ``medium`` or ``long`` window."""
        return self._rolling.counts(window)

    # Taking what comes

    def process(self, events: Events, counted: np.ndarray[Any, np.dtype[np.bool_]] | None = None) -> list[Transition]:
        """Take the predictions and labels that follow, and return what becomes of which alert.

        Parameters
        ----------
        counted
            (m,), whether each label belongs into the counts of the windows; all of them when None.
        """
        rows, labels, due = events
        ends = np.arange(1, rows.n + 1) + np.searchsorted(due, np.arange(rows.n), side="right")
        waiting = self._fired(rows, labels, ends, due)
        plain = rows.non_finite == 0
        counted = np.full(labels.n, True) if counted is None else counted
        transitions: list[Transition] = []
        done = row = label = 0
        while done < rows.n + labels.n:
            cut = self._next_cut(done, rows.n + labels.n, waiting, plain)
            next_row = int(np.searchsorted(ends, cut, side="right"))
            next_label = cut - next_row
            self.add(rows.slice(row, next_row))
            self.add_labels(labels.take(np.flatnonzero(counted[label:next_label]) + label))
            if next_label > label:
                self._label = int(labels.number[next_label - 1])
            is_row = next_row > row and ends[next_row - 1] == cut
            now = float(rows.time[next_row - 1] if is_row else labels.time[next_label - 1])
            due_now = (self.position + cut - done) % EVALUATION_INTERVAL == 0 or any(
                fired.end == cut and self._is_first(fired.metric) for fired in waiting
            )
            self._alarms |= {fired.metric: fired.alarm for fired in waiting if fired.end <= cut}
            waiting = [fired for fired in waiting if fired.end > cut]
            self.position += cut - done
            done, row, label = cut, next_row, next_label
            if due_now:
                transitions += self._evaluate(now)
        return transitions

    def add(self, rows: Predictions) -> None:
        """Count predictions with the labels that they have, without evaluating anything: those before a state."""
        if rows.n:
            self._rolling.add(rows)
            self._sequence = int(rows.sequence[-1])

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
        """The alarms of these events in their order: no detector depends on what is evaluated."""
        fired = [_PendingAlarm(int(ends[alarm.index]), metric, alarm) for metric, alarm in self.detectors.update(rows)]
        # A change of mind is heard once, and a label that becomes one of a drawn sample once more, as such.
        known = labels.predicted != NO_CLASS
        first, sampled = known & (labels.before == NO_CLASS), known & labels.drawn & ~labels.drawn_before
        heard = np.flatnonzero(first | sampled)
        told = labelled_outcomes(labels.predicted[heard], labels.labels[heard], sampled[heard], first[heard])
        fired += [
            _PendingAlarm(int(due[heard[alarm.index]] + heard[alarm.index]) + 1, metric, alarm)
            for metric, alarm in self.detectors.update_labels(*told)
        ]
        return sorted(fired, key=lambda entry: (entry.end, entry.metric != ACCURACY))

    def _next_cut(self, done: int, total: int, waiting: list[_PendingAlarm], plain: bool) -> int:
        """Up to which of the events nothing has to be evaluated."""
        news = {metric for metric in DETECTED_METRICS if self._is_first(metric)}
        first = next((fired.end for fired in waiting if fired.metric in news), total)
        if (
            plain
            and self._nothing_to_do()
            and not any(self.counts(window).non_finite for window in EVALUATION_INTERVALS)
        ):
            return min(first, total)
        return min(first, total, done + EVALUATION_INTERVAL - self.position % EVALUATION_INTERVAL)

    def _is_first(self, metric: str) -> bool:
        """Whether an alarm of this metric is news to one of the windows."""
        return not all(self._states.get((metric, window), AlertState()).evidence for window in EVALUATION_INTERVALS)

    # Evaluating

    def _nothing_to_do(self) -> bool:
        """Whether an evaluation would change nothing: an alert begins with an alarm."""
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
        blocks = {window: int(self.position % size == 0) for window, size in EVALUATION_INTERVALS.items()}
        recent = {sighting.metric: sighting for sighting in self._findings("short", alarms)}
        transitions = []
        for window in [window for window in EVALUATION_INTERVALS if blocks[window] or alarms]:
            for sighting in recent.values() if window == "short" else self._findings(window, alarms):
                metric, grade = sighting.metric, sighting
                if window != "short":
                    grade = inhibit(sighting, recent[metric], self._active.get((metric, "short")))
                change = self._advance(grade, now, metric in alarms, blocks[window])
                if change is not None:
                    place = self.position, self.counts("long").n, self._sequence, self._label
                    transitions.append(Transition(*place, now, grade, change))
        return transitions

    def _findings(self, window: str, alarms: Mapping[str, Alarm]) -> list[Finding]:
        return evaluate_window(self.counts(window), self._bins, self._thresholds, window, alarms)

    def _advance(self, grade: Finding, now: float, alarm: bool, blocks: int) -> AlertTransition | None:
        """Take one sighting into account."""
        key = grade.metric, grade.window
        standing = self._active.get(key)
        # A healthy model gives no NaN at all: here the sight itself is the evidence.
        alarm = alarm or (grade.metric == NON_FINITE and grade.level != "ok")
        self._states[key], change = self._states.get(key, AlertState()).advance(
            grade, standing, now, alarm=alarm, blocks=blocks, cool_down=self._repeat_interval
        )
        if change is not None:
            after = change.applied(self._active.pop(key, None), now)
            if after is not None:
                self._active[key] = after
            elif grade.window == "short":
                self._drop_old(grade.metric)
        return change

    def _drop_old(self, metric: str) -> None:
        """What is gone is no reason for a longer window, which still holds it, to begin to speak."""
        for window in EVALUATION_INTERVALS:
            if (metric, window) not in self._active:
                self._states.pop((metric, window), None)

    # Saving and restoring

    def state(self) -> dict[str, Any]:
        """All that the alerts to come depend on beside the windows, ready for JSON."""
        return {
            "detectors": self.detectors.state(),
            "alarms": {metric: asdict(alarm) for metric, alarm in self._alarms.items()},
            "states": [[*key, asdict(state)] for key, state in self._states.items()],
            "standing": [[*key, asdict(standing)] for key, standing in self._active.items()],
        }

    def restore(self, position: int, label: int, state: Mapping[str, Any]) -> None:
        """Go on from a state, and the last label before it; the predictions before it were ``add``-ed."""
        self.position, self._label = position, label
        self.detectors.restore(state["detectors"])
        self._alarms = {metric: Alarm(**alarm) for metric, alarm in state["alarms"].items()}
        self._states = {
            (metric, window): AlertState(entry["evidence"], tuple(entry["held"]), entry["calm"])
            for metric, window, entry in state["states"]
        }
        self._active = {(metric, window): ActiveAlert(**entries) for metric, window, entries in state["standing"]}
