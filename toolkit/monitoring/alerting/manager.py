"""Alerts as they leave a process: written to the store, and from there on to people."""

import threading
from collections.abc import Callable
from typing import Any

from toolkit.monitoring.alerting import checkpoints
from toolkit.monitoring.alerting.evaluator import Transition
from toolkit.monitoring.alerting.findings import ADVICE
from toolkit.monitoring.alerting.messages import MAX_LINE
from toolkit.monitoring.alerting.notifiers import Notification
from toolkit.monitoring.alerting.state import REPEAT_INTERVAL_S, Event
from toolkit.monitoring.pipeline.stream_state import StreamState
from toolkit.monitoring.report import shortened
from toolkit.monitoring.store.alerts import Alert
from toolkit.monitoring.store.predictions import ModelVersion, PredictionStore

NO_WINDOW = "none"  # the window of what no window shows
SAVE_EVERY = 1_000  # predictions and labels after which the place in the stream is written though no alert changed

Send = Callable[..., Any]  # takes a notice, and whether to react to it


class AlertManager:
    """Write what becomes of the alerts of a model version, tell people of it, and remind them.

    Parameters
    ----------
    store
        Where alerts stand.
    clock
        Seconds since 1970.
    send
        Takes a ``Notification``, and ``react``: whether the alert still stands; must neither wait nor raise.
    cool_down
        Seconds between two reminders of an alert that stands.
    """

    def __init__(
        self,
        store: PredictionStore,
        clock: Callable[[], float],
        send: Send,
        cool_down: float = REPEAT_INTERVAL_S,
    ) -> None:
        self._store = store
        self._clock = clock
        self._send = send
        self._repeat_interval = cool_down
        self._evaluating = threading.Lock()
        self._saved: dict[str, int] = {}  # by version: the position written last

    def evaluate(self, view: StreamState, *, save: bool = False) -> list[Alert]:
        """Write and tell what became of the alerts since the last time; return those that this raised.

        Parameters
        ----------
        view
            A version that has caught up.
        save
            Write the place in the stream in any case.
        """
        with self._evaluating:
            written = self._write(view, save)
            last = {transition.key: transition.change.event for transition, _ in written}
            for transition, alert in written:
                stands = last[transition.key] != "cleared"
                self._notify(transition.change.event, alert, transition.finding.what_to_do, react=stands)
            self._remind(view.model)
            return [alert for transition, alert in written if transition.change.event in ("raised", "escalated")]

    def _write(self, view: StreamState, save: bool) -> list[tuple[Transition, Alert]]:
        checkpoint, transitions = view.progress()
        new = checkpoint.position - self._saved.get(view.model.version, 0)
        if not (transitions or new >= SAVE_EVERY or (save and new)):
            return []
        written = checkpoints.commit(self._store, view.model, checkpoint, transitions, self._clock())
        if written is None:  # cleared by the service of another version
            view.reload()
            return []
        view.written(checkpoint.position)
        self._saved[view.model.version] = checkpoint.position
        return written

    def report(self, model: ModelVersion, metric: str, level: str, message: str) -> bool:
        """Raise an alert about what no window shows; False when the same stands already."""
        with self._evaluating:
            short, now = shortened(" ".join(message.split()), MAX_LINE), self._clock()
            alert = Alert(
                time=now, metric=metric, window=NO_WINDOW, level=level, status="confirmed", value=0.0, message=short,
                details="" if short == message else message, notified_at=now,
            )  # fmt: skip
            if not self._store.alerts.insert(model, alert):
                return False
            self._notify("raised", self._store.alerts.find(model, active=True)[0], ADVICE[level])
            return True

    def _remind(self, model: ModelVersion) -> None:
        """Tell again of what stands; of several processes one does so."""
        now = self._clock()
        for alert in self._store.alerts.find(model, active=True):
            notified = alert.notified_at or alert.time
            if alert.window == NO_WINDOW or alert.acknowledged_at is not None or now - notified < self._repeat_interval:
                continue
            if self._store.alerts.claim_reminder(alert.id, alert.notified_at, now):
                self._notify("reminder", alert, ADVICE[alert.level])

    def _notify(self, event: Event, alert: Alert, what_to_do: str, *, react: bool = True) -> None:
        names = ("id", "level", "status", "model_version", "metric", "window", "value", "message", "details")
        about = {name: getattr(alert, name) for name in names}
        advice = what_to_do if event != "cleared" else ""
        notice = Notification(event=event, since=alert.time, time=self._clock(), what_to_do=advice, **about)
        self._send(notice, react=react)
