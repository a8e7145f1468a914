"""Fixtures of the tests of the store: a store of each kind, and predictions to put into it."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from support.servers import free_port
from toolkit.monitoring.store.predictions import LoggedPrediction, PredictionStore


@pytest.fixture
def prediction():
    """A function that makes a prediction of two classes, its id and its time the same number."""

    def make(number, model, first=0.75, **more):
        values = {"time": float(number), "probabilities": np.array([first, 1 - first], np.float16)}
        return LoggedPrediction(number, model=model, **{**values, **more})

    return make


@pytest.fixture(scope="session")
def postgres():
    """The address of an empty database on a real PostgreSQL server."""
    if not (shutil.which("initdb") and shutil.which("pg_ctl")):
        pytest.skip("initdb and pg_ctl of PostgreSQL are not on PATH")
    if importlib.util.find_spec("pg8000") is None:
        pytest.skip("pg8000 is not installed: requirements-postgres.txt")
    folder = Path(tempfile.mkdtemp())  # of another owner than root, see below
    user = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        try:
            shutil.chown(folder, "postgres")
        except LookupError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        user = {"user": "postgres", "extra_groups": []}

    def run(*words):
        subprocess.run(words, check=True, cwd=folder, stdout=subprocess.DEVNULL, **user)

    port = free_port()
    data = str(folder / "data")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    try:
        run("initdb", "-D", data, "-A", "trust", "-U", "test", "--no-sync", "-E", "UTF8", "--locale=C")
        run("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
        yield f"postgresql://test@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(["pg_ctl", "-D", data, "-m", "immediate", "stop"], check=False, capture_output=True, **user)
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request, tmp_path):
    """Where a store may be begun: a file, and an empty database on a server."""
    if request.param == "sqlite":
        return str(tmp_path / "m.db")
    url = request.getfixturevalue("postgres")
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+pg8000:"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()
    return url


@pytest.fixture
def store(address):
    """A store of each kind, in which nothing was written yet."""
    store = PredictionStore(address)
    yield store
    store.close()


@pytest.fixture
def file_store(tmp_path):
    """A store in a file, in which nothing was written yet."""
    store = PredictionStore(str(tmp_path / "m.db"))
    yield store
    store.close()
