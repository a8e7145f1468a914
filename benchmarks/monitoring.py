"""False alarms, delay and cost of the monitor, beside the plain way of watching, on the same streams.

    python benchmarks/monitoring.py             # minutes
    python benchmarks/monitoring.py --quick     # the same with a quarter of the streams
    python benchmarks/monitoring.py --json      # ends with one JSON object of claims

The plain way: every 100 predictions scipy compares the last 1,000 with the reference by a
Kolmogorov-Smirnov, a chi-square and a z test, and a p-value below 0.05 is an alarm. A stream has
10,000 predictions of five classes, the true label of three in ten of them is told, the model is
right in about 80 %, and the reference has 2,000 pictures. In the drifted streams the second half is
harder, so that accuracy drops. What never alarms and what always does stand beside both.
"""

import argparse
import json
import os
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from monitoring import Limits, ModelMonitor  # noqa: E402
from toolkit.baseline import Baseline  # noqa: E402
from toolkit.monitoring.alerts import BLOCKS, Sighting, Watch, look, worth_adding  # noqa: E402
from toolkit.monitoring.windows import WINDOWS, Window  # noqa: E402
from toolkit.terminal import table  # noqa: E402

LENGTH, CHANGE, BLOCK, SHORT = 10_000, 5_000, 100, 1_000
CLASSES = ("a", "b", "c", "d", "e")
REFERENCE, LABELLED = 2_000, 0.3
USUAL = 3.2  # how far the true class stands out of unit noise times 1.6: right in about 80 %
HARDER = {"9 %": 2.75, "17 %": 2.4, "32 %": 1.8}  # relative drop of accuracy -> how far in the second half
REPEATS, CALLS = 7, 2_000  # of what is timed


class Stream(NamedTuple):
    """Predictions in order, and the pictures they are compared with."""

    baseline: Baseline
    window: Window


Watcher = Callable[[Stream], Iterator[int]]  # gives the number of predictions after which it alarms


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the streams")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    streams = 50 if options.quick else 200
    print(machine(), flush=True)
    found = {name: alarms(watcher, streams) for name, watcher in WATCHERS.items()}
    headings = ["", "false alarms per million", "streams with one", *(f"delay, drop of {drop}" for drop in HARDER)]
    print(f"\n{table(headings, [[name, *row.values()] for name, row in found.items()])}\n")
    print(f"{streams} streams a column; delay: the median number of predictions from the change to the first alarm\n")
    cost = costs()
    print(table(["", "monitor, us", "plain, us", "ratio"], [[name, *row] for name, row in cost.items()]))
    if options.json:
        print(json.dumps(claims(found, cost, streams)))


def machine() -> str:
    """Where these figures come from."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "SQLAlchemy"))
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return f"{platform.machine()}, {os.cpu_count()} cores, load {load}, Python {platform.python_version()}, {versions}"


def stream(seed: int, later: float) -> Stream:
    """One stream whose second half stands out by ``later`` instead of ``USUAL``."""
    generator = np.random.default_rng(seed)
    baseline = Baseline(CLASSES, *_sample(generator, np.full(REFERENCE, USUAL)))
    probabilities, truth = _sample(generator, np.repeat([USUAL, later], [CHANGE, LENGTH - CHANGE]))
    labels = np.where(generator.random(LENGTH) < LABELLED, truth, -1)
    confidence = probabilities.max(axis=1).astype(np.float32)
    return Stream(
        baseline, Window(CLASSES, np.arange(LENGTH, dtype=np.float64), probabilities.argmax(axis=1), confidence, labels)
    )


def _sample(generator: np.random.Generator, strengths: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """float16 (N, K) probabilities and int64 (N,) true classes."""
    truth = generator.integers(0, len(CLASSES), len(strengths))
    logits = generator.normal(0, 1.6, (len(strengths), len(CLASSES)))
    logits[np.arange(len(strengths)), truth] += strengths
    odds = np.exp(logits)
    return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float16), truth


def alarms(watcher: Watcher, streams: int) -> dict[str, str]:
    """The row of one watcher: false alarms where nothing changes, and the delay for each change."""
    quiet = [list(watcher(stream(seed, USUAL))) for seed in range(streams)]
    row = {
        "per_million": f"{sum(map(len, quiet)) / (streams * LENGTH) * 1e6:.3g}",
        "streams": f"{np.mean([bool(found) for found in quiet]):.0%}",
    }
    for drop, later in HARDER.items():
        delays = [
            min((end - CHANGE for end in watcher(stream(seed, later)) if end > CHANGE), default=np.inf)
            for seed in range(streams)
        ]
        median = float(np.median(delays))
        row[drop] = f"{median:,.0f}" if np.isfinite(median) else "never"
    return row


def monitor(stream: Stream) -> Iterator[int]:
    """What the service does: strict tests, levels that must hold, alerts that stand are not raised again."""
    limits, watch = Limits(), Watch()
    standing: dict[tuple[str, str], tuple[str, str]] = {}
    for end in range(BLOCK, LENGTH + 1, BLOCK):
        upto = _upto(stream.window, end)
        recent: dict[str, Sighting] = {}
        for name in (name for name, block in BLOCKS.items() if end % block == 0):
            for seen in look(upto.last(WINDOWS[name]), stream.baseline, limits, name):
                key, now = (seen.metric, name), recent.setdefault(seen.metric, seen)
                told = standing.get((seen.metric, "short"))
                worth = seen if name == "short" else worth_adding(seen, now, told)
                decision = watch.decide("1", worth, standing.get(key))
                if decision.action == "raise":
                    standing[key] = (decision.level, decision.status)
                    yield end
                elif decision.action == "clear":
                    del standing[key]


def plain(stream: Stream) -> Iterator[int]:
    """Three tests at 0.05, again and again."""
    reference = stream.baseline
    usual = np.bincount(reference.predicted, minlength=len(CLASSES))
    for end in range(SHORT, LENGTH + 1, BLOCK):
        if min(plain_tests(_upto(stream.window, end).last(SHORT), reference, usual)) < 0.05:
            yield end


def plain_tests(window: Window, reference: Baseline, usual: NDArray[np.int64]) -> tuple[float, float, float]:
    """The p-values of scipy's tests."""
    ks = stats.ks_2samp(window.confidence, reference.confidence, method="asymp").pvalue
    chi = stats.chi2_contingency(np.stack([window.counts, usual])).pvalue
    z = stats.ttest_ind(window.confidence, reference.confidence, equal_var=False).pvalue
    return float(ks), float(chi), float(z)


def _upto(window: Window, end: int) -> Window:
    return Window(
        window.classes, window.time[:end], window.predicted[:end], window.confidence[:end], window.labels[:end]
    )


WATCHERS: dict[str, Watcher] = {
    "monitor": monitor,
    "plain, p < 0.05": plain,
    "never": lambda _: iter(()),
    "always": lambda _: iter(range(BLOCK, LENGTH + 1, BLOCK)),
}


def costs() -> dict[str, tuple[str, str, str]]:
    """Microseconds of the request's own thread, and of one report; ours and the plain way in turn, medians."""
    generator = np.random.default_rng(0)
    probabilities, _ = _sample(generator, np.full(CALLS, USUAL))
    some = stream(0, USUAL)
    with tempfile.TemporaryDirectory() as folder, ModelMonitor(f"{folder}/a.db", some.baseline) as watched:
        database = sqlite3.connect(f"{folder}/b.db", isolation_level=None)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE predictions (id INTEGER PRIMARY KEY, time REAL, probabilities BLOB)")

        def insert() -> None:
            for row in probabilities:
                database.execute("INSERT INTO predictions VALUES (NULL, ?, ?)", (time.time(), row.tobytes()))

        logged = _compared(lambda: _loop(watched.log_prediction, probabilities), insert, CALLS, after=watched.flush)
        usual = np.bincount(some.baseline.predicted, minlength=len(CLASSES))
        recent = some.window.last(SHORT)
        report = _compared(
            watched.detect_drift, lambda: plain_tests(recent, some.baseline, usual), 1, after=watched.flush
        )
        database.close()
    return {"log one prediction": logged, "one drift report": report}


def _loop(call: Callable[[Any], object], items: Any) -> None:
    for item in items:
        call(item)


def _compared(
    ours: Callable[[], object], theirs: Callable[[], object], calls: int, after: Callable[[], object]
) -> tuple[str, str, str]:
    """Medians of several runs, in turn, so that what else the machine does falls on both."""
    times: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(REPEATS):
        for index, run in enumerate((ours, theirs)):
            started = time.perf_counter()
            run()
            times[index].append((time.perf_counter() - started) / calls * 1e6)
            after()
    first, second = float(np.median(times[0])), float(np.median(times[1]))
    return f"{first:,.1f}", f"{second:,.1f}", f"{first / second:.2f}"


def claims(found: dict[str, dict[str, str]], cost: dict[str, tuple[str, str, str]], streams: int) -> dict[str, Any]:
    """The figures that docs/monitoring.md speaks of."""
    conditions = f"{streams} streams of {LENGTH:,} predictions, looked at after every {BLOCK}"
    ours = found["monitor"]
    return {
        "false alarms per million predictions": {
            "value": float(ours["per_million"]), "goal": 1.0, "better": "lower", "conditions": conditions,
        },
        "median delay for a drop of 17 %": {
            "value": float(ours["17 %"].replace(",", "")), "goal": 1000.0, "better": "lower", "conditions": conditions,
        },
        "logging over a plain insert": {
            "value": float(cost["log one prediction"][2]), "goal": 1.0, "better": "lower",
            "conditions": "time in the caller's thread, five classes, SQLite in WAL mode on both sides",
        },
    }  # fmt: skip


if __name__ == "__main__":
    main()
