"""The export: what pandas and pyarrow read back is what is in the store."""

import csv

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

from toolkit.errors import SettingsError, StoreError
from toolkit.monitoring import export as module
from toolkit.monitoring.export import export
from toolkit.monitoring.models import Model
from toolkit.monitoring.store import PredictionStore

ONE, TWO = Model("1", ("cat", "dog")), Model("2", ("dog", "fox"))


@pytest.fixture
def filled(store, prediction, monkeypatch):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 2)
    store.write(
        [
            prediction(1, ONE, 0.75, time=0.25, statistics={"b": 0.5}, latency_ms=3.5, source='a,"b".jpg'),
            prediction(2, TWO, 0.25, time=86400.0, statistics={"a": 1.5, "b": 2.5}),
            prediction(255, ONE, np.nan, time=90000.0),
        ]
    )
    store.labels.insert({1: "dog", 255: "cat"}, "user", 5.0)
    store.labels.insert({1: "cat"}, "audit", 7.0)
    store.labels.insert({1: "dog"}, "complaint", 9.0)  # kept, and in nobody's way
    return store


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_each_prediction_is_a_row_and_what_is_not_known_is_empty(filled, tmp_path, ending):
    path = tmp_path / f"out{ending}"
    assert export(filled, path, probabilities=True) == 3
    read = pd.read_parquet if ending == ".parquet" else pd.read_csv
    table = read(path).astype({"id": str})
    ids = ["0000000000000001", "0000000000000002", "00000000000000ff"]
    assert table["id"].tolist() == ids if ending == ".parquet" else ["1", "2", "00000000000000ff"]
    assert pd.to_datetime(table["time"]).tolist() == [
        pd.Timestamp("1970-01-01T00:00:00.25Z"),
        pd.Timestamp("1970-01-02T00:00:00Z"),
        pd.Timestamp("1970-01-02T01:00:00Z"),
    ]
    expected = {
        "source": ['a,"b".jpg', None, None],
        "model_version": ["1", "2", "1"],
        "predicted_class": ["cat", "fox", None],
        "confidence": [0.75, 0.75, None],
        "label": ["cat", None, "cat"],
        "label_source": ["audit", None, "user"],
        "latency_ms": [3.5, None, None],
        "statistic_b": [0.5, 2.5, None],
        "statistic_a": [None, 1.5, None],
        "probability_cat": [0.75, None, None],
        "probability_dog": [0.25, 0.25, None],
        "probability_fox": [None, 0.75, None],
    }
    told = pd.to_datetime(table.pop("label_time"))
    assert [None if pd.isna(moment) else moment.timestamp() for moment in told] == [7.0, None, 5.0]
    assert list(table.columns) == ["id", "time", *expected]
    for name, values in expected.items():
        found = [None if pd.isna(value) else value for value in table[name]]
        assert [str(value) for value in found] == [str(value) for value in values], name


def test_no_text_from_outside_is_a_formula_to_a_spreadsheet(store, prediction, tmp_path):
    names = ["=1+1", "+1", "-1", "@a", "a=1", None]
    store.write([prediction(i, ONE, source=name) for i, name in enumerate(names)])
    store.labels.insert({0: "cat"}, "=2+2", 5.0)
    export(store, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == ["'=1+1", "'+1", "'-1", "'@a", "a=1", ""]
    assert rows[0]["label_source"] == "'=2+2"
    export(store, tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column("source").to_pylist() == names
    assert table.column("label_source").to_pylist()[0] == "=2+2"


def test_one_version_or_a_time_is_chosen(filled, tmp_path):
    path = tmp_path / "out.parquet"
    assert export(filled, path, TWO) == 1
    table = parquet.read_table(path)
    assert table.column("id").to_pylist() == ["0000000000000002"]
    assert "probability_dog" not in table.column_names
    assert export(filled, path, since=86400.0) == 2
    assert export(filled, path, Model("3", ("cat", "dog"))) == 0
    assert parquet.read_table(path).num_rows == 0


def test_a_store_that_is_not_there_is_an_empty_table(tmp_path):
    assert export(PredictionStore(str(tmp_path / "m.db")), tmp_path / "out.csv") == 0
    with (tmp_path / "out.csv").open() as file:
        assert list(csv.reader(file)) == [
            [
                "id",
                "time",
                "source",
                "model_version",
                "predicted_class",
                "confidence",
                "label",
                "label_source",
                "label_time",
                "latency_ms",
            ]
        ]


def test_what_fails_leaves_the_file_that_was_there(filled, tmp_path, monkeypatch):
    path = tmp_path / "out.csv"
    path.write_text("before")

    def broken(*_):
        yield from [[]]
        raise StoreError("the disk is gone")

    monkeypatch.setattr(module, "_pages", broken)
    with pytest.raises(StoreError, match="the disk is gone"):
        export(filled, path)
    assert path.read_text() == "before"
    assert not list(tmp_path.glob(".*"))


def test_what_cannot_be_written_is_said_in_one_line(store, tmp_path):
    with pytest.raises(SettingsError, match=r"^an export must end in .parquet or .csv, got out.txt$"):
        export(store, tmp_path / "out.txt")
    with pytest.raises(
        StoreError, match=r"^the export .*nowhere/out.csv cannot be written: .*No such file or directory"
    ):
        export(store, tmp_path / "nowhere" / "out.csv")
