"""A folder, a store and a finished training that the tests of train_cnn share."""

import os
import signal
import sys
from contextlib import ExitStack, chdir, contextmanager

import pytest
import torch

import toolkit.cli.settings
from support.forked_processes import Ended, forks
from support.training_runs import STORY, Place, fill
from toolkit.tracking.connection import connect
from train_cnn import main


@contextmanager
def one_core():
    """Tiny networks are slower on several cores than on one; scripts inherit this."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with ExitStack() as after:
        after.callback(torch.set_num_threads, threads)
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})
            after.callback(os.sched_setaffinity, 0, cores)
        yield


@pytest.fixture(scope="module", autouse=True)
def on_one_core():
    with one_core():
        yield


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    uri = f"sqlite:///{folder}/mlflow.db"
    with chdir(folder):
        connect(uri)
    fill(folder / "colours")
    return Place(folder, uri)


@pytest.fixture(scope="session")
def forked(tmp_path_factory):
    with ExitStack() as after:
        with one_core():
            started = after.enter_context(forks(tmp_path_factory.mktemp("output")))
        yield started


@pytest.fixture
def store(place, monkeypatch):
    """The same store for trainings inside this process."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    threads = torch.get_num_threads()
    yield place
    torch.set_num_threads(threads)


@pytest.fixture
def command_line(monkeypatch, capsys):
    """A function that runs the script's ``main`` as the guard at its end does, in this process."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["train_cnn.py", *words])
        with pytest.raises(SystemExit) as caught:
            toolkit.cli.settings.run_script(main)
        out, err = capsys.readouterr()
        return Ended(out, err, caught.value.code)

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def whole(place, forked):
    """An uninterrupted training, with which the others are compared."""
    *words, _, dropout = STORY
    variables = {**place.variables, "TRAIN_DROPOUT": dropout}
    return forked.start(
        "train_cnn.py", *words, "--experiment-name", "my training", folder=place.folder, **variables
    ).end()
