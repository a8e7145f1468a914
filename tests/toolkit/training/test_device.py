"""Device and precision, and what processes say to each other, with real processes."""

import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from support import MAX_WAIT_S, ROOT, wait_until
from support.servers import free_port
from support.tiny_networks import CPU, context, together
from toolkit.errors import SettingsError
from toolkit.system.metrics import usable_cores
from toolkit.training.device import (
    SINGLE_PROCESS,
    Device,
    World,
    configure_torch,
    init_distributed,
    multiplies_bfloat16,
)

CPU_INFO = Path("/proc/cpuinfo")


# --- precision ----------------------------------------------------------------------------------


def test_the_precision_can_be_chosen():
    assert Device.choose("float32").dtype is torch.float32
    assert Device.choose("bfloat16").dtype is torch.bfloat16
    product = torch.ones(2, 2)
    with Device("cpu", torch.bfloat16).autocast():
        assert (product @ product).dtype is torch.bfloat16
    with CPU.autocast():
        assert (product @ product).dtype is torch.float32


def test_auto_precision_is_bfloat16_only_on_native_hardware():
    chosen = Device.choose()
    assert chosen.name == ("cuda" if torch.cuda.is_available() else "cpu")
    assert chosen.dtype is (torch.bfloat16 if multiplies_bfloat16(chosen.name) else torch.float32)
    assert not chosen.compiled
    assert chosen.world == SINGLE_PROCESS


@pytest.mark.skipif(platform.machine() != "x86_64" or not CPU_INFO.exists(), reason="reads the flags of x86 on Linux")
def test_the_processors_own_flags_say_the_same():
    found = re.search(r"^flags\s*:(.*)$", CPU_INFO.read_text(), re.MULTILINE)
    assert found is not None
    assert multiplies_bfloat16("cpu") == bool({"amx_tile", "avx512_bf16"} & set(found[1].split()))


def test_a_device_says_what_it_is():
    assert str(CPU) == "cpu, float32"
    assert str(Device("cpu", torch.bfloat16, world=World(1, 4))) == "cpu, bfloat16, 4 processes"


def test_random_numbers_come_from_the_gpu_of_this_process(monkeypatch):
    """By its number: with that alone, all processes of torchrun would draw on the first GPU."""
    asked = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch, "Generator", asked.append)
    Device("cuda", torch.float32).generator()
    CPU.generator()
    assert asked == ["cuda:3", "cpu"]


def test_seeding_the_device_is_seeding_torch(monkeypatch):
    with torch.random.fork_rng():
        CPU.seed(5)
        own = torch.rand(3)
        torch.manual_seed(5)
        assert torch.equal(torch.rand(3), own)
    asked = []
    monkeypatch.setattr(torch.cuda, "manual_seed", asked.append)
    Device("cuda", torch.float32).seed(7)
    assert asked == [7]


# --- preparation --------------------------------------------------------------------------------


@pytest.fixture
def restored(monkeypatch):
    """torch's switches and the environment as they were."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "unset")  # so that monkeypatch restores it
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = torch.backends.cudnn.benchmark
    yield monkeypatch
    torch.backends.cudnn.benchmark = before
    torch.use_deterministic_algorithms(False)


def test_the_processes_of_a_machine_share_its_cores(restored):
    configure_torch()
    assert torch.get_num_threads() == usable_cores()
    restored.setenv("LOCAL_WORLD_SIZE", str(2 * usable_cores()))
    configure_torch()
    assert torch.get_num_threads() == 1


def test_float32_is_all_of_float32_on_a_gpu(restored):
    restored.setattr(torch.backends.cudnn, "allow_tf32", True)
    configure_torch()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_the_first_training_of_a_process_may_do_without_determinism_and_the_second_have_it(restored):
    """torch reads the variable at the first product on a GPU, and refuses determinism for good if it was not set."""
    configure_torch()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_repeatable_algorithms_are_a_choice(restored):
    configure_torch(deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    configure_torch()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


# --- the processes of one training --------------------------------------------------------------


@given(st.integers(0, 30), st.integers(1, 5))
def test_shares_are_even_and_each_position_is_in_one(count, size):
    positions = np.random.default_rng(count).permutation(count)
    shares = [World(rank, size).share(positions) for rank in range(size)]
    assert sorted(np.concatenate(shares)) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_there_is_no_process_to_ask(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    values = torch.arange(6.0).view(3, 2)
    with init_distributed() as world:
        assert not dist.is_initialized()
        assert world == World(0, 1)
        assert torch.equal(world.gather_rows(values, 3), values)
        assert torch.equal(world.sum(values.clone()), values)
        assert (world.any(True), world.any(False)) == (True, False)
        network = nn.Linear(2, 2)
        before = network.weight.clone()
        world.broadcast_buffers(network)
        assert torch.equal(network.weight, before)


LEFT_OVER = "start it with torchrun, or unset WORLD_SIZE"


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"WORLD_SIZE": "2"}, f"WORLD_SIZE is 2 and RANK, MASTER_ADDR, MASTER_PORT not set: {LEFT_OVER}"),
        (
            {"WORLD_SIZE": "two"},
            "WORLD_SIZE must be a whole number, at least 1, got two; torchrun sets it, else unset it",
        ),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a whole number, at least 1, got 0; torchrun sets it, else unset it"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
            f"RANK must be a whole number below the WORLD_SIZE of 2, got 2: {LEFT_OVER}",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "port"},
            f"the 2 processes cannot be joined: invalid literal for int() with base 10: 'port'; {LEFT_OVER}",
        ),
    ],
)
def test_half_a_world_that_was_left_over_is_one_sentence(variables, reason, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught, init_distributed():
        pass
    assert str(caught.value) == reason


@pytest.mark.parametrize("local", [0, 2])
def test_each_process_has_a_gpu_of_its_own(monkeypatch, local):
    """NCCL exchanges what is on GPUs, gloo what is not."""
    own, joined = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", own.append)
    monkeypatch.setattr(dist, "init_process_group", joined.append)
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: True)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, {"WORLD_SIZE": "3"}.get(name, str(local)))
    if local == 0:
        with init_distributed() as world:
            assert world == World(0, 3)
        assert (own, joined) == ([0], ["cpu:gloo,cuda:nccl"])
    else:
        reason = "^process 3 of this machine has no GPU: lower --nproc-per-node to at most 2$"
        with pytest.raises(SettingsError, match=reason), init_distributed():
            pass
        assert (own, joined) == ([], [])


def wait_in_vain(port, out):
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.environ |= {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.stdout = out.open("w")
    with init_distributed():
        pass


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_waiting_for_missing_processes_is_reported_and_stoppable(tmp_path, sent):
    process = context().Process(target=wait_in_vain, args=(free_port(), tmp_path / "out"))
    process.start()
    said = "waiting for the other processes, since WORLD_SIZE is 2; unset it if there are none\n"
    out = tmp_path / "out"
    wait_until(lambda: not process.is_alive() or (out.exists() and out.read_text() == said))
    os.kill(process.pid, sent)
    process.join(MAX_WAIT_S)
    assert process.exitcode in (-sent, 1), "at once, by the signal or by KeyboardInterrupt before the waiting"
    process.kill()


def exchange(world):
    everything = torch.arange(60.0).view(10, 3, 2)
    gathered = {}
    for count in range(11):
        own = everything[torch.from_numpy(world.share(np.arange(count)))]
        gathered[count] = world.gather_rows(own, count).numpy()
    with torch.random.fork_rng():
        torch.manual_seed(world.rank)
        network = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
        network(torch.rand(5, 3, 4, 4))
    before = {name: value.clone().numpy() for name, value in network.state_dict().items()}
    world.broadcast_buffers(network)
    return {
        "place": (world.rank, world.size),
        "gathered": gathered,
        "sum": world.sum(torch.tensor([1.0, 10.0**world.rank], dtype=torch.float64)).tolist(),
        "any": [world.any(flag) for flag in (False, True, world.rank == 0, world.rank == world.size - 1)],
        "before": before,
        "after": {name: value.numpy() for name, value in network.state_dict().items()},
    }


@pytest.mark.parametrize("size", [2, 3])
def test_processes_exchange_rows_sums_answers_and_weights(size):
    """Rows come once and in order for any count, also where some processes have none."""
    answers = together(size, exchange)
    everything = np.arange(60.0, dtype=np.float32).reshape(10, 3, 2)
    first = answers[0]["before"]
    for rank, answer in enumerate(answers):
        assert answer["place"] == (rank, size)
        for count, rows in answer["gathered"].items():
            assert np.array_equal(rows, everything[:count]), (count, rank)
        assert answer["sum"] == [size, {2: 11, 3: 111}[size]]
        assert answer["any"] == [False, True, True, True]
        assert all(np.array_equal(answer["after"][name], first[name]) for name in first)
    assert not np.array_equal(answers[1]["before"]["0.weight"], first["0.weight"])
    assert not np.array_equal(answers[1]["before"]["1.running_mean"], first["1.running_mean"])


def test_a_folder_for_compiled_code_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("no folder can be made below")
    folder = tmp_path / "file" / "folder"
    imports = "from toolkit.cli.settings import run_script; from toolkit.training.device import configure_torch"
    code = f"{imports}; run_script(lambda: configure_torch(deterministic=True))"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TORCHINDUCTOR_CACHE_DIR": str(folder)},
        capture_output=True, text=True, timeout=MAX_WAIT_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.endswith(
        f": error: torch needs a folder for compiled code ([Errno 20] Not a directory: '{folder}');"
        " set TORCHINDUCTOR_CACHE_DIR to another\n"
    )
