"""Go and look at the windows when there is news, and say what is worth telling: to the store, and from there on."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from toolkit.monitoring.alerts import WHAT_TO_DO, Sighting
from toolkit.monitoring.detectors import Found
from toolkit.monitoring.limits import Limits
from toolkit.monitoring.sentences import LONGEST
from toolkit.monitoring.sinks import Notice
from toolkit.monitoring.states import COOL_DOWN_SECONDS, Change, Event, Standing
from toolkit.monitoring.store import Model, PredictionStore
from toolkit.monitoring.view import View
from toolkit.monitoring.watch import Watch
from toolkit.monitoring.wording import shortened

OUTSIDE = "none"  # the window of what no window shows

Alert = dict[str, Any]  # a row of the store


class Lookout:
    """Look at the short and the medium window of a model version; raise alerts, remind of them and clear them.

    Parameters
    ----------
    store
        Where alerts stand.
    limits
        What counts as too much.
    clock
        Seconds since 1970.
    send
        Takes what is to be told; must neither wait nor raise.
    cool_down
        Seconds between two reminders of an alert that stands.
    """

    def __init__(
        self,
        store: PredictionStore,
        limits: Limits,
        clock: Callable[[], float],
        send: Callable[[Notice], object],
        cool_down: float = COOL_DOWN_SECONDS,
    ) -> None:
        self._store = store
        self._limits = limits
        self._clock = clock
        self._send = send
        self._cool_down = cool_down
        self._watches: dict[str, Watch] = {}  # by version
        self._looking = threading.Lock()

    def look(self, view: View, found: Sequence[Found] = (), *, automatic: bool = False) -> list[Alert]:
        """Look at what is new, and return the alerts that this raised.

        Parameters
        ----------
        found
            Alarms that have fired since the last look: reason enough to look at once.
        automatic
            Look only at windows of which a tenth is new, as somebody does who looks again and again;
            otherwise at all of them. What is not new is not counted as evidence a second time.
        """
        with self._looking:
            watch = self._watches.setdefault(view.model.version, Watch(self._limits, self._cool_down))
            alerts = {(alert["metric"], alert["window"]): alert for alert in self._standing(view)}
            standing = {key: _standing_of(alert) for key, alert in alerts.items()}
            changes = watch.look(view, standing, self._clock(), found, automatic=automatic)
            return [
                raised
                for sighting, change in changes
                for raised in self._act(view, sighting, alerts.get((sighting.metric, sighting.window)), change)
            ]

    def report(self, model: Model, metric: str, level: str, message: str) -> bool:
        """Raise an alert about what no window shows; False when the same stands already."""
        with self._looking:
            grade = {"metric": metric, "window": OUTSIDE, "level": level, "status": "confirmed", "value": 0.0}
            short = shortened(" ".join(message.split()), LONGEST)
            grade |= {"message": short, "details": "" if short == message else message}
            now = self._clock()
            if not self._store.raise_alert(model, grade | {"time": now, "notified_at": now}):
                return False
            self._tell("raised", self._store.alerts(model, standing=True)[0], WHAT_TO_DO[level])
            return True

    def _act(self, view: View, sighting: Sighting, alert: Alert | None, change: Change) -> list[Alert]:
        """Change the store; who has changed it, of several processes, tells the others of it."""
        now = self._clock()
        if change.event in ("raised", "escalated"):
            row = {
                "time": now,
                "metric": sighting.metric,
                "window": sighting.window,
                "level": change.level,
                "status": change.status,
                "value": sighting.value,
                "message": sighting.told(change.level),
                "details": sighting.details,
                "notified_at": now,
            }
            if not self._store.raise_alert(view.model, row):
                return []
            fresh = self._standing(view)[:1]
            self._tell(change.event, fresh[0], sighting.what_to_do)
            return fresh
        if alert is not None:
            changed = (
                self._store.clear_alert(alert["id"], now)
                if change.event == "cleared"
                else self._store.remind_of(alert["id"], alert["notified_at"], now)
            )
            if changed:
                self._tell(change.event, alert, sighting.what_to_do if change.event == "reminder" else "")
        return []

    def _tell(self, event: Event, alert: Alert, what_to_do: str) -> None:
        names = ("id", "level", "status", "model_version", "metric", "window", "value", "message", "details")
        about = {name: alert[name] for name in names}
        self._send(Notice(event=event, since=alert["time"], time=self._clock(), what_to_do=what_to_do, **about))

    def _standing(self, view: View) -> list[Alert]:
        return self._store.alerts(view.model, standing=True)


def _standing_of(alert: Alert) -> Standing:
    told = alert["notified_at"] if alert["notified_at"] is not None else alert["time"]
    return Standing(alert["level"], alert["status"], told, alert["acknowledged_at"] is not None)
