"""Notifications of alerts: to the log, to webhooks, to notifiers of a program's own, and reactions to the worst.

Sending never waits and never raises: a notifier that fails is counted, and logged once.
"""

import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from toolkit.errors import first_line
from toolkit.monitoring.alerting.messages import NEXT
from toolkit.monitoring.alerting.state import Event

logger = logging.getLogger(__name__)

EXIT_TIMEOUT_S = 2.0  # for a reaction that is under way when the process ends


@dataclass(frozen=True)
class Notification:
    """An event of an alert: it was raised, escalated or cleared, or it is still active.

    Parameters
    ----------
    id
        Number of the alert in the store.
    event
        ``raised``, ``escalated``, ``reminder`` or ``cleared``.
    level, status
        ``warning``, ``critical`` or ``immediate``; ``confirmed``, ``suspected`` or ``estimate``.
    model_version, metric, window
        What it is about.
    value
        Size of the change; None when unknown.
    message
        One line of at most 200 characters: what, since when, how bad and how certain, and the command to type next.
    since, time
        When the alert was raised and when this event happened, in seconds since 1970.
    what_to_do
        Advice in a sentence; empty for an alert that cleared.
    details
        The numbers behind the message, a line each.

    Examples
    --------
    >>> Notification(7, "raised", "warning", "confirmed", "3", "accuracy", "short", 0.08, "Accuracy fell", 60, 60).key
    '3/accuracy/short'
    """

    id: int
    event: Event
    level: str
    status: str
    model_version: str
    metric: str
    window: str
    value: float | None
    message: str
    since: float
    time: float
    what_to_do: str = ""
    details: str = ""

    @property
    def key(self) -> str:
        """Version, metric and window: the same for all notifications of one alert."""
        return f"{self.model_version}/{self.metric}/{self.window}"

    @property
    def what(self) -> str:
        """The message without the command to type next."""
        return self.message.partition(NEXT)[0]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        value = float(self.value) if self.value is not None and math.isfinite(self.value) else None
        return {**asdict(self), "key": self.key, "value": value}


class Notifier:
    """A receiver of notifications; a subclass overrides ``send``, and the rest where needed.

    Examples
    --------
    >>> class Printer(Notifier):
    ...     def send(self, notification):
    ...         print(notification.event, notification.key)
    """

    def send(self, notification: Notification) -> None:
        """Take a notification without waiting; an exception counts as failed."""
        raise NotImplementedError

    def stats(self) -> dict[str, int]:
        """Counts of ``sent``, ``failed``, ``dropped``, where taking a notification is not yet sending it."""
        return {}

    def close(self) -> None:
        """Send what is waiting and stop, within a second or two."""


class LogNotifier(Notifier):
    """Notifications as lines of the process's log, such as ``critical (confirmed): ACCURACY 90 -> 79 % ...``."""

    def send(self, notification: Notification) -> None:
        """Log a line: a warning, or at level info when the alert has cleared."""
        if notification.event == "cleared":
            place = notification.metric, notification.window, notification.model_version
            logger.info("cleared: %s in the %s window of model version %s is back to normal", *place)
            return
        still = "still " if notification.event == "reminder" else ""
        logger.warning("%s%s (%s): %s", still, notification.level, notification.status, notification.message)


class Notifiers:
    """All notifiers of a monitor, and the reaction to the worst alerts.

    Parameters
    ----------
    notifiers
        Each by its name in counts and log lines.
    on_immediate
        Called with the notification of an alert that becomes ``immediate`` and ``confirmed``, in a thread of its own,
        and not again for the same key until that has cleared. Two windows or metrics of one version are two keys, so
        a reaction such as a rollback checks that ``model_version`` is still the one that serves.

    Examples
    --------
    >>> class Printer(Notifier):
    ...     def send(self, notification):
    ...         print(notification.event, notification.key)
    >>> notifiers = Notifiers({"printer": Printer()})
    >>> notifiers.send(Notification(7, "raised", "warning", "confirmed", "3", "accuracy", "short", 0.08, "...", 0, 0))
    raised 3/accuracy/short
    >>> notifiers.stats()
    {'printer': {'sent': 1, 'failed': 0, 'dropped': 0}}
    """

    def __init__(
        self, notifiers: Mapping[str, Notifier], on_immediate: Callable[[Notification], object] | None = None
    ) -> None:
        self._notifiers = dict(notifiers)
        self._on_immediate = on_immediate
        self._counting = threading.Lock()
        self._counts = {name: {"sent": 0, "failed": 0, "dropped": 0} for name in self._notifiers}
        self._failing = dict.fromkeys(self._notifiers, False)  # whether the last notification failed
        self._reacted: set[str] = set()  # keys of the alerts that were reacted to
        self._reactions: list[threading.Thread] = []

    def send(self, notification: Notification, *, react: bool = True) -> None:
        """Hand a notification to all notifiers; never raises.

        Parameters
        ----------
        react
            Whether ``on_immediate`` may be called: not for an alert that has cleared meanwhile.
        """
        for name, notifier in self._notifiers.items():
            try:
                notifier.send(notification)
            except Exception as error:  # noqa: BLE001  # whatever it is, the other notifiers and the predictions go on
                self._count(name, error)
            else:
                self._count(name, None)
        if self._on_immediate is not None and react and self._is_due(notification):
            about = self._on_immediate, notification
            reaction = threading.Thread(target=self._run_reaction, args=about, name="alert-reaction", daemon=True)
            try:
                reaction.start()
            except RuntimeError as error:  # the machine allows no more threads, or the process is ending
                logger.error("no reaction to the alert %s: %s", notification.key, error)
            else:
                self._reactions = [thread for thread in self._reactions if thread.is_alive()] + [reaction]

    def stats(self) -> dict[str, dict[str, int]]:
        """Notifications ``sent``, ``failed`` and ``dropped``, by the notifier's name."""
        own = {name: notifier.stats() for name, notifier in self._notifiers.items()}
        return {
            name: counts | own[name] | {"failed": counts["failed"] + own[name].get("failed", 0)}
            for name, counts in self._counts.items()
        }

    def close(self) -> None:
        """Let notifiers send what is waiting and reactions end, within a second or two each."""
        for name, notifier in self._notifiers.items():
            try:
                notifier.close()
            except Exception as error:  # noqa: BLE001  # the other notifiers are closed all the same
                logger.error("%s cannot be closed: %s", name, first_line(error))
        for reaction in self._reactions:
            reaction.join(EXIT_TIMEOUT_S)

    def _count(self, name: str, error: Exception | None) -> None:
        """Count a notification; log when a notifier begins to fail, and when it no longer does."""
        with self._counting:
            self._counts[name]["sent" if error is None else "failed"] += 1
            failed_before, self._failing[name] = self._failing[name], error is not None
        if error is not None and not failed_before:
            logger.error("alerts cannot be handed to %s: %s", name, first_line(error))
        elif failed_before and error is None:
            logger.warning("alerts are handed to %s again", name)

    def _is_due(self, notification: Notification) -> bool:
        """Whether to react to this notification; if so, its key is remembered."""
        with self._counting:
            if notification.event == "cleared":
                self._reacted.discard(notification.key)
            worst = (notification.level, notification.status) == ("immediate", "confirmed")
            if notification.event not in ("raised", "escalated") or not worst or notification.key in self._reacted:
                return False
            self._reacted.add(notification.key)
            return True

    @staticmethod
    def _run_reaction(on_immediate: Callable[[Notification], object], notification: Notification) -> None:
        try:
            on_immediate(notification)
        except Exception:
            logger.exception("the reaction to the alert %s failed", notification.key)
