"""An SQL database: opening it, transactions, and each of its errors as one sentence."""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from toolkit.errors import PredictionStoreError, first_line
from toolkit.monitoring.store import schema
from toolkit.system.interrupts import DeferredSignals

BUSY_TIMEOUT_S = 5  # how long a writer waits for another process to finish its transaction
WRITER_LOCK = 1_886_545_252  # of the advisory lock that a writer holds in PostgreSQL: "pred" as a number


class Database:
    """A database with the tables of a store, which the first write creates; before it, reading finds nothing.

    One process writes at a time, so that rows become visible in the order of their numbers: a reader
    that has seen a number never misses a smaller one.

    Parameters
    ----------
    url
        An SQLAlchemy URL, or the path of an SQLite file.

    Raises
    ------
    PredictionStoreError
        When the address is not that of a store, or its folder does not exist.
    """

    def __init__(self, url: str) -> None:
        try:
            self._url = sa.make_url(url if "://" in url else f"sqlite:///{url}")
            if self._url.drivername == "postgresql":
                self._url = self._url.set(drivername="postgresql+pg8000")
            self._file = self._local_file()
            wait = {"timeout": BUSY_TIMEOUT_S} if self.is_sqlite else {}
            self._engine = sa.create_engine(self._url, connect_args=wait, pool_pre_ping=not self.is_sqlite)
        except ImportError as error:
            hint = ": pip install -r requirements-postgres.txt" if "pg8000" in str(error) else ""
            raise PredictionStoreError(f"{url!r} is not the address of a store: {first_line(error)}{hint}") from None
        except SQLAlchemyError as error:
            raise PredictionStoreError(f"{url!r} is not the address of a store: {first_line(error)}") from None
        sa.event.listen(self._engine, "connect", _tune_sqlite if self.is_sqlite else _tune_server)
        self._process = os.getpid()
        self._ready = False
        self._on_reset: list[Callable[[], None]] = []
        self._opened: tuple[int, int] | None = None  # device and inode of the file when it was last checked
        if self._file and not self._file.parent.is_dir():
            raise PredictionStoreError(
                f"the store cannot be at {self._file}: the folder {self._file.parent} does not exist"
            )
        self.exists()

    def __str__(self) -> str:
        """The address without its password."""
        return str(self._file) if self._file else self._url.render_as_string(hide_password=True)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is an SQLite file."""
        return self._url.get_backend_name() == "sqlite"

    def _local_file(self) -> Path | None:
        """The SQLite file, or None when the address is of another kind."""
        if not self.is_sqlite:
            return None
        name = self._url.database or ""
        if name in ("", ":memory:") or "mode=memory" in str(self._url):
            raise PredictionStoreError("a store in memory cannot be shared with other threads: give a file")
        return None if name.startswith("file:") else Path(name)

    def exists(self) -> bool:
        """Whether the tables are there.

        Raises
        ------
        PredictionStoreError
            When the database cannot be opened, or has the tables of another version of this program.
        """
        if self._process != os.getpid():  # a fork: the connections belong to the parent
            self._engine.dispose(close=False)
            self._process = os.getpid()
        found = _identity(self._file) if self._file else None
        if self._ready and found == self._opened:
            return True
        if self._ready:  # the file was deleted or replaced: connections still hold the old one
            self.reset()
        if self._file and found is None:
            return False
        with self._translated("opened"), self._engine.connect() as connection:
            version = schema.version(connection)
        if version not in (0, schema.VERSION):
            self.close()
            raise PredictionStoreError(
                f"the store {self} has schema version {version}, and this program needs {schema.VERSION}: "
                "begin another store"
            )
        self._ready, self._opened = version > 0, found
        return self._ready

    def close(self) -> None:
        """Close all connections; the next use opens them again."""
        self._engine.dispose()

    def reset(self) -> None:
        """Drop what is known of the database, as after a failure: the next use checks it again."""
        self._ready = False
        for forget in self._on_reset:
            forget()
        self._engine.dispose()

    def on_reset(self, forget: Callable[[], None]) -> None:
        """Call a function at each reset, to drop what was cached of the rows."""
        self._on_reset.append(forget)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection for reading, in existing tables."""
        with self._translated("read"), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction, in existing tables and with no concurrent writer.

        Ctrl-C waits for its end: a traceback that a notebook keeps would keep the store locked.
        """
        if not self.exists():
            self._create()
        with DeferredSignals(), self._translated("written"), self._engine.begin() as connection:
            self._lock(connection)
            yield connection

    def fetch_all(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        """The rows of a query; none where there are no tables."""
        if not self.exists():
            return []
        with self.reading() as connection:
            return connection.execute(query).all()

    def vacuum(self, pages: int) -> None:
        """Return up to so many unused pages of 4 KB to the file system; PostgreSQL does so by itself."""
        if self.is_sqlite:
            with self._translated("written"), self._engine.connect() as connection:
                # A page a step: as a query the driver would take one step only, as a script it takes all.
                connection.connection.cursor().executescript(f"PRAGMA incremental_vacuum({pages:d})")

    def _lock(self, connection: sa.Connection) -> None:
        if self.is_sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(WRITER_LOCK)))

    def _create(self) -> None:
        """Create the tables, unless another process does so at the same time."""
        with self._translated("written"):
            if self.is_sqlite:
                self._prepare_file()
            with self._engine.begin() as connection:
                self._lock(connection)
                schema.create(connection)
        self.exists()

    def _prepare_file(self) -> None:
        """Set the persistent modes of a file: vacuuming in small steps, and reading while another process writes."""
        give_up = time.monotonic() + BUSY_TIMEOUT_S
        with self._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA auto_vacuum = INCREMENTAL")
            while True:
                try:
                    connection.exec_driver_sql("PRAGMA journal_mode = WAL")
                    return
                except OperationalError:  # another process does the same, and SQLite does not wait for it
                    if time.monotonic() > give_up:
                        raise
                time.sleep(0.01)

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """Turn errors of the database into one sentence."""
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:
            self.reset()  # the server may come back with another database
            raise PredictionStoreError(f"the store {self} cannot be {doing}: {_message(error)}") from None


def _message(error: Exception) -> str:
    """The message of a driver, which pg8000 gives as a dictionary."""
    cause = getattr(error, "orig", None) or error
    if cause.args and isinstance(cause.args[0], dict):
        return str(cause.args[0].get("M", cause.args[0]))
    return first_line(cause)


def _identity(file: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None when there is none."""
    try:
        found = os.stat(file)  # noqa: PTH116  # called before each reading and writing, and ten times as fast
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _tune_sqlite(connection: Any, _record: Any) -> None:
    """Begin transactions explicitly, and sync at checkpoints only: a power cut may cost the last rows, not the file."""
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous = NORMAL")


def _tune_server(connection: Any, _record: Any) -> None:
    """Limit the wait for another writer, as in SQLite."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = '{BUSY_TIMEOUT_S * 1000:.0f}ms'")
    connection.commit()
