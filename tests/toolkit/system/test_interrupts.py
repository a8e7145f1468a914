"""Ctrl-C and SIGTERM during a step or a transaction."""

import os
import signal
import threading

import pytest

from toolkit.system.interrupts import DeferredSignals


def send(number):
    os.kill(os.getpid(), number)


def interrupted(work):
    with DeferredSignals() as signals:
        work(signals)


def test_ctrl_c_is_deferred():
    before, done = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], []

    def work(signals):
        assert signals.received is None
        send(signal.SIGINT)
        done.append("the step")
        assert signals.received == signal.SIGINT
        signals.act()
        done.append("the next one")

    with pytest.raises(KeyboardInterrupt):
        interrupted(work)
    assert done == ["the step"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_sigterm_exits_with_143():
    def work(signals):
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        signals.act()

    with pytest.raises(SystemExit) as left:
        interrupted(work)
    assert left.value.code == 143


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_is_not_deferred(first):
    done = []

    def work(_):
        send(first)
        done.append("held back")
        send(signal.SIGINT)
        done.append("held back as well")

    with pytest.raises(KeyboardInterrupt):
        interrupted(work)
    assert done == ["held back"]


def test_a_signal_after_the_last_check_is_raised_at_exit():
    with pytest.raises(KeyboardInterrupt):
        interrupted(lambda _: send(signal.SIGINT))


def test_a_signal_outlasts_an_error():
    def work(_):
        send(signal.SIGINT)
        raise ValueError("broken")

    with pytest.raises(KeyboardInterrupt) as stopped:
        interrupted(work)
    assert str(stopped.value.__context__) == "broken"


def test_the_context_around_gets_a_signal_of_the_one_within():
    done = []

    def work(around):
        interrupted(lambda _: send(signal.SIGINT))
        done.append(around.received)
        around.act()

    with pytest.raises(KeyboardInterrupt):
        interrupted(work)
    assert done == [signal.SIGINT]


def test_signals_are_left_alone_outside_the_main_thread():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with DeferredSignals() as signals:
            seen.append((signal.getsignal(signal.SIGINT), signals.received))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, None)]
