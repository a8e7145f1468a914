"""The state machine of an alert: when it is raised, escalated, repeated and cleared.

An alert clears when the fault is gone altogether, with the certainty with which it was raised: the window has been
calm for so long that a fault just above the mildest threshold would have shown. Until then it keeps the worst level
that it reached.

There is one state for each model version, metric and window. It knows no store and no clock: the active alert is an
argument of each step, and the state holds counts of consecutive intervals only. So a restarted process, or a second
one, resumes from the active alerts in the store.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

from toolkit.monitoring.base.thresholds import LEVELS, Thresholds
from toolkit.monitoring.stats.distributions import normal_survival

EVALUATIONS_TO_RAISE = 2
EVALUATIONS_TO_CLEAR = 3  # at least
EVALUATIONS_PER_WINDOW = 10
CLEAR_BELOW = 0.6  # of the mildest threshold, so that an alert does not flicker around it
REPEAT_INTERVAL_S = 6 * 3600.0  # between reminders: two in a working day
Event = Literal["raised", "escalated", "reminder", "cleared"]

_NO_RUNS = (0,) * len(LEVELS[1:])


def evaluations_to_clear(threshold: float, deviation: float, confidence: float) -> int:
    """Consecutive calm intervals that a fault at the threshold would have broken, with the given confidence.

    A window with few labels can be calm by chance while the model fails: one calm window proves nothing then, but
    several that share no prediction do. ``deviation`` is the standard deviation of the change as measured in a window.

    Examples
    --------
    >>> evaluations_to_clear(0.05, deviation=0.005, confidence=0.99)
    3
    >>> evaluations_to_clear(0.05, deviation=0.044, confidence=0.99)  # a window of 100 labels at an accuracy of 84 %
    50
    """
    missed = normal_survival((1 - CLEAR_BELOW) * threshold / deviation) if deviation > 0 else 0.0
    if missed <= 1 - confidence:
        return EVALUATIONS_TO_CLEAR
    return EVALUATIONS_PER_WINDOW * math.ceil(math.log(1 - confidence) / math.log(missed))


@dataclass(frozen=True)
class Evaluation:
    """The level of one metric in one window.

    Parameters
    ----------
    level
        ``ok`` or the level that is reached.
    status
        ``confirmed`` when the threshold is certainly passed, ``suspected`` when only the change as such is certain,
        ``estimate`` when no labels are involved.
    value
        Size of the change; None with too little data.
    threshold
        Size above which the mildest level begins.
    unchanged
        Whether the window does not differ from the reference at all.
    to_clear
        Consecutive calm intervals before an alert clears: see ``evaluations_to_clear``.

    Examples
    --------
    >>> Evaluation(value=0.029, threshold=0.05).below_clear_threshold
    True
    """

    level: str = "ok"
    status: str = ""
    value: float | None = None
    threshold: float = 0.0
    unchanged: bool = False
    to_clear: int = EVALUATIONS_TO_CLEAR

    @property
    def below_clear_threshold(self) -> bool:
        """Whether the window shows less than 0.6 of the mildest threshold."""
        return self.value is not None and (self.unchanged or self.value < CLEAR_BELOW * self.threshold)

    @property
    def rank(self) -> tuple[int, bool]:
        """Severity and certainty: more is worse."""
        return _rank(self.level, self.status)

    def inhibited(self, recent: "Evaluation", short_alert: "ActiveAlert | None") -> Self:
        """This evaluation of a longer window, ``ok`` when it adds nothing to ``recent``, that of the short window.

        A longer window is there for small, slow changes. It would report a large one a second time, and once more
        after it has passed.
        """
        known = short_alert is not None and short_alert.rank >= self.rank
        return replace(self, level=LEVELS[0], status="") if known or recent.below_clear_threshold else self


@dataclass(frozen=True)
class ActiveAlert:
    """An alert that has not been cleared; when a person has acknowledged it, it escalates without reminders."""

    level: str
    status: str
    notified_at: float
    acknowledged: bool = False

    @property
    def rank(self) -> tuple[int, bool]:
        """Severity and certainty: more is worse."""
        return _rank(self.level, self.status)


class AlertTransition(NamedTuple):
    """A change of an alert, with its level and status from now on, or those that it had when it cleared."""

    event: Event
    level: str
    status: str

    def applied(self, active: ActiveAlert | None, now: float) -> ActiveAlert | None:
        """The alert that is active afterwards, as the store has to write it.

        >>> active = ActiveAlert("warning", "confirmed", notified_at=0, acknowledged=True)
        >>> AlertTransition("escalated", "critical", "confirmed").applied(active, now=60)
        ActiveAlert(level='critical', status='confirmed', notified_at=60, acknowledged=True)
        """
        if self.event == "cleared":
            return None
        return ActiveAlert(self.level, self.status, now, active is not None and active.acknowledged)


@dataclass(frozen=True)
class AlertState:
    """Memory of one metric and window between two evaluations.

    An alert is raised only when a detector has given evidence: a window that is evaluated again and again exceeds a
    threshold now and then. With the detector's alarm it is raised at once; later, to another level, after two
    consecutive intervals at that level, or one evaluation when that is ``immediate``. The same makes it escalate when
    it is worse, or confirmed where it was suspected. An active alert is repeated at the reminder interval unless it
    is acknowledged. It clears, whatever its level, after ``Evaluation.to_clear`` consecutive intervals below 0.6 of
    the mildest threshold; then the evidence is forgotten too.

    A fresh state beside an active alert decides the same as the one before it, at most one interval later to raise,
    and as many calm intervals later to clear as had been counted.

    Parameters
    ----------
    evidence
        Whether an alarm has fired and the fault has not been gone since.
    consecutive
        Consecutive intervals at ``warning``, ``critical``, ``immediate`` or above.
    n_calm
        Consecutive intervals below 0.6 of the mildest threshold.

    Examples
    --------
    >>> bad, good = Evaluation("warning", "confirmed", 0.08, 0.05), Evaluation(value=0.01, threshold=0.05)
    >>> state, active = AlertState(), None
    >>> steps = [(bad, False), (bad, False), (bad, True), (good, False), (good, False), (good, False)]
    >>> for evaluation, alarm in steps:
    ...     state, change = state.advance(evaluation, active, now=0, alarm=alarm)
    ...     if change:
    ...         active = change.applied(active, now=0)
    ...     print(change.event if change else "-", end=" ")
    - - raised - - cleared
    """

    evidence: bool = False
    consecutive: tuple[int, ...] = _NO_RUNS
    n_calm: int = 0

    def advance(
        self,
        evaluation: Evaluation,
        active: ActiveAlert | None,
        now: float,
        *,
        alarm: bool = False,
        intervals: int = 1,
        repeat_interval: float = REPEAT_INTERVAL_S,
    ) -> tuple["AlertState", AlertTransition | None]:
        """The next state, and the change of the alert; None for no change.

        Parameters
        ----------
        alarm
            Whether the detector of this metric has raised an alarm since the last evaluation.
        intervals
            Evaluation intervals that were completed since then. With 0 a run may break and a reminder fall due, but
            nothing is counted a second time.
        """
        state = self._counted(evaluation, active, alarm, intervals)
        level, status = state._due(evaluation, alarm), evaluation.status
        change = None
        if active is not None and not active.acknowledged and now - active.notified_at >= repeat_interval:
            change = AlertTransition("reminder", active.level, active.status)
        if evaluation.value is None:
            return state, change
        if active is not None and state.n_calm >= evaluation.to_clear:
            change = AlertTransition("cleared", active.level, active.status)
        elif level != LEVELS[0] and state.evidence and (active is None or _rank(level, status) > active.rank):
            change = AlertTransition("raised" if active is None else "escalated", level, status)
        return state, change

    def _counted(self, evaluation: Evaluation, active: ActiveAlert | None, alarm: bool, intervals: int) -> "AlertState":
        raised_elsewhere = active is not None and not self.evidence  # by another process, or before a restart
        evidence = self.evidence or alarm or raised_elsewhere
        if evaluation.value is None:  # too little data breaks no run
            return replace(self, evidence=evidence)
        reached, calm = Thresholds.severity(evaluation.level), 0
        runs = tuple(run + intervals if rank <= reached else 0 for rank, run in enumerate(self.consecutive, start=1))
        if evaluation.below_clear_threshold and not alarm:  # calm before an alarm says nothing of the time after it
            calm = intervals + (0 if raised_elsewhere else self.n_calm)
        return AlertState(evidence and calm < evaluation.to_clear, runs, calm)

    def _due(self, evaluation: Evaluation, alarm: bool) -> str:
        """The worst level that has lasted for long enough."""
        if evaluation.level == "immediate" or alarm:
            return evaluation.level
        return LEVELS[sum(run >= EVALUATIONS_TO_RAISE for run in self.consecutive)]


def _rank(level: str, status: str) -> tuple[int, bool]:
    return Thresholds.severity(level), status == "confirmed"
