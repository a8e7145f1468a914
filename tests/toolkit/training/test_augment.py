"""Random changes: each image its own, within the stated bounds, from a seed."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  torch's own convention
from hypothesis import given
from hypothesis import strategies as st

from toolkit.training.augment import _erase, _move, _recolour, augment


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def coordinates(count, side=33):
    """(N, 3, H, W): the red channel rises from left to right, the green one from top to bottom."""
    ramp = (torch.arange(side) + 0.5) / side  # in 0..1
    image = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), torch.zeros(side, side)])
    return image.expand(count, 3, side, side)


def maps(moved):
    """Slopes (N, 2, 2) and shifts (N, 2) of the affine map that moved ``coordinates``, read off at the centre.

    A ramp is sampled exactly by bilinear interpolation, and the centre stays clear of the borders.
    """
    side = moved.shape[-1]
    middle = side // 2
    here = moved[:, :2, middle, middle]
    slopes = [moved[:, :2, middle, middle + 1] - here, moved[:, :2, middle + 1, middle] - here]
    return torch.stack(slopes, dim=2) * side, here - 0.5


@given(st.floats(0.01, 1), st.booleans(), st.integers(0, 1000), st.sampled_from([(1, 8, 8), (5, 16, 12), (2, 7, 9)]))
def test_the_result_is_a_batch_of_images_again(strength, flip, seed, shape):
    count, height, width = shape
    batch = torch.rand(count, 3, height, width, generator=seeded(seed))
    before = batch.clone()
    changed = augment(batch, strength, flip=flip, generator=seeded(seed))
    assert changed.shape == batch.shape
    assert changed.dtype is torch.float32
    assert 0 <= changed.min() <= changed.max() <= 1
    assert not torch.equal(changed, before)
    assert torch.equal(augment(batch, 0.0, flip=True, generator=seeded(seed)), before)
    assert torch.equal(batch, before)


def test_each_image_has_its_own_reproducible_change():
    batch = coordinates(16)
    first = augment(batch, 0.3, flip=True, generator=seeded(1))
    assert torch.equal(first, augment(batch, 0.3, flip=True, generator=seeded(1)))
    assert not torch.equal(first, augment(batch, 0.3, flip=True, generator=seeded(2)))
    distances = torch.cdist(first.flatten(1), first.flatten(1)) + 1e3 * torch.eye(16)
    assert distances.min() > 0.1


def test_the_memory_format_makes_no_difference():
    """Decoded images lie in memory with the colours last."""
    batch = torch.rand(6, 3, 20, 20, generator=seeded())
    colours_last = batch.contiguous(memory_format=torch.channels_last)
    one, other = (augment(layout, 0.5, flip=True, generator=seeded(1)) for layout in (batch, colours_last))
    assert torch.allclose(one, other, atol=1e-6)


def test_the_move_is_torchs_own_affine_map():
    """A random image, sampled where affine_grid says: the map is read off a ramp that is moved from the same seed."""
    batch = torch.rand(40, 3, 33, 33, generator=seeded())
    slopes, shifts = maps(_move(coordinates(40), 0.1, True, seeded(1)))
    theta = torch.cat([slopes, 2 * shifts[:, :, None]], dim=2)
    grid = F.affine_grid(theta, [40, 3, 33, 33], align_corners=False)
    expected = F.grid_sample(batch, grid, padding_mode="reflection", align_corners=False)
    assert torch.allclose(_move(batch, 0.1, True, seeded(1)), expected, atol=1e-3)


def test_brightness_contrast_and_saturation_by_hand():
    """Brightness, contrast and saturation one after the other, with the factors drawn in this order."""
    batch = 0.4 + 0.2 * torch.rand(9, 3, 5, 7, generator=seeded())  # nothing reaches 0 or 1
    factors = torch.rand(3, 9, generator=seeded(1)) * 0.4 + 0.8
    expected = torch.empty_like(batch)
    for number, image in enumerate(batch):
        brightness, contrast, saturation = factors[:, number]
        grey = image.mean(dim=0)
        coloured = grey + saturation * (image - grey)
        expected[number] = brightness * (grey.mean() + contrast * (coloured - grey.mean()))
    assert torch.allclose(_recolour(batch, 0.2, seeded(1)), expected, atol=1e-6)


@pytest.mark.parametrize("flip", [False, True])
def test_half_are_flipped_when_that_changes_no_class(flip):
    """At a strength of almost nothing only the flip is left. Of 400, 200 flips are expected, within four deviations."""
    batch = coordinates(400)
    moved = augment(batch, 1e-6, flip=flip, generator=seeded())
    same = (moved - batch).flatten(1).abs().amax(dim=1) < 1e-3
    flipped = (moved - batch.flip(3)).flatten(1).abs().amax(dim=1) < 1e-3
    assert (same | flipped).all()
    assert (160 < flipped.sum() < 240) if flip else not flipped.any()


@pytest.mark.parametrize(
    ("strength", "zoomed", "degrees", "shifted"),
    [(0.1, 0.05, 4, 0.025), (0.3, 0.15, 12, 0.075), (0.5, 0.25, 20, 0.125)],
)
def test_rotation_zoom_and_shift_span_the_documented_range(strength, zoomed, degrees, shifted):
    slopes, shifts = maps(_move(coordinates(500), strength, False, seeded()))
    zoom = slopes[:, :, 0].norm(dim=1)
    angle = torch.atan2(slopes[:, 1, 0], slopes[:, 0, 0])
    for values, limit in (
        (zoom - 1, zoomed),
        (angle, math.radians(degrees)),
        (shifts.flatten(), shifted),
    ):
        assert values.abs().max() <= limit + 1e-4
        assert values.min() < -0.95 * limit
        assert values.max() > 0.95 * limit
        assert abs(values.mean()) < 0.15 * limit
    # A rotation with zoom and nothing else: the two columns are as long as each other and at right angles.
    assert torch.allclose(slopes[:, :, 1].norm(dim=1), zoom, atol=1e-4)
    assert torch.allclose((slopes[:, :, 0] * slopes[:, :, 1]).sum(dim=1), torch.zeros(500), atol=1e-4)


def test_a_flipped_image_is_rotated_all_the_same():
    slopes, _ = maps(_move(coordinates(300), 0.5, True, seeded()))
    determinant = slopes[:, 0, 0] * slopes[:, 1, 1] - slopes[:, 0, 1] * slopes[:, 1, 0]
    zoom = slopes[:, :, 1].norm(dim=1)
    assert torch.allclose(determinant.abs(), zoom**2, atol=1e-4)
    assert 100 < (determinant < 0).sum() < 200


def test_nothing_black_comes_in_from_outside():
    plain = torch.full((20, 3, 16, 16), 0.7)
    assert torch.allclose(_move(plain, 1.0, True, seeded()), plain, atol=1e-5)


def test_one_square_of_the_mean_colour_is_erased():
    """At strength 1 in every image; its side is a tenth to a third of the image's."""
    side = 60
    batch = torch.rand(100, 3, side, side, generator=seeded(3))
    erased = _erase(batch, 1.0, seeded())
    changed = (erased != batch).any(dim=1)
    lengths = []
    for image, mask, before in zip(erased, changed, batch, strict=True):
        rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
        square = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert square.all()
        assert square.sum() == mask.sum()
        assert abs(square.shape[0] - square.shape[1]) <= 1
        assert torch.allclose(image[:, mask], before.mean(dim=(1, 2))[:, None].expand(3, int(mask.sum())))
        lengths.append(square.shape[0])
    assert side / 10 - 1 <= min(lengths) < 10
    assert 16 < max(lengths) <= side / 3 + 1


def test_the_strength_is_the_probability_of_an_erased_square():
    """Of 400, 120 are expected; four deviations are 37."""
    batch = torch.rand(400, 3, 16, 16, generator=seeded(3))
    changed = (_erase(batch, 0.3, seeded()) != batch).flatten(1).any(dim=1)
    assert 120 - 37 < changed.sum() < 120 + 37
