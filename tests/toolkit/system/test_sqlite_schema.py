"""A database file is brought to a schema as a whole or not at all, by one process at a time."""

import multiprocessing
import os
import signal
import sqlite3
import time
from contextlib import closing

import pytest

from toolkit.system.sqlite_schema import migrate_once, tables_of

STEPS = ("runs", "tags", "metrics")


def is_current(path):
    return tables_of(path) >= set(STEPS)


def migrate(path):
    for name in STEPS:
        if name not in tables_of(path):
            execute(path, f"CREATE TABLE {name} (id INTEGER)")


def execute(path, *statements):
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        return [row for statement in statements for row in database.execute(statement)]


def test_data_stays_and_the_former_content_is_kept_beside_it(tmp_path):
    store = tmp_path / "mlflow.db"
    execute(store, "CREATE TABLE runs (id INTEGER)", "INSERT INTO runs VALUES (7)")
    execute(store, "CREATE TABLE alembic_version (version_num TEXT)", "INSERT INTO alembic_version VALUES ('old')")
    former = migrate_once(store, is_current, migrate, seconds=5)
    assert former == tmp_path / "mlflow.db.old.bak"
    assert tables_of(former) == {"runs", "alembic_version"}
    assert is_current(store)
    assert execute(store, "SELECT id FROM runs") == execute(former, "SELECT id FROM runs") == [(7,)]
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "mlflow.db.old.bak"}


def test_a_first_start_that_was_interrupted_without_data_is_begun_anew(tmp_path):
    store = tmp_path / "mlflow.db"
    execute(store, "CREATE TABLE rubble (id INTEGER)", "CREATE TABLE _alembic_tmp_tags (id INTEGER)")
    assert migrate_once(store, is_current, migrate, seconds=5) is None
    assert tables_of(store) == set(STEPS)


@pytest.mark.parametrize("killed", ["before the old table was dropped", "before the new one had its name"])
def test_a_table_that_was_to_replace_another_does_so_or_goes(tmp_path, killed):
    store = tmp_path / "mlflow.db"
    execute(store, "CREATE TABLE runs (id INTEGER)", "INSERT INTO runs VALUES (7)")
    execute(store, "CREATE TABLE _alembic_tmp_tags (id INTEGER)", "INSERT INTO _alembic_tmp_tags VALUES (8)")
    if killed.startswith("before the old"):
        execute(store, "CREATE TABLE tags (id INTEGER)", "INSERT INTO tags VALUES (8)")
    migrate_once(store, is_current, migrate, seconds=5)
    assert tables_of(store) == set(STEPS)
    assert execute(store, "SELECT id FROM runs", "SELECT id FROM tags") == [(7,), (8,)]


def test_a_migration_that_fails_leaves_everything_as_it_was(tmp_path):
    store = tmp_path / "mlflow.db"
    execute(store, "CREATE TABLE runs (id INTEGER)", "INSERT INTO runs VALUES (7)")

    def fail(path):
        execute(path, "DROP TABLE runs")
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        migrate_once(store, is_current, fail, seconds=5)
    assert execute(store, "SELECT id FROM runs") == [(7,)]


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_nobody_writes_meanwhile_and_those_that_waited_find_it_done(tmp_path, mode):
    store, rounds = tmp_path / "mlflow.db", tmp_path / "rounds"
    execute(store, f"PRAGMA journal_mode = {mode}")

    def slow(path):
        with rounds.open("a") as file:
            file.write("x")
        with pytest.raises(sqlite3.OperationalError, match="locked"), closing(sqlite3.connect(store, timeout=0)) as it:
            it.execute("CREATE TABLE mine (id)")
        time.sleep(0.2)
        migrate(path)

    context = multiprocessing.get_context("fork")
    crowd = [context.Process(target=migrate_once, args=(store, is_current, slow, 60)) for _ in range(4)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    assert [one.exitcode for one in crowd] == [0] * 4
    assert (rounds.read_text(), tables_of(store)) == ("x", set(STEPS))
    assert execute(store, "PRAGMA journal_mode") == [(mode,)]


@pytest.mark.parametrize("step", range(len(STEPS) + 1))
def test_the_next_one_goes_on_after_a_kill_anywhere(tmp_path, step):
    store = tmp_path / "mlflow.db"
    execute(store, "CREATE TABLE runs (id INTEGER)", "INSERT INTO runs VALUES (7)")

    def die(path):
        for name in STEPS[1:step]:
            execute(path, f"CREATE TABLE {name} (id INTEGER)")
        os.kill(os.getpid(), signal.SIGKILL)

    victim = multiprocessing.get_context("fork").Process(target=migrate_once, args=(store, is_current, die, 5))
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    migrate_once(store, is_current, migrate, seconds=5)
    assert tables_of(store) == set(STEPS)
    assert execute(store, "SELECT id FROM runs", "PRAGMA integrity_check") == [(7,), ("ok",)]
    assert not list(tmp_path.glob(".mlflow.db*"))
