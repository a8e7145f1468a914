"""Blocks: what is counted in 1,000 consecutive predictions of a model version, kept when the rows are gone.

The store does not know what is in them. Whoever counts gives a function that makes the bytes of a
block from its rows, and one that adds up the bytes of two blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import sqlalchemy as sa

from toolkit.monitoring.models import Model
from toolkit.monitoring.schema import labels, predictions, rollups
from toolkit.monitoring.store import PredictionStore
from toolkit.monitoring.windows import Window

BLOCK = 1_000  # predictions in a block
TOGETHER = 10  # blocks that are rolled up into one
KEPT = 100  # blocks of each size that stay as they are: about two digits of time, at any age


@dataclass(frozen=True)
class Block:
    """Consecutive predictions of one model version, counted.

    Parameters
    ----------
    number
        The place of its first 1,000 predictions among those of the version, from 0.
    n
        How many predictions: 1,000, or 10,000, 100,000 ... where blocks were rolled up.
    first, last
        The sequence numbers of the first and the last of them.
    since, until
        The earliest and the latest time, in seconds since 1970.
    last_label
        The last label that this block knows of: those with a greater number are not in its counts.
    has_rows
        Whether its predictions are still there as rows.
    counts
        What was made of them.
    """

    number: int
    n: int
    first: int
    last: int
    since: float
    until: float
    last_label: int
    has_rows: bool
    counts: bytes

    def holds(self, sequence: int) -> bool:
        """Whether a prediction is between the first and the last."""
        return self.first <= sequence <= self.last


def read_blocks(store: PredictionStore, model: Model, since: float | None = None) -> list[Block]:
    """The blocks of a version, oldest first.

    Parameters
    ----------
    since
        Only those with a prediction at or after this time, in seconds since 1970.

    Examples
    --------
    >>> read_blocks(PredictionStore("no-such-file.db"), Model("1", ("cat", "dog")))
    []
    """
    newest = sa.select(sa.func.coalesce(sa.func.max(labels.c.number), 0)).scalar_subquery()
    known = sa.case((rollups.c.stale, rollups.c.last_label), else_=newest).label("last_label")
    column = rollups.c
    columns = column.number, column.n, column.first, column.last, column.since, column.until, known
    query = (
        sa.select(*columns, column.has_rows, column.counts)
        .where(rollups.c.model == store.versions.number(model))
        .order_by(rollups.c.number)
    )
    if since is not None:
        query = query.where(rollups.c.until >= since)
    return [Block(**row._mapping) for row in store.database.fetch_all(query)]


def fold(store: PredictionStore, model: Model, make: Callable[[Window], bytes], at_most: int | None = None) -> int:
    """Make the blocks that are due, and those again for which a label came; return how many.

    Any process may do so at any time; what two of them make at once is kept once.

    Parameters
    ----------
    make
        Counts 1,000 predictions with their labels.
    at_most
        How many blocks to make now; all that are due when None.
    """
    number = store.versions.number(model)
    made = 0
    while number is not None and (at_most is None or made < at_most):
        last_label = store.labels.last()  # first: a label that comes from now on makes the block stale
        place, after = _next(store, number)
        if not _complete(store, number, after):
            break
        rows = store.rows_since(model, after, BLOCK, last_label)
        _keep(store, number, place, rows, last_label, make(rows))
        made += 1
    return made


def _next(store: PredictionStore, model: int) -> tuple[int, int]:
    """The number of the next block to make, and the sequence number before its first prediction.

    The oldest stale block, else the one after the last.
    """
    query = sa.select(rollups.c.number, rollups.c.n, rollups.c.first, rollups.c.last).where(rollups.c.model == model)
    stale = store.database.fetch_all(
        query.where(rollups.c.stale, rollups.c.has_rows).order_by(rollups.c.number).limit(1)
    )
    if stale:
        return int(stale[0].number), int(stale[0].first) - 1
    last = store.database.fetch_all(query.order_by(rollups.c.last.desc()).limit(1))
    return (int(last[0].number + last[0].n // BLOCK), int(last[0].last)) if last else (0, 0)


def _complete(store: PredictionStore, model: int, after: int) -> bool:
    """Whether there are enough predictions above a sequence number; asked often, so without reading them."""
    query = sa.select(predictions.c.sequence).where(predictions.c.model == model, predictions.c.sequence > after)
    return bool(store.database.fetch_all(query.order_by(predictions.c.sequence).offset(BLOCK - 1).limit(1)))


def _keep(store: PredictionStore, model: int, place: int, rows: Window, last_label: int, counts: bytes) -> None:
    """Write a block unless a later look at its rows has written it already."""
    first, last = int(rows.sequence[0]), int(rows.sequence[-1])
    key = rollups.c.model == model, rollups.c.number == place
    with store.database.writing() as connection:
        newer = (
            sa.select(labels.c.number)
            .join(predictions)
            .where(labels.c.model == model, labels.c.number > last_label, labels.c.prediction.between(first, last))
        )
        values = {"last_label": last_label, "counts": counts}
        values["stale"] = connection.execute(newer.limit(1)).first() is not None
        there = connection.execute(sa.select(rollups.c.last_label, rollups.c.last).where(*key)).first()
        if there is None:
            times = {"since": float(rows.time.min()), "until": float(rows.time.max())}
            place_of = {"model": model, "number": place, "n": rows.n, "first": first, "last": last, "has_rows": True}
            connection.execute(rollups.insert().values(**place_of, **times, **values))
        elif there.last_label <= last_label and there.last == last:
            connection.execute(rollups.update().where(*key, rollups.c.has_rows).values(**values))


def roll_up(store: PredictionStore, model: Model, add: Callable[[bytes, bytes], bytes]) -> int:
    """Make one block out of each ten old ones whose rows are gone; return how many were made.

    Of each size the last hundred stay, so that there are about a hundred for each factor of ten.

    Parameters
    ----------
    add
        Adds up the counts of two blocks.
    """
    number = store.versions.number(model)
    made = 0
    while number is not None and (ten := _ripe(store, number)):
        counts = reduce(add, (block.counts for block in ten))
        made += _replace(store, number, ten, counts)
    return made


def _ripe(store: PredictionStore, model: int) -> list[Block]:
    """Ten blocks of one size that may become one; none when there are not so many."""
    gone = rollups.c.model == model, sa.not_(rollups.c.has_rows)
    many = sa.func.count() >= KEPT + TOGETHER
    sizes = store.database.fetch_all(
        sa.select(rollups.c.n).where(*gone).group_by(rollups.c.n).having(many).order_by(rollups.c.n)
    )
    if not sizes:
        return []
    columns = [rollups.c[name] for name in Block.__dataclass_fields__]
    query = sa.select(*columns).where(*gone, rollups.c.n == sizes[0].n).order_by(rollups.c.number).limit(TOGETHER)
    return [Block(**row._mapping) for row in store.database.fetch_all(query)]


def _replace(store: PredictionStore, model: int, old: list[Block], counts: bytes) -> bool:
    """Put one block in the place of several, unless another process has done so."""
    numbers = [block.number for block in old]
    with store.database.writing() as connection:
        key = rollups.c.model == model, rollups.c.number.in_(numbers), rollups.c.n == old[0].n
        if connection.execute(rollups.delete().where(*key)).rowcount < len(old):
            connection.rollback()
            return False
        connection.execute(
            rollups.insert().values(
                model=model,
                number=old[0].number,
                n=sum(block.n for block in old),
                first=old[0].first,
                last=old[-1].last,
                since=min(block.since for block in old),
                until=max(block.until for block in old),
                last_label=max(block.last_label for block in old),
                stale=False,
                has_rows=False,
                counts=counts,
            )
        )
    return True
