"""Typing commands into a terminal: in a copy of the project, and in a network that has nothing but loopback."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import ROOT

LEFT_BEHIND = (
    ".git", ".venv", "runs", "mlruns", "*.db", ".*_cache", "checkpoints", "studies", "served_models", ".hypothesis",
)  # fmt: skip


@dataclass(frozen=True)
class ShellSession:
    """The result of a script that was typed into a terminal."""

    status: int
    output: str
    folder: Path
    offline: bool


def run_shell(folder, text, variables, prepare=lambda _: None):
    """Type a script in a copy of the project with a ready environment; skip where a tool is missing."""
    for tool in ("bash", "curl", "make"):
        if shutil.which(tool) is None:
            pytest.skip(f"the README types {tool}, which is not installed")
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    borrow_environment(folder / ".venv")
    prepare(folder)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    path = os.pathsep.join([str(folder / ".venv/bin"), sysconfig.get_path("scripts"), inherited["PATH"]])
    enter = loopback_only()
    with (folder / "session.log").open("wb") as log:
        process = subprocess.Popen(
            [*enter, "bash", "-c", text],
            cwd=folder,
            env={**inherited, **variables, "PATH": path},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            status = process.wait(900)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # the servers
    return ShellSession(status, (folder / "session.log").read_text(), folder, bool(enter))


def loopback_only():
    """The words that run a command in a network of its own, none where that is not allowed."""
    words = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    enter = [*words, "bash", "-c", 'ip link set lo up && exec "$@"', "bash"]
    try:
        return enter if subprocess.run([*enter, "true"], check=False, capture_output=True).returncode == 0 else []
    except OSError:
        return []


def borrow_environment(venv):
    """An environment that finds what is installed in this one, and counts as set up."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    packages = next(venv.glob("lib/python*/site-packages"))
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    (venv / ".ready").touch()
