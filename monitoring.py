"""Watch a model at work: log what it predicts, measure it, detect drift, raise alerts.

    python monitoring.py report                       # metrics and drift tests, last 1,000 predictions
    python monitoring.py report --plot report.png     # and the accuracy over time as an image
    python monitoring.py alerts --level critical      # newest first
    python monitoring.py labels                       # which predictions to label
    python monitoring.py export predictions.parquet   # one row per prediction
    python monitoring.py replay predictions.parquet --max-false-alarms-per-million 10
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

Everything is kept in one SQL database, ``monitoring.db`` in the working directory unless
``--store`` or MONITORING_STORE names another. Reading never changes it; ``labels`` stores the drawn sample.
"""

from toolkit.cli.startup import begin_imports

if __name__ == "__main__":
    begin_imports()

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_settings import CliPositionalArg, CliSubCommand, CliSuppress

from toolkit.cli.settings import ScriptSettings, environment, parse, read_first, run_script, subcommand
from toolkit.errors import PredictionStoreError, SettingsError, UnknownPrediction, suggest
from toolkit.monitoring.base.thresholds import LEVELS, Thresholds
from toolkit.monitoring.base.timestamps import TimeLike, to_timestamp, to_timestamps

IGNORE = "comma-separated metrics that raise no alert; METRIC/short for one window"


class MonitorSettings(ScriptSettings):
    """The store, and the model version in it."""

    model_config = environment("MONITORING_")

    store: str = Field(default="sqlite:///monitoring.db", description="SQLAlchemy URL, or path of an SQLite file")
    model_version: str | None = Field(default=None, description="version to read; the one served last when not given")
    trust_labels: bool = Field(default=False, description="count all labels as those of a random sample")
    ignore: CliSuppress[str] = Field(default="", description=IGNORE)


def _point_in_time(text: Any) -> object:
    try:
        return None if text is None else datetime.fromtimestamp(to_timestamp(text, ""), UTC)
    except SettingsError as error:
        raise ValueError(str(error).strip()) from None


Plot = Literal["accuracy", "confidence", "predictions", "drift", "calibration", "volume", "inputs"]
_Time = Annotated[datetime | None, BeforeValidator(_point_in_time)]
_AsJson = Annotated[bool, Field(validation_alias="json", description="print JSON instead of text")]


class _Report(MonitorSettings):
    """Metrics and drift tests of a window."""

    window: Literal["short", "medium", "long"] = Field("short", description="last 1,000, last 10,000 or all")
    plot: Path | None = Field(None, description="save a plot as this image file")
    metric: Plot = Field("accuracy", description="metric of the plot")
    as_json: _AsJson = False


class _Alerts(MonitorSettings):
    """Alerts, newest first."""

    level: Literal["warning", "critical", "immediate"] | None = Field(None, description="this level or worse")
    since: _Time = Field(None, description="raised at or after this time, such as 2026-11-24T08:00Z")
    acknowledge: int | None = Field(None, ge=1, description="id of an alert whose reminders are to stop")
    by: str = Field("", description="name of the person who acknowledges it")
    as_json: _AsJson = False


class _Export(MonitorSettings):
    """Predictions as a Parquet or CSV file, one row each."""

    file: CliPositionalArg[Path] = Field(description="output file, .parquet or .csv")
    since: _Time = Field(None, description="made at or after this time, such as 2026-11-24T08:00Z")
    probabilities: bool = Field(False, description="a column for each class")


class _Labels(MonitorSettings):
    """Ids of unlabelled predictions, drawn at random, whose labels would show how good the model is.

    Each id is followed by the name of its image, if it was logged with one.
    """

    count: int | None = Field(
        None, ge=1, description="how many; as many as are missing to confirm a drop of a fifth when not given"
    )
    window: Literal["short", "medium"] = Field("short", description="the last 1,000 or the last 10,000")
    seed: int = Field(0, ge=0, description="seed of the random order")


class _Replay(MonitorSettings):
    """Alerts of a recorded stream under other thresholds."""

    file: CliPositionalArg[str] = Field(description="a .parquet or .csv file from export, or a store")
    baseline: Path | None = Field(None, description="baseline.npz of the model; the one in the store when not given")
    max_false_alarms_per_million: float = Field(
        Thresholds.max_false_alarms_per_million, description="budget of false alarms in a million predictions"
    )
    warning: float = Field(Thresholds.warning, description="relative drop of accuracy above which this level begins")
    critical: float = Field(Thresholds.critical, description="the same for this level")
    immediate: float = Field(Thresholds.immediate, description="the same for this level")
    ignore: str = Field("", description=IGNORE)
    as_json: _AsJson = False


class _Commands(ScriptSettings):
    model_config = environment("MONITORING_")

    report: CliSubCommand[_Report] = Field(description="metrics and drift tests of a window")
    alerts: CliSubCommand[_Alerts] = Field(description="alerts, newest first")
    labels: CliSubCommand[_Labels] = Field(description="which predictions to label")
    export: CliSubCommand[_Export] = Field(description="predictions as a Parquet or CSV file")
    replay: CliSubCommand[_Replay] = Field(description="alerts of a recorded stream under other thresholds")


def _typed() -> BaseModel:
    """The subcommand, by the command line and the environment."""
    command = subcommand(parse(_Commands, __doc__))
    if command is None:
        raise SettingsError("a subcommand is required: report, alerts, labels, export, replay; see --help")
    return command


if __name__ == "__main__":  # --help and typing errors are answered before the slow imports
    read_first(_typed)

import numpy as np
from numpy.typing import ArrayLike

from toolkit.bundle.baseline import Baseline
from toolkit.cli.safe_names import printable
from toolkit.cli.terminal import muted
from toolkit.monitoring import report
from toolkit.monitoring.alerting.notifiers import LogNotifier, Notification, Notifier, Notifiers
from toolkit.monitoring.alerting.webhook import WebhookNotifier
from toolkit.monitoring.base import validation
from toolkit.monitoring.base.ids import format_id, new_id_numbers, new_prediction_id, parse_prediction_id
from toolkit.monitoring.base.image_names import image_name, image_names
from toolkit.monitoring.base.predictions import WINDOWS, window_size
from toolkit.monitoring.pipeline.model_selection import UNNAMED_VERSION, ModelSelection
from toolkit.monitoring.pipeline.prediction_logger import PredictionLogger
from toolkit.monitoring.pipeline.replay import replay
from toolkit.monitoring.pipeline.stream_state import StreamState
from toolkit.monitoring.pipeline.worker import MonitorConfig, MonitoringWorker
from toolkit.monitoring.stats.label_sampling import labels_to_confirm, sample_for_labelling
from toolkit.monitoring.store.alerts import Alert
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

CONFIRMED_DROP = 0.2  # relative drop of accuracy that the labels of ``labels_wanted`` confirm
REREAD_AFTER_S = 5.0  # how long a reader waits for predictions that are still in the queue
NO_MODEL = ModelVersion("", ())  # of an empty store


class ModelMonitor:
    """Logs predictions and their true labels, measures quality, detects drift and raises alerts.

    Thread-safe. Logged predictions go to a queue that a background thread writes in batches. Logging waits only while
    10,000 predictions are in the queue, so that a loop loses nothing however fast it is; with ``drop_when_full`` it
    never waits. ``writer_stats()`` counts what became of predictions. Windows are the last 1,000 predictions
    (``short``), the last 10,000 (``medium``) and all (``long``) of one model version.

    Parameters
    ----------
    store
        SQLAlchemy URL, or path of an SQLite file, which the first prediction creates. When None MONITORING_STORE, else
        ``monitoring.db`` in the working directory.
    baseline
        Answers of the model on held-out images, the reference of drift and degradation. It is kept in the store, so
        that readers need none. Without one only metrics are measured.
    model_version
        Name of the version that is logged or read. When None: "unversioned" for a monitor with a baseline or classes,
        else the version served last by the store.
    classes
        K class names in output order; the baseline's when None. Without either they are taken from the first
        prediction.
    thresholds
        Sizes at which drift and degradation matter, the budget of false alarms, whether all labels are trusted, and
        the ignored metrics. When None, MONITORING_TRUST_LABELS and MONITORING_IGNORE if one of them is set, else those
        of the process that logs the version, as kept in the store.
    config
        Receivers of alerts, how long predictions are kept, and whether logging may wait; see ``MonitorConfig``.

    Raises
    ------
    PredictionStoreError
        When the file or database is not a store of predictions, or cannot be opened.
    SettingsError
        When the classes are not distinct names, or differ from the baseline's.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with ModelMonitor(folder.name + "/my.db", classes=["cat", "dog"]) as monitor:
    ...     first = monitor.log_prediction([0.9, 0.1])
    ...     second = monitor.log_prediction({"dog": 0.7, "cat": 0.3})
    ...     monitor.record_feedback(second, "cat")
    ...     metrics = monitor.calculate_metrics("short")
    True
    >>> metrics["n"], metrics["n_labels"], metrics["accuracy"], metrics["class_shares"]
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
        config, given = config or MonitorConfig(), MonitorSettings()
        if thresholds is None and (given.trust_labels or given.ignore):
            thresholds = Thresholds(trust_labels=given.trust_labels, ignore=Thresholds.parse_ignore(given.ignore))
        self._clock = config.clock
        self._store = PredictionStore(given.store if store is None else str(store))
        self._models = ModelSelection(self._store, config.clock, model_version)
        self._notifiers = Notifiers(config.notifiers, config.on_immediate)
        self._worker = MonitoringWorker(self._store, thresholds, self._notifiers, config)
        self._logger = PredictionLogger(self._store, self._models, self._worker, config)
        if baseline is not None or classes is not None:
            self._models.serve(model_version, baseline, classes)
        else:
            self._models.current()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ModelMonitor({str(self._store)!r}, model_version={self.model_version!r})"

    @property
    def model_version(self) -> str | None:
        """Name of the version that is logged or read; None while the store is empty."""
        return self._models.version

    def serve(self, version: str, baseline: Baseline | None = None, classes: Sequence[str] | None = None) -> None:
        """Switch to another version, whose windows are its own; alerts of the version before clear.

        It does not wait for the store, so that no model switch is held up by monitoring.

        Parameters
        ----------
        version
            Name of the version.
        baseline, classes
            As in the constructor; one of them is needed.

        Raises
        ------
        SettingsError
            As in the constructor.
        """
        self._models.serve(version, baseline, classes)
        self._models.unregistered = self._models.served
        self._logger.queue.wake()

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
        """Log one prediction; return its id, with which its true label can be recorded later.

        Parameters
        ----------
        probabilities
            (K,) in class order, or class name to probability; each in [0, 1], together 1 within 0.01. NaN and infinity
            are counted as ``non_finite``.
        statistics
            Statistics of the image, such as ``brightness``: name to number.
        latency_ms
            Duration of the prediction in milliseconds.
        prediction_id
            From ``new_prediction_id()``, when the id was needed earlier; a new one when None.
        model_version
            Name of the version that predicted, when it is not the served one, such as a shadow.
        time
            Time of the prediction: seconds since 1970, a datetime, or ISO 8601; now when None.
        source
            Name of the image, to find it again: a file name, a URL, a content hash. It is kept as text of up to 256
            characters, with those that do not print escaped, and never opened.

        Returns
        -------
        str
            The id: 16 hex digits.

        Raises
        ------
        SettingsError
            When the probabilities do not fit the classes, or another value is of the wrong kind; nothing is logged.
        UnknownPrediction
            When ``prediction_id`` is no id.
        PredictionStoreError
            When the queue is full and the store has taken nothing for a minute; never with ``drop_when_full``.
        """
        now = self._clock()
        number = new_id_numbers(now, 1)[0] if prediction_id is None else parse_prediction_id(prediction_id)
        model = self._models.of_prediction(probabilities, model_version)
        scores = validation.parse_probabilities(probabilities, model.classes)
        moment = now if time is None else to_timestamp(time, "time")
        values = validation.parse_statistics(statistics) if statistics else {}
        latency = latency_ms if latency_ms is None else validation.parse_number(latency_ms, "latency_ms")
        name = source if source is None else image_name(source)
        self._logger.queue.put(LoggedPrediction(number, moment, model, scores, values, latency, name))
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
        """Log N predictions at once, several times as fast as one by one; return their ids in the same order.

        Parameters
        ----------
        probabilities
            (N, K) in class order, or N mappings of class name to probability; each row as in ``log_prediction``.
        statistics
            Statistics of the images: name to (N,) numbers, or N mappings of name to number.
        latency_ms
            (N,) milliseconds, or one number for all.
        prediction_ids
            N ids from ``new_prediction_id()``, when they were needed earlier; new ones when None.
        sources
            N names of images, or None for those without one.
        model_version
            Name of the version that predicted, when it is not the served one.
        times
            (N,) times, each as in ``log_prediction``; now when None.

        Returns
        -------
        list of str
            N ids.

        Raises
        ------
        SettingsError
            When a value is of the wrong kind or number: the message names it, and nothing is logged.
        UnknownPrediction
            When one of ``prediction_ids`` is no id; nothing is logged.
        PredictionStoreError
            As in ``log_prediction``; the message has the number of those logged.

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
        model = self._models.of_prediction(first, model_version)
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
        numbers = new_id_numbers(now, n) if prediction_ids is None else list(map(parse_prediction_id, prediction_ids))
        self._logger.queue.put_many([LoggedPrediction(*row) for row in zip(numbers, *columns, strict=True)])
        return [format_id(number) for number in numbers]

    def record_feedback(self, prediction_id: str, label: str, *, source: str = "unspecified") -> bool:
        """Record the true label of a prediction; the last one counts, earlier ones are kept.

        Parameters
        ----------
        prediction_id
            From ``log_prediction``.
        label
            Name of the true class.
        source
            Origin of the label. Labels of a ``complaint`` are kept, and count for nothing else. ``audit``, alone or
            before a name as in ``audit: ada``, states that the prediction was drawn at random; predictions drawn by
            ``labels_wanted`` get it by themselves.

        Returns
        -------
        bool
            Whether the label is new; recording the same one twice changes nothing.

        Raises
        ------
        UnknownPrediction
            When no prediction has that id.
        SettingsError
            When the model has no such class.
        """
        return self.record_feedback_many({prediction_id: label}, source=source) > 0

    def record_feedback_many(self, labels: Mapping[str, str], *, source: str = "unspecified") -> int:
        """Record the true labels of many predictions at once, all or none; return how many are new.

        Parameters
        ----------
        labels
            Prediction id to class name.
        source
            As in ``record_feedback``.

        Raises
        ------
        UnknownPrediction, SettingsError
            As in ``record_feedback``.
        """
        if not isinstance(labels, Mapping):
            raise SettingsError("labels must be a mapping of prediction ids to names of classes")
        if wrong := [label for label in labels.values() if not isinstance(label, str)]:
            raise SettingsError(f"a label must be the name of a class, got {wrong[0]!r}")
        truths = {parse_prediction_id(name): label for name, label in labels.items()}
        queued = self._logger.queue.stats()["queued"]
        try:
            changed = self._store.labels.insert(truths, source, self._clock())
        except UnknownPrediction:
            if not queued:
                raise
            self.flush(REREAD_AFTER_S)
            changed = self._store.labels.insert(truths, source, self._clock())
        self._logger.add_labels(changed)
        return changed

    # Reading

    def calculate_metrics(self, window: str | None = None) -> dict[str, Any]:
        """Metrics of a window, or of all three by name, ready for JSON.

        Parameters
        ----------
        window
            ``short``, ``medium``, ``long``, or None for all.

        Returns
        -------
        dict
            The fields of ``WindowMetrics``; None where unknown.

        Raises
        ------
        SettingsError
            When there is no such window.
        """
        if window is not None:
            return self.window_metrics(window).to_dict()
        view = self._refreshed()
        return {name: _window_metrics(view, name).to_dict() for name in WINDOWS}

    def window_metrics(self, window: str = "short") -> WindowMetrics:
        """Metrics of a window (``short``, ``medium`` or ``long``) as an object."""
        window_size(window)
        return _window_metrics(self._refreshed(), window)

    def detect_drift(self, window: str | None = "short") -> DriftReport:
        """Test a window against the baseline; a report changes nothing.

        Parameters
        ----------
        window
            ``short``, ``medium``, ``long``, or None for all, whose tests are corrected for together.

        Returns
        -------
        DriftReport
            A result for each test; printed, it is a table.

        Raises
        ------
        SettingsError
            When there is no such window.
        """
        names = list(WINDOWS) if window is None else [window]
        for name in names:
            window_size(name)
        view = self._refreshed()
        alpha = view.thresholds.alpha
        results = [
            result for name in names for result in run_tests(view.counts(name), view.bins, view.thresholds, name)
        ]
        if len(names) > 1:  # as many more tests to correct for
            families = [[result for result in results if result.family == family] for family in ("model", "input")]
            results = [result for family in families for result in correct_and_decide(family, alpha)]
        return DriftReport(view.model.version or None, alpha, tuple(results))

    def labels_wanted(self, n: int | None = None, window: str = "short", seed: int = 0) -> list[str]:
        """Ids of predictions, drawn at random, whose labels would show how good the model is now.

        The same window and seed give the same random order, and a longer list begins with a shorter one. Predictions
        with a label keep their place in the order and are left out of the list: once the list is labelled, all up to
        its end are, which is a fair sample. The store keeps what was drawn, and gives labels of these predictions the
        source ``audit``: unlike labels of another choice they may confirm an alert that is ``immediate``.

        Parameters
        ----------
        n
            Length of the list, at least 1; when None as many as are still missing to confirm a drop of a fifth. Never
            more than there are predictions without a label.
        window
            ``short`` or ``medium``.
        seed
            Seed of the order.

        Returns
        -------
        list of str
            Prediction ids in the order in which to label them; ``sources`` gives the names of their images.

        Raises
        ------
        SettingsError
            When ``n`` is below 1, or the window is another one.
        """
        size = window_size(window)
        if size is None:
            raise SettingsError(f"labels are wanted of the short or the medium window, got {window}")
        if n is not None and n < 1:
            raise SettingsError(f"at least 1 label can be wanted, got {n}")
        view = self._refreshed()
        rows = self._store.window(view.model, size, statistics=False)
        ids, reference = rows.ids[rows.finite], view.bins.reference
        if not len(ids):
            return []
        enough = len(ids)
        if reference and reference.n_correct:
            enough = labels_to_confirm(reference.n_correct / reference.n, CONFIRMED_DROP, view.thresholds)
        order = sample_for_labelling(ids, len(ids), seed)[: enough if n is None else None]
        missing = np.flatnonzero(~np.isin(order, rows.ids[rows.labelled]))[:n]
        drawn = order if n is None or len(missing) < n else order[: missing[-1] + 1]
        try:
            self._store.labels.insert_drawn(drawn.tolist(), self._clock())
        except PredictionStoreError as error:  # a reader without the right to write
            logger.warning("the drawn sample could not be stored, give its labels the source audit: %s", error)
        return [format_id(number) for number in order[missing].tolist()]

    def sources(self, prediction_ids: Sequence[str]) -> dict[str, str]:
        """Names of images, by prediction id.

        Parameters
        ----------
        prediction_ids
            Ids of predictions; those that were logged without a name are left out of the result.
        """
        self.flush(REREAD_AFTER_S)
        found = self._store.sources([parse_prediction_id(name) for name in prediction_ids])
        return {format_id(number): name for number, name in found.items()}

    def check_alerts(self) -> list[Alert]:
        """Evaluate now what is new in the store; return the alerts that this raised.

        The process that logs evaluates by itself after every 100 predictions or labels and when it ends, so that
        ``alerts()`` has its alerts already.
        """
        self.flush(REREAD_AFTER_S)
        model = self._models.current()
        return self._worker.evaluate_now(model) if model else []

    def alerts(self, since: TimeLike | None = None, level: str | None = None) -> list[Alert]:
        """Alerts of all model versions, active or cleared, newest first.

        Parameters
        ----------
        since
            Only those raised at or after this time: ISO 8601 such as ``2026-11-24T08:00Z`` (UTC without an offset), a
            datetime (local without a time zone), or seconds since 1970.
        level
            Only those of this level or a worse one: ``warning``, ``critical`` or ``immediate``.

        Returns
        -------
        list of Alert
            Cleared ones have a ``cleared_at``; ``sources`` names a few of the images.

        Raises
        ------
        SettingsError
            When ``since`` is no time, or there is no such level.
        """
        least = Thresholds.severity(level) if level is not None else 0
        start = None if since is None else to_timestamp(since)
        self.flush(REREAD_AFTER_S)
        return [alert for alert in self._store.alerts.find(since=start) if Thresholds.severity(alert.level) >= least]

    def active_alerts(self) -> list[Alert]:
        """The alerts that have not been cleared, newest first, without waiting for queued predictions."""
        return self._store.alerts.find(active=True)

    def active_alert_states(self) -> dict[str, int]:
        """Number of active alerts by level."""
        found = [alert.level for alert in self.active_alerts()]
        return {level: found.count(level) for level in LEVELS[1:]}

    def acknowledge(self, alert_id: int, by: str = "") -> bool:
        """Acknowledge an alert, which stops its reminders until it escalates; return whether it is active.

        Parameters
        ----------
        alert_id
            The ``id`` of an alert.
        by
            Name of the person.
        """
        return self._store.alerts.update(alert_id, acknowledged_at=self._clock(), acknowledged_by=by)

    def report(self, metric: str, message: str, level: str = "warning") -> bool:
        """Raise an alert that no window shows, such as a version that cannot be loaded.

        It is active until another version is served.

        Parameters
        ----------
        metric
            Its subject in a word.
        message
            What happened, in a sentence.
        level
            ``warning``, ``critical`` or ``immediate``.

        Returns
        -------
        bool
            False when the same alert is active already.

        Raises
        ------
        SettingsError
            When there is no such level.
        """
        if Thresholds.severity(level) == 0:
            raise SettingsError("an alert is a warning at least, got ok")
        model = self._models.current() or ModelVersion(UNNAMED_VERSION, ())
        self._store.versions.register(model)
        return self._worker.alerts.report(model, metric, level, message)

    def plot_metrics(self, metric: str = "accuracy") -> "Figure":
        """Plot a metric of the model version.

        Parameters
        ----------
        metric
            ``accuracy``, ``confidence``, ``predictions``, ``volume`` or ``inputs`` over time; ``drift`` of the three
            windows; ``calibration`` of the medium one.

        Returns
        -------
        matplotlib.figure.Figure
            A notebook shows it as it is; ``figure.savefig("accuracy.png")`` saves it.

        Raises
        ------
        SettingsError
            When there is no such plot.
        """
        from toolkit.monitoring.plots.metric_plot import metric_plot  # matplotlib takes as long as all other imports

        if metric not in get_args(Plot):
            raise SettingsError(f"there is no plot of {metric!r}; there are {suggest(get_args(Plot), metric)}")
        view = self._refreshed()
        alerts = self._store.alerts.find(view.model)
        return metric_plot(metric, view.model.version, view, alerts, lambda: self.detect_drift(None))

    def export(self, path: str | Path, since: TimeLike | None = None, *, probabilities: bool = False) -> int:
        """Write the predictions of the model version to a Parquet or CSV file; return their number.

        Parameters
        ----------
        path
            Ends in ``.parquet`` or ``.csv``; the file appears when it is complete.
        since
            Only those made at or after this time, as in ``alerts``.
        probabilities
            Whether each class gets a column.

        Raises
        ------
        SettingsError
            When the file is of another kind, or ``since`` is no time.
        PredictionStoreError
            When the store holds no predictions, or the file cannot be written.
        """
        start = None if since is None else to_timestamp(since)
        self.flush(REREAD_AFTER_S)
        return export(self._store, path, self._models.current(), since=start, probabilities=probabilities)

    # Running

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all logged predictions are stored or lost; return False after ``timeout`` seconds."""
        return self._logger.queue.flush(timeout)

    def close(self) -> None:
        """Store and send what is waiting, and close the store; closing again does nothing."""
        self._logger.queue.close()
        if self._models.served is not None:
            self._worker.finish(self._models.served)
        self._notifiers.close()
        self._store.close()

    def writer_stats(self) -> dict[str, int]:
        """Counts of this process: ``queued``, ``written``, ``dropped``, ``lost``, ``write_errors``."""
        return self._logger.queue.stats()

    def notification_stats(self) -> dict[str, dict[str, int]]:
        """Counts of this process by notifier: alerts ``sent``, ``failed``, ``dropped``."""
        return self._notifiers.stats()

    @property
    def store_problem(self) -> str | None:
        """Why the last write of this process failed; None when it succeeded."""
        return self._logger.queue.problem

    def _refreshed(self) -> StreamState:
        """The windows of the model version, with all that was logged so far."""
        self.flush(REREAD_AFTER_S)
        return self._worker.stream(self._models.current() or NO_MODEL).refresh()


def _window_metrics(view: StreamState, window: str) -> WindowMetrics:
    version = view.model.version or None
    return window_metrics(view.counts(window), view.bins, view.thresholds, window, version, view.evidence)


# The command line


def main() -> None:
    """Run the command line."""
    command = _typed()
    _ACTS[type(command)](command)


def _print_report(command: _Report) -> None:
    thresholds = Thresholds(trust_labels=True) if command.trust_labels else None
    monitor = ModelMonitor(command.store, model_version=command.model_version, thresholds=thresholds)
    metrics, drift = monitor.window_metrics(command.window), monitor.detect_drift(command.window)
    active = [alert for alert in monitor.active_alerts() if alert.model_version == metrics.model_version]
    headline = report.headline(active, metrics, drift.drifted)
    if command.as_json:
        found = {"headline": headline._asdict(), "metrics": metrics.to_dict(), "drift": drift.to_dict()}
        print(json.dumps(found, indent=2))
    elif not metrics.n:
        print(f"No predictions have been logged in {command.store} yet.")
    else:
        print(printable("\n".join([str(headline), "", *report.metrics_text(metrics), "", str(drift)])))
    if command.plot is not None:
        try:
            monitor.plot_metrics(command.metric).savefig(command.plot)
        except (OSError, ValueError) as error:
            raise SettingsError(f"--plot {command.plot} cannot be written: {error}") from None


def _print_alerts(command: _Alerts) -> None:
    monitor = ModelMonitor(command.store)
    if command.acknowledge is not None:
        if not monitor.acknowledge(command.acknowledge, command.by):
            raise SettingsError(f"no alert {command.acknowledge} is active in {command.store}")
        print(f"alert {command.acknowledge} is acknowledged: no reminders unless it escalates")
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
        print("nothing is left to label: enough of the sample is labelled already", file=sys.stderr)
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
    baseline = _baseline(command) if recorded or command.baseline else None  # a store has its own
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
