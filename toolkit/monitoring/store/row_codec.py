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
    """One answer of a model, on its way into the store.

    Parameters
    ----------
    id
        The number of its id.
    probabilities
        (K,) float16, as they will be stored and as they are counted.
    source
        What finds the image again, as ``image_name`` makes it.
    """

    id: int
    time: float
    model: ModelVersion
    probabilities: NDArray[np.float16]
    statistics: Mapping[str, float] = MappingProxyType({})
    latency_ms: float | None = None
    source: str | None = None


def pack(batch: Sequence[LoggedPrediction], number: int, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Predictions of one model as tuples for the table, in its order of columns without the sequence.

    Parameters
    ----------
    number
        The key of the model.
    names
        Of its input statistics, in the order in which they are stored; others are left out.
    """
    probabilities = np.stack([prediction.probabilities for prediction in batch])  # (n, K) float16
    finite = np.asarray(np.isfinite(probabilities).all(axis=1)).tolist()
    predicted = probabilities.argmax(axis=1)
    return [
        (
            *(one.id, float(one.time), number),
            *(answer if sure else (None, None)),
            *(scores, values, _number(one.latency_ms), one.source),
        )
        for one, sure, answer, scores, values in zip(
            batch,
            finite,
            zip(predicted.tolist(), probabilities.max(axis=1).astype(float).tolist(), strict=True),
            _pieces(probabilities.astype("<f2")),
            _statistics(batch, names),
            strict=True,
        )
    ]


def statistic_names(batch: Sequence[LoggedPrediction]) -> list[str]:
    """The names of all statistics that have a finite value in a batch, in the order in which they come.

    >>> model = ModelVersion("1", ("cat", "dog"))
    >>> statistics = {"contrast": np.nan, "brightness": 0.5}
    >>> statistic_names([LoggedPrediction(1, 0.0, model, np.zeros(2, np.float16), statistics)])
    ['brightness']
    """
    given = dict.fromkeys(name for prediction in batch for name in prediction.statistics)
    return [name for name in given if any(np.isfinite(one.statistics.get(name, np.nan)) for one in batch)]


def _statistics(batch: Sequence[LoggedPrediction], names: Sequence[str]) -> list[bytes | None]:
    if not names:
        return [None] * len(batch)
    absent = float("nan")
    with np.errstate(over="ignore"):
        values = np.array([[one.statistics.get(name, absent) for name in names] for one in batch], "<f4")
    values[np.isinf(values)] = np.nan
    given = ~np.isnan(values).all(axis=1)
    return [piece if some else None for piece, some in zip(_pieces(values), given.tolist(), strict=True)]


def _pieces(rows: NDArray[Any]) -> list[bytes]:
    """The bytes of each row."""
    data, width = rows.tobytes(), rows.shape[1] * rows.itemsize
    return [data[first : first + width] for first in range(0, len(data), width)]


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def unpack(classes: tuple[str, ...], rows: Sequence[Sequence[Any]], names: Sequence[str]) -> Predictions:
    """Rows of the table as columns.

    Parameters
    ----------
    rows
        Of sequence, id, time, predicted class, confidence, label, latency, and then, where they were
        asked for, probabilities and values of the statistics.
    names
        Of the statistics, in the order in which they are stored.
    """
    sequence, ids, time, predicted, confidence, label, latency, *blobs = zip(*rows, strict=True)
    more: dict[str, Any] = (
        {"probabilities": stack_blobs(blobs[0], "<f2", len(classes)).astype(np.float16, copy=False)} if blobs else {}
    )
    return Predictions(
        classes,
        time=np.array(time, np.float64),
        predicted=_or_nothing(predicted),
        confidence=np.array(confidence, np.float32),  # None becomes NaN
        labels=_or_nothing(label),
        latency=np.array(latency, np.float32),
        statistics=_columns(blobs[1], names) if blobs else {},
        sequence=np.array(sequence, np.int64),
        ids=np.array(ids, np.int64),
        **more,
    )


def _or_nothing(numbers: Sequence[int | None]) -> NDArray[np.int64]:
    return np.array([NO_CLASS if number is None else number for number in numbers], np.int64)


def _columns(blobs: Sequence[bytes | None], names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """The statistics that any of the rows has."""
    values = np.ascontiguousarray(stack_blobs(blobs, "<f4", len(names)).T, np.float32)  # (names, n)
    return {name: column for name, column in zip(names, values, strict=True) if not np.isnan(column).all()}


def stack_blobs(blobs: Sequence[bytes | None], kind: str, width: int) -> NDArray[Any]:
    """The numbers in each blob as a row: (n, width), NaN where a blob is shorter or None.

    Parameters
    ----------
    kind
        Of number: ``"<f2"`` or ``"<f4"``.

    Examples
    --------
    >>> stack_blobs([np.array([0.5, 0.25], "<f4").tobytes(), None], "<f4", 2).tolist()
    [[0.5, 0.25], [nan, nan]]
    """
    size = np.dtype(kind).itemsize * width
    data = b"".join([(blob or b"").ljust(size, _NAN) for blob in blobs])
    return np.frombuffer(data, kind).reshape(len(blobs), width)
