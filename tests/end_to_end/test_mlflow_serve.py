"""A bundle without this project: MLflow's own server and MLflow's own loader answer as the bundle does."""

import os
import signal
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import httpx
import numpy as np
import pytest

from model_registry import ModelRegistry
from support import MAX_WAIT_S
from support.colours import COLOURS, colour_pixels
from support.servers import free_port, wait_until_answers
from toolkit.tracking.connection import connect, mlflow

SIZE = 16


@pytest.fixture(scope="module")
def uri(tmp_path_factory, log_colour_run):
    """A store with the colour model in Production."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    with chdir(folder):  # where MLflow puts the artifacts of a database
        log_colour_run(connect(uri))
    registry = ModelRegistry(uri, "colours")
    registry.transition_model_stage(registry.register_best_model("training", "best_val_accuracy"), "Production")
    return uri


@pytest.fixture(scope="module")
def bundle(uri):
    return ModelRegistry(uri, "colours").load("Production").bundle


@pytest.fixture(scope="module")
def server(uri, tmp_path_factory):
    """``mlflow models serve`` on the folder in which the store keeps the model."""
    folder = connect(uri).get_model_version_download_uri("colours", "1").removeprefix("file://")
    assert (Path(folder) / "MLmodel").is_file()
    port = free_port()
    words = ["-m", "mlflow", "models", "serve", "-m", folder, "--env-manager", "local"]
    process = subprocess.Popen(
        [sys.executable, *words, "--host", "127.0.0.1", "-p", str(port)],
        cwd=tmp_path_factory.mktemp("server"),
        start_new_session=True,  # it starts uvicorn, by the name that a shell finds it under
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_DEFAULT_PREDICTION_DEVICE": "cpu",  # a pt2 program stays where it was exported
        },
    )
    try:
        wait_until_answers(f"http://127.0.0.1:{port}/ping", process)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=MAX_WAIT_S) as client:
            yield client
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def images(count):
    """uint8 (N, H, W, 3), of each colour in turn."""
    generator = np.random.default_rng(count)
    return np.stack([colour_pixels(COLOURS[number % 3], SIZE, generator) for number in range(count)])


@pytest.mark.parametrize("count", [1, 3])
def test_mlflows_server_answers_as_the_bundle(server, bundle, count):
    batch = images(count)
    answer = server.post("/invocations", json={"inputs": batch.tolist()})
    assert answer.status_code == 200, answer.text
    probabilities = np.array(answer.json()["predictions"])
    assert probabilities == pytest.approx(bundle.predict(batch), abs=1e-6)
    assert probabilities.argmax(axis=1).tolist() == list(range(count))


@pytest.mark.parametrize(
    "inputs",
    [
        images(1)[:, :8].tolist(),
        images(1)[0].tolist(),
        images(1)[..., :1].tolist(),
        [],
        "an image",
    ],
    ids=["too low", "no batch", "grey", "nothing", "text"],
)
def test_what_the_signature_does_not_allow_is_an_error_and_no_crash(server, inputs):
    answer = server.post("/invocations", json={"inputs": inputs})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error_code"]
    assert server.post("/invocations", json={"inputs": images(3).tolist()}).status_code == 200


@pytest.mark.parametrize("address", ["models:/colours@production", "models:/colours/1"])
def test_mlflows_loader_finds_it_in_the_registry(uri, bundle, monkeypatch, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_DEFAULT_PREDICTION_DEVICE", "cpu")
    model = mlflow.pyfunc.load_model(address)
    batch = images(3)
    assert np.asarray(model.predict(batch)) == pytest.approx(bundle.predict(batch), abs=1e-6)
