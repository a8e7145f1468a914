"""What a failure of MLflow is said to be: a few words on one line, without passwords."""

import threading

import pytest
import sqlalchemy

from support.http_server import fake_server, reply
from toolkit.errors import TrackingError
from toolkit.tracking import connection
from toolkit.tracking.connection import MlflowClient, connect, find_experiment, mlflow_call
from toolkit.tracking.errors import NOT_MLFLOW, UNKNOWN_USER, reason_of

LOGIN = "<!DOCTYPE html>\n<title>Who are you?</title>"


def to_the_login(handler):
    reply(200, LOGIN)(handler) if handler.path == "/login" else reply(302, "", Location="/login")(handler)


ODD_SERVERS = {
    "unwell": (reply(503, "", Retry_After="3600"), "the server answers with status 503"),
    "too busy": (reply(429, "{}", Retry_After="3600"), "the server answers with status 429"),
    "broken": (reply(500, "<h1>Oh no</h1>"), "the server answers with status 500"),
    "a login page": (reply(200, LOGIN), NOT_MLFLOW),
    "a way to a login page": (to_the_login, NOT_MLFLOW),
    "garbage": (reply(200, bytes(range(256))), NOT_MLFLOW),
    "JSON, but no object": (reply(200, "[1, 2]"), NOT_MLFLOW),
    "another service": (reply(404, '{"detail": "Not Found"}'), NOT_MLFLOW),
    "a web server": (reply(404, "<h1>Not found</h1>"), "the server answers with status 404"),
    "guarded": (reply(401, "<h1>Who are you?</h1>"), UNKNOWN_USER),
    "forbidding": (reply(403, "Permission denied"), "no permission"),
    "particular": (reply(403, "Invalid Host header"), "no permission: Invalid Host header"),
}


@pytest.mark.parametrize(("answer", "reason"), ODD_SERVERS.values(), ids=ODD_SERVERS)
def test_a_server_that_answers_oddly_is_one_sentence_after_one_try(answer, reason):
    with fake_server(answer) as (url, asked):
        with pytest.raises(TrackingError) as caught:
            connect(url)
        assert str(caught.value) == f"MLflow at {url} cannot be used: {reason}"
        with pytest.raises(TrackingError) as caught, mlflow_call("search the runs", timeout=5):
            MlflowClient(url).search_runs(["0"])  # a server that became like this
        assert str(caught.value) == f"cannot search the runs: {reason}"
    calls = [call for call in asked if call[0] not in ("/health", "/login")]
    assert [path for path, _ in calls] == ["/api/2.0/mlflow/experiments/search", "/api/2.0/mlflow/runs/search"]
    assert {connection for _, connection in calls} == {"close"}  # none is kept, to be closed in the wrong moment


@pytest.mark.parametrize("mute", ["a connection that breaks off", "a server that hangs"])
def test_a_failing_server_is_one_line_after_one_try(mute, monkeypatch):
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 3)
    over = threading.Event()
    hangs = mute.endswith("hangs")
    reason = "no answer in time" if hangs else "the connection broke off"
    with fake_server(lambda _: hangs and over.wait()) as (url, asked):
        try:
            with pytest.raises(TrackingError) as caught:
                connect(url)
            assert str(caught.value) == f"MLflow at {url} cannot be used: {reason}"
            with pytest.raises(TrackingError, match=rf"^cannot find experiment 'training': {reason}$"):
                find_experiment(MlflowClient(url), "training")
        finally:
            over.set()
    assert len(asked) == 3


def test_an_error_of_the_database_is_one_sentence(tmp_path):
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/empty.db")
    with (
        pytest.raises(TrackingError, match=r"^cannot count: \(sqlite3.OperationalError\) no such table: runs$"),
        mlflow_call("count"),
        engine.connect() as connection,
    ):
        connection.exec_driver_sql("SELECT count(*) FROM runs")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(sqlite3.OperationalError) database is locked\n[SQL: ...]", "the database is locked by another program"),
        ("attempt to write a readonly database", "the database file cannot be written"),
        ("(sqlite3.OperationalError) database or disk is full", "the disk is full"),
        ("[Errno 28] No space left on device: '/mlruns/1'", "the disk is full"),
        ("[Errno 122] Disk quota exceeded", "the disk quota is used up"),
        (
            "HTTPSConnectionPool(host='h', port=1): Max retries exceeded with url: /health (Caused by SSLError('x'))",
            "SSLError('x'))",
        ),
        ("no driver for postgresql://ada:secret@db/x\nmore", "no driver for postgresql://ada:***@db/x"),
        ("x" * 300, "x" * 200 + "..."),
        ("", "OSError"),
    ],
)
def test_a_failure_is_a_few_words_on_one_line(text, reason):
    assert reason_of(OSError(text)) == reason
