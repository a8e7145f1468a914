"""Bundles on their way from a real store: whole, kept, missing, broken off."""

import itertools
import shutil
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from support.http_server import fake_server
from support.servers import free_port
from toolkit.bundle.files import DIGEST_TAG, PROGRAM, digest_of, verify_bundle
from toolkit.errors import BundleError, TrackingError
from toolkit.registry import bundles
from toolkit.registry.bundles import download, download_cached
from toolkit.tracking.connection import MlflowClient, connect

NUMBERS = itertools.count()
CACHE = Path("kept", "bundles")


def log_bundle(client, log, **more):
    """A client, where a bundle is, and its digest."""
    run = client.get_run(log(client, f"fetching {next(NUMBERS)}", **more))
    model = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    return client, model.artifact_location, run.data.tags[DIGEST_TAG]


@pytest.fixture
def logged(store, log_colour_run):
    return log_bundle(store, log_colour_run)


def forget(client, location, name=""):
    """Delete the files behind an artifact location, or one of them."""
    if location.startswith("mlflow-artifacts:"):
        get_artifact_repository(location, tracking_uri=client.tracking_uri).delete_artifacts(name)
    elif name:
        Path(location.removeprefix("file://"), name).unlink()
    else:
        shutil.rmtree(location.removeprefix("file://"))


@contextmanager
def relay(server, spoil):
    """The address of something between us and a server, which spoils the program of a bundle on its way."""

    def answer(handler):
        with urllib.request.urlopen(server + handler.path) as found:
            content = found.read()
        (spoil if handler.path.endswith(PROGRAM) else pass_on)(handler, content)

    with fake_server(answer) as (url, _):
        yield url


def pass_on(handler, content, status=200, length=None):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(content) if length is None else length))
    handler.end_headers()
    handler.wfile.write(content)


def fetch(client, location, digest):
    """A bundle by way of the cache."""
    with download_cached(client, location, digest, CACHE) as folder:
        return folder


def test_a_downloaded_copy_is_intact_and_removed_afterwards(logged):
    client, location, digest = logged
    with download(client, location) as folder:
        assert digest_of(folder) == digest
    assert folder.exists() == (not location.startswith("mlflow-artifacts:"))


def test_the_cache_replaces_the_store_and_detects_alterations(logged):
    client, location, digest = logged
    folder = fetch(client, location, digest)
    assert folder == CACHE / digest
    assert digest_of(folder) == digest
    (folder / PROGRAM).write_bytes(b"altered")
    assert digest_of(fetch(client, location, digest)) == digest
    forget(client, location)
    assert digest_of(fetch(client, location, digest)) == digest
    assert list(folder.parent.iterdir()) == [folder]


def test_a_bundle_with_another_digest_is_not_cached(logged):
    client, location, _ = logged
    with pytest.raises(BundleError, match="altered"):
        fetch(client, location, "0" * 64)
    assert list(CACHE.iterdir()) == []


def test_a_missing_bundle_differs_from_an_unreachable_store(logged):
    client, location, digest = logged
    forget(client, location, PROGRAM)
    with download(client, location) as folder, pytest.raises(BundleError, match=f"^the bundle has no {PROGRAM}$"):
        verify_bundle(folder, digest)
    forget(client, location)
    with pytest.raises(BundleError) as caught, download(client, location):
        pass
    assert str(caught.value) == f"the bundle is gone: nothing is at {location}"
    unreachable = MlflowClient(f"http://127.0.0.1:{free_port()}")
    location = "mlflow-artifacts:/1/models/m-1/artifacts"
    with pytest.raises(TrackingError) as caught, download(unreachable, location):
        pass
    assert str(caught.value) == f"cannot fetch the bundle from {location}: connection refused"


@pytest.fixture(scope="module")
def kept(mlflow_server, log_colour_run, tmp_path_factory):
    """A bundle on a server that no test alters."""
    return log_bundle(connect(mlflow_server), log_colour_run, folder=tmp_path_factory.mktemp("kept"))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda handler, content: pass_on(handler, content[:-9], length=len(content)), "the connection broke off"),
        (lambda handler, content: pass_on(handler, b"", 503), "the server answers with status 503"),
        (lambda handler, content: pass_on(handler, b"Permission denied", 403), "no permission"),
        (lambda handler, content: handler.rfile.read(1), "no answer in time"),  # until the caller gives up
    ],
    ids=["dies", "fails", "refuses", "hangs"],
)
def test_a_failing_download_is_a_tracking_error(kept, spoil, reason, monkeypatch):
    monkeypatch.setattr(bundles, "FILE_SECONDS", 2)
    client, location, digest = kept
    with relay(client.tracking_uri, spoil) as url:
        with pytest.raises(TrackingError) as caught:
            fetch(MlflowClient(url), location, digest)
        assert str(caught.value) == f"cannot fetch the bundle from {location}: {reason}"
    assert list(CACHE.iterdir()) == []


def test_half_a_file_is_detected(kept):
    client, location, digest = kept
    with relay(client.tracking_uri, lambda handler, content: pass_on(handler, content[: len(content) // 2])) as url:
        with download(MlflowClient(url), location) as folder, pytest.raises(BundleError, match="altered"):
            verify_bundle(folder, digest)
        with pytest.raises(BundleError, match="altered"):
            fetch(MlflowClient(url), location, digest)
    assert list(CACHE.iterdir()) == []
    assert verify_bundle(fetch(client, location, digest), digest)
