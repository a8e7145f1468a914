"""Preparation in advance: the newest version is downloaded, converted and tested before it is promoted."""

import logging
import threading
from collections.abc import Callable

from toolkit.errors import first_line
from toolkit.serving.models.source import ModelRelease

logger = logging.getLogger(__name__)


class AdvancePreparation:
    """Preparation of the newest version while another one serves, so that its promotion takes a second or two.

    Parameters
    ----------
    newest
        Returns the newest version in the registry, whatever its stage; None if there is none.
    prepare
        Downloads and prepares a version; ends early, with an exception, when the event is set.
    """

    def __init__(
        self,
        newest: Callable[[], ModelRelease | None],
        prepare: Callable[[ModelRelease, threading.Event], None],
    ) -> None:
        self._newest = newest
        self._prepare = prepare
        self._done = ""  # digest of the version that was prepared last, or could not be
        self._present = ""  # digest of the version that is being prepared
        self._interrupted = threading.Event()

    def prepare_newest(self, live: ModelRelease) -> None:
        """Prepare the newest version, unless it serves already or was prepared; not from two threads at once."""
        newest = self._newest()
        if newest is None or newest.digest in ("", live.digest, self._done):
            return
        self._interrupted.clear()
        self._present = newest.digest
        try:
            self._prepare(newest, self._interrupted)
            logger.info("version %d is prepared, should it be promoted", newest.version)
        except Exception as error:  # noqa: BLE001  zipfile, torch and MLflow each raise kinds of their own
            if self._interrupted.is_set():
                return  # a later call prepares it
            logger.warning("version %d cannot be prepared in advance: %s", newest.version, first_line(error))
        finally:
            self._present = ""
        self._done = newest.digest

    def interrupt(self, wanted: str = "") -> None:
        """End the preparation, unless it is of the version with the wanted digest."""
        if self._present and self._present != wanted:
            self._interrupted.set()
