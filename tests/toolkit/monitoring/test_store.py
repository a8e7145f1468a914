"""The store: what is read back is what was counted, and whatever is wrong is one sentence."""

import sqlite3

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.baseline import Baseline
from toolkit.errors import SettingsError, StoreError, UnknownPrediction
from toolkit.monitoring import store as module
from toolkit.monitoring.store import Model, Prediction, PredictionStore

CLASSES = ("cat", "dog")


@pytest.fixture
def store(tmp_path):
    store = PredictionStore(str(tmp_path / "m.db"))
    yield store
    store.close()


def prediction(number, model, first=0.75, **more):
    return Prediction(number, float(number), model, np.array([first, 1 - first], np.float16), **more)


def test_a_window_is_what_was_written_oldest_first(store, monkeypatch):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 2)  # so that it comes in several parts
    model = Model("1", CLASSES)
    batch = [prediction(i, model, i / 8, latency_ms=i, statistics={"brightness": i / 3}) for i in range(1, 8)]
    assert store.write(batch) == 7
    window = store.window(model, 5)
    assert window.time.tolist() == [3, 4, 5, 6, 7]
    assert window.predicted.tolist() == [1, 0, 0, 0, 0]
    assert window.confidence.tolist() == [0.625, 0.5, 0.625, 0.75, 0.875]
    assert window.latency.tolist() == [3, 4, 5, 6, 7]
    assert np.array_equal(window.statistics["brightness"], np.arange(3, 8, dtype=np.float32) / np.float32(3))


@given(st.floats(0, 1), st.floats(-1e6, 1e6, allow_nan=False))
def test_numbers_come_back_exactly_as_a_baseline_holds_them(tmp_path_factory, confidence, brightness):
    model = Model("1", CLASSES)
    store = PredictionStore(str(tmp_path_factory.mktemp("s") / "m.db"))
    given_probabilities = np.array([confidence, 1 - confidence], np.float16)
    store.write([Prediction(1, 0.0, model, given_probabilities, {"brightness": brightness})])
    window = store.window(model)
    baseline = Baseline(CLASSES, given_probabilities[None], np.array([0]), statistics={"b": np.float32([brightness])})
    assert window.confidence[0] == baseline.confidence[0]
    assert window.predicted[0] == baseline.predicted[0]
    assert window.statistics["brightness"][0] == baseline.statistics["b"][0]
    store.close()


def test_predictions_that_are_not_finite_are_kept_apart(store):
    model = Model("1", CLASSES)
    store.write(
        [prediction(1, model, np.nan, statistics={"brightness": np.inf, "contrast": 1.0}), prediction(2, model)]
    )
    window = store.window(model)
    assert window.predicted.tolist() == [-1, 0]
    assert window.non_finite == 1
    assert set(window.statistics) == {"contrast"}


def test_an_id_that_is_there_already_is_left_as_it_is(store):
    model = Model("1", CLASSES)
    store.write([prediction(1, model, 0.75)])
    assert store.write([prediction(1, model, 0.25), prediction(2, model, 0.25)]) == 1
    assert store.window(model).predicted.tolist() == [0, 1]


def test_the_last_label_counts_and_all_are_kept(store):
    model = Model("1", CLASSES)
    store.write([prediction(1, model), prediction(2, model)])
    assert store.label({1: "cat"}, "user", 10.0) == 1
    assert store.label({1: "cat"}, "user", 11.0) == 0
    assert store.label({1: "dog", 2: "cat"}, "audit", 12.0) == 2
    assert store.window(model).labels.tolist() == [1, 0]
    with sqlite3.connect(str(store)) as connection:
        kept = connection.execute("SELECT prediction, label, source FROM labels ORDER BY number").fetchall()
    assert kept == [(1, 0, "user"), (1, 1, "audit"), (2, 0, "audit")]


def test_labels_are_told_all_or_none(store):
    model = Model("1", CLASSES)
    store.write([prediction(number, model) for number in range(1, 1200)])
    with pytest.raises(UnknownPrediction, match="there is no prediction 00000000000004b0"):
        store.label(dict.fromkeys(range(1, 1201), "dog"), "user", 0.0)
    with pytest.raises(SettingsError, match="no class 'dgo'; the classes are dog, cat"):
        store.label({1: "dog", 2: "dgo"}, "user", 0.0)
    assert store.window(model).n_labels == 0
    assert store.label(dict.fromkeys(range(1, 1200), "dog"), "user", 0.0) == 1199


def test_the_current_version_is_the_one_served_last(store):
    first, second, beside = Model("1", CLASSES, None, 1.0), Model("2", CLASSES, None, 2.0), Model("3", CLASSES)
    for model in (first, second, beside):
        store.register(model)
    assert store.current().version == "2"
    store.register(Model("1", CLASSES, None, 3.0))
    current = store.current()
    assert current.version == "1"
    assert store.current(current) is current
    assert store.versions() == ["1", "2", "3"]


def test_a_baseline_is_kept_and_a_registration_without_one_does_not_lose_it(store):
    baseline = Baseline(CLASSES, np.array([[0.9, 0.1]]), np.array([0]))
    store.register(Model("1", CLASSES, baseline))
    store.register(Model("1", CLASSES))
    assert store.model("1").baseline.probabilities.tolist() == baseline.probabilities.tolist()


def test_one_name_for_two_models_is_two_models(store):
    """Whoever begins a registry anew gets a version 1 again."""
    baseline = Baseline(CLASSES, np.array([[0.9, 0.1]]), np.array([0]))
    other = Baseline(CLASSES, np.array([[0.8, 0.2]]), np.array([0]))
    models = [
        Model("1", CLASSES, baseline, 1.0),
        Model("1", CLASSES, other, 2.0),
        Model("1", CLASSES[::-1], None, 3.0),
    ]
    numbers = [store.register(model) for model in models]
    assert len(set(numbers)) == 3
    assert store.register(Model("1", CLASSES, baseline, 4.0)) == numbers[0]
    assert store.versions() == ["1"]
    current = store.current()
    assert current.baseline.probabilities.tolist() == baseline.probabilities.tolist()
    store.write([prediction(1, models[0]), prediction(2, models[1]), prediction(3, models[1])])
    assert [store.window(model).n for model in (*models, current)] == [1, 2, 0, 1]


def test_an_alert_that_stands_is_not_written_twice_but_a_worse_one_takes_its_place(store):
    model = Model("1", CLASSES)
    store.register(model)
    alert = {"metric": "accuracy", "window": "short", "level": "warning", "status": "confirmed", "value": 0.1}
    assert store.raise_alert(model, {**alert, "time": 1.0, "message": "m"})
    assert not store.raise_alert(model, {**alert, "time": 2.0, "message": "m"})
    assert store.raise_alert(model, {**alert, "window": "medium", "time": 3.0, "message": "m"})
    assert store.raise_alert(model, {**alert, "level": "critical", "time": 4.0, "message": "m"})
    assert [(a["level"], a["cleared_at"]) for a in store.alerts(model)] == [
        ("critical", None),
        ("warning", None),
        ("warning", 4.0),
    ]
    assert [a["id"] for a in store.alerts(since=3.0, standing=True)] == [3, 2]
    store.clear_alert(3, 5.0)
    assert store.raise_alert(model, {**alert, "level": "critical", "time": 6.0, "message": "m"})


def test_reading_creates_nothing(tmp_path):
    store = PredictionStore(f"sqlite:///{tmp_path}/m.db")
    assert store.window(Model("1", CLASSES)).n == 0
    assert store.alerts() == store.versions() == []
    assert store.position(Model("1", CLASSES)) == 0
    with pytest.raises(UnknownPrediction, match="is empty"):
        store.label({1: "cat"}, "user", 0.0)
    assert list(tmp_path.iterdir()) == []


def test_the_store_lets_readers_read_while_it_is_written(store):
    store.register(Model("1", CLASSES))
    with sqlite3.connect(str(store)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_what_is_no_store_is_said_in_one_line(tmp_path):
    (tmp_path / "m.db").write_bytes(b"this is no database, whatever its name may be" * 100)
    with pytest.raises(StoreError, match=r"^the store .*m.db cannot be opened: file is not a database$"):
        PredictionStore(str(tmp_path / "m.db"))
    with pytest.raises(StoreError, match=r"the folder .*nowhere does not exist"):
        PredictionStore(str(tmp_path / "nowhere" / "m.db"))
    with pytest.raises(StoreError, match="'nosuch://x' is no address of a store"):
        PredictionStore("nosuch://x")
    with pytest.raises(StoreError, match="in memory"):
        PredictionStore("sqlite://")


def test_a_damaged_baseline_is_said_in_one_line(store):
    store.register(Model("1", CLASSES, None, 1.0))
    with sqlite3.connect(str(store)) as connection:
        connection.execute("UPDATE models SET baseline = ?", (b"PK nonsense",))
    with pytest.raises(StoreError, match=r"is damaged: the baseline cannot be read"):
        store.current()


def test_a_store_that_may_only_be_read_is_read_and_refuses_to_be_written(store):
    model = Model("1", CLASSES)
    store.write([prediction(1, model)])
    reader = PredictionStore(f"sqlite:///file:{store}?mode=ro&uri=true")
    assert reader.window(model).n == 1
    with pytest.raises(StoreError, match="attempt to write a readonly database"):
        reader.write([prediction(2, model)])
    reader.close()


def test_a_locked_store_is_said_in_one_line(store, monkeypatch):
    model = Model("1", CLASSES)
    store.write([prediction(1, model)])
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.01)
    other = PredictionStore(str(store))
    with sqlite3.connect(str(store), isolation_level=None) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="cannot be written: database is locked"):
            other.write([prediction(2, model)])
        assert other.window(model).n == 1
        connection.execute("ROLLBACK")
    assert other.write([prediction(2, model)]) == 1
    other.close()
