"""Closing waits for as long as a busy machine needs."""

import pytest

from support import MAX_WAIT_S
from toolkit.monitoring.alerting import notifiers, webhook


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    for module in (notifiers, webhook):
        monkeypatch.setattr(module, "EXIT_TIMEOUT_S", MAX_WAIT_S)
