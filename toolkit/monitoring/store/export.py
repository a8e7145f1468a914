"""Predictions of a model version as a Parquet or CSV file, for other tools."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from toolkit.errors import PredictionStoreError, SettingsError, first_line
from toolkit.monitoring.base.ids import format_id
from toolkit.monitoring.base.predictions import BIASED_SOURCES
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.predictions import PredictionStore
from toolkit.monitoring.store.row_codec import stack_blobs
from toolkit.monitoring.store.schema import labels, models, predictions

ENDINGS = (".parquet", ".csv")
PROBABILITY, STATISTIC = "probability_", "statistic_"  # prefixes of columns
PAGE_SIZE = 10_000  # rows in memory at a time, a few megabytes; a row group of a Parquet file


def export(
    store: PredictionStore,
    path: str | Path,
    model: ModelVersion | None,
    *,
    since: float | None = None,
    probabilities: bool = False,
) -> int:
    """Write one row a prediction to a file, which appears when it is complete; return how many there are.

    The columns are ``id``, ``time`` (UTC), ``source``, ``model_version``, ``predicted_class``, ``confidence``,
    ``label``, ``label_source``, ``label_time`` (UTC), ``latency_ms``, ``statistic_NAME`` for each input
    statistic and, if wanted, ``probability_CLASS`` for each class. Unknown values are empty. The label is
    that which counts in metrics, a complaint where there is no other. In a CSV file a ``source`` or
    ``label_source`` that a spreadsheet would read as a formula is preceded by an apostrophe.
    """
    import pyarrow as pa  # only here: it takes a third of a second
    from pyarrow import csv, parquet

    target = Path(path)
    if target.suffix not in ENDINGS:
        raise SettingsError(f"an export must end in {' or '.join(ENDINGS)}, got {target.name}")
    if model is None:  # a mistyped address must not replace a file by an empty one
        raise PredictionStoreError(f"the store {store} holds no predictions")
    number, is_csv = store.versions.number(model), target.suffix == ".csv"
    found = store.database.fetch_all(sa.select(models.c.statistics).where(models.c.number == number))
    names = json.loads(found[0].statistics) if found else []
    types = {"id": pa.string(), "time": pa.timestamp("us", "UTC"), "label_time": pa.timestamp("us", "UTC")}
    types |= dict.fromkeys(("source", "model_version", "predicted_class", "label", "label_source"), pa.string())
    empty = _columns([], model, names, scores=probabilities)
    schema = pa.schema({name: types.get(name, pa.float32()) for name in empty} | {"latency_ms": pa.float64()})
    temporary, written = target.with_name(f".{target.name}.{os.getpid()}"), 0
    try:
        with (csv.CSVWriter if is_csv else parquet.ParquetWriter)(str(temporary), schema) as file:
            for rows in _pages(store, number, since):
                columns = _columns(rows, model, names, scores=probabilities)
                for name in ("source", "label_source") if is_csv else ():  # these may come from clients of a service
                    columns[name] = list(map(_no_formula, columns[name]))
                arrays = [pa.array(columns[field.name], field.type, from_pandas=True) for field in schema]
                file.write_batch(pa.record_batch(arrays, schema=schema))
                written += len(rows)
        temporary.replace(target)
    except (OSError, pa.ArrowException) as error:
        raise PredictionStoreError(f"the export {target} cannot be written: {first_line(error)}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return written


def _columns(rows: Sequence[sa.Row[Any]], model: ModelVersion, names: Sequence[str], *, scores: bool) -> dict[str, Any]:
    """Rows as columns of n values each; None or NaN where unknown."""
    classes = dict(enumerate(model.classes))
    statistics = stack_blobs([row.statistic_values for row in rows], "<f4", len(names))  # (n, names)
    probabilities = stack_blobs([row.probabilities for row in rows], "<f2", len(classes))  # (n, K)
    columns = {
        "id": [format_id(row.id) for row in rows],
        "time": _timestamps([row.time for row in rows]),
        "source": [row.source for row in rows],
        "model_version": [model.version] * len(rows),
        "predicted_class": [classes.get(row.predicted) for row in rows],
        "confidence": [row.confidence for row in rows],
        "label": [classes.get(row.label) for row in rows],
        "label_source": [row.label_source for row in rows],
        "label_time": _timestamps([row.label_time for row in rows]),
        "latency_ms": [row.latency_ms for row in rows],
    }
    columns |= {STATISTIC + name: column for name, column in zip(names, statistics.T, strict=True)}
    if scores:
        columns |= {PROBABILITY + name: column for name, column in zip(model.classes, probabilities.T, strict=True)}
    return columns


def _timestamps(seconds: Sequence[float | None]) -> NDArray[np.datetime64]:
    """Seconds since 1970 as times; NaT where there are none."""
    return (np.array(seconds, np.float64) * 1e6).astype("datetime64[us]")


def _no_formula(text: str | None) -> str | None:
    """A text that no spreadsheet reads as a formula: with an apostrophe in front if it begins like one.

    >>> _no_formula("=1+1"), _no_formula("cat.jpg")
    ("'=1+1", 'cat.jpg')
    """
    return f"'{text}" if text and text[0] in "=+-@\t\r" else text


def _pages(store: PredictionStore, model: int | None, since: float | None) -> Iterator[Sequence[sa.Row[Any]]]:
    """Rows with their labels, oldest first, a page at a time: one long query would delay writers."""
    made, given = predictions.c, labels.alias()
    latest = sa.select(sa.func.max(given.c.number)).where(given.c.prediction == made.sequence).correlate(predictions)
    fair = latest.where(given.c.source.not_in(BIASED_SOURCES)).scalar_subquery()  # those count, if there are any
    chosen = sa.func.coalesce(fair, latest.scalar_subquery())
    columns = labels.c.label, labels.c.source.label("label_source"), labels.c.time.label("label_time")
    query = (
        sa.select(predictions, *columns)
        .select_from(sa.outerjoin(predictions, labels, labels.c.number == chosen))
        .where(made.model == model)
        .order_by(made.sequence)
        .limit(PAGE_SIZE)
    )
    if since is not None:
        query = query.where(made.time >= since)
    last, (_, end, _) = 0, store.change_token() or ("", 0, 0)
    while rows := store.database.fetch_all(query.where(made.sequence > last, made.sequence <= end)):
        yield rows
        last = rows[-1].sequence
