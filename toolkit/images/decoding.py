"""Image files as RGB uint8 arrays, under limits: the one decoder of training and serving.

The rules for each kind of image are here alone: EXIF orientation is applied, alpha is laid over
white, 16-bit values are scaled to 8, the first frame of an animation is taken, and the centre
square is resized to the network's size. Broken metadata does not make an image unusable.
"""

import io
import math
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError, features
from PIL.TiffImagePlugin import TiffImageFile

from toolkit.errors import DecoderMissing, ImageTooLarge, UndecodableImage, UnsupportedImage
from toolkit.images.metadata import ORIENTATION, orientation_in, without_metadata

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
HEIF = "HEIF"  # phones write it as HEIC; read if the package pillow-heif is installed
SUFFIXES = {  # the format by a file's ending
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF",
    ".tiff": "TIFF", ".avif": "AVIF", ".heic": HEIF, ".heif": HEIF, ".hif": HEIF,
}  # fmt: skip
SNIFFED_BYTES = 32  # of a file's beginning, enough for ``format_of``
DECODER_VERSION = f"2 (pillow {PIL.__version__})"  # raise the first number when equal bytes give other pixels
RESIZE_RULE = "centre square, bilinear"
STATISTICS = ("brightness", "contrast", "sharpness", "width", "height", "aspect")

_MAGIC = {  # first bytes of each format; a BMP has only two of them, so the size of its second header counts as well
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "GIF": rb"GIF8[79]a",
    "TIFF": rb"(II|MM)([*+]\0|\0[*+])",
    # A box of brands: the first says what the file is, or, with mif1 and msf1, that one of the others does.
    "AVIF": rb"....ftyp(avi[fs]|m[is]f1.{4}(.{4})*avi[fs])",
    HEIF: rb"....ftyp(he[iv][cxms]|heif|m[is]f1)",
}
# Formats of several frames (a JPEG's others are previews), and the size in bytes up to which frames are counted: GIF
# and TIFF are read through for that, which takes 0.4 s at these sizes in a file made to be slow.
_COUNTED = {"WEBP": math.inf, "PNG": math.inf, "GIF": 2**22, "TIFF": 2**18}

# First bytes of other formats, for the message.
_OTHER_FORMATS = {b"%PDF": "PDF", b"8BPS": "PSD", b"<svg": "SVG", b"<?xml": "XML or SVG", b"\0\0\1\0": "ICO"}
_TURNS = {  # an EXIF orientation and what makes it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_TINY = 4  # pixels; a shorter side is more often that of a tracking dot or a line
_TWELVE_BITS = 2**12 - 1  # the largest value of many cameras and scanners, written unchanged into 16 bits
_LUMA = np.array([0.299 / 255, 0.587 / 255, 0.114 / 255], dtype=np.float32)  # ITU-R BT.601, as Pillow's mode L, to 0..1


@dataclass(frozen=True)
class ImageLimits:
    """Largest size of one image: ``max_bytes`` encoded, ``max_pixels`` decoded."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """One decoded image."""

    pixels: NDArray[np.uint8]  # (size, size, 3), RGB
    width: int  # pixels of the original, upright, before it was cropped and resized
    height: int
    remarks: tuple[str, ...] = ()  # on conversions, such as "CMYK, converted to RGB"

    def statistics(self) -> dict[str, float]:
        """Statistics that show how images change; their names are ``STATISTICS``.

        Brightness and contrast are mean and standard deviation of luma in 0..1; sharpness is the
        standard deviation of luma's Laplacian; aspect is width over height.
        """
        luma = self.pixels @ _LUMA  # (size, size) in 0..1
        laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1]
        laplacian += luma[1:-1, :-2]
        laplacian += luma[1:-1, 2:]
        laplacian -= 4 * luma[1:-1, 1:-1]
        return {
            "brightness": float(luma.mean()),
            "contrast": _deviation(luma),
            "sharpness": _deviation(laplacian),
            "width": float(self.width),
            "height": float(self.height),
            "aspect": self.width / self.height,
        }


def _deviation(values: NDArray[np.floating]) -> float:
    """The standard deviation, in fewer passes than numpy's own: each image that is served has two of them."""
    distances = (values - values.mean()).ravel()
    return math.sqrt(float(distances @ distances) / distances.size) if distances.size else math.nan


def format_of(data: bytes) -> str | None:
    """The format by the first ``SNIFFED_BYTES``: one of ``FORMATS``, ``HEIF`` or None.

    >>> format_of(b"GIF89a and so on"), format_of(b"BMX is a sport")
    ('GIF', None)
    """
    return next((name for name, magic in _MAGIC.items() if re.match(magic, data, re.DOTALL)), None)


def load_image(data: bytes, size: int, limits: ImageLimits = ImageLimits()) -> DecodedImage:
    """Decode an image, turn it upright, crop the centre square and resize it.

    Parameters
    ----------
    data
        An encoded image: JPEG, PNG, WebP, BMP, GIF, TIFF or AVIF, of any mode; HEIC with pillow-heif.
    size
        Side of the result in pixels.
    limits
        The largest image accepted; the header is enough to refuse one.

    Raises
    ------
    UndecodableImage
        The bytes are empty, broken, cut short, or no image.
    UnsupportedImage
        The format is not on the list; ``DecoderMissing`` if a package would read it.
    ImageTooLarge
        More bytes or pixels than the limits allow.

    Examples
    --------
    >>> buffer = io.BytesIO()
    >>> Image.new("RGB", (40, 20), "red").save(buffer, "PNG")
    >>> image = load_image(buffer.getvalue(), size=8)
    >>> image.pixels.shape, image.pixels[0, 0].tolist(), image.width
    ((8, 8, 3), [255, 0, 0], 40)
    """
    try:
        return _load(data, size, limits)
    except UndecodableImage:
        bare = without_metadata(data)
        if bare == data:
            raise
        try:
            return _load(bare, size, limits)
        except UndecodableImage:
            pass
        raise


def _load(data: bytes, size: int, limits: ImageLimits) -> DecodedImage:
    image = _open(data, limits)
    width, height = image.size
    values = image.tile[0].args if image.tile else ""
    layout = str(values[0] if isinstance(values, tuple) else values)  # in the file, such as ``RGB;16B``
    image.draft(None, (2 * size, 2 * size))  # JPEG only: decodes at 1/2, 1/4 or 1/8, never below twice the size
    try:
        image.load()
        remarks = _remarks(image, layout, (width, height))
        turn, swaps = _turn(image, data)
        opaque = _opaque(image, layout, data)
        if turn is None:
            whole = _to_rgb(image, layout)
        else:  # before the conversion: of a TIFF, Pillow gives the size that it has after this
            whole, opaque = _to_rgb(image.transpose(turn), layout), opaque and opaque.transpose(turn)
        if opaque is not None:
            whole = Image.composite(whole, Image.new("RGB", whole.size, "white"), opaque)
    except Exception as error:  # noqa: BLE001  Pillow's plugins raise over a dozen kinds on broken files
        raise UndecodableImage(f"the image is broken: {error or type(error).__name__}") from None
    if swaps:
        width, height = height, width
    side = min(whole.size)
    left, top = (whole.width - side) / 2, (whole.height - side) / 2
    square = whole.resize(
        (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side), reducing_gap=2.0
    )
    return DecodedImage(np.asarray(square), width, height, remarks + _frames(image, len(data)))


def _open(data: bytes, limits: ImageLimits) -> ImageFile.ImageFile:
    """Read the header and check the limits."""
    if not data:
        raise UndecodableImage("the file is empty")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"the file has {len(data):,} bytes, at most {limits.max_bytes:,} are allowed")
    found = format_of(data)
    if found == HEIF:
        _register_heif()
    elif found == "AVIF" and not features.check("avif"):
        raise DecoderMissing("AVIF cannot be read by this build of Pillow; the one on PyPI can")
    try:
        image = Image.open(io.BytesIO(data), formats=(HEIF,) if found == HEIF else FORMATS)
    except UnidentifiedImageError:
        raise _unknown_format(data) from None
    except Image.DecompressionBombError:
        raise ImageTooLarge(f"the image has far more than the {limits.max_pixels:,} pixels allowed") from None
    except Exception as error:  # noqa: BLE001
        raise UndecodableImage(f"the header is broken: {error or type(error).__name__}") from None
    if image.width * image.height > limits.max_pixels:
        raise ImageTooLarge(
            f"the image has {image.width} x {image.height} pixels, at most {limits.max_pixels:,} are allowed"
        )
    if isinstance(image, TiffImageFile):
        # Pillow's own applies the orientation, and fails on other entries.
        image.load_end = partial(_read_exif, image)  # type: ignore[method-assign]
    return image


@cache
def _register_heif() -> None:
    """Make Pillow read HEIC, once it is needed; each image has one thread, since several are decoded at a time."""
    try:
        import pillow_heif
    except ImportError:
        raise DecoderMissing(
            "HEIC needs the package pillow-heif: pip install -r requirements-heif.txt; or send JPEG"
        ) from None
    pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


def _read_exif(image: Image.Image) -> None:
    with suppress(Exception):  # of broken entries
        image.getexif()


def _unknown_format(data: bytes) -> UndecodableImage | UnsupportedImage:
    start = data[:16].lstrip()
    name = next((name for magic, name in _OTHER_FORMATS.items() if start.startswith(magic)), None)
    if data[4:8] == b"ftyp" and format_of(data) is None:
        name = "a video"
    if name:
        return UnsupportedImage(f"{name} is not supported; send one of {', '.join(FORMATS)}")
    return UndecodableImage(f"not an image, or its header is broken; send one of {', '.join(FORMATS)}")


def _turn(image: Image.Image, data: bytes) -> tuple[Image.Transpose | None, bool]:
    """The transposition for the EXIF orientation, and whether it swaps width and height."""
    upright = False  # Pillow gives the size of a TIFF after its transposition
    block = image.info.get("exif") or b""
    if isinstance(image, TiffImageFile):
        block, upright = data, image.tag_v2.get(ORIENTATION) in (5, 6, 7, 8)
    orientation = orientation_in(block) if block else None
    if orientation is None:
        with suppress(Exception):  # a broken block does not make the image unusable
            orientation = image.getexif().get(ORIENTATION)  # XMP may say it as well
    if not isinstance(orientation, int) or orientation not in _TURNS:
        return None, False
    return _TURNS[orientation], orientation >= 5 and not upright


def _remarks(image: Image.Image, layout: str, size: tuple[int, int]) -> tuple[str, ...]:
    """Conversions to 8-bit RGB that lose information, and signs that the image may be wrong."""
    found = []
    grey = image.mode.startswith("I")
    # In colour; ``BGR;16`` is 16 bits a pixel.
    wide = not layout.startswith("I") and re.search(r"[A-Z];16[BLN]$", layout) is not None
    if image.mode == "CMYK":
        found.append("CMYK, converted to RGB")
    elif image.mode == "F":
        found.append("floating-point grey, scaled to 8 bits")
    elif grey:
        bits = next((bits for bits in (12, 16) if f"{bits}" in layout), 32)
        found.append(f"{bits}-bit grey, scaled to 8 bits")
    elif wide:
        found.append("16 bits a channel, scaled to 8")
    if min(size) < _TINY:
        found.append(f"only {size[0]} x {size[1]} pixels")
    if wide or (grey and "12" not in layout):
        ranges = np.array(image.getextrema()).reshape(-1, 2)
        if 0 < ranges.max() <= (_TWELVE_BITS if grey else _TWELVE_BITS >> 8):
            found.append("no value above 4,095 of 65,535, as when 12 bits are kept in 16: it is nearly black")
    return tuple(found)


def _opaque(image: Image.Image, layout: str, data: bytes) -> Image.Image | None:
    """Where a PNG of 16 bits is opaque, mode L; None for others, and without a transparent colour.

    That colour has 16 bits a channel, while Pillow keeps the upper 8 of an image in colour.
    """
    if image.format != "PNG" or "16" not in layout or "transparency" not in image.info:
        return None
    key = np.array(image.info.pop("transparency"))
    values = np.asarray(image).astype(np.int64)  # (H, W) or (H, W, 3)
    if values.ndim == 3:
        lower = Image.open(io.BytesIO(data), formats=("PNG",))
        lower.tile = [lower.tile[0]._replace(args=layout.replace("16B", "16L"))]
        values = values * 256 + np.asarray(lower)
    opaque = (values != key).reshape(*values.shape[:2], -1).any(axis=2)
    return Image.fromarray((opaque * 255).astype(np.uint8))


def _frames(image: ImageFile.ImageFile, size: int) -> tuple[str, ...]:
    """A remark on the frames that are not used, with their number if counting is cheap."""
    if image.format not in _COUNTED:
        return ()
    try:
        if not getattr(image, "is_animated", False):
            return ()
        count = getattr(image, "n_frames", None) if size <= _COUNTED[image.format] else None
    except Exception:  # noqa: BLE001  a later frame is broken, and not used
        count = None
    return (f"the first of {count or 'several'} frames",)


def _to_rgb(image: Image.Image, layout: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image, _TWELVE_BITS if "12" in layout else 65535)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        upper = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", upper.size, "white"), upper).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _to_8_bit(image: Image.Image, maximum: int) -> Image.Image:
    """Scale grey values of 12, 16 or 32 bits or floats to 0..255.

    Integers span 0..``maximum``; floats span 0..1, or their own minimum to maximum when they leave
    that range.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    low, high = (0.0, 1.0) if image.mode == "F" else (0.0, float(maximum))
    if image.mode == "F" and (values.min() < 0 or values.max() > 1):
        low, high = values.min(), values.max()
    scaled = (values - low) / max(high - low, 1e-12) * 255
    return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))
