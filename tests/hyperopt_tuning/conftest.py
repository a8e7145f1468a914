"""A folder and a store that the tests of hyperopt_tuning share."""

from contextlib import chdir

import pytest
import torch

import hyperopt_tuning
from support.colours import COLOURS, colour_image
from support.tuning_studies import QUICKEST, SPACE, Workspace
from toolkit.tracking.connection import connect


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    for index, colour in enumerate(COLOURS):
        (folder / "colours" / colour).mkdir(parents=True)
        for number in range(14):
            image = colour_image(colour, 100 * index + number, 20)
            (folder / "colours" / colour / f"{number}.png").write_bytes(image)
    (folder / "space.yaml").write_text(SPACE)
    uri = f"sqlite:///{folder}/mlflow.db"
    with chdir(folder):
        connect(uri)
    return Workspace(folder, uri)


@pytest.fixture
def quickest(place, monkeypatch, tmp_path):
    """The same store, studies of their own, and a space of tiny trainings behind ``--preset quick``."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    monkeypatch.setitem(hyperopt_tuning.PRESETS, "quick", QUICKEST)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield place
    torch.set_num_threads(threads)
