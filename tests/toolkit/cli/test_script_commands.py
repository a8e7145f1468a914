import os
import subprocess
import sys

import pytest

from support import ROOT
from toolkit.cli import script_commands
from toolkit.cli.script_commands import as_typed, command_line, process_command, this_command

MANUAL = """
    python train_cnn.py --data photos/
    torchrun --nproc-per-node 2 train_cnn.py
    SERVE_ADMIN_KEY=... python serve_model.py
"""


def test_from_the_folder_of_the_scripts_commands_name_files(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["my scripts/train_cnn.py"])
    assert command_line("model_registry", "promote 3 Production") == "python model_registry.py promote 3 Production"
    assert this_command() == "python 'my scripts/train_cnn.py'"
    assert this_command("2") == "torchrun --nproc-per-node 2 'my scripts/train_cnn.py'"
    assert as_typed(MANUAL) == MANUAL
    assert process_command("serve_model") == [sys.executable, str(ROOT / "serve_model.py")]


def test_installed_commands_name_each_other(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train-cnn"])
    assert command_line("model_registry", "promote 3 Production") == "model-registry promote 3 Production"
    assert command_line("monitoring") == "model-monitoring"
    assert this_command() == "train-cnn"
    assert this_command("2") == "torchrun --nproc-per-node 2 --no-python train-cnn"
    assert as_typed(MANUAL) == (
        "\n    train-cnn --data photos/\n    torchrun --nproc-per-node 2 --no-python train-cnn\n"
        "    SERVE_ADMIN_KEY=... serve-model\n"
    )


def test_other_programs_print_the_installed_commands(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py"])
    monkeypatch.setattr(script_commands, "DISTRIBUTION", "image-classification-toolkit")
    assert command_line("monitoring", "labels") == "model-monitoring labels"


@pytest.mark.parametrize("script", script_commands.COMMANDS)
def test_an_installed_command_starts_processes_under_its_name(monkeypatch, script):
    monkeypatch.setattr(sys, "argv", [script_commands.COMMANDS[script]])
    command = process_command(script)
    result = subprocess.run(
        [*command, "--folds", "-7", "--port", "-7"],
        check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith(f"{script_commands.COMMANDS[script]}: error: ")
    assert len(result.stderr.splitlines()) == 1
