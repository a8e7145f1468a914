"""Watch a model at work: log what it predicts, measure it, notice when it drifts, say so.

    python monitoring.py report                       # figures and drift tests, last 1,000 predictions
    python monitoring.py report --figure report.png   # and the accuracy over time as a picture
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
    name = monitor.log_prediction(probabilities)      # never waits for the disk
    monitor.record_feedback(name, "cat")              # now, or days later

Everything is kept in one SQL store, ``monitoring.db`` in the working directory unless
``--store`` or MONITORING_STORE says otherwise. Reading never changes it.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_settings import CliPositionalArg, CliSubCommand

from toolkit.errors import SettingsError, StoreError, UnknownPrediction, known
from toolkit.monitoring.limits import LEVELS, Limits
from toolkit.settings import ScriptSettings, environment, parse, read_first, run_script, verb


class MonitorSettings(ScriptSettings):
    """Which store, and which model version in it."""

    model_config = environment("MONITORING_")

    store: str = Field(default="sqlite:///monitoring.db", description="SQLAlchemy URL, or path of an SQLite file")
    model_version: str | None = Field(
        default=None, description="which version to look at; the one served last when not given"
    )


def _point_in_time(text: object) -> object:
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else text
    except ValueError:
        raise ValueError(f"must be a time such as 2026-11-24T08:00Z, got {text}") from None


class _Report(MonitorSettings):
    """Figures of a window and the drift tests on it."""

    window: Literal["short", "medium", "long"] = Field("short", description="last 1,000, last 10,000 or all")
    figure: Path | None = Field(None, description="save a figure as this picture")
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
    """Ids of predictions, drawn at random, whose labels would settle how good the model is."""

    count: int | None = Field(None, ge=1, description="how many; as many as prove a drop of a fifth when not given")
    window: Literal["short", "medium"] = Field("short", description="of the last 1,000 or the last 10,000")
    seed: int = Field(0, ge=0, description="another one gives others")


class _Replay(MonitorSettings):
    """What would have been raised, had the limits been others."""

    file: CliPositionalArg[str] = Field(description="a .parquet or .csv file as export writes it, or a store")
    baseline: Path | None = Field(None, description="baseline.npz of the model; that in the store when not given")
    max_false_alarms_per_million: float = Field(
        Limits.max_false_alarms_per_million, description="alerts without a cause in a million predictions"
    )
    warning: float = Field(Limits.warning, description="relative drop of accuracy above which this level begins")
    critical: float = Field(Limits.critical, description="the same for this level")
    immediate: float = Field(Limits.immediate, description="the same for this level")
    as_json: bool = Field(False, validation_alias="json", description="print JSON instead of text")


class _Commands(ScriptSettings):
    model_config = environment("MONITORING_")

    report: CliSubCommand[_Report] = Field(description="figures of a window and the drift tests on it")
    alerts: CliSubCommand[_Alerts] = Field(description="what has gone wrong, newest first")
    labels: CliSubCommand[_Labels] = Field(description="which predictions to label, to know how good the model is")
    export: CliSubCommand[_Export] = Field(description="one row a prediction, as a Parquet or CSV file")
    replay: CliSubCommand[_Replay] = Field(description="what would have been raised, had the limits been others")


def _typed() -> BaseModel:
    """What to do, by the command line and the environment."""
    command = verb(parse(_Commands, __doc__))
    if command is None:
        raise SettingsError("say what to do: report, alerts, labels, export or replay; see --help")
    return command


if __name__ == "__main__":  # --help and what is mistyped are answered before what takes long to import
    read_first(_typed)

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toolkit.baseline import Baseline
from toolkit.monitoring import wording
from toolkit.monitoring.attendant import Attendant
from toolkit.monitoring.audit import audit, labels_to_settle
from toolkit.monitoring.drift import DriftReport, compare, judge
from toolkit.monitoring.export import ENDINGS, export
from toolkit.monitoring.figures import measure
from toolkit.monitoring.ids import new_number, new_prediction_id, parse_prediction_id, show
from toolkit.monitoring.replay import replay
from toolkit.monitoring.sinks import Log, Notice, Sink, Sinks
from toolkit.monitoring.store import Model, Prediction, PredictionStore
from toolkit.monitoring.view import View
from toolkit.monitoring.webhook import Webhook
from toolkit.monitoring.windows import WINDOWS, window_size
from toolkit.monitoring.writer import Writer
from toolkit.terminal import silent

if TYPE_CHECKING:  # see plot_metrics
    from matplotlib.figure import Figure

__all__ = [
    "DriftReport",
    "Limits",
    "Log",
    "ModelMonitor",
    "MonitorSettings",
    "Notice",
    "Sink",
    "Webhook",
    "new_prediction_id",
]

logger = logging.getLogger(__name__)

UNNAMED_VERSION = "unversioned"  # of a model that is logged without a name
SUM_TOLERANCE = 0.02  # bfloat16 has 8 bits: probabilities of a hundred classes add up to 1 within 1 %
FEW_CLASSES = 40  # up to which Python's own min and sum are faster than numpy's
READ_AFTER_SECONDS = 5.0  # how long a reader waits for predictions that are still in the queue
FIGURES = ("accuracy", "confidence", "predictions", "drift", "calibration", "volume", "inputs")
NOBODY = Model("", ())  # of an empty store


class ModelMonitor:
    """Log predictions and their true labels; measure quality, detect drift, raise alerts.

    Thread-safe. Logging hands over to a thread of its own and never waits for the disk; whatever
    goes wrong with the store is counted in ``stats()`` and never felt by the caller. Windows are
    the last 1,000 predictions (``short``), the last 10,000 (``medium``) and all (``long``) of one
    model version.

    Parameters
    ----------
    store
        SQLAlchemy URL or path of an SQLite file; MONITORING_STORE, else ``monitoring.db`` in the
        working directory, when None. It is created by the first prediction.
    baseline
        What the model did on pictures it had never seen, kept in the store for whoever reads it.
    model_version
        Name of the version that is logged or looked at. When None: "unversioned" for a monitor
        that was given a baseline or classes, else the version served last according to the store.
    classes
        Class names in output order; the baseline's when None.
    limits
        What counts as too much, and how many false alarms may be raised.
    sinks
        Where alerts are sent beside the store, each by its name: the log when None; a ``Webhook``, or a
        ``Sink`` of your own.
    on_immediate
        Called, in a thread of its own, with the ``Notice`` of an alert that is ``immediate`` and
        ``confirmed``; once until that has cleared.
    keep_days, keep_rows
        How long single predictions are kept, in days and in predictions of a version, never fewer than
        10,000. Counts of a thousand each are kept for good.
    clock
        Seconds since 1970.

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
        limits: Limits | None = None,
        sinks: Mapping[str, Sink] | None = None,
        on_immediate: Callable[[Notice], object] | None = None,
        keep_days: float | None = None,
        keep_rows: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self.limits = limits or Limits()
        self._store = PredictionStore(str(store) if store is not None else MonitorSettings().store)
        self._writer: Writer[Prediction] = Writer(self._write)
        self._sinks = Sinks({"log": Log()} if sinks is None else sinks, on_immediate)
        self._attendant = Attendant(self._store, self.limits, clock, self._sinks, keep_days, keep_rows)
        self._labels = 0  # told in this process since the writer was last told of them
        self._unregistered: Model | None = None  # went into service and is not in the store yet
        self._beside: dict[str, Model] = {}  # versions that answer beside the served one
        self._wanted = model_version
        self._served: Model | None = None  # what this process serves
        self._seen: Model | None = None  # what the store says is served, to a monitor that only looks
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
        return model.version if model else self._wanted

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
        self._writer.poke()

    # Logging

    def log_prediction(
        self,
        probabilities: ArrayLike | Mapping[str, float],
        *,
        statistics: Mapping[str, float] | None = None,
        latency_ms: float | None = None,
        prediction_id: str | None = None,
        model_version: str | None = None,
        time: float | None = None,
    ) -> str:
        """Log one answer of the model; return its id, under which the true label can be told later.

        Parameters
        ----------
        probabilities
            (K,) in class order, or class name to probability. NaN and infinity are counted apart.
        statistics
            Input statistics of the picture, name to number.
        latency_ms
            How long the answer took, in milliseconds.
        prediction_id
            From ``new_prediction_id()``, when the id was needed earlier.
        model_version
            When another version than the served one answered, beside it.
        time
            When, in seconds since 1970; now when None.

        Raises
        ------
        SettingsError
            When these are no probabilities of the model's classes.
        UnknownPrediction
            When ``prediction_id`` is no id.
        """
        now = self._clock()
        number = new_number(now) if prediction_id is None else parse_prediction_id(prediction_id)
        model = self._answering(probabilities, model_version)
        scores = _checked(probabilities, model.classes)
        moment = now if time is None else time
        self._writer.put(Prediction(number, moment, model, scores, dict(statistics or {}), latency_ms))
        return show(number) if prediction_id is None else prediction_id

    def record_feedback(self, prediction_id: str, label: str, *, source: str = "unspecified") -> bool:
        """Tell the true class of a prediction; the last one told counts, the earlier ones are kept.

        Parameters
        ----------
        label
            Name of the class.
        source
            Who says so. Labels from complaints make a model look worse than labels drawn at random.

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
        truths = {parse_prediction_id(name): label for name, label in labels.items()}
        on_their_way = self._writer.stats()["queued"]
        try:
            changed = self._store.label(truths, source, self._clock())
        except UnknownPrediction:
            if not on_their_way:
                raise
            self.flush(READ_AFTER_SECONDS)
            changed = self._store.label(truths, source, self._clock())
        self._labels += changed
        if changed:
            self._writer.poke()  # perhaps it is time for another look
        return changed

    # Looking

    def calculate_metrics(self, window: str | None = None) -> dict[str, Any]:
        """Figures of one window, or of all three by name when None; ready for JSON, unknown is None.

        Parameters
        ----------
        window
            ``short``, ``medium``, ``long`` or None.

        Returns
        -------
        dict
            ``n``, ``n_labels``, ``since``, ``until``, ``accuracy``, ``precision_weighted``,
            ``recall_weighted``, ``f1_weighted``, ``calibration_error``, each with its ``..._interval``
            (95 %), ``reference_accuracy``, ``reference_n``, ``degradation``,
            ``degradation_lower_bound``, ``level``, ``status``, ``estimate`` (what accuracy may be, by no
            label), ``mean_confidence``, ``confidence_std``, ``class_shares``, ``non_finite``,
            ``latency_ms`` (``median``, ``p95``), ``predictions_per_second``, ``evidence`` (how far each
            alarm has come, by metric), ``window``, ``model_version``.
        """
        names = list(WINDOWS) if window is None else [window]
        for name in names:
            window_size(name)
        view = self._caught_up()
        figures = {
            name: {
                "model_version": view.model.version if view.model.classes else None,
                "window": name,
                **measure(view.counts(name), view.yardstick, self.limits),
                "evidence": view.evidence,
            }
            for name in names
        }
        return dict(figures) if window is None else figures[window]

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
        view = self._caught_up()
        results = [result for name in names for result in compare(view.counts(name), view.yardstick, self.limits, name)]
        if len(names) > 1:  # as many more tests to correct for
            families = [[result for result in results if result.family == family] for family in ("model", "input")]
            results = [result for family in families for result in judge(family, self.limits.alpha)]
        version = view.model.version if view.model.classes else None
        return DriftReport(version, self.limits.alpha, tuple(results))

    def labels_wanted(self, n: int | None = None, window: str = "short", seed: int = 0) -> list[str]:
        """Ids of predictions, drawn at random, whose labels would settle how good the model is by now.

        The same window and seed give the same ids, in a random order, and a longer list begins with a
        shorter one. Tell their labels with the source ``audit``.

        Parameters
        ----------
        n
            How many; as many as prove a drop of a fifth when None. Never more than there are.
        window
            ``short`` or ``medium``, of which they are drawn.
        """
        size = window_size(window)
        if size is None:
            raise SettingsError("labels are wanted of the short or the medium window")
        view = self._caught_up()
        rows = self._store.window(view.model, size, statistics=False)
        ids = rows.ids[rows.finite]
        usual = view.yardstick.reference
        if n is None:
            n = labels_to_settle(usual.right / usual.n, 0.2, self.limits) if usual and usual.right else len(ids)
        if n < 1:
            raise SettingsError(f"at least 1 label can be wanted, got {n}")
        return [show(number) for number in audit(ids, min(n, len(ids)), seed).ids.tolist()] if len(ids) else []

    def check_alerts(self) -> list[dict[str, Any]]:
        """Look now, at what is new since the last look, and return the alerts that this raised.

        The writer does the same by itself after every 100 predictions or labels.
        """
        self._catch_up()
        model = self._read_model()
        return self._attendant.look(model) if model else []

    def alerts(self, since: float | datetime | None = None, level: str | None = None) -> list[dict[str, Any]]:
        """Alerts of all model versions, newest first; those that no longer stand have a ``cleared_at``.

        Parameters
        ----------
        since
            Only those raised at or after this time, a datetime or seconds since 1970.
        level
            Only those of this level or a worse one: ``warning``, ``critical`` or ``immediate``.
        """
        least = Limits.severity(level) if level is not None else 0
        self._catch_up()
        start = since.timestamp() if isinstance(since, datetime) else since
        return [alert for alert in self._store.alerts(since=start) if Limits.severity(alert["level"]) >= least]

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
        from toolkit.monitoring import canvas, plots, snapshots
        from toolkit.monitoring.timeline import timeline

        if metric not in FIGURES:
            raise SettingsError(f"there is no figure of {metric!r}; there are {known(FIGURES, metric)}")
        view = self._caught_up()
        if view.model is NOBODY:
            return canvas.nothing()
        if metric == "drift":
            return snapshots.drift(self.detect_drift(None))
        version, yardstick = view.model.version, view.yardstick
        if metric == "calibration":
            return snapshots.calibration(version, view.counts("medium"), yardstick)
        line, now, alerts = timeline(*view.history(), yardstick), view.counts("short"), self._store.alerts(view.model)
        if metric == "accuracy":
            return plots.accuracy(version, line, now, yardstick, self.limits, alerts)
        if metric == "volume":
            return plots.volume(version, line, alerts)
        if metric == "inputs":
            return plots.inputs(version, line, yardstick, self.detect_drift(None))
        draw = plots.confidence if metric == "confidence" else plots.predictions
        return draw(version, line, now, yardstick, alerts)

    def export(self, path: str | Path, since: float | datetime | None = None, *, probabilities: bool = False) -> int:
        """Write the predictions of the version being looked at to a Parquet or CSV file; return how many there are.

        Parameters
        ----------
        path
            Ends in ``.parquet`` or ``.csv``; it is there when it is complete.
        since
            Only those made at or after this time, a datetime or seconds since 1970.
        probabilities
            Whether each class gets a column.

        Raises
        ------
        SettingsError
            When the file is of another kind.
        StoreError
            When it cannot be written.
        """
        self._catch_up()
        start = since.timestamp() if isinstance(since, datetime) else since
        return export(self._store, path, self._read_model(), since=start, probabilities=probabilities)

    # Running

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was logged so far is stored or lost; return False when time ran out."""
        return self._writer.flush(timeout)

    def close(self) -> None:
        """Store and send what is waiting and let go of the store; harmless to repeat."""
        self._writer.close()
        self._sinks.close()
        self._store.close()

    def stats(self) -> dict[str, int]:
        """Counts of this process: ``queued``, ``written``, ``dropped``, ``lost``, ``write_errors``."""
        return self._writer.stats()

    def sent(self) -> dict[str, dict[str, int]]:
        """Counts of this process by sink: alerts ``sent``, ``failed``, ``dropped``."""
        return self._sinks.stats()

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
        if Limits.severity(level) == 0:
            raise SettingsError("an alert is a warning at least, got ok")
        model = self._read_model() or Model(UNNAMED_VERSION, ())
        self._store.register(model)
        return self._attendant.report(model, metric, level, message)

    def standing(self) -> dict[str, int]:
        """How many alerts stand at each level."""
        found = [alert["level"] for alert in self._store.alerts(standing=True)]
        return {level: found.count(level) for level in LEVELS[1:]}

    def acknowledge(self, alert_id: int, by: str = "") -> bool:
        """Note that somebody knows of an alert: it is told again only if it gets worse. False when it does not stand.

        Parameters
        ----------
        alert_id
            The ``id`` of one of ``alerts()``.
        by
            Who.
        """
        return self._store.note_alert(alert_id, acknowledged_at=self._clock(), acknowledged_by=by)

    # Inside: which model

    def _named(self, version: str, baseline: Baseline | None, classes: Sequence[str] | None) -> Model:
        if baseline is not None and classes is not None and tuple(classes) != baseline.classes:
            raise SettingsError("the baseline has other classes than the model, or in another order")
        names = baseline.classes if baseline is not None else tuple(classes or ())
        if len(set(names)) != len(names) or not names:
            raise SettingsError(f"model version {version} needs class names that differ, got {known(names)}")
        return Model(version, names, baseline, self._clock())

    def _answering(self, probabilities: ArrayLike | Mapping[str, float], version: str | None) -> Model:
        """The model behind a prediction; classes that nobody named are called 0, 1, 2 ..."""
        served = self._served
        if served is None:
            names = list(probabilities) if isinstance(probabilities, Mapping) else range(np.size(probabilities))
            fresh = self._named(self._wanted or version or UNNAMED_VERSION, None, [str(name) for name in names])
            served = self._served = replace(self._seen, served_at=self._clock()) if self._seen else fresh
        if version is None or version == served.version:
            return served
        return self._beside.setdefault(version, Model(version, served.classes))

    def _read_model(self) -> Model | None:
        """The model to look at: what this process serves, what was asked for, or what the store says."""
        if self._served is not None:
            return self._served
        if self._wanted is None:
            return self._store.current(self._seen)
        found = self._store.model(self._wanted)
        if found is None and (versions := self._store.versions()):
            raise StoreError(
                f"there is no model version {self._wanted} in the store {self._store}; "
                f"there are {known(versions, self._wanted)}"
            )
        return found

    # Inside: reading

    def _catch_up(self) -> None:
        """Let what this process has just logged be seen by what it reads next."""
        self._writer.flush(READ_AFTER_SECONDS)

    def _caught_up(self) -> View:
        """The view of the model to look at, with all that was logged so far."""
        self._catch_up()
        self._seen = model = self._read_model()
        return self._attendant.view(model or NOBODY).catch_up()

    # Inside: writing and looking, in the writer's thread

    def _write(self, batch: Sequence[Prediction]) -> float | None:
        model = self._unregistered
        if model is not None:
            self._store.register(model)
            self._store.clear_others(model, self._clock())
            if self._unregistered is model:  # only now: what failed is tried again with the next batch
                self._unregistered = None
        if batch:
            self._store.write(batch)
        told, self._labels = self._labels, 0
        return self._attendant.attend(self._served, len(batch) + told) if self._served else None


def _checked(probabilities: ArrayLike | Mapping[str, float], classes: tuple[str, ...]) -> NDArray[np.float16]:
    """Probabilities in class order, rounded as they are stored: (K,) float16."""
    if isinstance(probabilities, Mapping):
        if probabilities.keys() != set(classes):
            raise SettingsError(f"probabilities of {known(probabilities)} given; the classes are {known(classes)}")
        probabilities = [probabilities[name] for name in classes]
    try:
        values = np.asarray(probabilities)
        values = values if values.dtype.kind == "f" else values.astype(np.float64)
    except (TypeError, ValueError):
        raise SettingsError("probabilities must be numbers") from None
    if values.shape != (len(classes),):
        raise SettingsError(f"{len(classes)} probabilities are needed, one for each class, got shape {values.shape}")
    if len(values) <= FEW_CLASSES:
        row = values.tolist()
        least, total = min(row), sum(row)
    else:
        least, total = np.minimum.reduce(values), np.add.reduce(values)
    if not (least >= 0 and abs(total - 1) <= SUM_TOLERANCE):  # NaN and infinity do not pass either
        _require_strange(values)
    return values.astype(np.float16)


def _require_strange(values: NDArray[Any]) -> None:
    """Numbers that are no probabilities are refused; what is not finite is counted."""
    if not np.isfinite(values).all():
        return
    if values.min() < 0 or values.max() > 1 + SUM_TOLERANCE:
        worst = values.min() if values.min() < 0 else values.max()
        raise SettingsError(f"probabilities must lie between 0 and 1, got {worst:.4g}: are these logits?")
    raise SettingsError(f"probabilities must add up to 1, got {values.sum():.4g}")


# The command line


def main() -> None:
    """Run the command line."""
    command = _typed()
    for kind, act in _ACTS.items():
        if isinstance(command, kind):
            act(command)
            return


def _print_report(command: _Report) -> None:
    monitor = ModelMonitor(command.store, model_version=command.model_version)
    metrics, drift = monitor.calculate_metrics(command.window), monitor.detect_drift(command.window)
    if command.as_json:
        print(json.dumps({"metrics": metrics, "drift": drift.to_dict()}, indent=2))
    elif not metrics["n"]:
        print(f"No predictions have been logged in {command.store} yet.")
    else:
        print("\n".join([*wording.figures(metrics), "", str(drift)]))
    if command.figure is not None:
        try:
            monitor.plot_metrics(command.metric).savefig(command.figure)
        except (OSError, ValueError) as error:
            raise SettingsError(f"--figure {command.figure} cannot be written: {error}") from None


def _print_alerts(command: _Alerts) -> None:
    monitor = ModelMonitor(command.store)
    if command.acknowledge is not None:
        if not monitor.acknowledge(command.acknowledge, command.by):
            raise SettingsError(f"no alert {command.acknowledge} stands in {command.store}")
        print(f"alert {command.acknowledge} is acknowledged: it is told again only if it gets worse")
        return
    since = command.since.replace(tzinfo=command.since.tzinfo or UTC) if command.since else None
    found = monitor.alerts(since, command.level)
    found = [alert for alert in found if command.model_version in (None, alert["model_version"])]
    print(json.dumps(found, indent=2) if command.as_json else wording.alerts(found))


def _export(command: _Export) -> None:
    monitor = ModelMonitor(command.store, model_version=command.model_version)
    since = command.since.replace(tzinfo=command.since.tzinfo or UTC) if command.since else None
    rows = monitor.export(command.file, since, probabilities=command.probabilities)
    print(f"{rows:,} prediction{'s' * (rows != 1)} written to {command.file}")


def _print_labels_wanted(command: _Labels) -> None:
    monitor = ModelMonitor(command.store, model_version=command.model_version)
    print("\n".join(monitor.labels_wanted(command.count, command.window, command.seed)))


def _replay(command: _Replay) -> None:
    names = ("max_false_alarms_per_million", "warning", "critical", "immediate")
    limits = Limits(**{name: getattr(command, name) for name in names})
    recorded = command.file.endswith(ENDINGS)
    baseline = _baseline(command) if recorded or command.baseline else None  # a store brings its own
    with silent(command.as_json):
        result = replay(command.file, baseline, limits, model_version=command.model_version)
    print(json.dumps(result.to_dict(), indent=2) if command.as_json else result)


def _baseline(command: _Replay) -> Baseline | None:
    if command.baseline is None:
        store = PredictionStore(command.store)
        model = store.model(command.model_version) if command.model_version else store.current()
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
