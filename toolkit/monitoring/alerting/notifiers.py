"""Where alerts go beside the store: to the log, to webhooks, and to whoever reacts to the worst.

Sending never waits and never raises: a sink that fails is counted, and logged once.
"""

import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from toolkit.errors import first_line
from toolkit.monitoring.alerting.messages import NEXT
from toolkit.monitoring.alerting.state import Event, alert_key

logger = logging.getLogger(__name__)

EXIT_TIMEOUT_S = 2.0  # what a closing process grants a reaction that is under way


@dataclass(frozen=True)
class Notification:
    """What is told of an alert: that it was raised, escalated or cleared, or that it still stands.

    Parameters
    ----------
    id
        Its number in the store.
    event
        ``raised``, ``escalated``, ``reminder`` or ``cleared``.
    value
        Size of the change; None when unknown.
    message
        What happened, since when, how bad and how sure that is, what changed, and what to type next: one line of
        at most 200 characters.
    since, time
        When the alert was raised and when this event happened, in seconds since 1970.
    what_to_do
        Advice to whoever reads it.
    details
        The figures behind the message, a line each.

    Examples
    --------
    >>> Notice(7, "raised", "warning", "confirmed", "3", "accuracy", "short", 0.08, "Accuracy fell", 60, 60).key
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
        """The same for all that is told of one alert."""
        return alert_key(self.model_version, self.metric, self.window)

    @property
    def what(self) -> str:
        """The message without what to type next: for whoever has done that already."""
        return self.message.partition(NEXT)[0]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        value = float(self.value) if self.value is not None and math.isfinite(self.value) else None
        return {**asdict(self), "key": self.key, "value": value}


class Notifier:
    """A place that notices go to. Whoever makes another one overrides ``send``, and the rest where it is needed."""

    def send(self, notice: Notification) -> None:
        """Take a notice, without waiting; what is raised here is counted as failed."""
        raise NotImplementedError

    def stats(self) -> dict[str, int]:
        """Own counts of ``sent``, ``failed``, ``dropped``, where taking a notice is not yet sending it."""
        return {}

    def close(self) -> None:
        """Send what is waiting and stop, within a second or two."""


class LogNotifier(Notifier):
    """Alerts as lines of the process's log.

    Examples
    --------
    >>> import sys
    >>> handler = logging.StreamHandler(sys.stdout)
    >>> logger.addHandler(handler)
    >>> what = "3", "accuracy", "short", 0.12, "Accuracy fell from 90.0% to 79.2%."
    >>> Log().send(Notice(7, "raised", "critical", "confirmed", *what, since=0, time=0))
    critical (confirmed): Accuracy fell from 90.0% to 79.2%.
    >>> Log().send(Notice(7, "reminder", "critical", "confirmed", *what, since=0, time=21600))
    still critical (confirmed): Accuracy fell from 90.0% to 79.2%.
    >>> logger.removeHandler(handler)
    """

    def send(self, notice: Notification) -> None:
        """Write a line: a warning, or a piece of information when the alert has cleared."""
        if notice.event == "cleared":
            place = notice.metric, notice.window, notice.model_version
            logger.info("cleared: %s in the %s window of model version %s is back to normal", *place)
            return
        still = "still " if notice.event == "reminder" else ""
        logger.warning("%s%s (%s): %s", still, notice.level, notice.status, notice.message)


class Notifiers:
    """All places that notices go to, and what is done about the worst of them.

    Parameters
    ----------
    sinks
        Each by its name in figures and log lines.
    on_immediate
        Called once for an alert that becomes ``immediate`` and ``confirmed``, in a thread of its
        own, and not again for the same key until that has cleared. Two windows or metrics of one
        version are two keys, so a reaction such as a rollback looks whether ``model_version`` is
        still the one that serves.

    Examples
    --------
    >>> class Printer(Sink):
    ...     def send(self, notice):
    ...         print(notice.event, notice.key)
    >>> sinks = Sinks({"printer": Printer()})
    >>> sinks.send(Notice(7, "raised", "warning", "confirmed", "3", "accuracy", "short", 0.08, "...", 0, 0))
    raised 3/accuracy/short
    >>> sinks.stats()
    {'printer': {'sent': 1, 'failed': 0, 'dropped': 0}}
    """

    def __init__(
        self, sinks: Mapping[str, Notifier], on_immediate: Callable[[Notification], object] | None = None
    ) -> None:
        self._notifiers = dict(sinks)
        self._on_immediate = on_immediate
        self._counting = threading.Lock()
        self._taken = dict.fromkeys(self._notifiers, 0)
        self._raised = dict.fromkeys(self._notifiers, 0)
        self._failing: set[str] = set()  # sinks whose last notice failed
        self._reacted: set[str] = set()  # keys of the alerts that were reacted to
        self._reactions: list[threading.Thread] = []

    def send(self, notice: Notification, *, react: bool = True) -> None:
        """Hand a notice to every sink; never raises.

        Parameters
        ----------
        react
            Whether an alert that is the worst is acted upon: not one that has cleared meanwhile.
        """
        for name, sink in self._notifiers.items():
            try:
                sink.send(notice)
            except Exception as error:  # noqa: BLE001  # whatever it is, the other sinks and the predictions go on
                self._failed(name, error)
            else:
                self._succeeded(name)
        if self._on_immediate is not None and react and self._is_due(notice):
            reaction = threading.Thread(
                target=self._run_reaction, args=(self._on_immediate, notice), name="alert-reaction", daemon=True
            )
            try:
                reaction.start()
            except RuntimeError as error:  # the machine allows no more threads, or the process is ending
                logger.error("no reaction to the alert %s: %s", notice.key, error)
            else:
                self._reactions = [thread for thread in self._reactions if thread.is_alive()] + [reaction]

    def stats(self) -> dict[str, dict[str, int]]:
        """Notices ``sent``, ``failed`` and ``dropped``, by the sink's name."""
        with self._counting:
            taken, raised = dict(self._taken), dict(self._raised)
        figures = {}
        for name, sink in self._notifiers.items():
            counts = {"sent": taken[name], "failed": 0, "dropped": 0} | sink.stats()
            figures[name] = counts | {"failed": counts["failed"] + raised[name]}
        return figures

    def close(self) -> None:
        """Let every sink send what is waiting, and reactions end, within a second or two each."""
        for name, sink in self._notifiers.items():
            try:
                sink.close()
            except Exception as error:  # noqa: BLE001  # the other sinks are closed all the same
                logger.error("%s cannot be closed: %s", name, first_line(error))
        for reaction in self._reactions:
            reaction.join(EXIT_TIMEOUT_S)

    def _failed(self, name: str, error: Exception) -> None:
        with self._counting:
            self._raised[name] += 1
            began = name not in self._failing
            self._failing.add(name)
        if began:
            logger.error("alerts cannot be handed to %s: %s", name, first_line(error))

    def _succeeded(self, name: str) -> None:
        with self._counting:
            self._taken[name] += 1
            ended = name in self._failing
            self._failing.discard(name)
        if ended:
            logger.warning("alerts are handed to %s again", name)

    def _is_due(self, notice: Notification) -> bool:
        """Whether to react to this notice, which is then remembered."""
        with self._counting:
            if notice.event == "cleared":
                self._reacted.discard(notice.key)
            worst = (notice.level, notice.status) == ("immediate", "confirmed")
            if notice.event not in ("raised", "escalated") or not worst or notice.key in self._reacted:
                return False
            self._reacted.add(notice.key)
            return True

    @staticmethod
    def _run_reaction(on_immediate: Callable[[Notification], object], notice: Notification) -> None:
        try:
            on_immediate(notice)
        except Exception:
            logger.exception("the reaction to the alert %s failed", notice.key)
