"""Source of models, such as the registry: what it gives, and what loading needs of it."""

from pathlib import Path
from typing import Protocol

from toolkit.bundle.program import Bundle


class ModelRelease(Protocol):
    """Attributes of a registered version that serving needs."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def stage(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def digest(self) -> str: ...


class Source(Protocol):
    """Source of models, such as the registry."""

    contradiction: str  # between the source's records of the version found last; empty if they agree

    def find(self) -> ModelRelease:
        """Return the version that should answer; cheap, as it is called at every poll."""

    def load(self, release: ModelRelease, cache: Path | None = None) -> Bundle:
        """Return the verified bundle of a release; its files stay in ``cache/<digest>`` if a cache is given."""


def release_key(release: ModelRelease) -> tuple[str, int, str]:
    """Identity of a release: two are the same if name, version and digest are."""
    return release.name, release.version, release.digest
