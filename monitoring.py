"""Watch a model at work: log what it predicts, measure it, notice when it drifts, say so.

    python monitoring.py report                       # figures and drift tests, last 1,000 predictions
    python monitoring.py report --figure report.png   # and the accuracy over time as a picture
    python monitoring.py alerts --level critical      # what has gone wrong, newest first
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
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BeforeValidator, Field
from pydantic_settings import CliSubCommand

from toolkit.baseline import Baseline
from toolkit.errors import SettingsError, StoreError, UnknownPrediction, known
from toolkit.monitoring.drift import DriftReport, compare, judge
from toolkit.monitoring.ids import new_prediction_id, parse_prediction_id
from toolkit.monitoring.limits import Limits
from toolkit.monitoring.lookout import FEWEST_NEWS, Lookout
from toolkit.monitoring.store import Model, Prediction, PredictionStore
from toolkit.monitoring.windows import WINDOWS, Window, measure, window_size
from toolkit.monitoring.writer import Writer
from toolkit.settings import ScriptSettings, environment, parse, run_script, verb

if TYPE_CHECKING:  # see plot_metrics
    from matplotlib.figure import Figure

__all__ = ["DriftReport", "Limits", "ModelMonitor", "MonitorSettings", "new_prediction_id"]

logger = logging.getLogger(__name__)

UNNAMED_VERSION = "unversioned"  # of a model that is logged without a name
SUM_TOLERANCE = 0.02  # bfloat16 has 8 bits: probabilities of a hundred classes add up to 1 within 1 %
READ_AFTER_SECONDS = 5.0  # how long a reader waits for predictions that are still in the queue
FIGURES = ("accuracy", "confidence", "predictions", "drift")


class MonitorSettings(ScriptSettings):
    """Which store, and which model version in it."""

    model_config = environment("MONITORING_")

    store: str = Field(default="sqlite:///monitoring.db", description="SQLAlchemy URL, or path of an SQLite file")
    model_version: str | None = Field(
        default=None, description="which version to look at; the one served last when not given"
    )


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
        What counts as too much.
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
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self.limits = limits or Limits()
        self._store = PredictionStore(str(store) if store is not None else MonitorSettings().store)
        self._writer: Writer[Prediction] = Writer(self._write)
        self._lookout = Lookout(self._store, self.limits, clock)
        self._news = 0  # predictions and labels of this process since the last automatic look
        self._counting = threading.Lock()
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
        name = prediction_id if prediction_id is not None else new_prediction_id(self._clock)
        number = parse_prediction_id(name)
        model = self._answering(probabilities, model_version)
        prediction = Prediction(
            id=number,
            time=self._clock() if time is None else time,
            model=model,
            probabilities=_checked(probabilities, model.classes),
            statistics=dict(statistics or {}),
            latency_ms=latency_ms,
        )
        self._writer.put(prediction)
        return name

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
        if self._count(changed):
            self._writer.poke()  # enough news for another look
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
            ``n``, ``n_labels``, ``since``, ``until``, ``accuracy``, ``accuracy_interval`` (95 %),
            ``precision_weighted``, ``recall_weighted``, ``f1_weighted``, ``reference_accuracy``,
            ``reference_n``, ``degradation``, ``degradation_lower_bound``, ``level``, ``status``,
            ``mean_confidence``, ``confidence_std``, ``class_shares``, ``non_finite``,
            ``latency_ms`` (``median``, ``p95``), ``predictions_per_second``, ``window``,
            ``model_version``.
        """
        names = list(WINDOWS) if window is None else [window]
        model, windows = self._read(names, statistics=False)
        baseline = model.baseline if model else None
        version = model.version if model else None
        figures = {
            name: {"model_version": version, "window": name, **measure(windows[name], baseline, self.limits)}
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
        model, windows = self._read(names, statistics=True)
        baseline = model.baseline if model else None
        results = [result for name in names for result in compare(windows[name], baseline, self.limits, name)]
        if len(names) > 1:  # as many more tests to correct for
            families = [[result for result in results if result.family == family] for family in ("model", "input")]
            results = [result for family in families for result in judge(family, self.limits.alpha)]
        return DriftReport(model.version if model else None, self.limits.alpha, tuple(results))

    def check_alerts(self) -> list[dict[str, Any]]:
        """Look now, at what is new since the last look, and return the alerts that this raised.

        The writer does the same by itself after every 100 predictions or labels.
        """
        self._catch_up()
        model = self._read_model()
        return self._lookout.look(model) if model else []

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
        """Draw ``accuracy``, ``confidence``, ``predictions`` or ``drift`` of the version being looked at.

        Returns
        -------
        matplotlib.figure.Figure
            Shown by a notebook as it is; ``figure.savefig("accuracy.png")`` keeps it.
        """
        from toolkit.monitoring import plots  # matplotlib takes as long to import as all the rest together

        if metric not in FIGURES:
            raise SettingsError(f"there is no figure of {metric!r}; there are {known(FIGURES, metric)}")
        if metric == "drift":
            return plots.drift(self.detect_drift(None))
        model, windows = self._read(["long"], statistics=False)
        if model is None or not windows["long"].n:
            return plots.nothing("No predictions have been logged yet.")
        if metric == "accuracy":
            raised = self._store.alerts(model)
            return plots.accuracy(model.version, windows["long"], model.baseline, self.limits, raised)
        draw = plots.confidence if metric == "confidence" else plots.predictions
        return draw(model.version, windows["long"], model.baseline)

    # Running

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was logged so far is stored or lost; return False when time ran out."""
        return self._writer.flush(timeout)

    def close(self) -> None:
        """Store what is waiting and let go of the store; harmless to repeat."""
        self._writer.close()
        self._store.close()

    def stats(self) -> dict[str, int]:
        """Counts of this process: ``queued``, ``written``, ``dropped``, ``lost``, ``write_errors``."""
        return self._writer.stats()

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

    def _read(self, names: Sequence[str], *, statistics: bool) -> tuple[Model | None, dict[str, Window]]:
        """The model and its windows, all cut from one reading."""
        sizes = {name: window_size(name) for name in names}
        self._catch_up()
        self._seen = model = self._read_model()
        if model is None:
            return None, {name: Window.empty() for name in names}
        longest = None if None in sizes.values() else max(size for size in sizes.values() if size is not None)
        window = self._store.window(model, longest, statistics=statistics)
        return model, {name: window.last(size) for name, size in sizes.items()}

    # Inside: writing and looking, in the writer's thread

    def _write(self, batch: Sequence[Prediction]) -> None:
        model = self._unregistered
        if model is not None:
            self._store.register(model)
            if self._unregistered is model:  # only now: what failed is tried again with the next batch
                self._unregistered = None
        if batch:
            self._store.write(batch)
        if self._count(len(batch)):
            with self._counting:
                self._news = 0
            try:
                if self._served:
                    self._lookout.look(self._served, automatic=True)
            except Exception as error:  # noqa: BLE001  # the predictions are stored: nothing is lost
                logger.warning("alerts could not be checked: %s", error)

    def _count(self, news: int) -> bool:
        """Note new predictions or labels; return whether there are enough for another look."""
        with self._counting:
            self._news += news
            return self._news >= FEWEST_NEWS


def _checked(probabilities: ArrayLike | Mapping[str, float], classes: tuple[str, ...]) -> NDArray[np.float16]:
    """Probabilities in class order, rounded as they are stored: (K,) float16."""
    if isinstance(probabilities, Mapping):
        if probabilities.keys() != set(classes):
            raise SettingsError(f"probabilities of {known(probabilities)} given; the classes are {known(classes)}")
        probabilities = [probabilities[name] for name in classes]
    try:
        values = np.asarray(probabilities, np.float64)
    except (TypeError, ValueError):
        raise SettingsError("probabilities must be numbers") from None
    if values.shape != (len(classes),):
        raise SettingsError(f"{len(classes)} probabilities are needed, one for each class, got shape {values.shape}")
    if np.isfinite(values).all():
        if values.min() < 0 or values.max() > 1 + SUM_TOLERANCE:
            worst = values.min() if values.min() < 0 else values.max()
            raise SettingsError(f"probabilities must lie between 0 and 1, got {worst:.4g}: are these logits?")
        if abs(values.sum() - 1) > SUM_TOLERANCE:
            raise SettingsError(f"probabilities must add up to 1, got {values.sum():.4g}")
    return values.astype(np.float16)


# The command line


def _point_in_time(text: object) -> object:
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else text
    except ValueError:
        raise ValueError(f"must be a time such as 2026-11-24T08:00Z, got {text}") from None


class _Report(MonitorSettings):
    """Figures of a window and the drift tests on it."""

    window: Literal["short", "medium", "long"] = Field("short", description="last 1,000, last 10,000 or all")
    figure: Path | None = Field(None, description="save the accuracy over time as this picture")
    as_json: bool = Field(False, validation_alias="json", description="print JSON instead of text")


class _Alerts(MonitorSettings):
    """What has gone wrong, newest first."""

    level: Literal["warning", "critical", "immediate"] | None = Field(None, description="this level or worse")
    since: Annotated[datetime | None, BeforeValidator(_point_in_time)] = Field(
        None, description="raised at or after this time, such as 2026-11-24T08:00Z"
    )
    as_json: bool = Field(False, validation_alias="json", description="print JSON instead of text")


class _Commands(ScriptSettings):
    model_config = environment("MONITORING_")

    report: CliSubCommand[_Report] = Field(description="figures of a window and the drift tests on it")
    alerts: CliSubCommand[_Alerts] = Field(description="what has gone wrong, newest first")


def main() -> None:
    """Run the command line."""
    command = verb(parse(_Commands, __doc__))
    if isinstance(command, _Report):
        _print_report(command)
    elif isinstance(command, _Alerts):
        _print_alerts(command)
    else:
        raise SettingsError("say what to do: report or alerts; see --help")


def _print_report(command: _Report) -> None:
    monitor = ModelMonitor(command.store, model_version=command.model_version)
    metrics, drift = monitor.calculate_metrics(command.window), monitor.detect_drift(command.window)
    if command.as_json:
        print(json.dumps({"metrics": metrics, "drift": drift.to_dict()}, indent=2))
    elif not metrics["n"]:
        print(f"No predictions have been logged in {command.store} yet.")
    else:
        print("\n".join([*_figures(metrics), "", str(drift)]))
    if command.figure is not None:
        try:
            monitor.plot_metrics("accuracy").savefig(command.figure)
        except (OSError, ValueError) as error:
            raise SettingsError(f"--figure {command.figure} cannot be written: {error}") from None


def _figures(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics of a window as lines of text."""
    shares = sorted(metrics["class_shares"].items(), key=lambda item: -item[1])[:5]
    latency, interval = metrics["latency_ms"], metrics["accuracy_interval"] or (None, None)
    certain = max(0.0, metrics["degradation_lower_bound"] or 0.0)
    lines = {
        "predictions": f"{metrics['n']:,} from {_moment(metrics['since'])} to {_moment(metrics['until'])}",
        "labels": f"{metrics['n_labels']:,}",
        "accuracy": f"{_share(metrics['accuracy'])} (95 % interval {_share(interval[0])} to {_share(interval[1])})",
        "reference": f"{_share(metrics['reference_accuracy'])} on {metrics['reference_n']:,} held-out pictures",
        "degradation": f"{_share(metrics['degradation'])}, at least {certain:.1%} "
        f"certain: {metrics['level'] or 'unknown'} ({metrics['status'].replace('_', ' ')})",
        "precision, recall, F1": ", ".join(
            _share(metrics[f"{name}_weighted"]) for name in ("precision", "recall", "f1")
        ),
        "mean confidence": _share(metrics["mean_confidence"]),
        "classes": ", ".join(f"{name} {share:.1%}" for name, share in shares),
        "not finite": f"{metrics['non_finite']:,}",
        "latency": f"median {_milliseconds(latency['median'])}, 95 % below {_milliseconds(latency['p95'])}",
    }
    title = f"Model version {metrics['model_version']}, {metrics['window']} window"
    return [title, "", *(f"{name + ':':<22} {text}" for name, text in lines.items())]


def _print_alerts(command: _Alerts) -> None:
    since = command.since.replace(tzinfo=command.since.tzinfo or UTC) if command.since else None
    found = ModelMonitor(command.store).alerts(since, command.level)
    found = [alert for alert in found if command.model_version in (None, alert["model_version"])]
    if command.as_json:
        print(json.dumps(found, indent=2))
    elif not found:
        print("No alerts.")
    for alert in found if not command.as_json else []:
        cleared = f", cleared {_moment(alert['cleared_at'])}" if alert["cleared_at"] else ""
        where = f"{alert['metric']} of version {alert['model_version']}, {alert['window']} window{cleared}"
        print(f"{_moment(alert['time'])}  {alert['level'].upper()} ({alert['status']})  {where}\n  {alert['message']}")


def _moment(seconds: float | None) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC" if seconds is not None else "-"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} ms"


if __name__ == "__main__":
    run_script(main)
