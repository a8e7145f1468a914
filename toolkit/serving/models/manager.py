"""Model manager: polls the registry, loads and tests a new version, and activates it by one assignment."""

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from toolkit.bundle.program import Bundle
from toolkit.errors import BundleError, NotRegistered, ToolkitError, first_line
from toolkit.redaction import redact_paths
from toolkit.serving.models.engines import Engine, select_engine
from toolkit.serving.models.local_cache import LocalModelCache
from toolkit.serving.models.preparation import AdvancePreparation
from toolkit.serving.models.smoke_test import Agreement, SmokeTestResult, compare_outputs, smoke_test
from toolkit.serving.models.source import ModelRelease, Source, release_key

logger = logging.getLogger(__name__)

MAX_BACKOFF_S = 300.0  # between two attempts at a version that cannot be loaded
MAX_DOUBLINGS = 30  # of the pause: a version that fails for days must not overflow it
STOP_TIMEOUT_S = 5.0  # for a poll that runs when the service stops


@dataclass(frozen=True, eq=False)
class LiveModel:
    """A version that answers, or answered until recently.

    Code that runs the engine holds a reference to the model, not to the engine alone: the engine is closed when the
    last reference to the model is gone.
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
        """The version as text, as in metrics and in the monitor."""
        return str(self.release.version)


@dataclass(frozen=True)
class ModelManagerConfig:
    """Settings of a model manager.

    ``isolated_load`` prepares a bundle outside this process, before ``prepare`` is called while another model answers.
    It gets the bundle, an event that is set when the service stops, and a function that pauses a number of threads.
    """

    poll_interval: float  # seconds between two polls of the registry
    prepare: Callable[[Bundle], Engine] = select_engine  # builds the engine of a bundle, warmed up and checked
    isolated_load: Callable[[Bundle, threading.Event, Callable[[int], None]], None] | None = None
    newest: Callable[[], ModelRelease | None] | None = None  # finds the version to prepare before it is promoted
    local_cache: LocalModelCache | None = None  # for an unreachable registry, or a version that cannot be loaded
    role: str = "serves"  # verb for the log; the model "shadows" otherwise
    keep_previous: bool = True  # keep the replaced model in memory, so that a rollback to it is immediate


@dataclass(frozen=True)
class LoadFailureState:
    """A version that cannot be loaded, as ``/health`` shows it: reason, attempts, seconds until the next one."""

    version: int
    reason: str
    attempts: int
    next_attempt_s: float


@dataclass(frozen=True)
class RegistryState:
    """State of the registry and origin of the live model, as ``/health`` shows them; times in seconds since 1970."""

    reachable: bool = False  # whether the registry answered the last poll
    unreachable_since: float | None = None
    problem: str | None = None  # why the last poll found nothing to serve
    last_poll: float | None = None
    changes: int = 0  # of the live model
    source: Literal["registry", "last good copy"] | None = None
    copy_since: float | None = None  # None unless the live model is a last good copy
    comparison: Agreement | None = None  # of the live model with the one before it
    load_failure: LoadFailureState | None = None
    contradiction: str | None = None


@dataclass(frozen=True)
class LoadFailure:
    """A version that could not be loaded."""

    release: ModelRelease
    reason: str
    attempts: int
    next_attempt: float  # on the monotonic clock

    @property
    def state(self) -> LoadFailureState:
        """The failure as ``/health`` shows it."""
        seconds = round(max(0.0, self.next_attempt - time.monotonic()), 1)
        return LoadFailureState(self.release.version, self.reason, self.attempts, seconds)


class ModelManager:
    """The live model, and the thread that keeps it in step with the registry.

    A version that cannot be found, loaded, verified or run leaves the previous one in place. The replaced model
    stays ready for a rollback; it is closed and freed once it is replaced there and its last answer is out.

    Parameters
    ----------
    source
        Source of the models.
    on_activate
        Called with a model right before it begins to answer; an exception keeps it from answering.
    config
        Settings.
    on_failure
        Called with a release and the reason when it first fails to load.
    pause
        Pauses the given number of worker threads, in favour of a model that is being loaded.
    """

    def __init__(
        self,
        source: Source,
        on_activate: Callable[[LiveModel], None],
        config: ModelManagerConfig,
        on_failure: Callable[[ModelRelease, str], None] | None = None,
        pause: Callable[[int], None] = lambda _threads: None,
    ) -> None:
        self.model: LiveModel | None = None
        self.failure: LoadFailure | None = None
        self.loading: ModelRelease | None = None
        self._state = RegistryState()
        self._source = source
        self._on_activate = on_activate
        self._config = config
        self._local_cache = config.local_cache
        self._fallbacks = config.local_cache is not None  # whether a copy may still be asked to answer
        self._on_failure = on_failure
        self._pause = pause
        self._smoke_tested: SmokeTestResult | None = None  # of the live model
        self._previous: tuple[LiveModel, SmokeTestResult] | None = None  # the replaced model, ready to answer again
        self._needs_gc = threading.Event()  # the last reference to a model is gone
        self._polling = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._poll_forever, name="registry", daemon=True)
        self._advance: AdvancePreparation | None = None
        if config.newest is not None:
            self._advance = AdvancePreparation(config.newest, self._prepare_in_advance)
        self._advance_thread = threading.Thread(target=self._prepare_forever, name="advance", daemon=True)

    def start(self) -> None:
        """Start polling the registry."""
        self._thread.start()
        if self._advance is not None:
            self._advance_thread.start()

    def stop(self) -> None:
        """Stop polling; a poll that is running is given ``STOP_TIMEOUT_S`` to end."""
        self._stopping.set()
        if self._advance is not None:
            self._advance.interrupt()
            self._advance_thread.join(STOP_TIMEOUT_S)
        self._thread.join(STOP_TIMEOUT_S)

    def poll(self, *, again: bool = False) -> str:
        """Poll the registry now, and load the version that it names.

        Parameters
        ----------
        again
            Retry a version that failed even if its pause is not over.

        Returns
        -------
        str
            ``unchanged``, ``loaded``, ``waiting`` (nothing is in the stage), ``unreachable``, ``failed`` (the version
            cannot be loaded) or ``backing off`` (it failed before and is retried later).
        """
        with self._polling:
            if self._needs_gc.is_set():
                self._needs_gc.clear()
                gc.collect()  # torch's programs are reference cycles, which would stay in memory
            try:
                wanted = self._source.find()
            except NotRegistered as error:
                self._note_registry(str(error), reachable=True)
                self._fallbacks = False  # the registry has the last word
                return "waiting"
            except Exception as error:  # noqa: BLE001  no error ends the polling
                self._note_registry(_problem(error), reachable=False)
                self._load_fallback()
                return "unreachable"
            self._note_registry(None, reachable=True)
            return self._sync_to(wanted, again)

    def reason(self) -> str:
        """Reason why no model answers, in words for clients."""
        loading, failure = self.loading, self.failure  # the other thread may set them to None meanwhile
        if loading is not None:
            return f"version {loading.version} is being loaded"
        if failure is not None:
            return f"version {failure.release.version} cannot be loaded: {failure.reason}"
        return self._state.problem or "the registry has not answered yet"

    def describe(self) -> RegistryState:
        """State of the registry and of the live model."""
        failure, state = self.failure, self._state
        return replace(
            state,
            source=("last good copy" if state.copy_since else "registry") if self.model else None,
            load_failure=failure.state if failure else None,
            contradiction=self._source.contradiction or None,
        )

    def _poll_forever(self) -> None:
        while not self._stopping.is_set():
            try:
                self.poll()
            except Exception:  # the next poll may succeed
                logger.exception("polling the registry failed")
            self._stopping.wait(self._config.poll_interval)

    def _prepare_forever(self) -> None:
        while not self._stopping.wait(self._config.poll_interval):
            model = self.model
            if self._advance is not None and model is not None and self.loading is None:
                with suppress(Exception):  # of an unreachable registry, which each poll reports
                    self._advance.prepare_newest(model.release)

    def _prepare_in_advance(self, release: ModelRelease, stopping: threading.Event) -> None:
        bundle = self._fetch(release)
        if self._config.isolated_load is not None:
            # Requests come first, until the version that is being prepared has to serve.
            self._config.isolated_load(bundle, stopping, lambda n: self._pause(n if self.loading is not None else 0))

    def _note_registry(self, problem: str | None, *, reachable: bool) -> None:
        before, now, shown = self._state, time.time(), redact_paths(problem) if problem else None
        if problem and shown != before.problem:  # one line at the beginning and one at the end
            serving = f"; version {self.model.version} {self._config.role} on" if self.model else ""
            logger.warning("%s%s", problem, serving)
        elif reachable and not before.reachable and before.last_poll is not None:
            logger.info("the registry is reachable again")
        since = None if reachable else before.unreachable_since or now
        self._state = replace(before, problem=shown, reachable=reachable, last_poll=now, unreachable_since=since)

    def _sync_to(self, wanted: ModelRelease, again: bool) -> str:
        if self.model is not None and release_key(self.model.release) == release_key(wanted):
            self.failure = None  # a broken successor was withdrawn
            self._state = replace(self._state, copy_since=None)  # a copy is the very model that the registry names
            return "unchanged"
        failed = self.failure
        if failed is not None and release_key(failed.release) != release_key(wanted):
            failed = self.failure = None
        if failed is not None and not again and time.monotonic() < failed.next_attempt:
            return "backing off"
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
            before, (model, smoke_tested) = self.model, self._previous
            self._activate(model, smoke_tested)
            if self._local_cache is not None:
                self._local_cache.copy(self._source, wanted)
        else:
            before, model = self.model, self._load(wanted)
        self.failure, self._state = None, replace(self._state, copy_since=None)
        replaced = f" in place of version {before.version}" if before else ""
        seconds = time.monotonic() - started
        logger.info("version %s %s%s, loaded in %.1f s", model.version, self._config.role, replaced, seconds)

    def _load(self, wanted: ModelRelease) -> LiveModel:
        """Load and activate a version that is not in memory."""
        if self._advance is not None:
            self._advance.interrupt(wanted.digest)
        bundle = self._fetch(wanted)
        if self.model is not None and self._config.isolated_load is not None:
            self._config.isolated_load(bundle, self._stopping, self._pause)
        return self._prepare(wanted, bundle)

    def _fetch(self, wanted: ModelRelease) -> Bundle:
        bundle = self._local_cache.load(self._source, wanted) if self._local_cache else self._source.load(wanted)
        if wanted.digest and bundle.digest != wanted.digest:
            raise BundleError("the registry changed while the version was being loaded")
        return bundle

    def _load_fallback(self) -> None:
        """Activate the last good copy if no model answers and the registry has named none yet; tried once."""
        if self.model is not None or self._local_cache is None or not self._fallbacks:
            return
        self._fallbacks = False
        for release, bundle in self._local_cache.load_last_served():
            self.loading = release
            try:
                model = self._prepare(release, bundle)
            except Exception as error:  # noqa: BLE001  as in ``_sync_to``
                logger.warning("the last good copy, version %d, cannot be used: %s", release.version, first_line(error))
                continue
            finally:
                self.loading = None
            self._state = replace(self._state, copy_since=model.loaded_at)
            logger.warning("version %s %s from the last good copy on this machine", model.version, self._config.role)
            return

    def _prepare(self, release: ModelRelease, bundle: Bundle) -> LiveModel:
        """Build and test the engine of a bundle, and activate it."""
        engine = self._config.prepare(bundle)
        model = LiveModel(release, bundle, engine, time.time())
        weakref.finalize(model, _close, engine, model.version, self._needs_gc).atexit = False
        self._activate(model, smoke_test(engine, bundle.card, model.version))
        return model

    def _activate(self, model: LiveModel, smoke_tested: SmokeTestResult) -> None:
        """Replace the live model by one that passed its smoke test."""
        comparison = compare_outputs(smoke_tested, self._smoke_tested) if self._smoke_tested else None
        self._on_activate(model)
        if self._config.keep_previous and self.model is not None and self._smoke_tested is not None:
            self._previous = self.model, self._smoke_tested
        self.model, self._smoke_tested = model, smoke_tested
        self._state = replace(self._state, comparison=comparison, changes=self._state.changes + 1)
        if comparison is not None:
            logger.log(logging.WARNING if comparison.constant else logging.INFO, "%s", comparison)

    def _back_off(self, release: ModelRelease, error: Exception, attempts: int) -> None:
        pause = min(self._config.poll_interval * 2 ** min(attempts, MAX_DOUBLINGS), MAX_BACKOFF_S)
        reason = redact_paths(first_line(error))
        self.failure = LoadFailure(release, reason, attempts, time.monotonic() + pause)
        logger.error(
            "version %d cannot be loaded: %s; %s, next attempt in %.0f s",
            release.version,
            first_line(error),
            f"version {self.model.version} {self._config.role} on" if self.model else f"nothing {self._config.role}",
            pause,
        )
        if self._on_failure is None or attempts > 1:
            return
        try:
            self._on_failure(release, reason)
        except Exception as error:  # noqa: BLE001  a failing callback must not stop the manager
            logger.warning("the failure of version %d could not be reported: %s", release.version, first_line(error))


def _problem(error: Exception) -> str:
    if isinstance(error, ToolkitError):
        return str(error)
    logger.error("polling the registry failed", exc_info=error)
    return f"polling the registry failed: {type(error).__name__}"


def _close(engine: Engine, version: str, needs_gc: threading.Event) -> None:
    """Close the engine of a model without references, in the thread that held the last one."""
    needs_gc.set()
    try:
        engine.close()
    except Exception as error:  # noqa: BLE001  the thread is answering a request
        logger.warning("the engine of version %s could not be closed: %s", version, first_line(error))
