"""After each write, alerts are evaluated in time, rollups written, and expired rows deleted."""

import sqlite3

import numpy as np
import pytest

from support.prediction_fixtures import answers, baseline_of, names
from toolkit.monitoring.alerting.notifiers import Notifiers
from toolkit.monitoring.base.thresholds import Thresholds
from toolkit.monitoring.pipeline.worker import MonitorConfig, MonitoringWorker
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.predictions import LoggedPrediction
from toolkit.monitoring.store.rollups import read_rollups

MODEL = ModelVersion("1", names(3), baseline_of(1000, np.random.default_rng(0)), served_at=1.0)
LONG = 1e9  # seconds: so long a pause between two evaluations that none comes because of the time


@pytest.fixture
def store(file_store):
    """A store that knows the model."""
    file_store.versions.register(MODEL)
    return file_store


def make_worker(store, **config):
    return MonitoringWorker(store, Thresholds(), Notifiers({}), MonitorConfig(clock=lambda: 2e9, **config))


def write(store, first, n, probabilities=None):
    """Write predictions: all of one class and certain, unless they are given, which is far from any baseline."""
    rows = np.tile(np.array([1, 0, 0], np.float16), (n, 1)) if probabilities is None else probabilities
    store.write([LoggedPrediction(first + i, 1.7e9, MODEL, row) for i, row in enumerate(rows)])


def test_the_stream_of_the_last_version_is_kept(store):
    worker = make_worker(store)
    assert worker.stream(MODEL) is worker.stream(MODEL)
    assert worker.stream(ModelVersion("2", names(3))) is not worker.stream(MODEL)


def test_a_hundred_predictions_are_evaluated_at_once_and_fewer_after_the_pause(store):
    worker = make_worker(store, evaluation_pause=LONG)
    assert worker.after_write(MODEL, 0) is None  # the first time nothing is waited for
    for first in range(1, 91, 10):
        write(store, first, 10)
        assert LONG / 2 < worker.after_write(MODEL, 10) <= LONG
        assert store.alerts.find() == []
    write(store, 91, 10)
    assert worker.after_write(MODEL, 10) is None
    assert store.alerts.find()
    assert worker.after_write(MODEL, 0) is None  # all of them are evaluated


def test_a_few_predictions_are_evaluated_when_the_pause_is_over(store):
    worker = make_worker(store, evaluation_pause=0)
    worker.after_write(MODEL, 0)
    write(store, 1, 60)
    assert worker.after_write(MODEL, 60) is None
    assert store.alerts.find()


@pytest.mark.parametrize(("keep_days", "kept"), [(1, 2000), (None, 4000)])
def test_a_thousand_predictions_become_a_rollup_and_old_ones_go_where_asked(store, small_windows, keep_days, kept):
    worker = make_worker(store, keep_days=keep_days)
    for step in range(4):
        write(store, 1 + 1000 * step, 1000, answers(1000, np.random.default_rng(step))[0])
        worker.after_write(MODEL, 1000)
    assert [rollup.n for rollup in read_rollups(store, MODEL)] == [1000] * 4
    assert store.window(MODEL).n == kept  # all are older than a day; the last 2,000 are of the windows
    assert worker.stream(MODEL).refresh().counts("long").n == 4000


def test_a_store_that_cannot_be_evaluated_is_a_line_in_the_log(store, tmp_path, caplog):
    worker = make_worker(store)
    write(store, 1, 100)
    with sqlite3.connect(tmp_path / "m.db") as connection:
        connection.execute("DROP TABLE checkpoints")
    connection.close()
    assert worker.after_write(MODEL, 100) is None
    worker.finish(MODEL)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["alerts could not be checked"] * 2
    assert store.window(MODEL).n == 100
