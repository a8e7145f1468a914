"""Looking at the windows of one model version: what becomes of its alerts, without a store and without a clock."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from toolkit.monitoring.alerts import BLOCKS, NON_FINITE, Sighting, look
from toolkit.monitoring.counts import Counts
from toolkit.monitoring.detectors import Found
from toolkit.monitoring.limits import Limits
from toolkit.monitoring.states import COOL_DOWN_SECONDS, Change, Standing, State, worth_adding
from toolkit.monitoring.yardstick import Yardstick

FEWEST_NEWS = min(BLOCKS.values())  # predictions or labels between two automatic looks

Key = tuple[str, str]  # metric and window


class Windows(Protocol):
    """Whatever counts the predictions of one model version in windows."""

    @property
    def yardstick(self) -> Yardstick:
        """With which they are counted."""

    @property
    def position(self) -> int:
        """A number that grows by one with each prediction and each label."""

    def counts(self, window: str) -> Counts:
        """What is in a window."""


class Watch:
    """Looks at the short and the medium window of one model version, and says what becomes of its alerts.

    It knows no store and no clock: what stands, and what time it is, is told at each look.

    Parameters
    ----------
    limits
        What counts as too much.
    cool_down
        Seconds between two reminders of an alert that stands.
    """

    def __init__(self, limits: Limits, cool_down: float = COOL_DOWN_SECONDS) -> None:
        self._limits = limits
        self._cool_down = cool_down
        self._states: dict[Key, State] = {}
        self._positions: dict[str, int] = {}  # of the windows: where the stream was at the last look

    def look(
        self,
        view: Windows,
        standing: Mapping[Key, Standing],
        now: float,
        found: Sequence[Found] = (),
        *,
        automatic: bool = False,
    ) -> list[tuple[Sighting, Change]]:
        """Look at what is new, and return what becomes of which alert.

        Parameters
        ----------
        standing
            The alerts that stand, by metric and window.
        now
            Seconds since 1970.
        found
            Alarms that have fired since the last look: reason enough to look at once.
        automatic
            Look only at windows of which a tenth is new, as somebody does who looks again and again;
            otherwise at all of them. What is not new is not counted as evidence a second time.
        """
        news = {window: self._news(view.position, window, automatic) for window in BLOCKS}
        due = [window for window, blocks in news.items() if blocks or found or not automatic]
        if not due or self._quiet(view, standing, found):
            return []
        alarms, told, changes = dict(found), dict(standing), []
        recent = {sighting.metric: sighting for sighting in self._seen(view, "short", alarms)}
        for window in due:
            for sighting in recent.values() if window == "short" else self._seen(view, window, alarms):
                metric, grade = sighting.metric, sighting
                if window != "short":
                    grade = worth_adding(sighting, recent[metric], told.get((metric, "short")))
                alert = standing.get((metric, window))
                change = self._step(grade, alert, now, metric in alarms, news[window])
                if change is None:
                    continue
                changes.append((grade, change))
                if (after := change.applied(alert, now)) is not None:
                    told[metric, window] = after
                elif window == "short":
                    self._forget(metric, standing)
        return changes

    def _forget(self, metric: str, standing: Mapping[Key, Standing]) -> None:
        """What is gone is no reason for a longer window, which still holds it, to begin to speak."""
        for window in BLOCKS:
            if (metric, window) not in standing:
                self._states.pop((metric, window), None)

    def _news(self, position: int, window: str, automatic: bool) -> int:
        """How many blocks came since the last look, which this is from now on if there were any."""
        before, block = self._positions.get(window), BLOCKS[window]
        news = position - before if before is not None else block
        blocks = news // block if automatic else -(-news // block)
        if blocks or before is None:
            self._positions[window] = position
        return blocks

    def _quiet(self, view: Windows, standing: Mapping[Key, Standing], found: Sequence[Found]) -> bool:
        """Whether a look would change nothing: an alert begins with an alarm, which starts all runs anew."""
        if found or standing or any(state.evidence for state in self._states.values()):
            return False
        windows = map(view.counts, BLOCKS)
        return all(counts.non_finite <= self._limits.warning * counts.n for counts in windows)

    def _seen(self, view: Windows, window: str, alarms: Mapping[str, Any]) -> list[Sighting]:
        return look(view.counts(window), view.yardstick, self._limits, window, alarms)

    def _step(self, grade: Sighting, alert: Standing | None, now: float, alarm: bool, blocks: int) -> Change | None:
        """Take one sighting into account."""
        key = grade.metric, grade.window
        # A healthy model gives no NaN at all: here the sight itself is the evidence.
        alarm = alarm or (grade.metric == NON_FINITE and grade.level != "ok")
        self._states[key], change = self._states.get(key, State()).after(
            grade, alert, now, alarm=alarm, blocks=blocks, cool_down=self._cool_down
        )
        return change
