"""Weights on disk, with what is needed to rebuild the network around them."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import DataError, one_line


def save_checkpoint(path: Path, network: nn.Module, description: Mapping[str, Any]) -> None:
    """Write the weights and a JSON-able description; a reader sees the old file or the new one, never half of one.

    Raises
    ------
    DataError
        The folder cannot be made or written to.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"weights": network.state_dict(), "description": json.dumps(dict(description))}, scratch)
        scratch.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        with suppress(OSError):
            scratch.unlink()
        raise DataError(f"the checkpoint {path} cannot be written: {one_line(error)}") from None


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the description; nothing but tensors and text is unpickled.

    Raises
    ------
    DataError
        The file is missing, broken, or no checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return dict(content["weights"]), dict(json.loads(content["description"]))
    except Exception as error:  # noqa: BLE001  pickle, zipfile and torch each raise kinds of their own
        raise DataError(f"the checkpoint {path} cannot be read: {one_line(error)}") from None
