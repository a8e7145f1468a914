"""Batches of images: the right ones, in order, normalised as ImageNet's, resized as Pillow does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from support.tiny_networks import CPU, colours
from toolkit.training.augment import augment
from toolkit.training.batches import ImageBatches, normalise
from toolkit.training.data.dataset import Subset

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def levels(images):
    """float (N, H, W, 3): normalised images as levels of 0 to 255 again."""
    return (images.permute(0, 2, 3, 1).double().numpy() * STD + MEAN) * 255


# --- parts --------------------------------------------------------------------------------------


def test_a_part_is_some_images_of_a_data_set():
    labels = np.array([2, 0, 1, 1, 0])
    pixels = np.zeros((5, 4, 4, 3), np.uint8)
    part = Subset(pixels, labels, np.array([4, 1, 2]))
    assert len(part) == 3
    assert part.labels.tolist() == [0, 0, 1]
    assert part.classes == 3, "the data set has three, even if the part has two of them"
    both = part.union(Subset(pixels, labels, np.array([0])))
    assert both.labels.tolist() == [0, 0, 1, 2]
    assert both.pixels is pixels
    assert part.union(None) is part


# --- as they are --------------------------------------------------------------------------------


def test_white_is_normalised_by_hand():
    """(1 - mean) / std of each channel."""
    white = Subset(np.full((3, 8, 8, 3), 255, np.uint8), np.zeros(3, np.int64), np.array([2, 0]))
    images = ImageBatches(white, CPU).eval_batch(np.array([1, 0]))
    assert (images.shape, images.dtype) == ((2, 3, 8, 8), torch.float32)
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert images[:, :, 3, 5].numpy() == pytest.approx(np.array([expected, expected]), rel=1e-5)


def test_positions_count_within_the_part():
    many = colours(12)
    batches = ImageBatches(Subset(many.pixels, many.labels, np.array([7, 3, 11, 0])), CPU)
    assert batches.labels.tolist() == [1, 0, 2, 0]
    assert batches.classes == 3
    images = batches.eval_batch(np.array([2, 0, 2]))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert levels(images) == pytest.approx(many.pixels[[11, 7, 11]].astype(float), abs=0.01)


def test_a_map_of_a_file_that_may_not_be_written_will_do(tmp_path):
    many = colours(6)
    many.pixels.tofile(tmp_path / "pixels")
    mapped = np.memmap(tmp_path / "pixels", np.uint8, "r", shape=many.pixels.shape)
    batches = ImageBatches(Subset(mapped, many.labels, many.indices), CPU, strength=0.5)
    batches.train(np.arange(6), 16, seeded())
    assert levels(batches.eval_batch(np.arange(6))) == pytest.approx(many.pixels.astype(float), abs=0.01)


# --- to learn from ------------------------------------------------------------------------------


def test_without_augmentation_they_are_as_they_are():
    batches = ImageBatches(colours(6), CPU, strength=0.0)
    assert torch.equal(batches.train(np.arange(6), 16, seeded()), batches.eval_batch(np.arange(6)))


@pytest.mark.parametrize("flip", [False, True])
def test_they_are_augmented_before_they_are_normalised(flip):
    part = replace(colours(6), allow_flip=flip)
    batches = ImageBatches(part, CPU, strength=0.4)
    unit = torch.from_numpy(part.pixels).permute(0, 3, 1, 2).float() / 255
    expected = normalise(augment(unit, 0.4, flip=flip, generator=seeded(3)))
    changed = batches.train(np.arange(6), 16, seeded(3))
    assert torch.allclose(changed, expected, atol=1e-5)
    assert changed.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(changed, batches.train(np.arange(6), 16, seeded(4)))


@pytest.mark.parametrize("size", [16, 20, 33])
def test_smaller_ones_are_those_that_pillow_makes(size):
    """Bilinear over all pixels that a smaller one covers, to a level of 255."""
    part = colours(4, size=48)
    images = ImageBatches(part, CPU).train(np.arange(4), size, seeded())
    assert images.shape == (4, 3, size, size)
    resized = [Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR) for pixels in part.pixels]
    assert np.abs(levels(images) - np.stack([np.asarray(image) for image in resized])).max() <= 1.01
