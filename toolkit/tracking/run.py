"""MLflow runs with buffered metrics, which outlast an outage of the store."""

import getpass
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from toolkit.cli.safe_names import display_name, printable
from toolkit.cli.terminal import echo
from toolkit.errors import TrackingError, first_line
from toolkit.tracking.code_version import code_version
from toolkit.tracking.connection import (
    ANSWER_SECONDS,
    RETRY_SECONDS,
    MlflowClient,
    MlflowException,
    experiment_page,
    mlflow,
    mlflow_call,
    open_experiment,
    ping,
    short_timeouts,
    whole_transactions,
)
from toolkit.tracking.errors import reason_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_METRICS_PER_BATCH, MAX_PARAMS_PER_BATCH = 1000, 100  # limits of MLflow's log-batch request
MAX_PARAM_LENGTH = 6000  # characters, limit of MLflow

Entry = tuple[str, float | str, int, int]  # name, value, time in ms since 1970, step; "nan", "inf" or "-inf" as text


class Run:
    """One MLflow run with buffered metrics, which ``try_flush`` or ``flush`` writes.

    Metrics outlast an outage of the store: ``try_flush`` keeps undelivered ones for later, and ``pending``
    belongs into a checkpoint, for ``load_pending`` after a crash. An entry that is sent twice is in the
    store once, because MLflow identifies it by all its four parts.

    As a context manager it ends the run with status FINISHED, KILLED when it was interrupted, or FAILED
    for any other exception.

    Parameters
    ----------
    client, experiment
        The store, and the experiment's name; a missing experiment is created.
    role
        ``final``, ``fold``, ``trial`` or ``study``.
    name
        In lists of runs.
    parent
        The run that contains this one.
    tags
        Further tags.
    clock
        Monotonic seconds, for the pauses between attempts to send.

    Raises
    ------
    TrackingError
        Here and in every method but ``try_flush``: the store cannot be reached or refuses.

    Examples
    --------
    >>> import os, tempfile
    >>> from toolkit.tracking.connection import connect
    >>> folder = tempfile.TemporaryDirectory()
    >>> client = connect(f"sqlite:///{folder.name}/mlflow.db")
    >>> with Run(client, "training", role="final", name="a run") as run:
    ...     run.metrics({"loss": 0.5}, step=1)
    ...     os.rename(f"{folder.name}/mlflow.db", f"{folder.name}/gone.db")
    ...     run.try_flush(), len(run.pending)
    ...     os.rename(f"{folder.name}/gone.db", f"{folder.name}/mlflow.db")
    MLflow cannot take the metrics: unable to open database file; training goes on, they are kept and will be sent later
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
            "mlflow.user": machine_user(),
            "mlflow.source.name": Path(sys.argv[0]).name,
            "mlflow.source.type": "LOCAL",
            "mlflow.source.git.commit": code_version(),
            **({"mlflow.parentRunId": parent.id} if parent else {}),
            **(tags or {}),
        }
        with mlflow_call(f"start a run in experiment {experiment!r}"):
            experiment_id = open_experiment(client, experiment)
            written = {key: printable(str(value)) for key, value in everything.items()}
            created = client.create_run(experiment_id, tags=written)
        self._hold(client, experiment, experiment_id, created.info.run_id, clock)

    @classmethod
    def reopen(cls, client: MlflowClient, run_id: str, *, clock: Callable[[], float] = time.monotonic) -> "Run":
        """Resume a run of the store, whatever its status; it is RUNNING again."""
        with mlflow_call(f"reopen run {run_id!r}"):
            found = client.get_run(run_id)
            if found.info.lifecycle_stage != "active":
                raise TrackingError(f"cannot reopen run {run_id!r}: it was deleted; restore it or start another")
            experiment = client.get_experiment(found.info.experiment_id).name
            experiment_id = open_experiment(client, experiment)
            client.update_run(run_id, status="RUNNING")
            if "failure" in found.data.tags:  # of the attempt before
                client.delete_tag(run_id, "failure")
        run = cls.__new__(cls)
        run._hold(client, experiment, experiment_id, run_id, clock)
        return run

    def _hold(
        self, client: MlflowClient, experiment: str, experiment_id: str, run_id: str, clock: Callable[[], float]
    ) -> None:
        self.client, self.experiment, self.experiment_id, self.id = client, experiment, experiment_id, run_id
        self._metrics: list[mlflow.entities.Metric] = []
        self._clock, self._next_attempt = clock, -math.inf
        self._outage = ""  # the line that was printed about it
        self._unreachable = False

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.end("FINISHED")
            return
        stopped = issubclass(kind, KeyboardInterrupt | SystemExit)
        with suppress(TrackingError):  # the first error is the one to report
            if not stopped:
                self.tag(failure=first_line(error or kind()))
            self.end("KILLED" if stopped else "FAILED")

    def params(self, values: Mapping[str, object]) -> None:
        """Log parameters; values longer than MLflow allows are cut."""
        texts = [(name, printable(str(value))[:MAX_PARAM_LENGTH]) for name, value in values.items()]
        params = [mlflow.entities.Param(*entry) for entry in texts]
        with mlflow_call("log parameters"):
            for start in range(0, len(params), MAX_PARAMS_PER_BATCH):
                self.client.log_batch(self.id, params=params[start : start + MAX_PARAMS_PER_BATCH])

    def tag(self, **values: object) -> None:
        """Set tags."""
        tags = [mlflow.entities.RunTag(name, printable(str(value))) for name, value in values.items()]
        with mlflow_call("set tags"):
            self.client.log_batch(self.id, tags=tags)

    def dataset(self, name: str, digest: str, source: str, *, profile: Mapping[str, object], context: str) -> None:
        """Log a data set as an MLflow input, with numbers about it and with its use, such as ``training``.

        MLflow keeps one input per name (500 characters at most) and digest (36) in a run, so each part of the
        data needs its own digest.
        """
        address, numbers = json.dumps({"uri": display_name(source)}), json.dumps(dict(profile))
        entry = mlflow.entities.Dataset(display_name(name), digest, "local", address, profile=numbers)
        tag = mlflow.entities.InputTag("mlflow.data.context", context)
        with mlflow_call(f"log the data set {name!r}"):
            self.client.log_inputs(self.id, datasets=[mlflow.entities.DatasetInput(entry, [tag])])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Buffer metrics until ``try_flush`` or ``flush``."""
        now = int(time.time() * 1000)
        self._metrics += [mlflow.entities.Metric(name, float(value), now, step) for name, value in values.items()]

    @property
    def pending(self) -> list[Entry]:
        """The buffer, oldest first, for JSON: (name, value, milliseconds since 1970, step)."""
        return [
            (item.key, item.value if math.isfinite(item.value) else str(item.value), item.timestamp, item.step)
            for item in self._metrics
        ]

    def load_pending(self, entries: Iterable[Sequence[object]]) -> None:
        """Insert entries of ``pending``, also after a round trip through JSON, before the buffer."""
        metrics = []
        for entry in entries:
            try:
                name, value, timestamp, step = map(str, entry)
                metrics.append(mlflow.entities.Metric(name, float(value), int(timestamp), int(step)))
            except (TypeError, ValueError):
                raise TrackingError(
                    f"a kept metric must be a name, a value, a time in ms and a step, got {entry}"
                ) from None
        self._metrics[:0] = metrics

    def try_flush(self) -> bool:
        """Send the buffered metrics if the store takes them, never raise, and return whether all are in the store.

        The first failure and the recovery are printed in a line each. The next attempt after a failure
        comes after ``RETRY_SECONDS``; it takes ``ANSWER_SECONDS`` with a server that does not answer, and
        three times that at most.
        """
        if not self._metrics or self._clock() < self._next_attempt:
            return not self._metrics
        try:
            ping(self.client.tracking_uri)
            with whole_transactions(), short_timeouts():
                self._deliver(until=self._clock() + ANSWER_SECONDS)
        except Exception as error:  # noqa: BLE001  a metric never ends a training
            self._next_attempt = self._clock() + RETRY_SECONDS
            self._unreachable = not _refused(error)
            line = "MLflow cannot take the metrics" if self._unreachable else "MLflow refuses the metrics"
            if line != self._outage:
                echo(f"{line}: {reason_of(error).rstrip('.')}; training goes on, they are kept and will be sent later")
            self._outage = line
        return not self._metrics

    def flush(self) -> None:
        """Send the buffered metrics; on failure they stay buffered."""
        with mlflow_call("log metrics"):
            if self._unreachable:
                ping(self.client.tracking_uri)
            self._deliver()

    def _deliver(self, until: float = math.inf) -> None:
        """Send batches, and start none after the deadline."""
        while self._metrics and self._clock() <= until:
            batch = self._metrics[:MAX_METRICS_PER_BATCH]
            self.client.log_batch(self.id, metrics=batch)
            del self._metrics[: len(batch)]
        if not self._metrics:
            if self._outage:
                echo("MLflow takes the metrics again; those that were kept have been sent")
            self._next_attempt, self._outage, self._unreachable = -math.inf, "", False

    def json(self, name: str, value: object) -> None:
        """Log a value as a JSON file."""
        self.text(name, json.dumps(value, indent=2))

    def text(self, name: str, value: str) -> None:
        """Log a text file."""
        with mlflow_call(f"log {name}"):
            self.client.log_text(self.id, printable(value), name)

    def figure(self, name: str, figure: "Figure") -> None:
        """Log a plot."""
        with mlflow_call(f"log {name}"), tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=120)  # without bbox_inches="tight", which would draw it twice
            self.client.log_artifacts(self.id, folder)

    def new_model(self, name: str = "model") -> str:
        """Reserve the id of a logged model, for the bundle that will be uploaded."""
        with mlflow_call("create the logged model"):
            return str(self.client.create_logged_model(self.experiment_id, name=name, source_run_id=self.id).model_id)

    def model(self, folder: Path, model_id: str, tags: Mapping[str, str]) -> None:
        """Upload a saved bundle as the run's logged model, which is ready once complete."""
        with mlflow_call("log the model"):
            self.client.log_model_artifacts(model_id, str(folder))
            self.client.set_logged_model_tags(model_id, dict(tags))
            self.client.finalize_logged_model(model_id, "READY")
            self.client.log_outputs(self.id, [mlflow.entities.LoggedModelOutput(model_id, 0)])
        self.tag(**tags)

    def end(self, status: str) -> None:
        """Flush the metrics and end the run."""
        self.flush()
        with mlflow_call("end the run"):
            self.client.set_terminated(self.id, status)

    @property
    def url(self) -> str | None:
        """The run's page, if the store is a server."""
        return experiment_page(self.client, self.experiment_id, f"runs/{self.id}")

    @property
    def table_url(self) -> str | None:
        """The page of all runs of the experiment with their main metrics, if the store is a server."""
        return experiment_page(self.client, self.experiment_id, "runs", "&viewStateShareKey=metrics")


def _refused(error: Exception) -> bool:
    """Whether the store refused a valid request, for example because the run was deleted."""
    status = error.get_http_status_code() if isinstance(error, MlflowException) else 0  # type: ignore[no-untyped-call]
    return 400 <= status < 500 and status not in (408, 429)  # timeout and too many requests are temporary


def machine_user() -> str:
    """The name of the user on this machine."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return "unknown"
