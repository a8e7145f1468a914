"""One running service: the live model, the threads that answer, the monitor that is told, the figures."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from prometheus_client.core import Metric

from toolkit.bundle.baseline import Baseline
from toolkit.errors import ToolkitError, first_line
from toolkit.images.decoding import ImageLimits, load_image
from toolkit.redaction import redact_paths
from toolkit.serving import problems
from toolkit.serving.cached_call import CachedCall
from toolkit.serving.inference.admission import AdmissionController
from toolkit.serving.inference.batcher import Batcher
from toolkit.serving.inference.result import ImageSource, InferenceResult, file_name
from toolkit.serving.metrics import ServiceMetrics, gauge_family, shadow_families
from toolkit.serving.models.engines import set_torch_threads, torch_threads
from toolkit.serving.models.manager import (
    LiveModel,
    ModelManager,
    ModelManagerConfig,
    ModelRelease,
    RegistryState,
    Source,
)
from toolkit.serving.models.shadow import ShadowRunner, merge_stats
from toolkit.serving.problems import Problem
from toolkit.serving.schemas import BatchItem, ClassScore, ModelName, Prediction, ProblemDocument, Timings
from toolkit.serving.workers import State, WorkerGroup
from toolkit.system.metrics import usable_cores

logger = logging.getLogger(__name__)

MONITOR_REFRESH_S = 5.0  # the monitor's windows are measured no more often than this
# How the service is, from good to bad. An alert is critical when it is confirmed, and critical or immediate.
STATUSES = ("ok", "warning", "degraded", "critical", "waiting", "draining")
LEVELS = ("warning", "critical", "immediate")  # of alerts
LOADING = "model_loading"  # alerts of versions that are set aside, of which the registry's component knows more
WINDOW_METRICS = ("n", "n_labels", "accuracy", "degradation", "mean_confidence")  # shown to Prometheus


class ServedModel(TypedDict):
    """The name of the model that answers."""

    name: str
    version: int
    stage: str
    loaded_at: float


@dataclass(frozen=True)
class Component:
    """How a part of the service is: one of ``STATUSES``, and the reason when that is not ``ok``."""

    status: str
    reason: str | None


@dataclass(frozen=True)
class Health:
    """Everything an operator asks first; ``status`` is the worst of the components, ``reason`` what they say."""

    status: str
    ready: bool
    reason: str | None
    components: dict[str, Component]
    model: ServedModel | None
    registry: RegistryState
    queue: dict[str, int]
    monitor: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ServiceConfig:
    """How a service answers.

    Parameters
    ----------
    workers, waiting
        Threads that answer, and images that may wait for one.
    most_bytes
        Bodies that may be in memory together.
    seconds
        How long an answer may take.
    limits
        What one image may be.
    top_k
        Classes listed when a request does not say how many.
    models
        How a model is loaded.
    shadow
        Where another model comes from that is run on a share of what was answered.
    shadow_share
        That share; 0 runs none.
    """

    workers: int
    waiting: int
    most_bytes: int
    seconds: float
    limits: ImageLimits
    top_k: int
    models: ModelManagerConfig
    shadow: Source | None = None
    shadow_share: float = 0.0


class Alert(Protocol):
    """What the service needs of an alert."""

    @property
    def metric(self) -> str: ...

    @property
    def level(self) -> str: ...

    @property
    def status(self) -> str: ...

    @property
    def message(self) -> str: ...


class Monitor(Protocol):
    """What the service needs of ``monitoring.ModelMonitor``."""

    def serve(self, version: str, baseline: Baseline | None = None) -> None: ...

    def log_prediction(
        self,
        probabilities: ArrayLike,
        *,
        statistics: Mapping[str, float] | None = None,
        latency_ms: float | None = None,
        prediction_id: str | None = None,
        model_version: str | None = None,
        source: str | None = None,
    ) -> str: ...

    def calculate_metrics(self, window: str | None = None) -> dict[str, Any]: ...

    def writer_stats(self) -> dict[str, int]: ...

    def active_alert_states(self) -> dict[str, int]: ...

    def active_alerts(self) -> Sequence[Alert]: ...

    @property
    def store_problem(self) -> str | None: ...

    def notification_stats(self) -> dict[str, dict[str, int]]: ...

    def report(self, metric: str, message: str) -> bool: ...

    def close(self) -> None: ...


class Service:
    """Everything that runs while the application runs.

    Parameters
    ----------
    source
        Where models come from.
    monitor
        Told of each answer; closed with the service.
    new_id
        Names predictions.
    figures
        Where everything is counted.
    config
        How it answers.
    fellows
        The other processes of the service, where there are any.
    """

    def __init__(
        self,
        source: Source,
        monitor: Monitor,
        new_id: Callable[[], str],
        figures: ServiceMetrics,
        config: ServiceConfig,
        fellows: WorkerGroup | None = None,
    ) -> None:
        self.metrics = figures
        threads = torch_threads(config.workers, usable_cores() // (fellows.count if fellows else 1))
        self.admission = AdmissionController(config.workers, config.waiting, config.most_bytes)
        self.batcher = Batcher(
            config.workers, config.limits, prepare=partial(set_torch_threads, threads), on_batch=self._note_batch
        )
        self.model_manager = ModelManager(
            source, self._on_model_change, config.models, on_failure=self._failed, rest=self.batcher.pause
        )
        self.shadow: ShadowRunner | None = None
        if config.shadow is not None and config.shadow_share:
            self.shadow = ShadowRunner(config.shadow, config.models, config.shadow_share, busy=self._is_busy)
        self.windows = CachedCall(monitor.calculate_metrics, MONITOR_REFRESH_S)
        self._active_alerts = CachedCall(monitor.active_alert_states, MONITOR_REFRESH_S)
        self._alerts = CachedCall(monitor.active_alerts, MONITOR_REFRESH_S)
        self._config = config
        self._workers = fellows
        self._monitor = monitor
        self._watched: LiveModel | None = None  # the one that the monitor was told of last
        self._new_id = new_id
        self._retry_after = max(1, math.ceil(config.models.poll_seconds))

    def start(self) -> None:
        """Begin to look for a model."""
        self.model_manager.start()
        if self.shadow is not None:
            self.shadow.start()
        if self._workers is not None:
            self._workers.start(self.state, partial(self.model_manager.poll, again=True))

    def close(self) -> None:
        """Answer what was accepted, store what was logged."""
        self.model_manager.stop()
        if self.shadow is not None:
            self.shadow.stop()
        if self._workers is not None:
            self._workers.stop()
        self.batcher.close()
        self._monitor.close()

    def poll(self) -> str:
        """Look at the registry now, in all processes, and try again what failed before; what came of it in this one."""
        if self._workers is not None:
            self._workers.request_poll()
        return self.model_manager.poll(again=True)

    def model(self) -> LiveModel:
        """The model that answers now.

        Raises
        ------
        Problem
            503 while there is none.
        """
        model = self.model_manager.model
        if model is None:
            raise problems.not_ready(self.model_manager.reason(), self._retry_after)
        return model

    def ready(self) -> LiveModel:
        """The model that answers now, if each process has one that takes connections.

        Raises
        ------
        Problem
            503 while one has none: a request may come to either.
        """
        model = self.model()
        if self._workers is not None and (unready := self._workers.n_not_ready()):
            raise problems.not_ready(
                f"{unready} of {self._workers.count} processes have no model yet", self._retry_after
            )
        return model

    def require_ready(self, top_k: int | None) -> None:
        """Refuse, before its body is read, a request that cannot be answered."""
        _ranks(self.model(), top_k or 1)
        self.admission.require_slot(1)

    async def predict(self, read: ImageSource, top_k: int | None) -> Prediction:
        """Answer one image that has a place."""
        answer: Prediction = await self.batcher.run(
            read, self.model, partial(self._answer, top_k=top_k), self._config.seconds
        )
        return answer

    async def predict_one_of_many(self, index: int, read: ImageSource, top_k: int | None, request_id: str) -> BatchItem:
        """Answer one image of a batch; whatever is wrong with it stays with it."""
        try:
            return BatchItem(index=index, prediction=await self.predict(read, top_k))
        except Problem as error:
            problem = error
        except Exception:
            logger.exception("image %d of request %s failed", index, request_id)
            problem = Problem(problems.INTERNAL, "the service failed on this image")
        self.metrics.bad_image(problem.problem_type.slug)
        return BatchItem(index=index, error=ProblemDocument(**problem.document(request_id)))

    def _note_batch(self, images: int, seconds: float) -> None:
        self.admission.record_duration(images, seconds)
        self.metrics.batch(images)

    def _answer(self, done: InferenceResult, top_k: int | None) -> Prediction:
        """In a worker thread: count, log, and say what the model said."""
        model = done.model
        count = min(self._config.top_k, len(model.classes)) if top_k is None else _ranks(model, top_k)
        self.metrics.prediction(done)
        prediction_id = self._log(done)
        if not done.finite:
            logger.error("version %s gave NaN or infinity for an image", model.version)
            raise Problem(
                problems.NON_FINITE, "the model answered with NaN or infinity, which no class can be read from"
            )
        self._submit_to_shadow(done)
        ranked = [ClassScore(label=label, probability=probability) for label, probability in done.top_k(count)]
        return Prediction(
            prediction_id=prediction_id,
            predicted_class=ranked[0].label,
            confidence=ranked[0].probability,
            top_k=ranked,
            model=ModelName(name=model.release.name, version=model.release.version, stage=model.release.stage),
            timings_ms=Timings(**done.timings_ms),
        )

    def _is_busy(self) -> bool:
        return self.admission.in_flight > self.admission.workers

    def _submit_to_shadow(self, done: InferenceResult) -> None:
        """Let the shadow have a look; what is handed over does not hold the model, which would not be freed."""
        if self.shadow is not None:
            size = done.model.bundle.card.image_size
            self.shadow.submit(
                done.model,
                done.probabilities,
                partial(_pixels, done.image.pixels, size, done.source, self._config.limits),
            )

    def _log(self, done: InferenceResult) -> str:
        """Hand an answer to the monitor, which never waits; what goes wrong there is counted and no more."""
        prediction_id = self._new_id()
        if self._watched and self._watched.classes != done.model.classes:
            self.metrics.monitor_error()  # an answer begun before a change of classes: the monitor knows the new ones
            return prediction_id
        try:
            self._monitor.log_prediction(
                done.probabilities,
                statistics=done.image.statistics(),
                latency_ms=done.timings_ms["total"],
                prediction_id=prediction_id,
                model_version=done.model.version,
                source=file_name(done.source),
            )
        except Exception as error:  # noqa: BLE001  a prediction is never lost to its monitoring
            self.metrics.monitor_error()
            logger.warning("the monitor did not take a prediction: %s", error)
        return prediction_id

    def _on_model_change(self, model: LiveModel) -> None:
        """Tell the monitor which version answers from now on."""
        try:
            self._monitor.serve(model.version, model.bundle.baseline)
            self._watched = model
        except Exception as error:  # noqa: BLE001  a new model is not held up by its monitoring
            logger.warning("the monitor did not take version %s: %s", model.version, error)
        self.metrics.model_change()

    def _failed(self, release: ModelRelease, reason: str) -> None:
        """Somebody should know of a version that is set aside."""
        serving = self.model_manager.model
        meanwhile = f"version {serving.version} serves on" if serving else "nothing serves"
        self._monitor.report(LOADING, f"Version {release.version} cannot be served: {reason}; {meanwhile}.")

    def health(self, *, draining: bool) -> Health:
        """How the service is now."""
        model, registry = self.model_manager.model, self.model_manager.describe()
        components = self._components(model, registry)
        worst = max((part.status for part in components.values()), key=STATUSES.index)
        reasons = [part.reason for part in components.values() if part.status == worst and part.reason]
        return Health(
            status="draining" if draining else worst,
            ready=model is not None and not draining,
            reason="; ".join(reasons) or None,
            components=components,
            model=model_id(model),
            registry=registry,
            queue=self.queue(),
            monitor=self._monitor.writer_stats(),
        )

    def _components(self, model: LiveModel | None, registry: RegistryState) -> dict[str, Component]:
        """How each part of the service is: its status, and the reason when that is not ``ok``."""
        waiting = None if model else self.model_manager.reason()
        troubled = registry.problem or registry.load_failure or registry.copy_since
        alerts, unread = self._worst_alert()
        lost = self._monitor.store_problem
        failing = f"predictions cannot be stored: {redact_paths(lost)}" if lost else unread
        return {
            "engine": _component("waiting", waiting),
            "registry": _component("degraded", self.model_manager.reason() if troubled else None),
            "store": _component("degraded", failing),
            "alerts": alerts,
        }

    def _worst_alert(self) -> tuple[Component, str | None]:
        """The worst that the monitor knows as a component, and why that cannot be known.

        The short window may show for certain what no alert says: labels that another process has just written.
        """
        try:
            known = [(one.level, one.status, one.message) for one in self._alerts() if one.metric != LOADING]
            now = self.windows()["short"]
            known += [_of_window(now)] if now["level"] in LEVELS and now["status"] == "confirmed" else []
        except ToolkitError as error:
            return _component("ok", None), f"the store cannot be read: {redact_paths(first_line(error))}"
        if not known:
            return _component("ok", None), None
        level, status, message = max(known, key=lambda one: (one[1] != "suspected", LEVELS.index(one[0])))
        mild = level == "warning" or status == "suspected"
        return _component("warning" if mild else "critical", f"{level} ({status}): {message}"), None

    def queue(self) -> dict[str, int]:
        """How busy the threads are."""
        return {
            "depth": self.admission.in_flight,
            "threads": self.admission.workers,
            "free_slots": self.admission.free_slots,
        }

    def state(self) -> State:
        """What is added up over the processes of a service, as JSON knows it."""
        model, stats = self.model_manager.model, self._monitor.writer_stats()
        shadow = self.shadow and self.shadow.metrics()
        self.metrics.raise_totals(stats, self._monitor.notification_stats(), shadow["dropped"] if shadow else 0)
        return {
            "model": model and [model.release.name, model.version, model.release.stage, model.bundle.digest],
            "queue": self.queue(),
            "monitor": stats,
            "shadow": shadow,
        }

    def totals(self) -> State:
        """The same over all processes, with ``models``: how many of them answer with each version."""
        own = self.state()
        states = self._workers.states(own) if self._workers else [own]
        return {
            "models": Counter(tuple(state["model"]) for state in states if state["model"]),
            "queue": _sum(state["queue"] for state in states),
            "monitor": _sum(state["monitor"] for state in states),
            "shadow": merge_stats([state["shadow"] for state in states if state["shadow"]]),
        }

    def families(self) -> Iterable[Metric]:
        """What Prometheus sees beside the counters: the live model, the queue, the monitor's windows."""
        sums = self.totals()  # which raises the counters too
        models, names = sums["models"], ("name", "version", "stage", "digest")
        if models:
            yield gauge_family("model_info", "The model that answers, and in how many processes", names, models)
        if sums["shadow"]:
            yield from shadow_families(sums["shadow"])
        yield gauge_family("ready", "Processes in which a model answers", (), {(): float(models.total())})
        yield gauge_family("queue_depth", "Images being answered or waiting", (), {(): sums["queue"]["depth"]})
        yield gauge_family("monitor_queued", "Predictions that wait to be stored", (), {(): sums["monitor"]["queued"]})
        try:
            windows: Mapping[str, Mapping[str, Any]] = self.windows()
            standing = self._active_alerts()
        except ToolkitError:
            return
        levels: dict[tuple[str, ...], float] = {(level,): float(n) for level, n in standing.items()}
        yield gauge_family("alerts_active", "Alerts that have not been cleared", ("level",), levels)
        evidence = windows["short"]["evidence"] if windows else {}
        shown: dict[tuple[str, ...], float] = {
            (metric,): value for metric, value in evidence.items() if value is not None
        }
        yield gauge_family(
            "detector_evidence", "How far a detector is on its way to an alarm, from 0 to 1", ("metric",), shown
        )
        for name in WINDOW_METRICS:
            values: dict[tuple[str, ...], float] = {
                (window,): float(figures[name]) for window, figures in windows.items() if figures[name] is not None
            }
            yield gauge_family(f"window_{name}", f"{name} of the monitor's window", ("window",), values)


def _of_window(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    """What a window shows by its labels: level, status and message, as of an alert."""
    message = f"accuracy in the {figures['window']} window is {100 * figures['degradation']:.1f} % below the reference"
    return figures["level"], figures["status"], message


def _component(trouble: str, reason: str | None) -> Component:
    return Component(trouble if reason else "ok", reason)


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def _pixels(
    pixels: NDArray[np.uint8], size: int, read: ImageSource, limits: ImageLimits, wanted: int
) -> NDArray[np.uint8]:
    """An image at the size that another model wants."""
    return pixels if wanted == size else load_image(read(), wanted, limits).pixels


def _ranks(model: LiveModel, top_k: int) -> int:
    if top_k > len(model.classes):
        raise Problem(problems.INVALID, f"query.top_k: must be at most {len(model.classes)}, the number of classes")
    return top_k


def model_id(model: LiveModel | None) -> ServedModel | None:
    """The live model's name as JSON."""
    if model is None:
        return None
    release = model.release
    return {"name": release.name, "version": release.version, "stage": release.stage, "loaded_at": model.loaded_at}
