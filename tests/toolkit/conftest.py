"""MLflow stores that several test files share."""

import pytest

from toolkit.tracking.connection import connect


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """A store in a database file."""
    return connect(f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db")


@pytest.fixture(params=["database", "server"])
def store(request):
    """A store in a database file, and one behind a server."""
    if request.param == "server":
        return connect(request.getfixturevalue("mlflow_server"))
    return request.getfixturevalue("database")
