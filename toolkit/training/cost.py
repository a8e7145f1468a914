"""The cost of a training in multiply-adds, which does not depend on the machine."""

from functools import cache
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from toolkit.training.hyperparameters import Hyperparameters
from toolkit.training.networks import build_network

BACKWARD = 2  # gradients of inputs and of weights, each as dear as the forward pass
FROZEN = "resnet18_backbone"  # runs its backbone once for each image and view, for all folds


class TrainingCost(NamedTuple):
    """The cost of cross-validating one set of hyperparameters, in multiply-adds.

    Examples
    --------
    >>> hparams = Hyperparameters(model_type="resnet18", image_size=224, epochs=10)
    >>> cost = TrainingCost.of(hparams, images=1000, folds=5)
    >>> f"{cost.full:.2g}"  # 5 folds of 10 epochs: 800 images through training, 200 through validation
    '2.4e+14'
    """

    per_image: float  # through training, with the share of validation
    full: float  # of all folds and epochs

    @classmethod
    def of(cls, hparams: Hyperparameters, images: int, folds: int) -> "TrainingCost":
        """The cost of cross-validation over so many development images."""
        forward = forward_multiply_adds(hparams.model_type, hparams.image_size)
        passes = hparams.epochs * images * (folds - 1)  # through training, all folds together
        if hparams.model_type == FROZEN:
            full = float(forward * images * hparams.feature_views)
        else:
            full = passes * forward * (1 + BACKWARD + 1 / (folds - 1))
        return cls(full / passes, full)

    def of_images(self, images: int) -> float:
        """The cost of so many images through training."""
        return self.per_image * images


@cache
def forward_multiply_adds(model_type: str, image_size: int) -> int:
    """Multiply-adds of one image's forward pass."""
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        build_network(model_type, 2, 0.0, None).eval()(torch.zeros(1, 3, image_size, image_size))
    return int(counter.get_total_flops()) // 2
