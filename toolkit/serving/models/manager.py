"""Which model answers: found in the registry, loaded and tried out aside, and put in place by one assignment."""

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from toolkit.bundle.program import Bundle
from toolkit.errors import BundleError, NotRegistered, ToolkitError, first_line
from toolkit.redaction import redact_paths
from toolkit.serving.models.engines import Engine, select_engine
from toolkit.serving.models.smoke_test import Agreement, SmokeTestResult, compare_outputs, smoke_test

logger = logging.getLogger(__name__)

MAX_BACKOFF_S = 300.0  # seconds between two attempts at a version that cannot be loaded
MAX_DOUBLINGS = 30  # of the pause: a version that fails for days must not overflow it
STOP_SECONDS = 5.0  # what a stopping service grants a look that is under way


class ModelRelease(Protocol):
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

    contradiction: str  # what else names another version than the one found last; empty where nothing does

    def find(self) -> ModelRelease:
        """The version that should answer; cheap, for it is asked again and again."""

    def load(self, release: ModelRelease, cache: Path | None = None) -> Bundle:
        """Its bundle, verified; its files stay as ``cache/<digest>`` when there is such a folder."""


class LocalCopies(Protocol):
    """The last versions that served, on the disk of this machine: ``lastgood.LocalModelCache``."""

    def load(self, source: Source, release: ModelRelease) -> Bundle:
        """A release's bundle from its source, which leaves a copy on its way."""

    def copy(self, source: Source, release: ModelRelease) -> None:
        """Leave a copy of a release that serves already, should there be none."""

    def mark_served(self, release: ModelRelease) -> None:
        """Note that a release serves, so its copy is the last good one."""

    def load_last_served(self) -> Iterable[tuple[ModelRelease, Bundle]]:
        """What served last, newest first, verified."""


@dataclass(frozen=True, eq=False)
class LiveModel:
    """A version that answers, or has until a moment ago.

    Who runs its engine holds the model, not the engine alone: the engine is closed when nobody
    holds the model any more.
    """

    release: ModelRelease
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
class ModelManagerConfig:
    """How a model is loaded, and what is kept of those that served.

    Parameters
    ----------
    poll_seconds
        Pause between two polls of the registry.
    prepare
        Makes an engine of a bundle, warmed up and checked.
    rehearse
        Called with a bundle before ``prepare`` while another model answers, with an event that is set when the service
        ends, and with a function that has so many workers of the service leave their core to it: does aside what can be
        done aside.
    last_good
        What answers when the service starts and the registry does not answer, or what is in the stage cannot be used;
        nothing does when None.
    does
        What the model does, for the log.
    keeps_former
        Whether the model that was replaced stays in memory, so that a rollback to it is done at once.
    """

    poll_seconds: float
    prepare: Callable[[Bundle], Engine] = select_engine
    rehearse: Callable[[Bundle, threading.Event, Callable[[int], None]], None] | None = None
    last_good: LocalCopies | None = None
    does: str = "serves"
    keeps_former: bool = True


@dataclass(frozen=True)
class SetAside:
    """A version that could not be put in place, and when it is tried again."""

    version: int
    reason: str
    attempts: int
    next_attempt_s: float


@dataclass(frozen=True)
class RegistryState:
    """The registry, failures and where the live model came from, as ``/health`` shows them; times since 1970."""

    reachable: bool
    unreachable_since: float | None
    problem: str | None
    last_poll: float | None
    changes: int
    source: Literal["registry", "last good copy"] | None
    copy_since: float | None
    comparison: Agreement | None
    load_failure: SetAside | None
    contradiction: str | None


@dataclass(frozen=True)
class LoadFailure:
    """A version that could not be put in place."""

    release: ModelRelease
    reason: str
    attempts: int
    next_attempt: float  # on the monotonic clock

    @property
    def set_aside(self) -> SetAside:
        """The same as ``/health`` shows it."""
        seconds = round(max(0.0, self.next_attempt - time.monotonic()), 1)
        return SetAside(self.release.version, self.reason, self.attempts, seconds)


def release_key(release: ModelRelease) -> tuple[str, int, str]:
    """What makes two releases the same: not the larger number, for a rollback goes to a smaller one."""
    return release.name, release.version, release.digest


def _no_rest(_workers: int) -> None:
    """Nothing, where no workers would have to leave their core."""


class ModelManager:
    """The live model, and the thread that keeps it what the registry says.

    A version that cannot be found, loaded, verified or run leaves the one before it in place. The one
    that was replaced stays ready, for a rollback; it is closed and freed when it is not the last one
    any more and its last answer is out.

    Parameters
    ----------
    source
        Where models come from.
    adopt
        Called with a model right before it begins to answer.
    config
        How it is loaded.
    on_failure
        Called with a release and the reason when it is set aside; once, not at each further attempt.
    rest
        Has so many workers take no work.
    """

    def __init__(
        self,
        source: Source,
        on_activate: Callable[[LiveModel], None],
        config: ModelManagerConfig,
        on_failure: Callable[[ModelRelease, str], None] | None = None,
        rest: Callable[[int], None] | None = None,
    ) -> None:
        self.model: LiveModel | None = None
        self.failure: LoadFailure | None = None
        self.comparison: Agreement | None = None  # of the live model with the one before it
        self.copy_since: float | None = None  # seconds since 1970; None unless the live model is a last good copy
        self.reachable = False  # whether the registry answered the last look
        self.unreachable_since: float | None = None  # seconds since 1970
        self.registry_problem: str | None = None  # why the last look found nothing to serve
        self.last_poll: float | None = None  # seconds since 1970
        self.loading: ModelRelease | None = None
        self.changes = 0
        self._source = source
        self._on_activate = on_activate
        self._config = config
        self._local_cache = config.last_good
        self._fallbacks = config.last_good is not None  # whether a copy may still be asked to answer
        self._on_failure = on_failure
        self._rest = rest or _no_rest
        self._smoke_tested: SmokeTestResult | None = None  # what the live model did before it answered
        self._previous: tuple[LiveModel, SmokeTestResult] | None = (
            None  # what answered before it, ready to answer again
        )
        self._needs_gc = threading.Event()  # a model is no longer held by anybody
        self._polling = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._poll_forever, name="registry", daemon=True)

    def start(self) -> None:
        """Begin to watch the registry."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; a look that is under way is not waited for longer than a few seconds."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS)

    def poll(self, *, again: bool = False) -> str:
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
        with self._polling:
            if self._needs_gc.is_set():
                self._needs_gc.clear()
                gc.collect()  # torch's programs refer to themselves, and would stay until Python looks for such
            try:
                wanted = self._source.find()
            except NotRegistered as error:
                self._note_registry(str(error), reachable=True)
                self._fallbacks = False  # the registry has the last word
                return "waiting"
            except Exception as error:  # noqa: BLE001  a library's own are no reason to stop looking
                self._note_registry(_problem(error), reachable=False)
                self._load_fallback()
                return "unreachable"
            self._note_registry(None, reachable=True)
            return self._sync_to(wanted, again)

    def reason(self) -> str:
        """Why no model answers, in words that a client may read."""
        loading, failure = self.loading, self.failure  # the other thread may set them to None meanwhile
        if loading is not None:
            return f"version {loading.version} is being loaded"
        if failure is not None:
            return f"version {failure.release.version} cannot be loaded: {failure.reason}"
        return self.registry_problem or "the registry has not answered yet"

    def describe(self) -> RegistryState:
        """How the registry is, and what came of following it."""
        failure = self.failure
        return RegistryState(
            reachable=self.reachable,
            unreachable_since=self.unreachable_since,
            problem=self.registry_problem,
            last_poll=self.last_poll,
            changes=self.changes,
            source=("last good copy" if self.copy_since else "registry") if self.model else None,
            copy_since=self.copy_since,
            comparison=self.comparison,
            load_failure=failure.set_aside if failure else None,
            contradiction=self._source.contradiction or None,
        )

    def _poll_forever(self) -> None:
        while not self._stopping.is_set():
            try:
                self.poll()
            except Exception:  # what happened is in the log; the next look may fare better
                logger.exception("the look at the registry broke off")
            self._stopping.wait(self._config.poll_seconds)

    def _note_registry(self, problem: str | None, *, reachable: bool) -> None:
        shown = redact_paths(problem) if problem else None
        if problem and shown != self.registry_problem:  # a line when it begins and when it ends, not one a look
            serving = f"; version {self.model.version} {self._config.does} on" if self.model else ""
            logger.warning("%s%s", problem, serving)
        elif reachable and not self.reachable and self.last_poll is not None:
            logger.info("the registry answers again")
        self.registry_problem, self.reachable, self.last_poll = shown, reachable, time.time()
        self.unreachable_since = None if reachable else self.unreachable_since or self.last_poll

    def _sync_to(self, wanted: ModelRelease, again: bool) -> str:
        if self.model is not None and release_key(self.model.release) == release_key(wanted):
            self.failure = None  # a broken successor was withdrawn
            self.copy_since = None  # a copy is the very model that the registry names
            return "unchanged"
        failed = self.failure
        if failed is not None and release_key(failed.release) != release_key(wanted):
            failed = self.failure = None
        if failed is not None and not again and time.monotonic() < failed.next_attempt:
            return "set aside"
        self.loading = wanted
        try:
            self._swap(wanted)
        except Exception as error:  # noqa: BLE001  zipfile, torch and MLflow each raise kinds of their own
            self._back_off(wanted, error, failed.attempts + 1 if failed else 1)
        else:
            if self._local_cache is not None:
                self._local_cache.mark_served(wanted)
            return "loaded"
        finally:
            self.loading = None
        self._load_fallback()
        return "failed"

    def _swap(self, wanted: ModelRelease) -> None:
        started = time.monotonic()
        if self._previous is not None and release_key(self._previous[0].release) == release_key(wanted):
            before, (model, tried) = self.model, self._previous
            self._start_answering(model, tried)
            if self._local_cache is not None:
                self._local_cache.copy(self._source, wanted)
        else:
            before, model = self.model, self._load(wanted)
        self.failure = self.copy_since = None
        replaced = f" in place of version {before.version}" if before else ""
        seconds = time.monotonic() - started
        logger.info("version %s %s%s, loaded in %.1f s", model.version, self._config.does, replaced, seconds)

    def _load(self, wanted: ModelRelease) -> LiveModel:
        """Put a version in place that did not answer just before."""
        bundle = self._local_cache.load(self._source, wanted) if self._local_cache else self._source.load(wanted)
        if wanted.digest and bundle.digest != wanted.digest:
            raise BundleError("the registry changed while the version was being loaded")
        if self.model is not None and self._config.rehearse is not None:
            self._config.rehearse(bundle, self._stopping, self._rest)
        return self._activate(wanted, bundle)

    def _load_fallback(self) -> None:
        """Let the last good copy answer, when nothing does and the registry has not said otherwise; asked once."""
        if self.model is not None or self._local_cache is None or not self._fallbacks:
            return
        self._fallbacks = False
        for release, bundle in self._local_cache.load_last_served():
            self.loading = release
            try:
                model = self._activate(release, bundle)
            except Exception as error:  # noqa: BLE001  as in ``_follow``
                logger.warning("the last good copy, version %d, cannot be used: %s", release.version, first_line(error))
                continue
            finally:
                self.loading = None
            self.copy_since = model.loaded_at
            logger.warning("version %s %s from the last good copy on this machine", model.version, self._config.does)
            return

    def _activate(self, release: ModelRelease, bundle: Bundle) -> LiveModel:
        """Prepare a model, try it out, and let it answer; whatever is raised leaves the one before it in place."""
        engine = self._config.prepare(bundle)
        model = LiveModel(release, bundle, engine, time.time())
        weakref.finalize(model, _close, engine, model.version, self._needs_gc).atexit = False
        self._start_answering(model, smoke_test(engine, bundle.card, model.version))
        return model

    def _start_answering(self, model: LiveModel, tried: SmokeTestResult) -> None:
        """Put a model that was tried out in place of the one that answers now."""
        comparison = compare_outputs(tried, self._smoke_tested) if self._smoke_tested else None
        self._on_activate(model)
        if self._config.keeps_former and self.model is not None and self._smoke_tested is not None:
            self._previous = self.model, self._smoke_tested
        self.model, self.comparison, self._smoke_tested = model, comparison, tried
        self.changes += 1
        if comparison is not None:
            logger.log(logging.WARNING if comparison.constant else logging.INFO, "%s", comparison)

    def _back_off(self, release: ModelRelease, error: Exception, attempts: int) -> None:
        pause = min(self._config.poll_seconds * 2 ** min(attempts, MAX_DOUBLINGS), MAX_BACKOFF_S)
        reason = redact_paths(first_line(error))
        self.failure = LoadFailure(release, reason, attempts, time.monotonic() + pause)
        logger.error(
            "version %d cannot be loaded: %s; %s, next attempt in %.0f s",
            release.version,
            first_line(error),
            f"version {self.model.version} {self._config.does} on" if self.model else f"nothing {self._config.does}",
            pause,
        )
        if self._on_failure is None or attempts > 1:
            return
        try:
            self._on_failure(release, reason)
        except Exception as trouble:  # noqa: BLE001  models are not held up by whoever is told of them
            logger.warning("that version %d was set aside could not be told: %s", release.version, first_line(trouble))


def _problem(error: Exception) -> str:
    """What a look at the registry failed with."""
    if isinstance(error, ToolkitError):
        return str(error)
    logger.error("the look at the registry failed", exc_info=error)
    return f"the look at it failed: {type(error).__name__}"


def _close(engine: Engine, version: str, litter: threading.Event) -> None:
    """Close the engine of a model that nobody holds any more, in whichever thread held it last."""
    litter.set()
    try:
        engine.close()
    except Exception as error:  # noqa: BLE001  it must not fall on whoever was answered last
        logger.warning("the engine of version %s could not be closed: %s", version, first_line(error))
