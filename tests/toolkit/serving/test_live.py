"""The live model follows its source, survives everything the source does, and frees what it replaced."""

import gc
import logging
import threading
import weakref

import numpy as np
import pytest

from toolkit.errors import BundleError, NotRegistered, TrackingError
from toolkit.serving.live import LONGEST_PAUSE, Live, identity


class Changes:
    """Waits for models to be adopted, in a thread of their own."""

    def __init__(self):
        self.seen, self.news = [], threading.Condition()

    def __call__(self, model):
        with self.news:
            self.seen.append(model.version)
            self.news.notify_all()

    def wait_for(self, count):
        with self.news:
            assert self.news.wait_for(lambda: len(self.seen) >= count, 30), self.seen


@pytest.fixture
def adopted():
    return Changes()


@pytest.fixture
def live(shelf, adopted):
    return Live(shelf, adopted, poll_seconds=1000)


def test_it_begins_empty_and_says_why(live, shelf):
    assert (live.model, live.reason()) == (None, "the registry has not answered yet")
    assert live.describe() == {
        "reachable": False, "problem": None, "last_look": None, "changes": 0, "set_aside": None
    }  # fmt: skip
    shelf.wanted = NotRegistered("nothing is in Production")
    assert live.look() == "waiting"
    assert (live.reason(), live.reachable) == ("nothing is in Production", True)
    shelf.wanted = TrackingError("MLflow at http://me:pw@host:1 does not answer")
    assert live.look() == "unreachable"
    assert (live.reason(), live.reachable) == ("MLflow at http://host:1 does not answer", False)


def test_it_follows_promotions_and_rollbacks_and_loads_each_once(live, shelf, adopted):
    found = []
    for version in (1, 1, 2, 2, 1):  # the last one is a rollback: a smaller number
        shelf.put(version)
        found.append(live.look())
        assert live.model.release.version == version
        assert live.model.bundle is shelf.bundles[version]
        picture = np.full((1, 16, 16, 3), 90, np.uint8)
        np.testing.assert_array_equal(live.model.engine.infer(picture), shelf.bundles[version].predict(picture))
    assert found == ["loaded", "unchanged", "loaded", "unchanged", "loaded"]
    assert adopted.seen == ["1", "2", "1"]
    assert shelf.loads == [1, 2, 1]
    assert live.describe()["changes"] == 3


def test_the_same_number_with_another_digest_is_another_model(live, shelf, make_bundle):
    live.look()
    first = identity(live.model.release)
    shelf.put(1)
    shelf.wanted = type(shelf.wanted)(1, "registered anew")
    shelf.bundles[1] = make_bundle(digest="registered anew")
    assert live.look() == "loaded"
    assert identity(live.model.release) != first


def test_what_was_replaced_is_freed(live, shelf, make_bundle):
    live.look()
    old = weakref.ref(live.model)
    program = weakref.ref(live.model.bundle.program)
    shelf.put(2)
    live.look()
    shelf.bundles[1] = make_bundle()  # the shelf's own
    gc.collect()
    assert old() is None
    assert program() is None


@pytest.mark.parametrize(
    "trouble",
    [
        BundleError("the bundle was altered"),
        TrackingError("no answer"),
        RuntimeError("PytorchStreamReader failed\nin file /srv/x.cpp"),
        KeyError(),
        MemoryError("no room"),
    ],
)
def test_a_version_that_cannot_be_loaded_leaves_the_one_before_it(live, shelf, adopted, trouble):
    live.look()
    good = live.model
    shelf.bundles[2] = trouble
    shelf.put(2)
    assert [live.look() for _ in range(3)] == ["failed", "set aside", "set aside"]
    assert live.model is good
    assert live.look(again=True) == "failed"
    aside = live.describe()["set_aside"]
    assert (aside["version"], aside["attempts"]) == (2, 2)
    assert "\n" not in aside["reason"]
    assert "/srv" not in aside["reason"]
    assert 0 < aside["next_attempt_s"] <= LONGEST_PAUSE
    assert shelf.loads == [1, 2, 2]
    assert adopted.seen == ["1"]
    assert live.loading is None


def test_a_version_that_was_mended_is_loaded_and_one_that_was_withdrawn_forgotten(live, shelf, make_bundle):
    live.look()
    shelf.bundles[2] = BundleError("broken")
    shelf.put(2)
    live.look()
    shelf.put(1)
    assert live.look() == "unchanged"
    assert live.describe()["set_aside"] is None
    shelf.put(2)
    assert live.look() == "failed"  # at once: it is another promotion
    shelf.bundles[2] = make_bundle(digest="v2")
    assert live.look(again=True) == "loaded"
    assert live.describe()["set_aside"] is None


def test_a_version_that_fails_for_days_is_still_looked_at(live, shelf):
    shelf.bundles[1] = BundleError("broken")
    for attempt in range(1, 1500):
        assert live.look(again=True) == "failed"
        assert live.failure.attempts == attempt
    assert live.look() == "set aside"
    assert live.reason() == "version 1 cannot be loaded: broken"


def test_a_program_that_gives_no_numbers_is_set_aside(live, shelf, make_bundle):
    shelf.bundles[1] = make_bundle(row=[0.5, float("nan"), 0.5])
    assert live.look() == "failed"
    assert live.model is None
    assert "NaN" in live.reason()


def test_a_bundle_that_is_not_the_one_that_was_found_is_not_taken(live, shelf, make_bundle):
    shelf.bundles[1] = make_bundle(digest="of a version registered in between")
    assert live.look() == "failed"
    assert "changed while" in live.reason()


def test_a_model_that_cannot_be_adopted_does_not_answer(shelf):
    def refuse(model):
        raise RuntimeError("not this one")

    live = Live(shelf, refuse, 1000)
    assert live.look() == "failed"
    assert live.model is None


def test_a_registry_that_goes_away_takes_nothing_with_it(live, shelf):
    live.look()
    for trouble in (TrackingError("no answer"), NotRegistered("nothing there")):
        shelf.wanted = trouble
        live.look()
        assert live.model.version == "1"
        assert live.describe()["problem"] == str(trouble)
    shelf.put(1)
    assert live.look() == "unchanged"
    assert live.describe()["problem"] is None


def test_the_log_has_a_line_when_trouble_begins_and_when_it_ends_and_no_more(live, shelf, caplog):
    caplog.set_level(logging.INFO)
    live.look()
    shelf.wanted = TrackingError("no answer")
    for _ in range(5):
        live.look()
    shelf.put(1)
    for _ in range(5):
        live.look()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("version 1 serves, loaded in ")
    assert lines[1:] == ["no answer; version 1 serves on", "the registry answers again"]


def test_the_thread_survives_whatever_is_raised_and_ends_when_told(shelf, adopted, caplog):
    live, looks = Live(shelf, adopted, poll_seconds=0.001), threading.Event()
    find, troubles = shelf.find, iter([ValueError("a library's own"), OSError(), AssertionError(), ZeroDivisionError()])

    def broken():
        for trouble in troubles:
            raise trouble
        looks.set()
        return find()

    shelf.find = broken
    live.start()
    assert looks.wait(30)
    adopted.wait_for(1)
    shelf.put(2)
    adopted.wait_for(2)
    live.stop()
    assert not live._thread.is_alive()
    assert adopted.seen == ["1", "2"]
    assert len([record for record in caplog.records if record.exc_info]) == 4


def test_an_unforeseen_error_is_shown_as_trouble_with_the_registry(shelf, adopted, monkeypatch):
    live, waits = Live(shelf, adopted, poll_seconds=0.001), threading.Event()
    live.look()
    shelf.wanted = ValueError("a library's own")
    monkeypatch.setattr(live._stopping, "wait", lambda _seconds: waits.set() or live._stopping.set())
    live.start()
    assert waits.wait(30)
    live.stop()
    assert live.describe()["problem"] == "the look at it failed: ValueError"
    assert live.reachable is False
    assert live.model.version == "1"


def test_looks_of_many_threads_load_a_model_once(live, shelf):
    threads = [threading.Thread(target=live.look) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shelf.loads == [1]
    assert live.changes == 1
