"""Versions with their bundles, verified and loaded."""

from dataclasses import dataclass
from pathlib import Path

from toolkit.bundle.program import Bundle, load_bundle, open_bundle_lazily
from toolkit.registry.bundles import download_cached, naming_version, version_location
from toolkit.registry.versions import Version
from toolkit.tracking.connection import MlflowClient


@dataclass(frozen=True)
class LoadedModel:
    """A version with its bundle, verified and ready to predict; ``size`` in bytes, on disk."""

    version: Version
    bundle: Bundle
    size: int


def load_version(client: MlflowClient, version: Version, cache: Path | None = None) -> LoadedModel:
    """Fetch a version's bundle and check it against the version's digest; load it, from a cache when it is run."""
    with (
        naming_version(version),
        download_cached(client, version_location(client, version), version.digest, cache) as folder,
    ):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        read = open_bundle_lazily if cache and version.digest else load_bundle
        return LoadedModel(version, read(folder, version.digest), size)
