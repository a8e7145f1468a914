"""A running service: the live model, the worker threads, the monitor and the metrics."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
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
from toolkit.serving.inference.result import ImageSource, InferenceResult, Upload
from toolkit.serving.metrics import ServiceMetrics, gauge_family, shadow_families
from toolkit.serving.models.engines import torch_threads
from toolkit.serving.models.manager import LiveModel, ModelManager, ModelManagerConfig, RegistryState
from toolkit.serving.models.shadow import ShadowRunner, merge_counts
from toolkit.serving.models.source import ModelRelease, Source
from toolkit.serving.problems import Problem
from toolkit.serving.schemas import BatchItem, ClassScore, ModelName, Prediction, ProblemDocument, Timings
from toolkit.serving.workers import State, WorkerGroup
from toolkit.system.metrics import usable_cores

logger = logging.getLogger(__name__)

MONITOR_REFRESH_S = 5.0  # shortest time between two evaluations of the monitor's windows
# From best to worst. The alerts are critical if one of level critical or immediate is confirmed.
STATUSES = ("ok", "warning", "degraded", "critical", "waiting", "draining")
LEVELS = ("warning", "critical", "immediate")  # of alerts
LOADING = "model_loading"  # metric of the alert of a version that fails to load; the registry component has details
WINDOW_METRICS = ("n", "n_labels", "accuracy", "degradation", "mean_confidence")  # exported to Prometheus


class ServedModel(TypedDict):
    """Identity of the live model, as JSON shows it."""

    name: str
    version: int
    stage: str
    loaded_at: float


@dataclass(frozen=True)
class Component:
    """Status of a part of the service, one of ``STATUSES``, and the reason unless it is ``ok``."""

    status: str
    reason: str | None


@dataclass(frozen=True)
class Health:
    """State of a service; ``status`` is the worst of the components, ``reason`` joins the reasons of those."""

    status: str
    ready: bool
    reason: str | None
    components: dict[str, Component]
    model: ServedModel | None
    registry: RegistryState
    queue: dict[str, int]
    monitor: dict[str, int]


@dataclass(frozen=True)
class ServiceConfig:
    """Settings of a service."""

    threads: int  # worker threads
    max_queue: int  # images that may wait for one
    max_bytes: int  # of all bodies in memory together
    request_timeout: float  # seconds until an image is answered
    limits: ImageLimits
    top_k: int  # classes in an answer, unless the request says how many
    models: ModelManagerConfig
    shadow: Source | None = None  # of a second model that is run on a share of the images
    shadow_share: float = 0.0


class Alert(Protocol):
    """Attributes of an alert that the service needs."""

    @property
    def metric(self) -> str: ...
    @property
    def level(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def message(self) -> str: ...


class Monitor(Protocol):
    """Methods of ``monitoring.ModelMonitor`` that the service needs."""

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
    """Model manager, batcher, shadow and monitor of one process, from the start of the application to its end.

    ``monitor`` is closed with the service; ``new_id`` returns a new prediction id; ``workers`` are the processes of the
    service, if there are several.
    """

    def __init__(
        self,
        source: Source,
        monitor: Monitor,
        new_id: Callable[[], str],
        metrics: ServiceMetrics,
        config: ServiceConfig,
        workers: WorkerGroup | None = None,
    ) -> None:
        self.metrics = metrics
        metrics.gauges = self.families
        threads = torch_threads(config.threads, usable_cores() // (workers.count if workers else 1))
        self.admission = AdmissionController(config.threads, config.max_queue, config.max_bytes)
        self.batcher = Batcher(
            config.threads, config.limits, prepare=partial(torch.set_num_threads, threads), on_batch=self._on_batch
        )
        self.model_manager = ModelManager(
            source, self._on_model_change, config.models, on_failure=self._on_load_failure, pause=self.batcher.pause
        )
        self.shadow: ShadowRunner | None = None
        if config.shadow is not None and config.shadow_share:
            self.shadow = ShadowRunner(config.shadow, config.models, config.shadow_share, busy=self._is_busy)
        self.windows = CachedCall(monitor.calculate_metrics, MONITOR_REFRESH_S)
        self._active_alerts = CachedCall(monitor.active_alert_states, MONITOR_REFRESH_S)
        self._alerts = CachedCall(monitor.active_alerts, MONITOR_REFRESH_S)
        self._config = config
        self._workers = workers
        self._monitor = monitor
        self._monitored: LiveModel | None = None  # the model that the monitor follows
        self._new_id = new_id
        self._retry_after = max(1, math.ceil(config.models.poll_interval))

    def start(self) -> None:
        """Start polling for models."""
        self.model_manager.start()
        if self.shadow is not None:
            self.shadow.start()
        if self._workers is not None:
            self._workers.start(self.state, partial(self.model_manager.poll, again=True))

    def close(self) -> None:
        """Finish the images that are being worked on, and store the predictions that were logged."""
        self.model_manager.stop()
        if self.shadow is not None:
            self.shadow.stop()
        if self._workers is not None:
            self._workers.stop()
        self.batcher.close()
        self._monitor.close()

    def poll(self) -> str:
        """Poll the registry now, in all processes, and retry what failed before; returns the outcome in this one."""
        if self._workers is not None:
            self._workers.request_poll()
        return self.model_manager.poll(again=True)

    def model(self) -> LiveModel:
        """Return the live model; a 503 while there is none."""
        model = self.model_manager.model
        if model is None:
            raise problems.not_ready(self.model_manager.reason(), self._retry_after)
        return model

    def ready(self) -> LiveModel:
        """Return the live model; a 503 while one process has none, since any of them may get the next request."""
        model = self.model()
        if self._workers is not None and (unready := self._workers.n_not_ready()):
            raise problems.not_ready(
                f"{unready} of {self._workers.count} processes have no model yet", self._retry_after
            )
        return model

    def require_ready(self, top_k: int | None) -> None:
        """Raise the problem of a request that cannot be answered, before its body is read."""
        model = self.model()
        if top_k is not None:
            _ranks(model, top_k)
        self.admission.require_slot(1)

    async def predict(self, read: ImageSource, top_k: int | None) -> Prediction:
        """Answer one image that has a slot."""
        finish = partial(self._answer, top_k=top_k)
        answer: Prediction = await self.batcher.run(read, self.model, finish, self._config.request_timeout)
        return answer

    async def predict_one_of_many(self, index: int, read: ImageSource, top_k: int | None, request_id: str) -> BatchItem:
        """Answer one image of a batch, with a prediction or an error of its own."""
        try:
            return BatchItem(index=index, prediction=await self.predict(read, top_k))
        except Problem as error:
            problem = error
        except Exception:
            logger.exception("image %d of request %s failed", index, request_id)
            problem = Problem(problems.INTERNAL, "the service failed on this image")
        self.metrics.errors.labels(problem.problem_type.slug).inc()
        return BatchItem(index=index, error=ProblemDocument(**problem.document(request_id)))

    def _on_batch(self, images: int, seconds: float) -> None:
        self.admission.record_duration(images, seconds)
        self.metrics.batch_size.observe(images)

    def _answer(self, done: InferenceResult, top_k: int | None) -> Prediction:
        """Count and log a result, and make the response; called in a worker thread."""
        model = done.model
        count = min(self._config.top_k, len(model.classes)) if top_k is None else _ranks(model, top_k)
        self.metrics.prediction(done)
        prediction_id = self._log(done)
        if not done.finite:
            logger.error("version %s returned NaN or infinity for an image", model.version)
            raise Problem(problems.NON_FINITE, "the model returned NaN or infinity")
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
        return self.admission.in_flight > self.admission.threads

    def _submit_to_shadow(self, done: InferenceResult) -> None:
        """Submit an image to the shadow, without a reference to the model, which would keep it in memory."""
        if self.shadow is not None:
            size = done.model.bundle.card.image_size
            self.shadow.submit(
                done.model,
                done.probabilities,
                partial(_pixels, done.image.pixels, size, done.source, self._config.limits),
            )

    def _log(self, done: InferenceResult) -> str:
        """Log a result to the monitor, which does not wait; an error is counted and has no other effect."""
        prediction_id = self._new_id()
        if self._monitored and self._monitored.classes != done.model.classes:
            self.metrics.monitor_errors.inc()  # from before a change of classes: the monitor follows the new model
            return prediction_id
        try:
            self._monitor.log_prediction(
                done.probabilities,
                statistics=done.image.statistics(),
                latency_ms=done.timings_ms["total"],
                prediction_id=prediction_id,
                model_version=done.model.version,
                source=done.source.name if isinstance(done.source, Upload) else None,
            )
        except Exception as error:  # noqa: BLE001  monitoring must not fail a prediction
            self.metrics.monitor_errors.inc()
            logger.warning("a prediction could not be logged: %s", error)
        return prediction_id

    def _on_model_change(self, model: LiveModel) -> None:
        """Let the monitor follow a model that is about to answer."""
        try:
            self._monitor.serve(model.version, model.bundle.baseline)
            self._monitored = model
        except Exception as error:  # noqa: BLE001  monitoring must not fail an activation
            logger.warning("the monitor cannot follow version %s: %s", model.version, error)
        self.metrics.model_changes.inc()

    def _on_load_failure(self, release: ModelRelease, reason: str) -> None:
        """Raise an alert for a version that fails to load."""
        live = self.model_manager.model
        meanwhile = f"version {live.version} serves on" if live else "nothing serves"
        self._monitor.report(LOADING, f"Version {release.version} cannot be served: {reason}; {meanwhile}.")

    def health(self, *, draining: bool) -> Health:
        """State of the service."""
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
        """Status of each part of the service."""
        reason = self.model_manager.reason()
        degraded = registry.problem or registry.load_failure or registry.copy_since
        alerts, read_problem = self._worst_alert()
        write_problem = self._monitor.store_problem
        store = f"predictions cannot be stored: {redact_paths(write_problem)}" if write_problem else read_problem
        return {
            "engine": _component("waiting", None if model else reason),
            "registry": _component("degraded", reason if degraded else None),
            "store": _component("degraded", store),
            "alerts": alerts,
        }

    def _worst_alert(self) -> tuple[Component, str | None]:
        """The worst active alert as a component, and the reason if alerts cannot be read.

        The short window may confirm what no alert says yet, by labels that another process has just written.
        """
        try:
            alerts = [(one.level, one.status, one.message) for one in self._alerts() if one.metric != LOADING]
            window = self.windows()["short"]
        except ToolkitError as error:
            return _component("ok", None), f"the store cannot be read: {redact_paths(first_line(error))}"
        if window["level"] in LEVELS and window["status"] == "confirmed":
            message = f"accuracy in the short window is {100 * window['degradation']:.1f} % below the reference"
            alerts.append((window["level"], window["status"], message))
        if not alerts:
            return _component("ok", None), None
        level, status, message = max(alerts, key=lambda one: (one[1] != "suspected", LEVELS.index(one[0])))
        mild = level == "warning" or status == "suspected"
        return _component("warning" if mild else "critical", f"{level} ({status}): {message}"), None

    def queue(self) -> dict[str, int]:
        """Use of the threads and of the queue."""
        return {
            "depth": self.admission.in_flight,
            "threads": self.admission.threads,
            "free_slots": self.admission.free_slots,
        }

    def state(self) -> State:
        """State of this process that is summed over all of them, as JSON."""
        model, stats = self.model_manager.model, self._monitor.writer_stats()
        shadow = self.shadow and self.shadow.counts()
        self.metrics.raise_totals(stats, self._monitor.notification_stats(), shadow["dropped"] if shadow else 0)
        return {
            "model": model and [model.release.name, model.version, model.release.stage, model.bundle.digest],
            "queue": self.queue(),
            "monitor": stats,
            "shadow": shadow,
        }

    def totals(self) -> State:
        """Sums of ``state`` over all processes, with ``models``: the number of processes with each version."""
        own = self.state()
        states = self._workers.states(own) if self._workers else [own]
        shadows = [state["shadow"] for state in states if state["shadow"]]
        return {
            "models": Counter(tuple(state["model"]) for state in states if state["model"]),
            "queue": _sum(state["queue"] for state in states),
            "monitor": _sum(state["monitor"] for state in states),
            "shadow": merge_counts(shadows) if shadows else None,
        }

    def families(self) -> Iterable[Metric]:
        """Gauges for Prometheus: the live model, the queue, the shadow, active alerts, the monitor's windows."""
        sums = self.totals()  # raises the counters too
        models, names = sums["models"], ("name", "version", "stage", "digest")
        if models:
            yield gauge_family("model_info", "The live model, and the number of processes that have it", names, models)
        if sums["shadow"]:
            yield from shadow_families(sums["shadow"])
        yield gauge_family("ready", "Processes that have a model", (), {(): float(models.total())})
        yield gauge_family("queue_depth", "Images being answered or waiting", (), {(): sums["queue"]["depth"]})
        yield gauge_family("monitor_queued", "Predictions to be stored", (), {(): sums["monitor"]["queued"]})
        try:
            windows: Mapping[str, Mapping[str, Any]] = self.windows()
            active = self._active_alerts()
        except ToolkitError:
            return
        levels: dict[tuple[str, ...], float] = {(level,): float(n) for level, n in active.items()}
        yield gauge_family("alerts_active", "Alerts that are active", ("level",), levels)
        evidence = windows["short"]["evidence"] if windows else {}
        shown: dict[tuple[str, ...], float] = {(name,): value for name, value in evidence.items() if value is not None}
        yield gauge_family("detector_evidence", "Evidence of a detector; an alarm at 1", ("metric",), shown)
        for name in WINDOW_METRICS:
            values: dict[tuple[str, ...], float] = {
                (window,): float(metrics[name]) for window, metrics in windows.items() if metrics[name] is not None
            }
            yield gauge_family(f"window_{name}", f"{name} of the monitor's window", ("window",), values)


def _component(status: str, reason: str | None) -> Component:
    return Component(status if reason else "ok", reason)


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def _pixels(
    pixels: NDArray[np.uint8], size: int, read: ImageSource, limits: ImageLimits, other_size: int
) -> NDArray[np.uint8]:
    """Return an image at the size of another model; ``pixels`` are at ``size``."""
    return pixels if other_size == size else load_image(read(), other_size, limits).pixels


def _ranks(model: LiveModel, top_k: int) -> int:
    if top_k > len(model.classes):
        raise Problem(problems.INVALID, f"query.top_k: must be at most {len(model.classes)}, the number of classes")
    return top_k


def model_id(model: LiveModel | None) -> ServedModel | None:
    """Identity of a model as JSON."""
    if model is None:
        return None
    release = model.release
    return {"name": release.name, "version": release.version, "stage": release.stage, "loaded_at": model.loaded_at}
