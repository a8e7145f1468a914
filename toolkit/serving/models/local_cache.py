"""The last versions that served, on the disk of this machine, for a start without the registry.

The registry leaves each bundle that it fetches in a folder of bundles by digest. One small file
beside them says which of them served, the last one first:

    served.json         [{"name", "version", "stage", "run_id", "digest"}, ...]
    <digest>/           a bundle, as the registry keeps it
"""

import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from toolkit.bundle.files import digest_of
from toolkit.bundle.program import Bundle, open_bundle_lazily
from toolkit.errors import BundleError, first_line
from toolkit.serving.models.manager import ModelRelease, Source
from toolkit.system.file_locks import try_lock

logger = logging.getLogger(__name__)

MAX_COPIES = 2  # the last one, and one more in case it is broken
INDEX_FILE = "served.json"
LOCK_TIMEOUT_S = 900.0  # that others wait for who fetches, notes or removes
ORPHAN_AGE_S = 3600.0  # that a copy stays which did not serve yet: another process may be about to
# Nothing else in the folder is ever removed: bundles, and what a kill left of one on its way.
INCOMING = "incoming-"
REMOVABLE = re.compile(rf"[0-9a-f]{{64}}|{INCOMING}\w+")


class CachedRelease(BaseModel):
    """A release that served, as it was noted then."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    name: str
    version: int
    stage: str
    run_id: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")  # it becomes the name of a folder that may be removed


INDEX_ADAPTER = TypeAdapter(tuple[CachedRelease, ...])


class LocalModelCache:
    """Copies of what served last; a disk that is full or may not be written to costs a warning and no more.

    Parameters
    ----------
    folder
        Where they are; of one service alone, since what another one keeps there would be removed. Its processes
        share them: one fetches while the others wait, and none removes what another one is fetching.
    name, stage
        What the service serves. Copies of other models, or from another stage, are not recalled.
    """

    def __init__(self, folder: Path, name: str, stage: str) -> None:
        self.folder = folder
        self._lock = folder.with_suffix(".lock")
        self._name = name
        self._stage = stage
        self._has_warned = False  # whether the last attempt to keep something failed, and was warned of

    def load(self, source: Source, release: ModelRelease) -> Bundle:
        """A release's bundle from its source, by way of the folder where that is possible."""
        try:
            with try_lock(self._lock, LOCK_TIMEOUT_S):
                bundle = source.load(release, self.folder)
                with suppress(OSError):
                    os.utime(self.folder / release.digest)  # it is wanted now, whenever it was fetched
                return bundle
        except OSError as error:  # of the disk: what is wrong with the registry has errors of its own
            self._warn(release, first_line(error))
            return source.load(release)

    def copy(self, source: Source, release: ModelRelease) -> None:
        """Leave a copy of a release that serves already, should there be none."""
        if not (self.folder / release.digest).is_dir():
            try:
                self.load(source, release)
            except Exception as error:  # noqa: BLE001  of any kind: it serves all the same
                self._warn(release, first_line(error))

    def mark_served(self, release: ModelRelease) -> None:
        """Note that a release serves, and remove all but the newest copies."""
        try:
            kept = CachedRelease.model_validate(release)
            if not self._copy(kept).is_dir():
                self._warn(release, "its source left none")
                return
            with try_lock(self._lock, LOCK_TIMEOUT_S):
                self._write_index(kept)
        except (OSError, ValidationError) as error:
            self._warn(release, first_line(error))
        else:
            self._has_warned = False

    def _write_index(self, kept: CachedRelease) -> None:
        noted = self._read_index()
        before = [other for other in noted if other.digest != kept.digest and self._copy(other).is_dir()]
        served = (kept, *before)[:MAX_COPIES]
        fresh = self.folder / f"{INDEX_FILE}.new"
        fresh.write_bytes(INDEX_ADAPTER.dump_json(served, indent=2))
        fresh.replace(self.folder / INDEX_FILE)
        self._remove_all_but({one.digest for one in served}, {one.digest for one in noted})

    def load_last_served(self) -> Iterator[tuple[CachedRelease, Bundle]]:
        """What served last, newest first, verified when its turn comes.

        A copy that cannot be used is passed over with a warning, and removed when it was altered.
        """
        for kept in self._read_index():
            try:
                yield kept, open_bundle_lazily(self._copy(kept), kept.digest)
            except BundleError as error:
                logger.warning("the copy of version %d is not used: %s", kept.version, error)
                self._remove_if_altered(kept)

    def _copy(self, kept: CachedRelease) -> Path:
        return self.folder / kept.digest

    def _read_index(self) -> list[CachedRelease]:
        """What is noted of the model and the stage, newest first."""
        try:
            noted = INDEX_ADAPTER.validate_json((self.folder / INDEX_FILE).read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValidationError) as error:
            logger.warning("the note of what served last cannot be read: %s", first_line(error))
            return []
        return [kept for kept in noted if (kept.name, kept.stage) == (self._name, self._stage)]

    def _remove_if_altered(self, kept: CachedRelease) -> None:
        """What is whole may be of use another day: when there is more memory, say."""
        with suppress(OSError):
            if digest_of(self._copy(kept)) != kept.digest:
                shutil.rmtree(self._copy(kept))

    def _remove_all_but(self, digests: set[str], noted: set[str]) -> None:
        for path in list(self.folder.iterdir()):
            if not REMOVABLE.fullmatch(path.name) or path.name in digests or not path.is_dir():
                continue
            served, incoming = path.name in noted, path.name.startswith(INCOMING)  # who is fetching holds the lock
            if served or incoming or path.stat().st_mtime < time.time() - ORPHAN_AGE_S:
                shutil.rmtree(path)

    def _warn(self, release: ModelRelease, reason: str) -> None:
        if not self._has_warned:
            logger.warning("no copy of version %d is kept on this machine: %s", release.version, reason)
        self._has_warned = True
