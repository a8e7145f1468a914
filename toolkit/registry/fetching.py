"""Bringing a bundle from where MLflow keeps it to a folder on this machine."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlparse

from toolkit.bundle import verify_bundle
from toolkit.errors import BundleError, TrackingError, one_line
from toolkit.tracking import MlflowClient, mlflow

SERVER_FAULT = 500  # HTTP status codes from here on are the server's trouble, not the bundle's


@contextmanager
def fetched(client: MlflowClient, location: str) -> Iterator[Path]:
    """The bundle at an artifact location as a folder, which is gone afterwards when it was a copy.

    Files that lie on this machine already are used where they are.

    Raises
    ------
    BundleError
        Nothing is there.
    TrackingError
        The store does not answer, so nothing can be said about the bundle.
    """
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        yield _download(client, location, None if _is_local(location) else Path(scratch))


@contextmanager
def cached(client: MlflowClient, location: str, digest: str, cache: Path | None) -> Iterator[Path]:
    """As ``fetched``, from a folder of bundles by digest when there is one; what is altered there is fetched anew."""
    if cache is None or not digest:
        with fetched(client, location) as folder:
            yield folder
        return
    kept = cache / digest
    if kept.exists() and not _whole(kept, digest):
        shutil.rmtree(kept)
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with fetched(client, location) as folder, tempfile.TemporaryDirectory(dir=cache, prefix="incoming-") as scratch:
            verify_bundle(folder, digest)
            copy = shutil.copytree(folder, Path(scratch, digest))
            with suppress(OSError):  # another process was faster, and its copy is as good
                copy.rename(kept)
    yield kept


def _whole(folder: Path, digest: str) -> bool:
    try:
        verify_bundle(folder, digest)
    except BundleError:
        return False
    return True


def _is_local(location: str) -> bool:
    return urlparse(location).scheme in ("", "file")


def _download(client: MlflowClient, location: str, target: Path | None) -> Path:
    try:
        folder = mlflow.artifacts.download_artifacts(
            artifact_uri=location, dst_path=str(target) if target else None, tracking_uri=client.tracking_uri
        )
    except Exception as error:  # noqa: BLE001  each kind of artifact store raises kinds of its own
        if not _answers(client) or getattr(getattr(error, "response", None), "status_code", 0) >= SERVER_FAULT:
            raise TrackingError(f"cannot fetch the bundle from {location}: {one_line(error)}") from None
        raise BundleError(f"the bundle cannot be fetched from {location}: {one_line(error)}") from None
    return Path(folder)


def _answers(client: MlflowClient) -> bool:
    try:
        client.search_experiments(max_results=1)
    except Exception:  # noqa: BLE001  whatever it is, the store does not answer
        return False
    return True
