"""The page about the registry is true: every command in it is typed again, and prints what it says.

The script's own ``main`` runs in this process, since a process a command would take most of a minute.
"""

import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import model_registry
from support import ROOT
from support.servers import empty_store
from toolkit.bundle.files import PROGRAM
from toolkit.cli.settings import run_script
from toolkit.tracking.connection import connect

PAGE = (ROOT / "docs" / "registry.md").read_text()
PROMPT = "$ python "
Log = Callable[..., str]
# What differs from one time to another, and is not compared.
CHANGING = {
    r"\b[0-9a-f]{64}\b": "DIGEST",
    r"\b[0-9a-f]{12}\.\.\.": "DIGEST",
    r"\b[0-9a-f]{32}\b": "RUN",
    r"\bm-[0-9a-f]{32}\b": "MODEL",
    r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}(:\d{2})?": "TIME",
    r"^(latency_ms|size_mb) .*$": r"\1",
    r"(?<=v\d    )(None|Staging|Production|Archived)?( +\w+ +)\w+": r"\1\2",
    r" +": " ",
}


def steps():
    """Each command, and each event, with the text below it."""
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        parts = re.split(r"^(# .*|\$ .*)\n", block, flags=re.MULTILINE)
        assert parts[0] == ""
        yield from zip(parts[1::2], parts[2::2], strict=True)


def comparable(text):
    for pattern, name in CHANGING.items():
        text = re.sub(pattern, name, text, flags=re.MULTILINE)
    return text.strip()


class Events:
    """Events that the page's story needs between its commands."""

    def __init__(self, folder, log):
        self.uri, self._log = f"sqlite:///{folder}/mlflow.db", log

    def __call__(self, name):
        {
            "# a first study has ended": lambda: self._study(0.89, lean=12),
            "# a second study has ended": lambda: self._study(0.96, lean=10),
            "# a training with other settings has ended": self._training,
            "# the weights of version 2 are altered": self._alter,
        }[name]()

    def _study(self, accuracy, lean):
        metrics = {"mean_cv_accuracy": accuracy}
        self._log(connect(self.uri), "hyperopt_tuning", role="study", lean=lean, metrics=metrics)

    def _training(self):
        self._log(connect(self.uri), "training", lean=14, metrics={"best_val_accuracy": 0.83})

    def _alter(self):
        client = connect(self.uri)
        version = client.get_model_version("image-classifier", "2")
        program = Path(client.get_logged_model(version.tags["model_id"]).artifact_location, PROGRAM)
        data = bytearray(program.read_bytes())
        data[len(data) // 2] ^= 1
        program.write_bytes(data)


@pytest.fixture
def typed(monkeypatch, capsys):
    """A function that runs a command and returns its output."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("LOGNAME", "ada")

    def type_command(command):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", shlex.split(command.removeprefix(PROMPT)))
        with pytest.raises(SystemExit):
            run_script(model_registry.main)
        model_registry.log.handlers.clear()
        printed = capsys.readouterr()
        return printed.out + printed.err

    yield type_command
    signal.signal(signal.SIGTERM, before)


def test_commands_print_the_output_of_the_page(typed, tmp_path, log_colour_run):
    (tmp_path / "mlflow.db").write_bytes(empty_store())
    run_event = Events(tmp_path, log_colour_run)
    commands = 0
    for line, output in steps():
        if line.startswith("# "):
            run_event(line)
            continue
        assert line.startswith(PROMPT)
        commands += 1
        assert comparable(typed(line)) == comparable(output), line
    assert commands > 20


def test_every_subcommand_and_fault_is_on_the_page():
    for verb in ("list", "show", "register", "promote", "compare", "rollback", "history", "verify", "archive"):
        assert f"{PROMPT}model_registry.py {verb}" in PAGE
