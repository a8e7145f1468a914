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
from toolkit.bundle.program import Bundle, shelve_bundle
from toolkit.errors import BundleError, one_line
from toolkit.serving.models.manager import Release, Source
from toolkit.system.file_locks import try_lock

logger = logging.getLogger(__name__)

COPIES = 2  # the last one, and one more in case it is broken
NOTE = "served.json"
LONGEST_SECONDS = 900.0  # that others wait for who fetches, notes or removes
UNNOTED_SECONDS = 3600.0  # that a copy stays which did not serve yet: another process may be about to
# Nothing else in the folder is ever removed: bundles, and what a kill left of one on its way.
INCOMING = "incoming-"
REMOVABLE = re.compile(rf"[0-9a-f]{{64}}|{INCOMING}\w+")


class Kept(BaseModel):
    """A release that served, as it was noted then."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    name: str
    version: int
    stage: str
    run_id: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")  # it becomes the name of a folder that may be removed


NOTED = TypeAdapter(tuple[Kept, ...])


class LastGood:
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
        self._troubled = False  # whether the last attempt to keep something failed, and was warned of

    def load(self, source: Source, release: Release) -> Bundle:
        """A release's bundle from its source, by way of the folder where that is possible."""
        try:
            with try_lock(self._lock, LONGEST_SECONDS):
                bundle = source.load(release, self.folder)
                with suppress(OSError):
                    os.utime(self.folder / release.digest)  # it is wanted now, whenever it was fetched
                return bundle
        except OSError as error:  # of the disk: what is wrong with the registry has errors of its own
            self._warn(release, one_line(error))
            return source.load(release)

    def copy(self, source: Source, release: Release) -> None:
        """Leave a copy of a release that serves already, should there be none."""
        if not (self.folder / release.digest).is_dir():
            try:
                self.load(source, release)
            except Exception as error:  # noqa: BLE001  of any kind: it serves all the same
                self._warn(release, one_line(error))

    def keep(self, release: Release) -> None:
        """Note that a release serves, and remove all but the newest copies."""
        try:
            kept = Kept.model_validate(release)
            if not self._copy(kept).is_dir():
                self._warn(release, "its source left none")
                return
            with try_lock(self._lock, LONGEST_SECONDS):
                self._note(kept)
        except (OSError, ValidationError) as error:
            self._warn(release, one_line(error))
        else:
            self._troubled = False

    def _note(self, kept: Kept) -> None:
        noted = self._noted()
        before = [other for other in noted if other.digest != kept.digest and self._copy(other).is_dir()]
        served = (kept, *before)[:COPIES]
        fresh = self.folder / f"{NOTE}.new"
        fresh.write_bytes(NOTED.dump_json(served, indent=2))
        fresh.replace(self.folder / NOTE)
        self._remove_all_but({one.digest for one in served}, {one.digest for one in noted})

    def recall(self) -> Iterator[tuple[Kept, Bundle]]:
        """What served last, newest first, verified when its turn comes.

        A copy that cannot be used is passed over with a warning, and removed when it was altered.
        """
        for kept in self._noted():
            try:
                yield kept, shelve_bundle(self._copy(kept), kept.digest)
            except BundleError as error:
                logger.warning("the copy of version %d is not used: %s", kept.version, error)
                self._remove_if_altered(kept)

    def _copy(self, kept: Kept) -> Path:
        return self.folder / kept.digest

    def _noted(self) -> list[Kept]:
        """What is noted of the model and the stage, newest first."""
        try:
            noted = NOTED.validate_json((self.folder / NOTE).read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValidationError) as error:
            logger.warning("the note of what served last cannot be read: %s", one_line(error))
            return []
        return [kept for kept in noted if (kept.name, kept.stage) == (self._name, self._stage)]

    def _remove_if_altered(self, kept: Kept) -> None:
        """What is whole may be of use another day: when there is more memory, say."""
        with suppress(OSError):
            if digest_of(self._copy(kept)) != kept.digest:
                shutil.rmtree(self._copy(kept))

    def _remove_all_but(self, digests: set[str], noted: set[str]) -> None:
        for path in list(self.folder.iterdir()):
            if not REMOVABLE.fullmatch(path.name) or path.name in digests or not path.is_dir():
                continue
            served, incoming = path.name in noted, path.name.startswith(INCOMING)  # who is fetching holds the lock
            if served or incoming or path.stat().st_mtime < time.time() - UNNOTED_SECONDS:
                shutil.rmtree(path)

    def _warn(self, release: Release, reason: str) -> None:
        if not self._troubled:
            logger.warning("no copy of version %d is kept on this machine: %s", release.version, reason)
        self._troubled = True
