"""What would have been raised: a recorded stream once more through windows, alarms and alerts, with other limits.

    from toolkit.monitoring.replay import replay

    print(replay("predictions.parquet", baseline, Limits(max_false_alarms_per_million=10, warning=0.03)))

Nothing is written. A label counts from the moment at which it was told, so that what the replay
knows at any time is what the monitor knew.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toolkit.baseline import Baseline
from toolkit.errors import SettingsError
from toolkit.monitoring.counts import Counts
from toolkit.monitoring.detectors import Detectors, Found, told_of
from toolkit.monitoring.limits import Limits
from toolkit.monitoring.recordings import LABEL, Labels, Part, open_recording
from toolkit.monitoring.rolling import Rolling
from toolkit.monitoring.states import COOL_DOWN_SECONDS, Standing
from toolkit.monitoring.watch import FEWEST_NEWS, Key, Watch
from toolkit.monitoring.windows import NOTHING, Window
from toolkit.monitoring.yardstick import Yardstick
from toolkit.terminal import table

# What comes out


@dataclass(frozen=True)
class Happening:
    """What would have become of an alert.

    Parameters
    ----------
    position
        How many predictions there had been.
    time
        When, in seconds since 1970.
    event
        ``raised``, ``escalated``, ``reminder`` or ``cleared``.
    level, status, metric, window, message
        Those of the alert.
    """

    position: int
    time: float
    event: str
    level: str
    status: str
    metric: str
    window: str
    message: str


@dataclass(frozen=True)
class Replay:
    """What a monitor with these limits would have said of a recorded stream; printed, it is a table.

    Parameters
    ----------
    events
        In the order in which they would have happened.
    n, n_labels
        Predictions in the stream, and labels told of them; a label that was changed counts again.
    since, until
        Earliest and latest time of a prediction, in seconds since 1970; None when there is none.
    limits
        With what it was replayed, the budget of false alarms included.
    evidence
        How far each alarm was on its way at the end, by metric, in [0, 1]; None for one that had no reference.
    model_version
        None when the file does not tell.
    seconds
        How long the replay took.
    """

    events: tuple[Happening, ...]
    n: int
    n_labels: int
    since: float | None
    until: float | None
    limits: Limits
    evidence: Mapping[str, float | None]
    model_version: str | None = None
    seconds: float = field(default=0.0, compare=False)

    @property
    def standing(self) -> tuple[Happening, ...]:
        """The alerts that would not have been cleared, as they were last raised or escalated."""
        latest: dict[Key, Happening | None] = {}
        for event in self.events:
            if event.event != "reminder":
                latest[event.metric, event.window] = event if event.event != "cleared" else None
        return tuple(event for event in latest.values() if event)

    @property
    def expected_false_alarms(self) -> float:
        """How many of the alerts the budget allows to be false, on average."""
        return self.limits.max_false_alarms_per_million * self.n / 1e6

    def to_dict(self) -> dict[str, Any]:
        """The replay, ready for JSON."""
        more = {"standing": list(map(asdict, self.standing)), "expected_false_alarms": self.expected_false_alarms}
        return asdict(self) | {"events": list(map(asdict, self.events)), "evidence": dict(self.evidence)} | more

    def __str__(self) -> str:
        """The events as a table, each alert with its message."""
        return "\n".join([*self._summary(), *self._table()])

    def _summary(self) -> Iterator[str]:
        of = f" of version {self.model_version}" if self.model_version is not None else ""
        span = f", {_moment(self.since)} to {_moment(self.until)}" if self.since is not None else ""
        yield f"{self.n:,} predictions and {self.n_labels:,} labels{of}{span}."
        names = [event.event for event in self.events]
        reminders = f"; {names.count('reminder'):,} reminders are not listed" if "reminder" in names else ""
        yield (
            f"Alerts raised: {names.count('raised')}, standing at the end: {len(self.standing)}{reminders}."
            if names
            else "Nothing would have been raised."
        )
        yield (
            f"Budget {self.limits.max_false_alarms_per_million:g} false alarms per million predictions: "
            f"{self.expected_false_alarms:.2g} to be expected here at most."
        )
        reached = (f"{name} {'-' if value is None else f'{value:.2f}'}" for name, value in self.evidence.items())
        yield f"Evidence at the end, 1 being an alarm: {', '.join(reached)}."

    def _table(self) -> Iterator[str]:
        shown = [event for event in self.events if event.event != "reminder"]
        if not shown:
            return
        headings = ["prediction", "time (UTC)", "event", "level", "status", "metric", "window"]
        rows = [
            [f"{e.position:,}", _moment(e.time), e.event, e.level, e.status, e.metric, e.window]
            for e in shown
        ]  # fmt: skip
        heading, *lines = table(headings, rows).splitlines()
        yield from ("", heading)
        for event, line in zip(shown, lines, strict=True):
            yield line
            if event.event != "cleared":
                yield f"    {event.message}"


def _moment(seconds: float | None) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}" if seconds is not None else "-"


# The story


def replay(
    path: str | Path,
    baseline: Baseline | None,
    limits: Limits,
    *,
    model_version: str | None = None,
    every: int = FEWEST_NEWS,
    cool_down: float = COOL_DOWN_SECONDS,
) -> Replay:
    """Run a recorded stream through the monitor's windows, alarms and alerts, without a store.

    Parameters
    ----------
    path
        A ``.csv`` or ``.parquet`` file as ``export`` writes it, or the address of a store. A file
        needs the columns ``time`` (UTC, or seconds since 1970) and either ``probability_CLASS`` for
        each class or ``predicted_class`` and ``confidence``; where ``label`` is given, it counts from
        ``label_time`` on, or from its prediction on without one. Rows are in the order of the stream.
    baseline
        What the model did on pictures it had never seen; that which is in the store when None.
    limits
        What counts as too much.
    model_version
        Which version's predictions, when there are several; of a store the one served last when None.
    every
        Predictions and labels between two looks. More is coarser, and faster where alerts stand.
    cool_down
        Seconds between two reminders of an alert that stands.

    Raises
    ------
    SettingsError
        When there is no baseline, or ``every`` is impossible.
    DataError
        When the file cannot be read, or something in it is wrong: the message names the row.
    StoreError
        When the store cannot be read, or pyarrow is not installed.

    Examples
    --------
    >>> import tempfile
    >>> sure = Baseline(("cat", "dog"), np.tile([[0.9, 0.1], [0.2, 0.8]], (500, 1)), np.tile([0, 1], 500))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stream = Path(folder, "stream.csv")
    ...     rows = [f"{second},{'cat' if second % 2 or second > 500 else 'dog'},0.9" for second in range(700)]
    ...     count = stream.write_text("\\n".join(["time,predicted_class,confidence", *rows]))
    ...     result = replay(stream, sure, Limits(max_false_alarms_per_million=100))
    >>> for event in result.events:
    ...     print(event.position, event.event, event.level, event.metric, event.window)
    100 raised warning confidence_distribution short
    600 raised warning prediction_distribution short
    """
    if every < 1:
        raise SettingsError(f"every must be at least 1, got {every}")
    begun = time.perf_counter()
    recording = open_recording(str(path), baseline, model_version)
    stream = _Stream(recording.baseline, limits, whole=recording.whole)
    course = _Course(stream, limits, cool_down)
    for piece in _pieces(recording.parts, every):
        course.follow(piece)
    course.look()
    total = stream.counts("long")
    return Replay(
        events=tuple(course.events),
        n=total.n,
        n_labels=stream.told,
        since=total.since if total.n else None,
        until=total.until if total.n else None,
        limits=limits,
        evidence=stream.detectors.evidence,
        model_version=recording.version(),
        seconds=time.perf_counter() - begun,
    )


class _Stream:
    """The windows and alarms of what has been replayed so far."""

    def __init__(self, baseline: Baseline, limits: Limits, *, whole: bool) -> None:
        self.yardstick = Yardstick(baseline.classes, baseline)
        if not whole:
            self.yardstick.estimator = None  # without probabilities it would take every answer for wrong
        self.detectors = Detectors(baseline, limits.max_false_alarms_per_million)
        self.told = 0
        self._rolling = Rolling(self.yardstick)

    @property
    def position(self) -> int:
        return self.told + self.counts("long").n

    def counts(self, window: str) -> Counts:
        return self._rolling.counts(window)

    def take(self, rows: Window, labels: Labels) -> list[Found]:
        """Rows first: no label comes before its prediction."""
        found = []
        if rows.n:
            self._rolling.add(rows)
            found += self.detectors.hear(rows)
        if len(labels):
            self._rolling.label(
                labels["sequence"],
                old=labels["before"],
                new=labels["label"],
                predicted=labels["predicted"],
                confidence=labels["confidence"],
                drawn_before=labels["drawn_before"],
                drawn=labels["drawn"],
            )
            known = labels["predicted"] != NOTHING
            first, sampled = known & (labels["before"] == NOTHING), known & labels["drawn"] & ~labels["drawn_before"]
            which = first | sampled
            part = labels[which]
            found += self.detectors.hear_labels(
                *told_of(part["predicted"], part["label"], sampled[which], first[which])
            )
            self.told += len(labels)
        return found


class _Course:
    """Follows a stream, and notes what becomes of its alerts."""

    def __init__(self, stream: _Stream, limits: Limits, cool_down: float) -> None:
        self.events: list[Happening] = []
        self._stream = stream
        self._watch = Watch(limits, cool_down)
        self._standing: dict[Key, Standing] = {}
        self._messages: dict[Key, str] = {}
        self._found: list[Found] = []  # since the last look
        self._now = -math.inf

    def follow(self, piece: "_Piece") -> None:
        self._found += self._stream.take(piece.rows, piece.labels)
        self._now = piece.now
        if piece.look:
            self.look()

    def look(self) -> None:
        """Look if there is reason to, and change what stands."""
        changes = self._watch.look(self._stream, self._standing, self._now, self._found, automatic=True)
        self._found = []
        for sighting, change in changes:
            key = sighting.metric, sighting.window
            if change.event in ("raised", "escalated"):
                self._messages[key] = sighting.told(change.level)
            after = change.applied(self._standing.pop(key, None), self._now)
            if after is not None:
                self._standing[key] = after
            self.events.append(
                Happening(self._stream.counts("long").n, self._now, *change, *key, message=self._messages[key])
            )


# Putting labels where they were told


class _Piece(NamedTuple):
    """What comes next: rows, labels of these or of earlier ones, the time then, and whether it is time to look."""

    rows: Window
    labels: Labels
    now: float
    look: bool


def _pieces(parts: Iterable[Part], every: int) -> Iterator[_Piece]:
    """The stream in the order in which it happened, cut where there is as much news as asks for a look."""
    waiting, start, clock, since = np.zeros(0, LABEL), 0, -math.inf, 0
    rows = Window.empty()
    for rows, labels in parts:
        clocks = np.maximum.accumulate(np.append(clock, rows.time))  # rows of several processes cross by a little
        index = np.searchsorted(rows.sequence, labels["sequence"])
        labels["place"] = start + index + 1
        waiting = np.concatenate([waiting, labels])
        start += rows.n
        ripe = (waiting["time"] < clocks[-1]) & (waiting["place"] < start)
        told, waiting = waiting[ripe], waiting[~ripe]
        due = np.searchsorted(clocks[1:], told["time"], side="right")
        due = np.maximum(due, told["place"] - start + rows.n)
        order = np.lexsort((told["time"], due))
        yield from _cut(rows, told[order], due[order], clocks, every, since)
        since = (since + rows.n + len(told)) % every
        clock = float(clocks[-1])
    waiting = waiting[np.argsort(waiting["time"], kind="stable")]
    nobody = np.zeros(len(waiting), np.int64)
    yield from _cut(rows.between(0, 0), waiting, nobody, np.array([clock]), every, since)


def _cut(
    rows: Window, labels: Labels, due: NDArray[np.int64], clocks: NDArray[np.float64], every: int, since: int
) -> Iterator[_Piece]:
    """Cut rows and labels, each of which comes when ``due`` of the rows have come, after every so many.

    Parameters
    ----------
    clocks
        (n + 1,), the time before the first row and at each of them.
    since
        How many came since the last cut.
    """
    places = np.arange(rows.n) + np.searchsorted(due, np.arange(rows.n), side="right")  # of rows among both
    end, row, label = rows.n + len(labels), 0, 0
    for cut in [*range(every - since, end, every), end]:
        next_row = int(np.searchsorted(places, cut))
        next_label = cut - next_row
        told = labels[label:next_label]
        now = max(float(clocks[next_row]), float(told["time"].max(initial=-math.inf)))
        if cut:
            yield _Piece(rows.between(row, next_row), told, now, look=(since + cut) % every == 0)
        row, label = next_row, next_label
