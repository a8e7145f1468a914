"""The only place that sets MLflow up; runs with buffered metrics, which outlive an outage of the store.

``MLFLOW_TRACKING_URI`` decides where runs go. Unset, it is ``sqlite:///mlflow.db`` in the working
directory: the store that a plain ``mlflow server`` started there shows too. Everybody else takes
``mlflow`` from here, because its settings have to be made before its first import.
"""

import getpass
import json
import logging
import math
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from toolkit.commands import DISTRIBUTION, ROOT
from toolkit.errors import TrackingError, known, one_line
from toolkit.local_store import bring_up_to_date
from toolkit.names import printable, shown
from toolkit.redaction import redact_passwords
from toolkit.terminal import say

# The defaults of MLflow, 7 retries of 120 s each, block for minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
# Read by MLflow when it is imported or at each call; what the user has set stays.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing phones home
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # pickled models are refused, pt2 archives scanned
    **PATIENCE,
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

import mlflow as mlflow  # noqa: E402  (the alias marks it as exported)
from mlflow.entities import (  # noqa: E402
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import ERROR_CODE_TO_HTTP_STATUS, RestException  # noqa: E402
from mlflow.exceptions import MlflowException as MlflowException  # noqa: E402
from mlflow.tracking import MlflowClient as MlflowClient  # noqa: E402
from mlflow.tracking.request_header.abstract_request_header_provider import RequestHeaderProvider  # noqa: E402
from mlflow.tracking.request_header.registry import _request_header_provider_registry as _headers  # noqa: E402
from mlflow.utils.credentials import get_default_host_creds  # noqa: E402
from mlflow.utils.rest_utils import http_request  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SQLITE = "sqlite:///"
DEFAULT_URI = f"{SQLITE}mlflow.db"
COLUMNS = (  # of an experiment's table, beside those that MLflow shows by itself: the figures that runs are chosen by
    "metrics.`held_out_accuracy`", "metrics.`mean_cv_accuracy`", "metrics.`best_val_accuracy`",
    "metrics.`f1_weighted`", "metrics.`calibration_error`", "metrics.`training_time_s`", "params.`model_type`",
    "attributes.`Dataset`", "attributes.`Models`",
)  # fmt: skip
VIEW = {  # what MLflow's page of an experiment keeps of a view that is shared
    "searchFilter": "", "orderByKey": "attributes.start_time", "orderByAsc": False, "startTime": "ALL",
    "lifecycleFilter": "Active", "datasetsFilter": [], "modelVersionFilter": "All Runs", "selectedColumns": COLUMNS,
}  # fmt: skip
# Its pages show what language models need unless an address, or the person's last choice, says otherwise.
MODEL_TRAINING = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.sharedViewState.figures": json.dumps(VIEW),
}
AS_MODEL_TRAINING = "workflowType=machine_learning"
BUSY_SECONDS = 60  # how long a writer of an SQLite store waits for the others
ANSWER_SECONDS = 5  # how long a sign of life may take, and each request that somebody waits for
RETRY_SECONDS = 30  # between two attempts to send to a store that is away
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # those that MLflow knows
MOST_METRICS_A_BATCH, MOST_PARAMS_A_BATCH = 1000, 100  # limits of MLflow's log-batch request
LONGEST_PARAM = 6000  # characters, limit of MLflow
LONGEST_REASON = 200  # characters of a library's own words
# How the libraries begin before they say what is wrong, and how they say which status a server answered with.
PREFACE = re.compile(r"occurring prematurely\)\n|##### File .* #####\n")
ANSWER = re.compile(
    r"(?:error code |too many |^)(\d{3}) (?:!= 200|error responses|Client Error|Server Error)", re.MULTILINE
)
HOST = re.compile(r"(localhost|[\w-]+(\.[\w-]+)+|[\w.-]+:\d+)(/.*)?")  # that the scheme was forgotten of
NOT_MLFLOW = "what answers is not MLflow: another program, or a proxy that wants a login"
UNKNOWN_USER = "user or password is wrong or missing; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
# What is in the errors of the libraries, and what it means; the first that is found counts.
SIGNS = {
    "refused": "connection refused",
    "timed out": "no answer in time",
    "resolve": "unknown host",
    "Connection aborted": "the connection broke off",
    "Connection broken": "the connection broke off",
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is not trusted",
    "WRONG_VERSION_NUMBER": "the server speaks http, not https",
    "not in a valid JSON format": NOT_MLFLOW,
    "Expecting value: line 1": NOT_MLFLOW,
    "INTERNAL_ERROR: Response: ": NOT_MLFLOW,  # JSON of another kind
    "unable to open database": "the database file cannot be opened",
    "file is not a database": "the file is not a database",
    "database is locked": "the database is locked by another program",
    "readonly database": "the database file cannot be written",
    "disk is full": "the disk is full",
    "No space left on device": "the disk is full",
    "surrogates not allowed": "a name or path in it is not UTF-8",
    "disk I/O error": "the disk cannot be read or written",
    "got unsupported URI": "MLflow knows no such scheme",
    "Can't locate revision": "the database was made by a newer MLflow than the one that is installed here",
}

Entry = tuple[str, float | str, int, int]  # name, value, time in ms since 1970, step; "nan", "inf" or "-inf" as text


def connect(uri: str | None = None) -> MlflowClient:
    """A client of the tracking store, known to answer.

    Parameters
    ----------
    uri
        ``http(s)://...`` or a database; ``MLFLOW_TRACKING_URI``, or else ``DEFAULT_URI``, when None.

    Raises
    ------
    TrackingError
        The store does not answer within about ten seconds, or refuses.
    """
    name = "the tracking URI" if uri else "MLFLOW_TRACKING_URI"
    uri = (uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI).strip()
    if meant := _meant(uri):
        given, meant = redact_passwords(uri), redact_passwords(meant)
        raise TrackingError(
            f"{name} must begin with http://, https:// or a database's scheme, got {given}; did you mean {meant}?"
        )
    address = _address(uri)
    for name in ("mlflow.store", "alembic"):  # a first start prints two dozen migration lines
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback for each error it raises too
    try:
        with impatient():
            _knock(address)
            _prepare(address)
            client = MlflowClient(tracking_uri=address, registry_uri=address)
            client.search_experiments(max_results=1)
    except Exception as error:  # noqa: BLE001  requests, SQLAlchemy and MLflow each raise kinds of their own
        place, reason = redact_passwords(uri), reason_of(error)
        if _is_answer(error):
            hint = _proxy_hint(uri)
            raise TrackingError(f"MLflow at {place} cannot be used: {reason}{hint and '; '}{hint}") from None
        if uri.startswith("http"):
            hint = _proxy_hint(uri) or "start it with: mlflow server"
        else:
            hint = "set MLFLOW_TRACKING_URI to another store"
        raise TrackingError(f"MLflow at {place} does not answer: {reason}; {hint}") from None
    return client


def _meant(uri: str) -> str:
    """What was probably meant by an address without a scheme that MLflow knows; empty for one that may be right.

    >>> _meant("127.0.0.1:5000"), _meant("runs/mlflow.db"), _meant("./mlruns"), _meant("sqlite://mlflow.db")
    ('http://127.0.0.1:5000', 'sqlite:///runs/mlflow.db', 'sqlite:///mlflow.db', 'sqlite:///mlflow.db')
    >>> _meant("http://127.0.0.1:5000"), _meant("databricks"), _meant("sqlite:////srv/mlflow.db")
    ('', '', '')
    """
    if uri.startswith(("http://", "https://", SQLITE, "databricks", "uc:")) or uri == "sqlite://":
        return ""
    scheme, found, rest = uri.partition(":/")
    if found and scheme != "file":
        known_as = {"http": "http://", "https": "https://", "sqlite": SQLITE, "postgres": "postgresql://"}
        return known_as[scheme] + rest.lstrip("/") if scheme in known_as else ""  # plug-ins have their own
    if uri.endswith((".db", ".sqlite", ".sqlite3")):
        return SQLITE + uri.removeprefix("file://")
    return f"http://{uri}" if HOST.fullmatch(uri) else DEFAULT_URI  # MLflow keeps no runs in folders any more


def _proxy_hint(uri: str) -> str:
    """How to do without the proxy that requests to a server go to; empty where they go to none."""
    try:
        place = urlsplit(uri)
        proxies = getproxies()
        name = place.scheme if place.scheme in proxies else "all"
        if name not in proxies or not place.hostname or proxy_bypass(place.netloc):
            return ""
    except ValueError:  # half an IPv6 address
        return ""
    proxy = redact_passwords(proxies[name])
    return f"if it needs no proxy, unset {name}_proxy ({proxy}) or add {place.hostname} to no_proxy"


def _address(uri: str) -> str:
    """The address as MLflow is given it: that of an SQLite file is made absolute and patient.

    MLflow keeps one store per address for the life of a process, so a relative file would stick to
    the first folder. And SQLite waits 5 seconds for its turn, too short for several trainings at once.
    """
    if not uri.startswith(SQLITE):
        return uri
    path, _, query = uri.removeprefix(SQLITE).partition("?")
    if not path or path.startswith(":"):  # in memory
        return uri
    query = query if "timeout=" in query else "&".join(filter(None, [query, f"timeout={BUSY_SECONDS}"]))
    return f"{SQLITE}{Path(path).absolute()}?{query}"


def _knock(uri: str) -> None:
    """Find out within seconds whether anybody answers; MLflow itself would retry for minutes."""
    if uri.startswith(("http://", "https://")):
        server = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
        http_request(  # type: ignore[no-untyped-call]
            server, "/health", "GET", max_retries=0, timeout=ANSWER_SECONDS, raise_on_status=False
        )
    elif uri.startswith(DATABASES):
        import sqlalchemy  # brought by MLflow; a server needs none

        address = sqlalchemy.make_url(uri)
        if address.database and address.get_backend_name() == "sqlite":
            Path(address.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sqlalchemy.create_engine(address)
        try:
            engine.connect().close()
        finally:
            engine.dispose()


def _prepare(uri: str) -> None:
    """Give an SQLite file MLflow's tables if it has not got them, or has those of an older MLflow."""
    path = uri.removeprefix(SQLITE).partition("?")[0]
    if not uri.startswith(SQLITE) or not Path(path).is_absolute() or _is_current(Path(path)):
        return
    if former := bring_up_to_date(Path(path), _is_current, _migrate, BUSY_SECONDS):
        say(f"{path} now has the tables of MLflow {mlflow.__version__}; as it was before, it is kept in {former.name}")


def _migrate(path: Path) -> None:
    """Give an SQLite file the tables of this MLflow, as ``mlflow db upgrade`` does."""
    from mlflow import db  # not imported for a server

    try:
        db.upgrade.callback(f"{SQLITE}{path}")  # type: ignore[misc]  # what click made a command of
    except Exception as error:  # noqa: BLE001  SQLAlchemy and Alembic raise kinds of their own
        text = (
            f"its tables cannot become those of MLflow {mlflow.__version__}, and stay as they are: {reason_of(error)}"
        )
        raise TrackingError(text) from None


def _is_current(path: Path) -> bool:
    """Whether an SQLite file has exactly the tables of this MLflow."""
    import sqlalchemy
    from mlflow.store.db import utils as database  # not imported for a server

    engine = sqlalchemy.create_engine(f"{SQLITE}{path}?timeout={BUSY_SECONDS}")
    try:
        if not database._all_tables_exist(engine):  # type: ignore[no-untyped-call]
            return False
        wanted = database._get_latest_schema_revision()  # type: ignore[no-untyped-call]
        return bool(database._get_schema_version(engine) == wanted)  # type: ignore[no-untyped-call]
    finally:
        engine.dispose()


def _knock_again(uri: str) -> None:
    """Knock at a store that was there before: an SQLite file is not created, and must let us write within seconds."""
    path = Path(uri.removeprefix(SQLITE).partition("?")[0])
    if not (uri.startswith(SQLITE) and path.is_absolute()):
        _knock(uri)
        return
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=ANSWER_SECONDS)) as database:
        database.execute("BEGIN IMMEDIATE")  # what closing takes back


def answers(client: MlflowClient) -> bool:
    """Whether a store that was there before can be written to, found out within seconds."""
    try:
        with impatient():
            _knock_again(client.tracking_uri)
    except Exception:  # noqa: BLE001  requests, SQLAlchemy and sqlite3 each raise kinds of their own
        return False
    _renew_connections(client)
    return True


_entry = threading.Lock()
_inside: list[int] = []  # the seconds of each who is impatient now, in any thread
_ours: list[str] = []  # the variables that hold our defaults while nobody is, so that no user has chosen them


@contextmanager
def impatient(seconds: int | None = None) -> Iterator[None]:
    """One try of a few seconds for each request to a server, for as long as somebody waits.

    MLflow reads its limits from variables at each request, and has no argument for them; so they hold in all
    threads, the shortest of those asked for, until the last has left. ``MLFLOW_HTTP_REQUEST_TIMEOUT`` and
    ``MLFLOW_HTTP_REQUEST_MAX_RETRIES`` stay as they are where the user has set them.

    Parameters
    ----------
    seconds
        How long to wait for an answer, and between two parts of it; ``ANSWER_SECONDS`` when None.
    """
    limit = ANSWER_SECONDS if seconds is None else seconds
    with _entry:
        if not _inside:
            _ours[:] = [name for name, value in PATIENCE.items() if os.environ.get(name) == value]
        _inside.append(limit)
        _limit_requests()
    try:
        yield
    finally:
        with _entry:
            _inside.remove(limit)
            _limit_requests()


def _limit_requests() -> None:
    limits = PATIENCE
    if _inside:
        limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(min(_inside))}
    os.environ.update({name: limits[name] for name in _ours})


class _OwnConnection(RequestHeaderProvider):
    """Asks for a connection of its own for each impatient request.

    A server closes a kept one after some seconds of rest, in the very moment of the next request if that
    comes as regularly; with no second try that would be an error.
    """

    def in_context(self) -> bool:
        return bool(_inside)

    def request_headers(self) -> dict[str, str]:
        return {"Connection": "close"}


_headers.register(_OwnConnection)  # type: ignore[no-untyped-call]


def reason_of(error: Exception) -> str:
    """Why a request to MLflow, or to where it keeps its files, came to nothing, in a few words on one line."""
    text = PREFACE.split(str(error))[:2][-1]  # of several downloads, the first
    if answer := ANSWER.search(text):
        return _refusal(int(answer[1]), text)
    line = one_line(Exception(text)) if text else one_line(error)
    for sign, reason in SIGNS.items():
        if sign in line:
            return f"a proxy is in the way: {reason}" if "ProxyError" in line else reason
    line = redact_passwords(line)
    return line if len(line) <= LONGEST_REASON else line[:LONGEST_REASON] + "..."


def _refusal(status: int, text: str) -> str:
    """What an HTTP status means, with what the server says unless that is a web page or JSON."""
    if status == HTTPStatus.UNAUTHORIZED:
        return UNKNOWN_USER
    meaning = "no permission" if status == HTTPStatus.FORBIDDEN else f"the server answers with status {status}"
    said = re.search(r"Response (?:body: '|text: )([^<{\n]+?)'?$", text, re.MULTILINE)
    if said is None or said[1] == "Permission denied":
        return meaning
    return f"{meaning}: {said[1][:LONGEST_REASON]}"


def _is_answer(error: Exception) -> bool:
    """Whether somebody did answer, only not as hoped."""
    return isinstance(error, RestException) or bool(ANSWER.search(str(error))) or reason_of(error) == NOT_MLFLOW


def _store_errors() -> tuple[type[Exception], ...]:
    """What a store fails with: MLflow's errors, those of files and sockets, requests' included, and the databases'."""
    database = sys.modules.get("sqlalchemy.exc")  # not imported for a server
    return (MlflowException, OSError, UnicodeError, sqlite3.Error, *([database.SQLAlchemyError] if database else []))


@contextmanager
def explained(action: str) -> Iterator[None]:
    """Turn whatever MLflow raises while doing ``action`` into one sentence."""
    try:
        yield
    except _store_errors() as error:
        raise TrackingError(f"cannot {action}: {reason_of(error)}") from None


@contextmanager
def promptly(action: str) -> Iterator[None]:
    """As ``explained``, and known within seconds: for what somebody waits for, and can ask for again."""
    with impatient(), explained(action):
        yield


def find_experiment(client: MlflowClient, name: str) -> str:
    """The id of an existing experiment; ``TrackingError`` lists those that exist."""
    with promptly(f"look for experiment {name!r}"):
        experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != "active":
        with promptly("list the experiments"):
            names = [other.name for other in client.search_experiments()]
        raise TrackingError(f"there is no experiment {name!r}; there are: {known(names, name)}")
    return str(experiment.experiment_id)


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
    for key, value in MODEL_TRAINING.items():  # of one that was made by hand, or by an older version
        if key not in experiment.tags:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return str(experiment.experiment_id)


class _Outage:
    """A store that takes no metrics: when it may be tried again, and a line when it goes and when it is back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next = -math.inf  # time of the next attempt
        self._said: str | None = None
        self.away = False  # out of reach, not merely refusing

    @property
    def pausing(self) -> bool:
        """Whether it is too early for another attempt."""
        return self._clock() < self._next

    def failed(self, error: Exception) -> None:
        """Wait a while; say so, unless the user knows."""
        self._next = self._clock() + RETRY_SECONDS
        self.away = not _refused(error)
        said = "MLflow cannot take the metrics" if self.away else "MLflow refuses the metrics"
        if said != self._said:
            say(f"{said}: {reason_of(error).rstrip('.')}; training goes on, they are kept and will be sent later")
        self._said = said

    def over(self) -> None:
        """All is sent."""
        if self._said:
            say("MLflow takes the metrics again; those that were kept have been sent")
        self._next, self._said, self.away = -math.inf, None, False


def _refused(error: Exception) -> bool:
    """Whether the store understood and said no, so that only a change over there helps: the run was deleted, say."""
    if not isinstance(error, MlflowException):
        return False
    status = ERROR_CODE_TO_HTTP_STATUS.get(error.error_code, 500)
    return 400 <= status < 500 and status not in (408, 429)  # timed out, too many requests: these pass


class Run:
    """One MLflow run, whose metrics are buffered, and written by ``send`` or ``flush``.

    Metrics outlive an outage of the store: ``send`` keeps what it cannot deliver and tries again
    later, and ``unsent`` is what a checkpoint should hold, for ``restore`` after a crash. An entry
    that is sent twice is in the store once, because MLflow knows it by all its four parts.

    As a context manager it ends the run with the status that fits: FINISHED, KILLED when it was
    interrupted, FAILED for any other exception.

    Parameters
    ----------
    client, experiment
        Where the run goes; the experiment is created when missing.
    role
        ``final``, ``fold``, ``trial`` or ``study``.
    name
        What people see in lists of runs.
    parent
        The run that this one is nested in.
    clock
        Seconds that never run backwards, which pause the attempts to send to a store that is away.

    Raises
    ------
    TrackingError
        Here and in every method but ``send``: the store cannot be reached or refuses.

    Examples
    --------
    >>> import os, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> client = connect(f"sqlite:///{folder.name}/mlflow.db")
    >>> with Run(client, "training", role="final", name="a run") as run:
    ...     run.metrics({"loss": 0.5}, step=1)
    ...     os.rename(f"{folder.name}/mlflow.db", f"{folder.name}/gone.db")
    ...     run.send(), len(run.unsent)
    ...     os.rename(f"{folder.name}/gone.db", f"{folder.name}/mlflow.db")
    MLflow cannot take the metrics: the database file cannot be opened; training goes on, they are kept and will be sent
    later
    (False, 1)
    MLflow takes the metrics again; those that were kept have been sent
    >>> client.get_run(run.id).data.metrics
    {'loss': 0.5}
    >>> folder.cleanup()
    """

    def __init__(
        self,
        client: MlflowClient,
        experiment: str,
        *,
        role: str,
        name: str,
        parent: "Run | None" = None,
        tags: Mapping[str, object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        everything = {
            "role": role,
            "mlflow.runName": name,
            "mlflow.user": _user(),
            "mlflow.source.name": Path(sys.argv[0]).name,
            "mlflow.source.type": "LOCAL",
            "mlflow.source.git.commit": code_version(),
            **({"mlflow.parentRunId": parent.id} if parent else {}),
            **(tags or {}),
        }
        with explained(f"start a run in experiment {experiment!r}"):
            experiment_id = open_experiment(client, experiment)
            written = {key: printable(str(value)) for key, value in everything.items()}
            created = client.create_run(experiment_id, tags=written)
        self._hold(client, experiment, experiment_id, created.info.run_id, clock)

    @classmethod
    def reopen(cls, client: MlflowClient, run_id: str, *, clock: Callable[[], float] = time.monotonic) -> "Run":
        """Go on with a run of the store, however it ended; its status is RUNNING again.

        Raises
        ------
        TrackingError
            There is no such run, it was deleted, or this client cannot write to its experiment.
        """
        with explained(f"reopen run {run_id!r}"):
            found = client.get_run(run_id)
            if found.info.lifecycle_stage != "active":
                raise TrackingError(f"cannot reopen run {run_id!r}: it was deleted; restore it or start another")
            experiment = client.get_experiment(found.info.experiment_id).name
            experiment_id = open_experiment(client, experiment)
            client.update_run(run_id, status="RUNNING")
            if "failure" in found.data.tags:  # it is another attempt's
                client.delete_tag(run_id, "failure")
        run = cls.__new__(cls)
        run._hold(client, experiment, experiment_id, run_id, clock)
        return run

    def _hold(
        self, client: MlflowClient, experiment: str, experiment_id: str, run_id: str, clock: Callable[[], float]
    ) -> None:
        self.client, self.experiment, self.experiment_id, self.id = client, experiment, experiment_id, run_id
        self._metrics: list[Metric] = []
        self._clock, self._outage = clock, _Outage(clock)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.end("FINISHED")
            return
        stopped = issubclass(kind, KeyboardInterrupt | SystemExit)
        with suppress(TrackingError):  # the first error is the one to report
            if not stopped:
                self.tag(failure=one_line(error or kind()))
            self.end("KILLED" if stopped else "FAILED")

    def params(self, values: Mapping[str, object]) -> None:
        """Record settings; values longer than MLflow allows are cut."""
        entries = [Param(name, printable(str(value))[:LONGEST_PARAM]) for name, value in values.items()]
        with explained("log parameters"):
            for start in range(0, len(entries), MOST_PARAMS_A_BATCH):
                self.client.log_batch(self.id, params=entries[start : start + MOST_PARAMS_A_BATCH])

    def tag(self, **values: object) -> None:
        """Set tags."""
        with explained("set tags"):
            self.client.log_batch(self.id, tags=[RunTag(name, printable(str(value))) for name, value in values.items()])

    def dataset(self, name: str, digest: str, source: str, *, profile: Mapping[str, object], context: str) -> None:
        """Record which data the run used, as an MLflow data set input.

        MLflow keeps one input for a name and digest in a run, so each part of the data needs a digest of its own.

        Parameters
        ----------
        name
            At most 500 characters.
        digest
            What tells the data from any other of that name, at most 36 characters.
        source
            Folder or address that the data came from.
        profile
            Figures about the data, JSON-able: number of pictures and of classes, say.
        context
            What the data was used for: ``training``, say.
        """
        address, figures = json.dumps({"uri": shown(source)}), json.dumps(dict(profile))
        entry = Dataset(shown(name), digest, "local", address, profile=figures)
        with explained(f"log the data set {name!r}"):
            self.client.log_inputs(self.id, datasets=[DatasetInput(entry, [InputTag("mlflow.data.context", context)])])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Buffer metrics; nothing is sent before ``send`` or ``flush``."""
        now = int(time.time() * 1000)
        self._metrics += [Metric(name, float(value), now, step) for name, value in values.items()]

    @property
    def unsent(self) -> list[Entry]:
        """What is buffered, oldest first, ready for JSON: (name, value, milliseconds since 1970, step)."""
        return [
            (item.key, item.value if math.isfinite(item.value) else str(item.value), item.timestamp, item.step)
            for item in self._metrics
        ]

    def restore(self, entries: Iterable[Sequence[object]]) -> None:
        """Put what ``unsent`` gave, also as JSON gives it back, in front of the buffer.

        Raises
        ------
        TrackingError
            An entry is none of ``unsent``'s; the buffer stays as it was.
        """
        self._metrics[:0] = [_metric(entry) for entry in entries]

    def send(self) -> bool:
        """Send the buffered metrics if the store takes them; never raise.

        The first failure and the recovery are told in a line each. A store that failed or refused is
        tried again after ``RETRY_SECONDS``; an attempt takes ``ANSWER_SECONDS`` at a server that does
        not answer, and three times that at the most.

        Returns
        -------
        bool
            Whether everything is in the store.
        """
        if not self._metrics or self._outage.pausing:
            return not self._metrics
        try:
            with impatient():
                _knock_again(self.client.tracking_uri)
                self._deliver(until=self._clock() + ANSWER_SECONDS)
        except Exception as error:  # noqa: BLE001  no trouble with a figure is worth a training
            self._outage.failed(error)
        return not self._metrics

    def flush(self) -> None:
        """Send the buffered metrics; on failure they stay buffered."""
        with explained("log metrics"):
            if self._outage.away:
                with impatient():
                    _knock_again(self.client.tracking_uri)
            self._deliver()

    def _deliver(self, until: float = math.inf) -> None:
        """Send batch after batch, and start none when the time is up."""
        if self._outage.away:
            _renew_connections(self.client)
        while self._metrics and self._clock() <= until:
            batch = self._metrics[:MOST_METRICS_A_BATCH]
            self.client.log_batch(self.id, metrics=batch)
            del self._metrics[: len(batch)]
        if not self._metrics:
            self._outage.over()

    def json(self, name: str, value: object) -> None:
        """Log a value as a JSON file."""
        with explained(f"log {name}"):
            self.client.log_text(self.id, json.dumps(value, indent=2), name)

    def text(self, name: str, value: str) -> None:
        """Log a text file."""
        with explained(f"log {name}"):
            self.client.log_text(self.id, printable(value), name)

    def figure(self, name: str, figure: "Figure") -> None:
        """Log a picture."""
        with explained(f"log {name}"), tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.draw_without_rendering()  # lays it out, once: otherwise each of the drawings below would
            figure.set_layout_engine("none")
            figure.savefig(path, dpi=120, bbox_inches="tight")
            self.client.log_artifacts(self.id, folder)

    def model(self, folder: Path, model_id: str, tags: Mapping[str, str]) -> None:
        """Upload a saved bundle as the run's logged model; it is marked ready only when complete."""
        with explained("log the model"):
            self.client.log_model_artifacts(model_id, str(folder))
            self.client.set_logged_model_tags(model_id, dict(tags))
            self.client.finalize_logged_model(model_id, LoggedModelStatus.READY)
            self.client.log_outputs(self.id, [LoggedModelOutput(model_id, 0)])
        self.tag(**tags)

    def new_model(self, name: str = "model") -> str:
        """Reserve the id of a logged model, to be written into the bundle before it is uploaded."""
        with explained("create the logged model"):
            return str(self.client.create_logged_model(self.experiment_id, name=name, source_run_id=self.id).model_id)

    def end(self, status: str) -> None:
        """Send what is buffered and close the run."""
        self.flush()
        with explained("end the run"):
            self.client.set_terminated(self.id, status)

    @property
    def url(self) -> str | None:
        """The run's page when the store is a server."""
        return self._page(f"runs/{self.id}?{AS_MODEL_TRAINING}")

    @property
    def table_url(self) -> str | None:
        """The page of all runs of the experiment, with the figures that they are chosen by, when it is a server."""
        return self._page(f"runs?{AS_MODEL_TRAINING}&viewStateShareKey=figures")

    def _page(self, rest: str) -> str | None:
        if not self.client.tracking_uri.startswith("http"):
            return None
        return f"{self.client.tracking_uri.rstrip('/')}/#/experiments/{self.experiment_id}/{rest}"


def _metric(entry: Sequence[object]) -> Metric:
    """The metric that ``Run.unsent`` gave as an entry."""
    try:
        name, value, timestamp, step = entry
        return Metric(str(name), float(str(value)), int(str(timestamp)), int(str(step)))
    except (TypeError, ValueError):
        raise TrackingError(f"a kept metric must be a name, a value, a time in ms and a step, got {entry}") from None


def _renew_connections(client: MlflowClient) -> None:
    """Drop the connections to a database that was away: they may lead to a dead server, or to a file since replaced."""
    engine = getattr(client._tracking_client.store, "engine", None)  # MLflow keeps it for the life of the process
    if engine is not None:
        engine.dispose()


def code_version() -> str:
    """The git commit of the scripts, ``-dirty`` when files were changed, or ``unknown``; installed, the version."""
    if DISTRIBUTION:
        return version(DISTRIBUTION)
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip() or "unknown"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return "unknown"
