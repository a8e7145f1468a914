"""Places: never more than there are, all given back, whatever becomes of the work and of who asked for it."""

import asyncio
import threading

import numpy as np
import pytest

from toolkit.serving.desk import LONGEST_RETRY, Desk
from toolkit.serving.problems import FULL, Problem


@pytest.fixture
def desks():
    made = []

    def make(*words, **more):
        made.append(Desk(*words, **more))
        return made[-1]

    yield make
    for desk in made:
        desk.close()


def test_places_are_taken_all_or_none_and_given_back(desks):
    desk = desks(workers=2, waiting=3)
    with desk.places(3):
        assert (desk.depth, desk.room) == (3, 2)
        with pytest.raises(Problem) as caught, desk.places(3):
            raise AssertionError("there is no room for three")
        assert (desk.depth, desk.room) == (3, 2)
        with desk.places(2):
            assert (desk.depth, desk.room) == (5, 0)
            with pytest.raises(Problem, match="2 pictures are being answered and 3 wait, which"):
                desk.check(1)
    assert caught.value.kind is FULL
    assert caught.value.headers == {"Retry-After": "1"}
    with pytest.raises(KeyError), desk.places(5):
        raise KeyError
    assert (desk.depth, desk.room) == (0, 5)


@pytest.mark.parametrize(
    ("taken", "pace", "seconds"), [(10, 1.5, 8), (10, 0.001, 1), (9, 1.0, 5), (10, 60.0, LONGEST_RETRY)]
)
def test_retry_after_is_the_time_that_those_before_need(desks, taken, pace, seconds):
    desk = desks(workers=2, waiting=8)
    desk._pace = pace
    with desk.places(taken), pytest.raises(Problem) as caught:
        desk.check(2)
    assert caught.value.headers["Retry-After"] == str(seconds)


def test_random_comings_and_goings_never_exceed_the_room(desks):
    desk, generator = desks(workers=2, waiting=5), np.random.default_rng(3)
    running, most, refused, done = 0, 0, 0, 0
    lock = threading.Lock()

    def work(_waited):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1

    async def client(count, leaves):
        nonlocal refused, done
        await asyncio.sleep(0)
        try:
            with desk.places(count):
                assert desk.depth <= 7
                jobs = asyncio.gather(*(desk.run(work) for _ in range(count)))
                if leaves:
                    await asyncio.sleep(0)
                    jobs.cancel()
                await jobs
                done += 1
        except Problem:
            refused += 1
        except asyncio.CancelledError:
            pass

    async def all_clients():
        for _ in range(100):
            counts = generator.integers(1, 5, 10)
            await asyncio.gather(*(client(int(count), bool(generator.random() < 0.5)) for count in counts))
            assert desk.depth == 0

    asyncio.run(all_clients())
    assert done > 0
    assert refused > 0
    assert 1 <= most <= 2
    assert desk.depth == 0


def test_work_is_done_in_the_order_of_arrival_and_told_its_wait(desks):
    desk, order, waits = desks(workers=1, waiting=50), [], []

    def work(number, waited):
        order.append(number)
        waits.append(waited)
        return number * 10

    async def all_of_them():
        return await asyncio.gather(
            *(desk.run(lambda waited, number=number: work(number, waited)) for number in range(50))
        )

    assert asyncio.run(all_of_them()) == [number * 10 for number in range(50)]
    assert order == list(range(50))
    assert all(wait >= 0 for wait in waits)


def test_what_work_raises_reaches_who_asked_and_costs_no_place(desks):
    desk = desks(workers=1, waiting=0)

    def broken(_waited):
        raise Problem(FULL, "mine")

    async def ask():
        with desk.places(1):
            await desk.run(broken)

    for _ in range(3):
        with pytest.raises(Problem, match="mine"):
            asyncio.run(ask())
    assert (desk.depth, desk.room) == (0, 1)


def test_each_thread_is_prepared_once(desks):
    prepared, used, both = [], [], threading.Barrier(2, timeout=30)
    desk = desks(2, 8, lambda: prepared.append(threading.get_ident()))

    def work(_waited):
        both.wait()  # so that two threads take part
        used.append(threading.get_ident())

    async def ask():
        await asyncio.gather(*(desk.run(work) for _ in range(8)))

    asyncio.run(ask())
    assert len(prepared) == 2
    assert set(prepared) == set(used)


def test_closing_finishes_what_runs_and_drops_what_waits(desks):
    desk, begun, go = desks(workers=1, waiting=1), threading.Event(), threading.Event()

    def slow(_waited):
        begun.set()
        assert go.wait(30)
        return "answered"

    async def ask():
        first = asyncio.create_task(desk.run(slow))
        await asyncio.to_thread(begun.wait, 30)
        second = asyncio.create_task(desk.run(slow))
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(desk.close))
        with pytest.raises(asyncio.CancelledError):
            await second
        go.set()
        await closing
        return await first

    assert asyncio.run(ask()) == "answered"
