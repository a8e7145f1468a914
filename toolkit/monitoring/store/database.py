"""An SQL database as a store: opening it, transactions, and one sentence for whatever is wrong with it."""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from toolkit.errors import StoreError, first_line
from toolkit.monitoring.store import schema

BUSY_TIMEOUT_S = 5  # how long a writer waits for another process to finish its transaction
WRITER_LOCK = 1_886_545_252  # held in PostgreSQL by the one that writes: "pred" as a number


class Database:
    """A database whose tables are made by the first write; reading one that is not there finds nothing.

    One process writes at a time, so that what was numbered first is seen first: a reader who has
    seen a number never misses a smaller one.

    Parameters
    ----------
    url
        An SQLAlchemy URL, or the path of an SQLite file.

    Raises
    ------
    StoreError
        When what is there is no store, or its folder does not exist.
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
            raise StoreError(f"{url!r} is no address of a store: {first_line(error)}{hint}") from None
        except SQLAlchemyError as error:
            raise StoreError(f"{url!r} is no address of a store: {first_line(error)}") from None
        sa.event.listen(self._engine, "connect", _tune_sqlite if self.is_sqlite else _tune_server)
        self._process = os.getpid()
        self._ready = False
        self._on_reset: list[Callable[[], None]] = []
        self._opened: tuple[int, int] | None = None  # which file it was that was found ready
        if self._file and not self._file.parent.is_dir():
            raise StoreError(f"the store cannot be at {self._file}: the folder {self._file.parent} does not exist")
        self.exists()

    def __str__(self) -> str:
        """The address without its password."""
        return str(self._file) if self._file else self._url.render_as_string(hide_password=True)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file of this machine."""
        return self._url.get_backend_name() == "sqlite"

    def _local_file(self) -> Path | None:
        """The SQLite file, or None when the address is of another kind."""
        if not self.is_sqlite:
            return None
        name = self._url.database or ""
        if name in ("", ":memory:") or "mode=memory" in str(self._url):
            raise StoreError("a store in memory cannot be shared with other threads: give a file")
        return None if name.startswith("file:") else Path(name)

    def exists(self) -> bool:
        """Whether anything was ever written here.

        Raises
        ------
        StoreError
            When it cannot be opened, or was made by another version of this program.
        """
        if self._process != os.getpid():  # a fork: the connections are those of the parent
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
            raise StoreError(
                f"the store {self} has schema version {version}, and this program needs {schema.VERSION}: "
                "begin another store"
            )
        self._ready, self._opened = version > 0, found
        return self._ready

    def close(self) -> None:
        """Close all connections; the next use opens them again."""
        self._engine.dispose()

    def reset(self) -> None:
        """Forget what is known of the database, as after a failure: the next use checks it again."""
        self._ready = False
        for forget in self._on_reset:
            forget()
        self._engine.dispose()

    def on_reset(self, forget: Callable[[], None]) -> None:
        """Have a function called at each reset: it drops what its owner remembers of the rows."""
        self._on_reset.append(forget)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection to read with, in a store that exists."""
        with self._translated("read"), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction in a store whose tables exist, with no other writer beside it."""
        if not self.exists():
            self._create()
        with self._translated("written"), self._engine.begin() as connection:
            self._lock(connection)
            yield connection

    def fetch_all(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        """The rows of an answer, none where there is no store."""
        if not self.exists():
            return []
        with self.reading() as connection:
            return connection.execute(query).all()

    def vacuum(self, pages: int) -> None:
        """Give back up to so many unused pages of 4 KB; a server does that by itself."""
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
        """Make the tables, whoever else may be doing so at the same time."""
        with self._translated("written"):
            if self.is_sqlite:
                self._prepare_file()
            with self._engine.begin() as connection:
                self._lock(connection)
                schema.create(connection)
        self.exists()

    def _prepare_file(self) -> None:
        """Set what a file remembers: room is given back in small steps, and readers read while one writes."""
        give_up = time.monotonic() + BUSY_TIMEOUT_S
        with self._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA auto_vacuum = INCREMENTAL")
            while True:
                try:
                    connection.exec_driver_sql("PRAGMA journal_mode = WAL")
                    return
                except OperationalError:  # another process does the same, for which SQLite does not wait by itself
                    if time.monotonic() > give_up:
                        raise
                time.sleep(0.01)

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """Turn the database's complaints into one sentence."""
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:
            self.reset()  # the server may come back with another database
            raise StoreError(f"the store {self} cannot be {doing}: {_complaint(error)}") from None


def _complaint(error: Exception) -> str:
    """What a driver says, which pg8000 says as a dictionary."""
    cause = getattr(error, "orig", None) or error
    if cause.args and isinstance(cause.args[0], dict):
        return str(cause.args[0].get("M", cause.args[0]))
    return first_line(cause)


def _identity(file: Path) -> tuple[int, int] | None:
    """Which file is there under that name, None when there is none."""
    try:
        found = os.stat(file)  # noqa: PTH116  # called before each reading and writing, and ten times as fast
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _tune_sqlite(connection: Any, _record: Any) -> None:
    """Begin transactions where we say so, and wait for the disk at checkpoints only.

    A power cut may cost the last moment, never the store.
    """
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous = NORMAL")


def _tune_server(connection: Any, _record: Any) -> None:
    """Wait for another writer no longer than in SQLite."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = '{BUSY_TIMEOUT_S * 1000:.0f}ms'")
    connection.commit()
