"""The model versions in a store, each with its classes and its baseline."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from toolkit.bundle.baseline import Baseline
from toolkit.errors import BundleError, PredictionStoreError, first_line, suggest
from toolkit.monitoring.store.database import Database
from toolkit.monitoring.store.schema import models

_NEWEST = models.c.served_at.desc().nulls_last(), models.c.number.desc()


@dataclass(frozen=True, eq=False)  # arrays have no plain equality: one object is one registration
class ModelVersion:
    """One model version, as the monitor needs it."""

    version: str  # its name; windows of two versions are never mixed
    classes: tuple[str, ...]  # names in output order
    baseline: Baseline | None = None  # its answers on held-out images
    served_at: float | None = None  # seconds since 1970; None for a shadow of the served version


class ModelVersions:
    """The table of model versions, and a cache of it until the database is reset."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._numbers: dict[ModelVersion, int] = {}
        database.on_reset(self._numbers.clear)

    def register(self, model: ModelVersion) -> int:
        """Insert a model version, or add its baseline and when it was served; return its number."""
        with self._database.writing() as connection:
            number = self._upsert(connection, model)
        self._numbers[model] = number  # only after the commit
        return number

    def current(self, known: ModelVersion | None = None) -> ModelVersion | None:
        """The version most recently served, else the one most recently inserted; None in an empty store.

        ``known`` is returned as it is while it is still the current one, so that its baseline is read once.
        """
        found = self._database.fetch_all(sa.select(models.c.version, models.c.served_at).order_by(*_NEWEST).limit(1))
        if not found:
            return None
        if known is not None and (known.version, known.served_at) == tuple(found[0]):
            return known
        return self.get(found[0].version)

    def select(self, requested: str | None, known: ModelVersion | None = None) -> ModelVersion | None:
        """The version of a name, else ``current``; None in an empty store. Raises PredictionStoreError without it."""
        if requested is None:
            return self.current(known)
        found = self.get(requested)
        if found is None and (names := self.names()):
            raise PredictionStoreError(
                f"there is no model version {requested} in the store {self._database}; "
                f"there are {suggest(names, requested)}"
            )
        return found

    def get(self, version: str) -> ModelVersion | None:
        """A version by its name, of several models the one served last; None when it is not in the store."""
        query = sa.select(models).where(models.c.version == version).order_by(*_NEWEST).limit(1)
        rows = self._database.fetch_all(query)
        if not rows:
            return None
        row = rows[0]
        try:
            baseline = Baseline.from_bytes(row.baseline) if row.baseline is not None else None
        except BundleError as error:
            raise PredictionStoreError(f"the store {self._database} is damaged: {first_line(error)}") from None
        model = ModelVersion(row.version, tuple(json.loads(row.classes)), baseline, row.served_at)
        self._numbers[model] = row.number
        return model

    def names(self) -> list[str]:
        """The names of all versions, oldest first."""
        rows = self._database.fetch_all(sa.select(models.c.version).order_by(models.c.number))
        return list(dict.fromkeys(row.version for row in rows))

    def number(self, model: ModelVersion) -> int | None:
        """The key of a version, None while nothing of it was written."""
        if not self._database.exists():  # this clears the cache when the file is gone
            return None
        if model not in self._numbers:
            alike = models.c.version == model.version, models.c.classes == json.dumps(model.classes)
            digests = ("", _baseline_digest(model.baseline)) if model.baseline is not None else None
            query = sa.select(models.c.number).where(*alike).order_by(*_NEWEST).limit(1)
            found = self._database.fetch_all(query.where(models.c.baseline_digest.in_(digests)) if digests else query)
            return int(found[0].number) if found else None
        return self._numbers[model]

    def add(self, connection: sa.Connection, model: ModelVersion) -> int:
        """The key of a version, which is inserted if it is missing, in a transaction that ends with ``remember``."""
        return self._numbers.get(model) or self._upsert(connection, model)

    def remember(self, numbers: Mapping[ModelVersion, int]) -> None:
        """Cache what a committed transaction has added."""
        self._numbers |= numbers

    def _upsert(self, connection: sa.Connection, model: ModelVersion) -> int:
        classes, digest = json.dumps(model.classes), _baseline_digest(model.baseline)
        alike = connection.execute(
            sa.select(models.c.number, models.c.baseline_digest)
            .where(models.c.version == model.version, models.c.classes == classes)
            .order_by(*_NEWEST)
        )
        found = next((row for row in alike if not digest or row.baseline_digest in ("", digest)), None)
        values: dict[str, Any] = {"served_at": model.served_at} if model.served_at is not None else {}
        if model.baseline is not None and (found is None or not found.baseline_digest):
            values |= {"baseline": model.baseline.to_bytes(), "baseline_digest": digest}
        if found is None:
            values = {"version": model.version, "classes": classes, "baseline_digest": digest} | values
            key = connection.execute(models.insert().values(values)).inserted_primary_key
            return int(key[0]) if key else 0
        if values:
            connection.execute(models.update().where(models.c.number == found.number).values(values))
        return int(found.number)


def statistic_columns(connection: sa.Connection, number: int, wanted: Sequence[str] = ()) -> list[str]:
    """The names of a version's input statistics in the order in which they are stored, after adding the wanted ones."""
    text = connection.execute(sa.select(models.c.statistics).where(models.c.number == number)).scalar_one()
    names = [str(name) for name in json.loads(text)]
    if new := [name for name in wanted if name not in names]:
        names += new
        connection.execute(models.update().where(models.c.number == number).values(statistics=json.dumps(names)))
    return names


def _baseline_digest(baseline: Baseline | None) -> str:
    """A digest of probabilities and labels; empty without a baseline."""
    if baseline is None:
        return ""
    return hashlib.sha256(baseline.probabilities.tobytes() + baseline.labels.tobytes()).hexdigest()
