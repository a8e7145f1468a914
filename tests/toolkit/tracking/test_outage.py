"""A store that goes away while a run writes to it: nothing is lost, nothing waits for long, one line says so."""

import itertools
import os
import re
import resource
import shutil
import socket
import sqlite3
import threading
import time
from contextlib import closing

import pytest

from support import MAX_WAIT_S
from support.http_server import fake_server
from support.mlflow_stores import Clock, file_of, start_run
from support.servers import MlflowServer
from toolkit.errors import TrackingError
from toolkit.tracking import connection
from toolkit.tracking.connection import RETRY_SECONDS, MlflowClient, connect

GONE = r"MLflow cannot take the metrics: {}; training goes on, they are kept and will be sent later"
BACK = "MLflow takes the metrics again; those that were kept have been sent"


@pytest.fixture
def own_store(database, tmp_path):
    """A store in a file that a test may maltreat."""
    (tmp_path / "store").mkdir()
    shutil.copy(file_of(database), tmp_path / "store" / "mlflow.db")
    return connect(f"sqlite:///{tmp_path}/store/mlflow.db")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def run(own_store, clock):
    """A run with a metric to send."""
    run = start_run(own_store, clock=clock)
    run.metrics({"loss": 0.5})
    return run


@pytest.fixture
def server(database, tmp_path):
    shutil.copy(file_of(database), tmp_path / "mlflow.db")  # a first start is slow
    server = MlflowServer(tmp_path)
    server.start()
    try:
        yield server
    finally:
        if server.running:
            server.kill()


def hole(port=0):
    """A socket that accepts connections and never answers."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(16)
    listener.setblocking(False)
    return listener


def callers(listener):
    """The number of calls since the last call of this."""
    for count in itertools.count():
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
    raise AssertionError


def test_training_outlives_the_server_and_its_disk(server, clock, monkeypatch, capsys):
    monkeypatch.setattr(connection, "ANSWER_SECONDS", int(MAX_WAIT_S))
    client = connect(server.url)
    run = start_run(client, clock=clock)
    entries = []

    def epoch(step):
        run.metrics({"loss": 1 / step}, step)
        entries.append(run.pending[-1])
        return run.try_flush()

    assert epoch(1)
    (server.folder / "mlflow.db").rename(server.folder / "elsewhere")
    assert not epoch(2)
    (server.folder / "elsewhere").rename(server.folder / "mlflow.db")
    clock.now += RETRY_SECONDS
    assert epoch(3)
    server.kill()
    for step in (4, 5, 6):
        assert not epoch(step)
        clock.now += RETRY_SECONDS
    with closing(hole(server.port)), monkeypatch.context() as patch:
        patch.setattr(connection, "ANSWER_SECONDS", 1)
        assert not epoch(7)
    with pytest.raises(TrackingError, match=r"^cannot log metrics: connection refused$"):
        run.end("FINISHED")
    with pytest.raises(KeyError), run:  # the first error is the one to report
        raise KeyError
    server.start()
    assert not epoch(8)  # not yet
    clock.now += RETRY_SECONDS
    assert epoch(9)
    history = client.get_metric_history(run.id, "loss")
    assert [("loss", point.value, point.timestamp, point.step) for point in history] == entries
    run.end("FINISHED")
    assert client.get_run(run.id).info.status == "FINISHED"
    assert capsys.readouterr().out.splitlines() == [
        GONE.format("the server answers with status 503"),
        BACK,
        GONE.format("connection refused"),
        BACK,
    ]


def test_a_server_that_never_answers_is_asked_rarely_and_not_for_long(own_store, run, clock, monkeypatch, capsys):
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 1)
    with closing(hole()) as listener:
        run.client = MlflowClient(f"http://127.0.0.1:{listener.getsockname()[1]}")
        began = time.monotonic()
        assert [run.try_flush() for _ in range(5)] == [False] * 5
        assert time.monotonic() - began < MAX_WAIT_S / 10
        assert callers(listener) == 1
        clock.now += RETRY_SECONDS - 1
        assert not run.try_flush()
        assert callers(listener) == 0
        clock.now += 1
        assert not run.try_flush()
        assert callers(listener) == 1
        with pytest.raises(TrackingError, match=r"^cannot log metrics: no answer in time$"):
            run.flush()
    run.client = own_store
    clock.now += RETRY_SECONDS
    assert run.try_flush()
    assert capsys.readouterr().out.splitlines() == [GONE.format("no answer in time"), BACK]


def test_a_server_that_hangs_after_the_ping_costs_seconds(run, monkeypatch):
    """The ping is answered, and the request hangs: MLflow alone would try three times, ten seconds each."""
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 3)
    over, before = threading.Event(), dict(os.environ)
    with fake_server(lambda _: over.wait()) as (url, asked):
        run.client = MlflowClient(url)
        try:
            assert not run.try_flush()
        finally:
            over.set()
    assert [path for path, _ in asked] == ["/health", "/api/2.0/mlflow/runs/log-batch"]
    assert dict(os.environ) == before  # other calls are as patient as before


def test_a_refusal_is_said_with_its_reason(store, clock, capsys):
    run = start_run(store, clock=clock)
    store.delete_run(run.id)
    for step in range(3):
        run.metrics({"loss": 0.5}, step)
        assert not run.try_flush()
        clock.now += RETRY_SECONDS
    store.restore_run(run.id)
    assert run.try_flush()
    refusal, back = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        rf"MLflow refuses the metrics: .*The run {run.id} must be in the 'active' state. Current state is deleted; "
        r"training goes on, they are kept and will be sent later",
        refusal,
    )
    assert back == BACK
    assert [point.step for point in store.get_metric_history(run.id, "loss")] == [0, 1, 2]


def test_an_outage_that_ends_in_a_refusal_is_said_twice(run, clock, database, capsys):
    """The store came back without the run: an older copy, say."""
    path = file_of(run.client)
    path.unlink()
    assert not run.try_flush()
    assert not path.exists()
    shutil.copy(file_of(database), path)
    clock.now += RETRY_SECONDS
    assert not run.try_flush()
    gone, refused = capsys.readouterr().out.splitlines()
    assert gone == GONE.format("unable to open database file")
    assert refused.startswith(f"MLflow refuses the metrics: Run with id={run.id} not found; training goes on")


def test_a_database_file_that_comes_back_is_written_again(run, tmp_path, capfd):
    path = file_of(run.client)
    assert run.try_flush()
    shutil.copy(path, tmp_path / "backup.db")
    path.unlink()
    path.mkdir()
    run.metrics({"loss": 0.5}, step=2)
    assert not run.try_flush()
    path.rmdir()
    shutil.copy(tmp_path / "backup.db", path)  # another file of the same name
    run.metrics({"loss": 0.25}, step=3)
    run.end("FINISHED")
    with closing(sqlite3.connect(path)) as file:
        rows = file.execute("SELECT step, value FROM metrics WHERE run_uuid = ? ORDER BY step", (run.id,)).fetchall()
    assert rows == [(0, 0.5), (2, 0.5), (3, 0.25)]
    said = capfd.readouterr()
    assert said.out.splitlines() == [GONE.format("unable to open database file"), BACK]
    assert said.err == ""


def test_a_database_that_another_program_holds_is_not_waited_for_long(run, clock, monkeypatch, capsys):
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 1)
    with closing(sqlite3.connect(file_of(run.client))) as other, monkeypatch.context() as patch:
        other.execute("BEGIN EXCLUSIVE")
        patch.setattr(MlflowClient, "log_batch", lambda *_, **__: pytest.fail("MLflow alone would wait for 20 s"))
        assert not run.try_flush()
    clock.now += RETRY_SECONDS
    assert run.try_flush()
    assert capsys.readouterr().out.splitlines() == [GONE.format("the database is locked by another program"), BACK]


def test_a_disk_without_space_loses_nothing(own_store, run, clock, capfd):
    for step in range(1, 1500):
        run.metrics({"loss": 1 / (step + 1)}, step)
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = file_of(own_store).stat().st_size + 40_000  # bytes; the metrics need more
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, allowed[1]))
    try:
        assert not run.try_flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    clock.now += RETRY_SECONDS
    assert run.try_flush()
    assert [point.step for point in own_store.get_metric_history(run.id, "loss")] == list(range(1500))
    said = capfd.readouterr()
    assert said.out.splitlines() == [GONE.format("(sqlite3.OperationalError) disk I/O error"), BACK]
    assert said.err == ""
