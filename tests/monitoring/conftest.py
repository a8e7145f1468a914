"""A monitor of a model with a baseline; readers and reactions have as long as a busy machine needs."""

import pytest

import monitoring
from monitoring import ModelMonitor, MonitorConfig
from support import MAX_WAIT_S
from support.monitored_streams import Clock, make_baseline
from toolkit.monitoring.alerting import notifiers


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr(monitoring, "REREAD_AFTER_S", MAX_WAIT_S)
    monkeypatch.setattr(notifiers, "EXIT_TIMEOUT_S", MAX_WAIT_S)


@pytest.fixture
def baseline():
    return make_baseline()


@pytest.fixture
def monitor(baseline):
    with ModelMonitor("m.db", baseline, model_version="1", config=MonitorConfig(clock=Clock())) as monitor:
        yield monitor
