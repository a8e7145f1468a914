"""MLflow through the one door: stores that answer or not, runs and how they end, what arrives in them."""

import itertools
import json
import math
import multiprocessing
import os
import re
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import alembic.command
import numpy as np
import pytest
import sqlalchemy
from matplotlib.figure import Figure
from PIL import Image

from support import (
    COLOURS,
    ColourNetwork,
    MlflowServer,
    colour_baseline,
    colour_card,
    colour_pixels,
    free_port,
)
from toolkit import tracking
from toolkit.bundle import DIGEST_TAG
from toolkit.errors import TrackingError
from toolkit.local_store import tables_of
from toolkit.program import Program, load_bundle, save_bundle
from toolkit.tracking import (
    RETRY_SECONDS,
    MlflowClient,
    Run,
    code_version,
    connect,
    explained,
    find_experiment,
    impatient,
    open_experiment,
    promptly,
)

NUMBERS = itertools.count()
RETRIES, TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    return connect(f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db")


@pytest.fixture(params=["database", "server"])
def store(request: pytest.FixtureRequest) -> MlflowClient:
    if request.param == "server":
        return connect(request.getfixturevalue("mlflow_server"))
    return request.getfixturevalue("database")


def start(client: MlflowClient, **more: object) -> Run:
    return Run(client, f"experiment {next(NUMBERS)}", **{"role": "final", "name": "a run", **more})


def curve(values: list[float]) -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot(values)
    return figure


# --- stores -------------------------------------------------------------------------------------


def test_the_default_store_is_in_the_working_directory_and_stays_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect()
    assert (tmp_path / "mlflow.db").is_file()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.copy(tmp_path / "mlflow.db", "mlflow.db")  # a first start is slow
    assert connect().tracking_uri == f"sqlite:///{tmp_path}/elsewhere/mlflow.db?timeout=60"


def test_the_variable_decides_and_an_argument_overrules_it(
    database: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database.tracking_uri)
    assert connect().tracking_uri == database.tracking_uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert connect(database.tracking_uri).tracking_uri == database.tracking_uri
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("uri", "reason", "advice"),
    [
        ("http://127.0.0.1:{port}", "connection refused", "start it with: mlflow server"),
        ("http://no-such-host.invalid", "unknown host", "start it with: mlflow server"),
        ("sqlite:///{here}/file/mlflow.db", "[Errno 17] File exists: '{here}/file'", "set MLFLOW_TRACKING_URI to "),
        ("sqlite:///{here}", "the database file cannot be opened", "set MLFLOW_TRACKING_URI to another store"),
        ("sqlite:///{here}/file", "the file is not a database", "set MLFLOW_TRACKING_URI to another store"),
    ],
    ids=["nobody listens", "unknown host", "no folder", "a folder", "no database"],
)
def test_a_store_that_does_not_answer_is_one_sentence(
    uri: str, reason: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("I am no database, however long I go on about it. " * 30)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    places = {"port": free_port(), "here": tmp_path}
    uri, reason = uri.format(**places), reason.format(**places)
    with pytest.raises(TrackingError) as caught:
        connect(uri)
    assert str(caught.value).startswith(f"MLflow at {uri} does not answer: {reason}; {advice}")


def test_experiments_are_of_model_training_also_those_that_others_made(store: MlflowClient) -> None:
    name = f"by hand {next(NUMBERS)}"
    by_hand = store.create_experiment(name, tags={"mlflow.experimentKind": "my own"})
    for experiment, kind in ((name, "my own"), (f"ours {next(NUMBERS)}", "custom_model_development")):
        identity = open_experiment(store, experiment)
        tags = store.get_experiment(identity).tags
        assert tags["mlflow.experimentKind"] == kind
        assert "metrics.`held_out_accuracy`" in json.loads(tags["mlflow.sharedViewState.figures"])["selectedColumns"]
    assert open_experiment(store, name) == by_hand
    with pytest.raises(TrackingError, match=r"^an experiment's name must not be blank, got ' '$"):
        open_experiment(store, " ")


def in_another_process(work: Callable[..., None], *words: object) -> "multiprocessing.process.BaseProcess":
    """A process that does the work at once, with all that this one has imported."""
    process = multiprocessing.get_context("fork").Process(target=work, args=words)
    process.start()
    return process


def log_a_run() -> None:
    with start(connect()) as run:
        run.metrics({"loss": 0.5})


def test_first_starts_at_the_same_moment_share_one_store(tmp_path: Path) -> None:
    crowd = [in_another_process(log_a_run) for _ in range(3)]
    for one in crowd:
        one.join()
    assert [one.exitcode for one in crowd] == [0, 0, 0]
    client = connect()
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
    assert [(run.info.status, run.data.metrics) for run in runs] == [("FINISHED", {"loss": 0.5})] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_first_start_that_is_killed_at_any_moment_leaves_a_store_for_the_next(tmp_path: Path) -> None:
    began = time.monotonic()
    connect(f"sqlite:///{tmp_path}/whole/mlflow.db")
    whole, tables = time.monotonic() - began, tables_of(tmp_path / "whole/mlflow.db")
    for share in (0.4, 0.7, 0.9):
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


def older_store(path: Path, revision: str) -> None:
    """The store of an older MLflow, with an experiment of its own."""
    from mlflow.store.db import utils

    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    utils.InitialBase.metadata.create_all(engine)
    alembic.command.upgrade(utils._get_alembic_config(str(engine.url)), revision)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage)"
            " VALUES (5, 'birds', '/tmp/birds', 'active')"
        )
    engine.dispose()


def test_the_store_of_an_older_mlflow_is_migrated_with_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older_store(tmp_path / "mlflow.db", "7f2a7d5fae7d")
    with closing(sqlite3.connect("mlflow.db")) as database:  # what a killed migration leaves
        database.execute("CREATE TABLE _alembic_tmp_tags (key)")
    assert find_experiment(connect(), "birds") == "5"
    assert "as it was before, it is kept in mlflow.db.7f2a7d5fae7d.bak" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "mlflow.db.7f2a7d5fae7d.bak"}


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        (
            "UPDATE alembic_version SET version_num = 'ffff'",
            "the database was made by a newer MLflow than the one that",
        ),
        ("CREATE TABLE logged_models (id)", "table logged_models already exists"),
    ],
)
def test_a_store_that_cannot_be_migrated_is_one_sentence_and_stays_as_it_is(
    tmp_path: Path, spoilt: str, reason: str
) -> None:
    older_store(tmp_path / "mlflow.db", "7f2a7d5fae7d")
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        database.execute(spoilt)
        before = list(database.iterdump())
    with pytest.raises(TrackingError) as caught:
        connect()
    assert f"its tables cannot become those of MLflow {tracking.mlflow.__version__}" in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    with closing(sqlite3.connect("mlflow.db")) as database:
        assert list(database.iterdump()) == before


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("localhost:5000/mlflow", "http://localhost:5000/mlflow"),
        ("mlflow.example.org", "http://mlflow.example.org"),
        ("http:/127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("mlflow.db", "sqlite:///mlflow.db"),
        ("/srv/runs/mlflow.db", "sqlite:////srv/runs/mlflow.db"),
        ("sqlite://mlflow.db", "sqlite:///mlflow.db"),
        ("file:///srv/mlruns", "sqlite:///mlflow.db"),
        ("postgres://ada:secret@db/mlflow", "postgresql://ada:***@db/mlflow"),
    ],
)
def test_an_address_without_a_scheme_that_mlflow_knows_is_told_with_what_was_meant(
    uri: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = "must begin with http://, https:// or a database's scheme, got"
    with pytest.raises(TrackingError) as caught:
        connect(uri)
    assert str(caught.value) == f"the tracking URI {rule} {uri.replace('secret', '***')}; did you mean {meant}?"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError) as caught:
        connect()
    assert str(caught.value).startswith(f"MLFLOW_TRACKING_URI {rule} ")


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy"])
def test_a_proxy_in_the_way_is_named_with_the_way_around_it(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    proxy = f"http://ada:secret@127.0.0.1:{free_port()}"
    monkeypatch.setenv(variable, proxy)
    hint = f"if it needs no proxy, unset {variable} ({proxy.replace('secret', '***')}) or add 127.0.0.1 to no_proxy"
    with fake(reply(503, "")) as (url, asked):
        with pytest.raises(TrackingError) as caught:
            connect(url)
        reason = "a proxy is in the way: connection refused"
        assert str(caught.value) == f"MLflow at {url} does not answer: {reason}; {hint}"
        with (
            pytest.raises(TrackingError, match=r"^cannot search the runs: a proxy is in the way: "),
            promptly("search the runs"),
        ):
            MlflowClient(url).search_runs(["0"])
        assert not asked
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(TrackingError) as caught:
            connect(url)
        assert str(caught.value) == f"MLflow at {url} cannot be used: the server answers with status 503"
        assert asked


Asked = list[tuple[str, str | None]]  # each request's path, and what it wants of the connection


@contextmanager
def fake(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[tuple[str, Asked]]:
    """A server that gives a sign of life, and answers all else as told: its address, and what it was asked."""
    asked: Asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path.partition("?")[0], self.headers["Connection"]))
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            reply(200, "OK")(self) if self.path == "/health" else answer(self)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def reply(status: int, body: str | bytes, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body.encode() if isinstance(body, str) else body)

    return answer


def to_the_login(handler: BaseHTTPRequestHandler) -> None:
    reply(200, LOGIN)(handler) if handler.path == "/login" else reply(302, "", Location="/login")(handler)


LOGIN = "<!DOCTYPE html>\n<title>Who are you?</title>"
NO_MLFLOW = "what answers is not MLflow: another program, or a proxy that wants a login"
LOCKED_OUT = "user or password is wrong or missing; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
ODD_SERVERS = {
    "unwell": (reply(503, "", Retry_After="3600"), "the server answers with status 503"),
    "too busy": (reply(429, "{}", Retry_After="3600"), "the server answers with status 429"),
    "broken": (reply(500, "<h1>Oh no</h1>"), "the server answers with status 500"),
    "a login page": (reply(200, LOGIN), NO_MLFLOW),
    "a way to a login page": (to_the_login, NO_MLFLOW),
    "garbage": (reply(200, bytes(range(256))), NO_MLFLOW),
    "JSON, but no object": (reply(200, "[1, 2]"), NO_MLFLOW),
    "another service": (reply(404, '{"detail": "Not Found"}'), NO_MLFLOW),
    "a web server": (reply(404, "<h1>Not found</h1>"), "the server answers with status 404"),
    "guarded": (reply(401, "<h1>Who are you?</h1>"), LOCKED_OUT),
    "forbidding": (reply(403, "Permission denied"), "no permission"),
    "particular": (reply(403, "Invalid Host header"), "no permission: Invalid Host header"),
}


@pytest.mark.parametrize(("answer", "reason"), ODD_SERVERS.values(), ids=ODD_SERVERS)
def test_a_server_that_answers_oddly_is_one_sentence_after_one_try(
    answer: Callable[[BaseHTTPRequestHandler], None], reason: str
) -> None:
    with fake(answer) as (url, asked):
        with pytest.raises(TrackingError) as caught:
            connect(url)
        assert str(caught.value) == f"MLflow at {url} cannot be used: {reason}"
        with pytest.raises(TrackingError) as caught, promptly("search the runs"):
            MlflowClient(url).search_runs(["0"])  # a server that became like this
        assert str(caught.value) == f"cannot search the runs: {reason}"
    api = "/api/2.0/mlflow"
    assert [path for path, _ in asked if path != "/login"] == [
        "/health",
        f"{api}/experiments/search",
        f"{api}/runs/search",
    ]
    assert {connection for _, connection in asked} == {"close"}  # none is kept, to be closed in the wrong moment


@pytest.mark.parametrize("mute", ["a connection that breaks off", "a server that hangs"])
def test_a_server_that_does_not_answer_all_is_one_sentence_after_one_try(
    mute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "ANSWER_SECONDS", 1)
    over = threading.Event()
    hangs = mute.endswith("hangs")
    reason = "no answer in time" if hangs else "the connection broke off"
    with fake(lambda _: hangs and over.wait()) as (url, asked):
        try:
            with pytest.raises(TrackingError) as caught:
                connect(url)
            assert str(caught.value) == f"MLflow at {url} does not answer: {reason}; start it with: mlflow server"
            with pytest.raises(TrackingError, match=rf"^cannot look for experiment 'training': {reason}$"):
                find_experiment(MlflowClient(url), "training")
        finally:
            over.set()
    assert len(asked) == 3


def test_no_password_of_an_address_is_shown() -> None:
    port = free_port()
    with pytest.raises(TrackingError) as caught:
        connect(f"http://anna:s@cret@127.0.0.1:{port}")
    assert str(caught.value).startswith(f"MLflow at http://anna:***@127.0.0.1:{port} does not answer: ")
    assert "cret" not in str(caught.value)


def limits() -> tuple[str | None, str | None]:
    return os.environ.get(RETRIES), os.environ.get(TIMEOUT)


def test_the_impatient_of_several_threads_leave_the_limits_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RETRIES, "2")
    monkeypatch.setenv(TIMEOUT, "10")
    seen: dict[str, tuple[str | None, str | None]] = {}
    inside, may_leave = threading.Event(), threading.Event()

    def other() -> None:
        with impatient(7):
            seen["both"] = limits()
            inside.set()
            may_leave.wait()
        seen["all gone"] = limits()

    thread = threading.Thread(target=other)
    with impatient():
        seen["alone"] = limits()
        thread.start()
        inside.wait()
    seen["the other"] = limits()
    may_leave.set()
    thread.join()
    assert seen == {"alone": ("0", "5"), "both": ("0", "5"), "the other": ("0", "7"), "all gone": ("2", "10")}


@pytest.mark.parametrize(("retries", "timeout"), [("5", "90"), ("0", "1"), ("2", "90"), ("5", "10"), ("0", "5")])
def test_what_the_user_has_set_stays_also_for_the_impatient(
    monkeypatch: pytest.MonkeyPatch, retries: str, timeout: str
) -> None:
    monkeypatch.setenv(RETRIES, retries)
    monkeypatch.setenv(TIMEOUT, timeout)
    with impatient():
        assert limits() == ("0" if retries == "2" else retries, "5" if timeout == "10" else timeout)
    assert limits() == (retries, timeout)
    with pytest.raises(KeyError), impatient():
        raise KeyError
    assert limits() == (retries, timeout)


def test_mlflow_is_set_up_before_it_is_imported_and_the_users_own_choice_stays(tmp_path: Path) -> None:
    code = (
        "import os; os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT'] = '77'; import toolkit.tracking;"
        "print(os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT'], os.environ['MLFLOW_ALLOW_PICKLE_DESERIALIZATION'],"
        " os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert answer.stdout.split() == ["77", "false", "true"]


# --- experiments --------------------------------------------------------------------------------


def test_an_experiment_is_made_once_and_found_again(database: MlflowClient) -> None:
    with pytest.raises(TrackingError, match=r"^there is no experiment 'trainin'; there are: "):
        find_experiment(database, "trainin")
    made = open_experiment(database, "training")
    assert open_experiment(database, "training") == find_experiment(database, "training") == made
    with pytest.raises(TrackingError, match=r"^there is no experiment 'trainin'; there are: training, "):
        find_experiment(database, "trainin")


def test_a_deleted_experiment_is_not_written_to(database: MlflowClient) -> None:
    database.delete_experiment(open_experiment(database, "gone"))
    with pytest.raises(TrackingError, match=r"^experiment 'gone' was deleted; restore it or choose another"):
        Run(database, "gone", role="final", name="a run")
    with pytest.raises(TrackingError, match=r"^there is no experiment 'gone'"):
        find_experiment(database, "gone")


def test_an_experiment_behind_a_server_is_not_written_to_from_its_database(database: MlflowClient) -> None:
    database.create_experiment("proxied", artifact_location="mlflow-artifacts:/1")
    with pytest.raises(TrackingError, match=r"^experiment 'proxied' keeps its files behind an MLflow server: set "):
        open_experiment(database, "proxied")


def test_a_name_that_mlflow_refuses_is_one_sentence(database: MlflowClient) -> None:
    with pytest.raises(TrackingError, match=r"^cannot start a run in experiment 'x{501}': ") as caught:
        Run(database, "x" * 501, role="final", name="a run")
    assert "\n" not in str(caught.value)


# --- how a run ends -----------------------------------------------------------------------------


class Odd(Exception):
    pass


@pytest.mark.parametrize(
    ("raised", "status", "failure"),
    [
        (None, "FINISHED", None),
        (KeyboardInterrupt(), "KILLED", None),
        (SystemExit(143), "KILLED", None),
        (TrackingError("the loss became nan"), "FAILED", "the loss became nan"),
        (Odd("first line\nsecond line"), "FAILED", "first line"),
        (Odd(), "FAILED", "Odd"),
        (Odd("x" * 20_000), "FAILED", "x" * 8000),
    ],
    ids=["finished", "ctrl-c", "sigterm", "error", "two lines", "no text", "long"],
)
def test_a_run_ends_with_the_status_that_fits(
    database: MlflowClient, raised: BaseException | None, status: str, failure: str | None
) -> None:
    def work() -> None:
        with run:
            run.metrics({"loss": 0.5})
            if raised is not None:
                raise raised

    run = start(database)
    assert database.get_run(run.id).info.status == "RUNNING"
    if raised is None:
        work()
    else:
        with pytest.raises(type(raised)) as caught:
            work()
        assert caught.value is raised
    logged = database.get_run(run.id)
    assert logged.info.status == status
    assert logged.data.tags.get("failure") == failure
    assert logged.data.metrics == {"loss": 0.5}  # what was measured before it ended is there


def test_a_run_says_what_it_is(store: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/train_cnn.py", "--epochs", "3"])
    with (
        start(store, role="study", tags={"seed": 7}) as study,
        Run(store, study.experiment, role="trial", name="trial 1", parent=study) as trial,
    ):
        pass
    tags = store.get_run(study.id).data.tags
    assert (tags["role"], tags["seed"], tags["mlflow.runName"]) == ("study", "7", "a run")
    assert (tags["mlflow.source.name"], tags["mlflow.source.git.commit"]) == ("train_cnn.py", code_version())
    assert tags["mlflow.user"]
    assert "mlflow.parentRunId" not in tags
    nested = store.get_run(trial.id)
    assert nested.data.tags["mlflow.parentRunId"] == study.id
    assert nested.info.experiment_id == study.experiment_id
    (found,) = store.search_runs([study.experiment_id], "tags.role = 'trial' and attributes.status = 'FINISHED'")
    assert found.info.run_id == trial.id


def test_a_run_knows_its_page(store: MlflowClient) -> None:
    with start(store) as run:
        if store.tracking_uri.startswith("http"):
            pages = f"{store.tracking_uri}/#/experiments/{run.experiment_id}/runs"
            assert run.url == f"{pages}/{run.id}?workflowType=machine_learning"
            assert run.table_url == f"{pages}?workflowType=machine_learning&viewStateShareKey=figures"
        else:
            assert (run.url, run.table_url) == (None, None)


# --- what arrives -------------------------------------------------------------------------------


def test_metrics_are_buffered_and_all_arrive_with_their_steps(store: MlflowClient) -> None:
    with start(store) as run:
        run.metrics({"loss": 0.9}, step=1)
        assert store.get_run(run.id).data.metrics == {}
        run.flush()
        assert store.get_run(run.id).data.metrics == {"loss": 0.9}
        for step in range(2, 1251):  # more than one request holds
            run.metrics({"loss": 1 / step, "rate": step}, step)
    history = store.get_metric_history(run.id, "loss")
    assert [point.step for point in history] == list(range(1, 1251))
    assert [point.value for point in history] == pytest.approx([0.9, *(1 / step for step in range(2, 1251))])
    assert len(store.get_metric_history(run.id, "rate")) == 1249
    assert store.get_run(run.id).data.metrics == {"loss": pytest.approx(1 / 1250), "rate": 1250.0}


def test_a_metric_that_is_no_number_is_kept_as_one(database: MlflowClient) -> None:
    with start(database) as run:
        run.metrics({"loss": math.nan})
    assert math.isnan(database.get_run(run.id).data.metrics["loss"])


def test_metrics_that_could_not_be_sent_stay_buffered(database: MlflowClient) -> None:
    run = start(database)
    database.delete_run(run.id)
    run.metrics({"loss": 0.5}, step=3)
    with pytest.raises(TrackingError, match=r"^cannot log metrics: "):
        run.flush()
    database.restore_run(run.id)
    run.end("FINISHED")
    (point,) = database.get_metric_history(run.id, "loss")
    assert (point.value, point.step) == (0.5, 3)


def test_a_data_set_reads_back_as_mlflows_own(store: MlflowClient) -> None:
    with start(store) as run:
        for _ in range(2):  # a run that goes on says so again
            run.dataset("photos", "f" * 36, "/data/photos", profile={"pictures": 120, "classes": 3}, context="training")
        run.dataset("photos", "e" * 16, "/data/photos", profile={}, context="held out")
    inputs = {item.dataset.digest: item for item in store.get_run(run.id).inputs.dataset_inputs}
    assert set(inputs) == {"f" * 36, "e" * 16}
    trained = inputs["f" * 36]
    assert (trained.dataset.name, json.loads(trained.dataset.profile)) == ("photos", {"pictures": 120, "classes": 3})
    assert [(tag.key, tag.value) for tag in trained.tags] == [("mlflow.data.context", "training")]
    assert [tag.value for tag in inputs["e" * 16].tags] == ["held out"]
    source = tracking.mlflow.data.get_source(trained.dataset)
    assert source.uri == "/data/photos"


def test_names_in_any_bytes_are_recorded(store: MlflowClient) -> None:
    """A folder's name in Latin-1, as Python gives it."""
    path = "/data/caf\udce9"
    with start(store) as run:
        run.params({"data": path})
        run.tag(data=path)
        run.text("note.txt", f"{path}\nand more")
        run.dataset("caf\udce9", "f" * 16, path, profile={}, context="training")
    found = store.get_run(run.id)
    assert found.data.params["data"] == found.data.tags["data"] == "/data/caf\\xe9"
    (item,) = found.inputs.dataset_inputs
    assert item.dataset.name == "caf\\xe9"
    assert tracking.mlflow.data.get_source(item.dataset).uri == "/data/caf\\xe9"
    with pytest.raises(
        TrackingError, match=r"^cannot start a run in experiment .*: a name or path in it is not UTF-8$"
    ):
        Run(store, "caf\udce9", role="final", name="a run")


def test_a_digest_longer_than_mlflow_allows_is_one_sentence(store: MlflowClient) -> None:
    run = start(store)
    with pytest.raises(TrackingError, match=r"^cannot log the data set 'photos': .*'digest' exceeds .* 36 characters"):
        run.dataset("photos", "f" * 37, "photos", profile={}, context="training")


def test_more_params_than_a_request_holds_and_longer_than_mlflow_allows(store: MlflowClient) -> None:
    values = {f"setting_{number}": number for number in range(230)} | {"long": "y" * 9000, "none": None}
    with start(store) as run:
        run.params(values)
    params = store.get_run(run.id).data.params
    assert len(params) == 232
    assert params["setting_229"] == "229"
    assert params["long"] == "y" * 6000
    assert params["none"] == "None"


def test_artifacts_lie_where_their_names_say(store: MlflowClient, tmp_path: Path) -> None:
    with start(store) as run:
        run.json("skipped.json", [{"path": "a", "reason": "ü"}])
        run.json("tables/deep/per_class.json", {"cat": 0.5})
        run.text("notes/readme.txt", "first\nsecond")
        run.figure("curve.png", curve([1, 2]))
        run.figure("a/b.png", curve([1, 2]))
        run.figure("v1.2/deep.er/c.png", curve([1, 2]))
    names = ("skipped.json", "tables/deep/per_class.json", "notes/readme.txt", "curve.png", "a/b.png")
    content = {name: Path(store.download_artifacts(run.id, name, str(tmp_path))) for name in names}
    assert json.loads(content["skipped.json"].read_text()) == [{"path": "a", "reason": "ü"}]
    assert json.loads(content["tables/deep/per_class.json"].read_text()) == {"cat": 0.5}
    assert content["notes/readme.txt"].read_text() == "first\nsecond"
    for name in ("curve.png", "a/b.png"):
        with Image.open(content[name]) as picture:
            assert picture.format == "PNG"
            assert picture.width > 100
    assert [item.path for item in store.list_artifacts(run.id, "v1.2/deep.er")] == ["v1.2/deep.er/c.png"]
    assert {item.path for item in store.list_artifacts(run.id)} == {
        "skipped.json", "tables", "notes", "curve.png", "a", "v1.2"
    }  # fmt: skip


def test_a_disk_that_refuses_is_one_sentence(database: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    database.create_experiment("full", artifact_location=str(tmp_path / "file" / "artifacts"))
    run = Run(database, "full", role="final", name="a run")
    writers: dict[str, Callable[[str], None]] = {
        "a.json": lambda name: run.json(name, {}),
        "b.txt": lambda name: run.text(name, ""),
        "c.png": lambda name: run.figure(name, curve([1])),
    }
    for name, write in writers.items():
        with pytest.raises(TrackingError, match=rf"^cannot log {name}: .*Not a directory"):
            write(name)


def test_a_model_is_ready_when_it_is_complete(store: MlflowClient, tmp_path: Path) -> None:
    program = Program(ColourNetwork())
    with start(store) as run:
        model_id = run.new_model()
        assert store.get_logged_model(model_id).status == "PENDING"
        digest = save_bundle(
            tmp_path / "model", program, colour_card(), colour_baseline(program), run_id=run.id, model_id=model_id
        )
        run.model(tmp_path / "model", model_id, {DIGEST_TAG: digest})
    model = store.get_logged_model(model_id)
    assert (model.status, model.source_run_id, model.tags[DIGEST_TAG]) == ("READY", run.id, digest)
    logged = store.get_run(run.id)
    assert logged.data.tags[DIGEST_TAG] == digest
    assert [output.model_id for output in logged.outputs.model_outputs] == [model_id]
    folder = tracking.mlflow.artifacts.download_artifacts(
        artifact_uri=model.artifact_location, dst_path=str(tmp_path / "back"), tracking_uri=store.tracking_uri
    )
    batch = np.stack([colour_pixels(colour, 16, np.random.default_rng(0)) for colour in COLOURS])
    assert load_bundle(Path(folder), digest).predict(batch).argmax(axis=1).tolist() == [0, 1, 2]


# --- a run that goes on -------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED", "RUNNING"])
def test_a_run_goes_on_however_it_ended(store: MlflowClient, status: str) -> None:
    first = start(store)
    first.metrics({"loss": 0.5}, step=1)
    first.flush()
    if status == "FAILED":
        first.tag(failure="the power went")
    if status != "RUNNING":
        first.end(status)
    with Run.reopen(store, first.id) as run:
        assert (run.id, run.experiment, run.experiment_id) == (first.id, first.experiment, first.experiment_id)
        assert store.get_run(run.id).info.status == "RUNNING"
        run.metrics({"loss": 0.25}, step=2)
    logged = store.get_run(run.id)
    assert logged.info.status == "FINISHED"
    assert "failure" not in logged.data.tags
    assert [(point.step, point.value) for point in store.get_metric_history(run.id, "loss")] == [(1, 0.5), (2, 0.25)]


def test_a_run_that_is_not_there_does_not_go_on(store: MlflowClient) -> None:
    missing = "0" * 32
    with pytest.raises(TrackingError, match=rf"^cannot reopen run '{missing}': .*Run with id={missing} not found$"):
        Run.reopen(store, missing)
    with pytest.raises(TrackingError, match=r"^cannot reopen run '\.\./x': Invalid value .* for parameter 'run_id'"):
        Run.reopen(store, "../x")
    run = start(store)
    store.delete_run(run.id)
    with pytest.raises(TrackingError, match=rf"^cannot reopen run '{run.id}': it was deleted; restore it or "):
        Run.reopen(store, run.id)


def test_what_is_unsent_survives_json_and_goes_first(database: MlflowClient) -> None:
    run = start(database)
    run.metrics({"a": 0.1 + 0.2, "b": math.nan}, step=1)
    run.metrics({"a": math.inf, "b": -math.inf}, step=2)
    kept = run.unsent
    times = [entry[2] for entry in kept]
    assert [entry[:2] + entry[3:] for entry in kept] == [
        ("a", 0.1 + 0.2, 1), ("b", "nan", 1), ("a", "inf", 2), ("b", "-inf", 2)
    ]  # fmt: skip
    assert all(abs(at / 1000 - time.time()) < 60 for at in times)
    other = Run.reopen(database, run.id)
    other.metrics({"a": 3.0}, step=3)
    other.restore(json.loads(json.dumps(kept, allow_nan=False)))
    assert other.unsent[:4] == kept
    assert [entry[0::3] for entry in other.unsent[4:]] == [("a", 3)]
    assert other.send()
    assert other.unsent == []


def test_an_entry_that_is_sent_twice_is_in_the_store_once(store: MlflowClient) -> None:
    values = [1 / 3, math.nan, math.inf, -math.inf, 0.0, 1e-300, 7.0]
    run = start(store)
    for step, value in enumerate(values):
        run.metrics({"loss": value}, step)
    entries = run.unsent
    for part in (entries[:4], entries[2:6], entries + entries, entries):  # some are there and some are not
        again = Run.reopen(store, run.id)
        again.restore(part)
        assert again.send()
    history = store.get_metric_history(run.id, "loss")
    assert [point.step for point in history] == list(range(len(values)))
    assert [point.timestamp for point in history] == [entry[2] for entry in entries]
    largest = sys.float_info.max  # what MLflow keeps of an infinity
    expected = [1 / 3, math.nan, largest, -largest, *values[4:]]
    assert [point.value for point in history] == pytest.approx(expected, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("entry", [("loss", "low", 1, 1), ("loss", 0.5, 1), ("loss", 0.5, None, 1), 5])
def test_an_entry_that_is_none_is_refused_in_one_sentence(database: MlflowClient, entry: object) -> None:
    run = start(database)
    run.metrics({"loss": 0.5})
    with pytest.raises(TrackingError, match=r"^a kept metric must be a name, a value, .*, got ") as caught:
        run.restore([("loss", 0.5, 1, 1), entry])
    assert str(caught.value).endswith(f"got {entry}")
    assert len(run.unsent) == 1


# --- a store that goes away ---------------------------------------------------------------------


GONE = r"MLflow cannot take the metrics: {}; training goes on, they are kept and will be sent later"
BACK = "MLflow takes the metrics again; those that were kept have been sent"


class Clock:
    """Seconds that pass when they are told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def file_of(client: MlflowClient) -> Path:
    return Path(client.tracking_uri.removeprefix("sqlite:///").partition("?")[0])


@pytest.fixture
def own_store(database: MlflowClient, tmp_path: Path) -> MlflowClient:
    """A store in a file that a test may maltreat."""
    (tmp_path / "store").mkdir()
    shutil.copy(file_of(database), tmp_path / "store" / "mlflow.db")
    return connect(f"sqlite:///{tmp_path}/store/mlflow.db")


@pytest.fixture
def server(database: MlflowClient, tmp_path: Path) -> Iterator[MlflowServer]:
    shutil.copy(file_of(database), tmp_path / "mlflow.db")  # a first start is slow
    server = MlflowServer(tmp_path)
    server.start()
    try:
        yield server
    finally:
        if server.running:
            server.kill()


def hole(port: int = 0) -> socket.socket:
    """A socket where the system takes connections, and nobody ever answers."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(16)
    listener.setblocking(False)
    return listener


def callers(listener: socket.socket) -> int:
    """How many have called since the last look."""
    for count in itertools.count():
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
    raise AssertionError


def test_training_outlives_the_server_and_its_disk(
    server: MlflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "ANSWER_SECONDS", 2)
    client, clock = connect(server.url), Clock()
    run = start(client, clock=clock)
    entries = []

    def epoch(step: int) -> bool:
        run.metrics({"loss": 1 / step}, step)
        entries.append(run.unsent[-1])
        return run.send()

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
    with closing(hole(server.port)):
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


def test_a_server_that_never_answers_is_asked_rarely_and_not_for_long(
    own_store: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "ANSWER_SECONDS", 1)
    clock = Clock()
    run = start(own_store, clock=clock)
    run.metrics({"loss": 0.5})
    with closing(hole()) as listener:
        run.client = MlflowClient(f"http://127.0.0.1:{listener.getsockname()[1]}")
        began = time.monotonic()
        assert [run.send() for _ in range(5)] == [False] * 5
        assert time.monotonic() - began < 20
        assert callers(listener) == 1
        clock.now += RETRY_SECONDS - 1
        assert not run.send()
        assert callers(listener) == 0
        clock.now += 1
        assert not run.send()
        assert callers(listener) == 1
        with pytest.raises(TrackingError, match=r"^cannot log metrics: no answer in time$"):
            run.flush()
    run.client = own_store
    clock.now += RETRY_SECONDS
    assert run.send()
    assert capsys.readouterr().out.splitlines() == [GONE.format("no answer in time"), BACK]


def test_a_server_that_stops_answering_after_its_sign_of_life_costs_seconds(
    own_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The door opens, and the request hangs: MLflow alone would try three times, ten seconds each."""
    monkeypatch.setattr(tracking, "ANSWER_SECONDS", 1)
    over, before = threading.Event(), limits()
    run = start(own_store, clock=Clock())
    run.metrics({"loss": 0.5})
    with fake(lambda _: over.wait()) as (url, asked):
        run.client = MlflowClient(url)
        try:
            assert not run.send()
        finally:
            over.set()
    assert [path for path, _ in asked] == ["/health", "/api/2.0/mlflow/runs/log-batch"]
    assert limits() == before  # other calls are as patient as before


def test_a_refusal_is_said_with_its_reason(store: MlflowClient, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    run = start(store, clock=clock)
    store.delete_run(run.id)
    for step in range(3):
        run.metrics({"loss": 0.5}, step)
        assert not run.send()
        clock.now += RETRY_SECONDS
    store.restore_run(run.id)
    assert run.send()
    refusal, back = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        rf"MLflow refuses the metrics: .*The run {run.id} must be in the 'active' state. Current state is deleted; "
        r"training goes on, they are kept and will be sent later",
        refusal,
    )
    assert back == BACK
    assert [point.step for point in store.get_metric_history(run.id, "loss")] == [0, 1, 2]


def test_an_outage_that_ends_in_a_refusal_is_said_twice(
    own_store: MlflowClient, database: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store came back without the run: an older copy, say."""
    clock, path = Clock(), file_of(own_store)
    run = start(own_store, clock=clock)
    run.metrics({"loss": 0.5})
    path.unlink()
    assert not run.send()
    assert not path.exists()
    shutil.copy(file_of(database), path)
    clock.now += RETRY_SECONDS
    assert not run.send()
    gone, refused = capsys.readouterr().out.splitlines()
    assert gone == GONE.format("the database file cannot be opened")
    assert refused.startswith(f"MLflow refuses the metrics: Run with id={run.id} not found; training goes on")


def test_a_database_file_that_was_removed_and_copied_back_is_written_again(
    own_store: MlflowClient, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clock, path = Clock(), file_of(own_store)
    run = start(own_store, clock=clock)
    run.metrics({"loss": 1.0}, step=1)
    assert run.send()
    shutil.copy(path, tmp_path / "backup.db")
    path.unlink()
    path.mkdir()
    run.metrics({"loss": 0.5}, step=2)
    assert not run.send()
    path.rmdir()
    shutil.copy(tmp_path / "backup.db", path)  # another file of the same name
    run.metrics({"loss": 0.25}, step=3)
    run.end("FINISHED")
    with closing(sqlite3.connect(path)) as file:
        rows = file.execute("SELECT step, value FROM metrics WHERE run_uuid = ? ORDER BY step", (run.id,)).fetchall()
    assert rows == [(1, 1.0), (2, 0.5), (3, 0.25)]
    said = capfd.readouterr()
    assert said.out.splitlines() == [GONE.format("the database file cannot be opened"), BACK]
    assert said.err == ""


def test_a_database_that_another_program_holds_is_not_waited_for_long(
    own_store: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "ANSWER_SECONDS", 1)
    clock = Clock()
    run = start(own_store, clock=clock)
    run.metrics({"loss": 0.5})
    with closing(sqlite3.connect(file_of(own_store))) as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        assert not run.send()
        assert time.monotonic() - began < 20  # MLflow alone would wait for 20
    clock.now += RETRY_SECONDS
    assert run.send()
    assert capsys.readouterr().out.splitlines() == [GONE.format("the database is locked by another program"), BACK]


def test_a_disk_without_room_loses_nothing(own_store: MlflowClient, capfd: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    run = start(own_store, clock=clock)
    for step in range(1500):
        run.metrics({"loss": 1 / (step + 1)}, step)
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = file_of(own_store).stat().st_size + 40_000  # bytes; the metrics need more
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, allowed[1]))
    try:
        assert not run.send()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    clock.now += RETRY_SECONDS
    assert run.send()
    assert [point.step for point in own_store.get_metric_history(run.id, "loss")] == list(range(1500))
    said = capfd.readouterr()
    assert said.out.splitlines() == [GONE.format("the disk cannot be read or written"), BACK]
    assert said.err == ""


def test_an_error_of_the_database_is_one_sentence(tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/empty.db")
    with (
        pytest.raises(TrackingError, match=r"^cannot count: \(sqlite3.OperationalError\) no such table: runs$"),
        explained("count"),
        engine.connect() as connection,
    ):
        connection.exec_driver_sql("SELECT count(*) FROM runs")


# --- code and machine ---------------------------------------------------------------------------


def test_the_code_version_is_gits(tmp_path: Path) -> None:
    """In a repository of its own: a commit, and -dirty once a file was changed."""
    (tmp_path / "house" / "toolkit").mkdir(parents=True)
    for path in Path(tracking.__file__).parent.glob("*.py"):
        shutil.copy(path, tmp_path / "house" / "toolkit")

    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        answer = subprocess.run(
            ["git", *identity, *words], check=True, capture_output=True, text=True, cwd=tmp_path / "house"
        )
        return answer.stdout.strip()

    def version() -> str:
        lines = (
            f"import sys; sys.path.insert(0, {str(tmp_path / 'house')!r})",
            "from toolkit.tracking import code_version",
            "print(code_version())",
            "open('toolkit/errors.py', 'a').write('# changed')",
            "print(code_version())",
        )
        answer = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True, text=True, cwd=tmp_path / "house"
        )
        return answer.stdout

    git("init", "--quiet")
    git("add", "toolkit")
    git("commit", "--quiet", "--message", "first")
    git("tag", "--annotate", "v9", "--message", "a tag is no version")
    commit = git("rev-parse", "HEAD")
    clean, dirty = version().split()
    assert re.fullmatch(r"[0-9a-f]{12,}", clean)
    assert commit.startswith(clean)
    assert dirty == f"{clean}-dirty"


def test_without_git_the_code_version_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert code_version() == "unknown"
