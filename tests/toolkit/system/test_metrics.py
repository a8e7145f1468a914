"""Cores that may be used, and readings that follow what happens."""

import mmap
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from toolkit.system.metrics import SystemMetrics, usable_cores


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000\n", 2), ("50000 100000\n", 1), ("1000 100000\n", 1), ("100000 100000", 1)]
)
def test_a_containers_quota_counts_when_it_is_less_than_the_cores(tmp_path, monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path / "cpu.max") == cores


@pytest.mark.parametrize("quota", ["max 100000\n", "", "3", "900000 100000\n", "many 100000", None])
def test_without_a_smaller_quota_the_affinity_counts(tmp_path, monkeypatch, quota):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(5)), raising=False)
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path / "cpu.max") == 5


def test_readings_of_the_machine():
    machine = SystemMetrics()
    before = machine.read()
    with mmap.mmap(-1, 80 * 2**20) as fresh:  # from the system itself: an allocator may reuse what was freed before
        np.frombuffer(fresh, np.uint8)[:] = 1
        after = machine.read()
    assert {"cpu_percent", "ram_mb"} <= set(after)
    assert 0 <= after["cpu_percent"] <= 100
    assert after["ram_mb"] - before["ram_mb"] == pytest.approx(80, abs=15)
    assert before["ram_mb"] > 40  # what an interpreter with numpy holds


class FakeNVMLError(Exception):
    """An error as NVIDIA's library raises it."""


def nvml(uuid, *, utilisation):
    """NVIDIA's library where there is one GPU, or a part of one, of this UUID; utilisation of None is unsupported."""

    def handle(asked):
        if asked != uuid:
            raise FakeNVMLError(asked)
        return "handle"

    def rates(device):
        assert device == "handle"
        if utilisation is None:
            raise FakeNVMLError("Not Supported")
        return SimpleNamespace(gpu=utilisation)

    return SimpleNamespace(
        NVMLError=FakeNVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetUtilizationRates=rates,
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=3 * 2**20),
    )


@pytest.mark.parametrize(
    ("there", "utilisation", "expected"),
    [
        ("GPU-1a", 42, {"gpu_utilisation_percent": 42.0, "gpu_device_memory_mb": 3.0}),
        ("MIG-1a", None, {"gpu_device_memory_mb": 3.0}),
        ("GPU-2b", 42, {}),
    ],
)
def test_readings_of_the_gpu_that_is_used(monkeypatch, there, utilisation, expected):
    """It is known by its UUID: CUDA_VISIBLE_DEVICES changes the numbers of CUDA, and not those of the driver."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml(there, utilisation=utilisation))
    readings = SystemMetrics("1a").read()
    assert {name: value for name, value in readings.items() if name.startswith("gpu")} == expected
    assert {"cpu_percent", "ram_mb"} <= set(readings)


def test_a_driver_that_is_missing_or_fails_leaves_the_gpu_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert set(SystemMetrics("1a").read()) == {"cpu_percent", "ram_mb"}
