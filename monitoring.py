"""Watch a model at work: log what it predicts, measure it, detect drift, raise alerts.

    python monitoring.py report                       # figures and drift tests, last 1,000 predictions
    python monitoring.py report --plot report.png     # and the accuracy over time as an image
    python monitoring.py alerts --level critical      # what has gone wrong, newest first
    python monitoring.py labels                       # which predictions to label, to know how good the model is
    python monitoring.py export predictions.parquet   # one row a prediction, for tools of your own
    python monitoring.py replay predictions.parquet --max-false-alarms-per-million 10   # what if
    python monitoring.py report --store sqlite:////srv/monitoring.db --window long --json

In a program or a notebook::

    from monitoring import ModelMonitor

    monitor = ModelMonitor()                          # beside a running service: sees its predictions
    print(monitor.detect_drift())
    monitor.plot_metrics("accuracy")

    monitor = ModelMonitor("my.db", baseline, model_version="3")
    name = monitor.log_prediction(probabilities, source="cats/7.jpg")
    monitor.record_feedback(name, "cat")              # now, or days later
    names = monitor.log_predictions(many)             # (N, K), at once

Everything is kept in one SQL store, ``monitoring.db`` in the working directory unless
``--store`` or MONITORING_STORE says otherwise. Reading never changes it; ``labels`` notes what it has drawn.
"""

from toolkit.cli.import_interrupt import exit_on_interrupt

if __name__ == "__main__":
    exit_on_interrupt()

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_settings import CliPositionalArg, CliSubCommand, CliSuppress

from toolkit.cli.settings import ScriptSettings, environment, parse, read_first, run_script, subcommand
from toolkit.errors import SettingsError, StoreError, UnknownPrediction, first_line, suggest
from toolkit.monitoring.base.thresholds import LEVELS, Thresholds
from toolkit.monitoring.base.timestamps import TimeLike, to_timestamp, to_timestamps


class MonitorSettings(ScriptSettings):
    """Which store, and which model version in it."""

    model_config = environment("MONITORING_")

    store: str = Field(default="sqlite:///monitoring.db", description="SQLAlchemy URL, or path of an SQLite file")
    model_version: str | None = Field(
        default=None, description="which version to look at; the one served last when not given"
    )
    trust_labels: bool = Field(
        default=False, description="count labels of any choice as those of a sample drawn at random"
    )
    ignore: CliSuppress[str] = Field(
        default="", description="metrics that raise no alert, with commas between them; see Thresholds"
    )


def _point_in_time(text: Any) -> object:
    try:
        return None if text is None else datetime.fromtimestamp(to_timestamp(text, ""), UTC)
    except SettingsError as error:
        raise ValueError(str(error).strip()) from None


class _Report(MonitorSettings):
    """Figures of a window and the drift tests on it."""

    window: Literal["short", "medium", "long"] = Field("short", description="last 1,000, last 10,000 or all")
    plot: Path | None = Field(None, description="save a figure as this image")
    metric: Literal["accuracy", "confidence", "predictions", "drift", "calibration", "volume", "inputs"] = Field(
        "accuracy", description="which figure"
    )
    as_json: bool = Field(False, validation_alias="json", description="print JSON instead of text")


class _Alerts(MonitorSettings):
    """What has gone wrong, newest first."""

    level: Literal["warning", "critical", "immediate"] | None = Field(None, description="this level or worse")
    since: Annotated[datetime | None, BeforeValidator(_point_in_time)] = Field(
        None, description="raised at or after this time, such as 2026-11-24T08:00Z"
    )
    acknowledge: int | None = Field(None, ge=1, description="id of an alert that you know of: it stops reminding")
    by: str = Field("", description="who acknowledges it")
    as_json: bool = Field(False, validation_alias="json", description="print JSON instead of text")


class _Export(MonitorSettings):
    """One row a prediction, as a Parquet or CSV file."""

    file: CliPositionalArg[Path] = Field(description="where to, ending in .parquet or .csv")
    since: Annotated[datetime | None, BeforeValidator(_point_in_time)] = Field(
        None, description="made at or after this time, such as 2026-11-24T08:00Z"
    )
    probabilities: bool = Field(False, description="a column for each class")


class _Labels(MonitorSettings):
    """Ids of predictions without a label, drawn at random, whose labels would settle how good the model is.

    Behind each id stands the name that its image was logged with, if it was.
    """

    count: int | None = Field(
        None, ge=1, description="how many; those missing among as many as prove a drop of a fifth when not given"
    )
    window: Literal["short", "medium"] = Field("short", description="of the last 1,000 or the last 10,000")
    seed: int = Field(0, ge=0, description="another one gives others")


class _Replay(MonitorSettings):
    """What would have been raised, had the thresholds been others."""

    file: CliPositionalArg[str] = Field(description="a .parquet or .csv file as export writes it, or a store")
    baseline: Path | None = Field(None, description="baseline.npz of the model; that in the store when not given")
    max_false_alarms_per_million: float = Field(
        Thresholds.max_false_alarms_per_million, description="alerts without a cause in a million predictions"
    )
    warning: float = Field(Thresholds.warning, description="relative drop of accuracy above which this level begins")
    critical: float = Field(Thresholds.critical, description="the same for this level")
    immediate: float = Field(Thresholds.immediate, description="the same for this level")
    ignore: str = Field("", description="metrics that raise no alert, with commas between; METRIC/short for a window")
    as_json: bool = Field(False, validation_alias="json", description="print JSON instead of text")


class _Commands(ScriptSettings):
    model_config = environment("MONITORING_")

    report: CliSubCommand[_Report] = Field(description="figures of a window and the drift tests on it")
    alerts: CliSubCommand[_Alerts] = Field(description="what has gone wrong, newest first")
    labels: CliSubCommand[_Labels] = Field(description="which predictions to label, to know how good the model is")
    export: CliSubCommand[_Export] = Field(description="one row a prediction, as a Parquet or CSV file")
    replay: CliSubCommand[_Replay] = Field(description="what would have been raised, had the thresholds been others")


def _typed() -> BaseModel:
    """What to do, by the command line and the environment."""
    command = subcommand(parse(_Commands, __doc__))
    if command is None:
        raise SettingsError("say what to do: report, alerts, labels, export or replay; see --help")
    return command


if __name__ == "__main__":  # --help and what is mistyped are answered before what takes long to import
    read_first(_typed)

import numpy as np
from numpy.typing import ArrayLike

from toolkit.bundle.baseline import Baseline
from toolkit.cli.safe_names import display_name, printable
from toolkit.cli.terminal import muted
from toolkit.monitoring import report
from toolkit.monitoring.alerting.notifiers import LogNotifier, Notification, Notifier, Notifiers
from toolkit.monitoring.alerting.webhook import WebhookNotifier
from toolkit.monitoring.base import validation
from toolkit.monitoring.base.ids import format_id, new_id_numbers, new_prediction_id, parse_prediction_id
from toolkit.monitoring.base.image_names import image_name, image_names
from toolkit.monitoring.base.predictions import WINDOWS, window_size
from toolkit.monitoring.pipeline.replay import replay
from toolkit.monitoring.pipeline.stream_state import StreamState
from toolkit.monitoring.pipeline.worker import MonitorConfig, MonitoringWorker
from toolkit.monitoring.stats.label_sampling import labels_to_confirm, sample_for_labelling
from toolkit.monitoring.store.alerts import Alert
from toolkit.monitoring.store.background_writer import BATCH, BackgroundWriter
from toolkit.monitoring.store.export import ENDINGS, export
from toolkit.monitoring.store.predictions import LoggedPrediction, ModelVersion, PredictionStore
from toolkit.monitoring.windows.drift import DriftReport, correct_and_decide, run_tests
from toolkit.monitoring.windows.metrics import WindowMetrics, window_metrics

if TYPE_CHECKING:  # see plot_metrics
    from matplotlib.figure import Figure

__all__ = [
    "Alert",
    "DriftReport",
    "LogNotifier",
    "ModelMonitor",
    "MonitorConfig",
    "MonitorSettings",
    "Notification",
    "Notifier",
    "Thresholds",
    "WebhookNotifier",
    "WindowMetrics",
    "new_prediction_id",
]

logger = logging.getLogger(__name__)

UNNAMED_VERSION = "unversioned"  # of a model that is logged without a name
STALE_AFTER_S = 2.0  # how far looking may fall behind while many predictions wait to be stored
REREAD_AFTER_S = 5.0  # how long a reader waits for predictions that are still in the queue
PLOTS = ("accuracy", "confidence", "predictions", "drift", "calibration", "volume", "inputs")
NO_MODEL = ModelVersion("", ())  # of an empty store


class ModelMonitor:
    """Log predictions and their true labels; measure quality, detect drift, raise alerts.

    Thread-safe. Logging hands over to a thread that writes in batches, and waits only while 10,000
    predictions wait for the store, so that a loop loses nothing however fast it is; with
    ``drop_when_full`` it never waits. What becomes of predictions is counted in ``stats()``. Windows
    are the last 1,000 predictions (``short``), the last 10,000 (``medium``) and all (``long``) of one
    model version.

    Parameters
    ----------
    store
        SQLAlchemy URL or path of an SQLite file; MONITORING_STORE, else ``monitoring.db`` in the
        working directory, when None. It is created by the first prediction.
    baseline
        What the model did on images it had never seen, kept in the store for whoever reads it.
    model_version
        Name of the version that is logged or looked at. When None: "unversioned" for a monitor
        that was given a baseline or classes, else the version served last according to the store.
    classes
        Class names in output order; the baseline's when None.
    thresholds
        What counts as too much, how many false alarms may be raised, whether labels of any choice are trusted,
        and what is ignored. When None, what MONITORING_TRUST_LABELS and MONITORING_IGNORE say, where one of
        them is set; else what the process that logs the version goes by, according to the store.
    config
        Where alerts go, how long predictions are kept, and whether logging may wait; see ``MonitorConfig``.

    Raises
    ------
    StoreError
        When what is at the address is no store.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with ModelMonitor(folder.name + "/my.db", classes=["cat", "dog"]) as monitor:
    ...     first = monitor.log_prediction([0.9, 0.1])
    ...     second = monitor.log_prediction({"dog": 0.7, "cat": 0.3})
    ...     monitor.record_feedback(second, "cat")
    ...     figures = monitor.calculate_metrics("short")
    True
    >>> figures["n"], figures["n_labels"], figures["accuracy"], figures["class_shares"]
    (2, 1, 0.0, {'cat': 0.5, 'dog': 0.5})
    >>> folder.cleanup()
    """

    def __init__(
        self,
        store: str | Path | None = None,
        baseline: Baseline | None = None,
        *,
        model_version: str | None = None,
        classes: Sequence[str] | None = None,
        thresholds: Thresholds | None = None,
        config: MonitorConfig | None = None,
    ) -> None:
        config = config or MonitorConfig()
        self._clock = config.clock
        self._store_problem: str | None = None
        surroundings = MonitorSettings()
        if thresholds is None and (surroundings.trust_labels or surroundings.ignore):
            thresholds = Thresholds(
                trust_labels=surroundings.trust_labels, ignore=Thresholds.parse_ignore(surroundings.ignore)
            )
        self._store = PredictionStore(str(store) if store is not None else surroundings.store)
        self._writer: BackgroundWriter[LoggedPrediction] = BackgroundWriter(self._write, drop=config.drop_when_full)
        self._notifiers = Notifiers(config.notifiers, config.on_immediate)
        self._worker = MonitoringWorker(self._store, thresholds, self._notifiers, config)
        self._labels = 0  # told in this process since the writer was last told of them
        self._news = 0  # predictions and labels that have not been attended to
        self._has_repeats = False  # whether an id was in the store already
        self._workers = 0.0  # on the monotonic clock
        self._unregistered: ModelVersion | None = None  # went into service and is not in the store yet
        self._secondary_models: dict[str, ModelVersion] = {}  # versions that answer beside the served one
        self._requested_version = model_version
        self._served: ModelVersion | None = None  # what this process serves
        self._seen: ModelVersion | None = None  # what the store says is served, to a monitor that only looks
        if baseline is not None or classes is not None:
            self._served = self._named(model_version or UNNAMED_VERSION, baseline, classes)
        else:
            self._seen = self._read_model()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ModelMonitor({str(self._store)!r}, model_version={self.model_version!r})"

    @property
    def model_version(self) -> str | None:
        """The version being logged or looked at; None while the store is empty."""
        model = self._served or self._seen
        return model.version if model else self._requested_version

    def serve(self, version: str, baseline: Baseline | None = None, classes: Sequence[str] | None = None) -> None:
        """From now on this version answers: its windows are its own, fresh unless it has served before.

        Does not wait for the store either, so that no model switch ever hangs on its monitoring.

        Parameters
        ----------
        version
            Its name.
        baseline, classes
            As in the constructor.
        """
        self._served = self._named(version, baseline, classes)
        self._unregistered = self._served
        self._writer.wake()

    # Logging

    def log_prediction(
        self,
        probabilities: ArrayLike | Mapping[str, float],
        *,
        statistics: Mapping[str, float] | None = None,
        latency_ms: float | None = None,
        prediction_id: str | None = None,
        model_version: str | None = None,
        time: TimeLike | None = None,
        source: str | PathLike[str] | None = None,
    ) -> str:
        """Log one answer of the model; return its id, under which the true label can be told later.

        Parameters
        ----------
        probabilities
            (K,) in class order, or class name to probability. NaN and infinity are counted apart.
        statistics
            Input statistics of the image, name to number.
        latency_ms
            How long the answer took, in milliseconds.
        prediction_id
            From ``new_prediction_id()``, when the id was needed earlier.
        model_version
            When another version than the served one answered, beside it.
        time
            When, in seconds since 1970, as a datetime or as ISO 8601; now when None.
        source
            What finds the image again: a file name, a URL, a content hash. It is kept as text of up to
            256 characters, those that do not print escaped, and never followed.

        Raises
        ------
        SettingsError
            When these are no probabilities of the model's classes, or something else is of the wrong kind.
        UnknownPrediction
            When ``prediction_id`` is no id.
        StoreError
            When the store has taken nothing for a minute and 10,000 predictions wait; never with
            ``drop_when_full``.
        """
        now = self._clock()
        number = new_id_numbers(now, 1)[0] if prediction_id is None else parse_prediction_id(prediction_id)
        model = self._model_for(probabilities, model_version)
        scores = validation.parse_probabilities(probabilities, model.classes)
        moment = now if time is None else to_timestamp(time, "time")
        values = validation.parse_statistics(statistics) if statistics else {}
        latency = latency_ms if latency_ms is None else validation.parse_number(latency_ms, "latency_ms")
        name = source if source is None else image_name(source)
        self._writer.put(LoggedPrediction(number, moment, model, scores, values, latency, name))
        return format_id(number) if prediction_id is None else prediction_id

    def log_predictions(
        self,
        probabilities: ArrayLike | Sequence[Mapping[str, float]],
        *,
        statistics: Mapping[str, ArrayLike] | Sequence[Mapping[str, float] | None] | None = None,
        latency_ms: ArrayLike | None = None,
        prediction_ids: Sequence[str] | None = None,
        sources: Sequence[str | PathLike[str] | None] | None = None,
        model_version: str | None = None,
        times: ArrayLike | Sequence[TimeLike] | None = None,
    ) -> list[str]:
        """Log many answers at once, several times as fast as one by one; return their ids in the same order.

        Parameters
        ----------
        probabilities
            (N, K) in class order, or N mappings of class name to probability. NaN and infinity are counted apart.
        statistics
            Input statistics of the images: name to (N,) numbers, or N mappings of name to number.
        latency_ms
            (N,) milliseconds, or one number for all.
        prediction_ids
            N ids from ``new_prediction_id()``, when they were needed earlier.
        sources
            N names of the images, or None for those without one; see ``log_prediction``.
        model_version
            When another version than the served one answered, beside it.
        times
            (N,), when, each as in ``log_prediction``; now when None.

        Raises
        ------
        SettingsError
            When anything is of the wrong kind or number; it says which, and nothing is logged.
        UnknownPrediction
            When one of ``prediction_ids`` is no id; nothing is logged.
        StoreError
            As in ``log_prediction``; it says how many were logged.

        Examples
        --------
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> with ModelMonitor(folder.name + "/my.db", classes=["cat", "dog"]) as monitor:
        ...     ids = monitor.log_predictions([[0.9, 0.1], [0.2, 0.8]], sources=["1.jpg", "2.jpg"])
        ...     monitor.sources(ids[1:]) == {ids[1]: "2.jpg"}
        True
        >>> folder.cleanup()
        """
        now, first = self._clock(), validation.first_row(probabilities)
        if first is None:
            return []
        model = self._model_for(first, model_version)
        scores = validation.parse_many_probabilities(probabilities, model.classes)  # (N, K)
        n = len(scores)
        if prediction_ids is not None and len(prediction_ids) != n:
            raise SettingsError(f"{n:,} prediction ids are needed, got {len(prediction_ids):,}")
        columns = (
            [now] * n if times is None else to_timestamps(times, n),
            [model] * n,
            scores,
            validation.parse_many_statistics(statistics, n),
            validation.parse_numbers(latency_ms, n, "latency_ms"),
            [None] * n if sources is None else image_names(sources, n),
        )
        numbers = (
            new_id_numbers(now, n) if prediction_ids is None else [parse_prediction_id(one) for one in prediction_ids]
        )
        self._writer.put_many([LoggedPrediction(*row) for row in zip(numbers, *columns, strict=True)])
        return [format_id(number) for number in numbers]

    def record_feedback(self, prediction_id: str, label: str, *, source: str = "unspecified") -> bool:
        """Tell the true class of a prediction; the last one told counts, the earlier ones are kept.

        Parameters
        ----------
        label
            Name of the class.
        source
            Who says so. Those of a ``complaint`` count for nothing else; ``audit``, alone or before a name as in
            ``audit: ada``, says that the prediction was drawn at random, which the monitor adds itself to labels of
            what ``labels_wanted`` has drawn.

        Returns
        -------
        bool
            Whether this is news; telling the same label twice changes nothing.

        Raises
        ------
        UnknownPrediction
            When no prediction has that id.
        SettingsError
            When the model has no such class.
        """
        return self.record_feedback_many({prediction_id: label}, source=source) > 0

    def record_feedback_many(self, labels: Mapping[str, str], *, source: str = "unspecified") -> int:
        """Tell the true classes of many predictions in one go, all or none; return how many are news.

        Parameters
        ----------
        labels
            Prediction id to class name.
        source
            As in ``record_feedback``.
        """
        if not isinstance(labels, Mapping):
            raise SettingsError("labels must be a mapping of prediction ids to names of classes")
        if wrong := [label for label in labels.values() if not isinstance(label, str)]:
            raise SettingsError(f"a label must be the name of a class, got {wrong[0]!r}")
        truths = {parse_prediction_id(name): label for name, label in labels.items()}
        on_their_way = self._writer.stats()["queued"]
        try:
            changed = self._store.labels.insert(truths, source, self._clock())
        except UnknownPrediction:
            if not on_their_way:
                raise
            self.flush(REREAD_AFTER_S)
            changed = self._store.labels.insert(truths, source, self._clock())
        self._labels += changed
        if changed:
            self._writer.wake()  # perhaps it is time for another look
        return changed

    # Looking

    def calculate_metrics(self, window: str | None = None) -> dict[str, Any]:
        """Metrics of one window, or of all three by name when None; ready for JSON, unknown is None.

        Parameters
        ----------
        window
            ``short``, ``medium``, ``long`` or None.

        Returns
        -------
        dict
            The fields of ``WindowMetrics``, each explained there.
        """
        if window is not None:
            return self.window_metrics(window).to_dict()
        view = self._refreshed()
        return {name: self._measured(view, name).to_dict() for name in WINDOWS}

    def window_metrics(self, window: str = "short") -> WindowMetrics:
        """Metrics of one window, as an object."""
        window_size(window)
        return self._measured(self._refreshed(), window)

    def detect_drift(self, window: str | None = "short") -> DriftReport:
        """Compare a window with the baseline, or all three when None; looking changes nothing.

        Returns
        -------
        DriftReport
            One result a test; printed, it is a table.
        """
        names = list(WINDOWS) if window is None else [window]
        for name in names:
            window_size(name)
        view = self._refreshed()
        results = [
            result for name in names for result in run_tests(view.counts(name), view.bins, view.thresholds, name)
        ]
        if len(names) > 1:  # as many more tests to correct for
            families = [[result for result in results if result.family == family] for family in ("model", "input")]
            results = [result for family in families for result in correct_and_decide(family, view.thresholds.alpha)]
        version = view.model.version if view.model.classes else None
        return DriftReport(version, view.thresholds.alpha, tuple(results))

    def labels_wanted(self, n: int | None = None, window: str = "short", seed: int = 0) -> list[str]:
        """Ids of predictions, drawn at random, whose labels would settle how good the model is by now.

        The same window and seed give the same ids, in a random order, and a longer list begins with a
        shorter one. Predictions that have a label keep their place in that order and are left out of the
        list: with the labels of the list, all up to its end are labelled, which is a fair sample. The store
        remembers what was drawn, and keeps the labels of these predictions with the source ``audit``: they
        may confirm an alert that is ``immediate``, which labels of another choice may not. Labels of
        complaints count for nothing.

        Parameters
        ----------
        n
            How many; when None those that are missing among as many as prove a drop of a fifth. Never more
            than there are.
        window
            ``short`` or ``medium``, of which they are drawn.
        seed
            Another one gives others.

        Returns
        -------
        list of str
            The ids in the order in which to label them; ``sources`` tells of which images they are.
        """
        size = window_size(window)
        if size is None:
            raise SettingsError("labels are wanted of the short or the medium window")
        view = self._refreshed()
        rows = self._store.window(view.model, size, statistics=False)
        ids = rows.ids[rows.finite]
        if n is not None and n < 1:
            raise SettingsError(f"at least 1 label can be wanted, got {n}")
        if not len(ids):
            return []
        usual = view.bins.reference
        enough = (
            labels_to_confirm(usual.n_correct / usual.n, 0.2, view.thresholds)
            if usual and usual.n_correct
            else len(ids)
        )
        order = sample_for_labelling(ids, len(ids), seed)[: enough if n is None else None]
        missing = np.flatnonzero(~np.isin(order, rows.ids[rows.labelled]))[:n]
        drawn = order if n is None or len(missing) < n else order[: missing[-1] + 1]
        try:
            self._store.labels.insert_drawn(drawn.tolist(), self._clock())
        except StoreError as error:  # a reader without the right to write
            logger.warning("what was drawn could not be noted, tell its labels with the source audit: %s", error)
        return [format_id(number) for number in order[missing].tolist()]

    def sources(self, prediction_ids: Sequence[str]) -> dict[str, str]:
        """The names that the images of predictions were logged with, by id; those without one are left out."""
        self._refresh()
        found = self._store.sources([parse_prediction_id(name) for name in prediction_ids])
        return {format_id(number): name for number, name in found.items()}

    def check_alerts(self) -> list[Alert]:
        """Evaluate now what is new in the store, and return the alerts that this raised.

        The process that logs does the same by itself after every 100 predictions or labels, and when it
        ends; what it has raised already is in ``alerts()``.
        """
        self._refresh()
        model = self._read_model()
        return self._worker.evaluate_now(model) if model else []

    def alerts(self, since: TimeLike | None = None, level: str | None = None) -> list[Alert]:
        """Alerts of all model versions, newest first; those that no longer stand have a ``cleared_at``.

        Each has ``sources``, the names of a few images that it is about, as far as they were logged with one.

        Parameters
        ----------
        since
            Only those raised at or after this time: ISO 8601 such as ``2026-11-24T08:00Z`` (UTC unless it
            says otherwise), a datetime (local unless it says otherwise), or seconds since 1970.
        level
            Only those of this level or a worse one: ``warning``, ``critical`` or ``immediate``.

        Raises
        ------
        SettingsError
            When ``since`` is no time, or there is no such level.
        """
        least = Thresholds.severity(level) if level is not None else 0
        start = None if since is None else to_timestamp(since)
        self._refresh()
        return [alert for alert in self._store.alerts.find(since=start) if Thresholds.severity(alert.level) >= least]

    def plot_metrics(self, metric: str = "accuracy") -> "Figure":
        """Draw a metric of the version being looked at.

        Parameters
        ----------
        metric
            ``accuracy``, ``confidence``, ``predictions``, ``volume`` or ``inputs`` over time; ``drift`` of the
            three windows, ``calibration`` of the medium one.

        Returns
        -------
        matplotlib.figure.Figure
            Shown by a notebook as it is; ``figure.savefig("accuracy.png")`` keeps it.
        """
        # matplotlib takes as long to import as all the rest together
        from toolkit.monitoring.plots import over_time, snapshot, style
        from toolkit.monitoring.plots.timeline import timeline

        if metric not in PLOTS:
            raise SettingsError(f"there is no figure of {metric!r}; there are {suggest(PLOTS, metric)}")
        view = self._refreshed()
        if view.model is NO_MODEL:
            return style.no_data()
        if metric == "drift":
            return snapshot.drift(self.detect_drift(None))
        version, bins = view.model.version, view.bins
        if metric == "calibration":
            return snapshot.calibration(version, view.counts("medium"), bins)
        line, now, alerts = (
            timeline(*view.history(), bins),
            view.counts("short"),
            self._store.alerts.find(view.model),
        )
        if metric == "accuracy":
            return over_time.accuracy(version, line, now, bins, view.thresholds, alerts)
        if metric == "volume":
            return over_time.volume(version, line, alerts)
        if metric == "inputs":
            return over_time.inputs(version, line, bins, self.detect_drift(None))
        draw = over_time.confidence if metric == "confidence" else over_time.predictions
        return draw(version, line, now, bins, alerts)

    def export(self, path: str | Path, since: TimeLike | None = None, *, probabilities: bool = False) -> int:
        """Write the predictions of the version being looked at to a Parquet or CSV file; return how many there are.

        Parameters
        ----------
        path
            Ends in ``.parquet`` or ``.csv``; it is there when it is complete.
        since
            Only those made at or after this time, as in ``alerts``.
        probabilities
            Whether each class gets a column.

        Raises
        ------
        SettingsError
            When the file is of another kind, or ``since`` is no time.
        StoreError
            When the store holds no predictions, or the file cannot be written.
        """
        start = None if since is None else to_timestamp(since)
        self._refresh()
        return export(self._store, path, self._read_model(), since=start, probabilities=probabilities)

    # Running

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was logged so far is stored or lost; return False when time ran out."""
        return self._writer.flush(timeout)

    def close(self) -> None:
        """Store and send what is waiting and let go of the store; harmless to repeat."""
        self._writer.close()
        if self._served is not None:
            self._worker.finish(self._served)
        self._notifiers.close()
        self._store.close()

    def writer_stats(self) -> dict[str, int]:
        """Counts of this process: ``queued``, ``written``, ``dropped``, ``lost``, ``write_errors``."""
        return self._writer.stats()

    def notification_stats(self) -> dict[str, dict[str, int]]:
        """Counts of this process by notifier: alerts ``sent``, ``failed``, ``dropped``."""
        return self._notifiers.stats()

    def report(self, metric: str, message: str, level: str = "warning") -> bool:
        """Raise an alert about what no window shows, such as a version that cannot be loaded.

        It stands until another version is served.

        Parameters
        ----------
        metric
            What it is about, in a word.
        message
            What happened, in a sentence.
        level
            ``warning``, ``critical`` or ``immediate``.

        Returns
        -------
        bool
            False when the same stands already.
        """
        if Thresholds.severity(level) == 0:
            raise SettingsError("an alert is a warning at least, got ok")
        model = self._read_model() or ModelVersion(UNNAMED_VERSION, ())
        self._store.versions.register(model)
        return self._worker.alerts.report(model, metric, level, message)

    def active_alert_states(self) -> dict[str, int]:
        """How many alerts stand at each level."""
        found = [alert.level for alert in self._store.alerts.find(active=True)]
        return {level: found.count(level) for level in LEVELS[1:]}

    def active_alerts(self) -> list[Alert]:
        """The alerts that have not been cleared, newest first, without waiting for what was just logged."""
        return self._store.alerts.find(active=True)

    @property
    def store_problem(self) -> str | None:
        """Why the store did not take what this process wrote last; None while it does."""
        return self._store_problem

    def acknowledge(self, alert_id: int, by: str = "") -> bool:
        """Note that somebody knows of an alert: it is told again only if it gets worse. False when it does not stand.

        Parameters
        ----------
        alert_id
            The ``id`` of one of ``alerts()``.
        by
            Who.
        """
        return self._store.alerts.update(alert_id, acknowledged_at=self._clock(), acknowledged_by=by)

    # Inside: which model

    def _named(self, version: str, baseline: Baseline | None, classes: Sequence[str] | None) -> ModelVersion:
        if baseline is not None and classes is not None and tuple(classes) != baseline.classes:
            raise SettingsError("the baseline has other classes than the model, or in another order")
        names = baseline.classes if baseline is not None else tuple(classes or ())
        if len(set(names)) != len(names) or not names:
            raise SettingsError(f"model version {version} needs class names that differ, got {suggest(names)}")
        if odd := [name for name in names if any("\ud800" <= letter <= "\udfff" for letter in name)]:
            raise SettingsError(f"the class name {display_name(odd[0])!r} is no text: it is not UTF-8")
        return ModelVersion(display_name(version), names, baseline, self._clock())

    def _model_for(self, probabilities: ArrayLike | Mapping[str, float], version: str | None) -> ModelVersion:
        """The model behind a prediction; classes that nobody named are called 0, 1, 2 ..."""
        served = self._served
        if served is None:
            names = list(probabilities) if isinstance(probabilities, Mapping) else range(np.size(probabilities))
            fresh = self._named(
                self._requested_version or version or UNNAMED_VERSION, None, [str(name) for name in names]
            )
            served = self._served = replace(self._seen, served_at=self._clock()) if self._seen else fresh
        if version is None or version == served.version:
            return served
        return self._secondary_models.setdefault(version, ModelVersion(version, served.classes))

    def _read_model(self) -> ModelVersion | None:
        """The model to look at: what this process serves, what was asked for, or what the store says."""
        if self._served is not None:
            return self._served
        if self._requested_version is None:
            return self._store.versions.current(self._seen)
        found = self._store.versions.get(self._requested_version)
        if found is None and (versions := self._store.versions.names()):
            raise StoreError(
                f"there is no model version {self._requested_version} in the store {self._store}; "
                f"there are {suggest(versions, self._requested_version)}"
            )
        return found

    # Inside: reading

    def _refresh(self) -> None:
        """Let what this process has just logged be seen by what it reads next."""
        self._writer.flush(REREAD_AFTER_S)

    def _refreshed(self) -> StreamState:
        """The view of the model to look at, with all that was logged so far."""
        self._refresh()
        self._seen = model = self._read_model()
        return self._worker.stream(model or NO_MODEL).refresh()

    @staticmethod
    def _measured(view: StreamState, window: str) -> WindowMetrics:
        version = view.model.version if view.model.classes else None
        return window_metrics(view.counts(window), view.bins, view.thresholds, window, version, view.evidence)

    # Inside: writing and looking, in the writer's thread

    def _write(self, batch: Sequence[LoggedPrediction]) -> float | None:
        """Store a batch and look; what goes wrong is remembered, and the writer's to deal with."""
        try:
            pause = self._stored(batch)
        except Exception as error:
            self._store_problem = first_line(error)
            raise
        self._store_problem = None
        return pause

    def _stored(self, batch: Sequence[LoggedPrediction]) -> float | None:
        model = self._unregistered
        if model is not None:
            self._store.versions.register(model)
            self._store.alerts.clear_others(model, self._clock())
            if self._unregistered is model:  # only now: what failed is tried again with the next batch
                self._unregistered = None
        if batch:
            self._repeated(len(batch) - self._store.write(batch))
        told, self._labels = self._labels, 0
        self._news += len(batch) + told
        if self._served is None:
            return None
        if self._writer.backlog >= BATCH and time.monotonic() - self._workers < STALE_AFTER_S:
            return 0.0  # what waits to be stored comes first
        news, self._news = self._news, 0
        pause = self._worker.after_write(self._served, news)
        self._workers = time.monotonic()
        return pause

    def _repeated(self, count: int) -> None:
        """Say, the first time, that ids were in the store already."""
        if count > 0 and not self._has_repeats:
            self._has_repeats = True
            logger.warning("%d predictions were not stored: the store has others with their ids already", count)


# The command line


def main() -> None:
    """Run the command line."""
    command = _typed()
    for kind, act in _ACTS.items():
        if isinstance(command, kind):
            act(command)
            return


def _print_report(command: _Report) -> None:
    thresholds = Thresholds(trust_labels=True) if command.trust_labels else None
    monitor = ModelMonitor(command.store, model_version=command.model_version, thresholds=thresholds)
    metrics, drift = monitor.window_metrics(command.window), monitor.detect_drift(command.window)
    standing = [alert for alert in monitor.active_alerts() if alert.model_version == metrics.model_version]
    worst = report.headline(standing, metrics, drift.drifted)
    if command.as_json:
        print(json.dumps({"headline": worst, "metrics": metrics.to_dict(), "drift": drift.to_dict()}, indent=2))
    elif not metrics.n:
        print(f"No predictions have been logged in {command.store} yet.")
    else:
        print(printable("\n".join([report.headline_text(worst), "", *report.metrics_text(metrics), "", str(drift)])))
    if command.plot is not None:
        try:
            monitor.plot_metrics(command.metric).savefig(command.plot)
        except (OSError, ValueError) as error:
            raise SettingsError(f"--plot {command.plot} cannot be written: {error}") from None


def _print_alerts(command: _Alerts) -> None:
    monitor = ModelMonitor(command.store)
    if command.acknowledge is not None:
        if not monitor.acknowledge(command.acknowledge, command.by):
            raise SettingsError(f"no alert {command.acknowledge} stands in {command.store}")
        print(f"alert {command.acknowledge} is acknowledged: it is told again only if it gets worse")
        return
    found = monitor.alerts(command.since, command.level)
    found = [alert for alert in found if command.model_version in (None, alert.model_version)]
    text = json.dumps([alert.to_dict() for alert in found], indent=2) if command.as_json else None
    print(text or printable(report.alerts_text(found)))


def _export(command: _Export) -> None:
    monitor = ModelMonitor(command.store, model_version=command.model_version)
    rows = monitor.export(command.file, command.since, probabilities=command.probabilities)
    print(f"{rows:,} prediction{'s' * (rows != 1)} written to {command.file}")


def _print_labels_wanted(command: _Labels) -> None:
    monitor = ModelMonitor(command.store, model_version=command.model_version)
    wanted = monitor.labels_wanted(command.count, command.window, command.seed)
    names = monitor.sources(wanted)
    if wanted:
        print("\n".join(f"{one}  {names[one]}" if one in names else one for one in wanted))
    elif monitor.window_metrics(command.window).n:
        print("nothing is left to label: those that would settle it have labels already", file=sys.stderr)
    else:
        print(f"No predictions have been logged in {command.store} yet.", file=sys.stderr)


def _replay(command: _Replay) -> None:
    names = ("max_false_alarms_per_million", "warning", "critical", "immediate")
    thresholds = Thresholds(
        **{name: getattr(command, name) for name in names},
        trust_labels=command.trust_labels,
        ignore=Thresholds.parse_ignore(command.ignore),
    )
    recorded = command.file.endswith(ENDINGS)
    baseline = _baseline(command) if recorded or command.baseline else None  # a store brings its own
    with muted(command.as_json):
        result = replay(command.file, baseline, thresholds, model_version=command.model_version)
    print(json.dumps(result.to_dict(), indent=2) if command.as_json else result)


def _baseline(command: _Replay) -> Baseline | None:
    if command.baseline is None:
        store = PredictionStore(command.store)
        model = store.versions.get(command.model_version) if command.model_version else store.versions.current()
        return model.baseline if model else None
    try:
        return Baseline.from_bytes(command.baseline.read_bytes())
    except OSError as error:
        raise SettingsError(f"--baseline {command.baseline} cannot be read: {error.strerror}") from None


_ACTS: dict[type, Callable[[Any], None]] = {
    _Report: _print_report,
    _Alerts: _print_alerts,
    _Labels: _print_labels_wanted,
    _Export: _export,
    _Replay: _replay,
}


if __name__ == "__main__":
    run_script(main)
