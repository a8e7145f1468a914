"""Mixing, against scipy's Beta distribution, areas counted pixel by pixel and torch's own label smoothing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  torch's own convention
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, ks_2samp

from toolkit.training.mixing import mix, soft_targets

alphas = st.sampled_from([0.0, 0.05, 0.2, 1.0, 4.0])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(count, side):
    """Plain images (N, 3, side, side) of grey n / N, and targets (N, N) that say which is which."""
    greys = torch.arange(count) / count
    return greys.view(count, 1, 1, 1).expand(count, 3, side, side), torch.eye(count)


def own_shares(targets):
    """(N,): how much each of ``numbered`` has kept of itself."""
    return targets.diagonal().numpy()


def test_with_both_off_the_same_objects_come_back():
    images, targets = torch.rand(4, 3, 8, 8), torch.eye(4)
    same, as_well = mix(images, targets, mixup=0.0, cutmix=0.0, generator=seeded())
    assert same is images
    assert as_well is targets


@given(
    alphas,
    alphas,
    st.integers(0, 1000),
    st.sampled_from([(1, 8, 8, 2), (2, 5, 9, 3), (7, 16, 16, 10)]),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_mixtures_stay_images_and_probabilities(mixup, cutmix, seed, shape, layout):
    count, height, width, classes = shape
    images = torch.rand(count, 3, height, width, generator=seeded(seed)).contiguous(memory_format=layout)
    targets = torch.rand(count, classes, generator=seeded(seed)).softmax(dim=1)
    before = images.clone(), targets.clone()
    mixed, mixed_targets = mix(images, targets, mixup=mixup, cutmix=cutmix, generator=seeded(seed))
    assert (mixed.shape, mixed.dtype) == (images.shape, torch.float32)
    assert count == 1 or mixed.is_contiguous(memory_format=layout)
    assert (mixed_targets.shape, mixed_targets.dtype) == (targets.shape, torch.float32)
    assert 0 <= mixed.min() <= mixed.max() <= 1
    assert mixed_targets.min() >= 0
    assert torch.allclose(mixed_targets.sum(dim=1), torch.ones(count))
    assert torch.equal(images, before[0])
    assert torch.equal(targets, before[1])
    again, targets_again = mix(images, targets, mixup=mixup, cutmix=cutmix, generator=seeded(seed))
    assert torch.equal(mixed, again)
    assert torch.equal(mixed_targets, targets_again)


@pytest.mark.parametrize("switches", [{"mixup": 1.0, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}])
def test_another_seed_and_the_generator_going_on_mix_otherwise(switches):
    images, targets = numbered(4, 8)
    generator = seeded(1)
    first, second, other = (
        mix(images, targets, **switches, generator=source)[1] for source in (generator, generator, seeded(2))
    )
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1.0, 2.0, 30.0])
def test_mixup_draws_its_proportions_from_the_beta_distribution(alpha):
    """To six digits, since float32 has no more just below 1."""
    images, targets = torch.zeros(10_000, 3, 1, 1), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(5_000, 1)
    _, mixed = mix(images, targets, mixup=alpha, cutmix=0.0, generator=seeded(3))
    shares = (mixed * targets).sum(dim=1).double().numpy()
    reference = beta(alpha, alpha).rvs(100_000, random_state=np.random.default_rng(4))
    assert ks_2samp(shares.round(6), reference.round(6)).pvalue > 0.01
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_mixup_fades_the_images_in_the_proportion_of_their_targets():
    """The grey of a mixture of numbers is their mean, weighted by the targets."""
    images, targets = numbered(50, 6)
    mixed, mixed_targets = mix(images, targets, mixup=1.0, cutmix=0.0, generator=seeded())
    expected = (mixed_targets @ (torch.arange(50) / 50)).view(50, 1, 1, 1).expand_as(mixed)
    assert torch.allclose(mixed, expected, atol=1e-6)
    assert (mixed_targets > 0).sum(dim=1).max() == 2
    assert len(np.unique(own_shares(mixed_targets))) > 45, "each image has a proportion of its own"


def test_cutmix_pastes_one_rectangle_and_counts_its_pixels():
    count, side = 200, 40
    images, targets = numbered(count, side)
    mixed, mixed_targets = mix(images, targets, mixup=0.0, cutmix=1.0, generator=seeded())
    pasted = (mixed != images).any(dim=1)  # (N, side, side)
    shapes = []
    for number, (image, mask) in enumerate(zip(mixed, pasted, strict=True)):
        area = int(mask.sum())
        assert own_shares(mixed_targets)[number] == pytest.approx(1 - area / side**2, abs=1e-6)
        assert mixed_targets[number, number - 1] == pytest.approx(area / side**2, abs=1e-6)
        if area:
            rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
            assert mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
            assert len(rows) * len(columns) == area
            assert (image[:, mask] == images[number - 1, 0, 0, 0]).all()
            shapes.append((len(rows), len(columns)))
    assert len(shapes) > 0.9 * count
    assert len(set(shapes)) > 100, "each image has a rectangle of its own"


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_cutmix_draws_the_rectangles_of_the_paper(alpha):
    """Algorithm 1 of Yun et al. with numpy: its point and area, cut at the border, in whole pixels."""
    images, targets = torch.zeros(10_000, 1, 64, 64), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(5_000, 1)
    _, mixed = mix(images, targets, mixup=0.0, cutmix=alpha, generator=seeded(5))
    generator = np.random.default_rng(6)
    half = np.sqrt(1 - generator.beta(alpha, alpha, 200_000)) / 2
    sides = [
        np.round(64 * np.minimum(middle + half, 1)) - np.round(64 * np.maximum(middle - half, 0))
        for middle in generator.uniform(size=(2, 200_000))
    ]
    pasted, reference = 64**2 * (1 - (mixed * targets).sum(dim=1).double().numpy()), sides[0] * sides[1]
    assert ks_2samp(pasted.round(), reference).pvalue > 0.01
    assert pasted.mean() == pytest.approx(reference.mean(), rel=0.05)


def test_with_both_on_a_coin_decides_for_the_whole_batch():
    """A plain image stays plain under mixup; under CutMix of these proportions it has two greys. 100 +- 28 of 200."""
    images, targets = numbered(8, 16)
    generator, cut = seeded(), 0
    for _ in range(200):
        mixed, _ = mix(images, targets, mixup=8.0, cutmix=8.0, generator=generator)
        plain = mixed.flatten(1).std(dim=1) < 1e-6
        assert plain.all() or not plain.any()
        cut += int(not plain.any())
    assert 72 < cut < 128


def test_the_partner_is_always_another_image():
    _, mixed = mix(*numbered(16, 4), mixup=8.0, cutmix=0.0, generator=seeded())
    assert (own_shares(mixed) < 1).all()
    assert torch.equal((mixed > 0).float(), torch.eye(16) + torch.eye(16).roll(1, 0))


@given(st.integers(2, 12), st.floats(0, 1), st.integers(0, 1000))
def test_soft_targets_are_torchs_label_smoothing(classes, smoothing, seed):
    logits = torch.randn(6, classes, generator=seeded(seed))
    labels = torch.randint(classes, (6,), generator=seeded(seed))
    targets = soft_targets(labels, classes, smoothing)
    assert (targets.shape, targets.dtype) == ((6, classes), torch.float32)
    assert torch.allclose(targets.sum(dim=1), torch.ones(6))
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert torch.allclose(F.cross_entropy(logits, targets), expected, atol=1e-5)
