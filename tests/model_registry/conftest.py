"""A registry on a real database or server, with a model of its own for each test."""

import itertools
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import model_registry
from model_registry import ModelRegistry
from support.servers import empty_store
from toolkit.tracking.connection import MlflowException, connect

NUMBERS = itertools.count()


class RegisteredModel(ModelRegistry):
    """A registry of its own model and its own experiment, in a store that tests share."""

    def __init__(self, uri, log):
        self.uri, self.name = uri, f"model-{next(NUMBERS)}"
        super().__init__(uri, self.name)
        self.client, self._log = connect(uri), log

    def log(self, accuracy, **more):
        """Log a study with a bundle."""
        metrics = {"mean_cv_accuracy": accuracy, "val_loss": 1 - accuracy}
        return self._log(self.client, self.name, **{"role": "study", "metrics": metrics, **more})

    def register(self, accuracy, **more):
        self.log(accuracy, **more)
        return self.register_best_model(self.name)

    def promote(self, accuracy, **more):
        """Register a study's model and put it into Production."""
        return self.transition_model_stage(self.register(accuracy, **more), "Production")

    def files(self, run_id):
        """Where the store keeps a run's bundle."""
        model_id = self.client.get_run(run_id).outputs.model_outputs[0].model_id
        return Path(self.client.get_logged_model(model_id).artifact_location)

    def alter(self, run_id, name):
        """Flip a byte of a file in a run's bundle."""
        path = self.files(run_id) / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def register_by_mlflow(self, run_id):
        """Register a run's model as MLflow's own pages do, and put the alias on it."""
        model_id = self.client.get_run(run_id).outputs.model_outputs[0].model_id
        with suppress(MlflowException):
            self.client.create_registered_model(self.name)
        source = f"models:/{model_id}" if self.uri.startswith("http") else f"runs:/{run_id}/model"
        version = self.client.create_model_version(self.name, source, run_id=run_id, model_id=model_id)
        self.client.set_registered_model_alias(self.name, "production", version.version)
        return int(version.version)

    def stages(self):
        return {version.version: version.stage for version in self.list_versions()}

    def cli(self, monkeypatch, *words):
        arguments = ["model_registry.py", "--tracking-uri", self.uri, "--model-name", self.name, *words]
        monkeypatch.setattr(sys, "argv", arguments)
        model_registry.main()


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    (folder / "mlflow.db").write_bytes(empty_store())
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def registered(database, log_colour_run):
    return RegisteredModel(database, log_colour_run)


@pytest.fixture
def alone(tmp_path, log_colour_run):
    """A registry in a store of its own."""
    (tmp_path / "own.db").write_bytes(empty_store())
    return RegisteredModel(f"sqlite:///{tmp_path}/own.db", log_colour_run)


@pytest.fixture(params=["database", "server"])
def any_registered(request, log_colour_run):
    return RegisteredModel(
        request.getfixturevalue("mlflow_server" if request.param == "server" else "database"), log_colour_run
    )


@pytest.fixture(autouse=True)
def no_handler_is_left():
    yield
    model_registry.log.handlers.clear()
