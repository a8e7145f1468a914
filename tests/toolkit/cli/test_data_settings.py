"""The settings that training and tuning share."""

from pathlib import Path

import pytest

from toolkit.cli.data_settings import default_folder
from toolkit.errors import DataError


def test_the_default_folder_is_the_systems(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    home = Path("/home/ada/.cache/image-classification/images")
    assert default_folder({}, "linux") == home
    assert default_folder({"XDG_CACHE_HOME": "relative"}, "linux") == home
    assert default_folder({"XDG_CACHE_HOME": "/x"}, "darwin") == Path("/x/image-classification/images")
    assert default_folder({"LOCALAPPDATA": "/l", "XDG_CACHE_HOME": "/x"}, "win32") == Path(
        "/l/image-classification/images"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", "/variable")
    assert default_folder() == Path("/variable/image-classification/images")


def test_without_a_home_the_default_folder_asks_for_one(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(DataError, match=r"^there is no home folder for decoded images; give a --cache-dir$"):
        default_folder({}, "linux")
