"""Predictions as a Parquet or CSV file, for whoever wants to look at them with tools of their own."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from toolkit.errors import SettingsError, StoreError, one_line
from toolkit.monitoring.ids import show
from toolkit.monitoring.models import Model
from toolkit.monitoring.performance import BIASED_SOURCES
from toolkit.monitoring.records import side_by_side
from toolkit.monitoring.schema import labels, models, predictions
from toolkit.monitoring.store import PredictionStore

ENDINGS = (".parquet", ".csv")
FROM_OUTSIDE = ("source", "label_source")  # columns of texts that clients of a service may have written
ROWS_AT_ONCE = 10_000  # in memory at a time, a few megabytes; a row group of a Parquet file


def export(
    store: PredictionStore,
    path: str | Path,
    model: Model | None = None,
    *,
    since: float | None = None,
    probabilities: bool = False,
) -> int:
    """Write one row a prediction to a file; return how many there are.

    The columns are ``id``, ``time`` (UTC), ``source``, ``model_version``, ``predicted_class``, ``confidence``,
    ``label``, ``label_source``, ``label_time`` (UTC), ``latency_ms``, ``statistic_NAME`` for each input
    statistic and, if wanted, ``probability_CLASS`` for each class. What is not known is left empty.
    The label is the one that counts, a complaint where there is no other. In a CSV file a ``source`` or
    ``label_source`` that a spreadsheet would take for a formula has an apostrophe before it. The file is there when it
    is complete; one of the same name is replaced.

    Parameters
    ----------
    path
        Where to, ending in ``.parquet`` or ``.csv``.
    model
        Only predictions of this version; of all when None.
    since
        Only those made at or after this time, in seconds since 1970.
    probabilities
        Whether each class gets a column.

    Raises
    ------
    SettingsError
        When the file is of another kind.
    StoreError
        When the file cannot be written, or pyarrow is not installed.
    """
    target = Path(path)
    if target.suffix not in ENDINGS:
        raise SettingsError(f"an export must end in {' or '.join(ENDINGS)}, got {target.name}")
    number = store.versions.number(model) if model is not None else None
    chosen = [models.c.number == number] if model is not None else []
    query = sa.select(models.c.number, models.c.version, models.c.classes, models.c.statistics).where(*chosen)
    layout = _Layout(store.database.fetch_all(query), probabilities)
    written = 0
    with _writer(target, layout) as write:
        for rows in _pages(store, number, since) if layout.versions else ():
            write(layout.columns(rows))
            written += len(rows)
    return written


class _Layout:
    """The columns of an export, over all the models in it."""

    def __init__(self, found: Sequence[sa.Row[Any]], probabilities: bool) -> None:
        self.versions = {row.number: row.version for row in found}
        self._classes = {row.number: json.loads(row.classes) for row in found}
        self._names = {row.number: json.loads(row.statistics) for row in found}
        self.statistics = _all_of(self._names.values())
        self.scores = _all_of(self._classes.values()) if probabilities else []

    def columns(self, rows: Sequence[sa.Row[Any]]) -> dict[str, Any]:
        """Rows as columns, n values each; what is not known is None or NaN."""
        statistics = self._spread(rows, [row.statistic_values for row in rows], "<f4", self._names, self.statistics)
        scores = self._spread(rows, [row.probabilities for row in rows], "<f2", self._classes, self.scores)
        return {
            "id": [show(row.id) for row in rows],
            "time": _moments([row.time for row in rows]),
            "source": [row.source for row in rows],
            "model_version": [self.versions[row.model] for row in rows],
            "predicted_class": [self._class(row.model, row.predicted) for row in rows],
            "confidence": [row.confidence for row in rows],
            "label": [self._class(row.model, row.label) for row in rows],
            "label_source": [row.label_source for row in rows],
            "label_time": _moments([row.told_at for row in rows]),
            "latency_ms": [row.latency_ms for row in rows],
            **{f"statistic_{name}": column for name, column in statistics.items()},
            **{f"probability_{name}": column for name, column in scores.items()},
        }

    def _class(self, model: int, index: int | None) -> str | None:
        return None if index is None else str(self._classes[model][index])

    @staticmethod
    def _spread(
        rows: Sequence[sa.Row[Any]],
        blobs: Sequence[bytes | None],
        kind: str,
        names: Mapping[int, list[str]],
        wanted: Sequence[str],
    ) -> dict[str, NDArray[np.float32]]:
        """Values that stand side by side in a blob, in an order that is each model's own, as columns."""
        columns = {name: np.full(len(rows), np.nan, np.float32) for name in wanted}
        for model in {row.model for row in rows} if wanted else ():
            places = [place for place, row in enumerate(rows) if row.model == model]
            values = side_by_side([blobs[place] for place in places], kind, len(names[model]))  # (n, names)
            for index, name in enumerate(names[model]):
                columns[name][places] = values[:, index]
        return columns


def _moments(seconds: Sequence[float | None]) -> NDArray[np.datetime64]:
    """Seconds since 1970 as times; none where there are none."""
    return (np.array(seconds, np.float64) * 1e6).astype("datetime64[us]")  # NaN becomes "not a time"


def _no_formula(text: str | None) -> str | None:
    """A text that no spreadsheet takes for a formula: with an apostrophe before it where it begins like one.

    >>> _no_formula("=1+1"), _no_formula("cat.jpg")
    ("'=1+1", 'cat.jpg')
    """
    return f"'{text}" if text and text[0] in "=+-@\t\r" else text


def _all_of(lists: Iterable[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


def _pages(store: PredictionStore, model: int | None, since: float | None) -> Iterator[Sequence[sa.Row[Any]]]:
    """Rows with their labels, oldest first, a few at a time: a long reading would hold up others."""
    made, told = predictions.c, labels.alias()
    latest = sa.select(sa.func.max(told.c.number)).where(told.c.prediction == made.sequence).correlate(predictions)
    fair = latest.where(told.c.source.not_in(BIASED_SOURCES)).scalar_subquery()  # what counts, where there is any
    chosen = sa.func.coalesce(fair, latest.scalar_subquery())
    query = (
        sa.select(predictions, labels.c.label, labels.c.source.label("label_source"), labels.c.time.label("told_at"))
        .select_from(sa.outerjoin(predictions, labels, labels.c.number == chosen))
        .order_by(made.sequence)
        .limit(ROWS_AT_ONCE)
    )
    if model is not None:
        query = query.where(made.model == model)
    if since is not None:
        query = query.where(made.time >= since)
    last, end = 0, store.database.fetch_all(sa.select(sa.func.max(made.sequence)))[0][0] or 0
    while rows := store.database.fetch_all(query.where(made.sequence > last, made.sequence <= end)):
        yield rows
        last = rows[-1].sequence


@contextmanager
def _writer(target: Path, layout: _Layout) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that adds columns to a file, which takes its name when all are in it."""
    try:
        import pyarrow as pa  # type: ignore[import-untyped]  # only here: it takes a third of a second
        from pyarrow import csv, parquet
    except ImportError:
        raise StoreError("an export needs pyarrow: pip install pyarrow") from None
    texts = ("id", "source", "model_version", "predicted_class", "label", "label_source")
    moments = dict.fromkeys(("time", "label_time"), pa.timestamp("us", "UTC"))
    kinds = {**moments, "latency_ms": pa.float64(), **dict.fromkeys(texts, pa.string())}
    schema = pa.schema([(name, kinds.get(name, pa.float32())) for name in layout.columns([])])
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    make = parquet.ParquetWriter if target.suffix == ".parquet" else csv.CSVWriter
    try:
        with make(str(temporary), schema) as file:

            def write(columns: dict[str, Any]) -> None:
                if target.suffix == ".csv":
                    columns |= {name: [_no_formula(text) for text in columns[name]] for name in FROM_OUTSIDE}
                arrays = [pa.array(columns[field.name], field.type, from_pandas=True) for field in schema]
                file.write_batch(pa.record_batch(arrays, schema=schema))

            yield write
        temporary.replace(target)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"the export {target} cannot be written: {one_line(error)}") from None
    finally:
        temporary.unlink(missing_ok=True)
