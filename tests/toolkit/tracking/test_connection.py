"""MLflow set up in one place: stores that answer or not, first starts, time limits, experiments."""

import importlib
import json
import multiprocessing
import os
import shutil
import sqlite3
import sys
import threading
import time
from contextlib import closing

import alembic.command
import pytest
import sqlalchemy
from mlflow.store.db import utils

from support.http_server import fake_server, reply
from support.mlflow_stores import start_run
from support.servers import free_port
from toolkit.errors import TrackingError
from toolkit.system.sqlite_schema import tables_of
from toolkit.tracking.connection import (
    MlflowClient,
    connect,
    find_experiment,
    mlflow_call,
    open_experiment,
    short_timeouts,
)
from toolkit.tracking.run import Run

RETRIES, TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"


def test_the_default_store_is_in_the_working_directory_and_stays_there(tmp_path, monkeypatch):
    connect()
    assert (tmp_path / "mlflow.db").is_file()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.copy(tmp_path / "mlflow.db", "mlflow.db")  # a first start is slow
    assert connect().tracking_uri == f"sqlite:///{tmp_path}/elsewhere/mlflow.db?timeout=60"


def test_the_variable_decides_and_an_argument_overrules_it(database, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database.tracking_uri)
    assert connect().tracking_uri == database.tracking_uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert connect(database.tracking_uri).tracking_uri == database.tracking_uri
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("uri", "failure"),
    [
        ("http://127.0.0.1:{port}", "does not answer: connection refused; start it with: mlflow server"),
        ("http://anna:s@cret@127.0.0.1:{port}", "does not answer: connection refused; start it with: mlflow server"),
        ("http://no-such-host.invalid", "does not answer: unknown host; start it with: mlflow server"),
        ("sqlite:///{here}/file/mlflow.db", "cannot be used: [Errno 17] File exists: '{here}/file'"),
        ("sqlite:///{here}", "cannot be used: unable to open database file"),
        ("sqlite:///{here}/file", "cannot be used: file is not a database"),
        ("sqlite://mlflow.db", "does not answer: Invalid SQLite URL: sqlite://mlflow.db"),
    ],
    ids=["nothing listens", "a password", "unknown host", "no folder", "a folder", "no database", "two slashes"],
)
def test_a_store_that_does_not_answer_is_one_sentence(uri, failure, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("I am no database, however long I go on about it. " * 30)
    without_proxies(monkeypatch)
    places = {"port": free_port(), "here": tmp_path}
    with pytest.raises(TrackingError) as caught:
        connect(uri.format(**places))
    assert str(caught.value) == f"MLflow at {uri} {failure}".format(**places).replace("s@cret", "***")


def without_proxies(monkeypatch):
    for name in ("http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("uri", ["127.0.0.1:5000", "http:/127.0.0.1:5000", "runs/mlflow.db", "file:///mlruns", "a:b@c"])
def test_what_is_no_address_is_refused_with_an_example(uri, monkeypatch):
    rule = "must be an address such as http://127.0.0.1:5000 or sqlite:///mlflow.db, got"
    with pytest.raises(TrackingError) as caught:
        connect(uri)
    assert str(caught.value) == f"the tracking URI {rule} {uri.replace('b@', '***@')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match=rf"^MLFLOW_TRACKING_URI {rule} "):
        connect()


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy"])
def test_a_proxy_in_the_way_is_named(variable, monkeypatch):
    without_proxies(monkeypatch)
    monkeypatch.setenv(variable, f"http://ada:secret@127.0.0.1:{free_port()}")
    reason = "the proxy that http_proxy or all_proxy names cannot be reached"
    with fake_server(reply(503, "")) as (url, asked):
        with pytest.raises(TrackingError) as caught:
            connect(url)
        assert str(caught.value) == f"MLflow at {url} does not answer: {reason}; start it with: mlflow server"
        with pytest.raises(TrackingError, match=rf"^cannot search: {reason}$"), mlflow_call("search", timeout=5):
            MlflowClient(url).search_runs(["0"])
        assert not asked
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(TrackingError, match=r"cannot be used: the server answers with status 503$"):
            connect(url)
        assert asked


# --- first starts -----------------------------------------------------------------------------------


def in_another_process(work, *words):
    """A process that does the work at once, with all that this one has imported."""
    process = multiprocessing.get_context("fork").Process(target=work, args=words)
    process.start()
    return process


def log_a_run():
    with start_run(connect()) as run:
        run.metrics({"loss": 0.5})


def test_first_starts_at_the_same_moment_share_one_store(tmp_path):
    crowd = [in_another_process(log_a_run) for _ in range(3)]
    for one in crowd:
        one.join()
    assert [one.exitcode for one in crowd] == [0, 0, 0]
    client = connect()
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
    assert [(run.info.status, run.data.metrics) for run in runs] == [("FINISHED", {"loss": 0.5})] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_killed_first_start_is_completed_by_the_next(tmp_path):
    began = time.monotonic()
    connect(f"sqlite:///{tmp_path}/whole/mlflow.db")
    whole, tables = time.monotonic() - began, tables_of(tmp_path / "whole/mlflow.db")
    for share in (0.5, 0.9):
        store = tmp_path / f"{share}/mlflow.db"
        victim = in_another_process(connect, f"sqlite:///{store}")
        victim.join(whole * share)
        victim.kill()
        victim.join()
        if store.exists():
            assert tables_of(store) in (set(), tables), "all or nothing"
        with Run(connect(f"sqlite:///{store}"), "training", role="final", name="the next") as run:
            run.metrics({"loss": 0.5})
        assert run.client.get_run(run.id).data.metrics == {"loss": 0.5}


@pytest.fixture(scope="module")
def older_store(tmp_path_factory):
    """The store of an older MLflow, with an experiment of its own."""
    path = tmp_path_factory.mktemp("older") / "mlflow.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    utils.InitialBase.metadata.create_all(engine)
    alembic.command.upgrade(utils._get_alembic_config(str(engine.url)), "7f2a7d5fae7d")
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage)"
            " VALUES (5, 'birds', '/tmp/birds', 'active')"
        )
    engine.dispose()
    return path


def test_the_store_of_an_older_mlflow_is_migrated_with_its_data(older_store, tmp_path, capsys):
    shutil.copy(older_store, tmp_path)
    with closing(sqlite3.connect("mlflow.db")) as database:  # what a killed migration leaves
        database.execute("CREATE TABLE _alembic_tmp_tags (key)")
    assert find_experiment(connect(), "birds") == "5"
    assert "as it was before, it is kept in mlflow.db.7f2a7d5fae7d.bak" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "mlflow.db.7f2a7d5fae7d.bak"}


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        ("UPDATE alembic_version SET version_num = 'ffff'", "the database was made by a newer MLflow than the one "),
        ("CREATE TABLE logged_models (id)", "(sqlite3.OperationalError) table logged_models already exists"),
    ],
)
def test_a_failed_migration_is_one_line_and_changes_nothing(older_store, tmp_path, spoilt, reason):
    shutil.copy(older_store, tmp_path)
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        database.execute(spoilt)
        before = list(database.iterdump())
    with pytest.raises(TrackingError) as caught:
        connect()
    assert str(caught.value).startswith(f"MLflow at sqlite:///mlflow.db cannot be used: {reason}")
    assert "\n" not in str(caught.value)
    with closing(sqlite3.connect("mlflow.db")) as database:
        assert list(database.iterdump()) == before


# --- time limits ------------------------------------------------------------------------------------


def limits():
    return os.environ.get(RETRIES), os.environ.get(TIMEOUT)


def test_short_timeouts_of_several_threads_restore_the_limits(monkeypatch):
    monkeypatch.setenv(RETRIES, "2")
    monkeypatch.setenv(TIMEOUT, "10")
    seen = {}
    inside, may_leave = threading.Event(), threading.Event()

    def other():
        with short_timeouts(7):
            seen["both"] = limits()
            inside.set()
            may_leave.wait()
        seen["all gone"] = limits()

    thread = threading.Thread(target=other)
    with short_timeouts():
        seen["alone"] = limits()
        thread.start()
        inside.wait()
    seen["the other"] = limits()
    may_leave.set()
    thread.join()
    assert seen == {"alone": ("0", "5"), "both": ("0", "5"), "the other": ("0", "7"), "all gone": ("2", "10")}


@pytest.mark.parametrize(("retries", "timeout"), [("5", "90"), ("0", "1"), ("2", "90"), ("5", "10"), ("0", "5")])
def test_what_the_user_has_set_stays_within_short_timeouts(monkeypatch, retries, timeout):
    monkeypatch.setenv(RETRIES, retries)
    monkeypatch.setenv(TIMEOUT, timeout)
    with short_timeouts():
        assert limits() == ("0" if retries == "2" else retries, "5" if timeout == "10" else timeout)
    assert limits() == (retries, timeout)
    with pytest.raises(KeyError), short_timeouts():
        raise KeyError
    assert limits() == (retries, timeout)


def test_settings_of_mlflow_respect_the_users_variables(monkeypatch):
    names = (TIMEOUT, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "MLFLOW_DISABLE_TELEMETRY")
    for name in names[1:]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(TIMEOUT, "77")

    def import_again():
        del sys.modules["toolkit.tracking.connection"]
        importlib.import_module("toolkit.tracking.connection")
        assert [os.environ[name] for name in names] == ["77", "false", "true"]

    process = in_another_process(import_again)
    process.join()
    assert process.exitcode == 0


# --- experiments ------------------------------------------------------------------------------------


def test_experiments_are_of_model_training_also_those_that_others_made(store):
    name = "by hand"
    by_hand = store.create_experiment(name, tags={"mlflow.experimentKind": "my own"})
    for experiment, kind in ((name, "my own"), ("ours", "custom_model_development")):
        identity = open_experiment(store, experiment)
        tags = store.get_experiment(identity).tags
        assert tags["mlflow.experimentKind"] == kind
        assert "metrics.`held_out_accuracy`" in json.loads(tags["mlflow.sharedViewState.metrics"])["selectedColumns"]
    assert open_experiment(store, name) == by_hand
    with pytest.raises(TrackingError, match=r"^an experiment's name must not be blank, got ' '$"):
        open_experiment(store, " ")


def test_an_experiment_is_made_once_and_found_again(database):
    with pytest.raises(TrackingError, match=r"^there is no experiment 'trainin'; there are: "):
        find_experiment(database, "trainin")
    made = open_experiment(database, "training")
    assert open_experiment(database, "training") == find_experiment(database, "training") == made
    with pytest.raises(TrackingError, match=r"^there is no experiment 'trainin'; there are: training, "):
        find_experiment(database, "trainin")


def test_a_deleted_experiment_is_not_written_to(database):
    database.delete_experiment(open_experiment(database, "gone"))
    with pytest.raises(TrackingError, match=r"^experiment 'gone' was deleted; restore it or choose another"):
        Run(database, "gone", role="final", name="a run")
    with pytest.raises(TrackingError, match=r"^there is no experiment 'gone'"):
        find_experiment(database, "gone")


def test_an_experiment_behind_a_server_is_refused_for_its_database(database):
    database.create_experiment("proxied", artifact_location="mlflow-artifacts:/1")
    with pytest.raises(TrackingError, match=r"^experiment 'proxied' keeps its files behind an MLflow server: set "):
        open_experiment(database, "proxied")
