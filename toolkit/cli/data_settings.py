"""What training and tuning are both told: where the data is, how a network starts, how exactly to repeat it."""

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
    """Where a user's decoded images are kept unless said otherwise.

    Raises
    ------
    DataError
        The user has no home folder.

    Examples
    --------
    >>> default_folder({"XDG_CACHE_HOME": "/var/cache/ada"}, "linux").as_posix()
    '/var/cache/ada/image-classification/images'
    """
    environment = os.environ if environment is None else environment
    above = Path(environment.get("LOCALAPPDATA" if platform == "win32" else "XDG_CACHE_HOME", ""))
    if not above.is_absolute():  # which counts as unset by the XDG rule
        try:
            above = Path.home() / ".cache"
        except RuntimeError:
            raise DataError("there is no home folder to keep decoded images in; give a --cache-dir") from None
    return above / "image-classification" / "images"


class DataSettings(ScriptSettings):
    """What training and tuning share: the data, the starting weights, and how exactly to repeat it."""

    data: str = Field(
        "digits",
        description="folder with one sub-folder a class, folder of IDX files, or digits, mnist, fashion-mnist, kmnist,"
        " cifar10, cifar100",
    )
    data_root: Path = Field(Path("data"), description="folder where data sets by name are looked for and fetched to")
    cache_dir: Path = Field(default_factory=default_folder, description="folder that keeps decoded images")
    cache_limit: float = Field(10.0, ge=0, description="most GiB that it may hold; 0: decode into memory each time")
    weights: str = Field(
        "auto",
        description="where a ResNet starts: imagenet, none (random), auto (imagenet if it can be had), or a file",
    )
    test_fraction: float = Field(
        0.15, gt=0, le=0.5, description="share of images held out, when there is no test/ folder"
    )
    group_by: str | None = Field(
        None,
        min_length=1,
        description="what belongs together and is never split, such as the images of a patient: a number of folders"
        " below the class's, whose name is the key, or a regular expression for the path, whose first group is",
    )
    near_duplicates: bool = Field(True, description="find copies of one photograph and never split them")
    flip: bool | None = Field(
        None, description="flip training images left to right; when not said, folders are flipped and digits are not"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="of splits, weights, order and augmentation")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of matrix products; auto is bfloat16 where the hardware multiplies it natively"
    )
    deterministic: bool = Field(False, description="only algorithms that repeat exactly on a GPU; CPUs always do")
    compile: bool = Field(False, description="run networks through torch.compile, which takes minutes to begin with")

    @field_validator("group_by")
    @classmethod
    def _a_level_or_an_expression(cls, group_by: str | None) -> str | None:
        if group_by and group_by.isdecimal() and not int(group_by):
            raise ValueError(f"must be at least 1 as a number of folders below the class's, got {group_by}")
        try:
            re.compile(group_by or "")
        except re.error as error:
            raise ValueError(f"must be a number or a regular expression, got {group_by} ({error})") from None
        return group_by
