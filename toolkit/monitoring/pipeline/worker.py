"""What is done beside writing: keep up with the store, look, tell, and keep the store small."""

import logging
import math
import threading
import time

from toolkit.errors import first_line
from toolkit.monitoring.alerting.evaluator import EVALUATION_INTERVAL
from toolkit.monitoring.alerting.manager import AlertManager
from toolkit.monitoring.alerting.notifiers import Notifiers
from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.pipeline.config import MonitorConfig
from toolkit.monitoring.pipeline.stream_state import StreamState
from toolkit.monitoring.store.alerts import Alert
from toolkit.monitoring.store.predictions import ModelVersion, PredictionStore
from toolkit.monitoring.store.rollups import ROLLUP_SIZE, delete_expired, merge_old_rollups, write_due_rollups
from toolkit.monitoring.windows.summary import WindowSummary

logger = logging.getLogger(__name__)

ROLLUPS_AT_ONCE = 2  # written or emptied in one go, so that predictions do not wait long to be written


class MonitoringWorker:
    """Attend to the version that this process serves; called in the writer's thread, after it has written.

    Parameters
    ----------
    store
        Predictions, labels, rollups and alerts.
    limits
        What counts as too much; as the store says, when None.
    notifiers
        Where alerts are sent.
    config
        What stays of single predictions, and how often to look.
    """

    def __init__(
        self, store: PredictionStore, limits: Thresholds | None, notifiers: Notifiers, config: MonitorConfig
    ) -> None:
        self._store = store
        self._thresholds = limits
        self._config = config
        self._manager = AlertManager(store, config.clock, notifiers.send)
        self._view: StreamState | None = None
        self._making = threading.Lock()
        self._new_rows = 0  # predictions and labels since the last look
        self._since_rollup = 0  # and since rollups were written
        self._evaluated_at = -math.inf  # on the monotonic clock

    def view(self, model: ModelVersion) -> StreamState:
        """The view of a version; that of the version asked for last is kept."""
        with self._making:
            if self._view is None or self._view.model is not model:
                self._view = StreamState(self._store, model, self._thresholds)
            return self._view

    def after_write(self, model: ModelVersion, news: int) -> float | None:
        """Look, if it is time; return in how many seconds it will be, None when nothing is left to look at.

        Whatever goes wrong here, the predictions are stored.

        Parameters
        ----------
        news
            Predictions and labels since the last call.
        """
        self._new_rows += news
        self._since_rollup += news
        wait = self._evaluated_at + self._config.evaluation_pause - time.monotonic()
        if self._new_rows < EVALUATION_INTERVAL and wait > 0:
            return wait if self._new_rows else None
        self._new_rows, self._evaluated_at = 0, time.monotonic()
        try:
            self.evaluate_now(model)
            if self._since_rollup >= ROLLUP_SIZE:
                self._since_rollup = 0
                self._maintain(model)
        except Exception as error:  # noqa: BLE001  # nothing is lost by it
            logger.warning("alerts could not be checked: %s", first_line(error))
        return None

    def evaluate_now(self, model: ModelVersion, *, save: bool = False) -> list[Alert]:
        """Evaluate what came since the last time, and return the alerts that this raised."""
        return self._manager.evaluate(self.view(model).refresh(), save=save)

    def finish(self, model: ModelVersion) -> None:
        """Evaluate what is left when a process ends; whatever goes wrong, the next one does it."""
        try:
            self.evaluate_now(model, save=True)
        except Exception as error:  # noqa: BLE001  # nothing is lost by it
            logger.warning("alerts could not be checked: %s", first_line(error))

    def report(self, model: ModelVersion, metric: str, level: str, message: str) -> bool:
        """Raise an alert about what no window shows: see ``AlertManager``."""
        return self._manager.report(model, metric, level, message)

    def _maintain(self, model: ModelVersion) -> None:
        """Count what is full, let go what is old, a little at a time."""
        yardstick = self.view(model).bins

        def make(rows: Predictions) -> bytes:
            return yardstick.count(rows).to_bytes()

        def add(older: bytes, newer: bytes) -> bytes:
            return (WindowSummary.from_bytes(older) + WindowSummary.from_bytes(newer)).to_bytes()

        write_due_rollups(self._store, model, make, ROLLUPS_AT_ONCE)
        keep_days, keep_rows = self._config.keep_days, self._config.keep_rows
        if keep_days is not None or keep_rows is not None:
            self.evaluate_now(model, save=True)  # a process that goes on from here needs the rows before this place
            delete_expired(self._store, keep_days, keep_rows, now=self._config.clock(), at_most=ROLLUPS_AT_ONCE)
            merge_old_rollups(self._store, model, add)
