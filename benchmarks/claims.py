"""The first and the last lines of every benchmark: the machine, and the claims with their goals."""

import argparse
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
    """A measured value and its goal."""

    value: float
    goal: float
    better: str  # higher or lower
    conditions: str

    @property
    def row(self) -> tuple[str, str]:
        """Value and goal as cells of a table."""
        value = "never" if self.value >= NEVER else f"{self.value:.3g}"
        return value, f"{'>=' if self.better == 'higher' else '<='} {self.goal:g}"


Claims = dict[str, Claim]


def argument_parser(manual: str | None, quick: str) -> argparse.ArgumentParser:
    """A parser of --quick, which means as ``quick`` says, and --json."""
    parser = argparse.ArgumentParser(description=manual, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser


def machine(*packages: str) -> str:
    """The conditions of a run: processor, cores, load, and versions of packages, which must be installed."""
    try:
        versions = ", ".join(f"{name} {version(name)}" for name in packages)
    except PackageNotFoundError as missing:
        raise SettingsError(f"{missing.name} is not installed; run pip install -r requirements-bench.txt") from None
    return f"{processor()}, {usable_cores()} cores, load {load()}, Python {platform.python_version()}, {versions}"


def processor() -> str:
    """The processor's name, and its instructions for networks."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.machine()
    about = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in FLAGS if flag in about.get("flags", "").split()]
    return f"{about.get('model name', platform.machine())} ({' '.join(flags)})"


def load() -> str:
    """The load average of the last minute."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def conclude(claims: Claims, as_json: bool) -> None:
    """Print all claims with their goals."""
    rows = [[name, *claim.row] for name, claim in claims.items()]
    echo(f"\n{table(['claim', 'measured', 'goal'], rows)}\n\nload {load()}")
    if as_json:
        print(json.dumps({name: claim._asdict() for name, claim in claims.items()}))
