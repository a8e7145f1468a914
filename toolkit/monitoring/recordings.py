"""Recorded predictions as they are read again: from a file that was exported, or from a store."""

import csv
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from toolkit.baseline import Baseline
from toolkit.errors import DataError, SettingsError, StoreError, known, one_line
from toolkit.monitoring.events import Events, read_events
from toolkit.monitoring.export import ENDINGS
from toolkit.monitoring.feedback import Feedback
from toolkit.monitoring.models import Model
from toolkit.monitoring.performance import BIASED_SOURCES, is_drawn
from toolkit.monitoring.store import PredictionStore
from toolkit.monitoring.windows import NOTHING, Window
from toolkit.terminal import bar, say

ROWS_AT_ONCE = 10_000  # read at a time, a few megabytes
ROWS_A_LINE = 250_000  # said where there is no terminal to draw a bar on
SUM_TOLERANCE = 0.02  # of probabilities, as in a log
END_OF_TIME = 32_503_680_000  # the year 3000 in seconds since 1970: what lies behind it are milliseconds

# Labels on their way: when each was told, how many rows come before it at the least, and of which prediction it is.
LABEL = np.dtype(
    [
        ("time", "f8"), ("place", "i8"), ("sequence", "i8"), ("predicted", "i8"),
        ("confidence", "f4"), ("before", "i8"), ("label", "i8"), ("drawn_before", "?"), ("drawn", "?"),
    ]
)  # fmt: skip

# What the columns of a file that matter hold, beside those of probabilities and statistics.
KINDS = {
    "time": "moment", "model_version": "text", "predicted_class": "text", "confidence": "number",
    "label": "text", "label_source": "text", "label_time": "moment",
}  # fmt: skip
SCORE, STATISTIC = "probability_", "statistic_"

Labels = NDArray[np.void]
Column = NDArray[Any]  # (n,), float64 with NaN where nothing is given, or texts with None


class Part(NamedTuple):
    """Rows of a recording, all without their labels, and the labels of these rows in the order in which they came."""

    rows: Window
    labels: Labels


class Recording(NamedTuple):
    """Something to be replayed.

    ``whole`` says whether it has the probabilities of all classes; ``version`` tells in the end whose
    predictions they were.
    """

    baseline: Baseline
    events: Iterator[Events]
    whole: bool
    version: Callable[[], str | None]


def open_recording(path: str, baseline: Baseline | None, version: str | None) -> Recording:
    """Find out what is at a path or address; it is read when its events are asked for. See ``replay``."""
    if not path.endswith(ENDINGS):
        return _open_store(path, baseline, version)
    if baseline is None or not baseline.size:
        raise SettingsError(f"{path} can only be replayed beside a baseline that holds pictures")
    read_names, read = (_csv_names, _csv) if path.endswith(".csv") else (_parquet_names, _parquet)
    with _told_of(path):
        layout = _Layout(read_names(Path(path)), baseline, version)
    return Recording(baseline, in_order(_file_parts(path, read, layout)), layout.whole, lambda: layout.version)


def _open_store(url: str, baseline: Baseline | None, version: str | None) -> Recording:
    store = PredictionStore(url)
    model = store.versions.get(version) if version is not None else store.versions.current()
    if model is None:
        wanted = f" of version {version}; its versions are {known(store.versions.names(), version)}" if version else ""
        raise StoreError(f"the store {store} holds no predictions{wanted}")
    baseline = baseline or model.baseline
    if baseline is None or not baseline.size:
        raise SettingsError(f"version {model.version} can only be replayed beside a baseline that holds pictures")
    if baseline.classes != model.classes:
        theirs, ours = known(model.classes), known(baseline.classes)
        raise SettingsError(f"version {model.version} has the classes {theirs}; those of the baseline are {ours}")
    return Recording(baseline, _store_events(store, model), True, lambda: model.version)


def _store_events(store: PredictionStore, model: Model) -> Iterator[Events]:
    """All that a store holds of a version, in the order in which it got it."""
    with closing(store), _Progress() as progress:
        stamp = store.change_token()
        for events in read_events(store, model, 0, 0, stamp[1:] if stamp else (0, 0)):
            progress.add(events.rows.n)
            yield events


def in_order(parts: Iterable[Part]) -> Iterator[Events]:
    """Predictions and labels in the order of their times, no label before its prediction."""
    waiting, start, clock = np.zeros(0, LABEL), 0, -math.inf
    rows = Window.empty()
    for rows, labels in parts:
        clocks = np.maximum.accumulate(np.append(clock, rows.time))  # rows of several processes cross by a little
        labels["place"] = start + np.searchsorted(rows.sequence, labels["sequence"]) + 1
        waiting = np.concatenate([waiting, labels])
        start += rows.n
        ripe = (waiting["time"] < clocks[-1]) & (waiting["place"] < start)
        told, waiting = waiting[ripe], waiting[~ripe]
        due = np.searchsorted(clocks[1:], told["time"], side="right")
        due = np.maximum(due, told["place"] - start + rows.n)
        order = np.lexsort((told["time"], due))
        told, due = told[order], due[order]
        told["time"] = np.maximum(told["time"], clocks[due])
        yield Events(rows, _as_feedback(told), due)
        clock = float(clocks[-1])
    waiting = waiting[np.argsort(waiting["time"], kind="stable")]
    waiting["time"] = np.maximum(waiting["time"], clock)
    yield Events(rows.between(0, 0), _as_feedback(waiting), np.zeros(len(waiting), np.int64))


_SHARED = ("sequence", "before", "predicted", "confidence", "time", "drawn_before", "drawn")


def _as_feedback(labels: Labels) -> Feedback:
    columns = {name: labels[name] for name in _SHARED}
    unknown = np.zeros(len(labels), np.int64)
    source = np.full(len(labels), "", object)
    return Feedback(number=unknown, ids=unknown, after=unknown, source=source, labels=labels["label"], **columns)


def _file_parts(
    path: str, read: Callable[[Path, Mapping[str, str]], Iterator[dict[str, Column]]], layout: "_Layout"
) -> Iterator[Part]:
    """Rows of a file, a few at a time."""
    batches, done = read(Path(path), layout.kinds), 0
    with _Progress() as progress:
        while True:
            with _told_of(path, done):
                columns = next(batches, None)
                part = layout.part(columns, done) if columns else None
            if columns is None or part is None:
                break
            done += len(columns["time"])
            progress.add(len(columns["time"]))
            yield part
    with _told_of(path):
        layout.check_version()


class _Progress:
    """A bar where somebody sees it, elsewhere a line now and then."""

    def __init__(self) -> None:
        label = bar("replaying")
        self._bar = tqdm(desc=label, unit=" predictions", unit_scale=True, leave=False, disable=label is None)
        self._lines = label is None
        self._done = 0

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, rows: int) -> None:
        before, self._done = self._done, self._done + rows
        self._bar.update(rows)
        if self._lines and self._done // ROWS_A_LINE > before // ROWS_A_LINE:
            say(f"replayed {self._done:,} predictions")


class _Wrong(Exception):
    """What is wrong with a file, or with the row at a place of the batch."""

    def __init__(self, reason: str, place: int | None = None) -> None:
        super().__init__(reason)
        self.place = place


def _refuse(bad: NDArray[np.bool_], reason: str, got: Column | None = None) -> None:
    """Complain of the first bad row, if there is one, and say what it has got."""
    if bad.any():
        place = int(bad.argmax())
        raise _Wrong(reason if got is None else f"{reason}, got {got[place]:.4g}", place)


@contextmanager
def _told_of(path: str, done: int = 0) -> Iterator[None]:
    """Say in which file something is wrong, and in which row; rows count from 1, and so many are done."""
    try:
        yield
    except _Wrong as error:
        row = f", row {done + error.place + 1:,}" if error.place is not None else ""
        raise DataError(f"{path}{row}: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8: {error.reason}") from None
    except (OSError, csv.Error) as error:
        reason = isinstance(error, OSError) and error.strerror
        raise DataError(f"{path} cannot be read: {reason or one_line(error)}") from None


class _Layout:
    """Which columns of a file matter, and how its rows become those of a stream."""

    def __init__(self, names: Sequence[str], baseline: Baseline, version: str | None) -> None:
        self._baseline = baseline
        self._places = {name: place for place, name in enumerate(baseline.classes)}
        self._asked = version
        self._seen: dict[str | None, None] = {}  # the versions that came up
        self._scores = [name for name in names if name.startswith(SCORE)]
        self.whole = bool(self._scores)
        answers = [SCORE + name for name in self._places] if self.whole else ["predicted_class", "confidence"]
        for name in ["time", *answers, *([] if version is None else ["model_version"])]:
            if name not in names:
                raise _Wrong(f"there is no column {name!r}; the columns are {known(names, name)}")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise _Wrong(f"the column {twice!r} comes twice")
        numbers = [*self._scores, *(STATISTIC + name for name in baseline.statistics)]
        wanted = KINDS | dict.fromkeys(numbers, "number")
        self.kinds = {name: wanted[name] for name in names if name in wanted}

    @property
    def version(self) -> str | None:
        """The version whose rows are taken: that which was asked for, or the only one there is."""
        return self._asked if self._asked is not None else next(iter(self._seen), None)

    def check_version(self) -> None:
        """Complain when there was no row of the version that was asked for."""
        if self._asked is not None and self._asked not in self._seen:
            raise _Wrong(f"no prediction is of version {self._asked}; the versions are {known(self._seen)}")

    def part(self, columns: Mapping[str, Column], done: int) -> Part:
        """The rows of a batch that are of the version, and their labels."""
        mine = self._mine(columns)
        try:
            return self._part({name: column[mine] for name, column in columns.items()}, done + 1 + mine)
        except _Wrong as error:
            raise _Wrong(str(error), None if error.place is None else int(mine[error.place])) from None

    def _mine(self, columns: Mapping[str, Column]) -> NDArray[np.intp]:
        versions = columns.get("model_version")
        if versions is None:
            return np.arange(len(columns["time"]))
        self._seen |= dict.fromkeys(versions.tolist())
        mine = versions == self.version
        if self._asked is None:
            both = " and ".join(map(str, list(self._seen)[:2]))
            _refuse(~mine, f"rows are of the model versions {both}: say of which one to take them")
        return np.flatnonzero(mine)

    def _part(self, columns: Mapping[str, Column], sequence: NDArray[np.int64]) -> Part:
        _refuse(np.isnan(columns["time"]), "it has no time")
        for name in ("time", "label_time"):
            moments = columns.get(name, np.zeros(0))
            late = ~np.isnan(moments) & ~((moments >= 0) & (moments < END_OF_TIME))
            _refuse(late, f"{name} must lie between the years 1970 and 3000, in seconds since 1970", moments)
        predicted, confidence, probabilities = (self._scored if self.whole else self._named)(columns)
        with np.errstate(over="ignore"):
            statistics = {
                name: columns[STATISTIC + name].astype(np.float32)
                for name in self._baseline.statistics
                if STATISTIC + name in columns
            }
        rows = Window(
            self._baseline.classes,
            columns["time"],
            predicted,
            confidence,
            labels=np.full(len(sequence), NOTHING),
            statistics=statistics,
            probabilities=probabilities,
            sequence=sequence,
        )
        return Part(rows, self._labels(columns, rows))

    def _scored(self, columns: Mapping[str, Column]) -> "_Answers":
        """Answers of which all probabilities are known, rounded as a store rounds them."""
        ours = [SCORE + name for name in self._places]
        for name in set(self._scores) - set(ours):  # a column of another version's class is empty
            _refuse(~np.isnan(columns[name]), f"it has a {name}, and the classes are {known(self._places)}")
        values = np.column_stack([columns[name] for name in ours])  # (n, K)
        finite = np.isfinite(values).all(axis=1)
        sums = np.where(finite, np.nan_to_num(values).sum(axis=1), 1.0)
        outside = finite & ~((values >= 0) & (values <= 1 + SUM_TOLERANCE)).all(axis=1)
        farthest = values[np.arange(len(values)), np.abs(values - 0.5).argmax(axis=1)]
        _refuse(outside, "probabilities must lie between 0 and 1", farthest)
        _refuse(abs(sums - 1) > SUM_TOLERANCE, "probabilities must add up to 1", sums)
        if "predicted_class" in columns:
            given = columns["predicted_class"] != None  # noqa: E711  # of each
            _refuse(given & ~finite, "it has a class, and not all of its probabilities are numbers")
        probabilities = values.astype(np.float16)
        predicted = np.where(finite, probabilities.argmax(axis=1), NOTHING)
        confidence = np.where(finite, probabilities.max(axis=1), np.nan).astype(np.float32)
        return predicted, confidence, probabilities

    def _named(self, columns: Mapping[str, Column]) -> "_Answers":
        """Answers of which only the class and its probability are known; neither of one that was not finite."""
        predicted, confidence = self._classes(columns, "predicted_class"), columns["confidence"]
        told = predicted != NOTHING
        outside = told & ~((confidence >= 0) & (confidence <= 1))
        _refuse(outside, "confidence must lie between 0 and 1", confidence)
        _refuse(~told & ~np.isnan(confidence), "it has a confidence, and no predicted_class")
        return predicted, confidence.astype(np.float16).astype(np.float32), np.zeros((0, 0), np.float16)

    def _classes(self, columns: Mapping[str, Column], name: str) -> NDArray[np.int64]:
        """Names as places among the classes, -1 for none."""
        texts = columns[name].tolist()
        try:
            return np.array([NOTHING if text is None else self._places[text] for text in texts], np.int64)
        except KeyError as error:
            strange = error.args[0]
        raise _Wrong(
            f"there is no {name} {strange!r}; the classes are {known(self._places, strange)}", texts.index(strange)
        )

    def _labels(self, columns: Mapping[str, Column], rows: Window) -> Labels:
        if "label" not in columns:
            return np.zeros(0, LABEL)
        classes = self._classes(columns, "label")
        fair = ~np.isin(columns["label_source"].astype(str), BIASED_SOURCES) if "label_source" in columns else True
        told = np.flatnonzero((classes != NOTHING) & fair)
        labels = np.zeros(len(told), LABEL)
        moments = columns["label_time"][told] if "label_time" in columns else np.full(len(told), np.nan)
        labels["time"] = np.where(np.isnan(moments), -math.inf, moments)  # right after the prediction
        labels["sequence"], labels["label"], labels["before"] = rows.sequence[told], classes[told], NOTHING
        labels["predicted"], labels["confidence"] = rows.predicted[told], rows.confidence[told]
        if "label_source" in columns:
            labels["drawn"] = [is_drawn(str(source)) for source in columns["label_source"][told]]
        return labels


_Answers = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float16]]  # as in ``Window``


# CSV


def _csv_names(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        names = next(csv.reader(file), None)
    if not names:
        raise _Wrong("there is no first line with the names of the columns")
    return names


def _csv(path: Path, kinds: Mapping[str, str]) -> Iterator[dict[str, Column]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        names, filled = next(lines), filter(None, lines)
        while rows := list(itertools.islice(filled, ROWS_AT_ONCE)):
            for place, row in enumerate(rows):
                if len(row) != len(names):
                    raise _Wrong(f"it has {len(row)} values, and there are {len(names)} columns", place)
            columns = dict(zip(names, zip(*rows, strict=True), strict=True))
            yield {name: _from_texts(columns[name], name, kind) for name, kind in kinds.items()}


def _from_texts(texts: Sequence[str | None], name: str, kind: str) -> Column:
    if kind == "text":
        return np.array([text or None for text in texts], object)
    read = float if kind == "number" else _seconds
    try:
        return np.array([read(text) if text else math.nan for text in texts])
    except ValueError:
        place = next(place for place, text in enumerate(texts) if text and not _readable(read, text))
    what = "a number" if kind == "number" else "a time such as 2026-11-24T08:00Z"
    raise _Wrong(f"{name} must be {what}, got {texts[place]!r}", place)


def _seconds(text: str) -> float:
    """Seconds since 1970, given as such or as a date and a time, which is UTC unless it says otherwise."""
    if text.replace(".", "", 1).isdigit():
        return float(text)
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _readable(read: Callable[[str], float], text: str) -> bool:
    try:
        read(text)
    except ValueError:
        return False
    return True


# Parquet


def _parquet_names(path: Path) -> list[str]:
    with _opened(path) as file:
        return list(file.schema_arrow.names)


def _parquet(path: Path, kinds: Mapping[str, str]) -> Iterator[dict[str, Column]]:
    with _opened(path) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=list(kinds)):
            yield {name: _from_arrow(batch.column(name), name, kind) for name, kind in kinds.items()}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]  # only here: it takes a third of a second
        from pyarrow import parquet
    except ImportError:
        raise StoreError("a Parquet file needs pyarrow: pip install pyarrow") from None
    try:
        with path.open("rb") as raw, parquet.ParquetFile(raw) as file:
            yield file
    except pa.ArrowException as error:
        raise _Wrong(f"it cannot be read: {one_line(error)}") from None


def _from_arrow(column: Any, name: str, kind: str) -> Column:
    import pyarrow as pa

    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if kind == "text":
        return np.array(column.cast(pa.string()).to_pylist(), object)
    if is_text:
        return _from_texts(column.to_pylist(), name, kind)
    scale = 1.0
    if kind == "moment" and pa.types.is_timestamp(column.type):
        column, scale = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64()), 1e6
    try:
        numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise _Wrong(f"the column {name!r} must hold numbers, not {column.type}") from None
    return np.asarray(numbers, np.float64) / scale
