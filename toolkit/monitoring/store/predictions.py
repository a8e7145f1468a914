"""The store of predictions: rows, their labels, and queries of them.

SQLite in WAL mode, where one process may write while others read, or PostgreSQL. A prediction of
ten classes with six input statistics takes about 0.13 KB.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from toolkit.monitoring.base.predictions import WINDOWS, Predictions
from toolkit.monitoring.store.alerts import Alerts
from toolkit.monitoring.store.database import Database
from toolkit.monitoring.store.labels import LabelRows, Labels, chunks, current_label
from toolkit.monitoring.store.model_versions import ModelVersion, ModelVersions, statistic_columns
from toolkit.monitoring.store.row_codec import LoggedPrediction, pack, statistic_names, unpack
from toolkit.monitoring.store.schema import labels, predictions, schema_version

__all__ = ["LabelRows", "LoggedPrediction", "ModelVersion", "PredictionStore"]

ALERT_SOURCES = 5  # names of images that an alert has at most
PAGE_SIZE = 10_000  # rows turned into arrays at a time, so that long windows need no second copy

_COLUMNS = [column for column in predictions.c if column is not predictions.c.sequence]
_INSERT = (
    f"INSERT INTO predictions ({', '.join(column.name for column in _COLUMNS)}) "  # noqa: S608  # names of our own
    f"VALUES ({', '.join('?' * len(_COLUMNS))}) ON CONFLICT (id) DO NOTHING"
)


class PredictionStore:
    """Predictions, and with them ``versions``, ``labels`` and ``alerts``, in one SQL ``database``.

    Nothing is created before the first write; until then, reading finds nothing. A reader that
    follows the store asks for rows above the last sequence number that it has, and for labels above
    the last number: both only grow, and become visible in order.

    Parameters
    ----------
    url
        An SQLAlchemy URL, or the path of an SQLite file.

    Raises
    ------
    PredictionStoreError
        When the address is not that of a store, or its folder does not exist.

    Examples
    --------
    >>> store = PredictionStore("no-such-file.db")
    >>> store.versions.current() is None, store.alerts.find()
    (True, [])
    """

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.versions = ModelVersions(self.database)
        self.labels = Labels(self.database, self.versions)
        self.alerts = Alerts(self.database, self.versions)

    def __str__(self) -> str:
        """The address without its password."""
        return str(self.database)

    def close(self) -> None:
        """Close all connections; the next use opens them again."""
        self.database.close()

    # Writing

    def write(self, batch: Sequence[LoggedPrediction]) -> int:
        """Store predictions in one transaction; return how many are new.

        An id that is in the store already is left as it is.
        """
        if not batch:
            return 0
        numbers: dict[ModelVersion, int] = {}
        rows: dict[ModelVersion, Iterator[tuple[Any, ...]]] = {}
        with self.database.writing() as connection:
            for model in dict.fromkeys(prediction.model for prediction in batch):
                numbers[model] = number = self.versions.add(connection, model)
                part = [prediction for prediction in batch if prediction.model is model]
                rows[model] = iter(pack(part, number, statistic_columns(connection, number, statistic_names(part))))
            new = self._insert(connection, [next(rows[prediction.model]) for prediction in batch])
        self.versions.remember(numbers)
        return new

    def sources_about(self, model: ModelVersion, metric: str, window: str, until: int, up_to_label: int) -> list[str]:
        """Names of a few images that an alert is about, the latest first.

        For an alert of accuracy they have wrong answers, for one of non-finite answers such answers.

        Parameters
        ----------
        until
            Sequence number of the last prediction in the window.
        up_to_label
            Labels above this number are not taken into account.
        """
        made, size = predictions.c, WINDOWS.get(window)
        if size is None:
            return []
        mine = made.model == self.versions.number(model), made.sequence <= until
        latest = sa.select(made.sequence).where(*mine).order_by(made.sequence.desc())
        first = sa.func.coalesce(latest.offset(size - 1).limit(1).scalar_subquery(), 0)
        query = sa.select(made.source).where(*mine, made.sequence >= first)
        if metric == "accuracy":
            query = query.where(made.predicted != current_label(up_to_label).element)
        elif metric == "non_finite":
            query = query.where(made.predicted.is_(None))
        query = query.where(made.source.is_not(None)).order_by(made.sequence.desc()).limit(ALERT_SOURCES)
        return [row.source for row in self.database.fetch_all(query)]

    def _insert(self, connection: sa.Connection, rows: Sequence[tuple[Any, ...]]) -> int:
        if self.database.is_sqlite:  # plain tuples, given to the driver, are twice as fast
            return int(connection.exec_driver_sql(_INSERT, list(rows)).rowcount)
        statement = postgresql.insert(predictions).on_conflict_do_nothing().returning(predictions.c.sequence)
        columns = [column.name for column in _COLUMNS]
        return len(connection.execute(statement, [dict(zip(columns, row, strict=True)) for row in rows]).all())

    # Reading

    def sources(self, ids: Sequence[int]) -> dict[int, str]:
        """The names of the images of predictions, by the number of their id; those without a name are left out."""
        query = sa.select(predictions.c.id, predictions.c.source).where(predictions.c.source.is_not(None))
        queries = (query.where(predictions.c.id.in_(part)) for part in chunks(ids))
        return {row.id: row.source for one in queries for row in self.database.fetch_all(one)}

    def change_token(self) -> tuple[str, int, int] | None:
        """A value that changes with each prediction and each label of any version; None without a store.

        Returns
        -------
        tuple
            Name of the store, last sequence number and number of the last label. Another name means
            that another store is at the address, so that all its numbers are new.
        """
        latest = sa.select(sa.func.max(predictions.c.sequence)).scalar_subquery()
        newest = sa.select(sa.func.max(labels.c.number)).scalar_subquery()
        last = sa.func.coalesce(latest, 0).label("latest"), sa.func.coalesce(newest, 0).label("newest_label")
        rows = self.database.fetch_all(sa.select(schema_version.c.name, *last))
        return (rows[0].name, rows[0].latest, rows[0].newest_label) if rows else None

    def window(self, model: ModelVersion, last: int | None = None, *, statistics: bool = True) -> Predictions:
        """The latest predictions of a version with their current labels, oldest first.

        Parameters
        ----------
        last
            How many; None for all that have not been deleted.
        statistics
            Whether to read the input statistics and all probabilities as well.
        """
        number = self.versions.number(model)
        if number is None:
            return Predictions.empty(model.classes)
        query = _rows(number, None, blobs=statistics).order_by(predictions.c.sequence.desc()).limit(last)
        with self.database.reading() as connection:
            pages = connection.execute(query).partitions(PAGE_SIZE)
            parts = [_unpacked(connection, model, number, rows[::-1]) for rows in pages]
        return Predictions.concatenate(parts[::-1]) if parts else Predictions.empty(model.classes)

    def rows_since(self, model: ModelVersion, sequence: int, limit: int, up_to_label: int | None = None) -> Predictions:
        """The first ``limit`` predictions of a version above a sequence number, oldest first.

        Parameters
        ----------
        sequence
            The last one that the caller has; 0 for all.
        up_to_label
            The last label to take into account, as of ``labels.last``; all when None. Rows read
            up to a label, and then the labels above it, count each label once.
        """
        number = self.versions.number(model)
        if number is None:
            return Predictions.empty(model.classes)
        query = _rows(number, up_to_label, blobs=True).where(predictions.c.sequence > sequence)
        with self.database.reading() as connection:
            rows = connection.execute(query.order_by(predictions.c.sequence).limit(limit)).all()
            window = _unpacked(connection, model, number, rows) if rows else Predictions.empty(model.classes)
        if not window.n_labels:
            return window
        sampled = self.labels.drawn_between(int(window.sequence[0]), int(window.sequence[-1]), up_to_label)
        return replace(window, drawn=np.isin(window.sequence, sampled))


def _unpacked(connection: sa.Connection, model: ModelVersion, number: int, rows: Sequence[sa.Row[Any]]) -> Predictions:
    return unpack(model.classes, rows, statistic_columns(connection, number))  # read after the rows: it only grows


def _rows(model: int, up_to_label: int | None, *, blobs: bool) -> sa.Select[Any]:
    """A query for rows of a model, in the columns of ``unpack``."""
    made = predictions.c
    answer = made.sequence, made.id, made.time, made.predicted, made.confidence
    more = [made.probabilities, made.statistic_values] if blobs else []
    return sa.select(*answer, current_label(up_to_label), made.latency_ms, *more).where(made.model == model)
