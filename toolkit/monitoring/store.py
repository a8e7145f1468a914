"""The store of predictions: four tables, and the few questions the monitor asks of them.

SQLite in WAL mode: one process may write while others read. A prediction of ten classes with
six input statistics takes about 0.25 KB.
"""

import hashlib
import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from toolkit.baseline import Baseline
from toolkit.errors import BundleError, SettingsError, StoreError, UnknownPrediction, known, one_line
from toolkit.monitoring.ids import show
from toolkit.monitoring.windows import NOTHING, Window

BUSY_SECONDS = 5  # how long a writer waits for another process to finish its transaction
ROWS_AT_ONCE = 10_000  # rows turned into arrays at a time, so that long windows need no second copy
IDS_AT_ONCE = 500  # SQLite takes a limited number of parameters in one statement

_Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # only a plain INTEGER counts up by itself there
_tables = sa.MetaData()

models = sa.Table(
    "models",
    _tables,
    sa.Column("number", _Number, primary_key=True),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("classes", sa.Text, nullable=False),  # JSON list of names, in output order
    sa.Column("baseline", sa.LargeBinary),  # an .npz file
    sa.Column("content", sa.Text, nullable=False),  # digest of the baseline, empty without one
    sa.Column("served_at", sa.Float),  # seconds since 1970; the largest is the version being served
    # A registry that was begun anew counts from 1 again: the name alone does not tell two models apart.
    sa.UniqueConstraint("version", "classes", "content"),
)
predictions = sa.Table(
    "predictions",
    _tables,
    sa.Column("sequence", _Number, primary_key=True),
    sa.Column("id", sa.BigInteger, nullable=False, unique=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("model", sa.ForeignKey(models.c.number), nullable=False),
    sa.Column("predicted", sa.Integer),  # index of the class; NULL where the probabilities are not finite
    sa.Column("confidence", sa.Float),
    sa.Column("probabilities", sa.LargeBinary, nullable=False),  # K float16, little-endian
    sa.Column("statistics", sa.Text),  # JSON object, name to number
    sa.Column("latency_ms", sa.Float),
    sa.Index("predictions_of_a_model", "model", "sequence"),
)
labels = sa.Table(
    "labels",
    _tables,
    sa.Column("number", _Number, primary_key=True),  # the highest number of a prediction is its label
    sa.Column("prediction", sa.BigInteger, nullable=False),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("label", sa.Integer, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Index("labels_of_a_prediction", "prediction", "number"),
)
alerts = sa.Table(
    "alerts",
    _tables,
    sa.Column("id", _Number, primary_key=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("model", sa.ForeignKey(models.c.number), nullable=False),
    sa.Column("metric", sa.Text, nullable=False),
    sa.Column("window", sa.Text, nullable=False),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("value", sa.Float, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("cleared_at", sa.Float),  # NULL while the alert stands
)

_NEWEST = models.c.served_at.desc().nulls_last(), models.c.number.desc()


@dataclass(frozen=True, eq=False)  # arrays have no plain equality: one object is one registration
class Model:
    """One model version, as far as the monitor needs to know it.

    Parameters
    ----------
    version
        Its name; windows of two versions are never mixed.
    classes
        Class names in output order.
    baseline
        What it did on pictures it had never seen.
    served_at
        When it went into service, in seconds since 1970; None for a version that merely answers
        beside the served one.
    """

    version: str
    classes: tuple[str, ...]
    baseline: Baseline | None = None
    served_at: float | None = None


@dataclass(frozen=True)
class Prediction:
    """One answer of a model, on its way into the store.

    Parameters
    ----------
    id
        The number of its id.
    probabilities
        (K,) float16, as they will be stored and as they are counted.
    """

    id: int
    time: float
    model: Model
    probabilities: NDArray[np.float16]
    statistics: Mapping[str, float] = field(default_factory=dict)
    latency_ms: float | None = None


class PredictionStore:
    """Predictions, labels, alerts and model versions in an SQL database.

    Nothing is created before the first write; reading a store that is not there finds nothing.

    Parameters
    ----------
    url
        An SQLAlchemy URL, or the path of an SQLite file.

    Raises
    ------
    StoreError
        When what is there is no store, or its folder does not exist.

    Examples
    --------
    >>> store = PredictionStore("no-such-file.db")
    >>> store.current() is None, store.exists()
    (True, False)
    """

    def __init__(self, url: str) -> None:
        try:
            self._url = sa.make_url(url if "://" in url else f"sqlite:///{url}")
            arguments = {"timeout": BUSY_SECONDS} if self._is_sqlite else {}
            self._engine = sa.create_engine(self._url, connect_args=arguments)
        except (SQLAlchemyError, ImportError) as error:
            raise StoreError(f"{url!r} is no address of a store: {one_line(error)}") from None
        self._file = self._local_file()
        if self._is_sqlite:
            sa.event.listen(self._engine, "connect", _tune)
        self._ready = False
        self._numbers: dict[Model, int] = {}
        if self._file and not self._file.parent.is_dir():
            raise StoreError(f"the store cannot be at {self._file}: the folder {self._file.parent} does not exist")
        self.exists()

    def __str__(self) -> str:
        """The address without its password."""
        return str(self._file) if self._file else self._url.render_as_string(hide_password=True)

    @property
    def _is_sqlite(self) -> bool:
        return self._url.get_backend_name() == "sqlite"

    def _local_file(self) -> Path | None:
        """The SQLite file, or None when the address is of another kind."""
        if not self._is_sqlite:
            return None
        name = self._url.database or ""
        if name in ("", ":memory:") or "mode=memory" in str(self._url):
            raise StoreError("a store in memory cannot be shared with other threads: give a file")
        return None if name.startswith("file:") else Path(name)

    def exists(self) -> bool:
        """Whether anything was ever written here."""
        if self._ready:
            return True
        if self._file and not self._file.exists():
            return False
        with self._translated("opened"), self._engine.connect() as connection:
            self._ready = sa.inspect(connection).has_table(alerts.name)
        return self._ready

    def close(self) -> None:
        """Close all connections; the next use opens them again."""
        self._engine.dispose()

    # Writing

    def register(self, model: Model) -> int:
        """Make a model version known, or learn its baseline and when it was served; return its number."""
        try:
            with self._writing() as connection:
                number = self._register(connection, model)
        except IntegrityError:  # another process was first: now it is there
            with self._writing() as connection:
                number = self._register(connection, model)
        self._numbers[model] = number
        return number

    def _register(self, connection: sa.Connection, model: Model) -> int:
        classes, content = json.dumps(model.classes), _content(model.baseline)
        alike = connection.execute(
            sa.select(models.c.number, models.c.content)
            .where(models.c.version == model.version, models.c.classes == classes)
            .order_by(*_NEWEST)
        )
        found = next((row for row in alike if not content or row.content in ("", content)), None)
        values: dict[str, Any] = {"served_at": model.served_at} if model.served_at is not None else {}
        if model.baseline is not None and (found is None or not found.content):
            values |= {"baseline": model.baseline.to_bytes(), "content": content}
        if found is None:
            values = {"version": model.version, "classes": classes, "content": content} | values
            key = connection.execute(models.insert().values(values)).inserted_primary_key
            return int(key[0]) if key else 0
        if values:
            connection.execute(models.update().where(models.c.number == found.number).values(values))
        return int(found.number)

    def write(self, batch: Sequence[Prediction]) -> int:
        """Store predictions in one transaction; return how many are new.

        An id that is in the store already is left as it is.
        """
        for model in {prediction.model for prediction in batch} - self._numbers.keys():
            self.register(model)
        rows = [_row(prediction, self._numbers[prediction.model]) for prediction in batch]
        try:
            with self._writing() as connection:
                connection.execute(predictions.insert(), rows)
            return len(rows)
        except IntegrityError:
            return sum(self._write_one(row) for row in rows)

    def _write_one(self, row: dict[str, Any]) -> bool:
        try:
            with self._writing() as connection:
                connection.execute(predictions.insert(), row)
        except IntegrityError:
            return False
        return True

    def label(self, truths: Mapping[int, str], source: str, time: float) -> int:
        """Record true classes, all of them or none; return how many labels are new or have changed.

        Parameters
        ----------
        truths
            Number of the prediction's id to name of its true class.

        Raises
        ------
        UnknownPrediction
            When one of the predictions is not in the store.
        SettingsError
            When one of the classes is not among those of its model version.
        """
        if not truths:
            return 0
        if not self.exists():
            raise UnknownPrediction(f"there is no prediction {show(next(iter(truths)))}: the store {self} is empty")
        with self._writing() as connection:
            standing: dict[int, tuple[int, int | None]] = {}
            for ids in _slices(list(truths)):
                found = connection.execute(
                    sa.select(predictions.c.id, predictions.c.model, _current_label()).where(predictions.c.id.in_(ids))
                )
                standing |= {row.id: (row.model, row.label) for row in found}
            rows = []
            for number, name in truths.items():
                if number not in standing:
                    raise UnknownPrediction(f"there is no prediction {show(number)} in the store {self}")
                model, current = standing[number]
                classes = self._classes(connection, model)
                if name not in classes:
                    raise SettingsError(f"there is no class {name!r}; the classes are {known(classes, name)}")
                if classes.index(name) != current:
                    rows.append({"prediction": number, "time": time, "label": classes.index(name), "source": source})
            if rows:
                connection.execute(labels.insert(), rows)
        return len(rows)

    def raise_alert(self, model: Model, alert: Mapping[str, Any]) -> bool:
        """Write an alert unless one like it stands; one of another level in its place is cleared.

        Returns
        -------
        bool
            Whether it was written: of several processes that see the same thing one says so.
        """
        number = self._number(model)
        same = (
            alerts.c.model == number,
            alerts.c.metric == alert["metric"],
            alerts.c.window == alert["window"],
            alerts.c.cleared_at.is_(None),
        )
        row = {"model": number, **alert}
        alike = (alerts.c.level == alert["level"], alerts.c.status == alert["status"])
        values = sa.select(*(sa.literal(value, alerts.c[name].type) for name, value in row.items()))
        with self._writing() as connection:
            written = connection.execute(
                alerts.insert().from_select(list(row), values.where(~sa.exists().where(*same, *alike)))
            )
            if not written.rowcount:
                return False
            connection.execute(alerts.update().where(*same, sa.not_(sa.and_(*alike))).values(cleared_at=alert["time"]))
        return True

    def clear_alert(self, number: int, time: float) -> None:
        """Note that an alert no longer stands."""
        with self._writing() as connection:
            connection.execute(
                alerts.update().where(alerts.c.id == number, alerts.c.cleared_at.is_(None)).values(cleared_at=time)
            )

    # Reading

    def current(self, known: Model | None = None) -> Model | None:
        """The version most recently served, else the one most recently seen; None in an empty store.

        Parameters
        ----------
        known
            Given back as it is while it is still the current one, so that its baseline is read once.
        """
        found = self._all(sa.select(models.c.version, models.c.served_at).order_by(*_NEWEST).limit(1))
        if not found:
            return None
        if known is not None and (known.version, known.served_at) == tuple(found[0]):
            return known
        return self.model(found[0].version)

    def model(self, version: str) -> Model | None:
        """A version by its name, of several models the one served last; None when it is not in the store."""
        rows = self._all(sa.select(models).where(models.c.version == version).order_by(*_NEWEST).limit(1))
        if not rows:
            return None
        row = rows[0]
        try:
            baseline = Baseline.from_bytes(row.baseline) if row.baseline is not None else None
        except BundleError as error:
            raise StoreError(f"the store {self} is damaged: {one_line(error)}") from None
        model = Model(row.version, tuple(json.loads(row.classes)), baseline, row.served_at)
        self._numbers[model] = row.number
        return model

    def versions(self) -> list[str]:
        """The names of all versions, oldest first."""
        return list(
            dict.fromkeys(row.version for row in self._all(sa.select(models.c.version).order_by(models.c.number)))
        )

    def position(self, model: Model) -> int:
        """A number that grows by one with each prediction of the version and with each label."""
        latest = sa.select(sa.func.max(predictions.c.sequence)).where(predictions.c.model == self._number(model))
        told = sa.select(sa.func.max(labels.c.number))
        rows = self._all(sa.select(latest.scalar_subquery(), told.scalar_subquery()))
        return sum(value or 0 for value in rows[0]) if rows else 0

    def window(self, model: Model, last: int | None = None, *, statistics: bool = True) -> Window:
        """The latest predictions of a version with their current labels, oldest first.

        Parameters
        ----------
        last
            How many; None for all.
        statistics
            Whether to read the input statistics as well, which takes most of the time.
        """
        number = self._number(model)
        if number is None:
            return Window.empty(model.classes)
        wanted = [
            predictions.c.time,
            predictions.c.predicted,
            predictions.c.confidence,
            _current_label(),
            predictions.c.latency_ms,
            *([predictions.c.statistics] if statistics else []),
        ]
        query = sa.select(*wanted).where(predictions.c.model == number).order_by(predictions.c.sequence.desc())
        with self._translated("read"), self._engine.connect() as connection:
            result = connection.execute(query.limit(last))
            parts = [_part(model.classes, rows[::-1]) for rows in result.partitions(ROWS_AT_ONCE)]
        return Window.joined(parts[::-1]) if parts else Window.empty(model.classes)

    def alerts(
        self, model: Model | None = None, since: float | None = None, *, standing: bool = False
    ) -> list[dict[str, Any]]:
        """Alerts of one model version or of all, newest first.

        Parameters
        ----------
        since
            Only those raised at or after this time, in seconds since 1970.
        standing
            Only those that have not been cleared.
        """
        columns = [column for column in alerts.c if column is not alerts.c.model]
        query = sa.select(*columns, models.c.version.label("model_version")).join(models)
        if model is not None:
            query = query.where(alerts.c.model == self._number(model))
        if since is not None:
            query = query.where(alerts.c.time >= since)
        if standing:
            query = query.where(alerts.c.cleared_at.is_(None))
        return [dict(row._mapping) for row in self._all(query.order_by(alerts.c.id.desc()))]

    # Inside

    def _number(self, model: Model) -> int | None:
        """The key of a version, None while nothing of it was written."""
        if model not in self._numbers:
            alike = models.c.version == model.version, models.c.classes == json.dumps(model.classes)
            contents = ("", _content(model.baseline)) if model.baseline is not None else None
            query = sa.select(models.c.number).where(*alike).order_by(*_NEWEST).limit(1)
            found = self._all(query.where(models.c.content.in_(contents)) if contents else query)
            return int(found[0].number) if found else None
        return self._numbers[model]

    def _classes(self, connection: sa.Connection, number: int) -> list[str]:
        found = connection.execute(sa.select(models.c.classes).where(models.c.number == number)).scalar_one()
        return [str(name) for name in json.loads(found)]

    def _all(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        if not self.exists():
            return []
        with self._translated("read"), self._engine.connect() as connection:
            return connection.execute(query).all()

    def _create(self) -> None:
        """Make what is missing; several processes may do so at once, and ``exists`` looks for what is made last."""
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if self._is_sqlite:  # the file remembers the mode; readers and one writer then work at the same time
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            for table in (models, predictions, labels, alerts):
                connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
                for index in table.indexes:
                    connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A transaction in a store whose tables exist."""
        with self._translated("written"):
            if not self._ready:
                self._create()
                self._ready = True
            with self._engine.begin() as connection:
                yield connection

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """Turn the database's complaints into one sentence."""
        try:
            yield
        except IntegrityError:
            raise
        except (SQLAlchemyError, sqlite3.Error) as error:
            cause = getattr(error, "orig", None) or error
            raise StoreError(f"the store {self} cannot be {doing}: {one_line(cause)}") from None


def _tune(connection: Any, _record: Any) -> None:
    """Wait for the disk at checkpoints only: a power cut may cost the last moment, never the store."""
    connection.execute("PRAGMA synchronous = NORMAL")


def _current_label() -> sa.Label[Any]:
    """The label told last for the prediction of the surrounding query, NULL when there is none."""
    return (
        sa.select(labels.c.label)
        .where(labels.c.prediction == predictions.c.id)
        .order_by(labels.c.number.desc())
        .limit(1)
        .correlate(predictions)
        .scalar_subquery()
        .label("label")
    )


def _content(baseline: Baseline | None) -> str:
    """What tells one baseline from another: a digest of probabilities and labels, empty when there is none."""
    if baseline is None:
        return ""
    return hashlib.sha256(baseline.probabilities.tobytes() + baseline.labels.tobytes()).hexdigest()


def _row(prediction: Prediction, model: int) -> dict[str, Any]:
    probabilities = prediction.probabilities
    finite = bool(np.isfinite(probabilities).all())
    # float32 in its shortest form: read back it is the same float32, so that ties with the reference stay ties
    statistics = {
        name: float(str(np.float32(value))) for name, value in prediction.statistics.items() if math.isfinite(value)
    }
    return {
        "id": prediction.id,
        "time": prediction.time,
        "model": model,
        "predicted": int(probabilities.argmax()) if finite else None,
        "confidence": float(probabilities.max()) if finite else None,
        "probabilities": probabilities.astype("<f2").tobytes(),
        "statistics": json.dumps(statistics) if statistics else None,
        "latency_ms": prediction.latency_ms,
    }


def _part(classes: tuple[str, ...], rows: Sequence[sa.Row[Any]]) -> Window:
    """Rows of one answer of the database as columns."""
    time, predicted, confidence, label, latency, *texts = zip(*rows, strict=True)
    return Window(
        classes,
        time=np.array(time, np.float64),
        predicted=np.array([NOTHING if value is None else value for value in predicted], np.int64),
        confidence=np.array(confidence, np.float32),  # None becomes NaN
        labels=np.array([NOTHING if value is None else value for value in label], np.int64),
        latency=np.array(latency, np.float32),
        statistics=_statistics(texts[0]) if texts else {},
    )


def _statistics(texts: Sequence[str | None]) -> dict[str, NDArray[np.float32]]:
    found: list[dict[str, float]] = json.loads("[" + ",".join(text or "{}" for text in texts) + "]")
    names = dict.fromkeys(name for entry in found for name in entry)
    return {name: np.array([entry.get(name, np.nan) for entry in found], np.float32) for name in names}


def _slices(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(numbers), IDS_AT_ONCE):
        yield numbers[first : first + IDS_AT_ONCE]
