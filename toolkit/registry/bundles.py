"""Bundles of versions: download, verification, cache, loading."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from toolkit.bundle.files import DIGEST_TAG, verify_bundle
from toolkit.cli.script_commands import command_line
from toolkit.errors import BundleError, TrackingError
from toolkit.registry.versions import MISSING, Version
from toolkit.tracking.connection import (
    ANSWER_SECONDS,
    MlflowClient,
    MlflowException,
    mlflow,
    mlflow_call,
    short_timeouts,
)
from toolkit.tracking.errors import reason_of

if TYPE_CHECKING:  # with torch, seconds of import that only loading needs
    from toolkit.bundle.program import Bundle

FILE_SECONDS = 30  # until the first bytes of a file, which a server may have to fetch from elsewhere itself


@dataclass(frozen=True)
class LoadedModel:
    """A version with its bundle, verified and ready to predict; ``size`` in bytes, on disk."""

    version: Version
    bundle: "Bundle"
    size: int


def load_version(client: MlflowClient, version: Version, cache: Path | None = None) -> LoadedModel:
    """Download a version's bundle, check it against the version's digest, and load it.

    With a cache, a folder of bundles by digest, the program is read from there when it is first run. A
    ``BundleError`` names the version.
    """
    from toolkit.bundle.program import load_bundle, open_bundle_lazily

    location = version_location(client, version)
    with naming_version(version), download_cached(client, location, version.digest, cache) as folder:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        read = open_bundle_lazily if cache and version.digest else load_bundle
        return LoadedModel(version, read(folder, version.digest), size)


@contextmanager
def download(client: MlflowClient, location: str) -> Iterator[Path]:
    """The bundle at an artifact location as a folder; a downloaded copy is removed afterwards.

    Files on this machine are used in place. ``BundleError``: the store has no files at the location.
    """
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        local = urlparse(location).scheme in ("", "file")
        yield _download(client, location, None if local else scratch)


@contextmanager
def download_cached(client: MlflowClient, location: str, digest: str, cache: Path | None) -> Iterator[Path]:
    """``download`` through a cache of bundles by digest, in which altered ones are downloaded again."""
    if cache is None or not digest:
        with download(client, location) as folder:
            yield folder
        return
    kept = cache / digest
    if kept.exists() and not _is_intact(kept, digest):
        shutil.rmtree(kept)
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with (
            download(client, location) as folder,
            tempfile.TemporaryDirectory(dir=cache, prefix="incoming-") as scratch,
        ):
            verify_bundle(folder, digest)
            copy = shutil.copytree(folder, Path(scratch, digest))
            with suppress(OSError):  # another process was faster, and its copy is as good
                copy.rename(kept)
    yield kept


def verify(client: MlflowClient, version: Version) -> None:
    """Download a version's bundle and check it, without running it."""
    with naming_version(version), download(client, version_location(client, version)) as folder:
        verify_bundle(folder, version.digest)


def model_location(client: MlflowClient, model_id: str) -> str:
    """Location of the files of a logged model."""
    with mlflow_call(f"find the model {model_id}", timeout=ANSWER_SECONDS):
        try:
            return str(client.get_logged_model(model_id).artifact_location)
        except MlflowException as error:
            if error.error_code != MISSING:
                raise
            raise BundleError(f"its model {model_id} was deleted") from None


def version_location(client: MlflowClient, version: Version) -> str:
    """Location of the files of a version."""
    with mlflow_call(f"find the files of v{version.version}", timeout=ANSWER_SECONDS):
        location = str(client.get_model_version_download_uri(version.name, str(version.version)))
    if location.startswith(("models:/", "runs:/")) and version.model_id:  # left unresolved by the store
        return model_location(client, version.model_id)
    return location


@contextmanager
def naming_version(version: Version) -> Iterator[None]:
    """Add the version to an error about its bundle."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"v{version.version} of {version.name} cannot be used: {error}{_help(version)}") from None


def _help(version: Version) -> str:
    """Advice for a version that another tool registered."""
    if DIGEST_TAG in version.tags:
        return ""
    if version.digest and version.run_id:
        again = command_line("model_registry", f"register --run {version.run_id}")
        return f"; another tool registered it, and the run's own model is registered by: {again}"
    register = command_line("model_registry", "register")
    return f"; another tool registered it, and no training of this project made it: {register} takes one of these"


def _is_intact(folder: Path, digest: str) -> bool:
    try:
        verify_bundle(folder, digest)
    except BundleError:
        return False
    return True


def _download(client: MlflowClient, location: str, target: str | None) -> Path:
    try:
        with short_timeouts():
            found = mlflow.artifacts.list_artifacts(artifact_uri=location, tracking_uri=client.tracking_uri)
        if found:
            with short_timeouts(FILE_SECONDS):
                return Path(
                    mlflow.artifacts.download_artifacts(
                        artifact_uri=location, dst_path=target, tracking_uri=client.tracking_uri
                    )
                )
    except Exception as error:  # noqa: BLE001  each kind of artifact store raises kinds of its own
        raise TrackingError(f"cannot fetch the bundle from {location}: {reason_of(error)}") from None
    raise BundleError(f"the bundle is gone: nothing is at {location}")
