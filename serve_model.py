"""Serve the Production model over HTTP, monitor its predictions, and change models without interruption.

    python serve_model.py                                    # on http://127.0.0.1:8000
    python serve_model.py --port 9000 --model-name pets --monitor-store /srv/monitoring.db
    SERVE_PREDICT_KEY=... SERVE_ADMIN_KEY=... python serve_model.py --host 0.0.0.0 --workers 4

    curl -F file=@cat.jpg localhost:8000/predict
    curl -H 'Content-Type: image/jpeg' --data-binary @cat.jpg 'localhost:8000/predict?top_k=3'
    curl -F files=@cat.jpg -F files=@dog.png localhost:8000/predict/batch
    curl -H 'Content-Type: application/json' -d '{"prediction_id": "...", "label": "cat"}' localhost:8000/feedback
    curl localhost:8000/health
    curl -X POST localhost:8000/admin/reload

The dashboard is at /dashboard, all routes are at /docs. The service starts without a model and loads
the one in Production as soon as there is one; it follows each promotion and each rollback, and a
version that cannot be loaded leaves the previous one serving. Predictions are logged to the monitor's
store, monitoring.db in this folder unless --monitor-store or MONITORING_STORE says otherwise; copies
of the versions that served are kept in served_models in this folder, from which the service starts
while MLflow is unreachable. Keys come from the environment only: SERVE_PREDICT_KEY for /predict,
/predict/batch and /feedback, SERVE_ADMIN_KEY for /admin/reload, SERVE_WEBHOOK_SECRET to sign alerts.
SIGTERM and Ctrl-C end it with status 0 once all accepted requests are answered and stored. With
--workers several processes answer on one address; they are restarted when they die, and metrics are
sums over all of them.
"""

from toolkit.cli.startup import begin_imports

if __name__ == "__main__":
    begin_imports()

import asyncio
import ipaddress
import logging
import re
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from socket import socket
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import CliSuppress

from toolkit.cli.script_commands import process_command
from toolkit.cli.settings import ScriptSettings, environment, parse, read_first, run_script
from toolkit.errors import SettingsError
from toolkit.system.metrics import usable_cores

ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[^\s/:@\[\]?#]+)(:\d{1,5})?")


class ServeSettings(ScriptSettings):
    """Settings of the service."""

    model_config = environment("SERVE_")

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 opens it to the network")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    model_name: str = Field("image-classifier", description="registered model")
    stage: Literal["Production", "Staging"] = Field("Production", description="stage of the version to serve")
    tracking_uri: str | None = Field(None, description="MLflow store; MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    engine: Literal["auto", "openvino", "torch"] = Field(
        "auto", description="library that runs the model; auto selects the fastest that agrees with it"
    )
    shadow_share: float = Field(0.0, ge=0, le=1, description="share of the images that also run on the Staging model")
    model_cache_dir: Path = Field(Path("served_models"), description="folder for copies of the versions that served")
    poll_interval: float = Field(5.0, gt=0, le=3600, description="seconds between two polls of the registry")
    monitor_store: str | None = Field(None, description="store of predictions; MONITORING_STORE, else monitoring.db")
    keep_days: float | None = Field(None, gt=0, description="days for which single predictions are kept; default: all")
    max_false_alarms: float = Field(1.0, gt=0, le=10_000, description="false alarms allowed in a million predictions")
    trust_labels: bool = Field(False, description="let labels of no random sample confirm alerts and trigger actions")
    ignore: str = Field(
        "",
        description="comma-separated metrics that raise no alert, such as prediction_distribution if the mix of "
        "classes changes with the hour; METRIC/short or METRIC/medium for one window",
    )
    alert_webhook: str | None = Field(None, description="https URL, or http on this machine, to post alerts to")
    on_immediate: Literal["nothing", "rollback"] = Field(
        "nothing", description="action when an alert confirms that accuracy fell by more than 20 %"
    )
    top_k: int = Field(5, ge=1, description="classes in an answer, unless the request says how many")
    workers: int = Field(1, ge=1, le=64, description="processes, each with its own model; restarted when they die")
    threads: int | None = Field(None, ge=1, le=256, description="images at once in a process; default: its cores + 1")
    max_queue: int = Field(64, ge=0, description="images that may wait in a process; more are rejected with a 503")
    max_inflight_mb: float = Field(256.0, gt=0, description="MiB of bodies in a process; more are rejected with a 503")
    request_timeout: float = Field(30.0, gt=0, le=3600, description="seconds until an image is answered or gets a 504")
    max_batch: int = Field(32, ge=1, description="images in one request to /predict/batch")
    max_body_mb: float = Field(32.0, gt=0, allow_inf_nan=False, description="largest request body, in MiB")
    max_pixels: int = Field(50_000_000, ge=1, description="largest image, in pixels")
    header_timeout: float = Field(10.0, gt=0, le=600, description="seconds for the headers of a request to arrive")
    body_timeout: float = Field(30.0, gt=0, le=3600, description="seconds for the body of a request to arrive")
    read_timeout: float = Field(10.0, gt=0, le=600, description="seconds between two pieces of a body")
    max_connections: int = Field(4096, ge=1, description="open connections to a process; more are rejected with a 503")
    allow_origin: str = Field("", description="origins of web pages that may send, as https://a.example,...; * for all")
    drain_timeout: float = Field(1.0, ge=0, le=600, description="seconds from not ready until the socket is closed")
    shutdown_timeout: int = Field(10, ge=1, le=600, description="seconds to finish accepted requests at the end")
    predict_key: CliSuppress[SecretStr | None] = Field(None, description="key for predictions and feedback")
    admin_key: CliSuppress[SecretStr | None] = Field(None, description="key for /admin/reload")
    webhook_secret: CliSuppress[SecretStr | None] = Field(None, description="signs alerts posted to the webhook")

    @property
    def origins(self) -> tuple[str, ...]:
        """Origins of web pages that may send requests, besides the service's own."""
        return _origins(self.allow_origin)

    @field_validator("allow_origin")
    @classmethod
    def _are_origins(cls, text: str) -> str:
        if wrong := [origin for origin in _origins(text) if origin != "*" and not ORIGIN.fullmatch(origin)]:
            raise ValueError(f"must be origins such as https://app.example:8443, without a path; got {wrong[0]}")
        return text

    @model_validator(mode="after")
    def _fit_each_other(self) -> Self:
        if self.max_body_mb > self.max_inflight_mb:
            raise ValueError("--max-body-mb must be at most --max-inflight-mb, or such a body would never be accepted")
        if self.max_batch > self.n_threads + self.max_queue:
            raise ValueError(
                "--max-batch must be at most --max-queue plus --threads, or such a batch would never be accepted"
            )
        return self

    @property
    def n_threads(self) -> int:
        """Worker threads of a process: one decodes while the others wait for the engine, or for Python's lock."""
        return self.threads or self.cores + 1

    @property
    def concurrency(self) -> int:
        """Runs of the model at once in a process."""
        return min(self.n_threads, self.cores)

    @property
    def cores(self) -> int:
        """Cores of each process."""
        return max(1, usable_cores() // self.workers)

    @property
    def max_body_bytes(self) -> int:
        """Largest request body in bytes."""
        return int(self.max_body_mb * 2**20)

    @property
    def timeouts(self) -> "Timeouts":
        """Time that a request may take to arrive."""
        return Timeouts(self.header_timeout, self.body_timeout, self.read_timeout)

    def protected_paths(self) -> dict[str, str]:
        """Path to key; with only a predict key set, the admin paths have a random key that no client knows."""
        predict, admin = (key.get_secret_value() if key else None for key in (self.predict_key, self.admin_key))
        if predict and not admin:
            admin = secrets.token_hex()
        keys = dict.fromkeys(PREDICT_PATHS, predict) | dict.fromkeys(ADMIN_PATHS, admin)
        return {path: key for path, key in keys.items() if key}


def _origins(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))


def settings_typed() -> ServeSettings:
    """Parse the settings from the command line and the environment."""
    if any(word.startswith(("--predict-key", "--admin-key", "--webhook-secret")) for word in sys.argv):
        raise SettingsError(
            "keys come from SERVE_PREDICT_KEY, SERVE_ADMIN_KEY and SERVE_WEBHOOK_SECRET:"
            " other users can read a command line"
        )
    return parse(ServeSettings, __doc__)


if __name__ == "__main__":  # --help and errors are printed before the seconds that importing MLflow takes
    read_first(settings_typed)

from fastapi import APIRouter, Body, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import Discriminator, Tag, WithJsonSchema
from starlette.exceptions import HTTPException

from model_registry import ModelRegistry
from monitoring import (
    Alert,
    DriftReport,
    LogNotifier,
    ModelMonitor,
    MonitorConfig,
    Notification,
    Notifier,
    Thresholds,
    WebhookNotifier,
    new_prediction_id,
)
from toolkit.bundle.program import Bundle
from toolkit.errors import ToolkitError, UnknownPrediction
from toolkit.images.decoding import ImageLimits
from toolkit.serving import problems
from toolkit.serving.cached_call import CachedCall
from toolkit.serving.http import static
from toolkit.serving.http.body_stream import Timeouts
from toolkit.serving.http.log_format import log_to_stderr
from toolkit.serving.http.middleware import DirectEndpoints, RequestRules, ServiceMiddleware
from toolkit.serving.http.openapi import build_openapi, error_responses
from toolkit.serving.http.request_body import parse_image, parse_images
from toolkit.serving.http.server import Server, ServerConfig, listen
from toolkit.serving.metrics import ServiceMetrics, wants_prometheus
from toolkit.serving.models import engines
from toolkit.serving.models.isolated_load import IsolatedLoader
from toolkit.serving.models.local_cache import LocalModelCache
from toolkit.serving.models.manager import ModelManagerConfig
from toolkit.serving.models.source import ModelRelease
from toolkit.serving.problems import Problem
from toolkit.serving.routes import binary_tensors, inference_protocols
from toolkit.serving.schemas import (
    Batch,
    Feedback,
    FeedbackError,
    FeedbackResult,
    Feedbacks,
    Prediction,
    ProblemDocument,
    TopK,
)
from toolkit.serving.service import MONITOR_REFRESH_S, Service, ServiceConfig, model_id
from toolkit.serving.workers import WorkerGroup, WorkerSpec, exec_supervisor, limit_malloc_arenas

logger = logging.getLogger(__name__)

MAX_REASON_LENGTH = 400  # characters of an alert in the reason of a rollback
VERSION = "1"  # of the HTTP interface
PREDICT_PATHS = ("/predict", "/predict/batch", "/feedback", *inference_protocols.PREDICT_PATHS)
ADMIN_PATHS = ("/admin/reload",)
# Headers that a page of an allowed origin may send, and read from a response.
CORS_REQUEST_HEADERS = ("Authorization", "X-API-Key", "X-Request-ID", "Content-Encoding", binary_tensors.HEADER)
CORS_RESPONSE_HEADERS = ("X-Request-ID", "Retry-After", binary_tensors.HEADER)
IMAGE_PATHS = frozenset({"/predict", "/predict/batch"})
# Time for which a thread may keep Python's lock while others wait. With the default, 0.005, the p99 of sixteen clients
# was 4.7 times as long while a model was loaded.
GIL_SWITCH_INTERVAL_S = 0.0005
Window = Literal["short", "medium", "long"]
WINDOWS: tuple[Window, ...] = get_args(Window)
TIME_SCHEMA = {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "number"}, {"type": "null"}]}

T = TypeVar("T")


class RegistrySource:
    """The registry as a source of models."""

    def __init__(self, settings: ServeSettings, stage: str) -> None:
        self.contradiction = ""  # of MLflow's own stages with the alias, at the last poll
        self._registry = ModelRegistry(settings.tracking_uri, settings.model_name)
        self._stage = stage

    def find(self) -> ModelRelease:
        """Return the version in the stage."""
        version = self._registry.get(self._stage)
        before, self.contradiction = self.contradiction, ""
        with suppress(ToolkitError):  # the version can be served without this
            self.contradiction = self._registry.contradiction(version)
        if self.contradiction and self.contradiction != before:
            logger.warning("%s", self.contradiction)
        return version

    def newest(self) -> ModelRelease | None:
        """Return the version that was registered last, in whichever stage."""
        return self._registry.newest()

    def load(self, release: ModelRelease, cache: Path | None = None) -> Bundle:
        """Return the bundle of a release, checked against its digest."""
        return self._registry.load(release.version, cache=cache).bundle


# The routes. One that may wait for a disk is a plain function, which FastAPI runs in a thread.

routes = APIRouter()
PREDICTING = error_responses(*problems.PREDICTION_PROBLEMS)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@routes.post("/predict", responses=PREDICTING, tags=["predictions"])
async def predict(request: Request, query: Annotated[TopK, Query()]) -> Prediction:
    """Classify one image: a form with `file`, a raw `image/*` body, or JSON with base64 in `image`."""
    service = _service(request)
    service.require_ready(query.top_k)
    with service.admission.reserve_bytes(request.state.max_body_bytes):
        read = await parse_image(request)
        with service.admission.slots(1):
            answer = await service.predict(read, query.top_k)
    request.state.version = answer.model.version
    return answer


async def _predict_directly(request: Request) -> Response:
    """Answer like the route ``predict``, past FastAPI's routing, dependencies and validation of the response.

    They take a quarter of the time of the event loop, for which the threads that decode images wait.
    """
    answer = await predict(request, problems.validated(TopK, dict(request.query_params), "query"))
    return Response(answer.model_dump_json(), media_type="application/json")


@routes.post("/predict/batch", responses=PREDICTING, response_model_exclude_none=True, tags=["predictions"])
async def predict_batch(request: Request, query: Annotated[TopK, Query()]) -> Batch:
    """Classify many images, the `files` of a form; an image that cannot be used fails alone."""
    service = _service(request)
    service.require_ready(query.top_k)
    with service.admission.reserve_bytes(request.state.max_body_bytes):
        reads = await parse_images(request, request.app.state.settings.max_batch)
        with service.admission.slots(len(reads)):
            answers = (
                service.predict_one_of_many(index, read, query.top_k, request.state.request_id)
                for index, read in enumerate(reads)
            )
            return Batch(results=await asyncio.gather(*answers))


def _one_or_many(body: object) -> str:
    return "many" if isinstance(body, list) else "one"


FeedbackBody = Annotated[
    Annotated[Feedback, Tag("one")] | Annotated[Feedbacks, Tag("many")], Discriminator(_one_or_many), Body()
]


@routes.post(
    "/feedback",
    responses=error_responses(
        problems.MALFORMED,
        problems.REQUEST_TIMEOUT,
        problems.UNKNOWN_PREDICTION,
        problems.INVALID,
        problems.UNKNOWN_LABEL,
        problems.MONITOR_UNAVAILABLE,
    ),
    response_model_exclude_defaults=True,
    tags=["predictions"],
)
def feedback(request: Request, body: FeedbackBody) -> FeedbackResult:
    """Record the true label of a prediction, or of a list; `errors` names each entry that cannot be recorded."""
    monitor = request.app.state.monitor
    if isinstance(body, Feedback):
        if problem := _record(monitor, body):
            raise problem
        return FeedbackResult(recorded=1)
    errors = [
        FeedbackError(index=index, error=ProblemDocument(**problem.document(request.state.request_id)))
        for index, one in enumerate(body)
        if (problem := _record(monitor, one))
    ]
    return FeedbackResult(recorded=len(body) - len(errors), errors=errors)


def _record(monitor: ModelMonitor, entry: Feedback) -> Problem | None:
    try:
        monitor.record_feedback(entry.prediction_id, entry.label, source=entry.source)
    except UnknownPrediction:
        return Problem(problems.UNKNOWN_PREDICTION, "no prediction with that id is in the store")
    except SettingsError:
        return Problem(problems.UNKNOWN_LABEL, "the model of this prediction has no class of that name")
    except ToolkitError as error:
        return _monitor_problem(error)
    return None


def _monitor_problem(error: ToolkitError) -> Problem:
    logger.error("the store of predictions cannot be used: %s", error)
    return Problem(problems.MONITOR_UNAVAILABLE, "the store of predictions cannot be used now", {"Retry-After": "5"})


def _ask_monitor(query: Callable[[], T]) -> T:
    try:
        return query()
    except SettingsError:  # of the query, not of the store
        raise
    except ToolkitError as error:
        raise _monitor_problem(error) from None


@routes.get("/livez", tags=["state"])
async def livez() -> dict[str, str]:
    """Whether the process is alive."""
    return {"status": "alive"}


@routes.get("/readyz", responses=error_responses(problems.NOT_READY), tags=["state"])
async def readyz(request: Request) -> dict[str, str]:
    """Whether the service should get traffic: each process has a model, and the service is not about to end."""
    if request.app.state.draining:
        raise problems.not_ready("the service is about to end", 1)
    return {"status": "ready", "version": _service(request).ready().version}


@routes.get("/health", tags=["state"])
def health(request: Request) -> dict[str, Any]:
    """State of the service; always 200. `status` is the worst of `components`."""
    worker: WorkerSpec | None = request.app.state.worker
    found = asdict(_service(request).health(draining=request.app.state.draining))
    return found | {"worker": worker.summary} if worker else found


@routes.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}, tags=["metrics"])
def metrics(request: Request) -> Response:
    """Metrics as JSON, or in the text format of Prometheus if the Accept header prefers it."""
    service, accept = _service(request), request.headers.get("accept", "")
    if wants_prometheus(accept):
        text, media_type = service.metrics.prometheus(accept)
        return Response(text, headers={"Content-Type": media_type, "Vary": "Accept"})
    try:
        windows: dict[str, Any] = {"windows": service.windows()}
    except ToolkitError as error:
        windows = {"windows": {}, "error": _monitor_problem(error).detail}
    sums = service.totals()
    found = service.metrics.summary() | {
        "model": model_id(service.model_manager.model),
        "queue": sums["queue"],
        "monitor": {"stats": sums["monitor"], **windows},
    }
    return JSONResponse(found, headers={"Vary": "Accept"})


@routes.get("/drift", responses=error_responses(problems.INVALID, problems.MONITOR_UNAVAILABLE), tags=["metrics"])
def drift(request: Request, window: Window = "short") -> dict[str, Any]:
    """Drift report of one window, made at most every few seconds."""
    ask: CachedCall[DriftReport] = request.app.state.drift[window]
    return _ask_monitor(ask).to_dict()


@routes.get("/alerts", responses=error_responses(problems.INVALID, problems.MONITOR_UNAVAILABLE), tags=["metrics"])
def alerts(
    request: Request,
    since: Annotated[
        str | None,
        WithJsonSchema(TIME_SCHEMA),
        Query(description="ISO 8601, by default in UTC, or seconds since 1970"),
    ] = None,
    level: Annotated[
        Literal["warning", "critical", "immediate"] | None, Query(description="this level or worse")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="largest number of alerts")] = 100,
) -> list[dict[str, Any]]:
    """Alerts of all versions, newest first; those that are resolved have a `cleared_at`.

    `sources` names a few images that an alert is about, if they were uploaded with a file name.
    """
    try:
        found: list[Alert] = _ask_monitor(lambda: request.app.state.monitor.alerts(since, level))
    except SettingsError:
        detail = "query.since: must be a time such as 2026-11-24T08:00Z, or seconds since 1970, before the year 3000"
        raise Problem(problems.INVALID, detail) from None
    return [alert.to_dict() for alert in found[:limit]]


@routes.get("/model-info", responses=error_responses(problems.NOT_READY), tags=["state"])
def model_info(request: Request) -> dict[str, Any]:
    """The live model: version, classes, measured quality, engine."""
    service = _service(request)
    model = service.model()
    card, baseline, release = model.bundle.card, model.bundle.baseline, model.release
    return {
        **(model_id(model) or {}),
        "run_id": release.run_id,
        "digest": model.bundle.digest,
        "engine": model.engine.name,
        "checks": model.engine.report,
        "network": card.network,
        "classes": card.classes,
        "image_size": card.image_size,
        "resize_rule": card.resize_rule,
        "decoder": card.decoder,
        "temperature": card.temperature,
        "metrics": {name: measured.model_dump() for name, measured in card.metrics.items()},
        "baseline": {"images": baseline.size, "accuracy": baseline.accuracy if baseline.size else None},
        "code_version": card.code_version,
        "versions": card.versions,
        "shadow": service.totals()["shadow"],
    }


@routes.post("/admin/reload", tags=["state"])
def reload(request: Request) -> dict[str, Any]:
    """Poll the registry now, in all processes, and retry what failed; `outcome` is that of the process that answers."""
    service = _service(request)
    return {
        "outcome": service.poll(),
        "model": model_id(service.model_manager.model),
        "registry": asdict(service.model_manager.describe()),
    }


@routes.get("/", include_in_schema=False)
async def home() -> Response:
    return RedirectResponse("dashboard")


@routes.get("/dashboard", include_in_schema=False)
def dashboard() -> Response:
    return static.static_page(static.DASHBOARD)


@routes.get("/docs", include_in_schema=False)
def docs(request: Request) -> Response:
    return static.swagger_page(request.app.title)


@routes.get("/pages/{name}", include_in_schema=False)
def page(name: str) -> Response:
    return static.static_page(name)


def create_app(settings: ServeSettings | None = None, worker: WorkerSpec | None = None) -> FastAPI:
    """Make the service as an ASGI application, for this script's own server or any other.

    Nothing is opened and no thread runs before its lifespan starts. Its state is on ``app.state``: ``settings``,
    ``worker``, ``source``, ``metrics``, ``draining``; and ``service``, ``monitor`` and ``drift`` while it runs.

    Parameters
    ----------
    settings
        From the environment if None.
    worker
        Spec of this process, if the service has several.
    """
    settings = settings or parse(ServeSettings, None, ())
    app = FastAPI(
        title="Image classifier",
        version=VERSION,
        description="Classifies images with the registered model in Production, and monitors its predictions.",
        docs_url=None,  # /docs below is the same page without scripts from other servers
        redoc_url=None,
        redirect_slashes=False,  # redirects would have the host of the client's header
        lifespan=_lifespan,
    )
    protected_paths = settings.protected_paths()
    app.state.settings, app.state.worker, app.state.draining = settings, worker, False
    app.state.metrics = ServiceMetrics(worker)
    app.state.source = RegistrySource(settings, settings.stage)
    app.include_router(routes)
    app.include_router(inference_protocols.routes)
    app.openapi = partial(_openapi, app, tuple(protected_paths))  # type: ignore[method-assign]
    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, problems.handle)
    rules = RequestRules(
        max_body_bytes=settings.max_body_bytes,
        timeouts=settings.timeouts,
        keys=protected_paths,
        origins=settings.origins if settings.predict_key is None else None,
        image_paths=IMAGE_PATHS,
        require_slot=partial(_require_slot, app),
    )
    counted = (*PREDICT_PATHS, *ADMIN_PATHS)
    app.add_middleware(DirectEndpoints, endpoints={"/predict": _predict_directly})
    app.add_middleware(ServiceMiddleware, metrics=app.state.metrics, rules=rules, paths=counted)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=CORS_REQUEST_HEADERS,
            expose_headers=CORS_RESPONSE_HEADERS,
        )
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: ServeSettings = app.state.settings
    worker: WorkerSpec | None = app.state.worker
    monitor = app.state.monitor = _monitor(settings, partial(_rollback_on_alert, app))
    app.state.drift = {name: CachedCall(partial(monitor.detect_drift, name), MONITOR_REFRESH_S) for name in WINDOWS}
    service = app.state.service = Service(
        app.state.source,
        monitor,
        new_prediction_id,
        app.state.metrics,
        _service_config(settings, app.state.source),
        WorkerGroup(Path(worker.folder), worker.index, worker.count) if worker else None,
    )
    service.start()
    try:
        yield
    finally:
        await asyncio.to_thread(service.close)


def _service_config(settings: ServeSettings, source: RegistrySource) -> ServiceConfig:
    converted = settings.model_cache_dir / "converted"
    engine = partial(
        engines.select_engine,
        choice=settings.engine,
        threads=settings.concurrency,
        cores=settings.cores,
        cache=converted,
    )
    cache = settings.model_cache_dir / settings.model_name / settings.stage
    return ServiceConfig(
        threads=settings.n_threads,
        max_queue=settings.max_queue,
        max_bytes=int(settings.max_inflight_mb * 2**20),
        request_timeout=settings.request_timeout,
        limits=ImageLimits(max_bytes=settings.max_body_bytes, max_pixels=settings.max_pixels),
        top_k=settings.top_k,
        models=ModelManagerConfig(
            settings.poll_interval,
            prepare=engine,
            isolated_load=IsolatedLoader(settings.engine, settings.concurrency, converted),
            newest=source.newest,
            local_cache=LocalModelCache(cache, settings.model_name, settings.stage),
        ),
        shadow=RegistrySource(settings, "Staging"),
        shadow_share=settings.shadow_share,
    )


def _monitor(settings: ServeSettings, react: Callable[[Notification], object] | None = None) -> ModelMonitor:
    notifiers: dict[str, Notifier] = {"log": LogNotifier()}
    if settings.alert_webhook is not None:
        secret = settings.webhook_secret
        notifiers["webhook"] = WebhookNotifier(settings.alert_webhook, secret.get_secret_value() if secret else None)
    return ModelMonitor(
        settings.monitor_store,
        thresholds=Thresholds(
            max_false_alarms_per_million=settings.max_false_alarms,
            trust_labels=settings.trust_labels,
            ignore=Thresholds.parse_ignore(settings.ignore),
        ),
        config=MonitorConfig(
            notifiers=notifiers,
            on_immediate=react if settings.on_immediate == "rollback" else None,
            keep_days=settings.keep_days,
            drop_when_full=True,  # an answer never waits for the store
        ),
    )


def _rollback_on_alert(app: FastAPI, notice: Notification) -> None:
    """Roll back to the previous version, if the alert is about the live one."""
    settings: ServeSettings = app.state.settings
    service: Service = app.state.service
    model = service.model_manager.model
    if model is None or model.version != notice.model_version:
        return
    registry = ModelRegistry(settings.tracking_uri, settings.model_name)
    version = registry.rollback(f"by itself: {notice.what}"[:MAX_REASON_LENGTH])
    logger.warning("rolled back to version %s: %s", version.version, notice.what)
    service.poll()


def _require_slot(app: FastAPI) -> None:
    service: Service = app.state.service
    if service.model_manager.model:  # without one, the route says why
        service.admission.require_slot(1)


def _openapi(app: FastAPI, protected_paths: Iterable[str]) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = build_openapi(app, protected_paths, app.state.settings.max_batch)
    return app.openapi_schema


def main() -> int:
    """Serve until a signal arrives."""
    settings = settings_typed()
    if worker := WorkerSpec.take():
        log_to_stderr()
        with worker.listening() as listener:
            _serve(settings, listener, worker)
        return 0
    _monitor(settings).close()  # an invalid store or webhook is an error now
    with listen(settings.host, settings.port) as listener:
        log_to_stderr()
        address, port = listener.getsockname()[:2]
        if not ipaddress.ip_address(address).is_loopback and not settings.protected_paths():
            logger.warning(
                "%s is open to the network without keys: set SERVE_PREDICT_KEY and SERVE_ADMIN_KEY", settings.host
            )
        _print_banner(settings, f"http://{f'[{address}]' if ':' in address else address}:{port}")
        if settings.workers > 1:
            with suppress(ToolkitError):  # so that one process alone creates the tables of a new database
                RegistrySource(settings, settings.stage).find()
            command = [*process_command("serve_model"), *sys.argv[1:]]
            exec_supervisor(command, settings.workers, listener, settings.drain_timeout + settings.shutdown_timeout)
        _serve(settings, listener)
    return 0


def _serve(settings: ServeSettings, listener: socket, worker: WorkerSpec | None = None) -> None:
    sys.setswitchinterval(GIL_SWITCH_INTERVAL_S)
    limit_malloc_arenas()
    app = create_app(settings, worker)
    config = ServerConfig(
        settings.drain_timeout, settings.shutdown_timeout, settings.timeouts, settings.max_connections
    )
    on_drain = partial(setattr, app.state, "draining", True)
    Server(app, on_drain, config, alone=worker is None).run(sockets=[listener])


def _print_banner(settings: ServeSettings, url: str) -> None:
    print(
        f"serving {settings.model_name}, the version in {settings.stage}, on {url}\n"
        f"  dashboard   {url}/dashboard\n"
        f"  routes      {url}/docs\n"
        f"  try it      curl -F file=@image.jpg {url}/predict",
        flush=True,
    )


if __name__ == "__main__":
    run_script(main)
