"""The model versions of a store: which is current, and which are one and the same."""

import sqlite3

import numpy as np
import pytest

from toolkit.bundle.baseline import Baseline
from toolkit.errors import PredictionStoreError
from toolkit.monitoring.store.model_versions import ModelVersion

CLASSES = ("cat", "dog")


def test_the_current_version_is_the_one_served_last(store):
    for name, served_at in (("1", 1.0), ("2", 2.0), ("3", None)):
        store.versions.register(ModelVersion(name, CLASSES, None, served_at))
    assert store.versions.current().version == "2"
    store.versions.register(ModelVersion("1", CLASSES, None, 3.0))
    current = store.versions.current()
    assert current.version == "1"
    assert store.versions.current(current) is current
    assert store.versions.names() == ["1", "2", "3"]


def test_registering_without_a_baseline_keeps_the_baseline(store):
    baseline = Baseline(CLASSES, np.array([[0.9, 0.1]]), np.array([0]))
    store.versions.register(ModelVersion("1", CLASSES, baseline))
    store.versions.register(ModelVersion("1", CLASSES))
    assert store.versions.get("1").baseline.probabilities.tolist() == baseline.probabilities.tolist()


def test_one_name_for_two_models_is_two_models(store, prediction):
    """A registry that was recreated has a version 1 again."""
    baseline = Baseline(CLASSES, np.array([[0.9, 0.1]]), np.array([0]))
    other = Baseline(CLASSES, np.array([[0.8, 0.2]]), np.array([0]))
    models = [
        ModelVersion("1", CLASSES, baseline, 1.0),
        ModelVersion("1", CLASSES, other, 2.0),
        ModelVersion("1", CLASSES[::-1], None, 3.0),
    ]
    numbers = [store.versions.register(model) for model in models]
    assert len(set(numbers)) == 3
    assert store.versions.register(ModelVersion("1", CLASSES, baseline, 4.0)) == numbers[0]
    assert store.versions.names() == ["1"]
    current = store.versions.current()
    assert current.baseline.probabilities.tolist() == baseline.probabilities.tolist()
    store.write([prediction(1, models[0]), prediction(2, models[1]), prediction(3, models[1])])
    assert [store.window(model).n for model in (*models, current)] == [1, 2, 0, 1]


def test_a_damaged_baseline_is_said_in_one_line(file_store):
    file_store.versions.register(ModelVersion("1", CLASSES, None, 1.0))
    with sqlite3.connect(str(file_store)) as connection:
        connection.execute("UPDATE models SET baseline = ?", (b"PK nonsense",))
    with pytest.raises(PredictionStoreError, match=r"is damaged: the baseline cannot be read"):
        file_store.versions.current()
