"""The README's two commands, where a person would type them.

The demonstration tunes for one trial instead of six, and `make test` only collects, since it would run itself.
"""

import re
from pathlib import Path

import pytest

from support import ROOT
from support.shell_session import run_shell

COMMANDS = ("make demo", "make test")
SHORT = {"TUNE_MAX_TRIALS": "1", "TUNE_FOLDS": "2", "PYTEST_ADDOPTS": "--collect-only -q --no-header -n 0"}


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return run_shell(tmp_path_factory.mktemp("make") / "project", " && ".join(COMMANDS), SHORT)


@pytest.mark.timeout(960)
def test_both_run(session):
    assert session.status == 0, session.output[-6000:]
    assert "Traceback" not in session.output


def test_they_show_what_they_promise(session):
    for promise in (r"IMMEDIATE \(confirmed, short window\): ACCURACY \d+ -> \d+ %", r"\d+ tests collected"):
        assert re.search(promise, session.output), f"{promise!r} is not in:\n{session.output[-6000:]}"


def test_the_readme_names_them():
    lines = Path(ROOT / "README.md").read_text().splitlines()
    assert [command for command in COMMANDS if not any(line.startswith(command) for line in lines)] == []
