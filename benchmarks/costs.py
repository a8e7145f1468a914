"""Costs of monitoring: time of the thread that answers, of a report, of an import; memory of what is counted."""

import sqlite3
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import drift_detectors
from monitoring import ModelMonitor, MonitorConfig
from toolkit.bundle.baseline import Baseline
from toolkit.monitoring.base.predictions import Predictions
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.stats.detector_set import DetectorSet
from toolkit.monitoring.windows.drift import run_tests
from toolkit.monitoring.windows.reference import ReferenceBins
from toolkit.monitoring.windows.rolling import RollingWindows

ROOT = Path(__file__).resolve().parent.parent
CALLS, TOGETHER = 2_000, 20_000  # predictions logged and timed one by one; until all are stored
FEW, MANY, MOST = 1_000, 100_000, 10_000_000  # predictions that a report is about
WITHOUT_NOTIFIERS = MonitorConfig(notifiers={})
TURN = 0.02  # s, how long one turn takes at least, about
SLOWEST = 1.0  # s, after which a peer is not timed again

Run = Callable[[], object]
Array = NDArray[Any]


class Cost(NamedTuple):
    """A table, and what is claimed of it: value, goal, and which is better."""

    headings: list[str]
    rows: list[list[str]]
    claims: dict[str, tuple[float, float, str]]


def medians(runs: Mapping[str, Run], repeats: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Seconds of each, run in turns, so that what else the machine does falls on all; several times if it is short."""
    calls = {name: max(1, int(TURN / _seconds(run, 1, time.perf_counter))) for name, run in runs.items()}
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for name, run in runs.items():
            if not times[name] or times[name][-1] < SLOWEST:
                times[name].append(_seconds(run, calls[name], clock))
    return {name: float(np.median(values)) for name, values in times.items()}


def _seconds(run: Run, calls: int, clock: Callable[[], float]) -> float:
    started = clock()
    for _ in range(calls):
        run()
    return (clock() - started) / calls


def logging(baseline: Baseline, stream: Predictions, repeats: int) -> Cost:
    """One prediction in the thread of its caller, and how many a second reach the store."""
    rows = list(stream.probabilities[:CALLS])
    with (
        tempfile.TemporaryDirectory() as folder,
        ModelMonitor(f"{folder}/a.db", baseline, config=WITHOUT_NOTIFIERS) as monitor,
    ):
        database = sqlite3.connect(f"{folder}/b.db", isolation_level=None)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE predictions (id INTEGER PRIMARY KEY, time REAL, probabilities BLOB)")

        def insert() -> None:
            for row in rows:
                database.execute("INSERT INTO predictions VALUES (NULL, ?, ?)", (time.time(), row.tobytes()))

        def log() -> None:
            for row in rows:
                monitor.log_prediction(row)

        runs: dict[str, Run] = {"ours": log, "wait": monitor.flush, "a plain insert into SQLite": insert}
        own, wall = medians(runs, repeats, time.thread_time), medians(runs, repeats)
        database.close()
        rate = _rate(monitor, stream)
    worked, handed, settled = _at_once(baseline, stream)
    micro = 1e6 / CALLS
    cells = [[name, f"{own[name] * micro:.1f}", f"{wall[name] * micro:.1f}"] for name in runs if name != "wait"]
    cells[0].append(f"{rate:,.0f}")
    cells[1].append(f"{CALLS / wall['a plain insert into SQLite']:,.0f}")
    cell = f"{handed:,.0f}; {settled:,.0f} until they were evaluated too"
    cells.append(["ours, log_predictions", f"{worked:.1f} (all threads)", "-", cell])
    headings = ["logging", "us of processor in the caller's thread", "us it waits", "predictions/s stored"]
    return Cost(headings, cells, {
        "us of the caller's thread to log": (own["ours"] / CALLS * 1e6, 5, "lower"),
        "predictions/s stored": (rate, 50_000, "higher"),
        "predictions/s by log_predictions": (handed, 50_000, "higher"),
        "us of all threads to log and store one of many": (worked, 20, "lower"),
    })  # fmt: skip


def _rate(monitor: ModelMonitor, stream: Predictions) -> float:
    """Predictions a second, from the first call until all are in the store."""
    started = time.perf_counter()
    rows = stream.probabilities[:TOGETHER]
    for row in rows:
        monitor.log_prediction(row)
    monitor.flush()
    return len(rows) / (time.perf_counter() - started)


def _at_once(baseline: Baseline, stream: Predictions) -> tuple[float, float, float]:
    """One call for many predictions, which ends when it has their ids and all but 10,000 are stored.

    Gives microseconds of processor for each until then, all threads together; predictions a second until then,
    and until all are stored and evaluated.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        ModelMonitor(f"{folder}/a.db", baseline, config=WITHOUT_NOTIFIERS) as monitor,
    ):
        started, worked = time.perf_counter(), time.process_time()
        monitor.log_predictions(stream.probabilities)
        worked, handed = time.process_time() - worked, time.perf_counter() - started
        monitor.flush()
        return worked / stream.n * 1e6, stream.n / handed, stream.n / (time.perf_counter() - started)


def reports(baseline: Baseline, stream: Predictions, repeats: int) -> Cost:
    """A report on drift, of few predictions and of many."""
    frame = drift_detectors.as_frame(baseline.probabilities)
    chunks = drift_detectors.nannyml_drift(frame)
    confidence, classes = np.sort(baseline.confidence), np.bincount(baseline.predicted, minlength=len(baseline.classes))
    columns = np.sort(baseline.probabilities.astype(np.float64), axis=0)
    times: dict[int, dict[str, float]] = {}

    def by_scipy(window: Predictions) -> None:
        drift_detectors.plain_tests(window, confidence, classes)
        drift_detectors.bbsds(window, columns)

    for n in (FEW, MANY):
        window = stream.last(n)
        table = drift_detectors.as_frame(window.probabilities)
        with (
            tempfile.TemporaryDirectory() as folder,
            ModelMonitor(f"{folder}/a.db", baseline, config=WITHOUT_NOTIFIERS) as monitor,
        ):
            monitor.log_predictions(window.probabilities)
            monitor.flush()
            runs: dict[str, Run] = {
                "ours": partial(monitor.detect_drift, "long"),
                "scipy, the same tests": partial(by_scipy, window),
                "NannyML": partial(chunks, table),
                "Evidently": partial(drift_detectors.evidently_report, table, frame),
            }
            times[n] = medians(runs, repeats)
    times[MOST] = {"ours": _of_counts(baseline, stream, repeats)}
    headings = ["ms for a report of", *(f"{n:,} predictions" for n in times)]
    cells = [
        [name, *(f"{1e3 * row[name]:,.2f}" if name in row else "-" for row in times.values())] for name in times[FEW]
    ]
    claims = {f"ms for a report of {n:,}": (1e3 * row["ours"], 1.0, "lower") for n, row in times.items()}
    return Cost(headings, cells, claims)


def _of_counts(baseline: Baseline, stream: Predictions, repeats: int) -> float:
    """Seconds for the report of ten million predictions: a hundred times the counts of a hundred thousand."""
    reference = ReferenceBins(baseline.classes, baseline)
    part = reference.count(stream.last(MANY))
    counts = part
    while counts.n < MOST:
        counts = counts + part
    return medians({"ours": lambda: run_tests(counts, reference, Thresholds(), "long")}, repeats)["ours"]


def memory(baseline: Baseline, stream: Predictions, repeats: int) -> Cost:
    """Memory that a version needs with full windows."""
    del repeats  # the same each time
    held: dict[str, float] = {}

    def read(name: str) -> None:
        held[name] = tracemalloc.get_traced_memory()[0] / 1e6 - sum(held.values())

    tracemalloc.start()
    reference = ReferenceBins(baseline.classes, baseline)
    read("bins and the reference in them")
    rolling = RollingWindows(reference)
    rolling.add(stream.last(20_000))
    read("windows of 1,000, 10,000 and all")
    detectors = DetectorSet(baseline, 1.0)
    read("three alarms")
    tracemalloc.stop()
    del rolling, detectors
    whole = sum(held.values())
    cells = [[name, f"{size:.2f}"] for name, size in [*held.items(), ("together", whole)]]
    return Cost(["memory of a version's monitoring", "MB"], cells, {"MB of counted state": (whole, 2.0, "lower")})


def imports(baseline: Baseline, stream: Predictions, repeats: int) -> Cost:
    """Seconds until a fresh process has imported each."""
    del baseline, stream
    patched = "import pandas.core.dtypes.common as c; c.infer_dtype_from_object = type; import evidently"
    statements = {
        "monitoring": "import monitoring",
        "river's drift": "import river.drift",
        "NannyML": "import nannyml",
        "Evidently": f"{patched}.presets",
        "nothing": "pass",
    }

    def start(statement: str) -> None:
        subprocess.run([sys.executable, "-W", "ignore", "-c", statement], cwd=ROOT, check=True, capture_output=True)

    runs: dict[str, Run] = {name: partial(start, statement) for name, statement in statements.items()}
    seconds = medians(runs, min(repeats, 5))
    more = {name: seconds[name] - seconds["nothing"] for name in statements if name != "nothing"}
    cells = [[name, f"{value:.2f}"] for name, value in more.items()]
    return Cost(["import, beyond an empty process", "s"], cells, {"s to import": (more["monitoring"], 0.5, "lower")})
