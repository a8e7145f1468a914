"""How a monitor works, beside what it watches."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from toolkit.monitoring.alerting.notifiers import LogNotifier, Notification, Notifier


def _log() -> dict[str, Notifier]:
    return {"log": LogNotifier()}


@dataclass(frozen=True)
class MonitorConfig:
    """Where alerts go, what is kept, and when things are done.

    Parameters
    ----------
    notifiers
        Where alerts are sent beside the store, each by its name: a ``WebhookNotifier``, or a ``Notifier`` of your own.
    on_immediate
        Called, in a thread of its own, with the ``Notification`` of an alert that is ``immediate`` and ``confirmed``;
        once until that has cleared.
    keep_days, keep_rows
        How long single predictions are kept, in days and in predictions of a version, never fewer than 10,000.
        Counts of a thousand each are kept permanently.
    drop_when_full
        For callers that must never wait, such as a service: while 10,000 predictions wait for the store, further ones
        are dropped, which is logged when it begins, and counted.
    evaluation_pause
        Seconds between two evaluations of alerts while fewer than 100 predictions and labels come: each costs a few
        milliseconds.
    clock
        Seconds since 1970.
    """

    notifiers: Mapping[str, Notifier] = field(default_factory=_log)
    on_immediate: Callable[[Notification], object] | None = None
    keep_days: float | None = None
    keep_rows: int | None = None
    drop_when_full: bool = False
    evaluation_pause: float = 0.5
    clock: Callable[[], float] = time.time
