"""A store that an earlier version made is brought up, as a whole or not at all."""

import sqlite3

import numpy as np
import pytest

from toolkit.errors import StoreError
from toolkit.monitoring import database
from toolkit.monitoring.models import Model
from toolkit.monitoring.store import PredictionStore

# What version 1 wrote, as sqlite3's iterdump shows it.
VERSION_1 = """
CREATE TABLE alerts (id INTEGER NOT NULL, time FLOAT NOT NULL, model INTEGER NOT NULL, metric TEXT NOT NULL,
    window TEXT NOT NULL, level TEXT NOT NULL, status TEXT NOT NULL, value FLOAT NOT NULL, message TEXT NOT NULL,
    cleared_at FLOAT, PRIMARY KEY (id), FOREIGN KEY(model) REFERENCES models (number));
INSERT INTO alerts VALUES(1,1.0,1,'accuracy','short','warning','confirmed',0.1,'m',NULL);
CREATE TABLE labels (number INTEGER NOT NULL, prediction BIGINT NOT NULL, time FLOAT NOT NULL,
    label INTEGER NOT NULL, source TEXT NOT NULL, PRIMARY KEY (number));
INSERT INTO labels VALUES(1,10,1.0,0,'user');
INSERT INTO labels VALUES(2,11,1.0,1,'user');
INSERT INTO labels VALUES(3,10,2.0,1,'audit');
CREATE TABLE models (number INTEGER NOT NULL, version TEXT NOT NULL, classes TEXT NOT NULL, baseline BLOB,
    content TEXT NOT NULL, served_at FLOAT, PRIMARY KEY (number), UNIQUE (version, classes, content));
INSERT INTO models VALUES(1,'1','["cat", "dog"]',NULL,'',5.0);
INSERT INTO models VALUES(2,'2','["a", "b"]',NULL,'',NULL);
CREATE TABLE predictions (sequence INTEGER NOT NULL, id BIGINT NOT NULL, time FLOAT NOT NULL,
    model INTEGER NOT NULL, predicted INTEGER, confidence FLOAT, probabilities BLOB NOT NULL, statistics TEXT,
    latency_ms FLOAT, PRIMARY KEY (sequence), UNIQUE (id), FOREIGN KEY(model) REFERENCES models (number));
INSERT INTO predictions VALUES(1,10,0.0,1,1,0.75,X'0034003A','{"contrast": 1.0}',2.5);
INSERT INTO predictions VALUES(2,11,1.0,1,1,0.75,X'0034003A','{"brightness": 0.33333334}',2.5);
INSERT INTO predictions VALUES(4,12,2.0,1,1,0.75,X'0034003A','{"brightness": 0.6666667, "contrast": 3.0}',2.5);
INSERT INTO predictions VALUES(7,99,9.0,2,NULL,NULL,X'007E003A',NULL,NULL);
CREATE INDEX predictions_of_a_model ON predictions (model, sequence);
CREATE INDEX labels_of_a_prediction ON labels (prediction, number);
"""


@pytest.fixture
def old(tmp_path):
    with sqlite3.connect(tmp_path / "m.db") as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(VERSION_1)
    connection.close()
    return str(tmp_path / "m.db")


def test_a_store_of_version_1_is_brought_up_with_all_that_is_in_it(old, prediction):
    store = PredictionStore(old)
    one, two = store.model("1"), store.model("2")
    window = store.window(one)
    assert (one.served_at, window.sequence.tolist(), window.ids.tolist()) == (5.0, [1, 2, 4], [10, 11, 12])
    assert window.labels.tolist() == [1, 1, -1]
    assert window.predicted.tolist() == [1, 1, 1]
    assert np.array_equal(window.statistics["contrast"], [1, np.nan, 3], equal_nan=True)
    assert np.array_equal(window.statistics["brightness"][1:], np.float32([1, 2]) / np.float32(3))
    assert store.window(two).non_finite == 1
    assert store.labels_since(one, 0, 10).before.tolist() == [-1, -1, 0]
    assert [(alert["metric"], alert["acknowledged_at"]) for alert in store.alerts(one)] == [("accuracy", None)]
    store.write([prediction(100, two, statistics={"contrast": 2.0})])
    assert store.window(two).sequence.tolist() == [7, 8]
    assert store.note_alert(1, acknowledged_at=3.0)
    store.close()
    assert PredictionStore(old).window(one).n == 3  # and it stays as it is now


def test_a_store_that_cannot_be_brought_up_is_left_as_it_was(old, monkeypatch):
    with sqlite3.connect(old) as connection:
        connection.execute("UPDATE predictions SET statistics = '{broken' WHERE sequence = 4")
    before = list(connection.iterdump())
    with pytest.raises(StoreError, match=r"^the store .*m.db cannot be brought up to this version: malformed JSON$"):
        PredictionStore(old)
    assert list(connection.iterdump()) == before
    connection.close()


def test_a_store_that_somebody_else_is_writing_to_is_not_brought_up_meanwhile(old, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.01)
    with sqlite3.connect(old, isolation_level=None) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="cannot be brought up to this version: database is locked"):
            PredictionStore(old)
        connection.execute("ROLLBACK")
    connection.close()
    store = PredictionStore(old)
    assert store.versions() == ["1", "2"]
    store.close()


def test_a_store_of_a_later_version_is_refused(file_store, prediction):
    file_store.write([prediction(1, Model("1", ("cat", "dog")))])
    with sqlite3.connect(str(file_store)) as connection:
        connection.execute("UPDATE store_format SET version = 4")
    connection.close()
    with pytest.raises(StoreError, match="is of format 4, and this program knows 3: update the program"):
        PredictionStore(str(file_store))


def test_a_store_of_an_earlier_version_that_is_not_brought_up_is_one_line(file_store, prediction):
    file_store.write([prediction(1, Model("1", ("cat", "dog")))])
    with sqlite3.connect(str(file_store)) as connection:
        connection.execute("UPDATE store_format SET version = 2")
    connection.close()
    with pytest.raises(StoreError, match=r"m.db was made by an earlier version of this program: begin another one$"):
        PredictionStore(str(file_store))
