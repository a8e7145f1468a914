"""Windows so small that a test of what is older than them needs few predictions."""

import pytest

from toolkit.monitoring.base.predictions import WINDOWS
from toolkit.monitoring.pipeline import stream_state
from toolkit.monitoring.store import rollups
from toolkit.monitoring.windows import rolling


@pytest.fixture
def small_windows(monkeypatch):
    """The medium window holds 2,000 predictions, and so many are kept."""
    for module, name in ((stream_state, "MAX_WINDOW"), (rolling, "MAX_WINDOW"), (rollups, "MIN_ROWS")):
        monkeypatch.setattr(module, name, 2000)
    monkeypatch.setitem(WINDOWS, "medium", 2000)
