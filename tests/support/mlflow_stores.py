"""What tests do with MLflow stores: start a run, find the file, take the time."""

import itertools
from pathlib import Path

from toolkit.tracking.run import Run

NUMBERS = itertools.count()


def start_run(client, **more):
    """A run in an experiment of its own."""
    return Run(client, f"experiment {next(NUMBERS)}", **{"role": "final", "name": "a run", **more})


def file_of(client):
    """The file of a store in a database."""
    return Path(client.tracking_uri.removeprefix("sqlite:///").partition("?")[0])


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self):
        return self.now
