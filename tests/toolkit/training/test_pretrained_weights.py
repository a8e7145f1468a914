"""Weights as other tools save them, and what is never loaded with them."""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from toolkit.errors import SettingsError
from toolkit.training import pretrained_weights
from toolkit.training.networks import build_network
from toolkit.training.pretrained_weights import resnet18_weights

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state():
    """Of a ResNet-18 with a head for 1,000 classes."""
    return resnet18(weights=None).state_dict()


@pytest.fixture(autouse=True)
def nothing_was_said():
    pretrained_weights._say_once.cache_clear()


def behind(prefix, state):
    return {prefix + key: value for key, value in state.items()}


class Hyperparameters:
    """An object of another tool's own."""

    def __init__(self):
        self.width, self.parent = 3, self


class Attributes(dict[str, Any]):
    """A dictionary of another tool's own."""


class Trap:
    """Makes a folder as soon as it is unpickled."""

    def __reduce__(self):
        return shutil.copytree, ("from", "sprung")


SAVED = {
    "state dict": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": torch.tensor(0.1)}},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.5},
    "model": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1, out=Path("here"))},
    "module": lambda state: behind("module.", state),
    "backbone": lambda state: {**behind("backbone.", state), "head.weight": torch.zeros(7, 512)},
    "compiled": lambda state: behind("_orig_mod.", state),
    "compiled inside": lambda state: {key.replace("layer1.", "layer1._orig_mod."): state[key] for key in state},
    "all at once": lambda state: {"model": behind("module.model.backbone._orig_mod.", state)},
    "lightning": lambda state: {
        "state_dict": {**behind("model.", state), "loss.weight": torch.ones(3)},
        "pytorch-lightning_version": "2.5.0",
        "hyper_parameters": Attributes(width=3, path=Path("here")),
        "callbacks": {
            "ModelCheckpoint": {"best": Hyperparameters(), "score": np.float32(0.5), "dirpath": Path("there")}
        },
        "loops": {"fit_loop": {"state_dict": {}}},
    },
    "without counters": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    "in half precision": lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
}


@pytest.mark.parametrize("saved", SAVED)
def test_weights_as_other_tools_save_them_are_found(saved, state):
    torch.save(SAVED[saved](state), "w.ckpt")
    found = resnet18_weights(Path("w.ckpt"), state)
    needed = {key for key in state if not key.startswith("fc.")}
    if saved == "without counters":
        needed = {key for key in needed if not key.endswith("num_batches_tracked")}
    assert found.keys() == needed
    assert all(torch.allclose(found[key].float(), state[key].float(), atol=1e-3) for key in needed)
    network = build_network("resnet18", 3, 0.0, found)
    assert torch.allclose(network.state_dict()["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"], atol=1e-3)


def test_a_file_of_safetensors_is_read(state, monkeypatch):
    save_file({key: value.contiguous() for key, value in behind("model.", state).items()}, "w.safetensors")
    found = resnet18_weights(Path("w.safetensors"), state)
    assert torch.equal(found["conv1.weight"], state["conv1.weight"])
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(
        SettingsError, match=r"^--weights w.safetensors needs the package safetensors: pip install safetensors$"
    ):
        resnet18_weights(Path("w.safetensors"), state)


def test_what_is_left_out_is_said_once(state, capsys):
    other = {**state, "fc.weight": torch.zeros(21, 512), "fc.bias": torch.zeros(21)}
    torch.save({"state_dict": behind("module.", other)}, "w.pth")
    for _ in range(2):
        resnet18_weights(Path("w.pth"), state)
    assert capsys.readouterr().out == (
        "not used of w.pth: module.fc.weight (21 x 512), module.fc.bias (21); a ResNet gets a new head\n"
    )


def test_objects_beside_the_weights_are_never_loaded(state, tmp_path):
    (tmp_path / "from").mkdir()
    shutil.copytree("from", "sprung")
    shutil.rmtree("sprung")  # the trap would work
    torch.save({"state_dict": state, "callbacks": Trap()}, "w.ckpt")
    assert resnet18_weights(Path("w.ckpt"), state).keys() < state.keys()
    torch.save({"state_dict": {**state, "conv1.weight": Trap()}}, "trap.ckpt")
    with pytest.raises(SettingsError, match=r"does not fit a ResNet-18: conv1.weight is missing or misshapen$"):
        resnet18_weights(Path("trap.ckpt"), state)
    assert not Path("sprung").exists()


REFUSED = {
    "holds several networks that fit, behind 'student.' and 'teacher.'; save one of them alone": lambda state: (
        behind("student.", state) | behind("teacher.", state)
    ),
    "does not fit a ResNet-18: bn1.weight is missing or misshapen": lambda state: {
        "model": behind("net.", state) | {"net.bn1.weight": torch.zeros(3)}
    },
    "does not fit a ResNet-18: layer1.0.conv1.weight is missing or misshapen": lambda state: (
        {key: value for key, value in state.items() if key != "layer1.0.conv1.weight"}
    ),
    "cannot be read: it holds no weights by their names; save a state dict: ": lambda _: {"state_dict": {"a": 1}},
    "it holds no weights by their names; save a state dict: torch.save(model": lambda _: Hyperparameters(),
    "torch.save(model.state_dict(), FILE)": lambda _: {"model": resnet18(weights=None)},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused_with_what_to_do(message, state):
    saved = REFUSED[message]
    torch.save(saved(state), "w.pth")
    with pytest.raises(SettingsError) as caught:
        resnet18_weights(Path("w.pth"), state)
    assert str(caught.value).startswith("--weights w.pth ")
    assert message in str(caught.value)
