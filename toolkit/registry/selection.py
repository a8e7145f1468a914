"""Finding the best run of an experiment that holds a model."""

import re
import sys
from collections.abc import Iterator
from typing import Any, Literal

from toolkit.bundle import DIGEST_TAG
from toolkit.errors import RegistryError, known
from toolkit.tracking import MlflowClient, find_experiment, promptly

Mode = Literal["max", "min"]
ROLES = ("final", "study")  # a fold's or a trial's model is a step on the way, never the result
LESS_IS_BETTER = ("loss", "error", "time", "duration", "_ms")
METRIC_NAME = re.compile(r"[\w\-. :/]+")  # what MLflow allows; anything else was never logged
LARGEST = repr(sys.float_info.max).replace("+", "")  # what MLflow stores for infinity, as its filters read it
HOLDS_A_MODEL = f"attributes.status = 'FINISHED' AND tags.{DIGEST_TAG} != ''"
RANKED_A_PAGE = 10  # the first run is nearly always taken
SEEN_A_PAGE = 50


def direction(metric: str) -> Mode:
    """Whether more or less of a metric is better, by its name.

    >>> direction("mean_cv_accuracy"), direction("val_loss"), direction("batch_time_ms")
    ('max', 'min', 'min')
    """
    return "min" if any(word in metric.lower() for word in LESS_IS_BETTER) else "max"


def ranked_runs(client: MlflowClient, experiment: str, metric: str, mode: Mode | None = None) -> Iterator[Any]:
    """The finished runs of an experiment that hold a model, best first, of equals the newer first.

    A run counts when it is FINISHED, is a ``final`` or a ``study`` run, has the digest of a bundle
    and a finite value of the metric. The store filters and sorts; one page of runs is in memory at a
    time.

    Raises
    ------
    TrackingError
        There is no such experiment.
    RegistryError
        Not one run counts; the message says why.
    """
    some = False
    if METRIC_NAME.fullmatch(metric):
        name, way = f"metrics.`{metric}`", "ASC" if (mode or direction(metric)) == "min" else "DESC"
        finite = f"{name} > -{LARGEST} AND {name} < {LARGEST}"
        for run in _runs_with_a_model(client, experiment, RANKED_A_PAGE, finite, f"{name} {way}"):
            some = True
            yield run
    if not some:
        raise RegistryError(_why_none(client, experiment, metric))


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


def _why_none(client: MlflowClient, experiment: str, metric: str) -> str:
    """The message when no run counts."""
    logged: set[str] = set()
    some_run = False
    for run in _runs_with_a_model(client, experiment, SEEN_A_PAGE):
        if metric in run.data.metrics:
            return f"no run of experiment {experiment!r} has a finite value of {metric!r}"
        some_run, logged = True, logged | run.data.metrics.keys()
    if some_run:
        return f"no run of experiment {experiment!r} logged {metric!r}; there are: {known(sorted(logged), metric)}"
    return f"experiment {experiment!r} has no finished run that holds a model; let a training or a study finish first"


def _runs_with_a_model(
    client: MlflowClient, experiment: str, at_once: int, condition: str = "", order: str = ""
) -> Iterator[Any]:
    """The runs that meet a condition too, in an order, of equals the newer first, as many at once as said."""
    experiment_id = find_experiment(client, experiment)
    query = " AND ".join(filter(None, [HOLDS_A_MODEL, condition]))
    token = None
    while True:
        with promptly(f"search the runs of experiment {experiment!r}"):
            page = client.search_runs(
                [experiment_id],
                query,
                order_by=[*filter(None, [order]), "attributes.start_time DESC"],
                max_results=at_once,
                page_token=token,
            )
        yield from (run for run in page if run.data.tags.get("role") in ROLES)
        token = page.token
        if not token:
            return
