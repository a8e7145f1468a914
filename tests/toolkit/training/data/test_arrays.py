"""Images of an array as files: the bytes that Pillow would write, made when they are asked for."""

import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from support.colours import encode
from toolkit.training.data.arrays import Encoded

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: st.sampled_from([shape, (*shape, 3)])
)


@given(SHAPES, st.integers(0, 1000))
def test_each_image_is_the_bmp_file_that_pillow_writes(shape, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    images = Encoded(pixels)
    assert len(images) == len(pixels)
    for image, expected in zip(images, pixels, strict=True):
        assert image == encode(expected, "BMP")
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(image))), expected)


def test_it_is_a_sequence():
    pixels = np.arange(10 * 4, dtype=np.uint8).reshape(10, 2, 2)
    images = Encoded(pixels)
    files = [encode(image, "BMP") for image in pixels]
    assert list(images) == files
    assert list(reversed(images)) == files[::-1]
    assert images[-1] == files[-1]
    assert list(images[2:8:3]) == files[2:8:3]
    assert files[5] in images
    assert images.index(files[5]) == 5
    for outside in (10, -11):
        with pytest.raises(IndexError):
            images[outside]


@given(st.lists(st.integers(0, 9)), st.randoms())
def test_some_of_the_images_are_taken_by_index(first, random):
    images = Encoded(np.arange(10 * 4, dtype=np.uint8).reshape(10, 2, 2))
    taken = images.take(np.array(first, np.int64))
    assert list(taken) == [images[index] for index in first]
    second = [random.randrange(len(first)) for _ in first]
    assert list(taken.take(np.array(second, np.int64))) == [images[first[index]] for index in second]


def test_taking_images_copies_no_pixels():
    images = Encoded(np.zeros((1000, 100, 100), np.uint8))  # 10 MB
    tracemalloc.start()
    taken = images.take(np.arange(900)).take(np.arange(800))
    assert len(taken[10:]) == 790
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
