"""The life of an alert: when it is raised, told again, made worse and cleared.

An alert is cleared when the fault is gone altogether, with the certainty with which it came: the
window has looked calm for so long that a fault just above the mildest threshold would have shown.
Until then it stands at the worst level that it reached.

There is one state for each model version, metric and window. It knows no store and no clock: what
stands is told at each look, and it remembers runs of blocks only. So a restart, or a second
process beside this one, goes on from the alerts that stand in the store.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeVar

from toolkit.monitoring.base.thresholds import LEVELS, Thresholds
from toolkit.monitoring.stats.distributions import normal_survival

EVALUATIONS_TO_RAISE = 2
EVALUATIONS_TO_CLEAR = 3  # at least
EVALUATIONS_PER_WINDOW = 10
CLEAR_BELOW = 0.6  # of the mildest threshold, so that an alert does not flicker around it
REPEAT_INTERVAL_S = 6 * 3600.0  # a person who was told in the morning is told again before the day is over
Event = Literal["raised", "escalated", "reminder", "cleared"]

_NO_RUNS = (0,) * len(LEVELS[1:])


def evaluations_to_clear(threshold: float, deviation: float, confidence: float) -> int:
    """Calm blocks in a row that a fault at the threshold would have broken, with the given confidence.

    A window with few labels looks calm by chance also while the model fails: then one calm window proves
    nothing, but several that share no prediction do.

    Parameters
    ----------
    threshold
        The change that must not be missed.
    deviation
        Standard deviation of the change as a window measures it.
    confidence
        Chance of seeing it, in (0, 1).

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
    """What the evidence says now of one metric in one window.

    Parameters
    ----------
    level
        ``ok`` or the level that is reached.
    status
        ``confirmed`` when the threshold is certainly passed, ``suspected`` when only the change as
        such is certain, ``estimate`` when no labels are involved.
    value
        Size of the change; None when there is too little data to say.
    threshold
        The size at which each level begins.
    unchanged
        Whether the window cannot be told from the reference at all.
    to_clear
        Blocks in a row that must be calm before an alert is cleared: see ``evaluations_to_clear``.

    Examples
    --------
    >>> Grade(value=0.029, threshold={"warning": 0.05}).calm
    True
    """

    level: str = "ok"
    status: str = ""
    value: float | None = None
    threshold: Mapping[str, float] = field(default_factory=dict)
    unchanged: bool = False
    to_clear: int = EVALUATIONS_TO_CLEAR

    @property
    def below_clear_threshold(self) -> bool:
        """Whether the window shows none of the change, as far as it can show it."""
        if self.value is None or "warning" not in self.threshold:
            return False
        return self.unchanged or self.value < CLEAR_BELOW * self.threshold["warning"]


@dataclass(frozen=True)
class ActiveAlert:
    """An alert that has not been cleared, as the store knows it.

    Parameters
    ----------
    notified_at
        When somebody was last told of it, in seconds since 1970.
    acknowledged
        Whether a person has said that they know: silences reminders until it clears, not what gets worse.
    """

    level: str
    status: str
    notified_at: float
    acknowledged: bool = False

    @property
    def state(self) -> str:
        """``suspected`` while it is no more than that, else the level."""
        return "suspected" if self.status == "suspected" else self.level

    @property
    def rank(self) -> tuple[int, bool]:
        """How bad and how certain: more is worse."""
        return _rank(self.level, self.status)


class AlertTransition(NamedTuple):
    """What becomes of an alert, with the level and status that it has from now on, or had when it was cleared."""

    event: Event
    level: str
    status: str

    def applied(self, standing: ActiveAlert | None, now: float) -> ActiveAlert | None:
        """What stands afterwards: the same that the store has to write.

        >>> Change("escalated", "critical", "confirmed").applied(Standing("warning", "confirmed", 0, True), 60)
        Standing(level='critical', status='confirmed', notified_at=60, acknowledged=True)
        """
        if self.event == "cleared":
            return None
        return ActiveAlert(self.level, self.status, now, standing is not None and standing.acknowledged)


@dataclass(frozen=True)
class AlertState:
    """What is remembered of one metric and window between two looks.

    An alert is raised only when a sequential alarm has given evidence: a window looked at again and
    again looks bad now and then. With the alarm it is raised at once; later, to another level, after
    two blocks in a row at that level, or one look when that is ``immediate``. The same makes it
    escalate, when it is worse or confirmed where it was suspected. While it stands it is
    told again after a cool-down unless somebody acknowledged it. It clears, whatever its level, after
    ``Evaluation.to_clear`` blocks in a row below 0.6 of the mildest threshold; then the evidence is forgotten too.

    A state that begins anew beside an alert that stands decides the same as the one before it, at
    most one block later to raise, and as many calm blocks later to clear as had been counted.

    Parameters
    ----------
    evidence
        Whether an alarm has fired and the fault has not been found to be gone since.
    held
        Blocks in a row at ``warning``, ``critical``, ``immediate`` or above.
    calm
        Blocks in a row below 0.6 of the mildest threshold.

    Examples
    --------
    >>> limits = {"warning": 0.05, "critical": 0.1, "immediate": 0.2}
    >>> bad, good = Grade("warning", "confirmed", 0.08, limits), Grade(value=0.01, threshold=limits)
    >>> state, standing = State(), None
    >>> for grade, alarm in [(bad, False), (bad, False), (bad, True), (good, False), (good, False), (good, False)]:
    ...     state, change = state.after(grade, standing, now=0, alarm=alarm)
    ...     if change:
    ...         standing = change.applied(standing, now=0)
    ...     print(change.event if change else "-", end=" ")
    - - raised - - cleared
    """

    evidence: bool = False
    consecutive: tuple[int, ...] = _NO_RUNS
    n_calm: int = 0

    def advance(
        self,
        grade: Evaluation,
        standing: ActiveAlert | None,
        now: float,
        *,
        alarm: bool = False,
        blocks: int = 1,
        cool_down: float = REPEAT_INTERVAL_S,
    ) -> tuple["AlertState", AlertTransition | None]:
        """Take one more look into account.

        Parameters
        ----------
        standing
            The alert that stands for this metric and window according to the store.
        now
            Seconds since 1970.
        alarm
            Whether the sequential alarm of this metric has fired since the look before.
        blocks
            How many blocks of predictions or labels came since then. With 0 a run may break and a
            reminder fall due, but nothing is counted a second time.
        cool_down
            Seconds between two reminders.

        Returns
        -------
        tuple
            The state to go on with, and what to do about the alert, None for nothing.
        """
        state = self._seen(grade, standing, alarm, blocks)
        return state, state._decided(grade, standing, alarm) or _reminder(standing, now, cool_down)

    def _seen(self, grade: Evaluation, standing: ActiveAlert | None, alarm: bool, blocks: int) -> "AlertState":
        raised_elsewhere = standing is not None and not self.evidence  # by another process, or before a restart
        evidence = self.evidence or alarm or raised_elsewhere
        if grade.value is None:  # too little data is neither good news nor bad news
            return replace(self, evidence=evidence)
        reached = Thresholds.severity(grade.level)
        held = tuple(run + blocks if rank <= reached else 0 for rank, run in enumerate(self.consecutive, start=1))
        calm = 0
        if grade.below_clear_threshold and not alarm:  # what was calm before it says nothing about what comes after it
            calm = blocks + (0 if raised_elsewhere else self.n_calm)
        return AlertState(evidence and calm < grade.to_clear, held, calm)

    def _decided(self, grade: Evaluation, standing: ActiveAlert | None, alarm: bool) -> AlertTransition | None:
        if grade.value is None:
            return None
        if standing and self.n_calm >= grade.to_clear:
            return AlertTransition("cleared", standing.level, standing.status)
        level = self._due(grade, alarm)
        if level == "ok" or not self.evidence:
            return None
        if standing is None:
            return AlertTransition("raised", level, grade.status)
        return AlertTransition("escalated", level, grade.status) if _rank(level, grade.status) > standing.rank else None

    def _due(self, grade: Evaluation, alarm: bool) -> str:
        """The worst level that has been held for long enough."""
        if grade.level == "immediate" or alarm:
            return grade.level
        held = [level for level, run in zip(LEVELS[1:], self.consecutive, strict=True) if run >= EVALUATIONS_TO_RAISE]
        return held[-1] if held else "ok"


SomeGrade = TypeVar("SomeGrade", bound=Evaluation)


def inhibit(grade: SomeGrade, recent: Evaluation, told: ActiveAlert | None) -> SomeGrade:
    """Silence what a longer window shows when it adds nothing to the short one.

    A longer window is there for small, slow changes. It would report a large one a second time, and
    once more after it has passed.

    Parameters
    ----------
    grade
        What the longer window shows.
    recent
        What the short window shows of the same metric: when that is calm, the change has passed.
    told
        The alert that stands for the short window.
    """
    if recent.below_clear_threshold or (told is not None and told.rank >= _rank(grade.level, grade.status)):
        return replace(grade, level="ok", status="")
    return grade


def alert_key(version: str, metric: str, window: str) -> str:
    """What names an alert for as long as it stands.

    >>> alert_key("3", "accuracy", "short")
    '3/accuracy/short'
    """
    return f"{version}/{metric}/{window}"


def _reminder(standing: ActiveAlert | None, now: float, cool_down: float) -> AlertTransition | None:
    if standing is None or standing.acknowledged or now - standing.notified_at < cool_down:
        return None
    return AlertTransition("reminder", standing.level, standing.status)


def _rank(level: str, status: str) -> tuple[int, bool]:
    return Thresholds.severity(level), status == "confirmed"
