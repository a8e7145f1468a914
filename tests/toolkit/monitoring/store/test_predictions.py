"""The store: what is read back is what was written, in the order in which it was written."""

import multiprocessing
import threading

import numpy as np
import pytest

from toolkit.errors import UnknownPrediction
from toolkit.monitoring.base.ids import new_prediction_id, parse_prediction_id
from toolkit.monitoring.store import labels
from toolkit.monitoring.store import predictions as module
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.predictions import LoggedPrediction, PredictionStore

CLASSES = ("cat", "dog")


def test_a_window_is_what_was_written_oldest_first(store, prediction, monkeypatch):
    monkeypatch.setattr(module, "PAGE_SIZE", 2)  # so that it comes in several parts
    model = ModelVersion("1", CLASSES)
    batch = [prediction(i, model, i / 8, latency_ms=i, statistics={"brightness": i / 3}) for i in range(1, 8)]
    assert store.write(batch) == 7
    window = store.window(model, 5)
    assert window.time.tolist() == [3, 4, 5, 6, 7]
    assert window.predicted.tolist() == [1, 0, 0, 0, 0]
    assert window.confidence.tolist() == [0.625, 0.5, 0.625, 0.75, 0.875]
    assert window.latency.tolist() == [3, 4, 5, 6, 7]
    assert np.array_equal(window.statistics["brightness"], np.arange(3, 8, dtype=np.float32) / np.float32(3))
    assert window.probabilities[:, 0].tolist() == [0.375, 0.5, 0.625, 0.75, 0.875]
    assert not store.window(model, 5, statistics=False).statistics


def test_the_change_token_stays_while_nothing_is_new(store, prediction):
    assert store.change_token() is None
    store.write([prediction(1, ModelVersion("1", CLASSES))])
    name, *numbers = store.change_token()
    assert numbers == [1, 0]
    assert store.change_token() == (name, 1, 0)
    store.labels.insert({1: "dog"}, "user", 0.0)
    assert store.change_token() == (name, 1, 1)


def test_predictions_that_are_not_finite_are_kept_apart(store, prediction):
    model = ModelVersion("1", CLASSES)
    store.write(
        [prediction(1, model, np.nan, statistics={"brightness": np.inf, "contrast": 1.0}), prediction(2, model)]
    )
    window = store.window(model)
    assert window.predicted.tolist() == [-1, 0]
    assert window.non_finite == 1
    assert set(window.statistics) == {"contrast"}


def test_an_id_that_is_there_already_is_left_as_it_is(store, prediction):
    model = ModelVersion("1", CLASSES)
    store.write([prediction(1, model, 0.75)])
    assert store.write([prediction(1, model, 0.25), prediction(2, model, 0.25)]) == 1
    assert store.window(model).predicted.tolist() == [0, 1]


def test_statistics_that_come_up_later_and_elsewhere_find_their_places(address, prediction):
    """Two processes that learn names of their own never take one for the other."""
    model = ModelVersion("1", CLASSES)
    one, two = PredictionStore(address), PredictionStore(address)
    one.write([prediction(1, model, statistics={"a": 1.0})])
    two.write([prediction(2, model, statistics={"b": 2.0})])
    one.write([prediction(3, model, statistics={"c": 3.0, "a": 4.0}), prediction(4, model)])
    two.write([prediction(5, model, statistics={"b": 5.0, "c": 6.0})])
    for store in (one, two, PredictionStore(address)):  # both writers, and a reader
        statistics = store.window(model).statistics
        assert np.array_equal(statistics["a"], [1, np.nan, 4, np.nan, np.nan], equal_nan=True)
        assert np.array_equal(statistics["b"], [np.nan, 2, np.nan, np.nan, 5], equal_nan=True)
        assert np.array_equal(statistics["c"], [np.nan, np.nan, 3, np.nan, 6], equal_nan=True)
        store.close()


def test_the_order_is_that_of_writing_also_when_the_clock_jumps_back(store, prediction):
    model = ModelVersion("1", CLASSES)
    times = [1e9, 1e9 + 1, 5e8, 5e8, 5e8 + 1]
    ids = [parse_prediction_id(new_prediction_id(lambda time=time: time)) for time in times]
    for number, time in zip(ids, times, strict=True):
        store.write([prediction(number, model, time=time)])
    window = store.window(model)
    assert window.time.tolist() == times
    assert window.ids.tolist() == ids == sorted(set(ids))
    assert (np.diff(window.sequence) > 0).all()


def test_reading_creates_nothing(tmp_path):
    store = PredictionStore(f"sqlite:///{tmp_path}/m.db")
    assert store.window(ModelVersion("1", CLASSES)).n == store.rows_since(ModelVersion("1", CLASSES), 0, 10).n == 0
    assert store.alerts.find() == store.versions.names() == []
    assert store.labels.last() == 0
    with pytest.raises(UnknownPrediction, match="is empty"):
        store.labels.insert({1: "cat"}, "user", 0.0)
    assert list(tmp_path.iterdir()) == []


def write_many(address, first):
    store, model = PredictionStore(address), ModelVersion("1", CLASSES)
    for start in range(first, first + 2000, 50):
        scores = np.array([0.5, 0.5], np.float16)
        store.write([LoggedPrediction(n, 0.0, model, scores, {"b": 1.0}) for n in range(start, start + 50)])


def test_processes_that_write_at_once_lose_no_row_for_any_reader(address):
    """From the first moment on, in which each of them may be the one that makes the tables."""
    model, store = ModelVersion("1", CLASSES), PredictionStore(address)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=write_many, args=(address, 1 + 10_000 * i)) for i in range(2)]
    for process in processes:
        process.start()
    ids, reached = [], 0
    while True:
        running = any(process.is_alive() for process in processes)  # before the reading, which may be the last
        rows = store.rows_since(model, reached, 10_000)
        ids += rows.ids.tolist()
        reached = int(rows.sequence[-1]) if rows.n else reached
        if not running and not rows.n:
            break
    assert [process.exitcode for process in processes] == [0, 0]
    assert store.versions.names() == ["1"]
    assert sorted(ids) == [*range(1, 2001), *range(10_001, 12_001)]
    store.close()


def test_threads_share_a_store(store, prediction):
    """From the first moment on, in which each of them may be the one that makes the tables."""
    model = ModelVersion("1", CLASSES)
    threads = [
        threading.Thread(target=lambda i=i: [store.write([prediction(100 * i + j, model)]) for j in range(20)])
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(store.window(model).ids) == [100 * i + j for i in range(4) for j in range(20)]


def test_images_are_found_again_by_the_names_that_came_with_them(store, prediction, monkeypatch):
    monkeypatch.setattr(labels, "MAX_IDS", 2)
    model = ModelVersion("1", CLASSES)
    store.write([prediction(i, model, source=f"{i}.jpg" if i % 2 else None) for i in range(1, 8)])
    assert store.sources([7, 1, 2, 3, 99]) == {1: "1.jpg", 3: "3.jpg", 7: "7.jpg"}
    assert store.sources([]) == {}


def test_an_alert_names_a_few_of_the_images_that_it_is_about(store, prediction):
    model, other = ModelVersion("1", CLASSES), ModelVersion("2", CLASSES)
    first = {n: 0.25 if n % 4 == 0 else np.nan if n in (3, 999) else 0.75 for n in range(1, 1101)}
    store.write([prediction(n, model, value, source=f"{n}.jpg" if n != 1100 else None) for n, value in first.items()])
    store.write([prediction(2000, other, source="other.jpg")])
    store.labels.insert(dict.fromkeys((4, 1000, 1001, 1004, 1008), "cat"), "audit", 0.0)
    store.labels.insert({1004: "dog"}, "audit", 0.0)  # as predicted after all
    store.labels.insert({1012: "cat"}, "complaint", 0.0)
    found = {
        metric: store.sources_about(model, metric, "short", 1100, 99)
        for metric in ("accuracy", "non_finite", "confidence_distribution")
    }
    assert found == {
        "accuracy": ["1008.jpg", "1000.jpg"],  # what is older than the window is not meant
        "non_finite": ["999.jpg"],
        "confidence_distribution": ["1099.jpg", "1098.jpg", "1097.jpg", "1096.jpg", "1095.jpg"],
    }
    assert store.sources_about(model, "accuracy", "short", 1005, 99) == ["1000.jpg"]
    assert store.sources_about(model, "accuracy", "short", 1100, 4) == ["1004.jpg", "1000.jpg"]
    assert store.sources_about(model, "model_loading", "none", 1100, 99) == []
