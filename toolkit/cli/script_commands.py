"""The scripts as commands: what a user types, what a process runs, and what the installed commands run.

A printed command has the form in which this process was started: ``python
model_registry.py list``, or ``model-registry list`` where the project is installed.
"""

import re
import shlex
import sys
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import toolkit

ROOT = Path(toolkit.__file__).resolve().parents[1]  # the folder of the scripts and of the toolkit
DISTRIBUTION = "image-classification-toolkit" if ROOT.name in ("site-packages", "dist-packages") else None
COMMANDS = {
    "train_cnn": "train-cnn",
    "hyperopt_tuning": "hyperopt-tuning",
    "model_registry": "model-registry",
    "serve_model": "serve-model",
    "monitoring": "model-monitoring",
}
_TYPED = re.compile(r"(python|torchrun [-\w ]+) (\w+)\.py")


def command_line(script: str, words: str = "") -> str:
    """The command that a user types to run a script.

    Examples
    --------
    >>> command_line("monitoring", "labels")
    'python monitoring.py labels'
    """
    name = COMMANDS[script] if _is_installed() else f"python {script}.py"
    return f"{name} {words}" if words else name


def this_command(processes: str = "1") -> str:
    """The command that a user types to start this process again, with torchrun if it is one of several."""
    torchrun = "" if processes == "1" else f"torchrun --nproc-per-node {processes} "
    if sys.argv[0] in COMMANDS.values():
        return f"{torchrun and torchrun + '--no-python '}{sys.argv[0]}"
    return f"{torchrun or 'python '}{shlex.quote(sys.argv[0])}"


def as_typed(text: str) -> str:
    """A manual whose commands have the form in which this process was started."""
    return _TYPED.sub(_translated, text) if _is_installed() else text


def process_command(script: str) -> list[str]:
    """The command that runs a script in a process of its own."""
    if _is_installed():
        return [sys.executable, "-P", "-m", __name__, script]
    return [sys.executable, str(ROOT / f"{script}.py")]


def run(script: str) -> None:
    """Run a script in this process as ``python NAME.py`` does, under the name of its command."""
    sys.argv[0] = COMMANDS[script]
    module = sys.modules["__main__"] = ModuleType("__main__")
    module.__file__ = str(ROOT / f"{script}.py")
    SourceFileLoader(module.__name__, module.__file__).exec_module(module)


def _is_installed() -> bool:
    """Whether this is an installed command, or another program, such as a notebook, that uses the installed project."""
    return sys.argv[0] in COMMANDS.values() or DISTRIBUTION is not None


def _translated(found: re.Match[str]) -> str:
    launcher, script = found.groups()
    return COMMANDS[script] if launcher == "python" else f"{launcher} --no-python {COMMANDS[script]}"


train_cnn, hyperopt_tuning, model_registry, serve_model, monitoring = (partial(run, script) for script in COMMANDS)

if __name__ == "__main__":
    run(sys.argv.pop(1))
