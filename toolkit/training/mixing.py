"""Soft targets, and mixup and CutMix: images mixed in pairs, and their targets likewise."""

import math

import torch
import torch.nn.functional as F  # noqa: N812  torch's own convention
from torch import Tensor


def soft_targets(labels: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """Target probabilities: 1 - ``smoothing`` for the true class, and the rest spread over all classes.

    Labels are int64 (N,), the result is float32 (N, K).

    References
    ----------
    Szegedy, Vanhoucke, Ioffe, Shlens, Wojna: Rethinking the Inception Architecture for Computer Vision,
    CVPR 2016, section 7.

    Examples
    --------
    >>> soft_targets(torch.tensor([2]), 4, smoothing=0.2)
    tensor([[0.0500, 0.0500, 0.8500, 0.0500]])
    """
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes


def mix(
    images: Tensor, targets: Tensor, *, mixup: float, cutmix: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix each image of a batch with the one before it, by mixup or by CutMix.

    Mixup blends one image with the other; CutMix pastes a rectangle of the other, cut off at the
    border, over the first. The targets are mixed in the proportion of the images, for CutMix in that
    of the pixels pasted. The proportion is drawn for each image; if both are on, a coin flip chooses
    for the whole batch.

    Parameters
    ----------
    images
        float32 (N, 3, H, W), in random order and any memory format, which is kept.
    targets
        float32 (N, K), class probabilities.
    mixup, cutmix
        The proportion's distribution is Beta(a, a) with this a; 0 is off. With 1 all proportions are
        equally likely; the smaller a is, the more one of the two images dominates. Usual values are
        0.2 for mixup and 1 for CutMix.
    generator
        The source of randomness, on the images' device.

    Returns
    -------
    The mixed images, float32 (N, 3, H, W), and targets, float32 (N, K); with both off, what was given.

    References
    ----------
    Zhang, Cisse, Dauphin, Lopez-Paz: mixup: Beyond Empirical Risk Minimization, ICLR 2018.
    Yun, Han, Oh, Chun, Choe, Yoo: CutMix: Regularization Strategy to Train Strong Classifiers with
    Localizable Features, ICCV 2019.

    Examples
    --------
    Black and white become a grey as light as the second class is likely:

    >>> images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    >>> mixed, targets = mix(images, torch.eye(2), mixup=1.0, cutmix=0.0, generator=torch.Generator())
    >>> torch.allclose(mixed[:, 0, 0, 0], targets[:, 1])
    True
    """
    if mixup <= 0 and cutmix <= 0:
        return images, targets
    kept = _kept(images, mixup, cutmix, generator)
    share = kept.mean(dim=(2, 3)).view(-1, 1)  # (N, 1)
    return _before(images).lerp_(images, kept), _before(targets).lerp_(targets, share)


def _before(batch: Tensor) -> Tensor:
    """The partner of each: the one before it, and the last one for the first."""
    return torch.cat([batch[-1:], batch[:-1]])  # unlike roll, it keeps channels last on a GPU too


def _kept(images: Tensor, mixup: float, cutmix: float, generator: torch.Generator) -> Tensor:
    """The share of each pixel that stays, in 0..1: (N, 1, H, W), or (N, 1, 1, 1) if it is the same for all."""
    count, _, height, width = images.shape
    if cutmix <= 0:
        return _beta(mixup, count, generator).view(count, 1, 1, 1)
    outside = 1 - _box(_beta(cutmix, count, generator), height, width, generator)
    if mixup <= 0:
        return outside
    # Both are made and one is taken, so that the coin need not be read back from the device.
    heads = torch.rand(1, generator=generator, device=generator.device) < 0.5
    return torch.where(heads, outside, _beta(mixup, count, generator).view(count, 1, 1, 1))


def _box(area: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """float32 (N, 1, H, W): 1 around a random point, in a box of the image's shape and this share of its area."""
    half = area.sqrt().view(-1, 1) / 2  # of a side, as a share of the image's

    def inside(pixels: int) -> Tensor:
        centres = (torch.arange(pixels, device=area.device) + 0.5) / pixels
        middle = torch.rand(len(area), 1, generator=generator, device=generator.device)
        return ((centres - middle).abs() < half).float()  # (N, pixels)

    return inside(height)[:, None, :, None] * inside(width)[:, None, None, :]


def _beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """float32 (N,) from Beta(alpha, alpha), by the polar method for Student's t, which needs no rejection.

    With t of 2 alpha degrees of freedom, (1 + t / sqrt(2 alpha + t^2)) / 2 has the symmetric Beta
    distribution; t^2 = 2 alpha (u^(-1 / alpha) - 1) cos^2(angle). (Bailey: Polar Generation of Random
    Variates with the t-Distribution, Mathematics of Computation 62, 1994.)
    """
    uniform = torch.rand(2, count, generator=generator, device=generator.device)
    power, cosine = uniform[0].pow(1 / alpha), torch.cos(2 * math.pi * uniform[1])
    rest = 1 - power
    return ((1 + cosine * (rest / (power + rest * cosine.square())).sqrt()) / 2).clamp_(0, 1)
