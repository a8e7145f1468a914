"""One model version as the store knows it, counted and evaluated as it grows.

The store is the one truth: every process, the one that serves, another one or a notebook, takes the same
predictions and labels in the same order, and so comes to the same metrics and alerts. A process that begins
goes on from the checkpoint in the store: rollups give what is older than the windows, rows give the windows,
and what followed the checkpoint is evaluated as it would have been by the process before.
"""

import functools
import logging
import operator
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Self

import numpy as np

from toolkit.errors import StoreError
from toolkit.monitoring.alerting import checkpoints
from toolkit.monitoring.alerting.checkpoints import Checkpoint
from toolkit.monitoring.alerting.evaluator import AlertEvaluator, Transition
from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.store.events import PAGE_SIZE, Events, read_events
from toolkit.monitoring.store.labels import LabelRows
from toolkit.monitoring.store.predictions import ModelVersion, PredictionStore
from toolkit.monitoring.store.rollups import Rollup, read_rollups
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.monitoring.windows.rolling import MAX_WINDOW
from toolkit.monitoring.windows.summary import WindowSummary

logger = logging.getLogger(__name__)


class StreamState:
    """Windows, detectors and alerts of one model version, kept up with the store. Thread-safe.

    Reading changes nothing in the store: what becomes of alerts waits in ``progress`` for a caller that
    writes it.

    Parameters
    ----------
    store
        Where predictions and labels come from.
    model
        The version.
    limits
        What counts as too much, and the budget of false alarms; those of the checkpoint when None.

    Examples
    --------
    >>> view = StreamState(PredictionStore("no-such-file.db"), ModelVersion("1", ("cat", "dog")), Thresholds())
    >>> view.refresh().counts("long").n, view.progress()[1]
    (0, [])
    """

    def __init__(self, store: PredictionStore, model: ModelVersion, limits: Thresholds | None = None) -> None:
        self.model = model
        self.bins = ReferenceBins(model.classes, model.baseline)
        self._store = store
        self._given = limits
        self._evaluator: AlertEvaluator | None = None
        self._checkpoint = Checkpoint()  # the place in the stream; its state is made when it is asked for
        self._transitions: list[Transition] = []  # not yet written
        self._ahead: list[Rollup] = []  # rollups that know of labels which the stream has yet to bring
        self._change_token: tuple[str, int, int] | None = None  # of the store at the last look
        self._lock = threading.Lock()

    @property
    def thresholds(self) -> Thresholds:
        """What counts as too much."""
        return self._given or self._checkpoint.thresholds or Thresholds()

    @property
    def evidence(self) -> dict[str, float | None]:
        """How far each detector has come to an alarm, by metric; see ``DetectorSet``."""
        with self._lock:
            return (self._evaluator or self._fresh(self.bins.empty())).detectors.evidence

    def counts(self, window: str) -> WindowSummary:
        """What is in the ``short``, ``medium`` or ``long`` window, as of the last time that this caught up."""
        with self._lock:
            return self._evaluator.counts(window) if self._evaluator else self.bins.empty()

    def refresh(self) -> Self:
        """Take in what the store has got since the last time."""
        with self._lock:
            stamp = self._store.change_token()
            if stamp is None or stamp == self._change_token:
                return self
            if self._is_left_behind(stamp):
                self._evaluator = None
            evaluator = self._evaluator or self._load()
            for events in read_events(
                self._store, self.model, self._checkpoint.sequence, self._checkpoint.label, stamp[1:]
            ):
                self._transitions += evaluator.process(events, self._counted(events.labels))
                self._advance(evaluator, events)
            self._change_token = stamp  # taken before reading: what came meanwhile is read the next time
            return self

    def progress(self) -> tuple[Checkpoint, list[Transition]]:
        """How far this has come, and what became of alerts on the way that was not yet ``written``."""
        with self._lock:
            state = self._evaluator.state() if self._evaluator else None
            return replace(self._checkpoint, thresholds=self.thresholds, state=state), list(self._transitions)

    def written(self, position: int) -> None:
        """Note that all that became of alerts up to a position is in the store."""
        with self._lock:
            self._transitions = [transition for transition in self._transitions if transition.position > position]

    def reload(self) -> None:
        """Forget everything, and go on from the checkpoint in the store the next time."""
        with self._lock:
            self._evaluator = self._change_token = None

    def history(self) -> tuple[list[WindowSummary], Iterator[Predictions]]:
        """All there is, for metrics over time: counts of older predictions, and the latest ones as rows."""
        kept = _older_than_windows(read_rollups(self._store, self.model), None)
        return self._unpacked(kept), self._rows(kept[-1].last if kept else 0)

    def _rows(self, after: int, until: int | None = None, told: int | None = None) -> Iterator[Predictions]:
        """Rows above a sequence number, with the labels up to a number or all, a page at a time."""
        while (rows := self._store.rows_since(self.model, after, PAGE_SIZE, told)).n:
            after = int(rows.sequence[-1])
            yield rows if until is None else rows.slice(0, int(np.searchsorted(rows.sequence, until, side="right")))
            if until is not None and after >= until:
                return

    def _is_left_behind(self, stamp: tuple[str, int, int]) -> bool:
        """Whether the store was begun again, the alerts were cleared, or rows may be gone that this has not seen."""
        if self._evaluator is None or self._change_token is None:
            return False
        position, epoch = checkpoints.locate(self._store, self.model)
        behind = position - self._checkpoint.position > MAX_WINDOW
        return stamp[0] != self._change_token[0] or epoch != self._checkpoint.epoch or behind

    def _load(self) -> AlertEvaluator:
        """Everything as it was at the checkpoint."""
        saved = checkpoints.load(self._store, self.model)
        kept = _older_than_windows(read_rollups(self._store, self.model), saved.sequence)
        gone = kept[-1].last if kept else 0  # up to here there are rollups, from there on rows
        self._checkpoint = replace(saved, sequence=max(saved.sequence, gone))
        self._transitions = []
        evaluator = self._fresh(functools.reduce(operator.add, self._unpacked(kept), self.bins.empty()))
        if saved.sequence > gone:
            for rows in self._rows(gone, saved.sequence, saved.label):
                evaluator.add(rows)
        for rollup in kept:
            after = rollup.last_label
            while after < saved.label and (labels := self._store.labels.since(self.model, after, PAGE_SIZE)).n:
                after = int(labels.number[-1])
                evaluator.add_labels(labels.take((labels.number <= saved.label) & _within(labels, rollup)))
        self._ahead = [rollup for rollup in kept if rollup.last_label > saved.label]
        if saved.state is not None:
            evaluator.restore(saved.position, saved.label, saved.state)
        self._evaluator = evaluator
        return evaluator

    def _fresh(self, before: WindowSummary) -> AlertEvaluator:
        return AlertEvaluator(self.bins, self.thresholds, before=before)

    def _counted(self, labels: LabelRows) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which labels are not yet in the counts that a rollup brought."""
        counted = np.full(labels.n, True)
        for rollup in self._ahead:
            counted &= ~(_within(labels, rollup) & (labels.number <= rollup.last_label))
        return counted

    def _advance(self, evaluator: AlertEvaluator, events: Events) -> None:
        rows, labels, _ = events
        self._checkpoint = replace(
            self._checkpoint,
            position=evaluator.position,
            sequence=int(rows.sequence[-1]) if rows.n else self._checkpoint.sequence,
            label=int(labels.number[-1]) if labels.n else self._checkpoint.label,
        )

    def _unpacked(self, rollups: Sequence[Rollup]) -> list[WindowSummary]:
        """The counts of rollups, those left out that are of other bins."""
        found = []
        for rollup in rollups:
            try:
                counts = WindowSummary.from_bytes(rollup.counts)
                if counts.fingerprint == self.bins.fingerprint:
                    found.append(counts)
                    continue
                reason = "they were counted in the bins of another reference"
            except StoreError as error:
                reason = str(error)
            logger.warning("%d predictions of version %s are left out: %s", rollup.n, self.model.version, reason)
        return found


def _within(labels: LabelRows, rollup: Rollup) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    inside: np.ndarray[tuple[int], np.dtype[np.bool_]] = (labels.sequence >= rollup.first) & (
        labels.sequence <= rollup.last
    )
    return inside


def _older_than_windows(rollups: Sequence[Rollup], sequence: int | None) -> list[Rollup]:
    """All rollups but those whose predictions are there as rows and may be in a window, or come later.

    Parameters
    ----------
    sequence
        The last prediction in the windows; the latest of all when None.
    """
    kept, inside = list(rollups), 0
    while kept and kept[-1].has_rows and inside < MAX_WINDOW:
        rollup = kept.pop()
        inside += rollup.n if sequence is None or rollup.last <= sequence else 0
    return kept
