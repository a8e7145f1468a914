"""Fixtures that all tests share: a folder of their own, real MLflow stores, runs with real bundles."""

import os
import signal
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy
from hypothesis import HealthCheck, settings

from support import ROOT
from support.colours import COLOURS, ColourNetwork, colour_baseline, colour_card, colour_image
from support.servers import MlflowServer
from toolkit.bundle.files import DIGEST_TAG
from toolkit.bundle.program import Program, save_bundle
from toolkit.tracking.run import Run


def pytest_configure(config):
    """Each of several workers, and all that it starts, stays on a core of its own: their threads would only fight.

    What they start finds the project compiled, also where the environment asks Python to keep nothing of it.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell: it is inherited
        signal.signal(signal.SIGINT, signal.default_int_handler)
    patient = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    settings.register_profile("patient", settings(), **patient)  # a busy machine makes no example wrong
    settings.load_profile("patient")
    worker = getattr(config, "workerinput", {}).get("workerid")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_collection_modifyitems(items):
    """The longest files first, those of the parts last, so that no worker is left with a long one alone in the end."""
    longest = (
        "test_readme.py", "test_make.py", "test_pages.py", "test_interruption.py", "test_interruptions.py",
        "test_fuzz.py", "test_search.py", "test_cross_validation.py", "test_wheel.py", "test_process.py",
    )  # fmt: skip

    def place(item):
        name, of_a_part = item.path.name, "toolkit" in item.path.relative_to(ROOT).parts
        return of_a_part, longest.index(name) if name in longest else len(longest)

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test, and no script that one starts, touches the user's caches: of decoded images, of weights."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def hasty_stores():
    """SQLite stores do not wait for the disk: only a power cut would make a difference, and it saves minutes."""

    def hasty(connection, _):
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", hasty)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Each test works in an empty folder and sees none of the user's variables."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("TRAIN_", "TUNE_", "REGISTRY_", "MONITORING_", "SERVE_")):
            monkeypatch.delenv(name)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


@pytest.fixture
def colour_folder(tmp_path):
    """A folder of images, one sub-folder a class, 40 images each."""
    folder = tmp_path / "colours"
    for index, colour in enumerate(COLOURS):
        (folder / colour).mkdir(parents=True)
        for number in range(40):
            (folder / colour / f"{number}.png").write_bytes(colour_image(colour, seed=100 * index + number, size=32))
    return folder


@pytest.fixture(scope="session")
def log_colour_run():
    """A function that logs a finished run with a real bundle and gives the run's id."""

    def log(
        client,
        experiment="training",
        *,
        metrics=None,
        role="final",
        strength=8.0,
        lean=0.0,
        network=None,
        classes=COLOURS,
        held_out=slice(300),
        folder=None,
    ):
        with Run(client, experiment, role=role, name="colours") as run:
            program = Program(network or ColourNetwork(strength, lean))
            baseline = replace(colour_baseline(program, held_out=held_out), classes=classes)
            target = (folder or Path.cwd()) / f"bundle-{run.id}"
            model_id = run.new_model()
            card = colour_card(classes=classes, accuracy=baseline.accuracy)
            digest = save_bundle(target, program, card, baseline, run_id=run.id, model_id=model_id)
            run.model(target, model_id, {DIGEST_TAG: digest})
            run.metrics(metrics or {"best_val_accuracy": 0.9, "mean_cv_accuracy": 0.9})
        return run.id

    return log


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory):
    """The address of a real MLflow server with artifacts behind its proxy."""
    folder = tmp_path_factory.mktemp("mlflow")
    server = MlflowServer(folder, "--artifacts-destination", str(folder / "artifacts"))
    try:
        server.start()
        yield server.url
    finally:
        server.kill()
