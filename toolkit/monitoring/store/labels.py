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
from toolkit.monitoring.base.predictions import BIASED_SOURCES, DRAWN_SOURCE, NO_CLASS, drawn_source, is_drawn
from toolkit.monitoring.store.database import Database
from toolkit.monitoring.store.model_versions import ModelVersion, ModelVersions
from toolkit.monitoring.store.schema import drawn, labels, models, predictions, rollups

_TYPES: dict[str, Any] = {  # of columns, int64 otherwise
    "confidence": np.float32, "time": np.float64, "source": object, "drawn_before": np.bool_, "drawn": np.bool_
}  # fmt: skip
MAX_IDS = 500  # in one statement: the number of its parameters is limited


@dataclass(frozen=True, eq=False)
class LabelRows:
    """Labels in the order in which they arrived, as columns.

    Parameters
    ----------
    number
        (n,), of each label, increasing; a label that arrives later has a larger one.
    ids, sequence
        (n,), id and sequence number of the prediction that was labelled.
    labels
        (n,), index of the true class.
    before
        (n,), the label that the prediction had until then; -1 where it had none.
    predicted, confidence
        (n,), the answer, as in ``Predictions``.
    time
        (n,), when the label arrived, in seconds since 1970.
    source
        (n,), where it came from, as texts.
    after
        (n,), sequence number of the last prediction of any version that was in the store by then.
    drawn_before, drawn
        (n,), whether the prediction has a label of a sample drawn at random: before this label, and with it.
    """

    number: NDArray[np.int64]
    ids: NDArray[np.int64]
    sequence: NDArray[np.int64]
    labels: NDArray[np.int64]
    before: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]
    time: NDArray[np.float64]
    source: NDArray[np.object_]
    after: NDArray[np.int64]
    drawn_before: NDArray[np.bool_]
    drawn: NDArray[np.bool_]

    @classmethod
    def empty(cls) -> Self:
        """No labels."""
        return cls(**{name: np.zeros(0, _TYPES.get(name, np.int64)) for name in _names(cls)})

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Consecutive labels as one; at least one part is needed."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in _names(cls)})

    @property
    def n(self) -> int:
        """Number of labels."""
        return len(self.number)

    def take(self, which: NDArray[Any] | slice) -> Self:
        """Some of the labels.

        Parameters
        ----------
        which
            A mask (n,), indices or a slice.
        """
        return type(self)(**{name: getattr(self, name)[which] for name in _names(type(self))})


def _names(of: type[LabelRows]) -> list[str]:
    return [column.name for column in fields(of)]


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
        with self._database.writing() as connection:
            rows = self._changes(connection, truths, source not in BIASED_SOURCES)
            sampled = _drawn_among(connection, rows) if source not in BIASED_SOURCES else set()
            source = display_name(source)
            _insert(
                connection,
                [
                    row | {"source": drawn_source(source) if row["prediction"] in sampled else source, "time": time}
                    for row in rows
                ],
            )
        return len(rows)

    def insert_drawn(self, ids: Sequence[int], time: float) -> None:
        """Record that predictions were drawn at random to be labelled: their labels are a fair sample.

        Existing labels of some of them are inserted once more, as part of the sample.

        Parameters
        ----------
        ids
            Numbers of their ids.
        time
            Seconds since 1970.
        """
        if not ids or not self._database.exists():
            return
        with self._database.writing() as connection:
            columns = predictions.c.sequence, predictions.c.model, current_label()
            rows = [
                row
                for part in _chunks(ids)
                for row in connection.execute(sa.select(*columns).where(predictions.c.id.in_(part)))
            ]
            known = _drawn_among(connection, [{"prediction": row.sequence} for row in rows])
            fresh = [row for row in rows if row.sequence not in known]
            if not fresh:
                return
            oldest = sa.select(sa.func.min(predictions.c.sequence)).scalar_subquery()
            connection.execute(drawn.delete().where(drawn.c.prediction < oldest))
            connection.execute(drawn.insert(), [{"prediction": row.sequence, "time": time} for row in fresh])
            labelled = [row for row in fresh if row.label is not None]
            about = {"source": DRAWN_SOURCE, "time": time}
            _insert(
                connection,
                [{"prediction": row.sequence, "model": row.model, "label": row.label} | about for row in labelled],
            )

    def _changes(self, connection: sa.Connection, truths: Mapping[int, str], fair: bool) -> list[dict[str, Any]]:
        """Labels that differ from the current ones, of fair sources or of all."""
        current: dict[int, sa.Row[Any]] = {}
        for ids in _chunks(list(truths)):
            query = sa.select(predictions.c.id, predictions.c.sequence, predictions.c.model, current_label(fair=fair))
            current |= {row.id: row for row in connection.execute(query.where(predictions.c.id.in_(ids)))}
        classes: dict[int, list[str]] = {}
        changes = []
        for number, name in truths.items():
            if number not in current:
                raise UnknownPrediction(f"there is no prediction {format_id(number)} in the store {self._database}")
            row = current[number]
            if row.model not in classes:
                found = sa.select(models.c.classes).where(models.c.number == row.model)
                classes[row.model] = json.loads(connection.execute(found).scalar_one())
            label = _index(name, classes[row.model])
            if label != row.label:
                changes.append({"prediction": row.sequence, "model": row.model, "label": label})
        return changes

    def last(self) -> int:
        """The number of the newest label, of any version; 0 when there is none."""
        rows = self._database.fetch_all(sa.select(sa.func.max(labels.c.number)))
        return (rows[0][0] or 0) if rows else 0

    def since(self, model: ModelVersion, number: int, limit: int) -> LabelRows:
        """The first ``limit`` labels of a version from fair sources, above a number, in their order.

        Parameters
        ----------
        number
            Of the last label that the caller has; 0 for all.
        """
        earlier = labels.alias()
        before = (
            sa.select(earlier.c.label)
            .where(earlier.c.prediction == labels.c.prediction, earlier.c.number < labels.c.number)
            .where(earlier.c.source.not_in(BIASED_SOURCES))
            .order_by(earlier.c.number.desc())
            .limit(1)
            .correlate(labels)
            .scalar_subquery()
        )
        sampled = (
            sa.exists()
            .where(earlier.c.prediction == labels.c.prediction, earlier.c.number < labels.c.number)
            .where(from_drawn(earlier.c.source))
            .correlate(labels)
        )
        query = (
            sa.select(
                labels.c.number,
                predictions.c.id,
                labels.c.prediction,
                labels.c.label,
                sa.func.coalesce(before, NO_CLASS),
                sa.func.coalesce(predictions.c.predicted, NO_CLASS),
                predictions.c.confidence,
                labels.c.time,
                labels.c.source,
                labels.c.after,
                sampled.label("drawn_before"),
            )
            .join(predictions)
            .where(labels.c.model == self._versions.number(model), labels.c.number > number)
            .where(labels.c.source.not_in(BIASED_SOURCES))
        )
        rows = self._database.fetch_all(query.order_by(labels.c.number).limit(limit))
        *integers, confidence, time, source, after, before_it = zip(*rows, strict=True) if rows else [()] * 11
        numbers, ids, sequence, label, replaced, predicted = (np.array(column, np.int64) for column in integers)
        return LabelRows(
            number=numbers,
            ids=ids,
            sequence=sequence,
            labels=label,
            before=replaced,
            predicted=predicted,
            confidence=np.array(confidence, np.float32),
            time=np.array(time, np.float64),
            source=np.array(source, object),
            after=np.array(after, np.int64),
            drawn_before=np.array(before_it, np.bool_),
            drawn=np.array(before_it, np.bool_) | np.array([is_drawn(text) for text in source], np.bool_),
        )

    def drawn_between(
        self, model: ModelVersion, first: int, last: int, up_to_label: int | None = None
    ) -> NDArray[np.int64]:
        """Sequence numbers of the predictions from ``first`` to ``last`` with a label of a drawn sample.

        Parameters
        ----------
        up_to_label
            Labels above this number are not yet taken into account.
        """
        query = sa.select(labels.c.prediction).distinct().where(labels.c.prediction.between(first, last))
        query = query.where(labels.c.model == self._versions.number(model), from_drawn(labels.c.source))
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


def current_label(up_to_label: int | None = None, *, fair: bool = True) -> sa.Label[Any]:
    """The newest label of the prediction of the surrounding query, NULL when there is none.

    Parameters
    ----------
    up_to_label
        Labels above this number are not yet taken into account.
    fair
        Whether those of biased sources are left out.
    """
    query = sa.select(labels.c.label).where(labels.c.prediction == predictions.c.sequence)
    if fair:
        query = query.where(labels.c.source.not_in(BIASED_SOURCES))
    if up_to_label is not None:
        query = query.where(labels.c.number <= up_to_label)
    return query.order_by(labels.c.number.desc()).limit(1).correlate(predictions).scalar_subquery().label("label")


def from_drawn(source: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """``is_drawn`` of a column."""
    return sa.or_(source == DRAWN_SOURCE, source.startswith(f"{DRAWN_SOURCE}: "))


def _insert(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert labels, and mark the rollups that must be counted again."""
    if rows:
        after = connection.execute(sa.select(sa.func.max(predictions.c.sequence))).scalar_one()
        connection.execute(labels.insert(), [{**row, "after": after} for row in rows])
    for model in {row["model"] for row in rows}:
        _mark_stale(connection, model, [row["prediction"] for row in rows if row["model"] == model])


def _drawn_among(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> set[int]:
    """The predictions among these that were drawn."""
    sequences = [row["prediction"] for row in rows]
    queries = (sa.select(drawn.c.prediction).where(drawn.c.prediction.in_(part)) for part in _chunks(sequences))
    return {row.prediction for query in queries for row in connection.execute(query)}


def _mark_stale(connection: sa.Connection, model: int, sequences: Sequence[int]) -> None:
    """Mark the rollups that lack a label: the next process that writes rollups counts them again."""
    reached = 0
    for sequence in sorted(sequences):
        if sequence <= reached:
            continue
        found = connection.execute(
            sa.select(rollups.c.number, rollups.c.first, rollups.c.last)
            .where(rollups.c.model == model, rollups.c.last >= sequence)
            .order_by(rollups.c.last)
            .limit(1)
        ).first()
        if found is None:
            return  # this one and all later ones are in no rollup yet
        reached = found.last
        key = rollups.c.model == model, rollups.c.number == found.number
        connection.execute(rollups.update().where(*key).values(stale=True))


def _chunks(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(numbers), MAX_IDS):
        yield numbers[first : first + MAX_IDS]
