"""Migration of an SQLite file by one process at a time, all or nothing.

MLflow creates and migrates its tables in hundreds of statements without a transaction: two processes that do so
together spoil the file permanently, and one that is killed leaves it between two schemas. So a copy is migrated, and
replaces the content in one transaction, while the file is locked. SQLite frees the lock and undoes what was half
written, however the process ends.
"""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from toolkit.system.file_locks import wait_for

HALF_MADE = "_alembic_tmp_"  # prefix of Alembic for a table that is to replace another
NO_DATA = {"alembic_version", "workspaces"}  # filled by migrations themselves


def migrate_once(
    path: Path, is_current: Callable[[Path], bool], migrate: Callable[[Path], None], seconds: float
) -> Path | None:
    """Create the tables of an SQLite file, or migrate them; other processes wait meanwhile.

    A file without data, as an interrupted first start leaves it, is recreated. When ``migrate`` raises, the file is as
    it was.

    Parameters
    ----------
    path
        The file; a missing or an empty one gets its first tables.
    is_current, migrate
        Say whether a file has the schema, and give it the schema, in any number of steps.
    seconds
        Maximum wait for other programs that use the file; an sqlite3.Error if it takes longer.

    Returns
    -------
    Path | None
        A file with the former content, when there was data in it.

    Examples
    --------
    >>> import tempfile
    >>> def migrate(path):
    ...     with closing(sqlite3.connect(path)) as database:
    ...         _ = database.execute("CREATE TABLE runs (id)")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     migrate_once(Path(folder, "a.db"), lambda path: "runs" in tables_of(path), migrate, seconds=5)
    ...     tables_of(Path(folder, "a.db"))
    {'runs'}
    """
    scratch = path.with_name(f".{path.name}.migration")
    waiting = f"another process makes the tables of {path}; waiting for it"
    with wait_for(scratch.with_suffix(".lock"), waiting), _sole_user(path, seconds) as store:
        shutil.rmtree(scratch, ignore_errors=True)  # that of a killed process
        scratch.mkdir()
        try:
            return _replace(store, path, scratch / path.name, is_current, migrate)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _sole_user(path: Path, seconds: float) -> Iterator[sqlite3.Connection]:
    """A connection that excludes all other readers and writers of the file."""
    with closing(sqlite3.connect(path, timeout=seconds, isolation_level=None)) as store:
        mode = store.execute("PRAGMA journal_mode").fetchone()[0]
        store.execute("PRAGMA journal_mode = DELETE")  # a write-ahead log could not be locked
        store.execute("BEGIN EXCLUSIVE")
        store.execute("PRAGMA locking_mode = EXCLUSIVE")  # keeps the lock until the connection is closed; said before
        store.execute("COMMIT")  # BEGIN, it would keep a shared lock while it waits, and two would wait for each other
        yield store
    if mode == "wal":
        with closing(sqlite3.connect(path, timeout=seconds)) as store:
            store.execute("PRAGMA journal_mode = WAL")


def tables_of(path: Path) -> set[str]:
    """The names of a database file's tables."""
    with closing(sqlite3.connect(path)) as database:
        return _tables(database)


def revision_of(path: Path, seconds: float = 5.0) -> str | None:
    """The revision that Alembic wrote into a database file; None without one."""
    with closing(sqlite3.connect(path, timeout=seconds)) as database:
        if "alembic_version" not in _tables(database):
            return None
        row = database.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(row[0]) if row else None


def _replace(
    store: sqlite3.Connection, path: Path, copy: Path, is_current: Callable[[Path], bool],
    migrate: Callable[[Path], None],
) -> Path | None:  # fmt: skip
    former = None
    with closing(sqlite3.connect(copy)) as database:
        store.backup(database)
    if is_current(copy):  # another process has done it meanwhile
        return None
    if _holds_data(store):
        former = path.with_name(f"{path.name}.{revision_of(copy) or 'first'}.bak")
        shutil.copyfile(copy, former)
        _finish_half_made(copy)
    else:
        copy.unlink()
    migrate(copy)
    with closing(sqlite3.connect(copy)) as database:
        database.backup(store)
    return former


def _tables(database: sqlite3.Connection) -> set[str]:
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    return {name for (name,) in database.execute(query)}


def _holds_data(database: sqlite3.Connection) -> bool:
    return any(
        database.execute(f'SELECT EXISTS (SELECT 1 FROM "{table}")').fetchone()[0]  # noqa: S608  a table's name
        for table in _tables(database) - NO_DATA
    )


def _finish_half_made(copy: Path) -> None:
    """Complete a migration that was killed between two statements: drop or rename its temporary tables."""
    with closing(sqlite3.connect(copy, isolation_level=None)) as database:
        tables = _tables(database)
        for half in sorted(table for table in tables if table.startswith(HALF_MADE)):
            whole = half.removeprefix(HALF_MADE)
            action = f'DROP TABLE "{half}"' if whole in tables else f'ALTER TABLE "{half}" RENAME TO "{whole}"'
            database.execute(action)
