"""Bundles on their way from a real store: whole, kept, missing."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support import free_port
from toolkit.bundle import DIGEST_TAG, PROGRAM, digest_of
from toolkit.errors import BundleError, TrackingError
from toolkit.registry.fetching import cached, fetched
from toolkit.tracking import MlflowClient, connect

NUMBERS = itertools.count()
Logged = tuple[MlflowClient, str, str]


@pytest.fixture(params=["database", "server"])
def logged(request: pytest.FixtureRequest, log_colour_run: Callable[..., str]) -> Logged:
    """A client, where a bundle is, and its digest."""
    client = connect(request.getfixturevalue("mlflow_server") if request.param == "server" else "sqlite:///mlflow.db")
    run = client.get_run(log_colour_run(client, f"fetching {next(NUMBERS)}"))
    model = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    return client, model.artifact_location, run.data.tags[DIGEST_TAG]


def forget(client: MlflowClient, location: str) -> None:
    """Delete the files behind an artifact location."""
    if location.startswith("mlflow-artifacts:"):
        with fetched(client, location):
            pass
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        get_artifact_repository(location, tracking_uri=client.tracking_uri).delete_artifacts()
    else:
        shutil.rmtree(location.removeprefix("file://"))


def test_a_fetched_bundle_is_whole_and_a_copy_is_gone_afterwards(logged: Logged) -> None:
    client, location, digest = logged
    with fetched(client, location) as folder:
        assert digest_of(folder) == digest
    assert folder.exists() == (not location.startswith("mlflow-artifacts:"))


def test_what_is_cached_needs_no_store_and_what_was_altered_there_is_fetched_anew(logged: Logged) -> None:
    client, location, digest = logged
    cache = Path("kept") / "bundles"
    with cached(client, location, digest, cache) as folder:
        assert folder == cache / digest
        assert digest_of(folder) == digest
    (folder / PROGRAM).write_bytes(b"altered")
    with cached(client, location, digest, cache) as folder:
        assert digest_of(folder) == digest
    forget(client, location)
    with cached(client, location, digest, cache) as folder:
        assert digest_of(folder) == digest
    assert [path.name for path in cache.iterdir()] == [digest]


def test_what_does_not_have_the_digest_is_not_kept(logged: Logged) -> None:
    client, location, _ = logged
    with pytest.raises(BundleError, match="altered"), cached(client, location, "0" * 64, Path("cache")):
        pass
    assert list(Path("cache").iterdir()) == []


def test_a_missing_bundle_is_told_from_a_store_that_does_not_answer(logged: Logged) -> None:
    client, location, _ = logged
    forget(client, location)
    with pytest.raises(BundleError, match="the bundle cannot be fetched from "), fetched(client, location):
        pass
    nobody = MlflowClient(f"http://127.0.0.1:{free_port()}")
    location = "mlflow-artifacts:/1/models/m-1/artifacts"
    with pytest.raises(TrackingError, match="cannot fetch the bundle from "), fetched(nobody, location):
        pass
