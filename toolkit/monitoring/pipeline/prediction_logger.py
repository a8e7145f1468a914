"""Logged predictions on their way to the store, and the evaluation of alerts that follows each batch."""

import logging
import time
from collections.abc import Sequence

from toolkit.errors import first_line
from toolkit.monitoring.pipeline.model_selection import ModelSelection
from toolkit.monitoring.pipeline.worker import MonitorConfig, MonitoringWorker
from toolkit.monitoring.store.background_writer import BATCH, BackgroundWriter
from toolkit.monitoring.store.predictions import LoggedPrediction, PredictionStore

logger = logging.getLogger(__name__)

MAX_DELAY_S = 2.0  # of evaluations while many predictions wait to be stored


class PredictionLogger:
    """A queue of predictions, written by a background thread that then evaluates the served version.

    Parameters
    ----------
    store, models, worker
        Where predictions go, which version is served, and what evaluates it.
    config
        Its clock, and whether predictions are dropped while the queue is full.
    """

    def __init__(
        self, store: PredictionStore, models: ModelSelection, worker: MonitoringWorker, config: MonitorConfig
    ) -> None:
        self._store, self._models, self._worker, self._clock = store, models, worker, config.clock
        self._new_labels = 0  # since the last batch
        self._not_evaluated = 0  # predictions and labels
        self._evaluated_at = 0.0  # on the monotonic clock
        self._has_repeats = False  # whether an id was in the store already
        self.problem: str | None = None  # why the last write failed
        self.queue: BackgroundWriter[LoggedPrediction] = BackgroundWriter(self._write, drop=config.drop_when_full)

    def add_labels(self, count: int) -> None:
        """Count new labels, which may make an evaluation due."""
        self._new_labels += count
        if count:
            self.queue.wake()

    def _write(self, batch: Sequence[LoggedPrediction]) -> float | None:
        try:
            pause = self._write_and_evaluate(batch)
        except Exception as error:
            self.problem = first_line(error)
            raise
        self.problem = None
        return pause

    def _write_and_evaluate(self, batch: Sequence[LoggedPrediction]) -> float | None:
        """Store a batch; return in how many seconds the next evaluation is due, None when nothing is new."""
        model = self._models.unregistered
        if model is not None:
            self._store.versions.register(model)
            self._store.alerts.clear_others(model, self._clock())
            if self._models.unregistered is model:  # only now: a failure is repeated with the next batch
                self._models.unregistered = None
        if batch:
            self._warn_of_repeats(len(batch) - self._store.write(batch))
        new_labels, self._new_labels = self._new_labels, 0
        self._not_evaluated += len(batch) + new_labels
        served = self._models.served
        if served is None:
            return None
        if self.queue.backlog >= BATCH and time.monotonic() - self._evaluated_at < MAX_DELAY_S:
            return 0.0  # storing comes first
        new, self._not_evaluated = self._not_evaluated, 0
        pause = self._worker.after_write(served, new)
        self._evaluated_at = time.monotonic()
        return pause

    def _warn_of_repeats(self, count: int) -> None:
        if count > 0 and not self._has_repeats:
            self._has_repeats = True
            logger.warning("%d predictions were not stored: the store has others with their ids already", count)
