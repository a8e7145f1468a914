"""Logged predictions on their way to the store, and the evaluation of alerts that follows each batch."""

import logging
from collections.abc import Sequence

from toolkit.monitoring.pipeline.model_selection import ModelSelection
from toolkit.monitoring.pipeline.worker import MonitorConfig, MonitoringWorker
from toolkit.monitoring.store.background_writer import BATCH, BackgroundWriter
from toolkit.monitoring.store.predictions import LoggedPrediction, PredictionStore

logger = logging.getLogger(__name__)


class PredictionLogger:
    """A queue of predictions, written by a background thread that then evaluates the served version."""

    def __init__(
        self, store: PredictionStore, models: ModelSelection, worker: MonitoringWorker, config: MonitorConfig
    ) -> None:
        self._store, self._models, self._worker, self._clock = store, models, worker, config.clock
        self._new_labels = 0  # since the last batch
        self._has_repeats = False  # whether an id was in the store already
        self.queue: BackgroundWriter[LoggedPrediction] = BackgroundWriter(self._write, drop=config.drop_when_full)

    def add_labels(self, count: int) -> None:
        """Count new labels, which may make an evaluation due."""
        self._new_labels += count
        if count:
            self.queue.wake()

    def _write(self, batch: Sequence[LoggedPrediction]) -> float | None:
        """Store a batch; return in how many seconds the next evaluation is due, None when nothing is new."""
        model = self._models.unregistered
        if model is not None:
            self._store.versions.register(model)
            self._store.alerts.clear_others(model, self._clock())
            if self._models.unregistered is model:  # only now: a failure is repeated with the next batch
                self._models.unregistered = None
        if (repeats := len(batch) - self._store.write(batch)) and not self._has_repeats:
            self._has_repeats = True
            logger.warning("%d predictions were not stored: the store has others with their ids already", repeats)
        if self._models.served is None:
            return None
        new_labels, self._new_labels = self._new_labels, 0
        new_rows, is_busy = len(batch) + new_labels, self.queue.backlog >= BATCH
        return self._worker.after_write(self._models.served, new_rows, is_busy=is_busy)
