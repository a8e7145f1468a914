"""Parts for a GPU alone: a check that it works, the times of its steps, and its errors in one line."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.cli.terminal import echo
from toolkit.errors import TrainingError, first_line

# Words of libraries that allocate memory of their own, and of the CPU's allocator, which has no exception for it.
MEMORY_RAN_OUT = ("CUDA error: out of memory", "_STATUS_ALLOC_FAILED", "can't allocate memory")


def is_usable() -> bool:
    """Whether there is a GPU that computes: torch may have no code for an old one, or another program may own it."""
    if not torch.cuda.is_available():
        return False
    try:
        torch.ones(1, device="cuda").add_(1).item()
    except RuntimeError as error:
        echo(f"the GPU cannot be used ({first_line(error)}); the CPU is")
        return False
    return True


def uuid() -> str:
    """The UUID of the GPU that this process uses, by which NVIDIA's library knows it too."""
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)


def to_device(values: NDArray[Any], device: str) -> Tensor:
    """The values on ``cpu`` or ``cuda``; without pinned memory Python would wait until the GPU has done all else."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device == "cuda" else tensor


class StepTimes:
    """Seconds of the steps of an epoch.

    Python is done with a step long before a GPU is, so events on the GPU itself measure it. They are read together,
    since reading one waits for the GPU.
    """

    def __init__(self, on_gpu: bool, seconds: list[float] | None = None) -> None:
        self._on_gpu, self._seconds = on_gpu, list(seconds or [])
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        """Measure one step."""
        if self._on_gpu:
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            began.record()
            yield
            ended.record()
            self._events.append((began, ended))
        else:
            start = time.perf_counter()
            yield
            self._seconds.append(time.perf_counter() - start)

    def read(self) -> list[float]:
        """The seconds of all steps, once the last one is done."""
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds += [began.elapsed_time(ended) / 1e3 for began, ended in self._events]
            self._events.clear()
        return self._seconds


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or for the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in MEMORY_RAN_OUT)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """A context in which a lack of memory, and a GPU that fails, are a TrainingError of one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise TrainingError(
                "the images or the network do not fit into memory; lower --batch-size or --image-size, or end other"
                " programs that use it"
            ) from None
        if isinstance(error, torch.AcceleratorError):
            raise TrainingError(f"the GPU failed: {first_line(error)}") from None
        raise
