"""One decoder: every mode has a defined result, every bad file a sentence."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from support.colours import encode
from toolkit.errors import DecoderMissing, ImageError, ImageTooLarge, UndecodableImage, UnsupportedImage
from toolkit.images import decoding
from toolkit.images.decoding import (
    FORMATS,
    HEIF,
    SNIFFED_BYTES,
    STATISTICS,
    SUFFIXES,
    DecodedImage,
    ImageLimits,
    format_of,
    load_image,
)


def saved(image, format="PNG", **options):  # noqa: A002
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def first_pixel(data):
    return load_image(data, 4).pixels[0, 0].tolist()


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_of_the_list_is_read(format):  # noqa: A002
    options = {"lossless": True} if format == "WEBP" else {}
    image = load_image(saved(Image.new("RGB", (10, 6), (0, 0, 255)), format, **options), 4)
    assert image.pixels.shape == (4, 4, 3)
    assert image.pixels.dtype == np.uint8
    assert (image.width, image.height) == (10, 6)
    np.testing.assert_allclose(image.pixels[0, 0], [0, 0, 255], atol=3)


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COVER = np.random.default_rng(4).integers(0, 256, (16, 16, 4), dtype=np.uint8)
COLOURFUL, OPACITY = COVER[..., :3], COVER[..., 3:] / 255
FEW = Image.fromarray(COLOURFUL).quantize(7)
PALETTE = Image.new("P", (16, 16), 1)
PALETTE.putpalette([0, 0, 0, 9, 8, 7])
# Images of each mode, and the values of the 8-bit RGB that they are defined to be.
MODES = {
    "palette": (saved(FEW), FEW.convert("RGB")),
    "transparent palette": (saved(PALETTE, transparency=1), 255),
    "alpha": (saved(Image.fromarray(COVER)), (COLOURFUL * OPACITY + 255 * (1 - OPACITY)).round()),
    "hidden colour": (saved(Image.new("RGBA", (16, 16), (255, 0, 0, 0))), 255),
    "grey with alpha": (saved(Image.merge("LA", (Image.fromarray(RAMP), Image.new("L", (16, 16), 0)))), 255),
    "opaque grey": (saved(Image.new("LA", (16, 16), (10, 255))), 10),
    "1 bit": (saved(Image.fromarray(RAMP > 99)), 255 * (RAMP > 99)),
    "16 bits": (saved(Image.fromarray(RAMP.astype(np.uint16) * 257)), RAMP),
    "float": (saved(Image.fromarray(RAMP.astype(np.float32) / 255), "TIFF"), RAMP),
    "float beyond 1": (saved(Image.fromarray(RAMP.astype(np.float32) - 20), "TIFF"), RAMP),
    "CMYK": (saved(Image.frombytes("CMYK", (16, 16), np.dstack([255 - COLOURFUL, 0 * RAMP]).tobytes()), "TIFF"),
             COLOURFUL),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_modes_have_defined_results(mode):
    data, wanted = MODES[mode]
    wanted = np.asarray(wanted, np.float64)
    wanted = wanted[..., None] if wanted.ndim == 2 else wanted
    tolerance = 1 if mode == "alpha" else 0  # it is laid over white in whole numbers
    np.testing.assert_allclose(load_image(data, 16).pixels, np.broadcast_to(wanted, (16, 16, 3)), atol=tolerance)


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    assert first_pixel(saved(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [255, 0, 0]


# --- conversions are reported -----------------------------------------------------------------------


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_of_16_bits(kind, values, *more):
    """A PNG of uint16 values (H, W, channels), by the specification: Pillow writes none in colour."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def png_16_bit(kind, channels):
    """A PNG of 4 x 4 pixels with values of 128 * 257."""
    return png_of_16_bits(kind, np.full((4, 4, channels), 32896, np.uint16))


def animation(format, count=3):  # noqa: A002
    frames = [Image.new("RGB", (8, 8), (60 * number, 0, 0)) for number in range(count)]
    return saved(frames[0], format, save_all=True, append_images=frames[1:])


def test_values_of_more_than_8_bits_are_remarked_on():
    grey = saved(Image.fromarray(np.full((8, 8), 32896, np.uint16)), "PNG")
    same = saved(Image.fromarray(np.full((8, 8), 32896, np.uint16)), "TIFF")
    wide = saved(Image.fromarray(np.full((8, 8), 32896, np.int32)), "TIFF")
    real = saved(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF")
    for data, remark in (
        (grey, "16-bit grey, scaled to 8 bits"),
        (same, "16-bit grey, scaled to 8 bits"),
        (png_16_bit(0, 1), "16-bit grey, scaled to 8 bits"),
        (wide, "32-bit grey, scaled to 8 bits"),
        (real, "floating-point grey, scaled to 8 bits"),
        (png_16_bit(2, 3), "16 bits a channel, scaled to 8"),
    ):
        image = load_image(data, 4)
        assert image.remarks == (remark,)
        assert image.pixels[0, 0].tolist() == [128] * 3
    for kind, channels in ((4, 2), (6, 4)):  # half transparent over white
        image = load_image(png_16_bit(kind, channels), 4)
        assert image.remarks == ("16 bits a channel, scaled to 8",)
        assert image.pixels[0, 0].tolist() == [191] * 3


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_is_remarked_on_with_its_number_of_frames(format):  # noqa: A002
    image = load_image(animation(format), 4)
    assert image.remarks == ("the first of 3 frames",)
    still = load_image(saved(Image.new("RGB", (8, 8)), format), 4)
    assert still.remarks == ()
    np.testing.assert_array_equal(image.pixels, still.pixels)


def test_broken_frames_after_a_good_first_one_do_no_harm():
    """The second page of the TIFF is said to lie far behind the file's end."""
    pages = bytearray(saved(Image.new("RGB", (8, 8), (200, 0, 0)), "TIFF"))
    first = struct.unpack_from("<I", pages, 4)[0]
    entries = struct.unpack_from("<H", pages, first)[0]
    struct.pack_into("<I", pages, first + 2 + 12 * entries, 2**31)
    image = load_image(bytes(pages), 4)
    assert image.pixels[0, 0].tolist() == [200, 0, 0]
    assert image.remarks == ("the first of several frames",)


def test_frames_are_not_counted_where_that_would_be_slow():
    """Half a megabyte of tiny pages: walking through all of them would take seconds."""
    one = saved(Image.new("L", (1, 1)), "TIFF")
    first = struct.unpack_from("<I", one, 4)[0]
    entries = struct.unpack_from("<H", one, first)[0]
    directory = one[first : first + 2 + 12 * entries]
    data, length = one[:first], len(directory) + 4
    for number in range(2**19 // length):
        data += directory + struct.pack("<I", first + (number + 1) * length)
    assert load_image(data, 4).remarks == ("only 1 x 1 pixels", "the first of several frames")


def test_what_loses_nothing_is_not_remarked_on():
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    exif = Image.Exif()
    exif[0x0112] = 6
    for image in (Image.new("RGBA", (8, 8), (1, 2, 3, 4)), Image.new("LA", (8, 8)), palette, Image.new("1", (8, 8))):
        assert load_image(saved(image), 4).remarks == ()
    assert load_image(saved(Image.new("RGB", (8, 6)), "JPEG", exif=exif), 4).remarks == ()
    two_previews = saved(Image.new("RGB", (8, 8)), "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    assert load_image(two_previews, 4).remarks == ()  # what phones write: a JPEG with a smaller one behind it


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3)])
def test_the_transparent_colour_of_a_16_bit_png_is_compared_in_full(kind, channels):
    """Left: that colour, so white. Middle: the same upper 8 bits, so not it. Right: another one."""
    values = np.zeros((12, 12, channels), np.uint16)
    values[:, :4], values[:, 4:8], values[:, 8:] = 0x4010, 0x4011, 0x8080
    key = chunk(b"tRNS", struct.pack(f">{channels}H", *[0x4010] * channels))
    found = load_image(png_of_16_bits(kind, values, key), 12).pixels
    assert found[6, [1, 6, 10]].tolist() == [[255] * 3, [64] * 3, [128] * 3]
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = png_of_16_bits(kind, values, key, chunk(b"eXIf", exif.tobytes()[6:]))
    np.testing.assert_array_equal(load_image(turned, 12).pixels, np.rot90(found, 2))


NEARLY_BLACK = "no value above 4,095 of 65,535, as when 12 bits are kept in 16: it is nearly black"


def test_twelve_bits_that_were_written_into_sixteen_are_remarked_on():
    for top, remarks in ((4095, (NEARLY_BLACK,)), (4096, ()), (0, ())):
        values = np.zeros((8, 8), np.uint16)
        values[2:] = top
        for format in ("PNG", "TIFF"):  # noqa: A001
            image = load_image(saved(Image.fromarray(values), format), 8)
            assert image.remarks == ("16-bit grey, scaled to 8 bits", *remarks)
        colour = load_image(png_of_16_bits(2, np.repeat(values[..., None], 3, axis=2)), 8)
        assert colour.remarks == ("16 bits a channel, scaled to 8", *remarks)


def test_a_tiff_that_says_it_has_twelve_bits_is_scaled_from_twelve():
    """Two values in three bytes; Pillow writes none, so an 8-bit file is declared to be one."""
    rows = np.tile(np.frombuffer(b"\x80\x08\x00", np.uint8), (8, 4))  # 0x800 and 0x800
    data = bytearray(saved(Image.fromarray(rows), "TIFF"))
    start = struct.unpack_from("<I", data, 4)[0]
    for place in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
        tag = struct.unpack_from("<H", data, place)[0]
        if new := {256: 8, 258: 12}.get(tag):
            struct.pack_into("<HIHH", data, place + 2, 3, 1, new, 0)
    image = load_image(bytes(data), 8)
    assert image.pixels[0, 0].tolist() == [128] * 3
    assert image.remarks == ("12-bit grey, scaled to 8 bits",)


def test_images_of_a_few_pixels_are_remarked_on():
    assert load_image(saved(Image.new("RGB", (1, 1))), 8).remarks == ("only 1 x 1 pixels",)
    assert load_image(saved(Image.new("RGB", (500, 3))), 8).remarks == ("only 500 x 3 pixels",)
    assert load_image(saved(Image.new("RGB", (4, 4))), 8).remarks == ()


# --- CMYK ---------------------------------------------------------------------------------------

INKS = {  # cyan, magenta, yellow and black in 0..255, and their colours in RGB
    (0, 255, 255, 0): (255, 0, 0),
    (255, 0, 255, 0): (0, 255, 0),
    (0, 0, 0, 255): (0, 0, 0),
    (0, 0, 0, 128): (127, 127, 127),
    (0, 0, 0, 0): (255, 255, 255),
}


@pytest.mark.parametrize(("inks", "colour"), INKS.items())
def test_cmyk_gives_the_colours_of_its_inks(inks, colour):
    for data in (saved(Image.new("CMYK", (16, 16), inks), "JPEG"), saved(Image.new("CMYK", (16, 16), inks), "TIFF")):
        image = load_image(data, 4)
        np.testing.assert_allclose(image.pixels[0, 0], colour, atol=2)
        assert image.remarks == ("CMYK, converted to RGB",)


@pytest.mark.parametrize(("inks", "colour"), INKS.items())
def test_ycck_as_photoshop_writes_it_gives_the_colours_of_its_inks(inks, colour):
    """Its first three planes are the YCbCr (BT.601) of the inks, its fourth is the inverted black.

    Such a file is made from a CMYK one by writing those planes (which Pillow inverts) and declaring them.
    """
    r, g, b, black = inks
    y = 0.299 * r + 0.587 * g + 0.114 * b
    planes = (y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402)
    image = Image.new("CMYK", (16, 16), (*(255 - min(255, round(plane)) for plane in planes), black))
    data = bytearray(saved(image, "JPEG", quality=100))
    marker = data.index(b"Adobe")
    assert data[marker + 11] == 0  # no transformation
    data[marker + 11] = 2  # YCCK
    np.testing.assert_allclose(load_image(bytes(data), 4).pixels[0, 0], colour, atol=3)


# --- formats by their content -------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_a_format_is_known_by_its_first_bytes(format):  # noqa: A002
    data = saved(Image.new("RGB", (10, 6)), format)
    assert format_of(data[:SNIFFED_BYTES]) == format_of(data) == format
    assert format in SUFFIXES.values()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"B",
        b"BM",
        b"BMX is a sport that is done on bicycles",
        b"RIFF....WAVEfmt ",
        b"GIF",
        b"%PDF-1.7",
        b"II",
        b"\xff",
    ],
)
def test_what_is_no_image_has_no_format(data):
    assert format_of(data) is None


# --- geometry ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "LZW"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, format):  # noqa: A002
    """The stored image is the upright one moved back by the inverse of its orientation: EXIF 2.3, table 6."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = [255, 0, 0]
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
    options = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
        "LZW": {"compression": "tiff_lzw"},
    }
    image = load_image(saved(stored, "TIFF" if format == "LZW" else format, exif=exif, **options.get(format, {})), 16)
    assert (image.width, image.height) == (32, 16)
    tolerance = 3 if format == "JPEG" else 0
    np.testing.assert_allclose(image.pixels, load_image(encode(upright), 16).pixels, atol=tolerance)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_orientation_of_a_tiff_in_many_greys_is_applied(kind):
    upright, exif = 200 * np.arange(8 * 16).reshape(8, 16).astype(kind), Image.Exif()
    exif[0x0112] = 6
    turned = load_image(saved(Image.fromarray(np.rot90(upright).copy()), "TIFF", exif=exif), 8)
    assert (turned.width, turned.height) == (16, 8)
    assert np.array_equal(turned.pixels, load_image(saved(Image.fromarray(upright), "TIFF"), 8).pixels)


def rich_exif(orientation):
    """A block as cameras write it."""
    exif = Image.Exif()
    for tag, value in {0x0112: orientation, 0x010F: "maker", 0x011A: 72.0, 0x011B: 72.0, 0x0128: 2}.items():
        exif[tag] = value
    exif.get_ifd(0x8769).update({0x829A: 0.01, 0x9000: b"0230", 0x927C: b"notes" * 10})
    exif.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.0)})
    return exif


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("tag", [0x010F, 0x011A, 0x0128, 0x0213])
def test_orientation_is_applied_in_spite_of_broken_exif_entries(format, tag):  # noqa: A002
    """An entry with a kind that does not fit its value: it used to be refused with "bad operand type for abs()"."""
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 200
    plain = load_image(saved(Image.fromarray(pixels), format, exif=rich_exif(1)), 8).pixels
    block = bytearray(rich_exif(3).tobytes())
    for kind in (2, 5, 7, 10, 12):
        place = 6 + 8 + 2  # after "Exif\0\0", the header and the number of entries
        struct.pack_into("<HHII" if block[6:8] == b"II" else ">HHII", block, place, tag, kind, 1, 0xFFFFFFF0)
        with_odd = load_image(saved(Image.fromarray(pixels), format, exif=bytes(block)), 8)
        np.testing.assert_array_equal(with_odd.pixels, np.rot90(plain, 2))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_exif_block_makes_a_good_image_unusable(data):
    """Whatever is in it, the image is one of the eight that an orientation can make of the pixels."""
    format = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF"]))  # noqa: A001
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)[..., None].repeat(3, axis=2) * 3
    orientation = data.draw(st.integers(1, 8))
    block = bytearray(rich_exif(orientation).tobytes())
    for _ in range(data.draw(st.integers(1, 6))):
        block[data.draw(st.integers(6, len(block) - 1))] = data.draw(st.integers(0, 255))
    if format == "TIFF":
        entries = Image.Exif()
        entries[0x0112], entries[0x010F] = orientation, "a maker with a long name"
        file = bytearray(saved(Image.fromarray(pixels), format, exif=entries))
        start = struct.unpack_from("<I", file, 4)[0]
        count = struct.unpack_from("<H", file, start)[0]
        (place,) = (at for at in range(start + 2, start + 2 + 12 * count, 12) if file[at : at + 2] == b"\x0f\1")
        for _ in range(data.draw(st.integers(1, 4))):
            file[data.draw(st.integers(place + 2, place + 11))] = data.draw(st.integers(0, 255))
        found = load_image(bytes(file), 8).pixels
    else:
        found = load_image(saved(Image.fromarray(pixels), format, exif=bytes(block)), 8).pixels
    bare = load_image(saved(Image.fromarray(pixels), format), 8).pixels
    turned = [np.rot90(one, turns) for one in (bare, bare.transpose(1, 0, 2)) for turns in range(4)]
    assert min(np.abs(found.astype(int) - each).max() for each in turned) <= (24 if format in ("JPEG", "WEBP") else 0)


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"pHYs", b"eXIf", b"prVt"])
def test_a_damaged_chunk_beside_the_pixels_of_a_png_does_no_harm(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    whole = encode(pixels)
    exif = Image.Exif()
    exif[0x0112] = 3
    upright = chunk(b"eXIf", exif.tobytes()[6:])
    expected = np.rot90(load_image(whole, 8).pixels, 2)
    for broken in (chunk(kind, b"name\0\x99nonsense")[:-4] + b"\0\0\0\0", chunk(kind, b"name\0\x99nonsense")):
        before, after = (broken, upright) if kind == b"eXIf" else (upright, broken)  # the last EXIF block counts
        found = load_image(whole[:33] + before + after + whole[33:], 8)
        np.testing.assert_array_equal(found.pixels, expected)


def heic(image, **options):
    from pillow_heif import from_pillow

    buffer = io.BytesIO()
    from_pillow(image).save(buffer, quality=100, chroma=444, **options)
    return buffer.getvalue()


def test_what_phones_write_is_read_and_turned_once():
    upright = np.zeros((64, 128, 3), np.uint8)
    upright[:32, :64] = [255, 0, 0]
    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (heic(Image.fromarray(upright)), heic(Image.fromarray(np.rot90(upright)), exif=exif.tobytes())):
        assert format_of(data[:SNIFFED_BYTES]) == HEIF
        image = load_image(data, 8)
        assert (image.width, image.height, image.remarks) == (128, 64, ())
        np.testing.assert_allclose(image.pixels, load_image(encode(upright), 8).pixels, atol=6)
    with pytest.raises(ImageTooLarge, match="128 x 64 pixels"):
        load_image(heic(Image.fromarray(upright)), 8, ImageLimits(max_pixels=8000))
    with pytest.raises(UndecodableImage, match="broken"):
        load_image(heic(Image.fromarray(upright))[:-50], 8)


def test_without_its_package_heic_is_refused_with_what_to_install(monkeypatch):
    data = heic(Image.new("RGB", (64, 64)))
    decoding._register_heif.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "pillow_heif", None)
        with pytest.raises(DecoderMissing, match=r"^HEIC needs the package pillow-heif: pip install -r requirements-"):
            load_image(data, 8)
        patch.setattr("PIL.features.check", lambda _: False)
        with pytest.raises(DecoderMissing, match=r"^AVIF cannot be read by this build of Pillow"):
            load_image(saved(Image.new("RGB", (64, 64)), "AVIF"), 8)
    assert load_image(data, 8).width == 64


@pytest.mark.parametrize(
    ("brands", "format"),
    [
        (b"heic\0\0\0\0mif1heic", HEIF),
        (b"mif1\0\0\0\0heicmif1", HEIF),
        (b"hevc\0\0\0\0", HEIF),
        (b"avif\0\0\0\0mif1", "AVIF"),
        (b"mif1\0\0\0\0miafavif", "AVIF"),
        (b"msf1\0\0\0\0avis", "AVIF"),
        (b"isom\0\0\0\0avc1", None),
    ],
)
def test_brands_tell_what_is_in_a_box(brands, format):  # noqa: A002
    assert format_of(b"\0\0\0\x20ftyp" + brands) == format


def test_the_centre_square_is_kept():
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    assert (load_image(encode(pixels), 5).pixels[:, 1:-1] == 200).all()  # the filter reads beyond the edges


def test_a_large_jpeg_decoded_small_is_near_the_full_decoding():
    y, x = np.mgrid[0:1200, 0:1600]
    pixels = np.stack([x * 255 / 1600, y * 255 / 1200, (x + y) % 256], axis=2).astype(np.uint8)
    data = encode(pixels, "JPEG")
    full = Image.open(io.BytesIO(data)).convert("RGB")
    reference = np.asarray(full.resize((64, 64), Image.Resampling.BILINEAR, box=(200, 0, 1400, 1200)), np.float64)
    assert np.abs(load_image(data, 64).pixels - reference).mean() < 1.5


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (b"", UndecodableImage, "the file is empty"),
        (b"<html><body>404</body></html>", UndecodableImage, "not an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), UndecodableImage, "image"),
        (b"%PDF-1.7 ...", UnsupportedImage, "PDF is not supported"),
        (b"8BPS" + bytes(99), UnsupportedImage, "PSD is not supported"),
        (b"<svg/>", UnsupportedImage, "SVG is not supported"),
        (bytes(range(256)) * 4, UndecodableImage, "not an image"),
        (b"\0\0\0\x18ftypmp42" + bytes(40), UnsupportedImage, "a video is not supported"),
        (b"\0\0\0\x18ftypheic" + bytes(40), UndecodableImage, "its header is broken"),
        (encode(np.zeros((40, 40, 3), np.uint8))[:55], UndecodableImage, "broken"),
    ],
)
def test_bad_files_have_their_own_sentence(data, kind, message):
    with pytest.raises(kind, match=message):
        load_image(data, 8)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
def test_a_truncated_image_is_broken(format):  # noqa: A002
    whole = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), format)
    for length in (len(whole) // 4, len(whole) // 2, len(whole) * 9 // 10):
        with pytest.raises(UndecodableImage, match="broken"):
            load_image(whole[:length], 8)


# Headers without a pixel.
BMP = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 54, 0, 54, 40, 8_000, 7_000, 1, 24, 0, 0, 0, 0, 0, 0)
GIF = struct.pack("<6sHHBBBBHHHHBB", b"GIF89a", 60_000, 60_000, 0, 0, 0, ord(","), 0, 0, 60_000, 60_000, 0, 8)


def test_limits_are_held_before_decoding():
    data = encode(np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(ImageTooLarge, match=r"30 x 20 pixels, at most 599 are allowed"):
        load_image(data, 8, ImageLimits(max_pixels=599))
    with pytest.raises(ImageTooLarge, match=r"bytes, at most 10 are allowed"):
        load_image(data, 8, ImageLimits(max_bytes=10))
    for header in (BMP, GIF):
        with pytest.raises(ImageTooLarge, match="allowed"):
            load_image(header, 8)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_files_give_a_image_or_an_image_error(data):
    format = data.draw(st.sampled_from(FORMATS))  # noqa: A001
    generator = np.random.default_rng(1)
    original = bytearray(encode(generator.integers(0, 255, (20, 20, 3), np.uint8), format))
    for _ in range(data.draw(st.integers(1, 6))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = load_image(bytes(original), 8, ImageLimits(max_pixels=100_000))
    except ImageError:
        return
    assert image.pixels.shape == (8, 8, 3)
    assert format_of(bytes(original[:SNIFFED_BYTES])) == format


def test_statistics_are_those_of_other_libraries():
    pixels = np.random.default_rng(2).integers(0, 256, (30, 30, 3), np.uint8)
    luma = pixels @ np.array([0.299, 0.587, 0.114]) / 255
    found = DecodedImage(pixels, 30, 30).statistics()
    assert found["brightness"] == pytest.approx(luma.mean(), rel=1e-5)
    assert found["contrast"] == pytest.approx(luma.std(), rel=1e-5)
    assert found["sharpness"] == pytest.approx(ndimage.laplace(luma)[1:-1, 1:-1].std(), rel=1e-5)


def test_statistics_are_what_they_say():
    flat = load_image(encode(np.full((10, 20, 3), 128, np.uint8)), 10).statistics()
    assert tuple(flat) == STATISTICS
    assert flat["brightness"] == pytest.approx(128 / 255)
    assert (flat["contrast"], flat["sharpness"]) == (pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-6))
    assert (flat["width"], flat["height"], flat["aspect"]) == (20, 10, 2)
    checks = np.indices((10, 10)).sum(axis=0) % 2 * 255
    sharp = load_image(encode(np.repeat(checks[..., None], 3, axis=2).astype(np.uint8)), 10).statistics()
    assert sharp["contrast"] == pytest.approx(0.5, abs=1e-3)
    assert sharp["sharpness"] == pytest.approx(4.0, abs=1e-2)  # the Laplacian is +-4 on a chess board
