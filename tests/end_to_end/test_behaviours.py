"""Behaviours of the service under hostile clients and failures of the registry or the disk: one real process.

Promotion and rollback under load, and the end by SIGTERM, are in ``tests/serve_model/``.
"""

import re
import resource
import signal
import socket
import sqlite3
from contextlib import ExitStack, chdir, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from time import sleep

import httpx
import numpy as np
import psutil
import pytest

from model_registry import ModelRegistry
from support import MAX_WAIT_S, wait_until
from support.colours import encode
from support.forked_processes import Script, forks
from toolkit.bundle.files import DIGEST_TAG, PROGRAM
from toolkit.tracking.connection import connect

MODEL = "image-classifier"
LIMITS = {"max-body-mb": 1, "max-pixels": 100_000, "threads": 1, "max-queue": 4, "max-batch": 5}
TIMEOUTS = {"header-timeout": 600, "body-timeout": 600, "read-timeout": 600, "request-timeout": 600}
TIMES = {**TIMEOUTS, "poll-interval": 0.2, "drain-timeout": 0.3, "shutdown-timeout": 600}
MEBIBYTE = 2**20
RED = encode(np.full((16, 16, 3), (200, 40, 40), np.uint8))


class Registered:
    """A store with a version that serves and two like it; the newest is prepared in advance, the other is not."""

    def __init__(self, folder, log_colour_run):
        self.file = folder / "mlflow.db"
        self.uri = f"sqlite:///{self.file}"
        self.client = connect(self.uri)
        self.registry = ModelRegistry(self.uri, MODEL)
        self.versions = {}
        for name, strength in (("good", 8.0), ("other", 2.0), ("newest", 4.0)):
            log_colour_run(self.client, name, role="study", strength=strength)
            self.versions[name] = self.registry.register_best_model(name)
        self.promote("good")

    def promote(self, name):
        self.registry.transition_model_stage(self.versions[name], "Production", reason="a test", force=True)

    @contextmanager
    def altered(self, name):
        """A version's program has a wrong byte for a while."""
        run = self.client.get_run(self.registry.get(self.versions[name]).run_id)
        model = self.client.get_logged_model(run.outputs.model_outputs[0].model_id)
        with damaged(Path(model.artifact_location.removeprefix("file://"), PROGRAM), -100, b"?"):
            yield

    @contextmanager
    def of_another_digest(self, name):
        """The recorded digest of a version is a wrong one for a while."""
        version = self.registry.get(self.versions[name])
        self.client.set_model_version_tag(MODEL, str(version.version), DIGEST_TAG, "0" * 64)
        yield
        self.client.set_model_version_tag(MODEL, str(version.version), DIGEST_TAG, version.digest)


@contextmanager
def damaged(path, place, data):
    """A file with other bytes at a place, written into it, for a while."""
    whole = path.read_bytes()
    changed = bytearray(whole)
    place %= len(whole)
    changed[place : place + len(data)] = data
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(whole)


@dataclass
class Served:
    """A service that runs, and a client of it."""

    script: Script
    folder: Path
    client: httpx.Client

    @property
    def process(self):
        return psutil.Process(self.script.pid)

    def predict(self, image=RED, **words):
        return self.client.post("/predict", content=image, **words)

    def health(self):
        return self.client.get("/health").json()

    def metrics(self):
        return self.client.get("/metrics").json()

    def connect(self, *pieces):
        """A connection that has sent something."""
        url = self.client.base_url
        connection = socket.create_connection((url.host, url.port), timeout=MAX_WAIT_S)
        for piece in pieces:
            connection.sendall(piece)
        return connection

    @contextmanager
    def paused(self, store=None):
        """Stopped at a moment when it holds no lock on ``store``, a SQLite file, if one is given."""
        self.script.pause()
        while store and is_locked(store):
            self.script.go_on()
            sleep(0.05)
            self.script.pause()
        try:
            yield
        finally:
            self.script.go_on()


def is_locked(store):
    with closing(sqlite3.connect(store, timeout=0.2, isolation_level=None)) as database:
        try:
            database.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return True
    return False


def head(path, length, method="POST", more=""):
    return f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n{more}\r\n".encode()


def answer_of(connection):
    """Status, headers and body of an answer that ends with its connection."""
    with connection, connection.makefile("rb") as file:
        first, _, body = file.read().partition(b"\r\n\r\n")
    line, *headers = first.decode().split("\r\n")
    return int(line.split()[1]), httpx.Headers([header.split(": ", 1) for header in headers]), body


def is_up_to_date(health):
    """Whether what the registry says is served; alerts may stand all the same."""
    return bool(health["ready"]) and health["components"]["registry"]["status"] == "ok"


def probabilities(response):
    assert response.status_code == 200, response.text
    return {one["label"]: one["probability"] for one in response.json()["top_k"]}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("behaviours")


@pytest.fixture(scope="module")
def registered(scratch, log_colour_run):
    with chdir(scratch):
        return Registered(scratch, log_colour_run)


@pytest.fixture(scope="module")
def forked(scratch):
    with forks(scratch) as forked:
        yield forked


@contextmanager
def serving(forked, folder, uri):
    """A process that serves in a folder."""
    options = {"port": 0, "tracking-uri": uri, "engine": "torch", **LIMITS, **TIMES}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    script = forked.start("serve_model.py", *words, folder=folder)
    url = re.findall(r"on (http://\S+)", script.wait_for("serving"))[0]
    with httpx.Client(base_url=url, timeout=MAX_WAIT_S, trust_env=False) as client:
        yield Served(script, folder, client)
    psutil.Process(script.pid).send_signal(signal.SIGTERM)
    ended = script.end()
    assert ended.status == 0
    assert "Traceback" not in ended.err


@pytest.fixture(scope="module")
def served(forked, scratch, registered):
    folder = scratch / "served"
    folder.mkdir()
    with serving(forked, folder, registered.uri) as served:
        wait_until(lambda: is_up_to_date(served.health()))
        yield served


def test_a_body_over_the_limit_is_not_buffered(served):
    assert answer_of(served.connect(head("/predict", 2**40)))[0] == 413  # without a byte of it
    before = served.process.memory_info().rss
    chunks = (b"%x\r\n%s\r\n" % (MEBIBYTE, bytes(MEBIBYTE))) * 256
    start = b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with served.connect(start) as endless, pytest.raises(ConnectionError):
        endless.sendall(chunks)
    assert served.process.memory_info().rss - before < 32 * MEBIBYTE
    assert served.predict().status_code == 200


# Clients


def requests(served):
    return served.metrics()["requests"].get("/predict", {})


def test_a_thousand_disconnects_leak_nothing(served):
    cut = head("/predict", len(RED)) + RED[:40]
    whole = head("/predict", len(RED)) + RED
    before = requests(served)

    def counted():
        return sum(requests(served).values()) - sum(before.values())

    def crowds(first, last):
        """Clients number ``first`` to ``last``, twenty at a time."""
        for number in range(first, last, 20):
            for _ in range(18):
                served.connect(cut).close()
            with served.paused():  # so that it sees the image and the disconnect at once
                for _ in range(2):
                    served.connect(whole).close()
            wait_until(lambda end=number + 20: counted() == end)

    crowds(0, 100)
    files, memory = served.process.num_fds(), served.process.memory_info().rss
    crowds(100, 1000)
    wait_until(lambda: served.process.num_fds() <= files)
    wait_until(lambda: served.health()["queue"] == {"depth": 0, "threads": 1, "free_slots": 5})
    after = requests(served)
    assert after["499"] - before.get("499", 0) >= 900
    assert {status for status in after if after[status] > before.get(status, 0)} <= {"499", "200", "503"}
    assert served.process.memory_info().rss - memory < 8 * MEBIBYTE
    assert probabilities(served.predict()) == probabilities(served.predict())


# Versions, the registry and the monitor


@pytest.mark.parametrize("damage", [Registered.altered, Registered.of_another_digest])
def test_a_broken_version_leaves_the_previous_one_serving(served, registered, damage):
    with ExitStack() as broken:
        with served.paused(registered.file):
            registered.promote("other")
            broken.enter_context(damage(registered, "other"))
        wait_until(lambda: "cannot be loaded" in (served.health()["reason"] or ""))  # not being tried again just now
        health = served.health()
        assert (health["status"], health["ready"]) == ("degraded", True)
        assert health["registry"]["load_failure"]["version"] == registered.versions["other"]
        assert health["reason"].startswith(f"version {registered.versions['other']} cannot be loaded: ")
        assert served.predict().json()["model"]["version"] == registered.versions["good"]
        assert served.client.get("/readyz").status_code == 200
        registered.promote("good")
    wait_until(lambda: is_up_to_date(served.health()))
    assert served.metrics()["model_changes"] == 1


def test_a_registry_outage_changes_no_prediction(served, registered):
    wanted = probabilities(served.predict())
    with damaged(registered.file, 0, bytes(100)):
        health = wait_until(lambda: (now := served.health())["status"] == "degraded" and now)
        assert (health["ready"], health["registry"]["reachable"]) == (True, False)
        assert health["registry"]["unreachable_since"] <= health["registry"]["last_poll"]
        for _ in range(20):
            assert probabilities(served.predict()) == wanted
    wait_until(lambda: is_up_to_date(served.health()))


@pytest.mark.parametrize("copies", [True, False])
def test_a_start_without_the_registry(served, forked, registered, tmp_path, copies):
    store = tmp_path / "mlflow.db"
    store.write_bytes(b"This was a database once." * 1000)
    if copies:
        copytree(served.folder / "served_models", tmp_path / "served_models")
    with serving(forked, tmp_path, f"sqlite:///{store}") as alone:
        polled = wait_until(lambda: alone.health()["registry"]["last_poll"])
        wait_until(lambda: alone.health()["registry"]["last_poll"] > polled)  # it keeps trying
        health = alone.health()
        assert (health["ready"], health["registry"]["reachable"]) == (copies, False)
        assert alone.client.get("/livez").status_code == 200
        if copies:
            assert (health["status"], health["registry"]["source"]) == ("degraded", "last good copy")
            assert probabilities(alone.predict()) == probabilities(served.predict())
            assert alone.predict().json()["model"]["version"] == registered.versions["good"]
        else:
            assert health["status"] == "waiting"
            assert list(tmp_path.glob("monitoring*")) == []  # nothing was predicted, so nothing is kept
            assert int(alone.predict().headers["Retry-After"]) >= 1
        store.write_bytes(registered.file.read_bytes())
        wait_until(lambda: alone.health()["status"] == "ok")
        assert alone.predict().json()["predicted_class"] == "red"


def test_a_full_disk_loses_no_prediction(served):
    def kept():
        return served.health()["monitor"]

    served.predict()
    wait_until(lambda: kept()["written"] and not kept()["queued"])
    wanted = probabilities(served.predict())
    wait_until(lambda: not kept()["queued"])
    before = kept()
    limits = resource.prlimit(served.script.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(served.script.pid, resource.RLIMIT_FSIZE, (1, limits[1]))  # no file takes a byte more
    try:
        for _ in range(20):
            assert probabilities(served.predict()) == wanted
        wait_until(lambda: kept()["write_errors"] > before["write_errors"])
        assert kept()["queued"] == 20  # kept, to be tried again
        assert served.health()["ready"]
    finally:
        resource.prlimit(served.script.pid, resource.RLIMIT_FSIZE, limits)
    for _ in range(5):
        served.predict()
    wait_until(lambda: kept()["written"] == before["written"] + 25)  # the disk has space again
    assert kept()["lost"] == before["lost"]
