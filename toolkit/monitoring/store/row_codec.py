"""Predictions as rows of the store, and such rows as columns: what is counted is what is stored."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toolkit.monitoring.base.predictions import NO_CLASS, Predictions
from toolkit.monitoring.store.model_versions import ModelVersion

_NAN = b"\xff"  # two of these bytes are a float16 that is not a number, four a float32


class LoggedPrediction(NamedTuple):
    """One answer of a model, on its way into the store."""

    id: int  # the number of its id
    time: float  # seconds since 1970
    model: ModelVersion
    probabilities: NDArray[np.float16]  # (K,), as they are stored and counted
    statistics: Mapping[str, float] = MappingProxyType({})  # of the image
    latency_ms: float | None = None
    source: str | None = None  # name of the image, as ``image_name`` makes it


def pack(batch: Sequence[LoggedPrediction], number: int, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Predictions of one model, one at least, as tuples for the table, in its order of columns without the sequence.

    Parameters
    ----------
    number
        The key of the model.
    names
        Input statistics, in the order in which they are stored; others are left out.
    """
    probabilities = np.stack([prediction.probabilities for prediction in batch])  # (n, K) float16
    finite = np.asarray(np.isfinite(probabilities).all(axis=1)).tolist()
    predicted, confidence = probabilities.argmax(axis=1).tolist(), probabilities.max(axis=1).tolist()
    scores, values = _row_bytes(probabilities.astype("<f2")), _statistic_bytes(batch, names)
    return [
        (
            one.id,
            float(one.time),
            number,
            predicted[i] if finite[i] else None,
            confidence[i] if finite[i] else None,
            scores[i],
            values[i],
            None if one.latency_ms is None else float(one.latency_ms),
            one.source,
        )
        for i, one in enumerate(batch)
    ]


def statistic_names(batch: Sequence[LoggedPrediction]) -> list[str]:
    """The names of the statistics that have a finite value in a batch, in the order in which they appear.

    >>> model = ModelVersion("1", ("cat", "dog"))
    >>> statistics = {"contrast": np.nan, "brightness": 0.5}
    >>> statistic_names([LoggedPrediction(1, 0.0, model, np.zeros(2, np.float16), statistics)])
    ['brightness']
    """
    given = dict.fromkeys(name for prediction in batch for name in prediction.statistics)
    return [name for name in given if any(np.isfinite(one.statistics.get(name, np.nan)) for one in batch)]


def _statistic_bytes(batch: Sequence[LoggedPrediction], names: Sequence[str]) -> list[bytes | None]:
    if not names:
        return [None] * len(batch)
    with np.errstate(over="ignore"):
        values = np.array([[one.statistics.get(name, np.nan) for name in names] for one in batch], "<f4")
    values[np.isinf(values)] = np.nan
    given = ~np.isnan(values).all(axis=1)
    return [row if known else None for row, known in zip(_row_bytes(values), given.tolist(), strict=True)]


def _row_bytes(rows: NDArray[Any]) -> list[bytes]:
    data, width = rows.tobytes(), rows.shape[1] * rows.itemsize
    return [data[first : first + width] for first in range(0, len(data), width)]


def unpack(classes: tuple[str, ...], rows: Sequence[Sequence[Any]], names: Sequence[str]) -> Predictions:
    """Rows of the table as columns.

    Parameters
    ----------
    rows
        Sequence, id, time, predicted class, confidence, label and latency, and then, if they were
        queried, probabilities and values of the statistics; at least one row.
    names
        Input statistics, in the order in which they are stored; those that no row has are left out.
    """
    sequence, ids, time, predicted, confidence, label, latency, *blobs = zip(*rows, strict=True)
    more: dict[str, Any] = {}
    if blobs:
        values = np.ascontiguousarray(stack_blobs(blobs[1], "<f4", len(names)).T, np.float32)  # (names, n)
        known = {name: column for name, column in zip(names, values, strict=True) if not np.isnan(column).all()}
        scores = stack_blobs(blobs[0], "<f2", len(classes)).astype(np.float16, copy=False)  # (n, K)
        more = {"probabilities": scores, "statistics": known}
    return Predictions(
        classes,
        time=np.array(time, np.float64),
        predicted=np.array([NO_CLASS if index is None else index for index in predicted], np.int64),
        confidence=np.array(confidence, np.float32),  # None becomes NaN
        labels=np.array([NO_CLASS if index is None else index for index in label], np.int64),
        latency=np.array(latency, np.float32),
        sequence=np.array(sequence, np.int64),
        ids=np.array(ids, np.int64),
        **more,
    )


def stack_blobs(blobs: Sequence[bytes | None], kind: str, width: int) -> NDArray[Any]:
    """The numbers of type ``kind`` in each of n blobs as a row: (n, width), NaN where a blob is shorter or None.

    >>> stack_blobs([np.array([0.5, 0.25], "<f4").tobytes(), None], "<f4", 2).tolist()
    [[0.5, 0.25], [nan, nan]]
    """
    size = np.dtype(kind).itemsize * width
    data = b"".join([(blob or b"").ljust(size, _NAN) for blob in blobs])
    return np.frombuffer(data, kind).reshape(len(blobs), width)
