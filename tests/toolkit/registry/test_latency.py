"""Programs take turns, and what is reported is the median of the rounds that count."""

import numpy as np
import pytest
import torch

from support.colours import ColourNetwork, colour_card
from support.mlflow_stores import Clock
from toolkit.bundle.baseline import Baseline
from toolkit.bundle.program import Bundle, Program
from toolkit.registry.latency import WARM_UP, at_most_threads, measure_latencies

NOTHING = Baseline(("blue", "green", "red"), np.zeros((0, 3)), np.zeros(0))


class Observed(torch.nn.Module):
    """A program that takes the time it is given for each call, and notes each image."""

    def __init__(self, name, clock, seconds, seen):
        super().__init__()
        self.name, self.clock, self.seconds, self.seen, self.calls = name, clock, seconds, seen, 0

    def forward(self, images):
        self.clock.now += self.seconds(self.calls)
        self.calls += 1
        self.seen.append((self.name, images.clone()))
        return torch.full((len(images), 3), 1 / 3)


def bundle(program, size=16):
    return Bundle(colour_card(size=size), NOTHING, "", program)


def test_the_median_of_the_rounds_after_the_warm_up():
    """The second program has one slow round of three, and both have slow first ones."""
    clock, seen = Clock(), []
    late = WARM_UP + 1
    steady = Observed("steady", clock, lambda call: 0.002 if call >= WARM_UP else 1.0, seen)
    jumpy = Observed("jumpy", clock, lambda call: 0.5 if call < WARM_UP or call == late else 0.004, seen)
    assert measure_latencies([bundle(steady), bundle(jumpy)], repetitions=3, clock=clock) == pytest.approx([2.0, 4.0])


def test_programs_take_turns():
    clock, seen = Clock(), []
    small, large = (Observed(name, clock, lambda _: 0.001, seen) for name in ("small", "large"))
    measure_latencies([bundle(small, 8), bundle(large, 24)], repetitions=4, clock=clock)
    assert [name for name, _ in seen] == ["small", "large"] * (WARM_UP + 4)
    for index, size in ((0, 8), (1, 24)):
        images = [image for _, image in seen[index::2]]
        assert images[0].shape == (1, size, size, 3)
        assert images[0].dtype == torch.uint8
        assert len(images[0].unique()) > size, "a plain image might be less work than a photograph"
        assert all(torch.equal(image, images[0]) for image in images)


def test_a_real_program_takes_time():
    assert measure_latencies([bundle(Program(ColourNetwork()).eval())], repetitions=1)[0] > 0
    assert measure_latencies([]) == []


def test_the_number_of_threads_is_as_before():
    before, during = torch.get_num_threads(), []
    with at_most_threads(1):
        during.append(torch.get_num_threads())
        with at_most_threads(100):
            during.append(torch.get_num_threads())
    assert during == [1, 1]
    assert torch.get_num_threads() == before
    with pytest.raises(KeyError), at_most_threads(1):
        raise KeyError
    assert torch.get_num_threads() == before
