"""Features of a frozen backbone, computed once per image and view; training then runs the head alone."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from toolkit.cli.terminal import progress
from toolkit.training.batches import ImageBatches
from toolkit.training.data.dataset import Subset
from toolkit.training.device import Device
from toolkit.training.gpu import one_line_errors, to_device
from toolkit.training.hyperparameters import Hyperparameters

BATCH_SIZE = 128
MAX_CACHED_BYTES = 2**30  # of views that are kept for other trainings


@dataclass(frozen=True, eq=False)
class Features:
    """Frozen features of some images of a data set."""

    views: Tensor  # float32 (V, N, F) on the device: the images as they are, then V - 1 augmented versions
    rows: NDArray[np.int64]  # (M,), the row in ``views`` of each image of the data set; -1 where there is none

    @classmethod
    @one_line_errors()
    def of(
        cls,
        backbone: nn.Module,
        subset: Subset,
        hparams: Hyperparameters,
        seed: int,
        device: Device,
        cache: dict[Hashable, Tensor] | None = None,
    ) -> "Features":
        """Run the backbone over a subset, once per view; several processes share the images.

        The strength of augmentation is rounded to tenths, so that trainings with similar strengths share
        their views: ``cache`` has those of the same subset and backbone, and takes new ones.
        """
        backbone.to(device.name, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        strength = round(hparams.augmentation, 1)
        batches = ImageBatches(subset, device, strength)
        cache = {} if cache is None else cache
        names = [
            (seed, device.dtype, strength if view else 0.0, view)
            for view in range(hparams.feature_views if strength else 1)
        ]
        missing = [name for name in names if name not in cache]
        views: dict[Hashable, Tensor] = {name: cache[name] for name in names if name in cache}
        with progress("features", len(missing) * len(subset), "images") as bar:
            for name in missing:
                views[name] = _compute_view(backbone, batches, name, hparams.image_size, device, bar)
        cache.update(views)
        while sum(view.nbytes for view in cache.values()) > MAX_CACHED_BYTES:
            del cache[next(iter(cache))]
        rows = np.full(len(subset.all_labels), -1, np.int64)
        rows[subset.indices] = np.arange(len(subset))
        return cls(torch.stack([views[name] for name in names]), rows)


def _compute_view(
    backbone: nn.Module,
    batches: ImageBatches,
    name: tuple[int, Any, float, int],
    size: int,
    device: Device,
    bar: "tqdm[Any]",
) -> Tensor:
    """Features of all images in one view, float32 (N, F)."""
    seed, *_, view = name
    positions = device.world.share(np.arange(len(batches.labels)))
    noise = device.generator()
    noise.manual_seed(int(np.random.SeedSequence([seed, view, device.world.rank]).generate_state(1, np.uint64)[0] >> 1))
    pieces = []
    with torch.inference_mode(), device.autocast():
        for start in range(0, max(1, len(positions)), BATCH_SIZE):
            chunk = positions[start : start + BATCH_SIZE]
            inputs = batches.train(chunk, size, noise) if view else batches.eval_batch(chunk)
            pieces.append(backbone(inputs).float())
            bar.update(len(chunk) * device.world.size)
    return device.world.gather_rows(torch.cat(pieces), len(batches.labels))


class FeatureBatches:
    """Batches of frozen features, float32 (B, F), for the head alone; all images of the subset must have features."""

    def __init__(self, features: Features, subset: Subset) -> None:
        self.labels, self.classes = subset.labels, subset.classes
        self._views, self._rows = features.views, features.rows[subset.indices]

    def train(self, positions: NDArray[np.int64], size: int, noise: torch.Generator) -> Tensor:  # noqa: ARG002
        """Each image in a randomly drawn view, (B, F)."""
        view = torch.randint(len(self._views), (len(positions),), generator=noise, device=noise.device)
        return self._views[view, self._at(positions)]

    def eval_batch(self, positions: NDArray[np.int64]) -> Tensor:
        """The unchanged images, (B, F)."""
        return self._views[0, self._at(positions)]

    def _at(self, positions: NDArray[np.int64]) -> Tensor:
        return to_device(self._rows[positions], self._views.device.type)
