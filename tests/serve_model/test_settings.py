"""Settings of the service, and an application that is not started."""

import socket
import sys
import threading

import pytest

import serve_model
from serve_model import ServeSettings, create_app, main
from toolkit.errors import ToolkitError
from toolkit.serving.http.body_stream import Timeouts
from toolkit.serving.http.server import Server
from toolkit.serving.workers import VARIABLE
from toolkit.system.metrics import usable_cores


def test_making_an_application_opens_nothing(tmp_path):
    threads = set(threading.enumerate())
    create_app(ServeSettings(tracking_uri="http://127.0.0.1:1", monitor_store="not/there.db"))
    assert list(tmp_path.iterdir()) == []
    assert set(threading.enumerate()) <= threads


def test_processes_share_the_cores():
    cores = usable_cores()
    assert (ServeSettings().n_threads, ServeSettings().concurrency) == (cores + 1, cores)
    share = max(1, cores // 64)
    assert (ServeSettings(workers=64).n_threads, ServeSettings(workers=64).concurrency) == (share + 1, share)
    several = ServeSettings(workers=2, threads=3)
    assert (several.n_threads, several.concurrency) == (3, min(3, max(1, cores // 2)))


def test_a_worker_spec_from_elsewhere_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["serve_model.py"])
    monkeypatch.setenv(VARIABLE, "1")
    with pytest.raises(ToolkitError, match=f"{VARIABLE} is for the workers that a running service starts: unset it"):
        main()


def test_a_port_in_use_is_an_error(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["serve_model.py", "--port", str(port)])
        with pytest.raises(ToolkitError, match=rf"^cannot listen on 127\.0\.0\.1 port {port}: .*in use"):
            main()


def test_limits_of_clients_reach_the_server_and_the_bodies(monkeypatch):
    servers = []
    monkeypatch.setattr(Server, "run", lambda server, sockets: servers.append(server))
    monkeypatch.setattr(sys, "setswitchinterval", id)
    settings = ServeSettings(header_timeout=7, body_timeout=8, read_timeout=9, max_connections=5)
    with socket.socket() as listener:
        serve_model._serve(settings, listener)
    [server] = servers
    middleware, _ = server.config.app.user_middleware
    assert server.timeouts == middleware.kwargs["rules"].timeouts == Timeouts(header=7, body=8, read=9)
    assert server.max_connections == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "70000"], "--port must be at most 65535, got 70000"),
        (["--prot", "1"], "unknown argument --prot; did you mean --port?"),
        (["--stage", "Archived"], "--stage must be one of Production, Staging, got Archived"),
        (["--max-body-mb", "inf"], "--max-body-mb must be a finite number, got inf"),
        (["--poll-interval", "0"], "--poll-interval must be more than 0, got 0"),
        (["--max-queue", "1", "--threads", "1", "--max-batch", "3"], "--max-batch must be at most"),
        (["--workers", "0"], "--workers must be at least 1, got 0"),
        (["--workers", "65"], "--workers must be at most 64, got 65"),
        (["--model-name", "a/b"], "a model name is letters, digits"),
        (["--monitor-store", "no/such/folder/m.db"], "no/such/folder"),
        (["--host", "192.0.2.1", "--port", "0"], r"cannot listen on 192\.0\.2\.1 port 0: "),
        (["--predict-key", "secret"], "keys come from SERVE_PREDICT_KEY, SERVE_ADMIN_KEY and"),
        (["--alert-webhook", "http://example.com/x"], "webhook must be an https address, or http on this machine"),
        (["--ignore", "brightness"], "ignore must be one of accuracy, confidence_distribution, .*; got 'brightness'"),
        (["--keep-days", "0"], "--keep-days must be more than 0, got 0"),
        (["--allow-origin", "https://a.example/page"], "--allow-origin must be origins such as https://app.example:84"),
        (["--allow-origin", "a.example"], "--allow-origin must be origins such as https://app.example:8443"),
        (["--on-immediate", "panic"], "--on-immediate must be one of nothing, rollback, got panic"),
        (["--admin-key=secret"], "keys come from SERVE_PREDICT_KEY, SERVE_ADMIN_KEY and"),
    ],
)
def test_bad_settings_are_one_line(monkeypatch, words, message):
    monkeypatch.setattr(sys, "argv", ["serve_model.py", *words])
    with pytest.raises(ToolkitError, match=message) as caught:
        main()
    assert len(str(caught.value).splitlines()) == 1


def test_a_bad_variable_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["serve_model.py"])
    monkeypatch.setenv("SERVE_ALLOW_ORIGIN", "a.example")
    with pytest.raises(ToolkitError, match=r"^SERVE_ALLOW_ORIGIN must be origins such as .*; got a\.example$"):
        main()
