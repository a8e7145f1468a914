"""Alerts leave the process here: written to the store in one transaction, then sent as notifications."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

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


class AlertManager:
    """Writes the alerts of model versions to the store, sends notifications of them, and repeats these.

    Of several processes that evaluate the same version, one writes and notifies. ``send`` takes a ``Notification``, and
    ``react``: whether the alert is still active; it must neither wait nor raise.
    """

    def __init__(self, store: PredictionStore, clock: Callable[[], float], send: Callable[..., Any]) -> None:
        self._store, self._clock, self._send = store, clock, send
        self._writing = threading.Lock()
        self._saved: dict[str, int] = {}  # by version: the position written last

    def write(
        self, model: ModelVersion, checkpoint: Checkpoint, transitions: Sequence[Transition], *, save: bool = False
    ) -> list[Alert] | None:
        """Write and notify of transitions, and repeat what is due; return the alerts that this raised.

        The checkpoint is written with them, after 1,000 predictions and labels, or with ``save``. None is returned when
        the alerts were cleared since the evaluation, which has to start again from the store.
        """
        with self._writing:
            written: list[tuple[Transition, Alert]] = []
            new = checkpoint.position - self._saved.get(model.version, 0)
            if transitions or new >= SAVE_INTERVAL or (save and new):
                committed = checkpoints.commit(self._store, model, checkpoint, transitions, self._clock())
                if committed is None:
                    return None
                written = committed
                self._saved[model.version] = checkpoint.position
            last = {transition.key: transition.change.event for transition, _ in written}
            for transition, alert in written:
                is_active = last[transition.key] != "cleared"
                self._notify(transition.change.event, alert, transition.finding.level, react=is_active)
            self._remind(model)
            return [alert for transition, alert in written if transition.change.event in ("raised", "escalated")]

    def report(self, model: ModelVersion, metric: str, level: str, message: str) -> bool:
        """Raise an alert that no window shows; return False when the same one is active already."""
        with self._writing:
            short, now = truncate(" ".join(message.split()), MAX_LINE), self._clock()
            alert = Alert(
                time=now, metric=metric, window=NO_WINDOW, level=level, status="confirmed", value=0.0, message=short,
                details="" if short == message else message, notified_at=now,
            )  # fmt: skip
            if not self._store.alerts.insert(model, alert):
                return False
            self._notify("raised", self._store.alerts.find(model, active=True)[0], level)
            return True

    def _remind(self, model: ModelVersion) -> None:
        """Repeat the notification of each active alert that is due."""
        now = self._clock()
        for alert in self._store.alerts.find(model, active=True):
            notified = alert.notified_at or alert.time
            if alert.window == NO_WINDOW or alert.acknowledged_at is not None or now - notified < REPEAT_INTERVAL_S:
                continue
            if self._store.alerts.claim_reminder(alert.id, alert.notified_at, now):
                self._notify("reminder", alert, alert.level)

    def _notify(self, event: Event, alert: Alert, level: str, *, react: bool = True) -> None:
        """Send a notification of an alert, with the advice for a level."""
        names = ("id", "level", "status", "model_version", "metric", "window", "value", "message", "details")
        fields = {name: getattr(alert, name) for name in names}
        advice = ADVICE[level] if event != "cleared" else ""
        notification = Notification(event=event, since=alert.time, time=self._clock(), what_to_do=advice, **fields)
        self._send(notification, react=react)
