"""A saved bundle, and copies of it to break."""

import shutil
from pathlib import Path

import pytest

from support.bundles import SavedBundle
from support.colours import ColourNetwork


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    return SavedBundle(tmp_path_factory.mktemp("bundle") / "model", ColourNetwork(), 1.7)


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved.folder, tmp_path / "copy"))
