"""One decoder: every mode has a defined result, every bad file a sentence."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support import encode
from toolkit.errors import ImageError, ImageTooLarge, UndecodableImage, UnsupportedImage
from toolkit.images import FORMATS, STATISTICS, Limits, load_picture


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def first_pixel(data: bytes) -> list[int]:
    return load_picture(data, 4).pixels[0, 0].tolist()


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_of_the_list_is_read(format: str) -> None:  # noqa: A002
    options = {"lossless": True} if format == "WEBP" else {}
    picture = load_picture(saved(Image.new("RGB", (10, 6), (0, 0, 255)), format, **options), 4)
    assert picture.pixels.shape == (4, 4, 3)
    assert picture.pixels.dtype == np.uint8
    assert (picture.width, picture.height) == (10, 6)
    np.testing.assert_allclose(picture.pixels[0, 0], [0, 0, 255], atol=3)


def test_modes_have_defined_results() -> None:
    sixteen = Image.fromarray(np.full((8, 8), 32896, np.uint16))  # 128 * 257
    assert first_pixel(saved(sixteen)) == [128, 128, 128]
    assert first_pixel(saved(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF")) == [128, 128, 128]
    assert first_pixel(saved(Image.new("RGBA", (8, 8), (255, 0, 0, 0)))) == [255, 255, 255]
    assert first_pixel(saved(Image.new("RGBA", (8, 8), (0, 0, 0, 128)))) == [127, 127, 127]
    assert first_pixel(saved(Image.new("LA", (8, 8), (10, 255)))) == [10, 10, 10]
    assert first_pixel(saved(Image.new("1", (8, 8), 1))) == [255, 255, 255]
    assert first_pixel(saved(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")) == [255, 255, 255]
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    assert first_pixel(saved(palette)) == [9, 8, 7]
    assert first_pixel(saved(palette, transparency=1)) == [255, 255, 255]


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    assert first_pixel(saved(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """The stored picture is the upright one moved back by the inverse of its orientation."""
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:4, :8] = [255, 0, 0]
    inverse = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(inverse[orientation](upright)))
    picture = load_picture(saved(stored, exif=exif), 8)
    assert (picture.width, picture.height) == (16, 8)
    np.testing.assert_array_equal(picture.pixels, load_picture(encode(upright), 8).pixels)


def test_the_centre_square_is_kept() -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    assert (load_picture(encode(pixels), 5).pixels[:, 1:-1] == 200).all()  # the filter looks over the edges


def test_a_large_jpeg_decoded_small_is_near_the_full_decoding() -> None:
    y, x = np.mgrid[0:1200, 0:1600]
    pixels = np.stack([x * 255 / 1600, y * 255 / 1200, (x + y) % 256], axis=2).astype(np.uint8)
    data = encode(pixels, "JPEG")
    full = Image.open(io.BytesIO(data)).convert("RGB")
    reference = np.asarray(full.resize((64, 64), Image.Resampling.BILINEAR, box=(200, 0, 1400, 1200)), np.float64)
    assert np.abs(load_picture(data, 64).pixels - reference).mean() < 1.5


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (b"", UndecodableImage, "the file is empty"),
        (b"<html><body>404</body></html>", UndecodableImage, "not a picture"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), UndecodableImage, "picture"),
        (b"%PDF-1.7 ...", UnsupportedImage, "PDF is not supported"),
        (b"\0\0\0\x18ftypheic" + bytes(40), UnsupportedImage, "HEIC is not supported"),
        (encode(np.zeros((40, 40, 3), np.uint8))[:55], UndecodableImage, "broken"),
        (
            encode(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8), "JPEG")[:900],
            UndecodableImage,
            "broken",
        ),
    ],
)
def test_bad_files_have_their_own_sentence(data: bytes, kind: type[ImageError], message: str) -> None:
    with pytest.raises(kind, match=message):
        load_picture(data, 8)


def test_limits_are_held_before_decoding() -> None:
    data = encode(np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(ImageTooLarge, match=r"30 x 20 pixels, at most 599 are allowed"):
        load_picture(data, 8, Limits(max_pixels=599))
    with pytest.raises(ImageTooLarge, match=r"bytes, at most 10 are allowed"):
        load_picture(data, 8, Limits(max_bytes=10))
    bomb = saved(Image.new("1", (30_000, 30_000)))  # 900 million pixels in a few kilobytes
    with pytest.raises(ImageTooLarge, match="allowed"):
        load_picture(bomb, 8)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_files_give_a_picture_or_an_image_error(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(FORMATS))  # noqa: A001
    generator = np.random.default_rng(1)
    original = bytearray(encode(generator.integers(0, 255, (20, 20, 3), np.uint8), format))
    for _ in range(data.draw(st.integers(1, 6))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    try:
        picture = load_picture(bytes(original), 8, Limits(max_pixels=100_000))
    except ImageError:
        return
    assert picture.pixels.shape == (8, 8, 3)


def test_statistics_are_what_they_say() -> None:
    flat = load_picture(encode(np.full((10, 20, 3), 128, np.uint8)), 10).statistics()
    assert tuple(flat) == STATISTICS
    assert flat["brightness"] == pytest.approx(128 / 255)
    assert (flat["contrast"], flat["sharpness"]) == (pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-6))
    assert (flat["width"], flat["height"], flat["aspect"]) == (20, 10, 2)
    checks = np.indices((10, 10)).sum(axis=0) % 2 * 255
    sharp = load_picture(encode(np.repeat(checks[..., None], 3, axis=2).astype(np.uint8)), 10).statistics()
    assert sharp["contrast"] == pytest.approx(0.5, abs=1e-3)
    assert sharp["sharpness"] == pytest.approx(4.0, abs=1e-2)  # the Laplacian is +-4 on a chess board
