"""Weights of a ResNet-18 in a file, as torch and other tools save them.

A state dict alone, or beside other things under one of several names; its keys as torchvision names
them, or behind what wrapped the network; a checkpoint of Lightning; a file of safetensors. Nothing in a
file is ever unpickled but tensors, numbers, texts and their containers: whatever else it holds is read as
an empty stand-in.
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
COMPILED = "_orig_mod."  # what torch.compile puts anywhere into a key
FIRST = "conv1.weight"  # of a ResNet: what stands before it in a file stands before all
HEAD = "fc."
COUNTER = ".num_batches_tracked"  # which torchvision's own files lack
MOST_NAMED = 4  # entries, in a message


class _Blank:
    """What is read in the place of an object that is not to be loaded; it does nothing and keeps nothing."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


class _Entries:
    """The same in the place of an object that may be a kind of dictionary, and to which torch adds entries."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return OrderedDict()  # torch adds to no other kind


def resnet18_weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a ResNet-18 in a file, under torchvision's names.

    What else the file holds, such as a head for other classes, is left out and said.

    Parameters
    ----------
    path
        Of a ``.pth``, ``.pt``, ``.ckpt`` or ``.safetensors`` file.
    expected
        A ResNet-18's state dict; its head ``fc`` is not asked for.

    Raises
    ------
    OSError
        The file cannot be read.
    SettingsError
        It holds no weights, or none that fit, or several networks that do.
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
            return _taken(path, state, fitting[0], needed)
        missing.append(min(wrong.values(), key=len))
    raise SettingsError(
        f"--weights {path} does not fit a ResNet-18: {min(missing, key=len)[0]} is missing or misshapen"
    )


def _from_torch(path: Path) -> Any:
    """A file of torch, in which stand-ins take the places of all objects that are no weights."""
    unknown: list[str] = []
    with suppress(ValueError, RuntimeError):  # an old file, or none of torch's: its objects are refused
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    for stand_in in (_Entries, _Blank):
        kinds: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
            (_Blank if name.startswith("numpy") else stand_in, name) for name in unknown
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
        raise SettingsError(f"--weights {path} needs a package more: pip install safetensors") from None
    try:
        return load_file(path)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001  its own kind, and others of a file that is damaged
        raise SettingsError(f"--weights {path} cannot be read: {first_line(error)}") from None


def _states(content: Any) -> Iterator[dict[str, Tensor]]:
    """The state dicts in a file, the likeliest first."""
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
    """What may stand before the names of a ResNet's weights, the shortest first."""
    found = {key.removesuffix(FIRST) for key in state if key.endswith(FIRST)}
    return sorted((prefix for prefix in found if not prefix or prefix.endswith(".")), key=len) or [""]


def _wrong(state: Mapping[str, Tensor], prefix: str, expected: Mapping[str, Tensor], needed: list[str]) -> list[str]:
    """The names that are missing behind a prefix, or have another shape."""
    return [
        key
        for key in needed
        if (state[prefix + key].shape != expected[key].shape if prefix + key in state else not key.endswith(COUNTER))
    ]


def _taken(path: Path, state: Mapping[str, Tensor], prefix: str, needed: list[str]) -> dict[str, Tensor]:
    taken = {key: state[prefix + key] for key in needed if prefix + key in state}
    left = [key for key in state if key.removeprefix(prefix) not in taken]
    if left:
        shown = [f"{key} ({' x '.join(map(str, state[key].shape)) or 'a number'})" for key in left[:MOST_NAMED]]
        more = f" and {len(left) - MOST_NAMED} more" if len(left) > MOST_NAMED else ""
        _say_once(f"not used of {path.name}: {', '.join(shown)}{more}; a ResNet gets a new head")
    return taken


@cache
def _say_once(text: str) -> None:
    echo(text)
