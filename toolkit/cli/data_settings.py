"""The settings that training and tuning share: data, starting weights, reproducibility."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from toolkit.cli.settings import ScriptSettings
from toolkit.errors import DataError


def default_folder(environment: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """The default folder of a user's decoded images; DataError if there is no home folder.

    Examples
    --------
    >>> default_folder({"XDG_CACHE_HOME": "/var/cache/ada"}, "linux").as_posix()
    '/var/cache/ada/image-classification/images'
    """
    environment = os.environ if environment is None else environment
    above = Path(environment.get("LOCALAPPDATA" if platform == "win32" else "XDG_CACHE_HOME", ""))
    if not above.is_absolute():  # such a value counts as unset, by the XDG specification
        try:
            above = Path.home() / ".cache"
        except RuntimeError:
            raise DataError("there is no home folder for decoded images; give a --cache-dir") from None
    return above / "image-classification" / "images"


class DataSettings(ScriptSettings):
    """The settings that training and tuning share."""

    data: str = Field(
        "digits",
        description="folder with one sub-folder per class, folder of IDX files, or digits, mnist, fashion-mnist,"
        " kmnist, cifar10, cifar100",
    )
    data_root: Path = Field(
        Path("data"), description="folder in which data sets by name are searched for, or downloaded to"
    )
    cache_dir: Path = Field(default_factory=default_folder, description="folder of decoded images")
    cache_limit: float = Field(10.0, ge=0, description="its maximum size in GiB; 0: decode into memory each time")
    weights: str = Field(
        "auto",
        description="where a ResNet starts: imagenet, none (random), auto (imagenet if available), or a file",
    )
    test_fraction: float = Field(0.15, gt=0, le=0.5, description="share of images held out if there is no test/ folder")
    group_by: str | None = Field(
        None,
        min_length=1,
        description="groups that are never split, such as the images of a patient: the depth below the class's folder"
        " of the folder that names the group, or a regular expression whose first group in the path names it",
    )
    near_duplicates: bool = Field(True, description="find copies of one photograph and never split them")
    flip: bool | None = Field(
        None, description="flip training images left to right at random; by default those of folders, not digits"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="random seed of splits, weights, order and augmentation")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of matrix products; auto: bfloat16 if the hardware multiplies it natively"
    )
    deterministic: bool = Field(False, description="use only deterministic algorithms on a GPU; CPUs always do")
    compile: bool = Field(False, description="run networks through torch.compile, which takes minutes at first")

    @field_validator("group_by")
    @classmethod
    def _level_or_pattern(cls, group_by: str | None) -> str | None:
        if group_by and group_by.isdecimal() and not int(group_by):
            raise ValueError(f"must be at least 1 as a number of folders below the class's, got {group_by}")
        try:
            re.compile(group_by or "")
        except re.error as error:
            raise ValueError(f"must be a number or a regular expression, got {group_by} ({error})") from None
        return group_by
