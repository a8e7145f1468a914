"""Rollups: the counts of 1,000 consecutive predictions of a model version, kept when the rows are deleted.

The counts are opaque bytes here: callers pass one function that makes them from rows, and another that adds two.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Any

import sqlalchemy as sa

from toolkit.errors import SettingsError
from toolkit.monitoring.base.predictions import WINDOWS, Predictions
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.predictions import PredictionStore
from toolkit.monitoring.store.schema import labels, models, predictions, rollups

ROLLUP_SIZE = 1_000  # predictions in a rollup that was not merged
MERGE_FACTOR = 10  # rollups that are merged into one
KEPT_PER_SIZE = 100  # rollups of each size that are not merged: times are exact to about 1 % of their age
MIN_ROWS = max(size for size in WINDOWS.values() if size is not None)  # of a version: its windows need them
VACUUM_PAGES = 200  # of 4 KB, vacuumed after each rollup: the rows of one of ten classes fill about 40
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Rollup:
    """Consecutive predictions of one model version, counted."""

    number: int  # index of its first 1,000 predictions among those of the version, from 0
    n: int  # 1,000, or 10,000, 100,000 ... where rollups were merged
    first: int  # sequence numbers of the first and the last prediction
    last: int
    since: float  # the earliest and the latest time, in seconds since 1970
    until: float
    last_label: int  # the last label in the counts: those with a greater number are not in them
    has_rows: bool  # whether its predictions have not been deleted
    counts: bytes


_COLUMNS = [rollups.c[field.name] for field in fields(Rollup)]


def read_rollups(store: PredictionStore, model: ModelVersion) -> list[Rollup]:
    """The rollups of a version, oldest first.

    Examples
    --------
    >>> read_rollups(PredictionStore("no-such-file.db"), ModelVersion("1", ("cat", "dog")))
    []
    """
    newest = sa.select(sa.func.coalesce(sa.func.max(labels.c.number), 0)).scalar_subquery()
    known = sa.case((rollups.c.stale, rollups.c.last_label), else_=newest).label("last_label")
    query = sa.select(*(known if column.name == "last_label" else column for column in _COLUMNS))
    query = query.where(rollups.c.model == store.versions.number(model)).order_by(rollups.c.number)
    return [Rollup(**row._mapping) for row in store.database.fetch_all(query)]


# Writing


def write_due_rollups(
    store: PredictionStore, model: ModelVersion, make: Callable[[Predictions], bytes], at_most: int | None = None
) -> int:
    """Write the rollups that are due, and rewrite those that lack a label; return how many.

    Several processes may do so at the same time. ``make`` counts 1,000 predictions with their labels.
    """
    number = store.versions.number(model)
    written = 0
    while number is not None and (at_most is None or written < at_most):
        last_label = store.labels.last()  # first: a label that comes from now on makes the rollup stale
        place, after = _next(store, number)
        if not _is_complete(store, number, after):
            break
        rows = store.rows_since(model, after, ROLLUP_SIZE, last_label)
        _write(store, number, place, rows, last_label, make(rows))
        written += 1
    return written


def _next(store: PredictionStore, model: int) -> tuple[int, int]:
    """The number of the next rollup to write, and the sequence number before its first prediction.

    The oldest stale one, else the one after the last.
    """
    query = sa.select(rollups.c.number, rollups.c.n, rollups.c.first, rollups.c.last).where(rollups.c.model == model)
    oldest = query.where(rollups.c.stale, rollups.c.has_rows).order_by(rollups.c.number).limit(1)
    if stale := store.database.fetch_all(oldest):
        return int(stale[0].number), int(stale[0].first) - 1
    last = store.database.fetch_all(query.order_by(rollups.c.last.desc()).limit(1))
    return (int(last[0].number + last[0].n // ROLLUP_SIZE), int(last[0].last)) if last else (0, 0)


def _is_complete(store: PredictionStore, model: int, after: int) -> bool:
    """Whether there are enough predictions above a sequence number; called often, so without reading them."""
    query = sa.select(predictions.c.sequence).where(predictions.c.model == model, predictions.c.sequence > after)
    return bool(store.database.fetch_all(query.order_by(predictions.c.sequence).offset(ROLLUP_SIZE - 1).limit(1)))


def _write(store: PredictionStore, model: int, place: int, rows: Predictions, last_label: int, counts: bytes) -> None:
    """Write a rollup, unless another process has written it with more labels."""
    first, last = int(rows.sequence[0]), int(rows.sequence[-1])
    key = rollups.c.model == model, rollups.c.number == place
    with store.database.writing() as connection:
        newer = (
            sa.select(labels.c.number)
            .join(predictions)
            .where(labels.c.model == model, labels.c.number > last_label, labels.c.prediction.between(first, last))
        )
        stale = connection.execute(newer.limit(1)).first() is not None
        there = connection.execute(sa.select(rollups.c.last_label, rollups.c.last).where(*key)).first()
        if there is None:
            times = float(rows.time.min()), float(rows.time.max())
            new = Rollup(place, rows.n, first, last, *times, last_label, has_rows=True, counts=counts)
            connection.execute(rollups.insert().values(model=model, stale=stale, **vars(new)))
        elif there.last_label <= last_label and there.last == last:
            values = {"last_label": last_label, "stale": stale, "counts": counts}
            connection.execute(rollups.update().where(*key, rollups.c.has_rows).values(**values))


# Merging


def merge_old_rollups(store: PredictionStore, model: ModelVersion, add: Callable[[bytes, bytes], bytes]) -> int:
    """Merge old rollups without rows, ten into one; return how many were made.

    The last hundred of each size stay, so that there are about a hundred for each factor of ten. ``add`` adds up the
    counts of two rollups.
    """
    number = store.versions.number(model)
    merged = 0
    while number is not None and (old := _mergeable(store, number)):
        merged += _replace(store, number, old, reduce(add, (rollup.counts for rollup in old)))
    return merged


def _mergeable(store: PredictionStore, model: int) -> list[Rollup]:
    """Ten rollups of one size that may be merged; empty when there are fewer."""
    without_rows = rollups.c.model == model, sa.not_(rollups.c.has_rows)
    many = sa.func.count() >= KEPT_PER_SIZE + MERGE_FACTOR
    sizes = sa.select(rollups.c.n).where(*without_rows).group_by(rollups.c.n).having(many).order_by(rollups.c.n)
    if not (found := store.database.fetch_all(sizes)):
        return []
    query = sa.select(*_COLUMNS).where(*without_rows, rollups.c.n == found[0].n).order_by(rollups.c.number)
    return [Rollup(**row._mapping) for row in store.database.fetch_all(query.limit(MERGE_FACTOR))]


def _replace(store: PredictionStore, model: int, old: list[Rollup], counts: bytes) -> bool:
    """Replace several rollups by one, unless another process has done so."""
    new = replace(
        old[0],
        n=sum(rollup.n for rollup in old),
        last=old[-1].last,
        since=min(rollup.since for rollup in old),
        until=max(rollup.until for rollup in old),
        last_label=max(rollup.last_label for rollup in old),
        counts=counts,
    )
    numbers = [rollup.number for rollup in old]
    with store.database.writing() as connection:
        key = rollups.c.model == model, rollups.c.number.in_(numbers), rollups.c.n == old[0].n
        if connection.execute(rollups.delete().where(*key)).rowcount < len(old):
            connection.rollback()
            return False
        connection.execute(rollups.insert().values(model=model, stale=False, **vars(new)))
    return True


# Deleting rows


def delete_expired(
    store: PredictionStore,
    keep_days: float | None = None,
    keep_rows: int | None = None,
    *,
    now: float | None = None,
    at_most: int | None = None,
) -> int:
    """Delete predictions, and their labels, beyond an age or a number; return how many predictions.

    The rows of one rollup are deleted at a time, oldest first, so that writers hardly wait, and only when all their
    labels are in the rollup. Rollups stay, and so do the last 10,000 predictions of each version, which the windows
    need.

    Parameters
    ----------
    now
        Seconds since 1970; the current time when None.
    at_most
        Of how many rollups to delete the rows now; of all that are due when None.

    Raises
    ------
    SettingsError
        When a limit is too small.
    """
    if keep_days is not None and not keep_days > 0:
        raise SettingsError(f"keep_days must be more than 0, got {keep_days}")
    if keep_rows is not None and keep_rows < MIN_ROWS:
        raise SettingsError(f"keep_rows must be at least {MIN_ROWS}, the size of a window, got {keep_rows}")
    oldest = (time.time() if now is None else now) - keep_days * SECONDS_PER_DAY if keep_days is not None else -math.inf
    deleted = done = 0
    for model in [row.number for row in store.database.fetch_all(sa.select(models.c.number))]:
        expendable = _last_before_newest(store, model, MIN_ROWS)
        beyond = _last_before_newest(store, model, keep_rows) if keep_rows is not None else 0
        while (at_most is None or done < at_most) and (rollup := _oldest_with_rows(store, model)):
            if rollup.last > expendable or (rollup.last > beyond and rollup.until >= oldest):
                break
            deleted, done = deleted + _delete_rows(store, rollup), done + 1
    return deleted


def _last_before_newest(store: PredictionStore, model: int, keep: int) -> int:
    """The sequence number of the last prediction of a version before its newest ``keep``."""
    query = sa.select(predictions.c.sequence).where(predictions.c.model == model)
    rows = store.database.fetch_all(query.order_by(predictions.c.sequence.desc()).offset(keep).limit(1))
    return int(rows[0].sequence) if rows else 0


def _oldest_with_rows(store: PredictionStore, model: int) -> sa.Row[Any] | None:
    """The oldest rollup with rows, None when it lacks a label."""
    column = rollups.c
    columns = column.model, column.number, column.first, column.last, column.until, column.stale
    query = sa.select(*columns).where(column.model == model, column.has_rows).order_by(column.number).limit(1)
    rows = store.database.fetch_all(query)
    return rows[0] if rows and not rows[0].stale else None


def _delete_rows(store: PredictionStore, rollup: sa.Row[Any]) -> int:
    """Delete the rows of a rollup, unless one of them has just got a label; return how many."""
    key = rollups.c.model == rollup.model, rollups.c.number == rollup.number
    inside = predictions.c.model == rollup.model, predictions.c.sequence.between(rollup.first, rollup.last)
    started = time.monotonic()
    with store.database.writing() as connection:
        release = rollups.update().where(*key, rollups.c.has_rows, sa.not_(rollups.c.stale)).values(has_rows=False)
        if not connection.execute(release).rowcount:
            return 0
        connection.execute(
            labels.delete().where(labels.c.prediction.in_(sa.select(predictions.c.sequence).where(*inside)))
        )
        deleted = connection.execute(predictions.delete().where(*inside)).rowcount
    store.database.vacuum(VACUUM_PAGES)
    time.sleep(time.monotonic() - started)  # leaves as much time to other writers
    return deleted
