"""The database under the store: whatever is wrong with it is one sentence, and afterwards it goes on."""

import gc
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from support.ctrl_c import ctrl_c_at
from toolkit.errors import PredictionStoreError
from toolkit.monitoring.store import database, schema
from toolkit.monitoring.store.database import Database
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.predictions import PredictionStore

MODEL = ModelVersion("1", ("cat", "dog"))


def test_what_is_no_store_is_said_in_one_line(tmp_path):
    (tmp_path / "m.db").write_bytes(b"this is no database, whatever its name may be" * 100)
    with pytest.raises(PredictionStoreError, match=r"^the store .*m.db cannot be opened: file is not a database$"):
        Database(str(tmp_path / "m.db"))
    with pytest.raises(PredictionStoreError, match=r"the folder .*nowhere does not exist"):
        Database(str(tmp_path / "nowhere" / "m.db"))
    with pytest.raises(PredictionStoreError, match="'nosuch://x' is not the address of a store"):
        Database("nosuch://x")
    with pytest.raises(PredictionStoreError, match="in memory"):
        Database("sqlite://")


def test_ctrl_c_within_a_transaction_leaves_the_store_unlocked(tmp_path, prediction):
    store = PredictionStore(str(tmp_path / "m.db"))
    with pytest.raises(KeyboardInterrupt) as stopped, ctrl_c_at("INSERT INTO predictions"):
        store.write([prediction(1, MODEL)])
    with sqlite3.connect(tmp_path / "m.db", timeout=0) as other:
        other.execute("BEGIN IMMEDIATE")
        assert other.execute("SELECT count(*) FROM predictions").fetchone() == (1,)
    del stopped  # a notebook keeps the traceback too


def test_a_server_that_is_not_there_is_said_in_one_line():
    pytest.importorskip("pg8000")
    with pytest.raises(
        PredictionStoreError, match=r"^the store postgresql\+pg8000://me:\*\*\*@127.0.0.1:1/x cannot be opened: Can"
    ):
        Database("postgresql://me:secret@127.0.0.1:1/x")


def test_a_server_without_its_driver_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pg8000", None)
    with pytest.raises(
        PredictionStoreError, match=r"is not the address of a store: .*pip install -r requirements-postgres.txt$"
    ):
        Database("postgresql://me@127.0.0.1:1/x")


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # pg8000 leaves a broken socket to the collector
@pytest.mark.parametrize("address", ["postgresql"], indirect=True)
def test_a_server_that_was_started_again_is_used_again(address, prediction):
    store, other = PredictionStore(address), PredictionStore(address)
    store.write([prediction(1, MODEL)])
    with other.database.reading() as connection:  # all that a restart leaves of the connections
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = current_database()"
        ).all()
    assert store.write([prediction(2, MODEL)]) == 1
    assert store.window(MODEL).n == 2
    store.close()
    other.close()
    gc.collect()


def test_a_file_is_in_wal_mode_and_is_vacuumed(file_store):
    file_store.versions.register(MODEL)
    with sqlite3.connect(str(file_store)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)  # incremental
    connection.close()


def test_a_database_of_something_else_gets_the_tables_beside_its_own(file_store, prediction):
    with sqlite3.connect(str(file_store)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    assert not file_store.database.exists()
    assert file_store.write([prediction(1, MODEL)]) == 1


def test_a_store_of_another_schema_version_is_refused_in_one_line(address):
    store = PredictionStore(address)
    store.versions.register(MODEL)
    with store.database.writing() as connection:
        connection.execute(sa.update(schema.schema_version).values(version=7))
    store.close()
    with pytest.raises(
        PredictionStoreError, match=r"^the store .* has schema version 7, and this program needs 1: begin another"
    ):
        PredictionStore(address)


def test_a_read_only_store_is_read_and_not_written(file_store, prediction):
    file_store.write([prediction(1, MODEL)])
    reader = PredictionStore(f"sqlite:///file:{file_store}?mode=ro&uri=true")
    assert reader.window(MODEL).n == 1
    with pytest.raises(PredictionStoreError, match="attempt to write a readonly database"):
        reader.write([prediction(2, MODEL)])
    reader.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user that may not write")
def test_a_read_only_folder_is_one_line(tmp_path):
    program = (
        "import os, sys\n"
        "from toolkit.errors import PredictionStoreError\n"
        "from toolkit.monitoring.store.model_versions import ModelVersion\n"
        "from toolkit.monitoring.store.predictions import PredictionStore\n"
        "os.chdir('/')\n"
        "os.setuid(65534)\n"
        "try:\n"
        "    PredictionStore('/m.db').versions.register(ModelVersion('1', ('cat', 'dog')))\n"
        "except PredictionStoreError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert result.stdout == "the store /m.db cannot be written: unable to open database file\n"


def test_a_locked_store_is_read_and_said_in_one_line(address, prediction, monkeypatch):
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.01)
    writer, other = PredictionStore(address), PredictionStore(address)
    writer.write([prediction(1, MODEL)])
    reason = "canceling statement due to lock timeout" if "postgresql" in address else "database is locked"
    with writer.database.writing():
        with pytest.raises(PredictionStoreError, match=f"cannot be written: {reason}"):
            other.write([prediction(2, MODEL)])
        assert other.window(MODEL).n == 1
    assert other.write([prediction(2, MODEL)]) == 1
    writer.close()
    other.close()


def test_a_full_disk_is_one_line_and_stores_all_of_a_batch_or_nothing(file_store, prediction):
    file_store.write([prediction(1, MODEL)])
    pages = {"most": 0}

    @sa.event.listens_for(file_store.database._engine, "connect")
    def limit(connection, _):
        connection.execute(f"PRAGMA max_page_count = {pages['most']}")

    file_store.database.reset()
    with file_store.database.reading() as connection:
        pages["most"] = connection.exec_driver_sql("PRAGMA page_count").scalar() + 1
    file_store.database.reset()
    with pytest.raises(PredictionStoreError, match="cannot be written: database or disk is full"):
        file_store.write([prediction(number, MODEL) for number in range(2, 500)])
    assert file_store.window(MODEL).n == 1
    pages["most"] = 10_000
    file_store.database.reset()
    assert file_store.write([prediction(number, MODEL) for number in range(2, 500)]) == 498


def test_a_file_that_is_damaged_while_it_is_used_is_said_in_one_line(file_store, prediction):
    file_store.write([prediction(number, MODEL) for number in range(500)])
    file_store.close()
    file = Path(str(file_store))
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + os.urandom(len(whole) - 4096))
    with pytest.raises(PredictionStoreError, match="cannot be read: database disk image is malformed"):
        file_store.window(MODEL)
    with pytest.raises(PredictionStoreError, match=r"cannot be \w+: database disk image is malformed"):
        file_store.write([prediction(1000, MODEL)])


@pytest.mark.parametrize("others", [False, True])
def test_a_file_that_is_deleted_is_begun_again(file_store, prediction, others):
    """With or without the two files that SQLite keeps with it, and with the same model."""
    model = ModelVersion("1", ("cat", "dog"), None, 5.0)
    file_store.write([prediction(1, model, statistics={"a": 1.0})])
    before = file_store.change_token()
    for ending in ("", "-wal", "-shm") if others else ("",):
        Path(f"{file_store}{ending}").unlink()
    assert file_store.window(model).n == 0
    assert file_store.write([prediction(2, model, statistics={"b": 1.0, "a": 2.0})]) == 1
    with sqlite3.connect(str(file_store)) as connection:
        assert connection.execute("SELECT id FROM predictions").fetchall() == [(2,)]
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert file_store.window(model).statistics["a"].tolist() == [2.0]
    assert file_store.versions.current().served_at == 5.0
    assert file_store.change_token()[0] != before[0]


def test_a_file_that_is_replaced_by_another_is_read_as_that(tmp_path, file_store, prediction):
    file_store.write([prediction(1, MODEL), prediction(2, MODEL)])
    other = PredictionStore(str(tmp_path / "other.db"))
    other.write([prediction(9, ModelVersion("0", ("cat", "dog"))), prediction(3, MODEL)])
    other.close()
    for ending in ("-wal", "-shm"):
        Path(f"{file_store}{ending}").unlink()
    (tmp_path / "other.db").replace(str(file_store))
    assert file_store.window(MODEL).ids.tolist() == [3]
    file_store.write([prediction(4, MODEL)])
    assert file_store.window(MODEL).ids.tolist() == [3, 4]


def test_a_fork_opens_connections_of_its_own(store, prediction, tmp_path):
    store.write([prediction(1, MODEL)])
    if not (child := os.fork()):
        status = 1
        try:
            status = 0 if store.write([prediction(2, MODEL)]) == 1 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.write([prediction(3, MODEL)])
    assert store.window(MODEL).ids.tolist() == [1, 2, 3]
