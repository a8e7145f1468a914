"""The only place that sets MLflow up; runs with buffered metrics.

``MLFLOW_TRACKING_URI`` decides where runs go. Unset, it is ``sqlite:///mlflow.db`` in the working
directory: the store that a plain ``mlflow server`` started there shows too. Everybody else takes
``mlflow`` from here, because its settings have to be made before its first import.
"""

import getpass
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from toolkit.errors import TrackingError, known, one_line

# Read by MLflow when it is imported or at each call; what the user has set stays.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing phones home
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # pickled models are refused, pt2 archives scanned
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the defaults, 7 retries of 120 s, block for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

import mlflow as mlflow  # noqa: E402  (the alias marks it as exported)
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException as MlflowException  # noqa: E402
from mlflow.tracking import MlflowClient as MlflowClient  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SQLITE = "sqlite:///"
DEFAULT_URI = f"{SQLITE}mlflow.db"
BUSY_SECONDS = 60  # how long a writer of an SQLite store waits for the others
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # those that MLflow knows
MOST_METRICS_A_BATCH, MOST_PARAMS_A_BATCH = 1000, 100  # limits of MLflow's log-batch request
LONGEST_PARAM = 6000  # characters, limit of MLflow


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
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    address = _address(uri)
    for name in ("mlflow.store", "alembic"):  # a first start prints two dozen migration lines
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        _knock(address)
        client = MlflowClient(tracking_uri=address, registry_uri=address)
        client.search_experiments(max_results=1)
    except Exception as error:  # noqa: BLE001  requests, SQLAlchemy and MLflow each raise kinds of their own
        hint = "start it with: mlflow server" if uri.startswith("http") else "set MLFLOW_TRACKING_URI to another store"
        raise TrackingError(f"MLflow at {uri} does not answer: {_reason(error)}; {hint}") from None
    return client


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
        import requests  # brought by MLflow; a database store never needs it

        requests.get(uri.rstrip("/") + "/health", timeout=5)
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


def _reason(error: Exception) -> str:
    text = one_line(error)
    for sign, reason in {
        "refused": "connection refused",
        "timed out": "no answer in time",
        "resolve": "unknown host",
        "unable to open database": "the database file cannot be opened",
        "file is not a database": "the file is not a database",
    }.items():
        if sign in text:
            return reason
    return text if len(text) <= 200 else text[:200] + "..."


@contextmanager
def explained(action: str) -> Iterator[None]:
    """Turn whatever MLflow raises while doing ``action`` into one sentence."""
    try:
        yield
    except (MlflowException, OSError) as error:  # files fail with OSError, requests' own errors included
        raise TrackingError(f"cannot {action}: {_reason(error)}") from None


def find_experiment(client: MlflowClient, name: str) -> str:
    """The id of an existing experiment; ``TrackingError`` lists those that exist."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != "active":
        names = [other.name for other in client.search_experiments()]
        raise TrackingError(f"there is no experiment {name!r}; there are: {known(names, name)}")
    return str(experiment.experiment_id)


def open_experiment(client: MlflowClient, name: str) -> str:
    """The id of an experiment, created when missing, that this client can write artifacts to."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
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
    return str(experiment.experiment_id)


class Run:
    """One MLflow run, whose metrics are buffered and written by ``flush``.

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
    ) -> None:
        self.client = client
        self.experiment = experiment
        self._metrics: list[Metric] = []
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
            self.experiment_id = open_experiment(client, experiment)
            info = client.create_run(self.experiment_id, tags={key: str(value) for key, value in everything.items()})
        self.id: str = info.info.run_id

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
        entries = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in values.items()]
        with explained("log parameters"):
            for start in range(0, len(entries), MOST_PARAMS_A_BATCH):
                self.client.log_batch(self.id, params=entries[start : start + MOST_PARAMS_A_BATCH])

    def tag(self, **values: object) -> None:
        """Set tags."""
        with explained("set tags"):
            self.client.log_batch(self.id, tags=[RunTag(name, str(value)) for name, value in values.items()])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Buffer metrics; nothing is sent before ``flush``."""
        now = int(time.time() * 1000)
        self._metrics += [Metric(name, float(value), now, step) for name, value in values.items()]

    def flush(self) -> None:
        """Send the buffered metrics; on failure they stay buffered."""
        with explained("log metrics"):
            while self._metrics:
                batch = self._metrics[:MOST_METRICS_A_BATCH]
                self.client.log_batch(self.id, metrics=batch)
                del self._metrics[: len(batch)]

    def json(self, name: str, value: object) -> None:
        """Log a value as a JSON file."""
        with explained(f"log {name}"):
            self.client.log_text(self.id, json.dumps(value, indent=2), name)

    def text(self, name: str, value: str) -> None:
        """Log a text file."""
        with explained(f"log {name}"):
            self.client.log_text(self.id, value, name)

    def figure(self, name: str, figure: "Figure") -> None:
        """Log a picture."""
        with explained(f"log {name}"), tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
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
        if not self.client.tracking_uri.startswith("http"):
            return None
        return f"{self.client.tracking_uri.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.id}"


def code_version() -> str:
    """The git commit of the scripts, with ``-dirty`` when files were changed, or ``unknown``."""
    home = Path(__file__).parent.parent
    words = ["git", "-C", str(home), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
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
