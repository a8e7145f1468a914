"""The state of one model version's stream of predictions and labels: windows, detectors and alerts.

It is a function of the store alone. Every process, whether it serves or only reads, takes the same events
in the same order, and so comes to the same metrics and alerts. A new process resumes from the checkpoint in
the store: rollups give the counts of what is older than the windows, rows fill the windows, and the events
after the checkpoint are evaluated as the process before would have done.
"""

import functools
import logging
import operator
import threading
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import PredictionStoreError
from toolkit.monitoring.alerting import checkpoints
from toolkit.monitoring.alerting.checkpoints import Checkpoint
from toolkit.monitoring.alerting.evaluator import AlertEvaluator, Transition
from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.store.events import PAGE_SIZE, read_events
from toolkit.monitoring.store.labels import LabelRows
from toolkit.monitoring.store.predictions import ModelVersion, PredictionStore
from toolkit.monitoring.store.rollups import Rollup, read_rollups
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.monitoring.windows.rolling import MAX_WINDOW
from toolkit.monitoring.windows.summary import WindowSummary

logger = logging.getLogger(__name__)


class StreamState:
    """Windows, detectors and alerts of one model version, up to the last ``refresh``. Thread-safe.

    The store is only read: changes of alerts stay in ``progress`` until they are ``written``.

    Parameters
    ----------
    store
        Where predictions and labels come from.
    model
        The version.
    thresholds
        Sizes at which levels begin, and the budget of false alarms; those of the checkpoint when None.

    Examples
    --------
    >>> state = StreamState(PredictionStore("no-such-file.db"), ModelVersion("1", ("cat", "dog")), Thresholds())
    >>> state.refresh().counts("long").n, state.progress()[1]
    (0, [])
    """

    def __init__(self, store: PredictionStore, model: ModelVersion, thresholds: Thresholds | None = None) -> None:
        self.model = model
        self.bins = ReferenceBins(model.classes, model.baseline)
        self._store = store
        self._given = thresholds
        self._checkpoint = Checkpoint()  # from which this state resumed
        self._evaluator = AlertEvaluator(self.bins, self.thresholds)
        self._transitions: list[Transition] = []  # not yet written
        self._ahead: list[Rollup] = []  # rollups that contain labels which are still to come in the stream
        self._change_token: tuple[str, int, int] | None = None  # of the store at the last refresh
        self._lock = threading.Lock()

    @property
    def thresholds(self) -> Thresholds:
        """Sizes at which levels begin."""
        return self._given or self._checkpoint.thresholds or Thresholds()

    @property
    def evidence(self) -> dict[str, float | None]:
        """The evidence of each detector, by metric; see ``DetectorSet``."""
        with self._lock:
            return self._evaluator.detectors.evidence

    def counts(self, window: str) -> WindowSummary:
        """Counts of the ``short``, ``medium`` or ``long`` window."""
        with self._lock:
            return self._evaluator.counts(window)

    def refresh(self) -> Self:
        """Process the predictions and labels since the last refresh."""
        with self._lock:
            token = self._store.change_token()
            if token is None or token == self._change_token:
                return self
            if self._change_token is None or self._is_outdated(token[0]):
                self._load()
            evaluator = self._evaluator
            for events in read_events(self._store, self.model, evaluator.sequence, evaluator.label, token[1:]):
                self._transitions += evaluator.process(events, self._uncounted(events.labels))
            self._change_token = token
            return self

    def progress(self) -> tuple[Checkpoint, list[Transition]]:
        """The checkpoint as of now, and the changes of alerts that are not yet ``written``."""
        with self._lock:
            now, epoch = self._evaluator, self._checkpoint.epoch
            checkpoint = Checkpoint(now.position, now.sequence, now.label, epoch, self.thresholds, now.state())
            return checkpoint, list(self._transitions)

    def written(self, position: int) -> None:
        """Note that all changes of alerts up to a position are in the store."""
        with self._lock:
            self._transitions = [transition for transition in self._transitions if transition.position > position]

    def reload(self) -> None:
        """Resume from the checkpoint in the store at the next refresh."""
        with self._lock:
            self._change_token = None

    def history(self) -> tuple[list[WindowSummary], Iterator[Predictions]]:
        """All predictions, for metrics over time: counts of the older ones, and the latest as rows."""
        kept = _older_than_windows(read_rollups(self._store, self.model), None)
        return self._summaries(kept), self._rows(kept[-1].last if kept else 0)

    def _uncounted(self, labels: LabelRows) -> NDArray[np.bool_]:
        """Which labels no rollup contains."""
        uncounted = np.full(labels.n, True)
        for rollup in self._ahead:
            uncounted &= ~(_within(labels, rollup) & (labels.number <= rollup.last_label))
        return uncounted

    def _rows(self, after: int, until: int | None = None, up_to_label: int | None = None) -> Iterator[Predictions]:
        """Rows above a sequence number, a page at a time."""
        while (rows := self._store.rows_since(self.model, after, PAGE_SIZE, up_to_label)).n:
            after = int(rows.sequence[-1])
            yield rows if until is None else rows.slice(0, int(np.searchsorted(rows.sequence, until, side="right")))
            if until is not None and after >= until:
                return

    def _is_outdated(self, store_name: str) -> bool:
        """Whether the store was recreated, its alerts were cleared, or unseen rows may have been deleted."""
        position, epoch = checkpoints.locate(self._store, self.model)
        behind = position - self._evaluator.position > MAX_WINDOW
        recreated = self._change_token is not None and self._change_token[0] != store_name
        return recreated or epoch != self._checkpoint.epoch or behind

    def _load(self) -> None:
        """Resume from the checkpoint in the store."""
        self._change_token = None  # also when this fails
        saved = checkpoints.load(self._store, self.model)
        kept = _older_than_windows(read_rollups(self._store, self.model), saved.sequence)
        rolled_up = kept[-1].last if kept else 0  # up to here there are rollups, from here on rows
        self._checkpoint, self._transitions = saved, []
        before = functools.reduce(operator.add, self._summaries(kept), self.bins.empty())
        evaluator = AlertEvaluator(self.bins, self.thresholds, before=before)
        if saved.sequence > rolled_up:
            for rows in self._rows(rolled_up, saved.sequence, saved.label):
                evaluator.add(rows)
        for rollup in kept:
            after = rollup.last_label
            while after < saved.label and (labels := self._store.labels.since(self.model, after, PAGE_SIZE)).n:
                after = int(labels.number[-1])
                evaluator.add_labels(labels.take((labels.number <= saved.label) & _within(labels, rollup)))
        self._ahead = [rollup for rollup in kept if rollup.last_label > saved.label]
        evaluator.sequence = max(saved.sequence, rolled_up)
        if saved.state is not None:
            evaluator.restore(saved.position, saved.label, saved.state)
        self._evaluator = evaluator

    def _summaries(self, rollups: Sequence[Rollup]) -> list[WindowSummary]:
        """The counts of rollups, without those of other bins."""
        found = []
        for rollup in rollups:
            try:
                counts = WindowSummary.from_bytes(rollup.counts)
                if counts.fingerprint == self.bins.fingerprint:
                    found.append(counts)
                    continue
                reason = "they were counted in the bins of another reference"
            except PredictionStoreError as error:
                reason = str(error)
            logger.warning("%d predictions of version %s are left out: %s", rollup.n, self.model.version, reason)
        return found


def _within(labels: LabelRows, rollup: Rollup) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (labels.sequence >= rollup.first) & (labels.sequence <= rollup.last)
    return inside


def _older_than_windows(rollups: Sequence[Rollup], sequence: int | None) -> list[Rollup]:
    """All rollups without those that have rows which may be in a window, or are later.

    Parameters
    ----------
    rollups
        Oldest first.
    sequence
        The last prediction in the windows; the latest of all when None.
    """
    kept, inside = list(rollups), 0
    while kept and kept[-1].has_rows and inside < MAX_WINDOW:
        rollup = kept.pop()
        inside += rollup.n if sequence is None or rollup.last <= sequence else 0
    return kept
