"""The export: what pandas and pyarrow read back is what is in the store."""

import csv

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

from toolkit.errors import PredictionStoreError, SettingsError
from toolkit.monitoring.store import export as module
from toolkit.monitoring.store.export import export
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.predictions import PredictionStore

COLUMNS = ["id", "time", "source", "model_version", "predicted_class", "confidence"]
COLUMNS += ["label", "label_source", "label_time", "latency_ms"]
ONE, TWO = ModelVersion("1", ("cat", "dog")), ModelVersion("2", ("dog", "fox"))


@pytest.fixture
def filled(store, prediction, monkeypatch):
    monkeypatch.setattr(module, "PAGE_SIZE", 2)
    store.write(
        [
            prediction(1, ONE, 0.75, time=0.25, statistics={"b": 0.5}, latency_ms=3.5, source='a,"b".jpg'),
            prediction(2, TWO, 0.25, time=86400.0, statistics={"a": 1.5, "b": 2.5}),
            prediction(255, ONE, np.nan, time=90000.0),
            prediction(256, ONE, 0.25, time=90001.0, statistics={"a": 1.5, "b": 2.5}),
        ]
    )
    store.labels.insert({1: "dog", 255: "cat"}, "user", 5.0)
    store.labels.insert({1: "cat"}, "audit", 7.0)
    store.labels.insert({1: "dog"}, "complaint", 9.0)  # is kept, and does not count
    return store


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_each_prediction_is_a_row_and_what_is_not_known_is_empty(filled, tmp_path, ending):
    path = tmp_path / f"out{ending}"
    assert export(filled, path, ONE, probabilities=True) == 3
    table = (
        pd.read_parquet(path) if ending == ".parquet" else pd.read_csv(path, dtype={"id": str, "model_version": str})
    )
    start = pd.Timestamp("1970-01-01T00:00:00Z")
    assert ((pd.to_datetime(table.pop("time")) - start) / pd.Timedelta("1s")).tolist() == [0.25, 90000.0, 90001.0]
    expected = {
        "id": ["0000000000000001", "00000000000000ff", "0000000000000100"],
        "source": ['a,"b".jpg', None, None],
        "model_version": ["1", "1", "1"],
        "predicted_class": ["cat", None, "dog"],
        "confidence": [0.75, None, 0.75],
        "label": ["cat", "cat", None],
        "label_source": ["audit", "user", None],
        "latency_ms": [3.5, None, None],
        "statistic_b": [0.5, None, 2.5],
        "statistic_a": [None, None, 1.5],
        "probability_cat": [0.75, None, 0.25],
        "probability_dog": [0.25, None, 0.75],
    }
    times = pd.to_datetime(table.pop("label_time"))
    assert [None if pd.isna(time) else time.timestamp() for time in times] == [7.0, 5.0, None]
    assert list(table.columns) == list(expected)
    for name, values in expected.items():
        assert [None if pd.isna(value) else value for value in table[name]] == values, name


def test_no_text_from_outside_is_a_formula_to_a_spreadsheet(store, prediction, tmp_path):
    names = ["=1+1", "+1", "-1", "@a", "a=1", None]
    store.write([prediction(i, ONE, source=name) for i, name in enumerate(names)])
    store.labels.insert({0: "cat"}, "=2+2", 5.0)
    export(store, tmp_path / "out.csv", ONE)
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == ["'=1+1", "'+1", "'-1", "'@a", "a=1", ""]
    assert rows[0]["label_source"] == "'=2+2"
    export(store, tmp_path / "out.parquet", ONE)
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column("source").to_pylist() == names
    assert table.column("label_source").to_pylist()[0] == "=2+2"


def test_one_version_or_a_time_is_chosen(filled, tmp_path):
    path = tmp_path / "out.parquet"
    assert export(filled, path, TWO) == 1
    table = parquet.read_table(path)
    assert table.column("id").to_pylist() == ["0000000000000002"]
    assert "probability_dog" not in table.column_names
    assert export(filled, path, ONE, since=86400.0) == 2
    for store in (filled, PredictionStore(str(tmp_path / "empty.db"))):
        assert export(store, path, ModelVersion("3", ("cat", "dog"))) == 0
        assert (parquet.read_table(path).num_rows, parquet.read_table(path).column_names) == (0, COLUMNS)
    assert export(filled, tmp_path / "out.csv", ModelVersion("3", ("cat", "dog"))) == 0
    assert (tmp_path / "out.csv").read_text().replace('"', "").split() == [",".join(COLUMNS)]


@pytest.mark.parametrize("error", [PredictionStoreError("the disk is gone"), KeyboardInterrupt()])
@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_what_ends_early_leaves_the_file_that_was_there(filled, tmp_path, monkeypatch, error, ending):
    path = tmp_path / f"out{ending}"
    path.write_text("before")
    pages = module._pages

    def broken(*which):
        yield next(pages(*which))
        raise error

    monkeypatch.setattr(module, "_pages", broken)
    with pytest.raises(type(error)):
        export(filled, path, ONE)
    assert path.read_text() == "before"
    assert list(tmp_path.glob("*out*")) == [path]


def test_what_cannot_be_written_is_said_in_one_line(store, tmp_path):
    with pytest.raises(SettingsError, match=r"^an export must end in .parquet or .csv, got out.txt$"):
        export(store, tmp_path / "out.txt", None)
    with pytest.raises(
        PredictionStoreError, match=r"^the export .*nowhere/out.csv cannot be written: .*No such file or directory"
    ):
        export(store, tmp_path / "nowhere" / "out.csv", ONE)
    with pytest.raises(PredictionStoreError, match=r"^the store .* holds no predictions$"):
        export(store, tmp_path / "out.csv", None)
