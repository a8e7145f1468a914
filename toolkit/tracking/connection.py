"""The only module that sets up MLflow: stores, experiments, and calls whose failure takes seconds and gives one line.

``MLFLOW_TRACKING_URI`` names the store. Unset, it is ``sqlite:///mlflow.db`` in the working directory, which a plain
``mlflow server`` started there shows too. All other modules import ``mlflow`` from here, because its settings must be
made before its first import.
"""

import json
import logging
import os
import re
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path

import requests

from toolkit.cli.terminal import echo
from toolkit.errors import TrackingError, suggest
from toolkit.redaction import redact_passwords
from toolkit.system.interrupts import DeferredSignals
from toolkit.system.sqlite_schema import migrate_once, revision_of
from toolkit.tracking.errors import reason_of

# The defaults of MLflow, 7 retries of 120 s each, block for minutes.
TIMEOUTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
# Read by MLflow at its import or at each call; the user's own values stay.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing phones home
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # pickled models are refused, pt2 archives scanned
    **TIMEOUTS,
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

import mlflow as mlflow  # noqa: E402  (the alias marks it as exported)
from mlflow.exceptions import MlflowException as MlflowException  # noqa: E402
from mlflow.tracking import MlflowClient as MlflowClient  # noqa: E402
from mlflow.tracking.request_header.abstract_request_header_provider import RequestHeaderProvider  # noqa: E402

# Private: MLflow finds providers of headers only by entry points of installed packages.
from mlflow.tracking.request_header.registry import _request_header_provider_registry as _headers  # noqa: E402

SQLITE = "sqlite:///"
DEFAULT_URI = f"{SQLITE}mlflow.db"
URI_RE = re.compile(r"(?!file:)[\w+.-]+://|databricks|uc:")  # no folders, which MLflow refuses
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # those that MLflow knows
COLUMNS = (  # of an experiment's table, besides MLflow's own
    "metrics.`held_out_accuracy`", "metrics.`mean_cv_accuracy`", "metrics.`best_val_accuracy`",
    "metrics.`f1_weighted`", "metrics.`calibration_error`", "metrics.`training_time_s`", "params.`model_type`",
    "attributes.`Dataset`", "attributes.`Models`",
)  # fmt: skip
VIEW = {  # a shared view of MLflow's page of an experiment
    "searchFilter": "", "orderByKey": "attributes.start_time", "orderByAsc": False, "startTime": "ALL",
    "lifecycleFilter": "Active", "datasetsFilter": [], "modelVersionFilter": "All Runs", "selectedColumns": COLUMNS,
}  # fmt: skip
# MLflow's pages show the view for language models, unless the address or the user's last choice is another.
MODEL_TRAINING = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.sharedViewState.metrics": json.dumps(VIEW),
}
AS_MODEL_TRAINING = "workflowType=machine_learning"
BUSY_SECONDS = 60  # maximum wait of a writer of an SQLite store for others
ANSWER_SECONDS = 5  # maximum for a ping, and for each request that a user waits for
RETRY_SECONDS = 30  # between two attempts to send to an unreachable store


def connect(uri: str | None = None) -> MlflowClient:
    """A client of the tracking store at ``http(s)://...`` or in a database, after an answer within about ten seconds.

    None means ``MLFLOW_TRACKING_URI``, or else ``DEFAULT_URI``. ``TrackingError``: no answer, or a refusal.
    """
    name = "the tracking URI" if uri else "MLFLOW_TRACKING_URI"
    uri = (uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI).strip()
    shown = redact_passwords(uri)
    if not URI_RE.match(uri):
        raise TrackingError(f"{name} must be an address such as http://127.0.0.1:5000 or {DEFAULT_URI}, got {shown}")
    for logger in ("mlflow.store", "alembic"):  # a first start prints two dozen migration lines
        logging.getLogger(logger).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback for each error
    file = _sqlite_file(uri)
    if not file:
        hint = "; start it with: mlflow server" if uri.startswith("http") else ""
        with _as_tracking_error(f"MLflow at {shown} does not answer", Exception, hint=hint):
            ping(uri)
    with _as_tracking_error(f"MLflow at {shown} cannot be used", Exception), short_timeouts():
        if file:
            uri = _prepare(file, uri)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


def is_reachable(client: MlflowClient) -> bool:
    """Whether a store can be written to, within seconds."""
    try:
        ping(client.tracking_uri)
    except Exception:  # noqa: BLE001  requests, SQLAlchemy and sqlite3 each raise kinds of their own
        return False
    return True


def _sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite store; None for another store, and for one in memory."""
    path = uri.removeprefix(SQLITE).partition("?")[0]
    return Path(path).absolute() if uri.startswith(SQLITE) and path and not path.startswith(":") else None


def _prepare(file: Path, uri: str) -> str:
    """Create or migrate MLflow's tables in an SQLite file, and return the address to use.

    It is absolute, because MLflow keeps one store per address for the life of a process, and has a timeout of a
    minute, because SQLite's 5 seconds are too short for several trainings at once.
    """
    if not any(name.startswith("MLFLOW_SQLALCHEMYSTORE_") for name in os.environ):  # the user's own choice stays
        os.environ["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"] = "NullPool"  # the file may be replaced while it is in use
    file.parent.mkdir(parents=True, exist_ok=True)
    if not _is_current(file) and (former := migrate_once(file, _is_current, _migrate, BUSY_SECONDS)):
        echo(f"{file} now has the tables of MLflow {mlflow.__version__}; as it was before, it is kept in {former.name}")
    query = uri.partition("?")[2]
    query = query if "timeout=" in query else "&".join(filter(None, [query, f"timeout={BUSY_SECONDS}"]))
    return f"{SQLITE}{file}?{query}"


def _migrate(file: Path) -> None:
    """Give an SQLite file the tables of this MLflow, as ``mlflow db upgrade`` does."""
    from mlflow import db  # not needed for a server

    db.upgrade.callback(f"{SQLITE}{file}")  # type: ignore[misc]  # a command of click


def _is_current(file: Path) -> bool:
    """Whether an SQLite file has exactly the tables of this MLflow."""
    from mlflow.store.db import utils  # not needed for a server

    wanted = utils._get_latest_schema_revision()  # type: ignore[no-untyped-call]  # private: there is no public way
    return bool(revision_of(file, BUSY_SECONDS) == wanted)


def ping(uri: str) -> None:
    """Require that a store answers within seconds; an SQLite file must be writable."""
    if file := _sqlite_file(uri):
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=ANSWER_SECONDS)) as database:
            database.execute("BEGIN IMMEDIATE")  # undone by closing
    elif uri.startswith(DATABASES):
        import sqlalchemy  # not needed for a server

        engine = sqlalchemy.create_engine(uri)
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    elif uri.startswith("http"):
        certificate = os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH")
        with suppress(requests.exceptions.SSLError):  # an answer too; MLflow has settings for certificates
            address = f"{uri.rstrip('/')}/health"
            requests.get(address, timeout=ANSWER_SECONDS, cert=certificate, allow_redirects=False)


_lock = threading.Lock()
_limits: list[int] = []  # seconds of each active block of short timeouts, in any thread
_ours: list[str] = []  # variables with our defaults, not the user's values


@contextmanager
def short_timeouts(seconds: int | None = None) -> Iterator[None]:
    """One try of ``seconds`` (``ANSWER_SECONDS`` when None) for each request to a server within the block.

    MLflow reads its timeouts from variables at each request, and has no argument for them. So they hold in all
    threads, the shortest of the active blocks, until the last block ends. ``MLFLOW_HTTP_REQUEST_TIMEOUT`` and
    ``MLFLOW_HTTP_REQUEST_MAX_RETRIES`` stay as they are where the user has set them.
    """
    limit = ANSWER_SECONDS if seconds is None else seconds
    with _lock:
        if not _limits:
            _ours[:] = [name for name, value in TIMEOUTS.items() if os.environ.get(name) == value]
        _limits.append(limit)
        _set_timeouts()
    try:
        yield
    finally:
        with _lock:
            _limits.remove(limit)
            _set_timeouts()


def _set_timeouts() -> None:
    values = TIMEOUTS
    if _limits:
        values = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(min(_limits))}
    os.environ.update({name: values[name] for name in _ours})


class _OwnConnection(RequestHeaderProvider):
    """A header that asks for a new connection for each request with short timeouts.

    A server closes an idle connection after some seconds, perhaps at the moment of the next request,
    which would fail without a retry.
    """

    def in_context(self) -> bool:
        return bool(_limits)

    def request_headers(self) -> dict[str, str]:
        return {"Connection": "close"}


_headers.register(_OwnConnection)  # type: ignore[no-untyped-call]


@contextmanager
def mlflow_call(action: str, timeout: int | None = None) -> Iterator[None]:
    """Turn errors of MLflow within the block into a ``TrackingError``: "cannot log metrics: connection refused".

    For calls that a user waits for, a timeout in seconds holds for each request, without retries.
    """
    database = sys.modules.get("sqlalchemy.exc")  # not needed for a server
    kinds = (MlflowException, OSError, UnicodeError, sqlite3.Error, *([database.SQLAlchemyError] if database else []))
    limits = nullcontext() if timeout is None else short_timeouts(timeout)
    with whole_transactions(), limits, _as_tracking_error(f"cannot {action}", *kinds):
        yield


def whole_transactions() -> AbstractContextManager[object]:
    """A context in which no Ctrl-C interrupts a transaction of a database, which would leave it locked.

    SQLAlchemy drops a connection that a KeyboardInterrupt went through, but its traceback keeps it open.
    """
    return DeferredSignals() if "sqlalchemy" in sys.modules else nullcontext()


@contextmanager
def _as_tracking_error(problem: str, *kinds: type[Exception], hint: str = "") -> Iterator[None]:
    try:
        yield
    except kinds as error:
        raise TrackingError(f"{problem}: {reason_of(error)}{hint}") from None


def find_experiment(client: MlflowClient, name: str) -> str:
    """The id of an existing experiment; ``TrackingError`` lists those that exist."""
    with mlflow_call(f"find experiment {name!r}", timeout=ANSWER_SECONDS):
        experiment = client.get_experiment_by_name(name)
        if experiment is not None and experiment.lifecycle_stage == "active":
            return str(experiment.experiment_id)
        names = [other.name for other in client.search_experiments()]
    raise TrackingError(f"there is no experiment {name!r}; there are: {suggest(names, name)}")


def experiment_page(client: MlflowClient, experiment_id: str, path: str, query: str = "") -> str | None:
    """The address of a page of an experiment, if the store is a server."""
    if not client.tracking_uri.startswith("http"):
        return None
    return f"{client.tracking_uri.rstrip('/')}/#/experiments/{experiment_id}/{path}?{AS_MODEL_TRAINING}{query}"


def open_experiment(client: MlflowClient, name: str) -> str:
    """The id of an experiment, created when missing, that this client can write artifacts to."""
    if not name.strip():
        raise TrackingError(f"an experiment's name must not be blank, got {name!r}")
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, tags=MODEL_TRAINING))
        except MlflowException:
            if client.get_experiment_by_name(name) is None:
                raise
            return find_experiment(client, name)  # another process created it at the same moment
    if experiment.lifecycle_stage != "active":
        raise TrackingError(f"experiment {name!r} was deleted; restore it or choose another with --experiment-name")
    if experiment.artifact_location.startswith("mlflow-artifacts:") and not client.tracking_uri.startswith("http"):
        raise TrackingError(
            f"experiment {name!r} keeps its files behind an MLflow server: set MLFLOW_TRACKING_URI to that server's"
            " address, or choose another with --experiment-name"
        )
    for key, value in MODEL_TRAINING.items():  # missing in one that was created by hand
        if key not in experiment.tags:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return str(experiment.experiment_id)
