"""What the writer's thread does beside writing: views, looks at times, blocks, and room given back."""

import numpy as np
import pytest

from support.prediction_fixtures import answers, baseline_of, names
from toolkit.monitoring import attendant as module
from toolkit.monitoring.attendant import Attendant
from toolkit.monitoring.blocks import read_blocks
from toolkit.monitoring.limits import Limits
from toolkit.monitoring.models import Model
from toolkit.monitoring.sinks import Sinks
from toolkit.monitoring.store import Prediction

BASELINE = baseline_of(1000, np.random.default_rng(0))
MODEL = Model("1", names(3), BASELINE, served_at=1.0)


@pytest.fixture
def worker(file_store, monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 1e9)
    worker = Attendant(file_store, Limits(), lambda: 2e9, Sinks({}), keep_days=1)
    worker._looked = 1e18  # as if it had looked a moment ago
    return worker


def write(store, n, first=1, seed=1):
    probabilities, _ = answers(n, np.random.default_rng(seed))
    store.write([Prediction(first + i, 1.7e9, MODEL, row) for i, row in enumerate(probabilities)])


def test_a_view_is_kept_while_the_version_is_asked_for(file_store):
    worker = Attendant(file_store, Limits(), lambda: 2e9, Sinks({}))
    assert worker.view(MODEL) is worker.view(MODEL)
    assert worker.view(Model("2", names(3))) is not worker.view(MODEL)


def test_it_looks_when_there_is_enough_news_or_time_has_passed(worker, file_store, monkeypatch):
    looked = []
    monkeypatch.setattr(worker, "look", looked.append)
    for _ in range(9):
        worker.attend(MODEL, 10)
    assert looked == []
    worker.attend(MODEL, 10)
    assert looked == [MODEL]
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    worker.attend(MODEL, 0)
    assert looked == [MODEL] * 2


def test_what_is_left_of_a_burst_is_looked_at_when_it_is_time_again(worker, monkeypatch):
    looked = []
    monkeypatch.setattr(worker, "look", looked.append)
    monkeypatch.setattr(module, "LOOK_SECONDS", 1000.0)
    worker._looked = module.time.monotonic()
    assert worker.attend(MODEL, 0) is None  # there is nothing to look at
    assert 900 < worker.attend(MODEL, 30) <= 1000
    assert worker.attend(MODEL, 100) is None
    assert worker.attend(MODEL, 0) is None
    assert looked == [MODEL]


def test_a_thousand_predictions_become_a_block_and_old_ones_go(worker, file_store, monkeypatch):
    monkeypatch.setattr("toolkit.monitoring.retention.LEAST_ROWS", 1000)
    for step in range(4):
        write(file_store, 1000, 1 + 1000 * step, step)
        worker.attend(MODEL, 1000)
    assert [block.n for block in read_blocks(file_store, MODEL)] == [1000] * 4
    assert file_store.window(MODEL).n == 1000  # the rest is older than a day
    assert worker.view(MODEL).catch_up().counts("long").n == 4000


def test_trouble_is_a_line_in_the_log(worker, monkeypatch, caplog):
    def fail(model):
        raise OSError("no more room")

    monkeypatch.setattr(worker, "look", fail)
    worker.attend(MODEL, 100)
    assert "alerts could not be checked: no more room" in caplog.text
