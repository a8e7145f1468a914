"""Random changes to a batch of training images, drawn for each image, applied to all at once."""

import math

import torch
import torch.nn.functional as F  # noqa: N812  torch's own convention
from torch import Tensor

DEGREES, ZOOM, SHIFT = 40.0, 0.5, 0.25  # the largest rotation, zoom and shift at strength 1


def augment(images: Tensor, strength: float, *, flip: bool, generator: torch.Generator) -> Tensor:
    """Flip, rotate, zoom, shift, recolour and erase.

    Parameters
    ----------
    images
        float32 (N, 3, H, W) in [0, 1], in any memory format.
    strength
        From 0, which changes nothing, flips included, to 1. Each change is drawn uniformly from a
        range in proportion to the strength:

        ====================================================  ==========  ==========  ==========
        change                                                at 0.1      at 0.3      at 0.5
        ====================================================  ==========  ==========  ==========
        rotation, either way, by up to                        4°          12°         20°
        side of the visible part, by a factor of              0.95..1.05  0.85..1.15  0.75..1.25
        shift in x and in y, either way, by up to             2.5 %       7.5 %       12.5 %
        brightness, contrast and saturation, each by          0.9..1.1    0.7..1.3    0.5..1.5
        images in which a square is covered                   10 %        30 %        50 %
        ====================================================  ==========  ==========  ==========

        A shift is a share of the image's side. The border is filled with the image's reflection. The
        square has the image's mean colour and, at every strength, a tenth to a third of its side.
    flip
        Whether to flip half of the images left to right.
    generator
        The source of randomness, on the images' device.

    Returns
    -------
    float32 (N, 3, H, W) in [0, 1].

    References
    ----------
    Zhong, Zheng, Kang, Li, Yang: Random Erasing Data Augmentation, AAAI 2020.

    Examples
    --------
    >>> batch = torch.rand(4, 3, 8, 8)
    >>> augment(batch, 0.0, flip=False, generator=torch.Generator()) is batch
    True
    >>> changed = augment(batch, 0.3, flip=True, generator=torch.Generator().manual_seed(0))
    >>> changed.shape == batch.shape, bool(0 <= changed.min() and changed.max() <= 1)
    (True, True)
    """
    if strength <= 0:
        return images
    moved = _move(images, strength, flip, generator)
    return _erase(_recolour(moved, strength, generator), strength, generator)


def _uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device) * (high - low) + low  # (N,)


def _centres(count: int, device: torch.device) -> Tensor:
    """The centres of a row's pixels, in 0..1."""
    return (torch.arange(count, device=device) + 0.5) / count


def _move(images: Tensor, strength: float, flip: bool, generator: torch.Generator) -> Tensor:
    """Flip, rotate, zoom and shift each image in one affine map."""
    count, _, height, width = images.shape
    angle = _uniform(-1, 1, count, generator) * math.radians(DEGREES * strength)
    zoom = 1 + _uniform(-1, 1, count, generator) * ZOOM * strength
    shift = (torch.rand(count, 2, generator=generator, device=generator.device) * 2 - 1) * 2 * SHIFT * strength
    direction = torch.ones(count, device=generator.device)
    if flip:
        direction = torch.where(_uniform(0, 1, count, generator) < 0.5, -1.0, 1.0)
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    along = torch.stack([cosine * direction, sine * direction], dim=1).view(
        count, 2, 1, 1
    )  # where a step to the right leads
    down = torch.stack([-sine, cosine], dim=1).view(count, 2, 1, 1)
    # A sum of rows and columns: on a CPU, affine_grid takes ten times as long, as long as the sampling itself.
    x = _centres(width, images.device) * 2 - 1  # (W,) in -1..1
    y = _centres(height, images.device).view(height, 1) * 2 - 1
    grid = x * along + (y * down + shift.view(count, 2, 1, 1))  # (N, 2, H, W)
    return F.grid_sample(
        images, grid.permute(0, 2, 3, 1), mode="bilinear", padding_mode="reflection", align_corners=False
    )


def _recolour(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and saturation, as mixtures with black, the mean grey and the grey image."""
    count = len(images)
    brightness, contrast, saturation = (
        _uniform(1 - strength, 1 + strength, count, generator).view(count, 1, 1, 1) for _ in range(3)
    )
    grey = images.mean(dim=1, keepdim=True)  # (N, 1, H, W)
    mean = grey.mean(dim=(2, 3), keepdim=True)  # (N, 1, 1, 1)
    # brightness * (mean + contrast * (grey + saturation * (images - grey) - mean)), in one pass over the colours
    added = brightness * (1 - contrast) * mean + brightness * contrast * (1 - saturation) * grey
    return torch.addcmul(added, brightness * contrast * saturation, images).clamp_(0, 1)


def _erase(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Cover a square of some images with their mean colour."""
    count, _, height, width = images.shape
    side = _uniform(0.1, 1 / 3, count, generator).view(count, 1)
    top, left = (_uniform(0, 1, count, generator).view(count, 1) * (1 - side) for _ in range(2))
    chosen = _uniform(0, 1, count, generator).view(count, 1) < strength
    y, x = _centres(height, images.device), _centres(width, images.device)
    rows = ((y >= top) & (y < top + side) & chosen).float()  # (N, H)
    columns = ((x >= left) & (x < left + side)).float()  # (N, W)
    square = rows[:, None, :, None] * columns[:, None, None, :]  # (N, 1, H, W), 1 inside
    return images.lerp(images.mean(dim=(2, 3), keepdim=True), square)
