"""The live model follows its source, survives its errors, and frees replaced models."""

import gc
import logging
import re
import threading
import weakref
from dataclasses import asdict, replace

import numpy as np
import pytest

from support import MAX_WAIT_S, wait_until
from toolkit.errors import BundleError, NotRegistered, TrackingError
from toolkit.serving.models.engines import TorchEngine
from toolkit.serving.models.manager import MAX_BACKOFF_S, ModelManager, ModelManagerConfig
from toolkit.serving.models.source import release_key


class Rows:
    """An engine that gives one row for every image, and may be held up and closed."""

    name, concurrency = "rows", 1

    def __init__(self, row, gate=None):
        self.row, self.gate, self.begun, self.closed = np.array(row, np.float32), gate, threading.Event(), []

    def infer(self, images):
        self.begun.set()
        if self.gate is not None:
            assert self.gate.wait(MAX_WAIT_S)
        assert not self.closed
        return np.tile(self.row, (len(images), 1))

    def close(self):
        self.closed.append(threading.current_thread().name)


class FakeCache:
    """Copies that a test gives, newest first."""

    def __init__(self, *copies):
        self.copies, self.served, self.loads = copies, [], 0

    def load(self, source, release):
        return source.load(release)

    def mark_served(self, release):
        self.served.append(release.version)

    def load_last_served(self):
        self.loads += 1
        yield from self.copies


class Changes:
    """Waits for models to be activated, in a thread of their own."""

    def __init__(self):
        self.seen, self.changed = [], threading.Condition()

    def __call__(self, model):
        with self.changed:
            self.seen.append(model.version)
            self.changed.notify_all()

    def wait_for(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.seen) >= count, MAX_WAIT_S), self.seen


def release(source, version):
    """A version of the source, which is in the stage from now on."""
    source.put(version)
    return source.wanted


@pytest.fixture
def activated():
    return Changes()


@pytest.fixture
def engine_of():
    """A list with the function that makes the engine of the next bundle."""
    return [TorchEngine]


@pytest.fixture
def make_manager(source, activated):
    """A function that makes a manager with these settings, which polls when it is asked to."""

    def make(poll_interval=1000, on_activate=activated, on_failure=None, prepare=TorchEngine, **settings):
        config = ModelManagerConfig(poll_interval, prepare, **settings)
        return ModelManager(source, on_activate, config, on_failure)

    return make


@pytest.fixture
def manager(make_manager, engine_of):
    return make_manager(prepare=lambda bundle: engine_of[0](bundle))  # noqa: PLW0108  tests change the list


def test_it_starts_without_a_model_and_has_a_reason(manager, source):
    assert (manager.model, manager.reason()) == (None, "the registry has not answered yet")
    assert asdict(manager.describe()) == {
        "reachable": False, "unreachable_since": None, "problem": None, "last_poll": None, "changes": 0,
        "source": None, "copy_since": None, "comparison": None, "load_failure": None,
        "contradiction": None,
    }  # fmt: skip
    source.wanted = NotRegistered("nothing is in Production")
    assert manager.poll() == "waiting"
    assert (manager.reason(), manager.describe().reachable) == ("nothing is in Production", True)
    source.wanted = TrackingError("MLflow at http://me:pw@host:1 does not answer")
    assert manager.poll() == "unreachable"
    assert (manager.reason(), manager.describe().reachable) == ("MLflow at http://host:1 does not answer", False)


def test_promotions_and_rollbacks_load_each_version_once(manager, source, activated):
    found = []
    for version in (1, 1, 2, 2, 1):  # the last one is a rollback: a smaller number
        source.put(version)
        found.append(manager.poll())
        assert manager.model.release.version == version
        assert manager.model.bundle is source.bundles[version]
        image = np.full((1, 16, 16, 3), 90, np.uint8)
        np.testing.assert_array_equal(manager.model.engine.infer(image), source.bundles[version].predict(image))
    assert found == ["loaded", "unchanged", "loaded", "unchanged", "loaded"]
    assert activated.seen == ["1", "2", "1"]
    assert source.loads == [1, 2]
    assert manager.describe().changes == 3


def test_a_rollback_needs_neither_download_nor_tests(manager, source, activated, engine_of):
    for version in (1, 2):
        source.put(version)
        manager.poll()
    first, source.bundles, engine_of[0] = source.bundles[1], {}, None
    for version in (1, 2, 1):
        source.put(version)
        assert manager.poll() == "loaded"
        assert manager.model.release.version == version
        assert manager.describe().comparison.against == str(3 - version)
    assert manager.model.bundle is first
    assert activated.seen == ["1", "2", "1", "2", "1"]


def test_the_last_replaced_model_stays_ready(manager, source, make_bundle):
    source.bundles[3] = make_bundle(digest="v3")
    for version in (1, 2, 3, 2, 1):
        source.put(version)
        assert manager.poll() == "loaded"
    assert source.loads == [1, 2, 3, 1]


def test_the_same_number_with_another_digest_is_another_model(manager, source, make_bundle):
    manager.poll()
    first = release_key(manager.model.release)
    source.put(1)
    source.wanted = type(source.wanted)(1, "registered again")
    source.bundles[1] = make_bundle(digest="registered again")
    assert manager.poll() == "loaded"
    assert release_key(manager.model.release) != first


def test_replaced_models_are_freed(manager, source, make_bundle):
    manager.poll()
    old = weakref.ref(manager.model)
    program = weakref.ref(manager.model.bundle.program)
    source.bundles[3] = make_bundle(digest="v3")
    for version in (2, 3):  # the second of which takes the place of what stays ready
        assert old() is not None
        source.put(version)
        manager.poll()
    source.bundles[1] = make_bundle()  # the source's own
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
        MemoryError("no memory"),
    ],
)
def test_a_version_that_cannot_be_loaded_leaves_the_previous_one(manager, source, activated, trouble):
    manager.poll()
    good = manager.model
    source.bundles[2] = trouble
    source.put(2)
    assert [manager.poll() for _ in range(3)] == ["failed", "backing off", "backing off"]
    assert manager.model is good
    assert manager.poll(again=True) == "failed"
    aside = manager.describe().load_failure
    assert (aside.version, aside.attempts) == (2, 2)
    assert "\n" not in aside.reason
    assert "/srv" not in aside.reason
    assert 0 < aside.next_attempt_s <= MAX_BACKOFF_S
    assert source.loads == [1, 2, 2]
    assert activated.seen == ["1"]
    assert manager.loading is None


def test_a_repaired_version_is_loaded(manager, source, make_bundle):
    manager.poll()
    source.bundles[2] = BundleError("broken")
    source.put(2)
    manager.poll()
    source.put(1)
    assert manager.poll() == "unchanged"
    assert manager.describe().load_failure is None
    source.put(2)
    assert manager.poll() == "failed"  # at once: it is another promotion
    source.bundles[2] = make_bundle(digest="v2")
    assert manager.poll(again=True) == "loaded"
    assert manager.describe().load_failure is None


def test_a_version_that_fails_for_days_is_still_retried(manager, source):
    source.bundles[1] = BundleError("broken")
    for attempt in range(1, 1100):
        assert manager.poll(again=True) == "failed"
        assert manager.failure.attempts == attempt
    assert manager.poll() == "backing off"
    assert manager.reason() == "version 1 cannot be loaded: broken"


def test_a_bundle_with_another_digest_is_not_loaded(manager, source, make_bundle):
    source.bundles[1] = make_bundle(digest="of a version registered in between")
    assert manager.poll() == "failed"
    assert "changed while" in manager.reason()


def test_a_model_that_cannot_be_activated_does_not_answer(make_manager):
    manager = make_manager(on_activate={}.__getitem__)
    assert manager.poll() == "failed"
    assert manager.model is None


def test_an_unreachable_registry_leaves_the_model(manager, source):
    manager.poll()
    states = [manager.describe()]
    for trouble, shown in (
        (TrackingError("no answer"), "no answer"),
        (ValueError("a library's own"), "polling the registry failed: ValueError"),
    ):
        source.wanted = trouble
        assert manager.poll() == "unreachable"
        states.append(manager.describe())
        assert (states[-1].problem, states[-1].reachable, manager.model.version) == (shown, False, "1")
    reachable, first, second = states
    assert reachable.unreachable_since is None
    assert first.unreachable_since == second.unreachable_since == first.last_poll < second.last_poll
    source.wanted = NotRegistered("nothing is in Production")
    assert manager.poll() == "waiting"
    found = manager.describe()
    assert (found.problem, found.reachable, found.unreachable_since) == ("nothing is in Production", True, None)
    assert manager.model.version == "1"
    source.put(1)
    assert manager.poll() == "unchanged"
    assert manager.describe().problem is None


def test_the_log_has_one_line_at_begin_and_end_of_a_problem(manager, source, caplog):
    caplog.set_level(logging.INFO)
    manager.poll()
    source.wanted = TrackingError("no answer")
    for _ in range(5):
        manager.poll()
    source.put(1)
    for _ in range(5):
        manager.poll()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("version 1 serves, loaded in ")
    assert lines[1:] == ["no answer; version 1 serves on", "the registry is reachable again"]


def test_the_thread_survives_all_errors(make_manager, source, activated, caplog):
    manager, polled, find = make_manager(0.001), threading.Event(), source.find
    troubles = iter([ValueError("a library's own"), OSError(), AssertionError(), ZeroDivisionError()])

    def broken():
        for trouble in troubles:
            raise trouble
        polled.set()
        return find()

    source.find = broken
    manager.start()
    assert polled.wait(MAX_WAIT_S)
    activated.wait_for(1)
    source.put(2)
    activated.wait_for(2)
    manager.stop()
    assert not manager._thread.is_alive()
    assert activated.seen == ["1", "2"]
    assert len([record for record in caplog.records if record.exc_info]) == 4


def test_polling_continues_after_an_unexpected_error(make_manager, activated, caplog):
    manager, breaks = make_manager(0.001), iter([RuntimeError("a fault of our own")])
    poll = manager.poll

    def broken():
        for trouble in breaks:
            raise trouble
        return poll()

    manager.poll = broken
    manager.start()
    activated.wait_for(1)
    manager.stop()
    assert "polling the registry failed" in caplog.text


def test_polls_of_many_threads_load_a_model_once(manager, source):
    threads = [threading.Thread(target=manager.poll) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source.loads == [1]
    assert manager.describe().changes == 1


def test_a_replaced_model_is_closed_after_its_last_answer(make_manager, source):
    gate = threading.Event()
    gate.set()
    first, second = Rows([0.5, 0.3, 0.2], gate), Rows([0.2, 0.3, 0.5])
    engines = {"v1": first, "v2": second}
    manager = make_manager(prepare=lambda bundle: engines[bundle.digest], keep_previous=False)
    manager.poll()
    gate.clear()
    first.begun.clear()
    old, answers = weakref.ref(manager.model), []

    def ask(model):
        answers.append(model.engine.infer(np.zeros((1, 16, 16, 3), np.uint8)))

    asking = threading.Thread(target=ask, args=(manager.model,), name="asking")
    asking.start()
    assert first.begun.wait(MAX_WAIT_S)
    source.put(2)
    assert manager.poll() == "loaded"  # it does not wait for the engine that is at work
    gc.collect()
    assert old() is not None
    assert first.closed == []
    gate.set()
    asking.join(MAX_WAIT_S)
    np.testing.assert_array_equal(answers[0], first.row[None])
    assert old() is None  # without a collection: nothing goes round in circles
    assert first.closed == ["asking"]
    assert second.closed == []


def test_an_engine_that_cannot_be_closed_is_logged(make_manager, source, caplog):
    class Stubborn(Rows):
        def close(self):
            raise OSError("busy")

    manager = make_manager(prepare=lambda bundle: Stubborn([1, 0, 0]), keep_previous=False)
    for version in (1, 2):
        source.put(version)
        assert manager.poll() == "loaded"
    assert "the engine of version 1 could not be closed: busy" in caplog.text


def test_answers_are_of_their_model_while_models_change(manager, source, make_bundle):
    rows = {version: np.eye(3, dtype=np.float32)[version % 3] for version in range(1, 7)}
    source.bundles = {version: make_bundle(row=row.tolist(), digest=f"v{version}") for version, row in rows.items()}
    ending, wrong, asked = threading.Event(), [], []
    manager.poll()

    def ask():
        image = np.zeros((1, 16, 16, 3), np.uint8)
        while not ending.is_set():
            model = manager.model
            answer = model.engine.infer(image)
            asked.append(model.version)
            if not np.array_equal(answer[0], rows[model.release.version]):
                wrong.append(model.version)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in (*range(2, 7), *range(5, 0, -1)):
        source.put(version)
        assert manager.poll() == "loaded"
    wait_until(lambda: len(asked) > 3)
    ending.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_version_is_compared_with_the_replaced_one(manager, source, make_bundle, caplog):
    caplog.set_level(logging.INFO)
    manager.poll()
    assert manager.describe().comparison is None
    source.bundles[2] = make_bundle(row=[0.2, 0.5, 0.3], digest="v2")
    source.put(2)
    assert manager.poll() == "loaded"  # an answer that is always the same is legal
    found = manager.describe().comparison
    assert (found.version, found.against, found.constant) == ("2", "1", "green")
    assert "it predicts 'green' for each of them" in caplog.text
    source.bundles[3] = make_bundle(row=[0.2, 0.5, 0.3], digest="v3")
    source.put(3)
    manager.poll()
    found = manager.describe().comparison
    assert asdict(found) == {
        "version": "3", "against": "2", "images": 16, "same_class": 16, "mean_difference": 0.0, "constant": None
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([0.5, np.nan, 0.5], "NaN or infinity for a synthetic image"),
        ([0.5, 0.5], r"returns \(4, 2\) for 4 images and 3 classes"),
    ],
)
def test_an_engine_with_wrong_outputs_is_not_activated(manager, source, engine_of, row, reason):
    manager.poll()
    engine_of[0] = lambda bundle: Rows(row)
    source.put(2)
    assert manager.poll() == "failed"
    assert re.search(reason, manager.describe().load_failure.reason)
    assert manager.model.version == "1"


def test_a_failing_version_is_reported_once(make_manager, source, caplog):
    found = []
    manager = make_manager(on_failure=lambda release, reason: found.append((release.version, reason)))
    source.bundles[1] = BundleError("altered, see /srv/models/1")
    for again in (False, True, True):
        manager.poll(again=again)
    source.bundles[2] = BundleError("broken")
    source.put(2)
    manager.poll()
    assert found == [(1, "altered, see .../1"), (2, "broken")]
    manager._on_failure = lambda release, reason: found.remove("missing")
    source.put(1)
    assert manager.poll() == "failed"
    assert "could not be reported" in caplog.text


def test_the_last_good_copy_answers_until_the_registry_does(make_manager, source, activated, caplog):
    cache = FakeCache((release(source, 1), source.bundles[1]))
    manager = make_manager(local_cache=cache)
    source.wanted = TrackingError("no answer")
    assert manager.poll() == "unreachable"
    copy, found = manager.model, manager.describe()
    assert (copy.version, found.source, found.copy_since) == ("1", "last good copy", copy.loaded_at)
    assert "version 1 serves from the last good copy" in caplog.text
    manager.poll()
    assert (manager.model, cache.loads) == (copy, 1)
    source.put(1)
    assert manager.poll() == "unchanged"  # the same model, so nothing is loaded
    assert (manager.model, source.loads, manager.describe().source) == (copy, [], "registry")
    assert manager.describe().copy_since is None
    source.put(2)
    assert manager.poll() == "loaded"
    assert (activated.seen, cache.served, manager.describe().source) == (["1", "2"], [2], "registry")


def test_a_copy_answers_if_the_version_fails_at_the_start(make_manager, source):
    source.bundles[2] = BundleError("broken")
    manager = make_manager(local_cache=FakeCache((release(source, 1), source.bundles[1])))
    source.put(2)
    assert manager.poll() == "failed"
    found = manager.describe()
    assert (manager.model.version, found.source, found.load_failure.version) == ("1", "last good copy", 2)


def test_the_next_copy_answers_if_the_first_fails(make_manager, source, make_bundle, caplog):
    spoilt = make_bundle(row=[np.nan] * 3, digest="v2")
    cache = FakeCache((release(source, 2), spoilt), (release(source, 1), source.bundles[1]))
    manager = make_manager(local_cache=cache)
    source.wanted = TrackingError("no answer")
    manager.poll()
    assert manager.model.version == "1"
    assert "the last good copy, version 2, cannot be used" in caplog.text
    assert manager.loading is None


def test_no_copy_answers_once_the_registry_named_none(make_manager, source):
    cache = FakeCache((release(source, 1), source.bundles[1]))
    manager = make_manager(local_cache=cache)
    for trouble in (NotRegistered("nothing is in Production"), TrackingError("no answer")):
        source.wanted = trouble
        manager.poll()
    assert (manager.model, cache.loads) == (None, 0)


def test_the_newest_version_is_prepared_before_its_promotion(make_manager, source, activated):
    prepared, looked, newest = [], threading.Event(), [None]

    def isolated_load(bundle, stopping, pause):
        prepared.append((bundle.digest, manager.model.version))
        looked.set()

    manager = make_manager(poll_interval=0.01, isolated_load=isolated_load, newest=lambda: newest[0])
    manager.start()
    activated.wait_for(1)
    newest[0] = replace(source.wanted, version=2, digest="v2")
    assert looked.wait(MAX_WAIT_S)
    assert (prepared, manager.model.version) == ([("v2", "1")], "1")
    source.put(2)
    activated.wait_for(2)
    manager.stop()
    assert prepared == [("v2", "1"), ("v2", "1")]  # the second time it is in the cache


def test_a_preparation_waits_for_requests_until_its_version_is_promoted(source, activated):
    newest, paused = replace(source.wanted, version=2, digest="v2"), []
    begun, ended = threading.Event(), threading.Event()

    def isolated_load(bundle, stopping, pause):
        if begun.is_set():  # for the promotion: one at a time
            assert ended.wait(MAX_WAIT_S)
            return
        begun.set()
        pause(1)
        wait_until(lambda: manager.loading)
        pause(2)
        pause(0)
        ended.set()

    config = ModelManagerConfig(0.01, TorchEngine, isolated_load=isolated_load, newest=lambda: newest)
    manager = ModelManager(source, activated, config, pause=paused.append)
    manager.start()
    assert begun.wait(MAX_WAIT_S)
    source.put(2)
    activated.wait_for(2)
    manager.stop()
    assert paused == [0, 2, 0]


def test_a_newest_version_that_cannot_be_found_or_loaded_changes_nothing(make_manager, source, activated):
    looks, enough = [], threading.Event()

    def newest():
        looks.append(len(looks))
        if len(looks) == 5:
            enough.set()
        if len(looks) % 2:
            raise TrackingError("MLflow does not answer")
        return replace(source.wanted, version=3, digest="v3")  # which the source does not have

    manager = make_manager(poll_interval=0.01, newest=newest)
    manager.start()
    assert enough.wait(MAX_WAIT_S)
    manager.stop()
    assert (manager.model.version, manager.failure, activated.seen) == ("1", None, ["1"])
