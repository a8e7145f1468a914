"""Weights of a ResNet-18 from a file, as torch and other tools save them.

A state dict alone, or with other entries under one of several names; with torchvision's keys, or these
behind the prefix of a wrapper; a Lightning checkpoint; a file of safetensors. Only tensors, numbers,
texts and their containers are unpickled: any other object is read as an empty placeholder.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.cli.terminal import echo
from toolkit.errors import SettingsError, first_line

NESTED = ("state_dict", "model_state_dict", "model", "weights", "network", "net", "state_dict_ema", "model_ema")
COMPILED = "_orig_mod."  # torch.compile puts it anywhere into a key
FIRST = "conv1.weight"  # of a ResNet: its prefix in a file is that of all weights
HEAD = "fc."
COUNTER = ".num_batches_tracked"  # missing in torchvision's own files
MAX_NAMED = 4  # entries, in a message


class _Placeholder:
    """An empty object in the place of one that must not be loaded."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


class _DictPlaceholder:
    """An empty dictionary in the place of an object to which torch may add entries."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return OrderedDict()  # the only type that torch adds entries to


def resnet18_weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a ResNet-18 in a file, under torchvision's names.

    Other entries of the file, such as a head for other classes, are ignored and named on the terminal.
    ``expected`` is a ResNet-18's state dict; its head ``fc`` need not be in the file.

    Raises
    ------
    OSError
        The file cannot be read.
    SettingsError
        The file holds no weights, none that fit, or several networks that do.
    """
    content = _from_safetensors(path) if path.suffix.lower() == ".safetensors" else _from_torch(path)
    states = list(_states(content))
    if not states:
        raise SettingsError(
            f"--weights {path} cannot be read: it holds no weights by their names; save a state dict:"
            " torch.save(model.state_dict(), FILE)"
        )
    needed = [key for key in expected if not key.startswith(HEAD)]
    missing = []
    for state in states:
        wrong = {prefix: _wrong(state, prefix, expected, needed) for prefix in _prefixes(state)}
        fitting = [prefix for prefix, keys in wrong.items() if not keys]
        if len(fitting) > 1:
            names = " and ".join(map(repr, sorted(fitting)))
            raise SettingsError(
                f"--weights {path} holds several networks that fit, behind {names}; save one of them alone"
            )
        if fitting:
            return _select(path, state, fitting[0], needed)
        missing.append(min(wrong.values(), key=len))
    raise SettingsError(
        f"--weights {path} does not fit a ResNet-18: {min(missing, key=len)[0]} is missing or misshapen"
    )


def _from_torch(path: Path) -> Any:
    """The contents of a file of torch, with placeholders for all objects that are no weights."""
    unknown: list[str] = []
    with suppress(ValueError, RuntimeError):  # an old file, or none of torch's: its objects are refused
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    for placeholder in (_DictPlaceholder, _Placeholder):
        kinds: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
            (_Placeholder if name.startswith("numpy") else placeholder, name) for name in unknown
        ]
        try:
            with torch.serialization.safe_globals(kinds):
                return torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception:  # noqa: BLE001, S112  pickle, zipfile and torch each raise kinds of their own
            continue
    raise SettingsError(f"--weights {path} cannot be read: it is no .pth file of weights, or holds more than weights")


def _from_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file  # optional
    except ImportError:
        raise SettingsError(f"--weights {path} needs the package safetensors: pip install safetensors") from None
    try:
        return load_file(path)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001  its own kind, and others of a file that is damaged
        raise SettingsError(f"--weights {path} cannot be read: {first_line(error)}") from None


def _states(content: Any) -> Iterator[dict[str, Tensor]]:
    """The state dicts in a file, the most likely first."""
    if not isinstance(content, Mapping):
        return
    for nested in (content, *(content[name] for name in NESTED if name in content)):
        if isinstance(nested, Mapping):
            state = {
                str(key).replace(COMPILED, ""): value for key, value in nested.items() if isinstance(value, Tensor)
            }
            if state:
                yield state


def _prefixes(state: Mapping[str, Tensor]) -> list[str]:
    """The possible prefixes of the names of a ResNet's weights, the shortest first."""
    found = {key.removesuffix(FIRST) for key in state if key.endswith(FIRST)}
    return sorted((prefix for prefix in found if not prefix or prefix.endswith(".")), key=len) or [""]


def _wrong(state: Mapping[str, Tensor], prefix: str, expected: Mapping[str, Tensor], needed: list[str]) -> list[str]:
    """The needed names that are missing with a prefix, or have another shape."""
    return [
        key
        for key in needed
        if (state[prefix + key].shape != expected[key].shape if prefix + key in state else not key.endswith(COUNTER))
    ]


def _select(path: Path, state: Mapping[str, Tensor], prefix: str, needed: list[str]) -> dict[str, Tensor]:
    taken = {key: state[prefix + key] for key in needed if prefix + key in state}
    left = [key for key in state if key.removeprefix(prefix) not in taken]
    if left:
        shown = [f"{key} ({' x '.join(map(str, state[key].shape)) or 'a number'})" for key in left[:MAX_NAMED]]
        more = f" and {len(left) - MAX_NAMED} more" if len(left) > MAX_NAMED else ""
        _say_once(f"not used of {path.name}: {', '.join(shown)}{more}; a ResNet gets a new head")
    return taken


@cache
def _say_once(text: str) -> None:
    echo(text)
