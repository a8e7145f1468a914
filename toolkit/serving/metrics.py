"""Counts and timings of the service, as JSON and in the text format of Prometheus."""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Histogram, values
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from toolkit.serving.inference.result import TIMING_STAGES, InferenceResult
from toolkit.serving.workers import WorkerSpec

SHADOW_GAUGES = {
    "compared": "Images that both the live model and the shadow predicted, since either changed",
    "agreement": "Share of them for which both predict the same class",
    "mean_difference": "Mean absolute difference of the probability of the live model's class",
    "failed": "Images that the shadow failed on, since either model changed",
}
WINDOW_SIZE = 2048  # latest predictions of a process, for the percentiles
FILE_BYTES = 2**20  # of a mapped file of counts; writing to a sparse one ends the process when the disk is full
# Seconds: a small network on a fast machine answers in 2 ms, a full queue on a slow one in 10 s.
BATCHES = (1, 2, 4, 8, 16, 32)
MONITOR_OUTCOMES = ("written", "dropped", "lost")  # of predictions in the monitor
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class ServiceMetrics:
    """Counters and timings of one service, in a registry of its own.

    With several workers, each counts in files of its own in their folder, and reports the sums over all of them. A
    worker that replaces one that died continues its counts, so that no sum falls. A process has at most one instance
    with a worker, since the Prometheus library selects its storage for the whole process.

    Examples
    --------
    >>> metrics = ServiceMetrics()
    >>> metrics.request("/predict", "POST", 200, 0.012)
    >>> metrics.request("/predict", "POST", 503, 0.001, problem="full")
    >>> metrics.summary()["requests"]
    {'/predict': {'200': 1, '503': 1}}
    >>> metrics.summary()["errors"]
    {'full': 1}
    """

    def __init__(self, worker: WorkerSpec | None = None) -> None:
        self._started = worker.started if worker else time.time()
        self._lock = threading.Lock()
        self._latest = LatencyWindow(worker)
        own = CollectorRegistry()
        self._counted = _shared_counts(worker) if worker else own
        self.gauges: Callable[[], Iterable[Metric]] = tuple  # metrics that are made at each scrape
        self._reached: dict[Counter, int] = {}  # counter to the total that it was last raised to

        def counter(name: str, text: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(f"serve_{name}", text, tuple(labels), registry=own)

        def histogram(name: str, text: str, buckets: Iterable[float], labels: Iterable[str] = ()) -> Histogram:
            return Histogram(f"serve_{name}", text, tuple(labels), registry=own, buckets=tuple(buckets))

        self._requests = counter("requests", "Requests answered", ("route", "method", "status"))
        self.errors = counter("errors", "Requests answered with a problem, and images of a batch", ("reason",))
        self._predictions = counter("predictions", "Predictions made", ("version", "predicted_class"))
        self._non_finite = counter("non_finite", "Images for which the model returned NaN or infinity", ("version",))
        self.monitor_errors = counter("monitor_errors", "Predictions that could not be logged")
        self.model_changes = counter("model_changes", "Models activated")
        self._monitored = counter("monitor_predictions", "Predictions by their outcome in the monitor", ("state",))
        self._write_errors = counter("monitor_write_errors", "Writes to the store of predictions that failed")
        self._notifications = counter(
            "alert_notifications", "Notifications of alerts by notifier and outcome", ("notifier", "state")
        )
        self._shadow_dropped = counter("shadow_dropped", "Images that the shadow dropped")
        self._request_seconds = histogram("request_seconds", "Time to answer", BUCKETS, ("route",))
        self._stage_seconds = histogram("stage_seconds", "Time of a prediction by stage", BUCKETS, ("stage",))
        self.batch_size = histogram("batch_size", "Images in one run of the model", BATCHES)
        if worker:
            counter("process_starts", "Processes started, also in place of others that died").inc()

    def request(self, route: str, method: str, status: int, seconds: float, problem: str | None = None) -> None:
        """Count a request, and the type of its problem if it was answered with one."""
        self._requests.labels(route, method, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)
        if problem is not None:
            self.errors.labels(problem).inc()

    def prediction(self, done: InferenceResult) -> None:
        """Count an image that the model was run on, and its timings."""
        if done.finite:
            self._predictions.labels(done.model.version, done.model.classes[done.probabilities.argmax()]).inc()
        else:
            self._non_finite.labels(done.model.version).inc()
        with self._lock:
            self._latest.add(done.timings_ms)
        for stage, milliseconds in done.timings_ms.items():
            self._stage_seconds.labels(stage).observe(milliseconds / 1000)

    def raise_totals(
        self, monitor: Mapping[str, int], notifications: Mapping[str, Mapping[str, int]], shadow_dropped: int
    ) -> None:
        """Raise counters to totals that other parts of this process have counted since it started.

        ``monitor`` is ``ModelMonitor.writer_stats()``, ``notifications`` its ``notification_stats()``.
        """
        with self._lock:
            for state in MONITOR_OUTCOMES:
                self._raise(self._monitored.labels(state), monitor[state])
            self._raise(self._write_errors, monitor["write_errors"])
            for notifier, states in notifications.items():
                for state, total in states.items():
                    self._raise(self._notifications.labels(notifier, state), total)
            self._raise(self._shadow_dropped, shadow_dropped)

    def _raise(self, counter: Counter, total: int) -> None:
        more = total - self._reached.get(counter, 0)
        if more > 0:  # another thread may have raised it to a later total
            counter.inc(more)
            self._reached[counter] = total

    def summary(self) -> dict[str, Any]:
        """All counts and timings as JSON."""
        counts = {metric.name.removeprefix("serve_"): _samples(metric) for metric in self._counted.collect()}
        counts = defaultdict(list, counts)  # with several workers, counters without a count are missing
        requests: dict[str, dict[str, int]] = {}
        for labels, value in counts["requests"]:
            statuses = requests.setdefault(labels["route"], {})
            statuses[labels["status"]] = statuses.get(labels["status"], 0) + value
        by_class: dict[str, dict[str, int]] = {}
        for labels, value in counts["predictions"]:
            by_class.setdefault(labels["version"], {})[labels["predicted_class"]] = value
        return {
            "uptime_s": round(time.time() - self._started, 1),
            "requests": requests,
            "errors": {labels["reason"]: value for labels, value in counts["errors"]},
            "predictions": by_class,  # model version -> class -> count
            "non_finite": {labels["version"]: value for labels, value in counts["non_finite"]},
            "latency_ms": self._latency(),
            "monitor_errors": sum(value for _, value in counts["monitor_errors"]),
            "model_changes": sum(value for _, value in counts["model_changes"]),
        }

    def prometheus(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the text format that fits an Accept header, and its media type."""
        try:
            encode, media_type = choose_encoder(accept)
        except TypeError:  # the library compares a version that is not a number
            encode, media_type = choose_encoder("")
        return encode(self), media_type

    def _latency(self) -> dict[str, dict[str, float | int | None]]:
        return {
            stage: {
                "n": len(row),
                "median": round(float(np.percentile(row, 50)), 3) if len(row) else None,
                "p95": round(float(np.percentile(row, 95)), 3) if len(row) else None,
            }
            for stage, row in self._latest.all().items()
        }

    def collect(self) -> Iterable[Metric]:
        """Return the metrics for a scrape, as the Prometheus library asks for them."""
        gauges = [*self.gauges()]  # first: it may raise counters
        start = gauge_family("start_time_seconds", "Start of the service", (), {(): self._started})
        return [*self._counted.collect(), start, *gauges]


class LatencyWindow:
    """Timings of the latest ``WINDOW_SIZE`` predictions of each process, in files that the others read if several."""

    def __init__(self, worker: WorkerSpec | None = None) -> None:
        self._folder = Path(worker.folder) if worker else None
        self._next = 0
        self._own: NDArray[np.float64] = np.full((len(TIMING_STAGES), WINDOW_SIZE), np.nan)  # ms
        if worker:
            path = Path(worker.folder, f"latest_{worker.index}.ms")
            if not path.exists():
                self._own.tofile(path)
            self._own = np.memmap(path, np.float64, "r+", shape=self._own.shape)

    def add(self, timings_ms: Mapping[str, float]) -> None:
        """Replace the oldest timings; not from two threads at once."""
        self._own[:, self._next] = [timings_ms[stage] for stage in TIMING_STAGES]
        self._next = (self._next + 1) % WINDOW_SIZE

    def all(self) -> dict[str, NDArray[np.float64]]:
        """Return stage to milliseconds, float64 (N,), of the latest predictions of all processes."""
        files = sorted(self._folder.glob("latest_*.ms")) if self._folder else ()
        rings = [np.fromfile(path).reshape(self._own.shape) for path in files] or [self._own.copy()]
        together = np.concatenate(rings, axis=1)
        return {stage: row[~np.isnan(row)] for stage, row in zip(TIMING_STAGES, together, strict=True)}


def _shared_counts(worker: WorkerSpec) -> MultiProcessCollector:
    """Let this process count in files named by its index, and return the sums over the files of all."""
    for kind in ("counter", "histogram"):
        path = Path(worker.folder, f"{kind}_{worker.index}.db")
        if not path.exists():
            path.write_bytes(bytes(FILE_BYTES))
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = worker.folder
    values.ValueClass = values.MultiProcessValue(lambda: worker.index)  # type: ignore[no-untyped-call]
    return MultiProcessCollector(None, worker.folder)  # type: ignore[no-untyped-call]


def gauge_family(name: str, text: str, labels: Iterable[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    """Make a group of gauges, with one value for each tuple of label values."""
    metric = GaugeMetricFamily(f"serve_{name}", text, labels=list(labels))
    for key, value in values.items():
        metric.add_metric(list(key), value)
    return metric


def shadow_families(shadow: Mapping[str, Any]) -> Iterable[Metric]:
    """Gauges of a shadow's agreement with the live model, from ``ShadowRunner.metrics``."""
    if shadow["against"] is None:
        return
    labels, versions = ("version", "against"), (str(shadow["version"]), str(shadow["against"]))
    for name, text in SHADOW_GAUGES.items():
        if shadow[name] is not None:
            yield gauge_family(f"shadow_{name}", text, labels, {versions: shadow[name]})


def _samples(metric: Metric) -> list[tuple[dict[str, str], int]]:
    counts = [sample for sample in metric.samples if sample.name.endswith("_total")]
    return [(sample.labels, int(sample.value)) for sample in counts]


def wants_prometheus(accept: str) -> bool:
    """Whether an Accept header prefers the text format to JSON.

    >>> wants_prometheus("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2,*/*;q=0.1")
    True
    >>> wants_prometheus("application/json, text/plain, */*"), wants_prometheus("*/*")
    (False, False)
    """
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        media, *parameters = (word.strip() for word in part.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            weights[media] = float(quality)
        except ValueError:
            weights[media] = 0.0
    text = max(weights.get("text/plain", 0.0), weights.get("application/openmetrics-text", 0.0))
    return text > weights.get("application/json", 0.0)
