"""Labels of predictions in the order in which they arrived.

All are kept. Those of biased sources are left out of every metric: a complaint follows a mistake, so that a model
would seem worse the more people use it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from toolkit.cli.safe_names import class_name, display_name
from toolkit.errors import SettingsError, UnknownPrediction, suggest
from toolkit.monitoring.base.ids import format_id
from toolkit.monitoring.base.predictions import BIASED_SOURCES, DRAWN_SOURCE, NO_CLASS, drawn_source
from toolkit.monitoring.store.database import Database
from toolkit.monitoring.store.model_versions import ModelVersion, ModelVersions
from toolkit.monitoring.store.schema import drawn, labels, models, predictions, rollups

_TYPES: dict[str, Any] = {  # of columns, int64 otherwise
    "confidence": np.float32, "time": np.float64, "source": object, "drawn_before": np.bool_, "drawn": np.bool_
}  # fmt: skip
MAX_IDS = 500  # in one statement: the number of its parameters is limited


@dataclass(frozen=True, eq=False)
class LabelRows:
    """Labels in the order in which they arrived, as columns (n,)."""

    number: NDArray[np.int64]  # of each label, increasing; a label that arrives later has a larger one
    ids: NDArray[np.int64]  # id and sequence number of the prediction that was labelled
    sequence: NDArray[np.int64]
    labels: NDArray[np.int64]  # index of the true class
    before: NDArray[np.int64]  # the label that the prediction had until then; -1 where it had none
    predicted: NDArray[np.int64]  # the answer, as in ``Predictions``
    confidence: NDArray[np.float32]
    time: NDArray[np.float64]  # when the label arrived, in seconds since 1970
    source: NDArray[np.object_]  # where it came from, as texts
    after: NDArray[np.int64]  # sequence number of the last prediction of any version in the store by then
    drawn_before: NDArray[np.bool_]  # whether the prediction had a label of a sample drawn at random before
    drawn: NDArray[np.bool_]  # and whether it has one now

    @classmethod
    def from_columns(cls, *columns: Any) -> Self:
        """Labels from columns in this order, turned into arrays of the right types."""
        names = [column.name for column in fields(cls)]
        return cls(*(np.array(one, _TYPES.get(name, np.int64)) for name, one in zip(names, columns, strict=True)))

    @classmethod
    def empty(cls) -> Self:
        """No labels."""
        return cls.from_columns(*[()] * len(fields(cls)))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Consecutive labels as one; at least one part is needed."""
        return cls(*map(np.concatenate, zip(*(vars(part).values() for part in parts), strict=True)))

    @property
    def n(self) -> int:
        """Number of labels."""
        return len(self.number)

    def take(self, which: NDArray[Any] | slice) -> Self:
        """The labels at a mask (n,), at indices or in a slice."""
        return type(self)(*(column[which] for column in vars(self).values()))


class Labels:
    """The table of labels, which are the true classes of predictions, and that of predictions drawn for labelling."""

    def __init__(self, database: Database, versions: ModelVersions) -> None:
        self._database = database
        self._versions = versions

    def insert(self, truths: Mapping[int, str], source: str, time: float) -> int:
        """Insert true classes, all of them or none; return how many labels are new or have changed.

        Parameters
        ----------
        truths
            Number of the prediction's id to name of its true class.
        source
            Where they come from.
        time
            Seconds since 1970.

        Raises
        ------
        UnknownPrediction
            When one of the predictions is not in the store.
        SettingsError
            When one of the classes is not among those of its model version.
        """
        if not truths:
            return 0
        if not self._database.exists():
            name = format_id(next(iter(truths)))
            raise UnknownPrediction(f"there is no prediction {name}: the store {self._database} is empty")
        fair, source = source not in BIASED_SOURCES, display_name(source)
        with self._database.writing() as connection:
            found = {row.id: row for row in _find(connection, list(truths), fair=fair)}
            known = sa.select(models.c.number, models.c.classes)
            known = known.where(models.c.number.in_({row.model for row in found.values()}))
            classes = {row.number: json.loads(row.classes) for row in connection.execute(known)}
            changes = []
            for number, name in truths.items():
                if number not in found:
                    raise UnknownPrediction(f"there is no prediction {format_id(number)} in the store {self._database}")
                row = found[number]
                if (label := _index(name, classes[row.model])) != row.label:
                    changes.append(_change(row, label, drawn_source(source) if fair and row.drawn else source))
            _insert(connection, changes, time)
        return len(changes)

    def insert_drawn(self, ids: Sequence[int], time: float) -> None:
        """Record that predictions, by the numbers of their ids, were drawn at random: their labels are a fair sample.

        Existing labels of some of them are inserted once more, as part of the sample.
        """
        if not ids or not self._database.exists():
            return
        with self._database.writing() as connection:
            fresh = [row for row in _find(connection, ids) if not row.drawn]
            if not fresh:
                return
            oldest = sa.select(sa.func.min(predictions.c.sequence)).scalar_subquery()
            connection.execute(drawn.delete().where(drawn.c.prediction < oldest))
            connection.execute(drawn.insert(), [{"prediction": row.sequence, "time": time} for row in fresh])
            labelled = [_change(row, row.label, DRAWN_SOURCE) for row in fresh if row.label is not None]
            _insert(connection, labelled, time)

    def last(self) -> int:
        """The number of the newest label, of any version; 0 when there is none."""
        rows = self._database.fetch_all(sa.select(sa.func.max(labels.c.number)))
        return (rows[0][0] or 0) if rows else 0

    def since(self, model: ModelVersion, number: int, limit: int) -> LabelRows:
        """The first ``limit`` labels of a version from fair sources above a number, 0 for all, in their order."""
        earlier = labels.alias()
        drawn_before = (
            sa.exists()
            .where(earlier.c.prediction == labels.c.prediction, earlier.c.number < labels.c.number)
            .where(from_drawn(earlier.c.source))
        )
        query = (
            sa.select(
                labels.c.number,
                predictions.c.id,
                labels.c.prediction,
                labels.c.label,
                sa.func.coalesce(current_label(labels.c.number - 1).element, NO_CLASS),
                sa.func.coalesce(predictions.c.predicted, NO_CLASS),
                predictions.c.confidence,
                labels.c.time,
                labels.c.source,
                labels.c.after,
                drawn_before.label("drawn_before"),
                sa.or_(from_drawn(labels.c.source), drawn_before).label("drawn"),
            )
            .join(predictions)
            .where(labels.c.model == self._versions.number(model), labels.c.number > number)
            .where(labels.c.source.not_in(BIASED_SOURCES))
        )
        rows = self._database.fetch_all(query.order_by(labels.c.number).limit(limit))
        return LabelRows.from_columns(*zip(*rows, strict=True)) if rows else LabelRows.empty()

    def drawn_between(self, first: int, last: int, up_to_label: int | None) -> NDArray[np.int64]:
        """Sequence numbers of predictions from ``first`` to ``last`` with a label of a drawn sample up to a number."""
        query = sa.select(labels.c.prediction).distinct().where(labels.c.prediction.between(first, last))
        query = query.where(from_drawn(labels.c.source))
        if up_to_label is not None:
            query = query.where(labels.c.number <= up_to_label)
        return np.array([row.prediction for row in self._database.fetch_all(query)], np.int64)


def _index(name: str, classes: Sequence[str]) -> int:
    """The index of a class, also when its accents have other code points (NFC, NFD)."""
    if name in classes:
        return classes.index(name)
    alike = [class_name(known_as) for known_as in classes]
    if class_name(name) in alike:
        return alike.index(class_name(name))
    raise SettingsError(f"there is no class {name!r}; the classes are {suggest(classes, name)}")


def current_label(up_to_label: sa.ColumnElement[int] | int | None = None, *, fair: bool = True) -> sa.Label[Any]:
    """The newest label of the prediction of the surrounding query, NULL when there is none.

    Parameters
    ----------
    up_to_label
        Labels above this number are not yet taken into account.
    fair
        Whether those of biased sources are left out.
    """
    given = labels.alias()
    query = sa.select(given.c.label).where(given.c.prediction == predictions.c.sequence)
    if fair:
        query = query.where(given.c.source.not_in(BIASED_SOURCES))
    if up_to_label is not None:
        query = query.where(given.c.number <= up_to_label)
    return query.order_by(given.c.number.desc()).limit(1).correlate_except(given).scalar_subquery().label("label")


def from_drawn(source: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """``is_drawn`` of a column."""
    return sa.or_(source == DRAWN_SOURCE, source.startswith(f"{DRAWN_SOURCE}: "))


def chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Ids in parts that fit into a statement."""
    for first in range(0, len(ids), MAX_IDS):
        yield ids[first : first + MAX_IDS]


def _find(connection: sa.Connection, ids: Sequence[int], *, fair: bool = True) -> list[sa.Row[Any]]:
    """Predictions by the numbers of their ids, with their current labels, and whether they were drawn."""
    was_drawn = sa.exists().where(drawn.c.prediction == predictions.c.sequence).label("drawn")
    columns = predictions.c.id, predictions.c.sequence, predictions.c.model, current_label(fair=fair), was_drawn
    queries = (sa.select(*columns).where(predictions.c.id.in_(part)) for part in chunks(ids))
    return [row for query in queries for row in connection.execute(query)]


def _change(row: sa.Row[Any], label: int, source: str) -> dict[str, Any]:
    return {"prediction": row.sequence, "model": row.model, "label": label, "source": source}


def _insert(connection: sa.Connection, rows: Sequence[Mapping[str, Any]], time: float) -> None:
    """Insert labels, and mark the rollups that lack them: the next process that writes rollups counts them again."""
    if not rows:
        return
    after = connection.execute(sa.select(sa.func.max(predictions.c.sequence))).scalar_one()
    last = connection.execute(sa.select(sa.func.max(labels.c.number))).scalar_one() or 0
    connection.execute(labels.insert(), [{**row, "time": time, "after": after} for row in rows])
    holder = rollups.alias()
    containing = sa.select(holder.c.number).where(
        holder.c.model == labels.c.model, holder.c.last >= labels.c.prediction
    )
    first = containing.order_by(holder.c.last).limit(1).scalar_subquery()
    lacking = sa.select(labels.c.model, first).where(labels.c.number > last)
    key = sa.tuple_(rollups.c.model, rollups.c.number)
    connection.execute(rollups.update().where(key.in_(lacking)).values(stale=True))
