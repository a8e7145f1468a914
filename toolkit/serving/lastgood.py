"""The last versions that served, on the disk of this machine, for a start without the registry.

The registry leaves each bundle that it fetches in a folder of bundles by digest. One small file
beside them says which of them served, the last one first:

    served.json         [{"name", "version", "stage", "run_id", "digest"}, ...]
    <digest>/           a bundle, as the registry keeps it
"""

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from toolkit.bundle import Bundle, digest_of, shelve_bundle
from toolkit.errors import BundleError, one_line
from toolkit.serving.live import Release, Source

logger = logging.getLogger(__name__)

COPIES = 2  # the last one, and one more in case it is broken
NOTE = "served.json"
# Nothing else in the folder is ever removed: bundles, and what a kill left of one on its way.
REMOVABLE = re.compile(r"[0-9a-f]{64}|incoming-\w+")


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
        Where they are; of one service alone, since what another one keeps there would be removed.
    name, stage
        What the service serves. Copies of other models, or from another stage, are not recalled.
    """

    def __init__(self, folder: Path, name: str, stage: str) -> None:
        self.folder = folder
        self._name = name
        self._stage = stage
        self._troubled = False  # whether the last attempt to keep something failed, and was warned of

    def load(self, source: Source, release: Release) -> Bundle:
        """A release's bundle from its source, by way of the folder where that is possible."""
        try:
            return source.load(release, self.folder)
        except OSError as error:  # of the disk: what is wrong with the registry has errors of its own
            self._warn(release, one_line(error))
            return source.load(release)

    def keep(self, release: Release) -> None:
        """Note that a release serves, and remove all but the newest copies."""
        try:
            kept = Kept.model_validate(release)
            if not self._copy(kept).is_dir():
                self._warn(release, "its source left none")
                return
            before = [other for other in self._noted() if other.digest != kept.digest and self._copy(other).is_dir()]
            served = (kept, *before)[:COPIES]
            fresh = self.folder / f"{NOTE}.new"
            fresh.write_bytes(NOTED.dump_json(served, indent=2))
            fresh.replace(self.folder / NOTE)
            self._remove_all_but({one.digest for one in served})
        except (OSError, ValidationError) as error:
            self._warn(release, one_line(error))
        else:
            self._troubled = False

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

    def _remove_all_but(self, digests: set[str]) -> None:
        for path in list(self.folder.iterdir()):
            if REMOVABLE.fullmatch(path.name) and path.name not in digests and path.is_dir():
                shutil.rmtree(path)

    def _warn(self, release: Release, reason: str) -> None:
        if not self._troubled:
            logger.warning("no copy of version %d is kept on this machine: %s", release.version, reason)
        self._troubled = True
