"""The project file agrees with the requirements, the scripts and the change log."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support import ROOT
from toolkit.cli import script_commands

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name):
    """Exact versions by distribution, as a requirements file lists them itself."""
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith("-r ")]
    assert all(str(one.specifier).startswith("==") for one in found)
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in found}


RANGES = {"requirements.txt": PROJECT["dependencies"]}
RANGES |= {f"requirements-{extra}.txt": ranges for extra, ranges in PROJECT["optional-dependencies"].items()}


@pytest.mark.parametrize("file", RANGES)
def test_each_range_admits_the_version_that_was_tested(file):
    ranges = {canonicalize_name(one.name): one.specifier for one in map(Requirement, RANGES[file])}
    tested = pins(file)
    assert ranges.keys() == tested.keys()
    for name, version in tested.items():
        assert ranges[name].contains(version), f"{name}{ranges[name]} leaves out the tested {version}"
        assert not ranges[name].contains("9999"), f"{name}{ranges[name]} has no upper limit"


def test_each_requirements_file_of_an_option_is_an_extra():
    files = {path.name for path in ROOT.glob("requirements-*.txt")} - {"requirements-dev.txt", "requirements-bench.txt"}
    assert files == RANGES.keys() - {"requirements.txt"}


def test_each_script_has_a_command():
    assert script_commands.COMMANDS.keys() == {path.stem for path in ROOT.glob("*.py")}
    assert PROJECT["scripts"] == {
        name: f"toolkit.cli.script_commands:{script}" for script, name in script_commands.COMMANDS.items()
    }


def test_the_change_log_begins_with_this_version():
    releases = re.findall(
        r"^## (?:\[(.+?)\]|(\S+)) - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert PROJECT["version"] in releases[0]
