"""Selection of the best run of an experiment that holds a model."""

import re
import shlex
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

from toolkit.bundle.files import DIGEST_TAG
from toolkit.cli.script_commands import command_line
from toolkit.errors import RegistryError, suggest
from toolkit.registry.versions import MISSING_OR_INVALID
from toolkit.tracking.connection import ANSWER_SECONDS, MlflowClient, MlflowException, find_experiment, mlflow_call

Mode = Literal["max", "min"]
ROLES = ("final", "study")  # a fold or a trial is a step, not a result
MINIMIZED_METRICS = ("loss", "error", "time", "duration", "_ms")
METRIC_NAME = re.compile(r"[\w\-. :/]+")  # names that MLflow allows
STUDIES = "hyperopt_tuning"  # the default where several experiments hold models
DEFAULT_METRICS = ("mean_cv_accuracy", "best_val_accuracy")  # of studies, and of trainings without folds
PAGE_SIZE = 30
MAX_NAMED = 5  # experiments in a message
UNDER_WAY = ("RUNNING", "SCHEDULED")
MAX_READ = 200  # newest runs, for the names of their metrics
HOLDS_A_MODEL = f"attributes.status = 'FINISHED' AND tags.{DIGEST_TAG} != ''"
NEWEST_FIRST, AT_RANDOM = "attributes.start_time DESC", "attributes.run_id"  # ids are random


def metric_mode(metric: str) -> Mode:
    """Whether more or less of a metric is better, by its name.

    >>> metric_mode("mean_cv_accuracy"), metric_mode("val_loss"), metric_mode("batch_time_ms")
    ('max', 'min', 'min')
    """
    return "min" if any(word in metric.lower() for word in MINIMIZED_METRICS) else "max"


def ranked_runs(client: MlflowClient, experiment: str, metric: str, mode: Mode | None = None) -> Iterator[Any]:
    """The finished runs of an experiment that hold a model, best first, of equals the newer first.

    A run counts when it is FINISHED, is a ``final`` or a ``study`` run, has the digest of a bundle
    and a finite value of the metric. One page of runs is in memory at a time.

    Raises
    ------
    TrackingError
        There is no such experiment.
    RegistryError
        No run counts; the message has the reason.
    """
    found = _Experiment(client, experiment)
    ranked = _ranked(found, metric, mode or metric_mode(metric)) if METRIC_NAME.fullmatch(metric) else iter(())
    best = next(ranked, None)
    if best is None:
        raise RegistryError(_why_none(found, metric))
    yield best
    yield from ranked


def only_experiment(client: MlflowClient) -> str:
    """The name of the experiment that holds models; of several, that of studies; else ``RegistryError``."""
    with mlflow_call("list the experiments", timeout=ANSWER_SECONDS):
        names = [experiment.name for experiment in client.search_experiments()]
    holding = [name for name in names if next(_Experiment(client, name).runs(), None)]
    if STUDIES in holding:
        return STUDIES
    if not holding:
        raise RegistryError(
            "no experiment has a finished run that holds a model; let a training or a study finish first:"
            f" {command_line('train_cnn')}"
        )
    if len(holding) > 1:
        names = sorted(holding)
        commands = " or ".join(f"register --experiment-name {shlex.quote(name)}" for name in names[:MAX_NAMED])
        raise RegistryError(f"several experiments hold models: {suggest(names)}; choose one: {commands}")
    return holding[0]


def usual_metric(client: MlflowClient, experiment: str) -> str:
    """The default metric of an experiment: ``mean_cv_accuracy`` where all runs have it."""
    logged = [set(run.data.metrics) for run in islice(_Experiment(client, experiment).runs(), MAX_READ)]
    return next((name for name in DEFAULT_METRICS if all(name in names for names in logged)), DEFAULT_METRICS[-1])


def chosen_run(client: MlflowClient, run_id: str) -> Any:
    """A run by its id; ``RegistryError`` when there is none, it is not finished, or it logged no bundle."""
    with mlflow_call(f"read the run {run_id}", timeout=ANSWER_SECONDS):
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in MISSING_OR_INVALID:
                raise
            raise RegistryError(f"there is no run {run_id!r}; a training prints its id at the end") from None
    role, status = run.data.tags.get("role", ""), run.info.status
    if run.info.lifecycle_stage != "active":
        raise RegistryError(f"run {run_id} was deleted")
    if not run.data.tags.get(DIGEST_TAG):
        raise RegistryError(
            f"run {run_id} holds no model: it is a {role or 'foreign'} run and {status.lower()}; trainings and studies"
            " that finish hold one"
        )
    if status in UNDER_WAY:
        raise RegistryError(f"run {run_id} is {status.lower()}; let it finish first")
    return run


def is_finite(value: float | None) -> bool:
    """Whether a logged value is a number to rank by; MLflow stores infinities as the largest float.

    >>> is_finite(0.5), is_finite(float("nan")), is_finite(sys.float_info.max), is_finite(None)
    (True, False, False, False)
    """
    return value is not None and abs(value) < sys.float_info.max


def model_of(run: Any) -> str | None:
    """The id of the model that a run logged last."""
    outputs = run.outputs.model_outputs if run.outputs else []
    return str(outputs[-1].model_id) if outputs else None


class _Experiment:
    """The finished runs of an experiment that hold a model; ``TrackingError`` when there is no such experiment."""

    def __init__(self, client: MlflowClient, name: str) -> None:
        self.client, self.name = client, name
        self.id = find_experiment(client, name)

    def runs(self, condition: str = "", order: str = NEWEST_FIRST) -> Iterator[Any]:
        """The runs that meet a condition, in an order and then the newer first; a page at a time."""
        query = " AND ".join(filter(None, [HOLDS_A_MODEL, condition]))
        orders = list(dict.fromkeys([order, NEWEST_FIRST]))
        token: str | None = ""  # none yet
        while token is not None:
            with mlflow_call(f"search the runs of experiment {self.name!r}", timeout=ANSWER_SECONDS):
                page = self.client.search_runs(
                    [self.id], query, order_by=orders, max_results=PAGE_SIZE, page_token=token or None
                )
            yield from (run for run in page if run.data.tags.get("role") in ROLES)
            token = page.token or None


def _ranked(experiment: _Experiment, metric: str, mode: Mode) -> Iterator[Any]:
    """The runs with a finite value of a metric, best first.

    To sort runs by a metric, MLflow scans all its values for each run: seconds for 10,000 runs. So the runs no
    worse than the best of a random page are sorted first.
    """
    value = f"metrics.`{metric}`"
    finite = f"{value} > -{INFINITY} AND {value} < {INFINITY}"
    best, order, ahead, behind = (min, "ASC", "<=", ">") if mode == "min" else (max, "DESC", ">=", "<")
    some = [run.data.metrics[metric] for run in islice(experiment.runs(finite, AT_RANDOM), PAGE_SIZE)]
    if some:
        for comparison in (ahead, behind):
            yield from experiment.runs(f"{finite} AND {value} {comparison} {_number(best(some))}", f"{value} {order}")


def _why_none(experiment: _Experiment, metric: str) -> str:
    """The reason why no run counts."""
    if METRIC_NAME.fullmatch(metric) and any(experiment.runs(f"metrics.`{metric}` != 0")):  # true of NaN and infinity
        return f"no run of experiment {experiment.name!r} has a finite value of {metric!r}"
    logged = [set(run.data.metrics) for run in islice(experiment.runs(), MAX_READ)]
    if not logged:
        name = f"experiment {experiment.name!r}"
        return f"{name} has no finished run that holds a model; let a training or a study finish first"
    known = suggest(sorted(set[str]().union(*logged)), metric)
    return f"no run of experiment {experiment.name!r} logged {metric!r}; there are: {known}"


def _number(value: float) -> str:
    """A number for MLflow's filters, to the last digit.

    >>> _number(1e20), _number(-0.1)
    ('1e20', '-0.1')
    """
    return repr(value).replace("+", "")


INFINITY = _number(sys.float_info.max)  # as MLflow stores it
