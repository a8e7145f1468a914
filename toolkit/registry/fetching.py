"""Bringing a bundle from where MLflow keeps it to a folder on this machine."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlparse

from toolkit.bundle import verify_bundle
from toolkit.errors import BundleError, TrackingError
from toolkit.tracking import MlflowClient, impatient, mlflow, reason_of

FILE_SECONDS = 30  # until the first bytes of a file, which a server may have to fetch from elsewhere itself


@contextmanager
def fetched(client: MlflowClient, location: str) -> Iterator[Path]:
    """The bundle at an artifact location as a folder, which is gone afterwards when it was a copy.

    Files that lie on this machine already are used where they are.

    Raises
    ------
    BundleError
        The store says that nothing is there.
    TrackingError
        The store does not answer, breaks off or refuses, so nothing can be said about the bundle.
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
        with impatient():
            found = mlflow.artifacts.list_artifacts(artifact_uri=location, tracking_uri=client.tracking_uri)
        if found:
            with impatient(FILE_SECONDS):
                folder = mlflow.artifacts.download_artifacts(
                    artifact_uri=location, dst_path=str(target) if target else None, tracking_uri=client.tracking_uri
                )
            return Path(folder)
    except Exception as error:  # noqa: BLE001  each kind of artifact store raises kinds of its own
        raise TrackingError(f"cannot fetch the bundle from {location}: {reason_of(error)}") from None
    raise BundleError(f"the bundle is gone: nothing is at {location}")
