"""Images through the batcher: right results, dynamic batches, cancelled images are skipped."""

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest

from support import MAX_WAIT_S
from support.colours import COLOURS, colour_image
from toolkit.images.decoding import ImageLimits, load_image
from toolkit.serving.inference.batcher import Batcher
from toolkit.serving.inference.result import TIMING_STAGES, InferenceResult
from toolkit.serving.problems import DEADLINE_EXCEEDED, IMAGE_TOO_LARGE, UNDECODABLE, UNSUPPORTED_FORMAT, Problem

RED = colour_image("red")


class BlockingEngine:
    """An engine that notes the size of each batch and runs when it may."""

    name = "blocking"

    def __init__(self, engine, concurrency=1):
        self.concurrency, self.sizes, self.running, self.most = concurrency, [], 0, 0
        self._engine, self._lock = engine, threading.Lock()
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()

    def infer(self, images):
        with self._lock:
            self.sizes.append(len(images))
            self.running += 1
            self.most = max(self.most, self.running)
        self.begun.set()
        assert self.go.wait(MAX_WAIT_S)
        with self._lock:
            self.running -= 1
        return self._engine.infer(images)


@pytest.fixture
def open_batcher():
    opened = []

    def make(threads=2, limits=None, **more):
        opened.append(Batcher(threads, limits or ImageLimits(), **more))
        return opened[-1]

    yield make
    for batcher in opened:
        batcher.close()


@pytest.fixture
def make_blocking(make_model):
    """A function that makes a model with a blocking engine, and that engine."""

    def make(concurrency=1, **words):
        model = make_model(**words)
        engine = BlockingEngine(model.engine, concurrency)
        return replace(model, engine=engine), engine

    return make


def read(data):
    return lambda: data


def itself(done):
    return done


def classify(batcher, model, data, seconds=None):
    return asyncio.run(batcher.run(read(data), lambda: model, itself, seconds))


def asked(batcher, model, count, source=None):
    """Tasks that each ask for an image."""
    return [asyncio.create_task(batcher.run(source or read(RED), lambda: model, itself)) for _ in range(count)]


async def until(condition):
    async with asyncio.timeout(MAX_WAIT_S):
        while not condition():
            await asyncio.sleep(0.001)


async def until_decoded(batcher, model):
    """Wait until the only free worker has decoded all that came before: what is no image fails in its turn after it."""
    await asyncio.sleep(0)  # in which tasks that were created before take their place in the queue
    with pytest.raises(Problem, match="the file is empty"):
        await batcher.run(read(b""), lambda: model, itself)


# --- what comes out -----------------------------------------------------------------------------


def test_each_image_gets_the_output_of_the_bundle(open_batcher, make_blocking):
    model, engine = make_blocking(concurrency=1, strength=0.4)
    images = [(colour, colour_image(colour, seed, size=40 + seed)) for seed, colour in enumerate(COLOURS * 5)]

    async def all_at_once(batcher):
        return await asyncio.gather(*(batcher.run(read(data), lambda: model, itself) for _, data in images))

    answers = asyncio.run(all_at_once(open_batcher(threads=3)))
    for (colour, data), done in zip(images, answers, strict=True):
        wanted = model.bundle.predict(load_image(data, 16).pixels[None])[0]
        np.testing.assert_allclose(done.probabilities, wanted, atol=1e-6)
        assert done.top_k(1)[0][0] == colour
        assert done.finite
        assert done.model is model
    assert sum(engine.sizes) == len(images)


def test_the_total_is_the_sum_of_the_stages(open_batcher, make_model):
    timings = classify(open_batcher(), make_model(), RED).timings_ms
    assert tuple(timings) == TIMING_STAGES
    assert timings["total"] == pytest.approx(timings["queue"] + timings["decode"] + timings["infer"], abs=0.002)
    assert min(timings.values()) > 0


def test_of_equal_classes_the_first_is_best(open_batcher, make_model):
    done = classify(open_batcher(), make_model(row=[0.25, 0.5, 0.25]), RED)
    assert done.top_k(3) == [("green", 0.5), ("blue", 0.25), ("red", 0.25)]
    assert done.top_k(2) == done.top_k(3)[:2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_makes_a_result_not_finite(open_batcher, make_model, bad):
    model = make_model(row=[0.5, bad, 0.5])
    assert not classify(open_batcher(), model, RED).finite
    assert InferenceResult(model, load_image(RED, 16), np.array([0.0, 1.0, 0.0], np.float32), {}).finite


# --- batches ------------------------------------------------------------------------------------


def test_images_decoded_meanwhile_are_the_next_batch(open_batcher, make_blocking):
    model, engine = make_blocking(concurrency=1)
    engine.go.clear()
    sizes = []
    batcher = open_batcher(threads=2, max_batch=8, on_batch=lambda count, seconds: sizes.append((count, seconds)))

    async def ask():
        jobs = asked(batcher, model, 1)
        await until(engine.begun.is_set)
        jobs += asked(batcher, model, 13)
        await until_decoded(batcher, model)
        engine.go.set()
        await asyncio.gather(*jobs)

    asyncio.run(ask())
    batcher.close()
    assert engine.sizes == [1, 8, 5]
    assert engine.most == 1
    assert sorted(count for count, _ in sizes) == [1, 5, 8]
    assert all(seconds > 0 for _, seconds in sizes)


def test_free_streams_share_the_decoded_images(open_batcher, make_blocking):
    model, engine = make_blocking(concurrency=2)
    engine.go.clear()
    batcher = open_batcher(threads=3)

    async def ask():
        jobs = asked(batcher, model, 2)
        await until(lambda: engine.running == 2)
        jobs += asked(batcher, model, 6)
        await until_decoded(batcher, model)
        engine.go.set()
        await asyncio.gather(*jobs)

    asyncio.run(ask())
    assert sum(engine.sizes) == 8
    assert engine.most == 2


def test_no_more_is_decoded_ahead_than_two_batches(open_batcher, make_blocking):
    model, engine = make_blocking(concurrency=1)
    engine.go.clear()
    batcher, begun = open_batcher(threads=2, max_batch=2), []

    def noting():
        begun.append(1)
        return RED

    async def ask():
        jobs = asked(batcher, model, 12, noting)
        await until(lambda: engine.begun.is_set() and len(begun) == 1 + 2 * 2)
        await asyncio.sleep(0.05)  # in which the free worker would decode more
        assert len(begun) == 1 + 2 * 2
        engine.go.set()
        await asyncio.gather(*jobs)

    asyncio.run(ask())
    assert max(engine.sizes) == 2


def test_a_batch_is_of_one_model(open_batcher, make_blocking):
    """Images decoded for version 1 are answered by it after a change, the others by version 2."""
    (first, engine), (second, other) = make_blocking(version=1), make_blocking(version=2)
    engine.go.clear()
    batcher, live = open_batcher(threads=2), [first]

    async def ask():
        jobs = [asyncio.create_task(batcher.run(read(RED), lambda: live[0], itself))]
        await until(engine.begun.is_set)
        for model in (first, second):
            live[0] = model
            jobs += [asyncio.create_task(batcher.run(read(RED), lambda: live[0], itself)) for _ in range(3)]
            await until_decoded(batcher, model)
        engine.go.set()
        return await asyncio.gather(*jobs)

    answers = asyncio.run(ask())
    assert [done.model for done in answers] == [first] * 4 + [second] * 3
    assert (engine.sizes, sum(other.sizes)) == ([1, 3], 3)


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"", UNDECODABLE, "the file is empty"),
        (b"<html>not found</html>", UNDECODABLE, "not an image"),
        (RED[:200], UNDECODABLE, "broken"),
        (b"%PDF-1.7 ...", UNSUPPORTED_FORMAT, "PDF is not supported"),
        (colour_image("red", size=51), IMAGE_TOO_LARGE, "51 x 51 pixels, at most 2,500"),
    ],
)
def test_a_bad_image_fails_alone(open_batcher, make_model, data, kind, words):
    model, batcher = make_model(), open_batcher(limits=ImageLimits(max_pixels=2500))

    async def ask():
        return await asyncio.gather(
            *(batcher.run(read(one), lambda: model, itself) for one in (RED, data, RED)), return_exceptions=True
        )

    before, failed, after = asyncio.run(ask())
    assert before.top_k(1)[0][0] == after.top_k(1)[0][0] == "red"
    assert isinstance(failed, Problem)
    assert failed.problem_type is kind
    assert words in failed.detail


@pytest.mark.parametrize("part", ["read", "model", "finish", "engine"])
def test_an_error_reaches_the_caller_and_threads_continue(open_batcher, make_blocking, part):
    model, engine = make_blocking()

    def broken(*_words):
        raise KeyError(part)

    words = {"read": read(RED), "model": lambda: model, "finish": itself}
    if part == "engine":
        engine.infer = broken
    else:
        words[part] = broken
    batcher = open_batcher(threads=1)
    for _ in range(2):
        with pytest.raises(KeyError, match=part):
            asyncio.run(batcher.run(**words))
    assert classify(batcher, make_blocking()[0], RED).finite


def test_cancelled_images_are_skipped_at_each_step(open_batcher, make_blocking):
    """Some are cancelled while they wait, one when it is decoded, one while the model runs on it."""
    model, engine = make_blocking(concurrency=1)
    engine.go.clear()
    batcher, decoded = open_batcher(threads=2), []

    def noting():
        decoded.append(1)
        return RED

    async def ask():
        [running] = asked(batcher, model, 1, noting)
        await until(engine.begun.is_set)
        [ready] = asked(batcher, model, 1, noting)
        await until_decoded(batcher, model)
        ready.cancel()
        running.cancel()
        left = asked(batcher, model, 50, noting)
        await asyncio.sleep(0)
        for job in left:
            job.cancel()
        await asyncio.gather(running, ready, *left, return_exceptions=True)
        engine.go.set()
        stays = await batcher.run(noting, lambda: model, itself)
        assert stays.finite

    asyncio.run(ask())
    batcher.close()
    assert engine.sizes == [1, 1]
    assert len(decoded) < 53


def test_a_deadline_ends_the_waiting(open_batcher, make_blocking):
    model, engine = make_blocking(concurrency=1)
    engine.go.clear()
    batcher = open_batcher(threads=1)
    with pytest.raises(Problem, match=r"could not be answered within 0\.02 s") as caught:
        classify(batcher, model, RED, seconds=0.02)
    assert caught.value.problem_type is DEADLINE_EXCEEDED
    engine.go.set()
    assert classify(batcher, model, RED, seconds=MAX_WAIT_S).finite


# --- threads ------------------------------------------------------------------------------------


def test_each_thread_is_prepared_once_with_the_first_image(open_batcher, make_blocking):
    prepared, before = [], threading.active_count()
    batcher = open_batcher(threads=3, prepare=lambda: prepared.append(threading.get_ident()))
    assert threading.active_count() == before
    model, _ = make_blocking(concurrency=3)
    for _ in range(4):
        classify(batcher, model, RED)
    batcher.close()
    assert len(prepared) == len(set(prepared)) == 3


def test_closing_finishes_running_and_cancels_waiting_images(open_batcher, make_blocking):
    model, engine = make_blocking(concurrency=1)
    engine.go.clear()
    batcher = open_batcher(threads=1)

    async def ask():
        [first] = asked(batcher, model, 1)
        await until(engine.begun.is_set)
        [second] = asked(batcher, model, 1)
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        with pytest.raises(asyncio.CancelledError):
            await second
        engine.go.set()
        await closing
        with pytest.raises(asyncio.CancelledError):
            await batcher.run(read(RED), lambda: model, itself)
        return await first

    assert asyncio.run(ask()).finite


def test_closing_before_the_first_image(open_batcher):
    open_batcher().close()


def test_random_cancellations_lose_no_image(open_batcher, make_blocking):
    (first, engine), (second, _) = (
        make_blocking(concurrency=2, version=1),
        make_blocking(concurrency=1, version=2, strength=0.3),
    )
    batcher, generator, live = open_batcher(threads=3, max_batch=4), np.random.default_rng(3), [first]
    answered = []

    async def client(leaves, waits):
        try:
            async with asyncio.timeout(waits if leaves else None):
                done = await batcher.run(read(RED), lambda: live[0], itself, MAX_WAIT_S)
            wanted = done.model.bundle.predict(load_image(RED, 16).pixels[None])[0]
            np.testing.assert_allclose(done.probabilities, wanted, atol=1e-6)
            answered.append(done.model)
        except TimeoutError:
            assert leaves

    async def all_of_them():
        for turn in range(20):
            live[0] = (first, second)[turn % 2]
            leaving = generator.random(20) < 0.4
            await asyncio.gather(*(client(bool(leaves), float(generator.exponential(0.01))) for leaves in leaving))

    async def both_streams_are_free_again():
        engine.go.clear()
        jobs = asked(batcher, first, 2)
        await until(lambda: engine.running == 2)
        engine.go.set()
        await asyncio.gather(*jobs)

    asyncio.run(all_of_them())
    asyncio.run(both_streams_are_free_again())
    assert len(answered) >= 20 * 20 * 0.5
    assert set(answered) == {first, second}


def test_paused_threads_take_no_step_and_one_is_never_paused(open_batcher, make_blocking):
    model, engine = make_blocking(concurrency=3)
    batcher = open_batcher(threads=3, max_batch=1)

    async def play():
        engine.go.clear()
        batcher.pause(99)
        jobs = asked(batcher, model, 6)
        await until(engine.begun.is_set)
        await asyncio.sleep(0.1)  # in which the others would begin
        assert engine.running == 1
        batcher.pause(0)
        await until(lambda: engine.running == 3)
        batcher.pause(2)
        engine.go.set()
        assert len(await asyncio.gather(*jobs)) == 6

    asyncio.run(play())
    batcher.close()  # also the paused ones
