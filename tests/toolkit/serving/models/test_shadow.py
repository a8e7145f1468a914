"""The shadow is run on a share of the images, counts agreements and errors, and affects nothing else."""

import gc
import threading
import weakref

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from support import MAX_WAIT_S, wait_until
from support.colours import COLOURS
from toolkit.errors import BundleError, NotRegistered, TrackingError
from toolkit.serving.metrics import ServiceMetrics, shadow_families
from toolkit.serving.models.engines import TorchEngine
from toolkit.serving.models.manager import ModelManagerConfig
from toolkit.serving.models.shadow import QUEUE_SIZE, ShadowRunner

GREEN = [0.25, 0.5, 0.25]  # what the shadow answers in most tests: blue, green, red
NOW = 1.75e9


def grey(size):
    return np.full((size, size, 3), 90, np.uint8)


class Gated(TorchEngine):
    """An engine that waits for its gate, and then raises when there is something to raise."""

    def __init__(self, bundle, gate):
        super().__init__(bundle)
        self.gate, self.begun, self.trouble = gate, threading.Event(), None

    def infer(self, images):
        self.begun.set()
        assert self.gate.wait(MAX_WAIT_S)
        if self.trouble:
            raise self.trouble
        return super().infer(images)


@pytest.fixture
def gate():
    gate = threading.Event()
    gate.set()
    return gate


@pytest.fixture
def engines():
    return []


@pytest.fixture
def start(source, make_bundle, gate, engines):
    """A function that starts a shadow of version 2, which answers ``GREEN``, and waits for its model."""
    source.bundles[2] = make_bundle(row=GREEN, digest="v2")
    source.put(2)
    started = []

    def prepare(bundle):
        engines.append(Gated(bundle, gate))
        return engines[-1]

    def begin(share=1.0, poll_interval=1000, ready=True, **words):
        config = ModelManagerConfig(poll_interval, prepare=prepare)
        shadow = ShadowRunner(source, config, share, clock=lambda: NOW, **words)
        started.append(shadow)
        shadow.start()
        wait_until(lambda: shadow.metrics()["version"] == 2 or not ready)
        return shadow

    yield begin
    gate.set()
    for shadow in started:
        shadow.stop()
        assert not shadow._thread.is_alive()


@pytest.fixture
def live(make_model):
    return make_model(1)


def submit(shadow, model, *rows, pixels=grey):
    for row in rows:
        shadow.submit(model, np.array(row, np.float32), pixels)


def seen(shadow):
    found = shadow.metrics()
    return found["compared"] + found["failed"]


def test_agreement_and_difference_worked_out_by_hand(start, live):
    shadow = start()
    nothing = shadow.metrics()
    assert nothing == {
        "share": 1.0, "version": 2, "reason": None, "against": None, "since": None, "compared": 0,
        "agreement": None, "mean_difference": None, "failed": 0, "dropped": 0,
    }  # fmt: skip
    submit(shadow, live, [0.125, 0.75, 0.125], [0.75, 0.125, 0.125], [0.25, 0.25, 0.5], [0.0, 1.0, 0.0])
    wait_until(lambda: seen(shadow) == 4)
    # green for green, 0.75 and 0.5; blue, 0.75 and 0.25; red, 0.5 and 0.25; green for green, 1 and 0.5
    assert shadow.metrics() == nothing | {
        "against": 1, "since": NOW, "compared": 4, "agreement": 0.5, "mean_difference": (0.25 + 0.5 + 0.25 + 0.5) / 4,
    }  # fmt: skip


def test_a_share_of_the_images_is_drawn(start, live):
    draws = iter([0.0, 0.25, 0.9, 0.2499, 0.5])
    shadow = start(share=0.25, draw=lambda: next(draws))
    submit(shadow, live, *[GREEN] * 5)
    wait_until(lambda: seen(shadow) == 2)
    shadow.stop()
    assert seen(shadow) == 2


def test_a_full_queue_drops_and_counts(start, live, gate, engines):
    shadow = start()
    gate.clear()
    engines[0].begun.clear()
    submit(shadow, live, GREEN)
    assert engines[0].begun.wait(MAX_WAIT_S)
    submit(shadow, live, *[GREEN] * (QUEUE_SIZE + 3))
    assert shadow.metrics()["dropped"] == 3
    gate.set()
    wait_until(lambda: seen(shadow) == 1 + QUEUE_SIZE)


def test_classes_are_matched_by_name_and_image_sizes_may_differ(start, source, make_bundle, make_model):
    source.bundles[2] = make_bundle(row=GREEN, digest="v2", classes=("green", "mauve", "blue"))
    shadow, sizes = start(), []

    def pixels(size):
        sizes.append(size)
        return grey(size)

    live = make_model(1)
    assert live.classes == COLOURS
    submit(shadow, live, [0.75, 0.125, 0.125], [0.125, 0.75, 0.125], [0.0, 0.0, 1.0], pixels=pixels)
    wait_until(lambda: seen(shadow) == 3)
    found = shadow.metrics()
    # blue, 0.75 and 0.25; green, 0.75 and 0.25; red, which the shadow does not have; it predicts mauve each time
    assert (found["agreement"], found["mean_difference"]) == (0.0, 2 / 3)
    assert sizes == [16] * 3


@pytest.mark.parametrize("by", ["raising", "NaN", "the image"])
def test_errors_are_counted_and_logged_once(start, live, engines, source, make_bundle, caplog, by):
    shadow, pixels = start(), grey
    if by == "raising":
        engines[0].trouble = RuntimeError("out of memory")
    elif by == "NaN":
        engines[0]._bundle = make_bundle(row=[np.nan] * 3)
    else:
        pixels = {}.__getitem__
    submit(shadow, live, *[GREEN] * 3, pixels=pixels)
    wait_until(lambda: seen(shadow) == 3)
    found = shadow.metrics()
    assert (found["failed"], found["compared"], found["agreement"]) == (3, 0, None)
    assert len([line for line in caplog.messages if line.startswith("the shadow, version 2, fails: ")]) == 1
    engines[0].trouble, engines[0]._bundle = None, source.bundles[2]
    submit(shadow, live, GREEN)
    wait_until(lambda: shadow.metrics()["compared"] == 1)


def test_counts_restart_when_either_version_changes(start, live, source, make_model, make_bundle):
    shadow = start(poll_interval=0.01)
    submit(shadow, live, GREEN, GREEN)
    wait_until(lambda: seen(shadow) == 2)
    submit(shadow, make_model(3, digest="v3"), GREEN)
    wait_until(lambda: shadow.metrics()["against"] == 3)
    assert shadow.metrics()["compared"] == 1
    source.bundles[4] = make_bundle(row=GREEN, digest="v4")
    source.put(4)
    wait_until(lambda: shadow.metrics()["version"] == 4)
    wait_until(lambda: seen(shadow) == 0)
    submit(shadow, live, GREEN)
    wait_until(lambda: seen(shadow) == 1)
    assert shadow.metrics()["against"] == 1


def test_a_version_that_leaves_the_stage_is_freed(start, live, source, engines):
    shadow = start(poll_interval=0.01)
    held = weakref.ref(shadow._model_manager.model)
    source.wanted = TrackingError("no answer")
    wait_until(lambda: shadow._model_manager.describe().unreachable_since)
    submit(shadow, live, GREEN)
    wait_until(lambda: seen(shadow) == 1)  # an unreachable registry changes nothing
    source.wanted = NotRegistered("no version is in Staging")
    wait_until(lambda: shadow.metrics()["version"] is None)
    wait_until(lambda: seen(shadow) == 0)
    found = shadow.metrics()
    assert (found["reason"], found["against"]) == ("no version is in Staging", None)
    submit(shadow, live, GREEN)
    assert shadow._queue.empty()
    source.wanted = NotRegistered("no version is in Staging")  # another exception: the first one holds frames
    wait_until(lambda: gc.collect() >= 0 and held() is None)  # its thread may still be on its way out of the last poll


def test_a_version_that_cannot_be_loaded_has_its_reason_shown(start, source):
    source.bundles[2] = BundleError("it was altered")
    shadow = start(ready=False)
    wait_until(lambda: shadow.metrics()["reason"] == "version 2 cannot be loaded: it was altered")


def test_a_model_is_not_compared_with_itself(start, live, make_model):
    shadow = start()
    submit(shadow, make_model(2, digest="v2"), GREEN)
    submit(shadow, live, GREEN)
    wait_until(lambda: seen(shadow) == 1)
    assert shadow.metrics()["against"] == 1


def test_it_pauses_while_requests_wait(start, live, engines):
    asked, busy = threading.Event(), [True]

    def is_busy():
        asked.set()
        return busy[0]

    shadow = start(busy=is_busy)
    engines[0].begun.clear()
    submit(shadow, live, GREEN)
    assert asked.wait(MAX_WAIT_S)
    assert not engines[0].begun.is_set()
    busy[0] = False
    wait_until(lambda: seen(shadow) == 1)


def test_an_image_is_dropped_if_requests_wait_until_the_next_poll(start, live):
    shadow = start(poll_interval=0.01, busy=lambda: True)
    submit(shadow, live, GREEN)
    wait_until(lambda: shadow.metrics()["dropped"] == 1)
    assert seen(shadow) == 0


def test_queued_images_do_not_keep_the_live_model(start, make_model, gate, engines):
    shadow, model = start(), make_model(1)
    gate.clear()
    submit(shadow, model, GREEN, GREEN)
    freed = weakref.ref(model)
    del model
    gc.collect()
    assert freed() is None


def test_it_stops_with_images_queued_and_accepts_later_ones(start, live, gate, engines):
    shadow = start()
    gate.clear()
    submit(shadow, live, *[GREEN] * (QUEUE_SIZE + 1))
    stopping = threading.Thread(target=shadow.stop)
    stopping.start()
    gate.set()
    stopping.join(MAX_WAIT_S)
    assert not shadow._thread.is_alive()
    submit(shadow, live, *[GREEN] * 5)


def test_prometheus_metrics_are_those_of_the_shadow(start, live):
    shadow, metrics = start(), ServiceMetrics()
    metrics.gauges = lambda: shadow_families(shadow.metrics())

    def is_of_shadow(name):
        return name.startswith("serve_shadow") and not name.endswith("_created")

    def read():
        text = metrics.prometheus("text/plain")[0].decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        found = {sample.name: (sample.labels, sample.value) for sample in samples if is_of_shadow(sample.name)}
        assert found.pop("serve_shadow_dropped_total") == ({}, 0)
        return found

    assert read() == {}
    submit(shadow, live, [0.0, 1.0, 0.0], [1.0, 0.0, 0.0])
    wait_until(lambda: seen(shadow) == 2)
    versions = {"version": "2", "against": "1"}
    assert read() == {
        "serve_shadow_compared": (versions, 2),
        "serve_shadow_agreement": (versions, 0.5),
        "serve_shadow_mean_difference": (versions, (0.5 + 0.75) / 2),
        "serve_shadow_failed": (versions, 0),
    }
