"""What a frozen backbone sees, computed once per image and view, so that only the head is run afterwards."""

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
from toolkit.training.hyperparameters import Hyperparameters

CHUNK = 128  # images at a time
MAX_BYTES = 2**30  # bytes of views that are kept for other trainings


@dataclass(frozen=True, eq=False)
class Features:
    """The frozen features of some images of a data set.

    Parameters
    ----------
    views
        float32 (V, N, F) on the device: the images as they are, then V - 1 augmented versions.
    rows
        int64 (M,), for each image of the data set its row in ``views``; -1 when it has none.
    """

    views: Tensor
    rows: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        backbone: nn.Module,
        part: Subset,
        recipe: Hyperparameters,
        seed: int,
        device: Device,
        known: dict[Hashable, Tensor] | None = None,
    ) -> "Features":
        """Run the backbone over a part, once a view; several processes share the images.

        The strength of augmentation is rounded to tenths, so that trainings whose strengths are close share
        their views.

        Parameters
        ----------
        known
            Views of the same part and backbone, by seed, precision, strength and number: they are not
            computed again, and new ones are added.
        """
        backbone.to(device.name, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        strength = round(recipe.augmentation, 1)
        batches = ImageBatches(part, device, strength)
        known = {} if known is None else known
        names = [
            (seed, device.dtype, strength if view else 0.0, view)
            for view in range(recipe.feature_views if strength else 1)
        ]
        missing = [name for name in names if name not in known]
        found: dict[Hashable, Tensor] = {name: known[name] for name in names if name in known}
        with progress("features", len(missing) * len(part), "images") as shown:
            for name in missing:
                found[name] = _view(backbone, batches, name, recipe.image_size, device, shown)
        known.update(found)
        while sum(view.nbytes for view in known.values()) > MAX_BYTES:
            del known[next(iter(known))]
        views = [found[name] for name in names]
        rows = np.full(len(part.labels), -1, np.int64)
        rows[part.indices] = np.arange(len(part))
        return cls(torch.stack(views), rows)


def _view(
    backbone: nn.Module,
    batches: ImageBatches,
    name: tuple[int, Any, float, int],
    size: int,
    device: Device,
    shown: "tqdm[Any]",
) -> Tensor:
    """float32 (N, F), of all images in one view."""
    seed, *_, view = name
    positions = device.world.share(np.arange(len(batches.labels)))
    noise = device.generator()
    noise.manual_seed(int(np.random.SeedSequence([seed, view, device.world.rank]).generate_state(1, np.uint64)[0] >> 1))
    pieces = []
    with torch.inference_mode(), device.autocast():
        for start in range(0, max(1, len(positions)), CHUNK):
            chunk = positions[start : start + CHUNK]
            inputs = batches.train(chunk, size, noise) if view else batches.eval_batch(chunk)
            pieces.append(backbone(inputs).float())
            shown.update(len(chunk) * device.world.size)
    return device.world.gather_rows(torch.cat(pieces), len(batches.labels))


class FeatureBatches:
    """Batches of frozen features, float32 (B, F), for the head alone.

    Parameters
    ----------
    features
        Of a data set.
    part
        The images to take, all among those that have features.
    """

    def __init__(self, features: Features, part: Subset) -> None:
        self.labels, self.classes = part.own_labels, part.classes
        self._views, self._rows = features.views, features.rows[part.indices]

    def train(self, positions: NDArray[np.int64], size: int, noise: torch.Generator) -> Tensor:  # noqa: ARG002
        """Each image in a view drawn at random."""
        view = torch.randint(len(self._views), (len(positions),), generator=noise, device=noise.device)
        return self._views[view, self._at(positions)]

    def eval_batch(self, positions: NDArray[np.int64]) -> Tensor:
        """The images as they are."""
        return self._views[0, self._at(positions)]

    def _at(self, positions: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self._rows[positions]).to(self._views.device)
