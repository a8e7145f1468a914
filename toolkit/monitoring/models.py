"""The model versions that a store knows, each with its classes and its baseline."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from toolkit.baseline import Baseline
from toolkit.errors import BundleError, StoreError, one_line
from toolkit.monitoring.database import Database
from toolkit.monitoring.schema import models

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


class ModelStore(Database):
    """A database that knows model versions; parameters as of ``Database``."""

    def __init__(self, url: str) -> None:
        self._numbers: dict[Model, int] = {}
        super().__init__(url)

    def reset(self) -> None:
        """Forget what is known of the database, the numbers of models included."""
        self._numbers.clear()
        super().reset()

    def register(self, model: Model) -> int:
        """Make a model version known, or learn its baseline and when it was served; return its number."""
        with self.writing() as connection:
            number = self._register(connection, model)
        self._numbers[model] = number  # only now: it has been stored
        return number

    def current(self, known: Model | None = None) -> Model | None:
        """The version most recently served, else the one most recently seen; None in an empty store.

        Parameters
        ----------
        known
            Given back as it is while it is still the current one, so that its baseline is read once.
        """
        found = self.all(sa.select(models.c.version, models.c.served_at).order_by(*_NEWEST).limit(1))
        if not found:
            return None
        if known is not None and (known.version, known.served_at) == tuple(found[0]):
            return known
        return self.model(found[0].version)

    def model(self, version: str) -> Model | None:
        """A version by its name, of several models the one served last; None when it is not in the store."""
        rows = self.all(sa.select(models).where(models.c.version == version).order_by(*_NEWEST).limit(1))
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
        rows = self.all(sa.select(models.c.version).order_by(models.c.number))
        return list(dict.fromkeys(row.version for row in rows))

    def number(self, model: Model) -> int | None:
        """The key of a version, None while nothing of it was written."""
        if not self.exists():  # which forgets the numbers of a file that is gone
            return None
        if model not in self._numbers:
            alike = models.c.version == model.version, models.c.classes == json.dumps(model.classes)
            contents = ("", _content(model.baseline)) if model.baseline is not None else None
            query = sa.select(models.c.number).where(*alike).order_by(*_NEWEST).limit(1)
            found = self.all(query.where(models.c.content.in_(contents)) if contents else query)
            return int(found[0].number) if found else None
        return self._numbers[model]

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


def _content(baseline: Baseline | None) -> str:
    """What tells one baseline from another: a digest of probabilities and labels, empty when there is none."""
    if baseline is None:
        return ""
    return hashlib.sha256(baseline.probabilities.tobytes() + baseline.labels.tobytes()).hexdigest()
