"""The project as a wheel: built and installed without a network, its commands run away from the project's folder."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest

from support import MAX_WAIT_S, ROOT
from support.colours import COLOURS, colour_image
from support.image_folders import fill_colours
from support.servers import empty_store, free_port, wait_until_answers
from support.shell_session import LEFT_BEHIND, borrow_environment
from toolkit.cli.script_commands import COMMANDS

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def checked(*command, **options):
    """The output of a command that ends with status 0."""
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=MAX_WAIT_S, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "project", ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    output = checked(sys.executable, "-W", "default", "-c", BUILD, str(folder), cwd=folder / "project")
    assert "Warning" not in output
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of the commands, in an environment that sees this one's packages."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    borrow_environment(venv)
    words = ["--no-deps", "--no-index", "--disable-pip-version-check", "--quiet", str(wheel)]
    checked(sys.executable, "-m", "pip", "--python", str(venv / "bin/python"), "install", *words)
    return venv / "bin"


@pytest.fixture
def run(installed, tmp_path, monkeypatch):
    """Run an installed command in a folder of its own."""
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.setenv("PATH", f"{installed}{os.pathsep}{os.environ['PATH']}")
    return lambda name, *words: checked(installed / name, *words, cwd=tmp_path)


def test_it_holds_the_scripts_and_the_toolkit_and_nothing_else(wheel):
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "toolkit").rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name} | {f"{script}.py" for script in COMMANDS}
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in held if ".dist-info/" not in name} == files
    assert {"toolkit/py.typed", "toolkit/serving/dashboard/dashboard.html"} <= held
    assert any(name.endswith("/licenses/LICENSE") for name in held)


@pytest.mark.parametrize("name", COMMANDS.values())
def test_help_names_the_installed_commands(run, name):
    text = run(name, "--help")
    assert text.startswith(f"usage: {name} ")
    assert re.findall(r"(?<!-)python \w+|\w+\.py\b", text) == []


def test_from_a_training_to_the_report_of_what_was_served(run, installed, tmp_path):
    fill_colours(tmp_path / "colours", 20, size=16)
    (tmp_path / "mlflow.db").write_bytes(empty_store())
    said = run("train-cnn", "--data", "colours", "--epochs", "1", "--image-size", "16", "--register")
    assert "next: model-registry promote 1 Production\n" in said
    assert "next: serve-model\n" in run("model-registry", "promote", "1", "Production")
    page = run("model-registry", "show", "1")
    assert re.search(r"^stage +Production$", page, re.MULTILINE)
    assert "\n- code: 0.1.0\n" in page

    url = f"http://127.0.0.1:{free_port()}"
    command = [installed / "serve-model", "--engine", "torch", "--port", url.rpartition(":")[2]]
    with Path("log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as service:
        try:
            wait_until_answers(f"{url}/readyz", service)
            with urllib.request.urlopen(f"{url}/health") as answer:
                assert json.load(answer)["status"] == "ok"
            request = urllib.request.Request(f"{url}/predict", colour_image("red"), {"Content-Type": "image/png"})
            with urllib.request.urlopen(request) as answer:
                assert json.load(answer)["predicted_class"] in COLOURS
            with urllib.request.urlopen(f"{url}/dashboard") as answer:
                assert b"<html" in answer.read()
        finally:
            service.terminate()
    assert service.returncode == 0, Path("log").read_text()
    assert json.loads(run("model-monitoring", "report", "--json"))["metrics"]["n"] == 1
