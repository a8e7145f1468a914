"""The networks simple_cnn, resnet18 and resnet18_backbone, and their starting weights."""

import hashlib
import socket
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  torch's own convention
from torch import Tensor, nn

from toolkit.cli.terminal import echo
from toolkit.errors import SettingsError, first_line, suggest
from toolkit.training.pretrained_weights import resnet18_weights

NETWORKS = ("simple_cnn", "resnet18", "resnet18_backbone")
AUTO, IMAGENET, NONE = "auto", "imagenet", "none"
DOWNLOAD_TIMEOUT_S = 15
RESNET18_FEATURES = 512  # inputs of its last layer


class SimpleCNN(nn.Module):
    """Four convolution blocks, each of which halves the image, then dropout and a linear layer.

    Examples
    --------
    >>> SimpleCNN(classes=10)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 10])
    """

    def __init__(self, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 256)
        self.features = nn.Sequential(*[_block(a, b) for a, b in pairwise(widths)])
        self.head = _head(widths[-1], classes, dropout)

    def forward(self, images: Tensor) -> Tensor:  # (N, 3, H, W)
        features = self.features(images).mean(dim=(2, 3))  # (N, 256)
        logits: Tensor = self.head(features)  # (N, K)
        return logits


class ReLUMaxPool(nn.Module):
    """ReLU and max-pooling, whose outputs and gradients do not depend on which of them comes first.

    In training the pooling does, so that ReLU has a fourth of the values; in evaluation mode, and so in exported
    programs, ReLU does, since engines fuse it with the convolution before it.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, images: Tensor) -> Tensor:  # (N, C, H, W)
        pooled: Tensor = F.relu_(self.pool(images)) if self.training else self.pool(F.relu_(images))
        return pooled  # about (N, C, H / 2, W / 2)


class FrozenBackbone(nn.Module):
    """A network of which only the head is trained; the backbone's weights and statistics do not change."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.head = head

    def forward(self, images: Tensor) -> Tensor:  # (N, 3, H, W)
        with torch.no_grad():
            features = self.backbone(images)  # (N, 512)
        logits: Tensor = self.head(features)  # (N, K)
        return logits

    def train(self, mode: bool = True) -> "FrozenBackbone":
        """Set the mode of the head; the backbone stays in evaluation mode, so that its statistics do not change."""
        super().train(mode)
        self.backbone.eval()
        return self


def build_network(name: str, classes: int, dropout: float, state: dict[str, Tensor] | None) -> nn.Module:
    """Build one of ``NETWORKS``; a SettingsError if there is none of that name.

    ``state`` has pretrained weights of a ResNet-18 (``load_weights``), None for random ones. Their layer
    ``fc`` is ignored: the head is always new.
    """
    if name == "simple_cnn":
        return SimpleCNN(classes, dropout)
    if name not in NETWORKS:
        raise SettingsError(f"there is no network {name!r}; there are: {suggest(NETWORKS, name)}")
    network = _resnet18()
    if state is not None:
        network.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")}, strict=False)
    if name == "resnet18_backbone":
        network.fc = nn.Identity()
        return FrozenBackbone(network, _head(RESNET18_FEATURES, classes, dropout))
    network.fc = _head(RESNET18_FEATURES, classes, dropout)
    return network


def starting_weights(choice: str, model_types: Collection[str]) -> tuple[dict[str, Tensor] | None, str]:
    """The weights that networks of these types start from, and their origin in words; a notice if they are random."""
    if not set(model_types) - {"simple_cnn"}:
        return None, "random"
    state, note = load_weights(choice)
    if state is None and choice == "auto":
        echo(
            "ImageNet weights cannot be downloaded, so a ResNet starts from random ones; --weights PATH gives it others"
        )
    if state is None and "resnet18_backbone" in model_types:
        echo("warning: resnet18_backbone with random weights trains a head on random features; expect low accuracy")
    return state, note


def load_weights(choice: str) -> tuple[dict[str, Tensor] | None, str]:
    """The pretrained weights of a ResNet-18, None for random ones, and their origin in words.

    Parameters
    ----------
    choice
        ``imagenet``: torchvision's, from its cache or by download; ``none``: random; ``auto``:
        ImageNet's if available, random otherwise; else the path of a file with a ResNet-18's
        weights (``pretrained_weights.resnet18_weights``), which is read without unpickling any object.

    Raises
    ------
    SettingsError
        The weights are not available; the message says what to do.
    """
    if choice == NONE:
        return None, "random"
    if choice not in (AUTO, IMAGENET):
        return _from_file(Path(choice).expanduser())
    try:
        return _download(), "imagenet"
    except Exception as error:  # noqa: BLE001  urllib, ssl, hashing and the file system each raise kinds of their own
        if choice == AUTO:
            return None, "random"
        from torchvision.models import ResNet18_Weights

        raise SettingsError(
            f"ImageNet weights cannot be downloaded ({first_line(error)}); fetch {ResNet18_Weights.DEFAULT.url} on a"
            " machine with internet access and give the file with --weights PATH, or use --weights none"
        ) from None


def _resnet18() -> nn.Module:
    """torchvision's ResNet-18 with random weights; the import takes seconds, which simple_cnn does without."""
    from torchvision.models import resnet18

    network = resnet18(weights=None)
    network.relu, network.maxpool = nn.Identity(), ReLUMaxPool(network.maxpool)  # of the stem; no weights are in them
    built: nn.Module = network
    return built


def _download() -> dict[str, Tensor]:
    from torchvision.models import ResNet18_Weights

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)  # torch.hub sets none
    try:
        return dict(ResNet18_Weights.DEFAULT.get_state_dict(progress=False, check_hash=True, weights_only=True))
    finally:
        socket.setdefaulttimeout(before)


def _from_file(path: Path) -> tuple[dict[str, Tensor], str]:
    """The weights in a file, and its name and digest."""
    if not path.is_file():
        raise SettingsError(
            f"--weights must be auto, imagenet, none or a file of weights, got {path}, which does not exist"
        )
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
        state = resnet18_weights(path, _resnet18().state_dict())
    except OSError as error:
        raise SettingsError(f"--weights {path} cannot be read: {first_line(error)}") from None
    return state, f"file {path.name} ({digest})"


def _block(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        ReLUMaxPool(nn.MaxPool2d(2, ceil_mode=True)),
    )


def _head(features: int, classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))
