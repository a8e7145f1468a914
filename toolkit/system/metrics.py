"""The cores that this process may use, and readings of CPU, memory and GPU."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "max 100000" or "150000 100000": microseconds a period


def usable_cores(quota: Path = _QUOTA) -> int:
    """Cores that this process may use: its affinity, or its container's quota when that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()
        cores = min(cores, max(1, round(int(allowed) / int(period))))
    except (OSError, ValueError):  # no such limit
        pass
    return cores


class SystemMetrics:
    """Readings of the machine between two calls of ``read``: CPU, memory, and the GPU of this UUID if one is given.

    Examples
    --------
    >>> sorted(name for name in SystemMetrics().read())
    ['cpu_percent', 'ram_mb']
    """

    def __init__(self, gpu: str | None = None) -> None:
        self._process = psutil.Process()
        psutil.cpu_percent()  # the first call only starts the clock
        self._gpu = _nvml(gpu) if gpu else None

    def read(self) -> dict[str, float]:
        """``cpu_percent`` of all cores since the last call, ``ram_mb`` of this process, and the GPU's readings."""
        readings = {"cpu_percent": psutil.cpu_percent(), "ram_mb": self._process.memory_info().rss / 2**20}
        if self._gpu is not None:
            pynvml, device = self._gpu
            with suppress(pynvml.NVMLError):  # a part of a GPU (MIG) has no utilisation of its own
                readings["gpu_utilisation_percent"] = float(pynvml.nvmlDeviceGetUtilizationRates(device).gpu)
            with suppress(pynvml.NVMLError):
                readings["gpu_device_memory_mb"] = pynvml.nvmlDeviceGetMemoryInfo(device).used / 2**20
        return readings


def _nvml(uuid: str) -> tuple[Any, Any] | None:
    """NVIDIA's library, which numbers GPUs otherwise than CUDA does, and its handle of a GPU, whole or a part."""
    try:
        import pynvml  # needs NVIDIA's driver library, which most machines lack

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001  no driver, no library: there is nothing to read
        return None
    for kind in ("GPU", "MIG"):
        with suppress(pynvml.NVMLError):
            return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"{kind}-{uuid}")
    return None
