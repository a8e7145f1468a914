"""Finding the best run of an experiment that holds a model."""

import re
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

from toolkit.bundle import DIGEST_TAG
from toolkit.errors import RegistryError, known
from toolkit.tracking import MlflowClient, find_experiment, promptly

Mode = Literal["max", "min"]
ROLES = ("final", "study")  # a fold's or a trial's model is a step on the way, never the result
LESS_IS_BETTER = ("loss", "error", "time", "duration", "_ms")
METRIC_NAME = re.compile(r"[\w\-. :/]+")  # what MLflow allows; anything else was never logged
RUNS_A_PAGE = 30
MOST_SEEN = 200  # newest runs, for the names of their metrics
HOLDS_A_MODEL = f"attributes.status = 'FINISHED' AND tags.{DIGEST_TAG} != ''"
NEWEST_FIRST, AT_RANDOM = "attributes.start_time DESC", "attributes.run_id"  # ids are random


def direction(metric: str) -> Mode:
    """Whether more or less of a metric is better, by its name.

    >>> direction("mean_cv_accuracy"), direction("val_loss"), direction("batch_time_ms")
    ('max', 'min', 'min')
    """
    return "min" if any(word in metric.lower() for word in LESS_IS_BETTER) else "max"


def ranked_runs(client: MlflowClient, experiment: str, metric: str, mode: Mode | None = None) -> Iterator[Any]:
    """The finished runs of an experiment that hold a model, best first, of equals the newer first.

    A run counts when it is FINISHED, is a ``final`` or a ``study`` run, has the digest of a bundle
    and a finite value of the metric. One page of runs is in memory at a time.

    Raises
    ------
    TrackingError
        There is no such experiment.
    RegistryError
        Not one run counts; the message says why.
    """
    found = _Experiment(client, experiment)
    some = False
    if METRIC_NAME.fullmatch(metric):
        for run in _ranked(found, metric, mode or direction(metric)):
            some = True
            yield run
    if not some:
        raise RegistryError(_why_none(found, metric))


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
    """The finished runs of an experiment that hold a model.

    Raises
    ------
    TrackingError
        There is no such experiment.
    """

    def __init__(self, client: MlflowClient, name: str) -> None:
        self.client, self.name = client, name
        self.id = find_experiment(client, name)

    def runs(self, condition: str = "", order: str = NEWEST_FIRST) -> Iterator[Any]:
        """Those that meet a condition, in an order and then the newer first; a page at a time."""
        query = " AND ".join(filter(None, [HOLDS_A_MODEL, condition]))
        orders = list(dict.fromkeys([order, NEWEST_FIRST]))
        token = None
        while True:
            with promptly(f"search the runs of experiment {self.name!r}"):
                page = self.client.search_runs(
                    [self.id], query, order_by=orders, max_results=RUNS_A_PAGE, page_token=token
                )
            yield from (run for run in page if run.data.tags.get("role") in ROLES)
            token = page.token
            if not token:
                return


def _ranked(experiment: _Experiment, metric: str, mode: Mode) -> Iterator[Any]:
    """The runs with a finite value of a metric that MLflow could have, best first.

    MLflow's query goes through all values of the metric for each run that it sorts by it: seconds for
    10,000 runs. So it is given few to sort first: those no worse than the best of a random page.
    """
    value = f"metrics.`{metric}`"
    finite = f"{value} > -{INFINITY} AND {value} < {INFINITY}"
    best, way, ahead, behind = (min, "ASC", "<=", ">") if mode == "min" else (max, "DESC", ">=", "<")
    some = [run.data.metrics[metric] for run in islice(experiment.runs(finite, AT_RANDOM), RUNS_A_PAGE)]
    if some:
        mark = _number(best(some))
        yield from experiment.runs(f"{finite} AND {value} {ahead} {mark}", f"{value} {way}")
        yield from experiment.runs(f"{finite} AND {value} {behind} {mark}", f"{value} {way}")


def _why_none(experiment: _Experiment, metric: str) -> str:
    """The message when no run counts."""
    if METRIC_NAME.fullmatch(metric) and any(experiment.runs(f"metrics.`{metric}` != 0")):  # true of NaN and infinity
        return f"no run of experiment {experiment.name!r} has a finite value of {metric!r}"
    runs = list(islice((set(run.data.metrics) for run in experiment.runs()), MOST_SEEN))
    if not runs:
        return (
            f"experiment {experiment.name!r} has no finished run that holds a model;"
            " let a training or a study finish first"
        )
    logged = known(sorted(set[str]().union(*runs)), metric)
    return f"no run of experiment {experiment.name!r} logged {metric!r}; there are: {logged}"


def _number(value: float) -> str:
    """A number as MLflow's filters read it, to the last digit.

    >>> _number(1e20), _number(-0.1)
    ('1e20', '-0.1')
    """
    return repr(value).replace("+", "")


INFINITY = _number(sys.float_info.max)  # as MLflow stores it
