"""What would have been raised: a recorded stream once more through windows, alarms and alerts, with other limits.

    from toolkit.monitoring.pipeline.replay import replay

    print(replay("predictions.parquet", baseline, Thresholds(max_false_alarms_per_million=10, warning=0.03)))

Nothing is written. A label counts from the moment at which it was told, so that what the replay
knows at any time is what the monitor knew.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from toolkit.bundle.baseline import Baseline
from toolkit.cli.terminal import progress, table
from toolkit.monitoring.alerting.evaluator import AlertEvaluator, Key
from toolkit.monitoring.alerting.state import REPEAT_INTERVAL_S
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.pipeline.replay_source import open_source
from toolkit.monitoring.store.events import Events
from toolkit.monitoring.windows.reference import ReferenceBins

# What comes out


@dataclass(frozen=True)
class AlertEvent:
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

    events: tuple[AlertEvent, ...]
    n: int
    n_labels: int
    since: float | None
    until: float | None
    limits: Thresholds
    evidence: Mapping[str, float | None]
    model_version: str | None = None
    seconds: float = field(default=0.0, compare=False)

    @property
    def active_alerts(self) -> tuple[AlertEvent, ...]:
        """The alerts that would not have been cleared, as they were last raised or escalated."""
        latest: dict[Key, AlertEvent | None] = {}
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
        more = {"standing": list(map(asdict, self.active_alerts)), "expected_false_alarms": self.expected_false_alarms}
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
            f"Alerts raised: {names.count('raised')}, standing at the end: {len(self.active_alerts)}{reminders}."
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
    limits: Thresholds,
    *,
    model_version: str | None = None,
    cool_down: float = REPEAT_INTERVAL_S,
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
        What the model did on images it had never seen; that which is in the store when None.
    limits
        What counts as too much.
    model_version
        Which version's predictions, when there are several; of a store the one served last when None.
    cool_down
        Seconds between two reminders of an alert that stands.

    Raises
    ------
    SettingsError
        When there is no baseline.
    DataError
        When the file cannot be read, or a value in it is wrong: the message names row, column, rule and value.
    StoreError
        When the store cannot be read, or holds no predictions.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> sure = Baseline(("cat", "dog"), np.tile([[0.9, 0.1], [0.2, 0.8]], (500, 1)), np.tile([0, 1], 500))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stream = Path(folder, "stream.csv")
    ...     rows = [f"{second},{'cat' if second % 2 or second > 500 else 'dog'},0.9" for second in range(700)]
    ...     count = stream.write_text("\\n".join(["time,predicted_class,confidence", *rows]))
    ...     result = replay(stream, sure, Thresholds(max_false_alarms_per_million=100))
    >>> for event in result.events:
    ...     print(event.position, event.event, event.level, event.metric, event.window)
    55 raised warning confidence_distribution short
    523 raised warning prediction_distribution short
    """
    begun = time.perf_counter()
    source = open_source(str(path), baseline, model_version)
    yardstick = ReferenceBins(source.baseline.classes, source.baseline)
    if not source.has_probabilities:
        yardstick.estimator = None  # without probabilities it would take every answer for wrong
    evaluator = AlertEvaluator(yardstick, limits, repeat_interval=cool_down)
    with progress("replaying", source.n_rows, "predictions") as shown:
        events, n_labels = _run_backtest(evaluator, source.events(), shown.update)
    total = evaluator.counts("long")
    return Replay(
        events=tuple(events),
        n=total.n,
        n_labels=n_labels,
        since=total.since if total.n else None,
        until=total.until if total.n else None,
        limits=limits,
        evidence=evaluator.detectors.evidence,
        model_version=source.version,
        seconds=time.perf_counter() - begun,
    )


def _run_backtest(
    evaluator: AlertEvaluator, stream: Iterable[Events], advance: Callable[[int], object]
) -> tuple[list[AlertEvent], int]:
    """What becomes of alerts, and how many labels there are."""
    found: list[AlertEvent] = []
    messages: dict[Key, str] = {}
    n_labels = 0
    for events in stream:
        advance(events.rows.n)
        n_labels += int((events.labels.labels != events.labels.before).sum())  # one that is drawn later is told again
        for transition in evaluator.process(events):
            change, key = transition.change, transition.key
            if change.event in ("raised", "escalated"):
                messages[key] = transition.finding.alert_text(change.level)
            found.append(AlertEvent(transition.n, transition.time, *change, *key, message=messages[key]))
    return found, n_labels
