"""The work in the writer's thread after each batch: alerts are evaluated, rollups written, expired rows deleted."""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from toolkit.errors import first_line
from toolkit.monitoring.alerting.evaluator import EVALUATION_INTERVAL
from toolkit.monitoring.alerting.manager import AlertManager
from toolkit.monitoring.alerting.notifiers import LogNotifier, Notification, Notifier, Notifiers
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.pipeline.stream_state import StreamState
from toolkit.monitoring.store.alerts import Alert
from toolkit.monitoring.store.predictions import ModelVersion, PredictionStore
from toolkit.monitoring.store.rollups import ROLLUP_SIZE, delete_expired, merge_old_rollups, write_due_rollups
from toolkit.monitoring.windows.summary import WindowSummary

logger = logging.getLogger(__name__)

MAX_DELAY_S = 2.0  # of evaluations while many predictions wait to be stored
ROLLUPS_AT_ONCE = 2  # written or deleted from in one call, so that new predictions are not delayed


@dataclass(frozen=True)
class MonitorConfig:
    """Notifiers, retention, and the interval between evaluations.

    Parameters
    ----------
    notifiers
        Where alerts are sent, by name: a ``WebhookNotifier``, or a ``Notifier`` of your own. They are in the store in
        any case.
    on_immediate
        Called, in a thread of its own, with the ``Notification`` of an alert that is ``immediate`` and ``confirmed``;
        once until that has cleared.
    keep_days, keep_rows
        How long single predictions are kept, in days and in predictions of a version, at least 10,000. Counts of a
        thousand each are kept permanently.
    drop_when_full
        For callers that must never wait, such as a service: while 10,000 predictions wait for the store, further ones
        are dropped, which is logged when it begins, and counted.
    evaluation_pause
        Seconds between two evaluations of alerts while fewer than 100 predictions and labels arrive: each costs a few
        milliseconds.
    clock
        Seconds since 1970.

    Examples
    --------
    >>> config = MonitorConfig(keep_days=30, drop_when_full=True)
    >>> list(config.notifiers), config.keep_rows
    (['log'], None)
    """

    notifiers: Mapping[str, Notifier] = field(default_factory=lambda: {"log": LogNotifier()})
    on_immediate: Callable[[Notification], object] | None = None
    keep_days: float | None = None
    keep_rows: int | None = None
    drop_when_full: bool = False
    evaluation_pause: float = 0.5
    clock: Callable[[], float] = time.time


class MonitoringWorker:
    """Evaluates alerts and maintains the store for the version that this process serves.

    ``thresholds`` are those of the checkpoint in the store when None.
    """

    def __init__(
        self, store: PredictionStore, thresholds: Thresholds | None, notifiers: Notifiers, config: MonitorConfig
    ) -> None:
        self.alerts = AlertManager(store, config.clock, notifiers.send)
        self._store = store
        self._thresholds = thresholds
        self._config = config
        self._stream: StreamState | None = None
        self._opening = threading.Lock()
        self._new_rows = 0  # predictions and labels since the last evaluation
        self._rows_since_rollup = 0  # and since rollups were written
        self._evaluated_at = -math.inf  # on the monotonic clock

    def stream(self, model: ModelVersion) -> StreamState:
        """The state of a version; that of the last version is kept."""
        with self._opening:
            if self._stream is None or self._stream.model is not model:
                self._stream = StreamState(self._store, model, self._thresholds)
            return self._stream

    def after_write(self, model: ModelVersion, new_rows: int, *, is_busy: bool = False) -> float | None:
        """Evaluate alerts and maintain the store if it is time; errors are logged.

        Parameters
        ----------
        new_rows
            Predictions and labels since the last call.
        is_busy
            Whether many predictions wait to be stored.

        Returns
        -------
        float or None
            Seconds until the next evaluation; None when all rows are evaluated.
        """
        self._new_rows += new_rows
        self._rows_since_rollup += new_rows
        passed = time.monotonic() - self._evaluated_at
        if is_busy and passed < MAX_DELAY_S:
            return 0.0  # storing comes first
        if self._new_rows < EVALUATION_INTERVAL and passed < self._config.evaluation_pause:
            return self._config.evaluation_pause - passed if self._new_rows else None
        self._new_rows = 0
        try:
            self.evaluate_now(model)
            if self._rows_since_rollup >= ROLLUP_SIZE:
                self._rows_since_rollup = 0
                self._maintain(model)
        except Exception as error:  # noqa: BLE001  # the predictions are stored
            logger.warning("alerts could not be checked: %s", first_line(error))
        self._evaluated_at = time.monotonic()
        return None

    def evaluate_now(self, model: ModelVersion, *, save: bool = False) -> list[Alert]:
        """Evaluate the new rows, and return the alerts that this raised; with ``save``, write a checkpoint."""
        stream = self.stream(model).refresh()
        checkpoint, transitions = stream.progress()
        raised = self.alerts.write(model, checkpoint, transitions, save=save)
        if raised is None:  # cleared by the service of another version
            stream.reload()
            return []
        stream.written(checkpoint.position)
        return raised

    def finish(self, model: ModelVersion) -> None:
        """Evaluate the remaining rows when the process ends; errors are logged, and the next process does it."""
        try:
            self.evaluate_now(model, save=True)
        except Exception as error:  # noqa: BLE001  # the predictions are stored
            logger.warning("alerts could not be checked: %s", first_line(error))

    def _maintain(self, model: ModelVersion) -> None:
        """Write and merge rollups, and delete expired rows, a few at a time."""
        store, config, bins = self._store, self._config, self.stream(model).bins
        write_due_rollups(store, model, lambda rows: bins.count(rows).to_bytes(), ROLLUPS_AT_ONCE)
        if config.keep_days is not None or config.keep_rows is not None:
            self.evaluate_now(model, save=True)  # a process that resumes from an older checkpoint needs the rows
            delete_expired(store, config.keep_days, config.keep_rows, now=config.clock(), at_most=ROLLUPS_AT_ONCE)
            merge_old_rollups(store, model, _add_counts)


def _add_counts(older: bytes, newer: bytes) -> bytes:
    return (WindowSummary.from_bytes(older) + WindowSummary.from_bytes(newer)).to_bytes()
