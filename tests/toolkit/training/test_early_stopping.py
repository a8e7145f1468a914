"""When a training ends: by its rule, by Ctrl-C, by SIGTERM."""

import json
import os
import signal
import threading
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.training.early_stopping import DeferredSignals, EarlyStopping
from toolkit.training.hyperparameters import Hyperparameters


@dataclass(frozen=True)
class Figures:
    val_accuracy: float
    val_loss: float


# --- patience -----------------------------------------------------------------------------------


def test_it_stops_by_the_stated_rule():
    """Patience 2 and an improvement of at least a tenth, worked out by hand."""
    stopping = EarlyStopping(Hyperparameters(patience=2, min_delta=0.1))
    story = [
        ((0.50, 1.00), True, False),  # the first is always an improvement
        ((0.55, 0.95), True, False),  # best, but too small an improvement: waited 1
        ((0.62, 1.20), True, False),  # 0.12 above the 0.50 that counted: waited 0
        ((0.60, 0.85), False, False),  # the loss fell by 0.15 below 1.00: waited 0
        ((0.70, 0.80), True, False),  # 0.08 and 0.05: waited 1
        ((0.70, 0.78), True, True),  # as accurate with a lower loss is better, but again too little: waited 2
    ]
    for figures, best, stop in story:
        epoch = Figures(*figures)
        assert (stopping.is_best(epoch), stopping.should_stop(epoch)) == (best, stop), epoch


@pytest.mark.parametrize("min_delta", [0.0, 1e-3])
def test_a_plateau_is_no_improvement_however_small_one_may_be(min_delta):
    stopping = EarlyStopping(Hyperparameters(patience=3, min_delta=min_delta))
    assert [stopping.should_stop(Figures(0.9, 0.3)) for _ in range(4)] == [False, False, False, True]


shares = st.sampled_from([0.0, 0.25, 0.26, 0.5, 0.75, 1.0])


@given(st.lists(st.builds(Figures, shares, shares), min_size=1, max_size=12), st.data())
def test_what_it_remembers_survives_as_json_at_any_epoch(story, data):
    recipe = Hyperparameters(patience=3, min_delta=0.05)
    cut = data.draw(st.integers(0, len(story)))
    whole, before, after = (EarlyStopping(recipe) for _ in range(3))
    expected = [(whole.is_best(epoch), whole.should_stop(epoch)) for epoch in story]
    for epoch in story[:cut]:
        before.is_best(epoch)
        before.should_stop(epoch)
    after.restore(json.loads(json.dumps(before.state())))
    assert [(after.is_best(epoch), after.should_stop(epoch)) for epoch in story[cut:]] == expected[cut:]


# --- signals ------------------------------------------------------------------------------------


def send(number):
    os.kill(os.getpid(), number)


def interrupted(work):
    with DeferredSignals() as interruption:
        work(interruption)


def test_ctrl_c_waits_until_it_suits():
    before, done = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], []

    def work(interruption):
        assert interruption.asked is None
        send(signal.SIGINT)
        done.append("the step")
        assert interruption.asked == signal.SIGINT
        interruption.leave()
        done.append("the next one")

    with pytest.raises(KeyboardInterrupt):
        interrupted(work)
    assert done == ["the step"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_sigterm_leaves_with_its_own_status():
    def work(interruption):
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        interruption.leave()

    with pytest.raises(SystemExit) as left:
        interrupted(work)
    assert left.value.code == 143


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_is_obeyed_at_once(first):
    done = []

    def work(_):
        send(first)
        done.append("held back")
        send(signal.SIGINT)
        done.append("held back as well")

    with pytest.raises(KeyboardInterrupt):
        interrupted(work)
    assert done == ["held back"]


def test_a_signal_after_the_last_look_is_not_lost():
    with pytest.raises(KeyboardInterrupt):
        interrupted(lambda _: send(signal.SIGINT))


def test_an_error_goes_before_a_signal():
    def work(_):
        send(signal.SIGINT)
        raise ValueError("broken")

    with pytest.raises(ValueError, match=r"^broken$"):
        interrupted(work)


def test_outside_the_main_thread_it_leaves_signals_alone():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with DeferredSignals() as interruption:
            seen.append((signal.getsignal(signal.SIGINT), interruption.asked))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, None)]
