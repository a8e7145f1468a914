"""Servers as processes: a free port, the wait until one answers, and a real MLflow server."""

import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from functools import cache
from pathlib import Path

from support import MAX_WAIT_S
from toolkit.tracking.connection import connect

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without one, each new client of httpx reads certificates for 20 ms


def free_port():
    """A free port outside the range from which the system gives ports, so it stays free while no server uses it."""
    while True:
        port = 15_000 + secrets.randbelow(15_000)  # systems give out those from 32768 or 49152 on
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until_answers(url, process, seconds=MAX_WAIT_S):
    """Wait until a server answers at all, or say how it ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the server ended with status {process.returncode}")
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"{url} did not answer within {seconds} s")


@cache
def empty_store():
    """The file of a new SQLite store: to copy it takes no time, to have it made takes MLflow seconds."""
    with tempfile.TemporaryDirectory() as folder:
        connect(f"sqlite:///{folder}/mlflow.db")
        return Path(folder, "mlflow.db").read_bytes()


class MlflowServer:
    """A real MLflow server that can be killed, and started again at the same address with the same store."""

    def __init__(self, folder, *words, **variables):
        """``words`` are further options, ``variables`` its own; the store is ``mlflow.db`` in the folder."""
        self.folder, self.port, self._words, self._variables = folder, free_port(), words, variables
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self):
        if not (self.folder / "mlflow.db").exists():
            (self.folder / "mlflow.db").write_bytes(empty_store())
        words = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        words += ["--backend-store-uri", "sqlite:///mlflow.db", *self._words]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *words],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    **os.environ,
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes
                    **self._variables,
                },
            )
        wait_until_answers(f"{self.url}/health", self._process)

    @property
    def running(self):
        return self._process.poll() is None

    def kill(self):
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with suppress(OSError):
            while True:  # a process of the group may take a moment longer to be gone
                socket.create_connection(("127.0.0.1", self.port), 1).close()
