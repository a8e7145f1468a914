"""The networks, what stays frozen in them, and the weights that they may start from."""

import copy
import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from support.servers import free_port
from toolkit.errors import SettingsError
from toolkit.training.data.dataset import Subset
from toolkit.training.device import Device
from toolkit.training.hyperparameters import Hyperparameters
from toolkit.training.loop import FitConfig, fit
from toolkit.training.networks import NETWORKS, ReLUMaxPool, build_network, load_weights


@pytest.fixture(scope="module")
def pretrained():
    """Weights of a ResNet-18, with running statistics that are not those of a new one."""
    state = resnet18(weights=None).state_dict()
    generator = torch.Generator().manual_seed(5)
    for name, value in state.items():
        if name.endswith("running_mean"):
            value.copy_(torch.randn(value.shape, generator=generator))
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return state


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No network, and an empty cache, in this folder."""
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    return cache


class Trap:
    """Makes a folder as soon as it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


# --- networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [16, 33])
def test_a_network_gives_a_logit_for_each_class(name, size):
    network = build_network(name, classes=7, dropout=0.5, state=None)
    images = torch.rand(4, 3, size, size)
    assert network(images).shape == (4, 7)
    network.eval()
    logits = network(images)
    assert torch.equal(logits, network(images))  # dropout rests
    assert torch.allclose(network(images[:1]), logits[:1], atol=1e-5)  # an image's answer is its own
    assert not torch.allclose(logits[0], logits[1])


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_acts_while_training(name):
    plain, dropped = (build_network(name, classes=3, dropout=share, state=None).train() for share in (0.0, 0.9))
    images = torch.rand(8, 3, 32, 32)
    assert torch.equal(plain(images), plain(images))
    assert not torch.equal(dropped(images), dropped(images))


class TextbookSimpleCNN(nn.Module):
    """The blocks of simple_cnn as they are usually written, with the same names of weights."""

    def __init__(self, classes):
        super().__init__()
        self.features = nn.Sequential(
            *[
                nn.Sequential(
                    nn.Conv2d(a, b, 3, padding=1, bias=False),
                    nn.BatchNorm2d(b),
                    nn.ReLU(),
                    nn.MaxPool2d(2, ceil_mode=True),
                )
                for a, b in ((3, 32), (32, 64), (64, 128), (128, 256))
            ]
        )
        self.head = nn.Sequential(nn.Dropout(0.0), nn.Linear(256, classes))

    def forward(self, images):
        return self.head(self.features(images).mean(dim=(2, 3)))


def textbook(name):
    """A simple_cnn or ResNet-18 of three classes that does not know ``ReLUMaxPool``."""
    if name == "simple_cnn":
        return TextbookSimpleCNN(3)
    network = resnet18(weights=None)
    network.fc = nn.Sequential(nn.Dropout(0.0), nn.Linear(512, 3))
    return network


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["simple_cnn", "resnet18"])
def test_outputs_gradients_and_statistics_are_those_of_the_textbook_network_bit_for_bit(name, dtype):
    plain, ours = textbook(name), build_network(name, 3, 0.0, None)
    ours.load_state_dict(plain.state_dict())  # strict: weights saved of either fit the other
    plain.load_state_dict(ours.state_dict())
    images, labels = torch.randn(6, 3, 50, 50, generator=torch.Generator().manual_seed(3)), torch.arange(6) % 3
    for network in (plain, ours):
        network.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        outputs = [network.train()(images) for network in (plain, ours)]
    for logits in outputs:
        nn.functional.cross_entropy(logits.float(), labels).backward()
    assert torch.equal(*outputs)
    for one, other in zip(plain.parameters(), ours.parameters(), strict=True):
        assert one.grad.abs().sum() > 0
        assert torch.equal(one.grad, other.grad)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, ours.state_dict()[key]), key
    assert torch.equal(plain.eval()(images), ours.eval()(images))


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(3, 2, padding=1)])
def test_pooling_before_relu_sends_each_gradient_to_the_same_value(pool):
    """Small whole numbers, so that windows have ties, zeros, and nothing above zero."""
    values = torch.randint(-3, 3, (4, 5, 9, 7), generator=torch.Generator().manual_seed(1)).float()
    results = []
    for layers in (nn.Sequential(nn.ReLU(), pool), ReLUMaxPool(pool).train()):
        inputs = values.clone().requires_grad_()
        outputs = layers(inputs)
        outputs.backward(torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2)))
        results.append((outputs, inputs.grad))
    assert (results[0][0] == 0).any()
    for plain, ours in zip(*results, strict=True):
        assert torch.equal(plain, ours)


def test_an_unknown_network_is_refused_with_those_there_are():
    with pytest.raises(SettingsError, match=r"^there is no network 'resnet8'; there are: resnet18, "):
        build_network("resnet8", 2, 0.0, None)


def train_a_little(network):
    generator = np.random.default_rng(0)
    part = Subset(generator.integers(0, 256, (8, 32, 32, 3)).astype(np.uint8), np.arange(8) % 2, np.arange(8))
    hparams = Hyperparameters(image_size=32, epochs=2, batch_size=4, learning_rate=0.01)
    fit(network, part, None, FitConfig(hparams, 0, Device("cpu", torch.float32)))


def test_a_frozen_backbone_does_not_change_and_its_head_does(pretrained):
    network = build_network("resnet18_backbone", 2, 0.2, pretrained)
    before = copy.deepcopy(network.state_dict())
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(value, pretrained[name])
    train_a_little(network)
    after = network.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"head.1.weight", "head.1.bias"}
    assert [name for name, weight in network.named_parameters() if weight.requires_grad] == [
        "head.1.weight",
        "head.1.bias",
    ]


def test_the_whole_resnet_is_trained_from_the_weights_given(pretrained):
    network = build_network("resnet18", 2, 0.2, pretrained)
    before = copy.deepcopy(network.state_dict())
    assert all(torch.equal(before[name], value) for name, value in pretrained.items() if not name.startswith("fc."))
    train_a_little(network)
    unchanged = [name for name, value in network.state_dict().items() if torch.equal(value, before[name])]
    assert unchanged == []


# --- weights ------------------------------------------------------------------------------------


def test_none_means_random():
    assert load_weights("none") == (None, "random")


def test_a_file_of_a_resnet_18_is_read(tmp_path, pretrained):
    torch.save(pretrained, tmp_path / "mine.pth")
    state, note = load_weights("mine.pth")
    assert note == f"file mine.pth ({hashlib.sha256(Path('mine.pth').read_bytes()).hexdigest()[:12]})"
    assert state is not None
    assert all(torch.equal(state[name], value) for name, value in pretrained.items() if not name.startswith("fc."))


def test_a_file_that_cannot_be_read_is_refused_and_never_run(tmp_path):
    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"conv1.weight": Trap()}))
    torch.save({"conv1.weight": Trap()}, tmp_path / "zip.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    (tmp_path / "noise.pth").write_bytes(os.urandom(100))
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"lr": 0.1}, tmp_path / "numbers.pth")
    (tmp_path / "noise.safetensors").write_bytes(os.urandom(100))
    names = ["trap.pth", "zip.pth", "module.pth", "noise.pth", "empty.pth", "tensor.pth", "list.pth", "numbers.pth"]
    for name in (*names, "noise.safetensors"):
        with pytest.raises(SettingsError, match=rf"^--weights {name} cannot be read: ") as caught:
            load_weights(name)
        assert "\n" not in str(caught.value)
        assert "weights_only" not in str(caught.value)  # torch advises to switch the protection off
    assert not (tmp_path / "sprung").exists()
    for name in ("missing.pth", "."):
        with pytest.raises(SettingsError, match=r"^--weights must be auto, imagenet, none or a file of weights, got "):
            load_weights(name)


def test_without_internet_imagenet_says_what_to_do_and_auto_goes_on(nowhere):
    with pytest.raises(SettingsError) as caught:
        load_weights("imagenet")
    assert str(caught.value).startswith("ImageNet weights cannot be downloaded (")
    assert f"fetch {ResNet18_Weights.DEFAULT.url} on a machine with internet access" in str(caught.value)
    assert load_weights("auto") == (None, "random")
    assert list(nowhere.iterdir()) == []


@pytest.mark.parametrize("choice", ["auto", "imagenet"])
def test_imagenets_weights_come_from_the_cache(choice, nowhere, pretrained):
    torch.save(pretrained, nowhere / Path(ResNet18_Weights.DEFAULT.url).name)
    state, note = load_weights(choice)
    assert note == "imagenet"
    assert state is not None
    assert torch.equal(state["conv1.weight"], pretrained["conv1.weight"])


def test_code_in_the_cache_is_not_run(nowhere, tmp_path):
    torch.save({"conv1.weight": Trap()}, nowhere / Path(ResNet18_Weights.DEFAULT.url).name)
    with pytest.raises(SettingsError, match=r"^ImageNet weights cannot be downloaded"):
        load_weights("imagenet")
    assert not (tmp_path / "sprung").exists()
