"""Programs take turns, and what is reported is the median of the rounds that count."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from support import ColourNetwork, colour_card
from toolkit.bundle.baseline import Baseline
from toolkit.bundle.program import Bundle, Program
from toolkit.errors import SettingsError
from toolkit.registry.latency import WARM_UP, at_most_threads, latencies

NOTHING = Baseline(("blue", "green", "red"), np.zeros((0, 3)), np.zeros(0))


class Clock:
    """Goes on only when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Observed(torch.nn.Module):
    """A program that takes the time it is given for each call, and notes each picture."""

    def __init__(self, name: str, clock: Clock, seconds: Callable[[int], float], seen: list) -> None:
        super().__init__()
        self.name, self.clock, self.seconds, self.seen, self.calls = name, clock, seconds, seen, 0

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        self.clock.seconds += self.seconds(self.calls)
        self.calls += 1
        self.seen.append((self.name, pictures.clone()))
        return torch.full((len(pictures), 3), 1 / 3)


def bundle(program: torch.nn.Module, size: int = 16) -> Bundle:
    return Bundle(colour_card(size=size), NOTHING, "", program)


def test_the_median_of_the_rounds_after_the_warm_up() -> None:
    """The second program has one slow round of three, and both have slow first ones."""
    clock, seen = Clock(), []
    late = WARM_UP + 1
    steady = Observed("steady", clock, lambda call: 0.002 if call >= WARM_UP else 1.0, seen)
    jumpy = Observed("jumpy", clock, lambda call: 0.5 if call < WARM_UP or call == late else 0.004, seen)
    assert latencies([bundle(steady), bundle(jumpy)], repetitions=3, clock=clock) == pytest.approx([2.0, 4.0])


def test_programs_take_turns_with_one_picture_of_their_own_size() -> None:
    clock, seen = Clock(), []
    small, large = (Observed(name, clock, lambda _: 0.001, seen) for name in ("small", "large"))
    latencies([bundle(small, 8), bundle(large, 24)], repetitions=4, clock=clock)
    assert [name for name, _ in seen] == ["small", "large"] * (WARM_UP + 4)
    for index, size in ((0, 8), (1, 24)):
        pictures = [picture for _, picture in seen[index::2]]
        assert pictures[0].shape == (1, size, size, 3)
        assert pictures[0].dtype == torch.uint8
        assert len(pictures[0].unique()) > size, "a plain picture might be less work than a photograph"
        assert all(torch.equal(picture, pictures[0]) for picture in pictures)


def test_a_real_program_takes_time() -> None:
    assert latencies([bundle(Program(ColourNetwork()).eval())], repetitions=1)[0] > 0
    assert latencies([]) == []


def test_the_number_of_threads_is_as_before() -> None:
    before, during = torch.get_num_threads(), []
    with at_most_threads(1):
        during.append(torch.get_num_threads())
        with at_most_threads(100):
            during.append(torch.get_num_threads())
    assert during == [1, 1]
    assert torch.get_num_threads() == before
    with pytest.raises(SettingsError), at_most_threads(1):
        latencies([], repetitions=0)
    assert torch.get_num_threads() == before


def test_without_a_round_there_is_nothing_to_measure() -> None:
    with pytest.raises(SettingsError, match=r"^repetitions must be at least 1, got 0$"):
        latencies([], repetitions=0)
