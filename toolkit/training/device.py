"""Device, precision, and the processes of torchrun that share the work."""

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from toolkit.cli.terminal import echo, muted
from toolkit.errors import SettingsError, first_line
from toolkit.system.metrics import usable_cores
from toolkit.training import gpu

RENDEZVOUS = ("RANK", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun, with WORLD_SIZE


@dataclass(frozen=True)
class World:
    """The processes that torchrun started for one training; a single process is a world of size 1."""

    rank: int = 0  # of this process; rank 0 logs and saves
    size: int = 1

    def share(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's share of ``positions`` (N,): every ``size``-th, so that each is in exactly one share."""
        return positions[self.rank :: self.size]

    def sum(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true in any process."""
        if self.size == 1:
            return flag
        return self.sum(torch.tensor([float(flag)])).item() > 0  # on the CPU: no process waits for its GPU

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Copy rank 0's weights and statistics to every process; batch statistics differ between them."""
        if self.size > 1:
            for value in network.state_dict().values():
                dist.broadcast(value, src=0)

    def gather_rows(self, own: Tensor, count: int) -> Tensor:
        """All ``count`` rows in order, (count, ...), from each process's ``share`` of them."""
        if self.size == 1:
            return own
        longest = -(-count // self.size)
        padded = own.new_zeros((longest, *own.shape[1:]))
        padded[: len(own)] = own
        pieces = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(pieces, padded)
        return torch.stack(pieces, dim=1).flatten(0, 1)[:count]  # piece r holds the rows r, r + size, ...

    def leave(self) -> None:
        """End the exchange: NCCL ends it in all processes together, and the first has minutes of work left."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


SINGLE_PROCESS = World()


@dataclass(frozen=True)
class Device:
    """The device of a training, its precision, and the processes that share the work."""

    name: str  # cpu or cuda
    dtype: torch.dtype  # of matrix products and convolutions, bfloat16 or float32
    compiled: bool = False  # whether networks go through ``torch.compile``
    world: World = SINGLE_PROCESS

    @classmethod
    def choose(cls, precision: str = "auto", *, compiled: bool = False, world: World = SINGLE_PROCESS) -> "Device":
        """The GPU if there is one; bfloat16 if ``precision`` is ``auto`` and the hardware multiplies it natively."""
        name = "cuda" if gpu.is_usable() else "cpu"
        native = multiplies_bfloat16(name)
        half = precision == "bfloat16" or (precision == "auto" and native)
        return cls(name, torch.bfloat16 if half else torch.float32, compiled, world)

    def autocast(self) -> torch.autocast:
        """A context in which matrix products and convolutions use the dtype."""
        return torch.autocast(self.name, self.dtype, enabled=self.dtype is not torch.float32)

    def generator(self) -> torch.Generator:
        """A source of random numbers on the device, a GPU by its number: each process of torchrun has another."""
        return torch.Generator(f"cuda:{torch.cuda.current_device()}" if self.name == "cuda" else self.name)

    def seed(self, number: int) -> None:
        """Seed torch's own generator of the device; ``torch.manual_seed`` also looks for all other kinds of device."""
        if self.name == "cuda":
            torch.cuda.manual_seed(number)
        else:
            torch.default_generator.manual_seed(number)

    def __str__(self) -> str:
        several = f", {self.world.size} processes" if self.world.size > 1 else ""
        return f"{self.name}, {str(self.dtype).removeprefix('torch.')}{several}"


def multiplies_bfloat16(name: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware: tensor cores, or a processor's AMX or AVX512-BF16."""
    if name == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def configure_torch(*, deterministic: bool = False, threads: int | None = None) -> None:
    """Set torch's threads, by default this process's share of the cores, and the determinism of its algorithms.

    Raises
    ------
    SettingsError
        torch cannot make its folder for compiled code, which it makes in any case.
    """
    _keep_freed_memory()
    torch.set_num_threads(threads or max(1, usable_cores() // _processes_here()))
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = False  # by default convolutions in float32 have 10 bits of 23 on a GPU
    # NVIDIA's condition for determinism, set in any case: torch reads it once, at a process's first product on a GPU.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic == torch.are_deterministic_algorithms_enabled():
        return  # to say it again would import torch's compiler, which takes a second
    try:
        torch.use_deterministic_algorithms(deterministic)
    except OSError as error:
        raise SettingsError(
            f"torch needs a folder for compiled code ({first_line(error)}); set TORCHINDUCTOR_CACHE_DIR to another"
        ) from None


def _processes_here() -> int:
    """The processes of the training on this machine, as torchrun sets them; 1 without torchrun."""
    given = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(given)) if given.isdecimal() else 1


def _keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next step, instead of returning it to the system.

    Page faults cost simple_cnn a seventh of its time at 128 px.
    """
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    with suppress(OSError, AttributeError, TypeError):  # another system, or another C library
        library = ctypes.CDLL(None)
        library.mallopt(mmap_threshold, 2**30)
        library.mallopt(trim_threshold, 2**31 - 1)


@contextmanager
def init_distributed() -> Iterator[World]:
    """Join the processes that torchrun describes in the environment; a world of size 1 without it.

    Only rank 0 prints.

    Raises
    ------
    SettingsError
        The environment is incomplete or invalid, or the other processes cannot be reached.
    """
    size = _size()
    if size == 1:
        yield SINGLE_PROCESS
        return
    advice = "start it with torchrun, or unset WORLD_SIZE"
    if absent := [name for name in RENDEZVOUS if not os.environ.get(name)]:
        raise SettingsError(f"WORLD_SIZE is {size} and {', '.join(absent)} not set: {advice}")
    rank = os.environ["RANK"]
    if not rank.isdecimal() or int(rank) >= size:
        raise SettingsError(f"RANK must be a whole number below the WORLD_SIZE of {size}, got {rank}: {advice}")
    with muted(rank != "0"):
        if not dist.is_torchelastic_launched():
            echo(f"waiting for the other processes, since WORLD_SIZE is {size}; unset it if there are none")
        try:
            with _ended_by_signals():
                dist.init_process_group("cpu:gloo,cuda:nccl" if _use_own_gpu() else "gloo")
        except (KeyError, ValueError, OSError, RuntimeError) as error:  # torch's own are kinds of the last
            raise SettingsError(f"the {size} processes cannot be joined: {first_line(error)}; {advice}") from None
        world = World(int(rank), size)
        try:
            yield world
        finally:
            world.leave()


def _use_own_gpu() -> bool:
    """Whether there are GPUs; the one with this process's number becomes its own."""
    if not torch.cuda.is_available():
        return False
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= count:
        raise SettingsError(
            f"process {local + 1} of this machine has no GPU: lower --nproc-per-node to at most {count}"
        )
    torch.cuda.set_device(local)
    return True


def _size() -> int:
    given = os.environ.get("WORLD_SIZE") or "1"
    if not given.isdecimal() or given == "0":
        raise SettingsError(
            f"WORLD_SIZE must be a whole number, at least 1, got {given}; torchrun sets it, else unset it"
        )
    return int(given)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A context in which Ctrl-C and SIGTERM end the process at once: while torch waits, Python gets no signals."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
