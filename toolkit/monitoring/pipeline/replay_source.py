"""Sources of a replay: a store, or a Parquet or CSV file as ``export`` writes it."""

import functools
import math
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from toolkit.bundle.baseline import Baseline
from toolkit.errors import DataError, PredictionStoreError, SettingsError, first_line, suggest
from toolkit.monitoring.base.predictions import BIASED_SOURCES, NO_CLASS, Predictions, is_drawn
from toolkit.monitoring.base.timestamps import END_OF_TIME
from toolkit.monitoring.base.validation import SUM_TOLERANCE
from toolkit.monitoring.store.events import Events, read_events
from toolkit.monitoring.store.export import PROBABILITY, STATISTIC
from toolkit.monitoring.store.labels import LabelRows
from toolkit.monitoring.store.predictions import PredictionStore
from toolkit.monitoring.store.schema import predictions

PAGE_SIZE = 10_000  # rows of a Parquet file in memory
PAGE_BYTES = 1 << 22  # of a CSV file in memory: some ten thousand rows of ten classes, or a few of 100,000

Frame: TypeAlias = Any  # of pandas, which takes half a second to import; its index is the number of the row
Series: TypeAlias = Any
Answers = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float16]]  # as in ``Predictions``


class StoreSource:
    """Predictions and labels of one version in a store, in the order in which the store got them."""

    has_probabilities = True

    def __init__(self, url: str, baseline: Baseline | None, version: str | None) -> None:
        self._store = store = PredictionStore(url)
        model = store.versions.select(version)
        if model is None:
            raise PredictionStoreError(f"the store {store} holds no predictions")
        self._model, self.version = model, model.version
        self.baseline = _require_images(baseline or model.baseline, f"version {model.version}")
        if self.baseline.classes != model.classes:
            theirs, ours = suggest(model.classes), suggest(self.baseline.classes)
            raise SettingsError(f"version {model.version} has the classes {theirs}; those of the baseline are {ours}")
        mine = predictions.c.model == store.versions.number(model)
        self.n_rows = int(store.database.fetch_all(sa.select(sa.func.count()).where(mine))[0][0])

    def events(self) -> Iterator[Events]:
        """The predictions and labels of the version."""
        with closing(self._store):
            _, sequence, label = self._store.change_token() or ("", 0, 0)
            yield from read_events(self._store, self._model, 0, 0, (sequence, label))


class FileSource:
    """Predictions and labels of one version in a file, in the order of their times.

    A wrong value raises DataError with the number of its row, from 1, its column, the rule and the value.
    """

    def __init__(self, path: str, baseline: Baseline | None, version: str | None) -> None:
        self._path = Path(path)
        self.version = self._requested = version
        self._versions: dict[str, None] = {}  # found so far
        with _opened(self._path) as (names, _, self.n_rows):
            self.baseline = _require_images(baseline, path)
            scores = [PROBABILITY + name for name in self.baseline.classes]
            self.has_probabilities = any(name.startswith(PROBABILITY) for name in names)
            needed = ["time", *(scores if self.has_probabilities else ("predicted_class", "confidence"))]
            needed += ["model_version"] if version is not None else []
            if missing := [name for name in needed if name not in names]:
                listed = suggest(names, missing[0])
                raise DataError(f"{path}: there is no column {missing[0]!r}; the columns are {listed}")
            more = ["predicted_class", "label", "label_source", "label_time", "model_version"]
            more += [STATISTIC + name for name in self.baseline.statistics]
            self._columns = [name for name in names if name in {*needed, *more}]
            if repeated := [name for name in self._columns if self._columns.count(name) > 1]:
                raise DataError(f"{path}: the column {repeated[0]!r} comes twice")
            if other := [name for name in names if name.startswith(PROBABILITY) and name not in scores]:
                classes = suggest(self.baseline.classes)
                raise DataError(f"{path}: there is a column {other[0]!r}, and the classes are {classes}")

    def events(self) -> Iterator[Events]:
        """The predictions and labels of the version."""
        return in_order(self._parts())

    def _parts(self) -> Iterator[tuple[Predictions, LabelRows]]:
        first = 1
        with _opened(self._path) as (_, batches, _):
            for batch in batches:
                frame = batch.select(self._columns).to_pandas(integer_object_nulls=True)
                frame.index += first
                first += len(frame)
                frame = self._of_version(frame)
                rows = self._rows(frame)
                yield rows, self._labels(frame, rows)
        if self._requested is not None and self._requested not in self._versions:
            found = suggest(self._versions)
            raise DataError(f"{self._path}: no prediction is of version {self._requested}; the versions are {found}")

    def _of_version(self, frame: Frame) -> Frame:
        if "model_version" not in frame:
            return frame
        versions = self._texts(frame, "model_version")
        self._versions |= dict.fromkeys(versions)
        self.version = next(iter(self._versions), None) if self._requested is None else self._requested
        others = versions[versions != self.version]
        if self._requested is None:
            self._reject(others, "model_version", f"be {self.version!r} as before, or one of them must be chosen")
        return frame.drop(others.index)

    def _rows(self, frame: Frame) -> Predictions:
        time = self._seconds(frame, "time")
        self._reject(time[time.isna()], "time", "be given")
        predicted, confidence, probabilities = (self._scored if self.has_probabilities else self._named)(frame)
        given = [name for name in self.baseline.statistics if STATISTIC + name in frame]
        with np.errstate(over="ignore"):
            statistics = {name: self._numbers(frame, STATISTIC + name).to_numpy(np.float32) for name in given}
        return Predictions(
            self.baseline.classes,
            time.to_numpy(),
            predicted,
            confidence,
            labels=np.full(len(frame), NO_CLASS),
            statistics=statistics,
            probabilities=probabilities,
            sequence=frame.index.to_numpy(np.int64),
        )

    def _scored(self, frame: Frame) -> Answers:
        """Answers from all probabilities, rounded as in a store."""
        columns = [self._numbers(frame, PROBABILITY + name) for name in self.baseline.classes]
        finite = np.logical_and.reduce([np.isfinite(column) for column in columns])
        for column in columns:
            self._reject(column[finite & ~column.between(0, 1 + SUM_TOLERANCE)], column.name, "lie between 0 and 1")
        total = functools.reduce(operator.add, columns)
        self._reject(total[finite & (abs(total - 1) > SUM_TOLERANCE)], "probabilities", "add up to 1")
        if "predicted_class" in frame:
            named = self._texts(frame, "predicted_class")
            self._reject(named[(named != "") & ~finite], "predicted_class", "be empty without probabilities")
        probabilities = np.column_stack(columns).astype(np.float16)  # (n, K)
        predicted = np.where(finite, probabilities.argmax(axis=1), NO_CLASS)
        confidence = np.where(finite, probabilities.max(axis=1), np.nan).astype(np.float32)
        return predicted, confidence, probabilities

    def _named(self, frame: Frame) -> Answers:
        """Answers from the class and its probability, which are both empty where it was not finite."""
        predicted, confidence = self._classes(frame, "predicted_class"), self._numbers(frame, "confidence")
        finite = predicted != NO_CLASS
        self._reject(confidence[finite & ~confidence.between(0, 1)], "confidence", "lie between 0 and 1")
        self._reject(confidence[~finite & confidence.notna()], "confidence", "be empty without a predicted_class")
        return predicted, confidence.to_numpy(np.float16).astype(np.float32), np.zeros((0, 0), np.float16)

    def _labels(self, frame: Frame, rows: Predictions) -> LabelRows:
        if "label" not in frame:
            return LabelRows.empty()
        labels, n = self._classes(frame, "label"), len(frame)
        source = np.array(self._texts(frame, "label_source") if "label_source" in frame else [""] * n, object)
        time = self._seconds(frame, "label_time").fillna(-math.inf) if "label_time" in frame else [-math.inf] * n
        found = LabelRows.from_columns(
            *([0] * n, [0] * n, rows.sequence),  # number and id, which only a store has
            *(labels, [NO_CLASS] * n, rows.predicted, rows.confidence),
            *(time, source, [0] * n),  # -inf: right after the prediction
            *([False] * n, [is_drawn(text) for text in source]),
        )
        return found.take((labels != NO_CLASS) & ~np.isin(source.astype(str), BIASED_SOURCES))

    def _classes(self, frame: Frame, name: str) -> NDArray[np.int64]:
        """Names as indices of the classes, -1 for empty ones."""
        texts = self._texts(frame, name)
        indices = {"": NO_CLASS} | {one: index for index, one in enumerate(self.baseline.classes)}
        unknown = texts[~texts.isin(list(indices))]
        self._reject(unknown, name, f"be one of {suggest(self.baseline.classes, next(iter(unknown), ''))}")
        return np.array([indices[text] for text in texts], np.int64)

    @staticmethod
    def _texts(frame: Frame, name: str) -> Series:
        return frame[name].astype(object).where(frame[name].notna(), "").astype(str)

    def _numbers(self, frame: Frame, name: str) -> Series:
        import pandas as pd

        numbers = pd.to_numeric(frame[name], errors="coerce").astype(np.float64)
        texts = self._texts(frame[numbers.isna()], name)
        self._reject(texts[~texts.str.lower().isin(["", "nan"])], name, "be a number")
        return numbers

    def _seconds(self, frame: Frame, name: str) -> Series:
        """Seconds since 1970, to a microsecond, from numbers or from times, which are UTC unless they have a zone."""
        import pandas as pd

        times, seconds, texts = frame[name], pd.Series(np.nan, frame.index), None
        if not pd.api.types.is_datetime64_any_dtype(times):
            texts = self._texts(frame, name)
            seconds = pd.to_numeric(texts, errors="coerce").astype(np.float64)
            times = texts[seconds.isna() & texts.str.match(r"\d")]  # pandas also reads "now"
        moments = pd.to_datetime(times, utc=True, format="ISO8601", errors="coerce").dt.as_unit("us")
        seconds = seconds.fillna((moments - pd.Timestamp(0, tz="UTC").as_unit("us")) / pd.Timedelta(1, "us") / 1e6)
        if texts is not None:
            self._reject(texts[seconds.isna() & (texts != "")], name, "be a time such as 2026-11-24T08:00Z")
        late = seconds[seconds.notna() & ~seconds.between(0, END_OF_TIME, inclusive="left")]
        self._reject(late, name, "lie between the years 1970 and 3000, in seconds since 1970")
        return seconds

    def _reject(self, bad: Series, column: object, rule: str) -> None:
        """Raise DataError about the first of these values, if there is one."""
        if len(bad):
            value = f"{bad.iloc[0]:.4g}" if isinstance(bad.iloc[0], float) else repr(bad.iloc[0])
            raise DataError(f"{self._path}, row {bad.index[0]:,}: {column} must {rule}, got {value}")


def _require_images(baseline: Baseline | None, what: str) -> Baseline:
    if baseline is None or not baseline.size:
        raise SettingsError(f"{what} can only be replayed with a baseline that holds images")
    return baseline


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Sequence[str], Iterable[Any], int]]:
    """The names of a file's columns, its rows as batches, and about how many rows there are."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if path.suffix == ".parquet":
            with path.open("rb") as file, parquet.ParquetFile(file) as table:
                yield table.schema_arrow.names, table.iter_batches(PAGE_SIZE), table.metadata.num_rows
            return
        with path.open("rb") as text:
            n_rows = sum(part.count(b"\n") for part in iter(functools.partial(text.read, PAGE_BYTES), b""))
        with csv.open_csv(
            path,
            csv.ReadOptions(block_size=PAGE_BYTES, use_threads=False),  # with threads no error says its row
            csv.ParseOptions(newlines_in_values=True),
            csv.ConvertOptions(default_column_type=pa.string()),
        ) as reader:
            yield reader.schema.names, reader, n_rows
    except (OSError, pa.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        row = re.sub(r"Row #(\d+)", lambda found: f"row {int(found[1]) - 1:,}", reason)  # there the heading is row 1
        raise DataError(f"{path} cannot be read: {row}") from None


def in_order(parts: Iterable[tuple[Predictions, LabelRows]]) -> Iterator[Events]:
    """Rows without labels, and the labels of these rows, in the order of their times, no label before its row."""
    waiting, clock, rows = LabelRows.empty(), -math.inf, Predictions.empty()
    for rows, labels in parts:
        clocks = np.maximum.accumulate(np.append(clock, rows.time))  # several processes may be slightly out of order
        waiting = LabelRows.joined([waiting, labels])
        due = (waiting.time < clocks[-1]) & (waiting.sequence < rows.sequence.max(initial=0))
        yield _merged(rows, waiting.take(due), clocks)
        waiting, clock = waiting.take(~due), float(clocks[-1])
    yield _merged(rows.slice(0, 0), waiting, np.array([clock]))


def _merged(rows: Predictions, labels: LabelRows, clocks: NDArray[np.float64]) -> Events:
    """Rows and the labels that arrived among them; ``clocks`` are the times before the first row and after each."""
    due = np.searchsorted(clocks[1:], labels.time, side="right")
    due = np.maximum(due, np.searchsorted(rows.sequence, labels.sequence, side="right"))
    order = np.lexsort((labels.time, due))
    labels, due = labels.take(order), due[order]
    return Events(rows, replace(labels, time=np.maximum(labels.time, clocks[due])), due)
