"""Registered models, and a service that the tests of a file share."""

from contextlib import chdir

import pytest
import torch

from support.colours import ColourNetwork
from support.running_service import RegisteredModel, serving
from support.servers import empty_store
from support.webhook_receiver import Receiver
from toolkit.tracking.connection import connect


class NaNForRedNetwork(ColourNetwork):
    """The colour model, but NaN for what is far more red than anything in its baseline."""

    def forward(self, images):
        spoiled = (images[:, :1].mean(dim=(2, 3)) - images[:, 1:2].mean(dim=(2, 3))) > 3.5
        return torch.where(spoiled, torch.nan, super().forward(images))


@pytest.fixture(scope="session")
def uri(tmp_path_factory, log_colour_run):
    """A store with three studies: ``plain``, ``unsure`` with low confidence, ``nan_for_red`` with NaN for red."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "mlflow.db").write_bytes(empty_store())
    uri = f"sqlite:///{folder}/mlflow.db"
    with chdir(folder):
        client = connect(uri)
        for experiment, strength in (("plain", 8.0), ("unsure", 0.2)):
            log_colour_run(client, experiment, role="study", strength=strength)
        log_colour_run(client, "nan_for_red", role="study", network=NaNForRedNetwork())
    return uri


@pytest.fixture
def registered(uri):
    return RegisteredModel(uri)


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def served(uri, tmp_path_factory):
    """A service that all tests share: version 1, ``plain``, and no keys."""
    registered = RegisteredModel(uri)
    registered.promote("plain")
    with serving(registered, tmp_path_factory.mktemp("served")) as served:
        yield served
