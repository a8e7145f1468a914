"""Blocks: what is counted in 1,000 consecutive predictions of a model version, kept when the rows are gone.

The store does not know what is in them. Whoever counts gives a function that makes the bytes of a
block from its rows, and one that adds up the bytes of two blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import sqlalchemy as sa

from toolkit.monitoring.models import Model
from toolkit.monitoring.schema import blocks, labels, predictions
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
    told
        The last label that this block knows of: those with a greater number are not in its counts.
    whole
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
    told: int
    whole: bool
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
    last_label = sa.select(sa.func.coalesce(sa.func.max(labels.c.number), 0)).scalar_subquery()
    known = sa.case((blocks.c.stale, blocks.c.told), else_=last_label).label("told")
    column = blocks.c
    columns = column.number, column.n, column.first, column.last, column.since, column.until, known
    query = (
        sa.select(*columns, column.whole, column.counts)
        .where(blocks.c.model == store.number(model))
        .order_by(blocks.c.number)
    )
    if since is not None:
        query = query.where(blocks.c.until >= since)
    return [Block(**row._mapping) for row in store.all(query)]


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
    number = store.number(model)
    made = 0
    while number is not None and (at_most is None or made < at_most):
        told = store.last_label()  # first: what is told from now on makes the block stale
        place, after = _next(store, number)
        if not _complete(store, number, after):
            break
        rows = store.rows_since(model, after, BLOCK, told)
        _keep(store, number, place, rows, told, make(rows))
        made += 1
    return made


def _next(store: PredictionStore, model: int) -> tuple[int, int]:
    """The number of the next block to make, and the sequence number before its first prediction.

    The oldest stale block, else the one after the last.
    """
    query = sa.select(blocks.c.number, blocks.c.n, blocks.c.first, blocks.c.last).where(blocks.c.model == model)
    stale = store.all(query.where(blocks.c.stale, blocks.c.whole).order_by(blocks.c.number).limit(1))
    if stale:
        return int(stale[0].number), int(stale[0].first) - 1
    last = store.all(query.order_by(blocks.c.last.desc()).limit(1))
    return (int(last[0].number + last[0].n // BLOCK), int(last[0].last)) if last else (0, 0)


def _complete(store: PredictionStore, model: int, after: int) -> bool:
    """Whether there are enough predictions above a sequence number; asked often, so without reading them."""
    query = sa.select(predictions.c.sequence).where(predictions.c.model == model, predictions.c.sequence > after)
    return bool(store.all(query.order_by(predictions.c.sequence).offset(BLOCK - 1).limit(1)))


def _keep(store: PredictionStore, model: int, place: int, rows: Window, told: int, counts: bytes) -> None:
    """Write a block unless a later look at its rows has written it already."""
    first, last = int(rows.sequence[0]), int(rows.sequence[-1])
    key = blocks.c.model == model, blocks.c.number == place
    with store.writing() as connection:
        newer = (
            sa.select(labels.c.number)
            .join(predictions)
            .where(labels.c.model == model, labels.c.number > told, labels.c.prediction.between(first, last))
        )
        values = {"told": told, "counts": counts, "stale": connection.execute(newer.limit(1)).first() is not None}
        there = connection.execute(sa.select(blocks.c.told, blocks.c.last).where(*key)).first()
        if there is None:
            times = {"since": float(rows.time.min()), "until": float(rows.time.max())}
            place_of = {"model": model, "number": place, "n": rows.n, "first": first, "last": last, "whole": True}
            connection.execute(blocks.insert().values(**place_of, **times, **values))
        elif there.told <= told and there.last == last:
            connection.execute(blocks.update().where(*key, blocks.c.whole).values(**values))


def roll_up(store: PredictionStore, model: Model, add: Callable[[bytes, bytes], bytes]) -> int:
    """Make one block out of each ten old ones whose rows are gone; return how many were made.

    Of each size the last hundred stay, so that there are about a hundred for each factor of ten.

    Parameters
    ----------
    add
        Adds up the counts of two blocks.
    """
    number = store.number(model)
    made = 0
    while number is not None and (ten := _ripe(store, number)):
        counts = reduce(add, (block.counts for block in ten))
        made += _replace(store, number, ten, counts)
    return made


def _ripe(store: PredictionStore, model: int) -> list[Block]:
    """Ten blocks of one size that may become one; none when there are not so many."""
    gone = blocks.c.model == model, sa.not_(blocks.c.whole)
    many = sa.func.count() >= KEPT + TOGETHER
    sizes = store.all(sa.select(blocks.c.n).where(*gone).group_by(blocks.c.n).having(many).order_by(blocks.c.n))
    if not sizes:
        return []
    columns = [blocks.c[name] for name in Block.__dataclass_fields__]
    query = sa.select(*columns).where(*gone, blocks.c.n == sizes[0].n).order_by(blocks.c.number).limit(TOGETHER)
    return [Block(**row._mapping) for row in store.all(query)]


def _replace(store: PredictionStore, model: int, old: list[Block], counts: bytes) -> bool:
    """Put one block in the place of several, unless another process has done so."""
    numbers = [block.number for block in old]
    with store.writing() as connection:
        key = blocks.c.model == model, blocks.c.number.in_(numbers), blocks.c.n == old[0].n
        if connection.execute(blocks.delete().where(*key)).rowcount < len(old):
            connection.rollback()
            return False
        connection.execute(
            blocks.insert().values(
                model=model,
                number=old[0].number,
                n=sum(block.n for block in old),
                first=old[0].first,
                last=old[-1].last,
                since=min(block.since for block in old),
                until=max(block.until for block in old),
                told=max(block.told for block in old),
                stale=False,
                whole=False,
                counts=counts,
            )
        )
    return True
