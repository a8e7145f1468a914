"""One model version as the store knows it, counted as it grows.

The store is the one truth: whoever looks, in the serving process, in another one or in a notebook,
adds up the same rows and labels in the same order, and so comes to the same figures and alarms. After a
restart the blocks give what is older than the windows, and the rows of the windows are heard again.
"""

import functools
import logging
import operator
import threading
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from toolkit.errors import StoreError
from toolkit.monitoring.blocks import Block, read_blocks
from toolkit.monitoring.counts import Counts
from toolkit.monitoring.detectors import Detectors, Found, Told, told_of
from toolkit.monitoring.feedback import Feedback
from toolkit.monitoring.limits import Limits
from toolkit.monitoring.rolling import LONGEST, Rolling
from toolkit.monitoring.store import Model, PredictionStore
from toolkit.monitoring.windows import NOTHING, Window
from toolkit.monitoring.yardstick import Yardstick

logger = logging.getLogger(__name__)

AT_ONCE = 10_000  # rows or labels read from the store in one go


class View:
    """Windows and alarms of one model version, kept up with the store. Thread-safe.

    Parameters
    ----------
    store
        Where predictions and labels come from.
    model
        The version.
    limits
        Holds the budget of false alarms.

    Examples
    --------
    >>> view = View(PredictionStore("no-such-file.db"), Model("1", ("cat", "dog")), Limits())
    >>> view.catch_up().counts("long").n, view.news()
    (0, [])
    """

    def __init__(self, store: PredictionStore, model: Model, limits: Limits) -> None:
        self.model = model
        self.yardstick = Yardstick(model.classes, model.baseline)
        self._store = store
        self._budget = limits.max_false_alarms_per_million
        self._detectors = Detectors(model.baseline, self._budget)
        self._rolling: Rolling | None = None
        self._sequence = self._told = 0  # the last row and the last label that were taken in
        self._found: list[Found] = []
        self._stamp: tuple[str, int, int] | None = None  # of the store at the last look
        self._lock = threading.Lock()

    @property
    def evidence(self) -> dict[str, float | None]:
        """How far each alarm has come, by metric; see ``Detectors``."""
        return self._detectors.evidence

    @property
    def position(self) -> int:
        """A number that grows by one with each prediction, and with each label of any version."""
        with self._lock:
            return self._told + (self._rolling.counts("long").n if self._rolling else 0)

    def counts(self, window: str) -> Counts:
        """What is in the ``short``, ``medium`` or ``long`` window, as of the last time that this caught up."""
        with self._lock:
            return self._rolling.counts(window) if self._rolling else self.yardstick.empty()

    def catch_up(self) -> Self:
        """Take in what the store has got since the last time."""
        with self._lock:
            stamp = self._store.stamp()
            if stamp is not None and stamp == self._stamp:
                return self
            if stamp and self._stamp and stamp[0] != self._stamp[0]:  # begun again at the same address
                self._rolling, self._detectors = None, Detectors(self.model.baseline, self._budget)
            if self._rolling is None:
                self._begin()
            else:
                self._found += self._go_on(self._rolling)
            self._stamp = stamp  # taken before reading: what came meanwhile is read the next time
            return self

    def news(self) -> list[Found]:
        """The alarms that have fired since this was asked last; those of the time before this view began are none."""
        with self._lock:
            found, self._found = self._found, []
            return found

    def history(self) -> tuple[list[Counts], Window]:
        """All there is, for figures over time: counts of older predictions, and the latest ones as rows."""
        kept = _older_than_windows(read_blocks(self._store, self.model))
        older = [counts for block in kept if (counts := self._unpacked(block)) is not None]
        after, recent = kept[-1].last if kept else 0, Window.empty(self.model.classes)
        while (rows := self._store.rows_since(self.model, after, LONGEST)).n:
            if recent.n:
                older.append(self.yardstick.count(recent))
            recent, after = rows, int(rows.sequence[-1])
        return older, recent

    def _begin(self) -> None:
        if not self._store.exists():
            return
        self._told = self._store.last_label()
        kept = _older_than_windows(read_blocks(self._store, self.model))
        older = [counts for block in kept if (counts := self._unpacked(block)) is not None]
        before = functools.reduce(operator.add, older, self.yardstick.empty())
        rolling = Rolling(self.yardstick, before)
        self._sequence = kept[-1].last if kept else 0
        self._take_rows(rolling)
        for block in kept:
            if block.told < self._told:  # labels that came since it was made
                self._take_labels(rolling, block.told, block.holds)
        self._rolling = rolling

    def _go_on(self, rolling: Rolling) -> list[Found]:
        """Labels first, of the rows that are known; the rows that follow bring theirs along."""
        until, before = self._store.last_label(), self._sequence
        found = []
        if until > self._told:
            found = self._take_labels(rolling, self._told, lambda sequence: sequence <= before, until)
            self._told = until
        return found + self._take_rows(rolling)

    def _take_rows(self, rolling: Rolling) -> list[Found]:
        found = []
        while (rows := self._store.rows_since(self.model, self._sequence, AT_ONCE, self._told)).n:
            rolling.add(rows)
            found += self._detectors.hear(rows) + self._detectors.hear_labels(*_right(rows))
            self._sequence = int(rows.sequence[-1])
        return found

    def _take_labels(
        self, rolling: Rolling, after: int, counts: Callable[[int], bool], until: int | None = None
    ) -> list[Found]:
        """Labels above a number, of the predictions for which ``counts`` says so."""
        found = []
        until = self._told if until is None else until
        while after < until and (labels := self._store.labels_since(self.model, after, AT_ONCE)).n:
            after = int(labels.number[-1])
            known = np.array([counts(sequence) for sequence in labels.sequence.tolist()], bool)
            part = labels.take(known & (labels.number <= until))
            rolling.label(
                part.sequence, old=part.before, new=part.labels, predicted=part.predicted, confidence=part.confidence,
                drawn_before=part.drawn_before, drawn=part.drawn,
            )  # fmt: skip
            found += self._detectors.hear_labels(*_news(part))
        return found

    def _unpacked(self, block: Block) -> Counts | None:
        try:
            counts = Counts.from_bytes(block.counts)
            if counts.yardstick == self.yardstick.name:
                return counts
            reason = "they were counted in the bins of another reference"
        except StoreError as error:
            reason = str(error)
        logger.warning("%d predictions of version %s are left out: %s", block.n, self.model.version, reason)
        return None


def _older_than_windows(blocks: Sequence[Block]) -> list[Block]:
    """All but the last ones whose predictions may still be in a window, and are there as rows."""
    kept = list(blocks)
    while kept and kept[-1].whole and sum(block.n for block in blocks[len(kept) :]) < LONGEST:
        kept.pop()
    return kept


def _right(rows: Window) -> Told:
    told = rows.labelled
    drawn = rows.drawn[told] if len(rows.drawn) else np.zeros(int(told.sum()), np.bool_)
    return told_of(rows.predicted[told], rows.labels[told], drawn)


def _news(labels: Feedback) -> Told:
    """Whether predictions were right whose first label this is: who changes his mind is heard once.

    A label that becomes one of a drawn sample is heard again, as such.
    """
    known = labels.predicted != NOTHING
    first, sampled = known & (labels.before == NOTHING), known & labels.drawn & ~labels.drawn_before
    part = labels.take(first | sampled)
    return told_of(part.predicted, part.labels, sampled[first | sampled], first[first | sampled])
