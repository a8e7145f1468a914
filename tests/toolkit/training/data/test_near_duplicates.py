"""Copies of made photographs are found, and nothing else is."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from toolkit.training.data.near_duplicates import groups_of, near_duplicates

COUNT = 60


def photograph(seed, width=120, height=100):
    """Soft shapes with finer ones over them, as no two photographs share."""
    generator = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(generator.integers(0, 256, (side, side, 3)).astype(np.uint8)).resize(
                (width, height), Image.Resampling.BICUBIC
            ),
            np.float32,
        )
        for side in (4, 9, 25)
    ]
    mixed = 0.5 * layers[0] + 0.35 * layers[1] + 0.15 * layers[2]
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def saved(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cropped(image, left, top):
    """Without 5 % of each side, so much of which at the left and at the top."""
    width, height = image.size
    x, y = round(width * left), round(height * top)
    return image.crop((x, y, x + round(0.95 * width), y + round(0.95 * height)))


def decoded(image, size=64):
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))


ORIGINALS = np.stack([decoded(photograph(seed)) for seed in range(COUNT)])


@pytest.mark.parametrize(
    "copy",
    [
        lambda image: image,
        lambda image: saved(image, 80),
        lambda image: saved(image, 40),
        lambda image: image.resize((60, 50)),
        lambda image: image.resize((240, 200)),
        ImageOps.mirror,
        lambda image: cropped(image, 0.025, 0.025),
        lambda image: cropped(image, 0.0, 0.05),
        lambda image: cropped(image, 0.04, 0.01),
        lambda image: saved(ImageOps.mirror(cropped(image, 0.05, 0.05)), 80),
    ],
    ids=["equal", "q80", "q40", "half", "double", "flipped", "centre", "corner", "askew", "flipped crop at q80"],
)
def test_each_copy_is_paired_with_its_original_and_with_nothing_else(
    copy,
):
    copies = np.stack([decoded(copy(photograph(seed))) for seed in range(COUNT)])
    pairs = near_duplicates(np.concatenate([ORIGINALS, copies]))
    assert pairs.tolist() == [[number, number + COUNT] for number in range(COUNT)]


@pytest.mark.parametrize("size", [32, 48, 128])
def test_the_size_at_which_images_are_decoded_does_not_matter(size):
    images = [photograph(seed) for seed in range(20)] + [saved(photograph(3), 80), cropped(photograph(7), 0.0, 0.0)]
    assert near_duplicates(np.stack([decoded(image, size) for image in images])).tolist() == [[3, 20], [7, 21]]


def test_another_thing_on_the_same_background_is_no_copy():
    """Everything agrees but a twentieth of the area."""
    scenes = np.repeat(ORIGINALS[:1], 2, axis=0)
    scenes[1, 20:34, 20:34] = 255 - scenes[1, 20:34, 20:34]
    assert near_duplicates(scenes).tolist() == []


def test_another_colour_is_no_copy():
    """Grey values alone would not separate them."""
    grey = ORIGINALS[0].mean(axis=2)
    scenes = np.stack([grey + 40, grey, grey], axis=-1), np.stack([grey, grey + 40 * 0.299 / 0.587, grey], axis=-1)
    assert near_duplicates(np.stack(scenes).clip(0, 255).astype(np.uint8)).tolist() == []


def test_noise_of_one_colour_and_flat_images_are_no_copies():
    generator = np.random.default_rng(0)
    noise = generator.integers(60, 150, (200, 48, 48, 3)).astype(np.uint8)
    flat = generator.integers(120, 124, (200, 48, 48, 3)).astype(np.uint8)
    assert near_duplicates(np.concatenate([noise, flat])).tolist() == []


def test_images_that_are_too_small_are_not_compared():
    images = np.repeat(ORIGINALS[:3, :28, :28], 2, axis=0)
    assert near_duplicates(images).tolist() == []
    assert near_duplicates(ORIGINALS[:1]).tolist() == []


def test_only_what_is_asked_for_is_searched():
    images = np.concatenate([ORIGINALS, ORIGINALS[:3]])
    among = np.array([0, 5, 2, COUNT, COUNT + 1, COUNT + 2])
    assert near_duplicates(images, among).tolist() == [[0, COUNT], [2, COUNT + 2]]


def test_many_copies_of_one_image_are_one_group():
    """More than are compared with each other."""
    generator = np.random.default_rng(1)
    burst = ORIGINALS[:1].astype(np.int64) + generator.integers(-3, 4, (150, 64, 64, 3))
    images = np.concatenate([burst.clip(0, 255).astype(np.uint8), ORIGINALS[1:]])
    groups = groups_of(near_duplicates(images), len(images))
    assert len(set(groups[:150])) == 1
    assert len(set(groups)) == COUNT
