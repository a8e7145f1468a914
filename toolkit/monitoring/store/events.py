"""Predictions and labels of a model version, in the order in which the store got them."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.store.labels import LabelRows
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.predictions import PredictionStore

PAGE_SIZE = 10_000  # predictions or labels that are read from the store at a time


class Events(NamedTuple):
    """Consecutive predictions and labels of one model version."""

    rows: Predictions  # n, oldest first, without labels
    labels: LabelRows  # m labels of these or of earlier predictions, in their order
    due: NDArray[np.int64]  # (m,), never decreasing: how many of the rows came before each label


def read_events(
    store: PredictionStore, model: ModelVersion, sequence: int, label: int, until: tuple[int, int]
) -> Iterator[Events]:
    """Read what followed a prediction and a label, a page at a time; the order is the same to every reader.

    Parameters
    ----------
    sequence, label
        The last prediction and the last label that the caller has; 0 for all.
    until
        The last prediction and the last label to read, both as of one moment.

    Examples
    --------
    >>> list(read_events(PredictionStore("no-such-file.db"), ModelVersion("1", ("cat", "dog")), 0, 0, (0, 0)))
    []
    """
    last_sequence, last_label = until
    while True:
        rows = store.rows_since(model, sequence, PAGE_SIZE, up_to_label=0)
        labels = store.labels.since(model, label, PAGE_SIZE)
        known = [math.inf]  # up to which prediction everything has been read
        known += [int(rows.sequence[-1])] if rows.n == PAGE_SIZE else []
        known += [int(labels.after[-1])] if labels.n == PAGE_SIZE else []
        rows = rows.slice(0, int(np.searchsorted(rows.sequence, min(*known, last_sequence), side="right")))
        labels = labels.take((labels.after <= min(known)) & (labels.number <= last_label))
        if not rows.n and not labels.n:
            return
        yield Events(rows, labels, np.searchsorted(rows.sequence, labels.after, side="right"))
        sequence = int(rows.sequence[-1]) if rows.n else sequence
        label = int(labels.number[-1]) if labels.n else label
