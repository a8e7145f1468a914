"""Which model answers: found in the registry, loaded aside, and put in place by one assignment."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from toolkit.bundle import Bundle
from toolkit.errors import BundleError, NotRegistered, ToolkitError, one_line
from toolkit.serving.engine import Engine, prepare
from toolkit.serving.problems import without_places

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 300.0  # seconds between two attempts at a version that cannot be loaded
DOUBLINGS = 30  # of the pause: a version that fails for days must not overflow it
STOP_SECONDS = 5.0  # what a stopping service grants a look that is under way


class Release(Protocol):
    """What is asked of a registered version; ``model_registry`` has more to say about it."""

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
    """Where models come from."""

    def find(self) -> Release:
        """The version that should answer; cheap, for it is asked again and again."""

    def load(self, release: Release) -> Bundle:
        """Its bundle, verified."""


@dataclass(frozen=True, eq=False)
class LiveModel:
    """A version that answers, or has until a moment ago."""

    release: Release
    bundle: Bundle
    engine: Engine
    loaded_at: float  # seconds since 1970

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in output order."""
        return self.bundle.card.classes

    @property
    def version(self) -> str:
        """The version's name in figures and in the monitor."""
        return str(self.release.version)


@dataclass(frozen=True)
class Failure:
    """A version that could not be put in place."""

    release: Release
    reason: str
    attempts: int
    next_attempt: float  # on the monotonic clock


def identity(release: Release) -> tuple[str, int, str]:
    """What makes two releases the same: not the larger number, for a rollback goes to a smaller one."""
    return release.name, release.version, release.digest


class Live:
    """The live model, and the thread that keeps it what the registry says.

    A version that cannot be found, loaded, verified or run leaves the one before it in place.

    Parameters
    ----------
    source
        Where models come from.
    adopt
        Called with a model right before it begins to answer.
    poll_seconds
        Pause between two looks at the registry.
    """

    def __init__(self, source: Source, adopt: Callable[[LiveModel], None], poll_seconds: float) -> None:
        self.model: LiveModel | None = None
        self.failure: Failure | None = None
        self.reachable = False  # whether the registry answered the last look
        self.registry_problem: str | None = None  # why the last look found nothing to serve
        self.last_look: float | None = None  # seconds since 1970
        self.loading: Release | None = None
        self.changes = 0
        self._source = source
        self._adopt = adopt
        self._poll_seconds = poll_seconds
        self._looking = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="registry", daemon=True)

    def start(self) -> None:
        """Begin to watch the registry."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; a look that is under way is not waited for longer than a few seconds."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS)

    def look(self, *, again: bool = False) -> str:
        """Look at the registry now and do what it says.

        Parameters
        ----------
        again
            Try a version that failed even though its pause is not over.

        Returns
        -------
        str
            ``unchanged``, ``loaded``, ``waiting`` (nothing is registered), ``unreachable``,
            ``failed`` (what is registered cannot be loaded) or ``set aside`` (it failed before).
        """
        with self._looking:
            try:
                wanted = self._source.find()
            except NotRegistered as error:
                self._note_registry(str(error), reachable=True)
                return "waiting"
            except ToolkitError as error:
                self._note_registry(str(error), reachable=False)
                return "unreachable"
            self._note_registry(None, reachable=True)
            return self._follow(wanted, again)

    def reason(self) -> str:
        """Why no model answers, in words that a client may read."""
        loading, failure = self.loading, self.failure  # the other thread may set them to None meanwhile
        if loading is not None:
            return f"version {loading.version} is being loaded"
        if failure is not None:
            return f"version {failure.release.version} cannot be loaded: {failure.reason}"
        return self.registry_problem or "the registry has not answered yet"

    def describe(self) -> dict[str, Any]:
        """Registry and failures as ``/health`` shows them."""
        failure = self.failure
        return {
            "reachable": self.reachable,
            "problem": self.registry_problem,
            "last_look": self.last_look,
            "changes": self.changes,
            "set_aside": failure
            and {
                "version": failure.release.version,
                "reason": failure.reason,
                "attempts": failure.attempts,
                "next_attempt_s": round(max(0.0, failure.next_attempt - time.monotonic()), 1),
            },
        }

    def _watch(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look()
            except Exception as error:  # this thread must not end, whatever a library raises
                logger.exception("the look at the registry failed")
                self.registry_problem, self.reachable = f"the look at it failed: {type(error).__name__}", False
            self._stopping.wait(self._poll_seconds)

    def _note_registry(self, problem: str | None, *, reachable: bool) -> None:
        shown = without_places(problem) if problem else None
        if problem and shown != self.registry_problem:  # a line when it begins and when it ends, not one a look
            serving = f"; version {self.model.version} serves on" if self.model else ""
            logger.warning("%s%s", problem, serving)
        elif reachable and not self.reachable and self.last_look is not None:
            logger.info("the registry answers again")
        self.registry_problem, self.reachable, self.last_look = shown, reachable, time.time()

    def _follow(self, wanted: Release, again: bool) -> str:
        if self.model is not None and identity(self.model.release) == identity(wanted):
            self.failure = None  # a broken successor was withdrawn
            return "unchanged"
        failed = self.failure
        if failed is not None and identity(failed.release) != identity(wanted):
            failed = self.failure = None
        if failed is not None and not again and time.monotonic() < failed.next_attempt:
            return "set aside"
        self.loading = wanted
        try:
            self._replace(wanted)
        except Exception as error:  # noqa: BLE001  zipfile, torch and MLflow each raise kinds of their own
            self._set_aside(wanted, error, failed.attempts + 1 if failed else 1)
            return "failed"
        finally:
            self.loading = None
        return "loaded"

    def _replace(self, wanted: Release) -> None:
        started = time.monotonic()
        bundle = self._source.load(wanted)
        if wanted.digest and bundle.digest != wanted.digest:
            raise BundleError("the registry changed while the version was being loaded")
        model = LiveModel(wanted, bundle, prepare(bundle), time.time())
        self._adopt(model)
        before, self.model, self.failure = self.model, model, None
        self.changes += 1
        replaced = f" in place of version {before.version}" if before else ""
        logger.info("version %s serves%s, loaded in %.1f s", model.version, replaced, time.monotonic() - started)

    def _set_aside(self, release: Release, error: Exception, attempts: int) -> None:
        pause = min(self._poll_seconds * 2 ** min(attempts, DOUBLINGS), LONGEST_PAUSE)
        self.failure = Failure(release, without_places(one_line(error)), attempts, time.monotonic() + pause)
        logger.error(
            "version %d cannot be loaded: %s; %s, next attempt in %.0f s",
            release.version,
            one_line(error),
            f"version {self.model.version} serves on" if self.model else "nothing serves",
            pause,
        )
