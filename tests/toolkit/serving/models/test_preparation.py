"""The newest version is prepared once while another one serves, and makes way for one that has to serve."""

import logging
import threading
from dataclasses import dataclass

import pytest

from support import MAX_WAIT_S
from toolkit.errors import BundleError
from toolkit.serving.models.preparation import AdvancePreparation


@dataclass
class Release:
    version: int
    digest: str


LIVE = Release(1, "v1")


class Registry:
    """The newest version, and those that were prepared; ``error`` is raised by each preparation."""

    def __init__(self, newest=None):
        self.newest, self.prepared, self.error = newest, [], None
        self.begun, self.gate = threading.Event(), None

    def prepare(self, release, stopping):
        self.prepared.append(release.version)
        self.begun.set()
        if self.gate is not None:
            assert self.gate(stopping)
        if stopping.is_set():
            raise BundleError("interrupted")
        if self.error is not None:
            raise self.error

    def advance(self):
        return AdvancePreparation(lambda: self.newest, self.prepare)


def test_each_newest_version_is_prepared_once():
    registry = Registry()
    advance = registry.advance()
    for newest in (None, LIVE, Release(2, ""), Release(3, "v3"), Release(3, "v3"), Release(4, "v4")):
        registry.newest = newest
        advance.prepare_newest(LIVE)
    assert registry.prepared == [3, 4]


def test_a_version_that_cannot_be_prepared_is_reported_and_tried_once(caplog):
    registry = Registry(Release(2, "v2"))
    registry.error, advance = BundleError("it was altered\nlong ago"), registry.advance()
    with caplog.at_level(logging.INFO, logger="toolkit.serving"):
        for _ in range(3):
            advance.prepare_newest(LIVE)
    assert registry.prepared == [2]
    assert caplog.messages == ["version 2 cannot be prepared in advance: it was altered"]


@pytest.mark.parametrize(("wanted", "times"), [("v9", 2), ("", 2), ("v2", 1)])
def test_it_is_interrupted_for_another_version_and_tried_again(wanted, times, caplog):
    registry, asked = Registry(Release(2, "v2")), threading.Event()
    advance = registry.advance()
    registry.gate = lambda _: asked.wait(MAX_WAIT_S)
    thread = threading.Thread(target=advance.prepare_newest, args=(LIVE,))
    thread.start()
    assert registry.begun.wait(MAX_WAIT_S)
    advance.interrupt(wanted)
    asked.set()
    thread.join()
    advance.interrupt(wanted)  # of nothing
    advance.prepare_newest(LIVE)
    assert registry.prepared == [2] * times
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
