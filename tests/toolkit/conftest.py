"""MLflow stores that several test files share."""

import pytest

from support.servers import empty_store
from toolkit.tracking.connection import connect


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """A store in a database file."""
    store = tmp_path_factory.mktemp("database") / "mlflow.db"
    store.write_bytes(empty_store())
    return connect(f"sqlite:///{store}")


@pytest.fixture(params=["database", "server"])
def store(request):
    """A store in a database file, and one behind a server."""
    if request.param == "server":
        return connect(request.getfixturevalue("mlflow_server"))
    return request.getfixturevalue("database")
