"""Alerts leave the process here: written to the store in one transaction, then sent as notifications."""

import threading
from collections.abc import Callable
from typing import Any, Protocol

from toolkit.monitoring.alerting import checkpoints
from toolkit.monitoring.alerting.checkpoints import Checkpoint
from toolkit.monitoring.alerting.evaluator import Transition
from toolkit.monitoring.alerting.findings import ADVICE
from toolkit.monitoring.alerting.messages import MAX_LINE
from toolkit.monitoring.alerting.notifiers import Notification
from toolkit.monitoring.alerting.state import REPEAT_INTERVAL_S, Event
from toolkit.monitoring.base.formatting import truncate
from toolkit.monitoring.store.alerts import Alert
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.predictions import PredictionStore

NO_WINDOW = "none"  # the window of an alert that no window shows
SAVE_INTERVAL = 1_000  # predictions and labels after which a checkpoint is written though no alert changed


class AlertSource(Protocol):
    """A model version whose predictions and labels are evaluated, such as a ``StreamState``."""

    model: ModelVersion

    def progress(self) -> tuple[Checkpoint, list[Transition]]:
        """The position reached, and the transitions that have not been written yet."""

    def written(self, position: int) -> None:
        """Note that all transitions up to a position are in the store."""

    def reload(self) -> None:
        """Drop everything, and resume from the checkpoint in the store."""


class AlertManager:
    """Writes the alerts of model versions to the store, sends notifications of them, and repeats these.

    Of several processes that evaluate the same version, one writes and notifies.

    Parameters
    ----------
    store
        Where alerts are kept.
    clock
        Seconds since 1970.
    send
        Takes a ``Notification``, and ``react``: whether the alert is still active. Must neither wait nor raise.
    repeat_interval
        Seconds between two reminders of an active alert.
    """

    def __init__(
        self,
        store: PredictionStore,
        clock: Callable[[], float],
        send: Callable[..., Any],
        repeat_interval: float = REPEAT_INTERVAL_S,
    ) -> None:
        self._store = store
        self._clock = clock
        self._send = send
        self._repeat_interval = repeat_interval
        self._evaluating = threading.Lock()
        self._saved: dict[str, int] = {}  # by version: the position written last

    def evaluate(self, source: AlertSource, *, save: bool = False) -> list[Alert]:
        """Write and notify of the transitions since the last call; return the alerts that this raised.

        Parameters
        ----------
        source
            A version that is up to date with the store.
        save
            Write the checkpoint in any case.
        """
        with self._evaluating:
            written = self._write(source, save)
            last = {transition.key: transition.change.event for transition, _ in written}
            for transition, alert in written:
                is_active = last[transition.key] != "cleared"
                self._notify(transition.change.event, alert, transition.finding.advice, react=is_active)
            self._remind(source.model)
            return [alert for transition, alert in written if transition.change.event in ("raised", "escalated")]

    def report(self, model: ModelVersion, metric: str, level: str, message: str) -> bool:
        """Raise an alert that no window shows; return False when the same one is active already."""
        with self._evaluating:
            short, now = truncate(" ".join(message.split()), MAX_LINE), self._clock()
            alert = Alert(
                time=now, metric=metric, window=NO_WINDOW, level=level, status="confirmed", value=0.0, message=short,
                details="" if short == message else message, notified_at=now,
            )  # fmt: skip
            if not self._store.alerts.insert(model, alert):
                return False
            self._notify("raised", self._store.alerts.find(model, active=True)[0], ADVICE[level])
            return True

    def _write(self, source: AlertSource, save: bool) -> list[tuple[Transition, Alert]]:
        checkpoint, transitions = source.progress()
        version = source.model.version
        new = checkpoint.position - self._saved.get(version, 0)
        if not (transitions or new >= SAVE_INTERVAL or (save and new)):
            return []
        written = checkpoints.commit(self._store, source.model, checkpoint, transitions, self._clock())
        if written is None:  # cleared by the service of another version
            source.reload()
            return []
        source.written(checkpoint.position)
        self._saved[version] = checkpoint.position
        return written

    def _remind(self, model: ModelVersion) -> None:
        """Repeat the notification of each active alert that is due."""
        now = self._clock()
        for alert in self._store.alerts.find(model, active=True):
            notified = alert.notified_at or alert.time
            if alert.window == NO_WINDOW or alert.acknowledged_at is not None or now - notified < self._repeat_interval:
                continue
            if self._store.alerts.claim_reminder(alert.id, alert.notified_at, now):
                self._notify("reminder", alert, ADVICE[alert.level])

    def _notify(self, event: Event, alert: Alert, advice: str, *, react: bool = True) -> None:
        names = ("id", "level", "status", "model_version", "metric", "window", "value", "message", "details")
        fields = {name: getattr(alert, name) for name in names}
        advice = advice if event != "cleared" else ""
        notification = Notification(event=event, since=alert.time, time=self._clock(), what_to_do=advice, **fields)
        self._send(notification, react=react)
