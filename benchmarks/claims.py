"""What every benchmark says first and last: on which machine, and what came out beside what was hoped for."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from toolkit.cli.terminal import echo, table
from toolkit.errors import SettingsError
from toolkit.system.metrics import usable_cores

# Of the instructions that make networks fast.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
NEVER = 1e9  # a value from which on it never happened


class Claim(NamedTuple):
    """A figure, and what it is to be."""

    value: float
    goal: float
    better: str  # higher or lower
    conditions: str

    @property
    def row(self) -> tuple[str, str]:
        """The figure and its goal as a table shows them."""
        value = "never" if self.value >= NEVER else f"{self.value:.3g}"
        return value, f"{'>=' if self.better == 'higher' else '<='} {self.goal:g}"


Claims = dict[str, Claim]


def machine(*packages: str) -> str:
    """Where figures come from: the processor, how busy it is, and the versions of what is measured.

    Raises
    ------
    SettingsError
        One of the packages is not installed.
    """
    try:
        versions = ", ".join(f"{name} {version(name)}" for name in packages)
    except PackageNotFoundError as missing:
        raise SettingsError(f"{missing.name} is not installed; run pip install -r requirements-bench.txt") from None
    return f"{processor()}, {usable_cores()} cores, load {load()}, Python {platform.python_version()}, {versions}"


def processor() -> str:
    """Its name, and which of the instructions it has that make networks fast."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.machine()
    about = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in FLAGS if flag in about.get("flags", "").split()]
    return f"{about.get('model name', platform.machine())} ({' '.join(flags)})"


def load() -> str:
    """How many processes wanted a core in the last minute."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def conclude(claims: Claims, as_json: bool) -> None:
    """Say all claims beside their goals."""
    rows = [[name, *claim.row] for name, claim in claims.items()]
    echo(f"\n{table(['claim', 'measured', 'goal'], rows)}\n\nload {load()}")
    if as_json:
        print(json.dumps({name: claim._asdict() for name, claim in claims.items()}))
