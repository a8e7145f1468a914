"""Versions with their bundles: fetched, verified, loaded, and measured beside each other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from toolkit.bundle import Bundle, load_bundle, shelve_bundle, verify_bundle
from toolkit.errors import BundleError
from toolkit.registry.comparison import Candidate
from toolkit.registry.fetching import cached, fetched
from toolkit.registry.latency import latencies
from toolkit.registry.pictures import answers_of, read_labelled
from toolkit.registry.versions import MISSING, Version
from toolkit.tracking import MlflowClient, MlflowException, promptly


@dataclass(frozen=True)
class LoadedModel:
    """A version with its bundle, verified and ready to predict; ``size`` in bytes, on disk."""

    version: Version
    bundle: Bundle
    size: int


def load(client: MlflowClient, version: Version, cache: Path | None = None) -> LoadedModel:
    """Fetch a version's bundle and check it against the version's digest; load it, from a cache when it is run."""
    with _blaming(version), cached(client, _location(client, version), version.digest, cache) as folder:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        read = shelve_bundle if cache and version.digest else load_bundle
        return LoadedModel(version, read(folder, version.digest), size)


def verify(client: MlflowClient, version: Version) -> None:
    """Fetch a version's bundle and check it, without running it."""
    with _blaming(version), fetched(client, _location(client, version)) as folder:
        verify_bundle(folder, version.digest)


def measured(models: Sequence[LoadedModel], data: Path | None) -> list[Candidate]:
    """Versions with what they are compared by, all measured in the same way.

    Parameters
    ----------
    models
        Which.
    data
        A folder of labelled pictures that all of them are run on; None leaves what each did on the
        pictures that it held out.
    """
    bundles = [model.bundle for model in models]
    baselines = answers_of(bundles, read_labelled(data)) if data else [bundle.baseline for bundle in bundles]
    return [
        Candidate(model.version, model.bundle.card, baseline, model.size, latency)
        for model, baseline, latency in zip(models, baselines, latencies(bundles), strict=True)
    ]


def model_location(client: MlflowClient, model_id: str) -> str:
    """Where the files of one of MLflow's logged models are."""
    with promptly(f"find the model {model_id}"):
        try:
            return str(client.get_logged_model(model_id).artifact_location)
        except MlflowException as error:
            if error.error_code != MISSING:
                raise
            raise BundleError(f"its model {model_id} was deleted") from None


def _location(client: MlflowClient, version: Version) -> str:
    with promptly(f"find the files of v{version.version}"):
        return str(client.get_model_version_download_uri(version.name, str(version.version)))


@contextmanager
def _blaming(version: Version) -> Iterator[None]:
    """Name the version that an error of its bundle is about."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"v{version.version} of {version.name} cannot be used: {error}") from None
