"""Tiny networks on one thread, and runs in a store of their own."""

from contextlib import chdir

import pytest
import torch

from toolkit.tracking.connection import connect
from toolkit.tracking.run import Run


@pytest.fixture(autouse=True)
def one_thread():
    """They are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    with chdir(folder):  # where MLflow then keeps files
        return connect(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture
def run(client):
    return Run(client, "training", role="final", name="kept")
