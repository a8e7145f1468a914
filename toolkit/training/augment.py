"""Random changes to a batch of training pictures, drawn for each picture apart, all at once."""

import math

import torch
import torch.nn.functional as F  # noqa: N812  torch's own convention
from torch import Tensor

DEGREES, ZOOM, SHIFT = 40.0, 0.5, 0.25  # the most that strength 1 would rotate, zoom and shift


def augment(pictures: Tensor, strength: float, *, mirrored: bool, generator: torch.Generator) -> Tensor:
    """Flip, rotate, zoom, shift, recolour and erase.

    Parameters
    ----------
    pictures
        float32 (N, 3, H, W) in [0, 1].
    strength
        0 leaves the pictures alone; the usual range is 0.1 to 0.5. A picture is rotated by up to
        40 degrees times the strength, zoomed by up to 50 % of it, shifted by up to 25 % of it, its
        brightness, contrast and saturation change by up to a factor of 1 plus or minus it, and with
        the strength as probability a square of up to a third of its side is greyed out.
    mirrored
        Whether half of the pictures are flipped from left to right.
    generator
        The source of randomness, on the pictures' device.

    Returns
    -------
    float32 (N, 3, H, W) in [0, 1].

    Examples
    --------
    >>> batch = torch.rand(4, 3, 8, 8)
    >>> augment(batch, 0.0, mirrored=False, generator=torch.Generator()) is batch
    True
    """
    if strength <= 0:
        return pictures
    moved = _move(pictures, strength, mirrored, generator)
    return _erase(_recolour(moved, strength, generator), strength, generator)


def _uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device) * (high - low) + low  # (N,)


def _move(pictures: Tensor, strength: float, mirrored: bool, generator: torch.Generator) -> Tensor:
    """One affine map a picture: flip, rotation, zoom and shift together."""
    count = len(pictures)
    angle = _uniform(-1, 1, count, generator) * math.radians(DEGREES * strength)
    zoom = 1 + _uniform(-1, 1, count, generator) * ZOOM * strength
    shift = (torch.rand(count, 2, generator=generator, device=generator.device) * 2 - 1) * 2 * SHIFT * strength
    flip = torch.ones(count, device=generator.device)
    if mirrored:
        flip = torch.where(_uniform(0, 1, count, generator) < 0.5, -1.0, 1.0)
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    rows = torch.stack([cosine * flip, -sine, shift[:, 0], sine * flip, cosine, shift[:, 1]], dim=1)
    grid = F.affine_grid(rows.view(count, 2, 3), list(pictures.shape), align_corners=False)  # (N, H, W, 2)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _recolour(pictures: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation, as mixtures with black, the mean grey and the grey picture."""
    count = len(pictures)
    brightness, contrast, saturation = (
        _uniform(1 - strength, 1 + strength, count, generator).view(count, 1, 1, 1) for _ in range(3)
    )
    grey = pictures.mean(dim=1, keepdim=True)  # (N, 1, H, W)
    saturated = grey + (pictures - grey) * saturation
    mean = grey.mean(dim=(2, 3), keepdim=True)  # (N, 1, 1, 1)
    return ((mean + (saturated - mean) * contrast) * brightness).clamp(0, 1)


def _erase(pictures: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Grey out one square in some pictures (Zhong et al.: Random Erasing Data Augmentation, AAAI 2020)."""
    count, _, height, width = pictures.shape
    side = _uniform(0.1, 1 / 3, count, generator).view(count, 1)
    top, left = (_uniform(0, 1, count, generator).view(count, 1) * (1 - side) for _ in range(2))
    y = (torch.arange(height, device=pictures.device) + 0.5) / height  # (H,) in 0..1
    x = (torch.arange(width, device=pictures.device) + 0.5) / width
    chosen = _uniform(0, 1, count, generator).view(count, 1, 1, 1) < strength
    rows = (y >= top) & (y < top + side)  # (N, H)
    columns = (x >= left) & (x < left + side)  # (N, W)
    square = rows[:, None, :, None] & columns[:, None, None, :] & chosen  # (N, 1, H, W)
    return torch.where(square, pictures.mean(dim=(2, 3), keepdim=True), pictures)
