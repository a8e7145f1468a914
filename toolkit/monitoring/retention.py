"""Let old predictions go once they are counted, a block at a time, so that no writer waits for it."""

import math
import time
from typing import Any

import sqlalchemy as sa

from toolkit.errors import SettingsError
from toolkit.monitoring.schema import labels, models, predictions, rollups
from toolkit.monitoring.store import PredictionStore
from toolkit.monitoring.windows import WINDOWS

SECONDS_A_DAY = 86_400
LEAST_ROWS = max(size for size in WINDOWS.values() if size is not None)  # of a version: its windows are made of them
PAGES_AT_ONCE = 200  # of 4 KB, given back after each block: a block of ten classes fills about 40


def forget(
    store: PredictionStore,
    keep_days: float | None = None,
    keep_rows: int | None = None,
    *,
    now: float | None = None,
    at_most: int | None = None,
) -> int:
    """Delete predictions, and their labels, that are too old or too many; return how many predictions.

    They go a block at a time, oldest first, and only once the block holds all that is known of them.
    The block stays, and so do the last 10,000 predictions of each version, of which the windows are made.

    Parameters
    ----------
    keep_days
        Predictions older than this go; none for their age when None.
    keep_rows
        Of each version, predictions before the last so many go; none for their number when None.
    now
        Seconds since 1970; the time of the clock when None.
    at_most
        How many blocks to delete now; all that are due when None.

    Raises
    ------
    SettingsError
        When a limit is too small.
    """
    if keep_days is not None and not keep_days > 0:
        raise SettingsError(f"keep_days must be more than 0, got {keep_days}")
    if keep_rows is not None and keep_rows < LEAST_ROWS:
        raise SettingsError(f"keep_rows must be at least {LEAST_ROWS}, the size of a window, got {keep_rows}")
    oldest = (time.time() if now is None else now) - keep_days * SECONDS_A_DAY if keep_days is not None else -math.inf
    gone = done = 0
    for model in [row.number for row in store.database.fetch_all(sa.select(models.c.number))]:
        needed = _last_to_go(store, model, LEAST_ROWS)
        beyond = _last_to_go(store, model, keep_rows) if keep_rows is not None else 0
        while (at_most is None or done < at_most) and (block := _oldest(store, model)):
            if block.last > needed or (block.last > beyond and block.until >= oldest):
                break
            gone, done = gone + _delete(store, block), done + 1
    return gone


def _last_to_go(store: PredictionStore, model: int, keep: int) -> int:
    """The sequence number of the last prediction of a version that is not among its last so many."""
    query = sa.select(predictions.c.sequence).where(predictions.c.model == model)
    rows = store.database.fetch_all(query.order_by(predictions.c.sequence.desc()).offset(keep).limit(1))
    return int(rows[0].sequence) if rows else 0


def _oldest(store: PredictionStore, model: int) -> sa.Row[Any] | None:
    """The oldest block whose rows are still there, None when it does not know all of them."""
    columns = rollups.c.model, rollups.c.number, rollups.c.first, rollups.c.last, rollups.c.until, rollups.c.stale
    rows = store.database.fetch_all(
        sa.select(*columns).where(rollups.c.model == model, rollups.c.has_rows).order_by(rollups.c.number).limit(1)
    )
    return rows[0] if rows and not rows[0].stale else None


def _delete(store: PredictionStore, block: sa.Row[Any]) -> int:
    """Delete the rows of a block, unless a label has just come for one of them; return how many."""
    key = rollups.c.model == block.model, rollups.c.number == block.number
    inside = predictions.c.model == block.model, predictions.c.sequence.between(block.first, block.last)
    started = time.monotonic()
    with store.database.writing() as connection:
        let_go = rollups.update().where(*key, rollups.c.has_rows, sa.not_(rollups.c.stale)).values(has_rows=False)
        if not connection.execute(let_go).rowcount:
            return 0
        connection.execute(
            labels.delete().where(labels.c.prediction.in_(sa.select(predictions.c.sequence).where(*inside)))
        )
        deleted = connection.execute(predictions.delete().where(*inside)).rowcount
    store.database.vacuum(PAGES_AT_ONCE)
    time.sleep(time.monotonic() - started)  # as long again is left to others
    return deleted
