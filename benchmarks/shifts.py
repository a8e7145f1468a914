"""A network that the project trained, and what it answers to images it has never seen, as they are and shifted.

The shifts are those of the study below: noise, images turned, moved and zoomed, a class that goes
missing, and both together, each on a tenth, a half and all of the images. Lower contrast and blur
are added, because they cost a network much confidence and little accuracy.

References
----------
Rabanser, S., Guennemann, S. and Lipton, Z. C. (2019). Failing loudly: an empirical study of methods
for detecting dataset shift. Advances in Neural Information Processing Systems 32.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  torch's own convention
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from toolkit.bundle.baseline import Baseline
from toolkit.bundle.files import PROGRAM, digest_of
from toolkit.bundle.program import Bundle, load_bundle
from toolkit.monitoring.base.predictions import Predictions
from toolkit.training.data.builtin import load_builtin
from toolkit.training.data.idx import IMAGES_MAGIC, LABELS_MAGIC, holds_idx, read_idx

ROOT = Path(__file__).resolve().parent.parent
FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it

TRAINING, TESTING = 8_000, 1_000  # most images that the network is trained on, and measured on by its script
EPOCHS, FEW_EPOCHS = 3, 15  # for so many images, and for few
FEW = 5_000
BATCH_SIZE = 100  # images answered together: more of them leave the processor's caches

SHARES = (0.1, 0.5, 1.0)  # of the images that are shifted
NOISE = {"small": 1, "medium": 10, "large": 100}  # standard deviation, of 255
MOVED = {"small": (10, 0.05, 0.1), "medium": (40, 0.2, 0.2), "large": (90, 0.4, 0.4)}  # degrees, share of side, zoom
CONTRAST = {"small": 0.8, "medium": 0.5, "large": 0.25}  # what is left of it
BLUR = {"small": 0.5, "medium": 1.0, "large": 2.0}  # px, standard deviation
MISSING = 0  # the class that is knocked out

Image = Callable[[Tensor], Tensor]  # float32 (N, 1, H, W) in 0..255, the same
Answers = NDArray[np.float16]  # (N, K)


class Shift(NamedTuple):
    """A shift of images: ``image`` names the change of each, ``missing`` is the share of a class that is removed."""

    kind: str
    strength: str
    share: float
    image: str | None = None
    missing: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind}, {self.strength}, {self.share:.0%}"


def _shifts() -> Iterator[Shift]:
    for share in SHARES:
        for strength in NOISE:
            yield Shift("noise", strength, share, f"noise {strength}")
            yield Shift("moved", strength, share, f"moved {strength}")
        yield Shift("class missing", "", share, None, share)
        yield Shift("noise and moved", "medium", share, "noise and moved")
        yield Shift("class missing and moved", "medium", share, "moved medium", 1.0)


FAILING_LOUDLY = tuple(_shifts())  # 27 of them
SOFTER = tuple(
    Shift(kind, strength, share, f"{kind} {strength}")
    for share in SHARES
    for kind, strengths in (("contrast", CONTRAST), ("blur", BLUR))
    for strength in strengths
)


@dataclass(frozen=True)
class UnseenImages:
    """Answers to images that the network was not trained on."""

    name: str  # of the data set, and how good the network is
    classes: tuple[str, ...]  # K
    labels: NDArray[np.int64]  # (P,), the true classes
    answers: dict[str, Answers]  # (P, K) by the change of the images; "clean" without one

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def reference_size(self) -> int:
        """Size of the reference: at most that of a baseline, or half of the images."""
        return min(10_000, len(self) // 2)

    def split(self, generator: np.random.Generator) -> tuple[Baseline, NDArray[np.int64]]:
        """Some images as the reference, and the places of the others."""
        order = generator.permutation(len(self))
        held, others = order[: self.reference_size], order[self.reference_size :]
        return Baseline(self.classes, self.answers["clean"][held], self.labels[held]), others

    def window(
        self, places: NDArray[np.int64], n: int, generator: np.random.Generator, shift: Shift | None = None
    ) -> Predictions:
        """``n`` of the images at some places, each of them once, shifted."""
        if shift is not None and shift.missing:
            stays = (self.labels[places] != MISSING) | (generator.random(len(places)) >= shift.missing)
            places = places[stays]
        chosen = generator.choice(places, n, replace=False)
        answers = self.answers["clean"][chosen]
        if shift is not None and shift.image is not None:
            changed = generator.random(n) < shift.share
            answers = np.where(changed[:, None], self.answers[shift.image][chosen], answers)
        return as_window(self.classes, answers, self.labels[chosen])


def as_window(classes: tuple[str, ...], answers: Answers, labels: NDArray[np.int64]) -> Predictions:
    """Answers in order as the monitor's columns."""
    confidence = answers.max(axis=1).astype(np.float32)
    order = np.arange(len(answers), dtype=np.int64)
    predicted, times = answers.argmax(axis=1), order.astype(np.float64)
    return Predictions(classes, times, predicted, confidence, labels, probabilities=answers, sequence=order)


def train_and_answer(scratch: Path, most: int, data: Path | None = None) -> UnseenImages:
    """Train with the project's script in an empty folder, and let its bundle answer to ``most`` unseen images at most.

    ``data`` is a folder of IDX files; when None, Debian's Fashion-MNIST, else scikit-learn's digits.
    """
    folder = data or FASHION
    images = read_idx(folder, folder.name) if folder.is_dir() and holds_idx(folder) else load_builtin("digits", ROOT)
    order = np.random.default_rng(0).permutation(len(images.labels))
    pixels, labels = images.pixels[order], np.asarray(images.labels[order], np.int64)
    training = min(TRAINING, len(order) // 2)
    testing = training + min(TESTING, len(order) // 10)
    write_idx(scratch / "data", "train", pixels[:training], labels[:training])
    write_idx(scratch / "data", "t10k", pixels[training:testing], labels[training:testing])
    side = max(32, pixels.shape[1])
    bundle = trained(scratch, side, EPOCHS if training > FEW else FEW_EPOCHS)
    rest = slice(testing, testing + most)
    changes = {"clean": lambda images: images, **_images()}
    answers = {name: answered(bundle, pixels[rest], change, side) for name, change in changes.items()}
    right = float((answers["clean"].argmax(axis=1) == labels[rest]).mean())
    name = f"{images.name}, {training:,} training images, {right:.1%} right of {len(labels[rest]):,} unseen ones"
    return UnseenImages(name, bundle.card.classes, labels[rest], answers)


def write_idx(folder: Path, part: str, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """Images (N, H, W) and labels in the format of MNIST."""
    folder.mkdir(exist_ok=True)
    files: list[tuple[str, int, NDArray[Any]]] = [
        ("images-idx3-ubyte", IMAGES_MAGIC, pixels), ("labels-idx1-ubyte", LABELS_MAGIC, labels)
    ]  # fmt: skip
    for name, magic, array in files:
        head = np.array([magic, *array.shape], ">i4").tobytes()
        (folder / f"{part}-{name}").write_bytes(head + array.astype(np.uint8).tobytes())


def trained(scratch: Path, side: int, epochs: int) -> Bundle:
    """Bundle that train_cnn.py trains on the images in ``data``."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{scratch}/mlflow.db", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, ROOT / "train_cnn.py", "--data", scratch / "data", "--cache-dir", scratch / "cache"]
    flags = {"--image-size": side, "--epochs": epochs, "--batch-size": 64, "--checkpoint-dir": scratch / "checkpoints"}
    command += [part for flag in flags.items() for part in flag]
    ended = subprocess.run(
        [*map(str, command), "--no-flip"], cwd=scratch, env=environment, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise RuntimeError(f"train_cnn.py has failed:\n{ended.stderr[-2000:]}")
    (program,) = scratch.rglob(PROGRAM)
    return load_bundle(program.parents[1], digest_of(program.parents[1]))


def answered(bundle: Bundle, pixels: NDArray[np.uint8], change: Image, side: int) -> Answers:
    """Probabilities for grey images (N, H, W), changed and then enlarged to the program's size."""
    torch.manual_seed(0)
    parts = []
    for start in range(0, len(pixels), BATCH_SIZE):
        grey = torch.from_numpy(pixels[start : start + BATCH_SIZE].astype(np.float32))[:, None]
        large = F.interpolate(change(grey).round().clamp(0, 255), (side, side), mode="bilinear")
        rgb = large.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
        parts.append(bundle.predict(np.ascontiguousarray(rgb.numpy())).astype(np.float16))
    return np.concatenate(parts)


def _images() -> dict[str, Image]:
    degrees = MOVED["medium"][0]
    return {
        **{f"noise {name}": partial(_noisy, deviation) for name, deviation in NOISE.items()},
        **{f"moved {name}": partial(_moved, most) for name, most in MOVED.items()},
        "noise and moved": lambda images: _noisy(NOISE["medium"], _moved(MOVED["medium"], images)),
        "rotated": partial(_moved, (degrees, 0, 0)),
        **{f"contrast {name}": partial(_fainter, left) for name, left in CONTRAST.items()},
        **{f"blur {name}": partial(_blurred, width) for name, width in BLUR.items()},
    }


def _noisy(deviation: float, images: Tensor) -> Tensor:
    return images + deviation * torch.randn_like(images)


def _fainter(left: float, images: Tensor) -> Tensor:
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + left * (images - mean)


def _blurred(width: float, images: Tensor) -> Tensor:
    blurred: Tensor = gaussian_blur(images, [9, 9], [width, width])
    return blurred


def _moved(most: tuple[float, float, float], images: Tensor) -> Tensor:
    """Each turned, moved and zoomed at random by at most so many degrees, of its side and of its size."""
    degrees, shift, zoom = most
    angle, across, along, size = (torch.rand(4, len(images)) * 2 - 1).unbind()
    angle, size = angle * math.radians(degrees), 1 + size * zoom
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1) * size[:, None]
    turn = turn.view(-1, 2, 2)
    move = 2 * shift * torch.stack([across, along], dim=1)[:, :, None]  # the side of an image is 2
    grid = F.affine_grid(torch.cat([turn, move], dim=2), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
