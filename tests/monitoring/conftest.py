"""A monitor of a model with a baseline."""

import pytest

from monitoring import ModelMonitor, MonitorConfig
from support.monitored_streams import Clock, make_baseline


@pytest.fixture
def baseline():
    return make_baseline()


@pytest.fixture
def monitor(baseline):
    with ModelMonitor("m.db", baseline, model_version="1", config=MonitorConfig(clock=Clock())) as monitor:
        yield monitor
