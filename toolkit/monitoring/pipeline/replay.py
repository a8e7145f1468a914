"""A replay runs a recorded stream through windows, detectors and alerts once more, with other thresholds.

    from toolkit.monitoring.pipeline.replay import replay

    print(replay("predictions.parquet", baseline, Thresholds(max_false_alarms_per_million=10, warning=0.03)))

Nothing is written. A label counts from the time at which it arrived, as it did for the monitor.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from toolkit.bundle.baseline import Baseline
from toolkit.cli.terminal import progress, table
from toolkit.monitoring.alerting.evaluator import AlertEvaluator, Key
from toolkit.monitoring.alerting.state import REPEAT_INTERVAL_S
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.pipeline.replay_source import FileSource, StoreSource
from toolkit.monitoring.store.export import ENDINGS
from toolkit.monitoring.windows.reference import ReferenceBins


@dataclass(frozen=True)
class AlertEvent:
    """A change of an alert in a replay."""

    position: int  # predictions until then
    time: float  # seconds since 1970
    event: str  # ``raised``, ``escalated``, ``reminder`` or ``cleared``
    level: str  # this and the following: those of the alert
    status: str
    metric: str
    window: str
    message: str


@dataclass(frozen=True)
class Replay:
    """The alerts that a monitor with these thresholds would have raised; printed, it is a table."""

    events: tuple[AlertEvent, ...]  # oldest first
    n: int  # predictions in the stream
    n_labels: int  # a label that was changed counts again
    since: float | None  # earliest and latest time of a prediction, in seconds since 1970; None without predictions
    until: float | None
    thresholds: Thresholds
    evidence: Mapping[str, float | None]  # of each detector at the end, by metric, in [0, 1]; None without a reference
    model_version: str | None = None  # None when the file has no versions
    seconds: float = field(default=0.0, compare=False)  # duration of the replay

    @property
    def active_alerts(self) -> tuple[AlertEvent, ...]:
        """The alerts that were not cleared, as they were last raised or escalated."""
        latest: dict[Key, AlertEvent | None] = {}
        for event in self.events:
            if event.event != "reminder":
                latest[event.metric, event.window] = event if event.event != "cleared" else None
        return tuple(event for event in latest.values() if event)

    @property
    def expected_false_alarms(self) -> float:
        """Number of false alerts that the budget allows on average."""
        return self.thresholds.max_false_alarms_per_million * self.n / 1e6

    def to_dict(self) -> dict[str, Any]:
        """The replay, ready for JSON."""
        return asdict(self) | {
            "evidence": dict(self.evidence),
            "active_alerts": list(map(asdict, self.active_alerts)),
            "expected_false_alarms": self.expected_false_alarms,
        }

    def __str__(self) -> str:
        """The events as a table, each alert with its message."""
        return "\n".join([*self._summary(), *self._table()])

    def _summary(self) -> Iterator[str]:
        of = f" of version {self.model_version}" if self.model_version is not None else ""
        span = f", {_utc(self.since)} to {_utc(self.until)}" if self.since is not None else ""
        yield f"{self.n:,} predictions and {self.n_labels:,} labels{of}{span}."
        names = [event.event for event in self.events]
        reminders = f"; {names.count('reminder'):,} reminders are not listed" if "reminder" in names else ""
        yield (
            f"Alerts raised: {names.count('raised')}, active at the end: {len(self.active_alerts)}{reminders}."
            if names
            else "Nothing would have been raised."
        )
        yield (
            f"Budget {self.thresholds.max_false_alarms_per_million:g} false alarms per million predictions: "
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
            [f"{e.position:,}", _utc(e.time), e.event, e.level, e.status, e.metric, e.window]
            for e in shown
        ]  # fmt: skip
        heading, *lines = table(headings, rows).splitlines()
        yield from ("", heading)
        for event, line in zip(shown, lines, strict=True):
            yield line
            if event.event != "cleared":
                yield f"    {event.message}"


def _utc(seconds: float | None) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}" if seconds is not None else "-"


def replay(
    path: str | Path,
    baseline: Baseline | None,
    thresholds: Thresholds,
    *,
    model_version: str | None = None,
    repeat_interval: float = REPEAT_INTERVAL_S,
) -> Replay:
    """Run a recorded stream through the monitor's windows, detectors and alerts, without a store.

    Parameters
    ----------
    path
        A ``.csv`` or ``.parquet`` file as ``export`` writes it, or the address of a store. A file
        needs the columns ``time`` (UTC, or seconds since 1970) and either ``probability_CLASS`` for
        each class or ``predicted_class`` and ``confidence``; where ``label`` is given, it counts from
        ``label_time`` on, or from its prediction on without one. Rows are in the order of the stream.
    baseline
        The model's answers on held-out images; that in the store when None.
    thresholds
        Sizes at which levels begin, and the budget of false alarms.
    model_version
        The version to replay; of a store the one served last when None.
    repeat_interval
        Seconds between two reminders of an active alert.

    Raises
    ------
    SettingsError
        When there is no baseline.
    DataError
        When the file cannot be read, or has a wrong value: the message has its row, column, rule and value.
    PredictionStoreError
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
    started = time.perf_counter()
    source = (FileSource if str(path).endswith(ENDINGS) else StoreSource)(str(path), baseline, model_version)
    bins = ReferenceBins(source.baseline.classes, source.baseline)
    if not source.has_probabilities:
        bins.estimator = None  # without probabilities it would count every answer as wrong
    evaluator = AlertEvaluator(bins, thresholds, repeat_interval=repeat_interval)
    found: list[AlertEvent] = []
    messages: dict[Key, str] = {}
    n_labels = 0
    with progress("replaying", source.n_rows, "predictions") as shown:
        for events in source.events():
            shown.update(events.rows.n)
            n_labels += int((events.labels.labels != events.labels.before).sum())  # one that joins a sample comes twice
            for transition in evaluator.process(events):
                change, key = transition.change, transition.key
                if change.event in ("raised", "escalated"):
                    messages[key] = transition.finding.alert_text(change.level)
                found.append(AlertEvent(transition.n, transition.time, *change, *key, message=messages[key]))
    total = evaluator.counts("long")
    return Replay(
        events=tuple(found),
        n=total.n,
        n_labels=n_labels,
        since=total.since if total.n else None,
        until=total.until if total.n else None,
        thresholds=thresholds,
        evidence=evaluator.detectors.evidence,
        model_version=source.version,
        seconds=time.perf_counter() - started,
    )
