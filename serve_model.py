"""Answer over HTTP: serve the Production model, watch what it answers, change models without a pause.

    python serve_model.py                                    # on http://127.0.0.1:8000
    python serve_model.py --port 9000 --model-name pets --monitor-store /srv/monitoring.db
    SERVE_PREDICT_KEY=... SERVE_ADMIN_KEY=... python serve_model.py --host 0.0.0.0 --workers 4

    curl -F file=@cat.jpg localhost:8000/predict
    curl -H 'Content-Type: image/jpeg' --data-binary @cat.jpg 'localhost:8000/predict?top_k=3'
    curl -F files=@cat.jpg -F files=@dog.png localhost:8000/predict/batch
    curl -H 'Content-Type: application/json' -d '{"prediction_id": "...", "label": "cat"}' localhost:8000/feedback
    curl localhost:8000/health
    curl -X POST localhost:8000/admin/reload

The dashboard is at /dashboard, the list of all addresses at /docs. The service starts without a
model and takes the one in Production as soon as there is one; it follows each promotion and each
rollback, and a version that cannot be loaded leaves the one before it serving. Predictions go to
the monitor's store, monitoring.db in this folder unless --monitor-store or MONITORING_STORE says
otherwise; copies of the versions that served to served_models in this folder, from which it starts
while MLflow does not answer. Keys come from the environment only: SERVE_PREDICT_KEY for /predict,
/predict/batch and /feedback, SERVE_ADMIN_KEY for /admin/reload, SERVE_WEBHOOK_SECRET to sign alerts.
SIGTERM and Ctrl-C end it with status 0 once all that was accepted is answered and stored. With
--workers several processes answer on one address; they are started again when they die, and
figures are sums over all of them.
"""

from toolkit.cli.import_interrupt import exit_on_interrupt

if __name__ == "__main__":
    exit_on_interrupt()

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

from toolkit.cli.commands import process_command
from toolkit.cli.settings import ScriptSettings, environment, parse, read_first, run_script
from toolkit.errors import SettingsError
from toolkit.system.metrics import usable_cores

ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[^\s/:@\[\]?#]+)(:\d{1,5})?")


class ServeSettings(ScriptSettings):
    """What is served, where, and within which limits."""

    model_config = environment("SERVE_")

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 opens it to the network")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    model_name: str = Field("image-classifier", description="registered model")
    stage: Literal["Production", "Staging"] = Field("Production", description="stage whose version is served")
    tracking_uri: str | None = Field(None, description="MLflow store; MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    engine: Literal["auto", "openvino", "torch"] = Field(
        "auto", description="what runs the program; auto takes the fastest that agrees with it"
    )
    shadow_share: float = Field(0.0, ge=0, le=1, description="share of the images that the Staging model is run on too")
    model_cache_dir: Path = Field(
        Path("served_models"), description="folder for copies of what served; a start without MLflow uses it"
    )
    poll_interval: float = Field(5.0, gt=0, le=3600, description="pause between two looks at the registry")
    monitor_store: str | None = Field(None, description="store of predictions; MONITORING_STORE, else monitoring.db")
    keep_days: float | None = Field(None, gt=0, description="days that single predictions are kept; all when not given")
    max_false_alarms: float = Field(
        1.0, gt=0, le=10_000, description="alerts without a cause that may be raised in a million predictions"
    )
    trust_labels: bool = Field(
        False, description="let labels of any choice confirm and act, not only those of a sample drawn at random"
    )
    ignore: str = Field(
        "",
        description="metrics that raise no alert, with commas between, such as prediction_distribution where the mix "
        "of classes changes with the hour; METRIC/short or METRIC/medium for one window",
    )
    alert_webhook: str | None = Field(
        None, description="https address, or http on this machine, that alerts are posted to"
    )
    on_immediate: Literal["nothing", "rollback"] = Field(
        "nothing", description="what to do when accuracy has certainly dropped by more than 20 %"
    )
    top_k: int = Field(5, ge=1, description="classes listed when a request does not say how many")
    workers: int = Field(
        1, ge=1, le=64, description="processes that answer; started again when they die, and each with its own model"
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=256,
        description="images that a process works on at once; one more than its share of the cores when not given",
    )
    max_queue: int = Field(
        64, ge=0, description="images that may wait for a thread of a process; more are refused with a 503"
    )
    max_inflight_mb: float = Field(
        256.0, gt=0, description="bodies in memory together, in MiB, in each process; more get a 503"
    )
    request_timeout: float = Field(30.0, gt=0, le=3600, description="longest time until an image is answered, else 504")
    max_batch: int = Field(32, ge=1, description="images in one request to /predict/batch")
    max_body_mb: float = Field(32.0, gt=0, allow_inf_nan=False, description="largest request body in MiB")
    max_pixels: int = Field(50_000_000, ge=1, description="largest image in pixels")
    header_timeout: float = Field(10.0, gt=0, le=600, description="longest time until a request's head has arrived")
    body_timeout: float = Field(
        30.0, gt=0, le=3600, description="longest time until its body has; slow uplinks need more"
    )
    read_timeout: float = Field(10.0, gt=0, le=600, description="longest pause of a body that is arriving")
    max_connections: int = Field(4096, ge=1, description="connections that may be open to a process; more get a 503")
    allow_origin: str = Field(
        "", description="origins whose pages may ask from a browser, as https://a.example,https://b.example; * for all"
    )
    drain_timeout: float = Field(1.0, ge=0, le=600, description="time between not being ready and closing the socket")
    shutdown_timeout: int = Field(10, ge=1, le=600, description="longest time to finish accepted requests at the end")
    predict_key: CliSuppress[SecretStr | None] = Field(None, description="key for predictions and feedback")
    admin_key: CliSuppress[SecretStr | None] = Field(None, description="key for /admin/reload")
    webhook_secret: CliSuppress[SecretStr | None] = Field(None, description="signs what is posted to the webhook")

    @model_validator(mode="after")
    def _one_body_fits(self) -> Self:
        if self.max_body_mb > self.max_inflight_mb:
            raise ValueError("--max-body-mb must be at most --max-inflight-mb, or no full body would ever find room")
        return self

    @field_validator("allow_origin")
    @classmethod
    def _are_origins(cls, text: str) -> str:
        if wrong := [origin for origin in _origins(text) if origin != "*" and not ORIGIN.fullmatch(origin)]:
            raise ValueError(f"must be origins such as https://app.example:8443, without a path; got {wrong[0]}")
        return text

    @property
    def origins(self) -> tuple[str, ...]:
        """Of pages that may ask from a browser, besides the service's own."""
        return _origins(self.allow_origin)

    @model_validator(mode="after")
    def _batch_fits(self) -> Self:
        if self.max_batch > self.n_threads + self.max_queue:
            raise ValueError("--max-batch must be at most --max-queue, or no full batch would ever find room")
        return self

    @property
    def n_threads(self) -> int:
        """Threads of a process that answer: one decodes while the others wait for the engine, or for Python's lock."""
        return self.threads or self.cores + 1

    @property
    def concurrency(self) -> int:
        """How often the model may run at once in a process."""
        return min(self.n_threads, self.cores)

    @property
    def cores(self) -> int:
        """Cores for each process."""
        return max(1, usable_cores() // self.workers)

    @property
    def openvino_cache_dir(self) -> Path:
        """Folder of converted models."""
        return self.model_cache_dir / "converted"

    @property
    def limits(self) -> "ImageLimits":
        """What one image may be."""
        return ImageLimits(max_bytes=self.max_body_bytes, max_pixels=self.max_pixels)

    @property
    def max_body_bytes(self) -> int:
        """The limit of a body in bytes."""
        return int(self.max_body_mb * 2**20)

    @property
    def timeouts(self) -> "Timeouts":
        """How long a request may take to arrive."""
        return Timeouts(self.header_timeout, self.body_timeout, self.read_timeout)

    def protected_paths(self) -> dict[str, str]:
        """Address to key. With only a predict key set, the admin addresses answer nobody."""
        predict, admin = (key.get_secret_value() if key else None for key in (self.predict_key, self.admin_key))
        if predict and not admin:
            admin = secrets.token_hex()
        keys = dict.fromkeys(PREDICT_PATHS, predict) | dict.fromkeys(ADMIN_PATHS, admin)
        return {address: key for address, key in keys.items() if key}


def _origins(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (origin.strip() for origin in text.split(","))))


def settings_typed() -> ServeSettings:
    """Those of the command line and the environment."""
    if any(word.startswith(("--predict-key", "--admin-key", "--webhook-secret")) for word in sys.argv):
        raise SettingsError(
            "keys come from SERVE_PREDICT_KEY, SERVE_ADMIN_KEY and SERVE_WEBHOOK_SECRET:"
            " everybody can read a command line"
        )
    return parse(ServeSettings, __doc__)


if __name__ == "__main__":  # --help and what is mistyped are answered before the seconds that MLflow takes to import
    read_first(settings_typed)

from fastapi import APIRouter, Body, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, RedirectResponse, Response
from prometheus_client.core import Metric
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
from toolkit.serving.http.access_log import AccessLogMiddleware, log_to_stderr
from toolkit.serving.http.auth import APIKeyMiddleware
from toolkit.serving.http.body_limit import BodyLimitMiddleware
from toolkit.serving.http.cross_origin import CrossOriginMiddleware
from toolkit.serving.http.decompression import DecompressionMiddleware
from toolkit.serving.http.disconnect import CancelOnDisconnectMiddleware
from toolkit.serving.http.head_method import HeadMethodMiddleware
from toolkit.serving.http.load_shedding import LoadSheddingMiddleware
from toolkit.serving.http.openapi import build_openapi, error_responses
from toolkit.serving.http.request_body import content_length_or, parse_image, parse_images
from toolkit.serving.http.server import Server, ServerConfig, listen
from toolkit.serving.http.timeouts import Timeouts
from toolkit.serving.inference.admission import AdmissionController
from toolkit.serving.metrics import ServiceMetrics, wants_prometheus
from toolkit.serving.models import engines
from toolkit.serving.models.isolated_load import IsolatedLoader
from toolkit.serving.models.local_cache import LocalModelCache
from toolkit.serving.models.manager import ModelManagerConfig, ModelRelease
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

MAX_REASON_LENGTH = 400  # characters of an alert that are kept as the reason of a rollback
VERSION = "1"  # of the addresses and shapes
PREDICT_PATHS = ("/predict", "/predict/batch", "/feedback", *inference_protocols.PREDICT_PATHS)
ADMIN_PATHS = ("/admin/reload",)
# What a page of an allowed origin may send, and read of an answer, besides what any may.
PAGES_SEND = ("Authorization", "X-API-Key", "X-Request-ID", "Content-Type", "Content-Encoding", binary_tensors.HEADER)
PAGES_READ = ("X-Request-ID", "Retry-After", binary_tensors.HEADER)
IMAGE_PATHS = frozenset({"/predict", "/predict/batch"})
# How long a thread may keep Python's lock while others want it. At the usual 0.005 a model that is being loaded beside
# sixteen clients made one answer in a hundred take 4.7 times as long as at other times.
GIL_SWITCH_INTERVAL_S = 0.0005
Window = Literal["short", "medium", "long"]
WINDOWS: tuple[Window, ...] = get_args(Window)
MOMENT = {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "number"}, {"type": "null"}]}

T = TypeVar("T")


class RegistrySource:
    """The registry as the live model's source."""

    def __init__(self, settings: ServeSettings, stage: str) -> None:
        self.contradiction = ""  # what MLflow's own stages say otherwise, as of the last look
        self._registry = ModelRegistry(settings.tracking_uri, settings.model_name)
        self._stage = stage

    def find(self) -> ModelRelease:
        """The version that is in the stage now."""
        version = self._registry.get(self._stage)
        before, self.contradiction = self.contradiction, ""
        with suppress(ToolkitError):  # a store that does not tell this is no reason not to serve
            self.contradiction = self._registry.contradiction(version)
        if self.contradiction and self.contradiction != before:
            logger.warning("%s", self.contradiction)
        return version

    def load(self, release: ModelRelease, cache: Path | None = None) -> Bundle:
        """Its bundle, checked against the digest of the version."""
        return self._registry.load(release.version, cache=cache).bundle


# The addresses. What may wait for a disk is a plain function, which FastAPI runs in a thread.

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
    with service.admission.reserve_bytes(content_length_or(request, request.app.state.settings.max_body_bytes)):
        read = await parse_image(request)
        with service.admission.slots(1):
            answer = await service.predict(read, query.top_k)
    request.state.version = answer.model.version
    return answer


@routes.post("/predict/batch", responses=PREDICTING, response_model_exclude_none=True, tags=["predictions"])
async def predict_batch(request: Request, query: Annotated[TopK, Query()]) -> Batch:
    """Classify many images, the `files` of a form; one that cannot be used fails alone."""
    service = _service(request)
    service.require_ready(query.top_k)
    with service.admission.reserve_bytes(content_length_or(request, request.app.state.settings.max_body_bytes)):
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
def feedback(request: Request, told: FeedbackBody) -> FeedbackResult:
    """Tell the true label of a prediction, or of many; of a list each that is wrong is named in `errors`."""
    monitor = request.app.state.monitor
    if isinstance(told, Feedback):
        if problem := _record(monitor, told):
            raise problem
        return FeedbackResult(recorded=1)
    errors = [
        FeedbackError(index=index, error=ProblemDocument(**problem.document(request.state.request_id)))
        for index, one in enumerate(told)
        if (problem := _record(monitor, one))
    ]
    return FeedbackResult(recorded=len(told) - len(errors), errors=errors)


def _record(monitor: ModelMonitor, told: Feedback) -> Problem | None:
    try:
        monitor.record_feedback(told.prediction_id, told.label, source=told.source)
    except UnknownPrediction:
        return Problem(problems.UNKNOWN_PREDICTION, "no prediction with that id is in the store")
    except SettingsError:
        return Problem(problems.UNKNOWN_LABEL, "the model that made this prediction has no class of that name")
    except ToolkitError as error:
        return _monitor_problem(error)
    return None


def _monitor_problem(error: ToolkitError) -> Problem:
    logger.error("the monitor cannot answer: %s", error)
    return Problem(problems.MONITOR_UNAVAILABLE, "the store of predictions cannot be used now", {"Retry-After": "5"})


def _ask_monitor(question: Callable[[], T]) -> T:
    try:
        return question()
    except SettingsError:  # the question is wrong, not the store
        raise
    except ToolkitError as error:
        raise _monitor_problem(error) from None


@routes.get("/livez", tags=["state"])
async def livez() -> dict[str, str]:
    """Whether the process answers at all."""
    return {"status": "alive"}


@routes.get("/readyz", responses=error_responses(problems.NOT_READY), tags=["state"])
async def readyz(request: Request) -> dict[str, str]:
    """Whether the service should get traffic: a model is loaded in each process, and it is not about to end."""
    if request.app.state.draining:
        raise problems.not_ready("the service is about to end", 1)
    return {"status": "ready", "version": _service(request).ready().version}


@routes.get("/health", tags=["state"])
def health(request: Request) -> dict[str, Any]:
    """Everything an operator asks first; always 200 while the process lives. `status` is the worst of `components`."""
    place: WorkerSpec | None = request.app.state.worker
    found = _service(request).health(draining=request.app.state.draining).to_dict()
    return found | {"process": place.summary} if place else found


@routes.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}, tags=["figures"])
def metrics(request: Request) -> Response:
    """Figures as JSON; in the text format of Prometheus when the Accept header asks for it."""
    service, accept = _service(request), request.headers.get("accept", "")
    if wants_prometheus(accept):
        text, media_type = service.metrics.prometheus(accept)
        return Response(text, headers={"Content-Type": media_type, "Vary": "Accept"})
    try:
        windows: dict[str, Any] = {"windows": service.windows()}
    except ToolkitError as error:
        windows = {"windows": {}, "error": _monitor_problem(error).detail}
    sums = service.totals()
    figures = service.metrics.summary() | {
        "model": model_id(service.model_manager.model),
        "queue": sums["queue"],
        "monitor": {"stats": sums["monitor"], **windows},
    }
    return JSONResponse(figures, headers={"Vary": "Accept"})


@routes.get("/drift", responses=error_responses(problems.INVALID, problems.MONITOR_UNAVAILABLE), tags=["figures"])
def drift(request: Request, window: Window = "short") -> dict[str, Any]:
    """The drift report of one window, measured at most every few seconds."""
    ask: CachedCall[DriftReport] = request.app.state.drift[window]
    return _ask_monitor(ask).to_dict()


@routes.get("/alerts", responses=error_responses(problems.INVALID, problems.MONITOR_UNAVAILABLE), tags=["figures"])
def alerts(
    request: Request,
    since: Annotated[
        str | None,
        WithJsonSchema(MOMENT),
        Query(description="ISO 8601, UTC unless it says otherwise, or seconds since 1970"),
    ] = None,
    level: Annotated[
        Literal["warning", "critical", "immediate"] | None, Query(description="this level or worse")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="how many at most")] = 100,
) -> list[dict[str, Any]]:
    """Alerts of all versions, newest first; those that no longer stand have a `cleared_at`.

    `sources` names a few of the images that each is about, as far as they came with a file name.
    """
    try:
        found: list[Alert] = _ask_monitor(lambda: request.app.state.monitor.alerts(since, level))
    except SettingsError:
        detail = "query.since: must be a time such as 2026-11-24T08:00Z, or seconds since 1970, before the year 3000"
        raise Problem(problems.INVALID, detail) from None
    return [alert.to_dict() for alert in found[:limit]]


@routes.get("/model-info", responses=error_responses(problems.NOT_READY), tags=["state"])
def model_info(request: Request) -> dict[str, Any]:
    """What is being served: version, classes, how it was measured, what runs it."""
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
    """Look at the registry now, in all processes, and try again what failed; tells what the one that answers found."""
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


def create_app(settings: ServeSettings | None = None, place: WorkerSpec | None = None) -> FastAPI:
    """The service as an ASGI application, for this script's own server or any other.

    Nothing is opened and no thread runs before its lifespan begins; all its state is on
    ``app.state``: ``settings``, ``place``, ``source``, ``figures``, ``draining``; and ``service``, ``monitor`` and
    ``drift`` while it runs.

    Parameters
    ----------
    settings
        From the environment when None.
    place
        Of this process, where the service has several.
    """
    settings = settings or parse(ServeSettings, None, ())
    app = FastAPI(
        title="Image classifier",
        version=VERSION,
        description="Classifies images with the registered model that is in Production, and watches its answers.",
        docs_url=None,  # /docs below: the same page, whose scripts come from here and not from a server elsewhere
        redoc_url=None,
        redirect_slashes=False,  # to an address with the host that the client made up
        lifespan=_lifespan,
    )
    guarded = settings.protected_paths()
    app.state.settings, app.state.worker, app.state.metrics, app.state.draining = (
        settings,
        place,
        ServiceMetrics(place),
        False,
    )
    app.state.source = RegistrySource(settings, settings.stage)
    app.state.metrics.collect(partial(_families, app))
    app.include_router(routes)
    app.include_router(inference_protocols.routes)
    app.openapi = partial(_described, app, tuple(guarded))  # type: ignore[method-assign]
    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, problems.handle)
    # What is added last is outermost.
    app.add_middleware(DecompressionMiddleware, limit=settings.max_body_bytes)
    app.add_middleware(HeadMethodMiddleware)
    app.add_middleware(LoadSheddingMiddleware, paths=IMAGE_PATHS, admission=partial(_admission, app))
    app.add_middleware(BodyLimitMiddleware, limit=settings.max_body_bytes, timeouts=settings.timeouts)
    app.add_middleware(APIKeyMiddleware, protected_paths=guarded)
    app.add_middleware(CancelOnDisconnectMiddleware)
    if settings.predict_key is None:
        app.add_middleware(CrossOriginMiddleware, allowed=settings.origins)
    app.add_middleware(AccessLogMiddleware, metrics=app.state.metrics, paths=(*PREDICT_PATHS, *ADMIN_PATHS))
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=PAGES_SEND,
            expose_headers=PAGES_READ,
        )
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: ServeSettings = app.state.settings
    place: WorkerSpec | None = app.state.worker
    monitor = app.state.monitor = _monitor(settings, partial(_rollback_on_alert, app))
    app.state.drift = {name: CachedCall(partial(monitor.detect_drift, name), MONITOR_REFRESH_S) for name in WINDOWS}
    service = app.state.service = Service(
        app.state.source,
        monitor,
        new_prediction_id,
        app.state.metrics,
        _service_config(settings),
        WorkerGroup(Path(place.folder), place.index, place.count) if place else None,
    )
    service.start()
    try:
        yield
    finally:
        await asyncio.to_thread(service.close)


def _service_config(settings: ServeSettings) -> ServiceConfig:
    engine = partial(
        engines.select_engine,
        choice=settings.engine,
        threads=settings.concurrency,
        cores=settings.cores,
        cache=settings.openvino_cache_dir,
    )
    copies = settings.model_cache_dir / settings.model_name / settings.stage
    return ServiceConfig(
        workers=settings.n_threads,
        waiting=settings.max_queue,
        max_bytes=int(settings.max_inflight_mb * 2**20),
        seconds=settings.request_timeout,
        limits=settings.limits,
        top_k=settings.top_k,
        models=ModelManagerConfig(
            settings.poll_interval,
            prepare=engine,
            rehearse=IsolatedLoader(settings.engine, settings.concurrency, settings.openvino_cache_dir),
            local_cache=LocalModelCache(copies, settings.model_name, settings.stage),
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
    """Go back to the version before, if it is still the present one that is so bad."""
    settings: ServeSettings = app.state.settings
    service: Service = app.state.service
    model = service.model_manager.model
    if model is None or model.version != notice.model_version:
        return
    registry = ModelRegistry(settings.tracking_uri, settings.model_name)
    version = registry.rollback(f"by itself: {notice.what}"[:MAX_REASON_LENGTH])
    logger.warning("went back to version %s: %s", version.version, notice.what)
    service.poll()


def _admission(app: FastAPI) -> AdmissionController | None:
    """Where images are refused; None while there is no model, of which the routes know more to say."""
    service: Service = app.state.service
    return service.admission if service.model_manager.model else None


def _families(app: FastAPI) -> Iterable[Metric]:
    service: Service = app.state.service  # of this lifespan, which begins after the figures do
    return service.families()


def _described(app: FastAPI, guarded: Iterable[str]) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = build_openapi(app, guarded, app.state.settings.max_batch)
    return app.openapi_schema


def main() -> int:
    """Serve until a signal comes."""
    settings = settings_typed()
    if place := WorkerSpec.take():
        log_to_stderr()
        with place.listening() as listener:
            _serve(settings, listener, place)
        return 0
    _monitor(settings).close()  # a store or a webhook that cannot be is said now, in one line
    with listen(settings.host, settings.port) as listener:
        log_to_stderr()
        address, port = listener.getsockname()[:2]
        if not ipaddress.ip_address(address).is_loopback and not settings.protected_paths():
            logger.warning(
                "%s is open to the network without keys: set SERVE_PREDICT_KEY and SERVE_ADMIN_KEY", settings.host
            )
        _print_banner(settings, f"http://{f'[{address}]' if ':' in address else address}:{port}")
        if settings.workers > 1:
            with suppress(ToolkitError):  # whatever it says: a new database gets its tables from one, not from all
                RegistrySource(settings, settings.stage).find()
            command = [*process_command("serve_model"), *sys.argv[1:]]
            exec_supervisor(command, settings.workers, listener, settings.drain_timeout + settings.shutdown_timeout)
        _serve(settings, listener)
    return 0


def _serve(settings: ServeSettings, listener: socket, place: WorkerSpec | None = None) -> None:
    sys.setswitchinterval(GIL_SWITCH_INTERVAL_S)
    limit_malloc_arenas()
    app = create_app(settings, place)

    def leave() -> None:
        app.state.draining = True

    config = ServerConfig(
        settings.drain_timeout, settings.shutdown_timeout, settings.timeouts, settings.max_connections
    )
    Server(app, leave, config, alone=place is None).run(sockets=[listener])


def _print_banner(settings: ServeSettings, url: str) -> None:
    print(
        f"serving {settings.model_name}, the version in {settings.stage}, on {url}\n"
        f"  dashboard   {url}/dashboard\n"
        f"  addresses   {url}/docs\n"
        f"  try it      curl -F file=@image.jpg {url}/predict",
        flush=True,
    )


if __name__ == "__main__":
    run_script(main)
