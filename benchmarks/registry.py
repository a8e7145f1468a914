"""Registering the best of 10,000 runs and listing 1,000 versions, and the same with MLflow alone.

    python benchmarks/registry.py             # minutes
    python benchmarks/registry.py --quick     # the same with fewer rounds
    python benchmarks/registry.py --json      # ends with one JSON object of claims

The store is an SQLite file that MLflow makes. It is filled through MLflow's tables with what this
project's searches and trainings log, about 30 parameters, 15 metrics, 10 tags and a data set a run:
an experiment of 10,000 runs, 300 of which hold a model while the others are trials and folds; one of
a tenth of that; one of 10,000 runs that each hold a model; and 1,000 versions of one model. The best
run of each is a real one with a real bundle. Its model becomes the version after the last, and is
taken out again. The contestants that register:

    ours            ModelRegistry.register_best_model, which verifies the bundle too
    all runs        MlflowClient.search_runs for all runs, best first, then create_model_version
    DataFrame       mlflow.search_runs, pandas' idxmax, then create_model_version
    one run         MlflowClient.search_runs for the first of those with a bundle, then create_model_version
    ours, no run    register_best_model by a metric that no run has: the message names those that exist

and those that list:

    ours, list      ModelRegistry.list_versions
    versions        MlflowClient.search_model_versions, which gives no aliases
    with aliases    the same and MlflowClient.get_registered_model, which has them

Each reading is taken in a process of its own, which has imported the scripts and opened nothing: a
first call, in which MLflow gets its store ready, then a second one, unless the first took so long
that it counts for both. A round is one reading of each; values are medians over the rounds.
Ratios are of second calls. Processor is the CPU time of the first call, which does not depend on the
load of the machine. Memory is how much more is resident at the peak of the
first call than before it.
"""

import json
import math
import multiprocessing
import os
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.claims import Claim, Claims, argument_parser, conclude, load, machine  # noqa: E402
from model_registry import ModelRegistry  # noqa: E402
from toolkit.bundle.baseline import Baseline  # noqa: E402
from toolkit.bundle.files import DIGEST_TAG, Card, Measurement, library_versions  # noqa: E402
from toolkit.bundle.program import Program, save_bundle  # noqa: E402
from toolkit.cli.settings import run_script  # noqa: E402
from toolkit.cli.terminal import echo, table  # noqa: E402
from toolkit.errors import RegistryError  # noqa: E402
from toolkit.registry.formatting import version_description  # noqa: E402
from toolkit.registry.versions import METRICS_TAG, MODEL_TAG, STAGE_TAG, Stage, Transition  # noqa: E402
from toolkit.system.metrics import usable_cores  # noqa: E402
from toolkit.tracking.connection import MlflowClient, connect, mlflow  # noqa: E402
from toolkit.tracking.run import Run  # noqa: E402
from toolkit.training.hyperparameters import Hyperparameters  # noqa: E402

METRIC, NOWHERE = "mean_cv_accuracy", "mean_cv_acuracy"
SEARCHES, FEW, TRAININGS = "hyperopt_tuning", "few", "training"
EXPERIMENTS = {SEARCHES: (10_000, 3), FEW: (1_000, 3), TRAININGS: (10_000, 100)}  # runs; how many of 100 hold a model
TRIALS = 16  # of 100 runs; the others are folds
MODEL, VERSIONS = "image-classifier", 1_000
BATCH_ROWS = 5_000  # rows
LONG = 10.0  # s

# What a run records: settings as parameters, and metrics.
OTHER_PARAMS = (  # besides the hyperparameters
    "data", "data_root", "cache_dir", "cache_limit", "weights", "test_fraction", "flip", "seed", "precision",
    "deterministic", "compile",
)  # fmt: skip
METRICS = (
    "train_loss", "val_loss", "train_accuracy", "val_accuracy", "learning_rate", "batch_time_ms", "batch_time_ms_p95",
    "epoch_duration_s", "best_val_accuracy", "best_epoch", "training_time_s", "images_per_s", "cpu_percent", "ram_mb",
)  # fmt: skip
CLASSES = ("daisy", "dandelion", "rose", "sunflower", "tulip")
HELD_OUT = 1_000  # images
UNDEFINED = 0.01  # share of runs with NaN as METRIC
BEGAN = datetime(2026, 1, 5, 8, tzinfo=UTC)  # the first run
BEST = 0.95  # of METRIC; the others have less than 0.9
MOVES: Sequence[tuple[str, Stage]] = (  # a version has 2 to 4 of them
    ("", "None"), ("None", "Staging"), ("Staging", "Production"), ("Production", "Archived"),
)  # fmt: skip

# Goals.
SECONDS = 2.0
MEMORY = 4.0  # MB
OF_ALL_RUNS, OF_ONE_RUN, OF_VERSIONS = 0.05, 0.5, 1.2  # seconds of ours over those of the peer

CONTEXT = multiprocessing.get_context("forkserver")


class Scale(NamedTuple):
    """Amount of work to measure."""

    rounds: int


FULL, QUICK = Scale(rounds=5), Scale(rounds=2)


class Reading(NamedTuple):
    """Two calls in a fresh process."""

    first: float  # s
    second: float  # s
    processor: float  # s that it was busy in the first call
    memory: float  # MB, more at the peak of the first call than before


def main() -> None:
    """Measure and print."""
    options = argument_parser(__doc__, quick="fewer rounds").parse_args()
    scale = QUICK if options.quick else FULL
    echo(machine("mlflow", "SQLAlchemy", "pandas"))
    with tempfile.TemporaryDirectory() as folder:
        store = filled(Path(folder))
        uri = f"sqlite:///{store}"
        echo(f"\na store of {store.stat().st_size / 1e6:,.0f} MB, filled; load {load()}")
        claims = measure(uri, scale)
        echo(f"\n{_command_line(uri, scale)}\n")
    conclude(claims, options.json)


# --- what is measured ---------------------------------------------------------------------------


def measure(uri: str, scale: Scale) -> Claims:
    """All rounds, their tables, and what comes out of them."""
    readings: dict[tuple[str, str], list[Reading]] = defaultdict(list)
    os.environ["PYTHONPATH"] = str(ROOT)  # where the server that processes are forked from finds what it preloads
    CONTEXT.set_forkserver_preload(["benchmarks.registry"])
    for _, task in product(range(scale.rounds), CASES):
        readings[task].append(alone(reading, *task, uri))
    medians = {task: Reading(*np.median(taken, axis=0)) for task, taken in readings.items()}
    for about in dict.fromkeys(about for _, about in CASES):
        echo(f"\n{_described(about)}, load {load()}\n\n{_standings(medians, about)}")
    return claims_of(medians, f"SQLite, {usable_cores()} cores, medians of {scale.rounds} rounds")


def alone(work: Callable[..., Any], *words: str) -> Any:
    """Result of work in a process of its own."""
    with ProcessPoolExecutor(1, CONTEXT) as pool:
        return pool.submit(work, *words).result()


def reading(name: str, about: str, uri: str) -> Reading:
    """Call a contestant twice, the first time with an eye on processor and memory."""
    call = {**REGISTERING, **LISTING}[name]
    before, busy = _resident(), time.process_time()
    first, answer = _timed(call, uri, about)
    processor, memory = time.process_time() - busy, (_peak() - before) / 1e6
    _check(name, answer, uri)
    if first > LONG:
        return Reading(first, first, processor, memory)
    second, answer = _timed(call, uri, about)
    _check(name, answer, uri)
    return Reading(first, second, processor, memory)


def _timed(call: Callable[..., Any], *words: str) -> tuple[float, Any]:
    began = time.perf_counter()
    answer = call(*words)
    return time.perf_counter() - began, answer


def _check(name: str, answer: Any, uri: str) -> None:
    """See that it did what the others do, and take out the version that it made."""
    if name in LISTING:
        right = len(answer) == VERSIONS
    elif name == NO_RUN:
        right = METRIC in answer
    else:
        client = MlflowClient(uri, uri)
        run = client.get_run(client.get_model_version(MODEL, str(answer)).run_id or "")
        client.delete_model_version(MODEL, str(answer))
        right = run.data.metrics[METRIC] == BEST
    if not right:
        raise RegistryError(f"{name} gave a wrong answer: {answer}")


def claims_of(medians: Mapping[tuple[str, str], Reading], measured: str) -> Claims:
    """Claims, by name."""

    def claim(value: float, goal: float, about: str) -> Claim:
        return Claim(value, goal, "lower", f"{_described(about)}, {measured}")

    def ratio(ours: str, theirs: str, about: str, goal: float) -> Claim:
        return claim(medians[ours, about].second / medians[theirs, about].second, goal, about)

    def growth(name: str) -> Claim:
        return claim(medians[name, SEARCHES].memory - medians[name, FEW].memory, MEMORY, SEARCHES)

    return {
        "seconds to register the best run": claim(medians[OURS, SEARCHES].second, SECONDS, SEARCHES),
        "the same in a new process": claim(medians[OURS, SEARCHES].first, SECONDS, SEARCHES),
        "the same, each run holds a model": claim(medians[OURS, TRAININGS].second, SECONDS, TRAININGS),
        "seconds to say that no run has the metric": claim(medians[NO_RUN, SEARCHES].second, SECONDS, SEARCHES),
        "seconds to list the versions": claim(medians[LIST, MODEL].second, SECONDS, MODEL),
        "list them in a new process": claim(medians[LIST, MODEL].first, SECONDS, MODEL),
        "registering: ours over a search for all runs": ratio(OURS, ALL_RUNS, SEARCHES, OF_ALL_RUNS),
        "registering: ours over a DataFrame of all runs": ratio(OURS, FRAME, SEARCHES, OF_ALL_RUNS),
        "registering: ours over a search for one of as many models": ratio(OURS, ONE_RUN, TRAININGS, OF_ONE_RUN),
        "listing: ours over versions and aliases": ratio(LIST, WITH_ALIASES, MODEL, OF_VERSIONS),
        "MB more for ten times the runs": growth(OURS),
        "MB more for ten times the runs, none with the metric": growth(NO_RUN),
    }


def _standings(medians: Mapping[tuple[str, str], Reading], about: str) -> str:
    """A table of the contestants; ours is the first."""
    names = [name for name, what in CASES if what == about]
    rows = []
    for name in names:
        found = medians[name, about]
        times = medians[names[0], about].second / found.second
        rows.append([name, *(f"{value:.3f}" for value in (*found[:3], times)), f"{found.memory:.1f}"])
    return table(["", "first call, s", "second call, s", "processor, s", "ours over it", "memory, MB"], rows)


def _described(about: str) -> str:
    if about == MODEL:
        return f"{VERSIONS:,} versions"
    runs, models = EXPERIMENTS[about]
    return f"{runs:,} runs, {runs * models // 100:,} with a model"


def _command_line(uri: str, scale: Scale) -> str:
    """Duration of the script, including the start of Python and all imports."""
    commands = {
        "python model_registry.py list": ["model_registry.py", "--tracking-uri", uri, "list"],
        "its imports": ["-c", "import model_registry"],
        "import mlflow": ["-c", "import mlflow"],
    }
    times: dict[str, list[float]] = defaultdict(list)
    for _, (name, words) in product(range(scale.rounds), commands.items()):
        began = time.perf_counter()
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        times[name].append(time.perf_counter() - began)
    return table(["whole process", "s"], [[name, f"{np.median(taken):.2f}"] for name, taken in times.items()])


def _resident() -> int:
    """Bytes of memory; from here on, ``_peak`` counts from zero."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """Most bytes that were resident at once."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux: since the process began, in bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


# --- the contestants ----------------------------------------------------------------------------


def ours(uri: str, experiment: str) -> int:
    """The project."""
    return ModelRegistry(uri, MODEL).register_best_model(experiment, METRIC)


def ours_without_a_run(uri: str, experiment: str) -> str:
    """The project, asked for what there is not; what it says."""
    try:
        return str(ModelRegistry(uri, MODEL).register_best_model(experiment, NOWHERE))
    except RegistryError as error:
        return str(error)


def all_runs(uri: str, experiment: str) -> int:
    """Every run, best first; the first with a model it is."""
    client = MlflowClient(uri, uri)
    found = client.search_runs([_id_of(client, experiment)], order_by=[f"metrics.{METRIC} DESC"], max_results=50_000)
    return _register(client, next(run for run in found if run.outputs and run.outputs.model_outputs))


def data_frame(uri: str, experiment: str) -> int:
    """The way of notebooks."""
    mlflow.set_tracking_uri(uri)
    frame = mlflow.search_runs(experiment_names=[experiment])
    client = MlflowClient(uri, uri)
    held = frame[frame[f"tags.{DIGEST_TAG}"].notna()]
    return _register(client, client.get_run(held.loc[held[f"metrics.{METRIC}"].idxmax(), "run_id"]))


def one_run(uri: str, experiment: str) -> int:
    """Use of MLflow's searches that takes the first result unchecked."""
    client = MlflowClient(uri, uri)
    query, order = f"tags.{DIGEST_TAG} != ''", [f"metrics.{METRIC} DESC"]
    return _register(client, client.search_runs([_id_of(client, experiment)], query, order_by=order, max_results=1)[0])


def _id_of(client: MlflowClient, experiment: str) -> str:
    found: Any = client.get_experiment_by_name(experiment)
    return str(found.experiment_id)


def _register(client: MlflowClient, run: Any) -> int:
    model = client.get_logged_model(run.outputs.model_outputs[-1].model_id)
    made = client.create_model_version(MODEL, model.artifact_location, run.info.run_id, model_id=model.model_id)
    return int(made.version)


def list_ours(uri: str, model: str) -> list[Any]:
    """The project: stages, metrics and histories."""
    return list(ModelRegistry(uri, model).list_versions())


def list_versions(uri: str, model: str) -> list[Any]:
    """Versions as MLflow lists them, without aliases."""
    return list(MlflowClient(uri, uri).search_model_versions(f"name = '{model}'"))


def list_with_aliases(uri: str, model: str) -> list[Any]:
    """The same with the aliases."""
    aliases = MlflowClient(uri, uri).get_registered_model(model).aliases
    return [(found, aliases) for found in list_versions(uri, model)]


OURS, ALL_RUNS, FRAME, ONE_RUN, NO_RUN = "ours", "all runs", "DataFrame", "one run", "ours, no run"
LIST, WITH_ALIASES = "ours, list", "with aliases"
REGISTERING: Mapping[str, Callable[[str, str], int | str]] = {
    OURS: ours, ALL_RUNS: all_runs, FRAME: data_frame, ONE_RUN: one_run, NO_RUN: ours_without_a_run,
}  # fmt: skip
LISTING: Mapping[str, Callable[[str, str], list[Any]]] = {
    LIST: list_ours, "versions": list_versions, WITH_ALIASES: list_with_aliases,
}  # fmt: skip
CASES = [
    *product(REGISTERING, (SEARCHES, FEW)),
    *product((OURS, ONE_RUN, NO_RUN), (TRAININGS,)),
    *product(LISTING, (MODEL,)),
]


# --- what the store holds -----------------------------------------------------------------------

Row = tuple[str, dict[str, Any]]  # a table of MLflow's, and values of columns


def filled(folder: Path) -> Path:
    """A store with all experiments and versions."""
    store = folder / "mlflow.db"
    client = connect(f"sqlite:///{store}")
    draw = random.Random(0)  # noqa: S311  values for show
    for experiment, (count, models) in EXPERIMENTS.items():
        number = int(client.create_experiment(experiment, artifact_location=str(folder / "files" / experiment)))
        data = {"dataset_uuid": uuid.uuid4().hex, "experiment_id": number, "name": "flowers", "digest": "5e8d1c07b9a2"}
        source = {"dataset_source_type": "local", "dataset_source": json.dumps({"uri": "photos"})}
        write(store, [("datasets", data | source)])
        write(store, (row for index in range(count - 1) for row in run_rows(index, models, data, draw)))
        log_best(client, experiment, folder / "bundle" / experiment)
    client.create_registered_model(MODEL)
    write(store, (row for number in range(1, VERSIONS + 1) for row in version_rows(number, draw)))
    for alias, number in {"production": VERSIONS, "staging": VERSIONS - 1}.items():
        client.set_registered_model_alias(MODEL, alias, str(number))
    return store


def write(store: Path, rows: Iterable[Row]) -> None:
    """Insert rows, many at a time."""
    with closing(sqlite3.connect(store)) as database, database:
        waiting: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for into, values in rows:
            waiting[into].append(values)
            if len(waiting[into]) == BATCH_ROWS:
                _insert(database, into, waiting.pop(into))
        for into, remaining in waiting.items():
            _insert(database, into, remaining)


def _insert(database: sqlite3.Connection, into: str, rows: list[dict[str, Any]]) -> None:
    names = list(rows[0])
    columns, places = ", ".join(names), ", ".join(f":{name}" for name in names)
    database.executemany(f"INSERT INTO {into} ({columns}) VALUES ({places})", rows)  # noqa: S608  names of our own


def run_rows(index: int, models: int, data: Mapping[str, Any], draw: random.Random) -> Iterator[Row]:
    """All that a run is in the store, as a search or a training of this project leaves it."""
    run_id, experiment, place = uuid.uuid4().hex, data["experiment_id"], index * 37 % 100
    began = BEGAN + timedelta(minutes=index)
    started, ended = _milliseconds(began), _milliseconds(began + timedelta(seconds=50))
    holds_model, is_trial = place < models, models <= place < models + TRIALS
    role = "trial" if is_trial else "fold" if not holds_model else draw.choice(["final", "study"])
    yield "runs", {
        "run_uuid": run_id, "name": f"{role} {index}", "source_type": "LOCAL", "source_name": "hyperopt_tuning.py",
        "user_id": "ann", "status": "FINISHED", "start_time": started, "end_time": ended, "lifecycle_stage": "active",
        "artifact_uri": f"files/{run_id}/artifacts", "experiment_id": experiment,
    }  # fmt: skip
    for name, value in _params(draw).items():
        yield "params", {"key": name, "value": str(value), "run_uuid": run_id}
    values = {name: draw.random() for name in METRICS}
    if holds_model or is_trial:
        values[METRIC] = float("nan") if draw.random() < UNDEFINED else draw.uniform(0.5, 0.9)
    for name, value in values.items():
        row = {
            "key": name, "value": 0.0 if math.isnan(value) else value, "is_nan": math.isnan(value), "timestamp": ended,
            "step": 0, "run_uuid": run_id,
        }  # fmt: skip
        yield "latest_metrics", row
        yield "metrics", row
    tags = _run_tags(role, index)
    if holds_model:
        tags[DIGEST_TAG] = f"{draw.getrandbits(256):064x}"
        yield from _model_rows(run_id, experiment, ended)
    for name, value in tags.items():
        yield "tags", {"key": name, "value": value, "run_uuid": run_id}
    yield _link(("DATASET", data["dataset_uuid"]), ("RUN", run_id))


def _params(draw: random.Random) -> dict[str, object]:
    chosen = {
        "learning_rate": 10 ** draw.uniform(-5, -1),
        "dropout": draw.uniform(0, 0.6),
        "seed": draw.getrandbits(31),
    }
    return dict.fromkeys(OTHER_PARAMS, "auto") | Hyperparameters.model_validate({}).model_dump() | chosen


def _run_tags(role: str, index: int) -> dict[str, str]:
    return {
        "role": role, "data": "flowers", "data_fingerprint": "5e8d1c07b9a2", "code_version": "8fb8a48d0c11",
        "seed": str(index), "weights": "none", "skipped_files": "0", "mlflow.runName": f"{role} {index}",
        "mlflow.user": "ann", "mlflow.source.name": "hyperopt_tuning.py",
    }  # fmt: skip


def _model_rows(run_id: str, experiment: int, at: int) -> Iterator[Row]:
    model_id = f"m-{uuid.uuid4().hex}"
    yield "logged_models", {
        "model_id": model_id, "experiment_id": experiment, "name": "model", "status": 2, "source_run_id": run_id,
        "artifact_location": f"files/models/{model_id}/artifacts", "creation_timestamp_ms": at,
        "last_updated_timestamp_ms": at, "lifecycle_stage": "active",
    }  # fmt: skip
    yield _link(("RUN_OUTPUT", run_id), ("MODEL_OUTPUT", model_id))


def _link(source: tuple[str, str], destination: tuple[str, str]) -> Row:
    return "inputs", {
        "input_uuid": uuid.uuid4().hex, "source_type": source[0], "source_id": source[1],
        "destination_type": destination[0], "destination_id": destination[1], "step": 0,
    }  # fmt: skip


def version_rows(number: int, draw: random.Random) -> Iterator[Row]:
    """A version, as ``register_best_model`` and a few transitions leave it."""
    created = BEGAN + timedelta(hours=number)
    accuracy, run_id, model_id = draw.uniform(0.5, 0.9), uuid.uuid4().hex, f"m-{uuid.uuid4().hex}"
    choice = f"the best {METRIC} in {SEARCHES}, {accuracy:.4g}"
    moves = [
        Transition(number, created + timedelta(minutes=later), *move, "ann", f"{choice}: run {run_id}")
        for later, move in enumerate(MOVES[: 2 + number % 3])
    ]
    tags = {
        DIGEST_TAG: f"{draw.getrandbits(256):064x}",
        MODEL_TAG: model_id,
        STAGE_TAG: moves[-1].target,
        METRICS_TAG: json.dumps({name: draw.random() for name in METRICS} | {"accuracy": 0.8, METRIC: accuracy}),
        "experiment": SEARCHES,
        "selected_by": METRIC,
        "selected_value": repr(accuracy),
        **{move.key: move.to_json() for move in moves},
    }
    yield "model_versions", {
        "name": MODEL, "version": number, "creation_time": _milliseconds(created), "current_stage": moves[-1].target,
        "last_updated_time": _milliseconds(created), "description": version_description(CARD, BASELINE, choice, run_id),
        "source": f"models:/{model_id}", "storage_location": f"files/models/{model_id}/artifacts", "run_id": run_id,
        "status": "READY",
    }  # fmt: skip
    for name, value in tags.items():
        yield "model_version_tags", {"name": MODEL, "version": number, "key": name, "value": value}


def _milliseconds(time_: datetime) -> int:
    return int(time_.timestamp() * 1000)


# --- the best run -------------------------------------------------------------------------------


class Average(nn.Module):
    """A network that is no more than a layer on the mean colour: what it answers does not matter here."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, len(CLASSES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # (N, 3, H, W) -> (N, K)
        logits: torch.Tensor = self.head(images.mean(dim=(2, 3)))
        return logits


CARD = Card(
    classes=CLASSES,
    image_size=32,
    network="simple_cnn",
    settings=Hyperparameters.model_validate({}).model_dump(),
    data={"name": "flowers", "fingerprint": "5e8d1c07b9a2"},
    metrics={
        "accuracy": Measurement(value=0.8, images=HELD_OUT),
        "f1_weighted": Measurement(value=0.8, images=HELD_OUT),
    },
    temperature=1.0,
    code_version="8fb8a48d0c11",
    versions=library_versions(),
)
BASELINE = Baseline(
    CLASSES,
    np.full((HELD_OUT, len(CLASSES)), 1 / len(CLASSES)),
    np.arange(HELD_OUT) % len(CLASSES),
    np.array([f"{number:064x}" for number in range(HELD_OUT)]),
)


def log_best(client: MlflowClient, experiment: str, folder: Path) -> None:
    """A run with a real bundle, as a study logs it."""
    tags = {name: value for name, value in _run_tags("study", 0).items() if not name.startswith(("mlflow.", "role"))}
    with Run(client, experiment, role="study", name="the best", tags=tags) as run:
        run.params(_params(random.Random(0)))  # noqa: S311  values for show
        model_id = run.new_model()
        digest = save_bundle(folder, Program(Average()), CARD, BASELINE, run_id=run.id, model_id=model_id)
        run.model(folder, model_id, {DIGEST_TAG: digest})
        run.metrics(dict.fromkeys(METRICS, 0.5) | {METRIC: BEST})


if __name__ == "__main__":
    run_script(main)
