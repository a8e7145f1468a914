"""Copies of the last versions that served, on the disk of this machine, for a start without the registry.

The registry keeps each bundle that it downloads in a folder of bundles by digest. An index file there lists those
that served, the last one first:

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
from toolkit.serving.models.source import ModelRelease, Source
from toolkit.system.file_locks import try_lock

logger = logging.getLogger(__name__)

MAX_COPIES = 2  # the last version, and one more in case that copy is broken
INDEX_FILE = "served.json"
LOCK_TIMEOUT_S = 900.0  # for another process that downloads, writes the index or removes copies
ORPHAN_AGE_S = 3600.0  # for which a copy is kept before it served: another process may be loading it
# Nothing else in the folder is ever removed: bundles, and incomplete downloads.
INCOMING = "incoming-"
REMOVABLE = re.compile(rf"[0-9a-f]{{64}}|{INCOMING}\w+")


class CachedRelease(BaseModel):
    """A release that served, as the index has it."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    name: str
    version: int
    stage: str
    run_id: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")  # it becomes the name of a folder that may be removed


INDEX_ADAPTER = TypeAdapter(tuple[CachedRelease, ...])


class LocalModelCache:
    """Copies of the versions that served last; a disk that cannot be written to costs a warning and nothing else.

    Parameters
    ----------
    folder
        Folder of the copies, of one service alone: other copies there are removed. The service's processes share it;
        one downloads while the others wait, and none removes what another one downloads.
    name, stage
        Model and stage that the service serves. Copies of others are not loaded.
    """

    def __init__(self, folder: Path, name: str, stage: str) -> None:
        self.folder = folder
        self._lock = folder.with_suffix(".lock")
        self._name = name
        self._stage = stage
        self._has_warned = False  # of the last failure to keep a copy

    def load(self, source: Source, release: ModelRelease) -> Bundle:
        """Return the bundle of a release from its source, through the folder if possible."""
        try:
            with try_lock(self._lock, LOCK_TIMEOUT_S):
                bundle = source.load(release, self.folder)
                with suppress(OSError):
                    os.utime(self.folder / release.digest)  # in use now, whenever it was downloaded
                return bundle
        except OSError as error:  # of the disk; the registry has errors of its own
            self._warn(release, first_line(error))
            return source.load(release)

    def copy(self, source: Source, release: ModelRelease) -> None:
        """Keep a copy of a release that serves already, unless there is one."""
        if not (self.folder / release.digest).is_dir():
            try:
                self.load(source, release)
            except Exception as error:  # noqa: BLE001  it serves without a copy
                self._warn(release, first_line(error))

    def mark_served(self, release: ModelRelease) -> None:
        """Record that a release serves, and remove all but the newest copies."""
        try:
            kept = CachedRelease.model_validate(release)
            if not self._copy(kept).is_dir():
                self._warn(release, "its source kept none")
                return
            with try_lock(self._lock, LOCK_TIMEOUT_S):
                self._write_index(kept)
        except (OSError, ValidationError) as error:
            self._warn(release, first_line(error))
        else:
            self._has_warned = False

    def _write_index(self, kept: CachedRelease) -> None:
        indexed = self._read_index()
        before = [other for other in indexed if other.digest != kept.digest and self._copy(other).is_dir()]
        served = (kept, *before)[:MAX_COPIES]
        fresh = self.folder / f"{INDEX_FILE}.new"
        fresh.write_bytes(INDEX_ADAPTER.dump_json(served, indent=2))
        fresh.replace(self.folder / INDEX_FILE)
        self._remove_all_but({one.digest for one in served}, {one.digest for one in indexed})

    def load_last_served(self) -> Iterator[tuple[CachedRelease, Bundle]]:
        """Yield what served last, newest first, each verified when it is reached.

        A copy that cannot be used is skipped with a warning, and removed if it was altered.
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
        """Return the index's releases of this model and stage, newest first."""
        try:
            indexed = INDEX_ADAPTER.validate_json((self.folder / INDEX_FILE).read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValidationError) as error:
            logger.warning("the index of local copies cannot be read: %s", first_line(error))
            return []
        return [kept for kept in indexed if (kept.name, kept.stage) == (self._name, self._stage)]

    def _remove_if_altered(self, kept: CachedRelease) -> None:
        """Remove an altered copy; an intact one may load another time, with more memory for instance."""
        with suppress(OSError):
            if digest_of(self._copy(kept)) != kept.digest:
                shutil.rmtree(self._copy(kept))

    def _remove_all_but(self, digests: set[str], indexed: set[str]) -> None:
        for path in list(self.folder.iterdir()):
            if not REMOVABLE.fullmatch(path.name) or path.name in digests or not path.is_dir():
                continue
            # Downloads hold the lock, so that an incomplete one is abandoned.
            served, incoming = path.name in indexed, path.name.startswith(INCOMING)
            if served or incoming or path.stat().st_mtime < time.time() - ORPHAN_AGE_S:
                shutil.rmtree(path)

    def _warn(self, release: ModelRelease, reason: str) -> None:
        if not self._has_warned:
            logger.warning("no copy of version %d is kept on this machine: %s", release.version, reason)
        self._has_warned = True
