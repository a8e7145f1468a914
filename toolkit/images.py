"""Bytes to an RGB uint8 array, under limits: the one decoder of training and serving.

What happens to each kind of picture is defined here, once: EXIF orientation is applied, alpha is
laid over white, 16-bit values are scaled to 8, the first frame of an animation is taken, and the
centre square is resized to what the network wants.
"""

import io
import math
import re
from dataclasses import dataclass

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from toolkit.errors import ImageTooLarge, UndecodableImage, UnsupportedImage

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = {  # what a file's ending says it is
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF",
    ".tiff": "TIFF",
}  # fmt: skip
SNIFFED_BYTES = 32  # of a file's beginning, enough for ``format_of``
DECODER_VERSION = f"1 (pillow {PIL.__version__})"  # raise the first number when equal bytes give other pixels
RESIZE_RULE = "centre square, bilinear"
STATISTICS = ("brightness", "contrast", "sharpness", "width", "height", "aspect")

_MAGIC = {  # first bytes of each format; a BMP has only two of them, so the size of its second header counts as well
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "GIF": rb"GIF8[79]a",
    "TIFF": rb"(II|MM)([*+]\0|\0[*+])",
}
# Formats that hold several frames (what else is in a JPEG are previews), and the largest file in bytes whose frames
# are counted: GIF and TIFF must be walked through, which a file made to be slow draws out to 0.4 s at these sizes.
_COUNTED = {"WEBP": math.inf, "PNG": math.inf, "GIF": 2**22, "TIFF": 2**18}

# First bytes of formats people do send, so that the message can name what arrived.
_OTHER_FORMATS = {b"%PDF": "PDF", b"8BPS": "PSD", b"<svg": "SVG", b"<?xml": "XML or SVG", b"\0\0\1\0": "ICO"}
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"avif": "AVIF"}
_LUMA = np.array([0.299 / 255, 0.587 / 255, 0.114 / 255], dtype=np.float32)  # ITU-R BT.601, as Pillow's mode L, to 0..1


@dataclass(frozen=True)
class Limits:
    """How large one picture may be: ``max_bytes`` encoded, ``max_pixels`` decoded."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000


@dataclass(frozen=True, eq=False)
class Picture:
    """One decoded picture.

    Parameters
    ----------
    pixels
        uint8 (size, size, 3), RGB.
    width, height
        Pixels of the original, upright, before it was cropped and resized.
    remarks
        What was changed about it beyond that, in words, such as ``CMYK, converted to RGB``.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    remarks: tuple[str, ...] = ()

    def statistics(self) -> dict[str, float]:
        """Figures that tell what changed when pictures change; their names are ``STATISTICS``.

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
    """The standard deviation, in fewer passes than numpy's own: each picture that is served has two of them."""
    distances = (values - values.mean()).ravel()
    return math.sqrt(float(distances @ distances) / distances.size) if distances.size else math.nan


def format_of(data: bytes) -> str | None:
    """Which of ``FORMATS`` the bytes are, judged by their beginning alone.

    Parameters
    ----------
    data
        A file, or at least its first ``SNIFFED_BYTES``.

    Examples
    --------
    >>> format_of(b"GIF89a and so on"), format_of(b"BMX is a sport")
    ('GIF', None)
    """
    return next((name for name, magic in _MAGIC.items() if re.match(magic, data, re.DOTALL)), None)


def load_picture(data: bytes, size: int, limits: Limits = Limits()) -> Picture:
    """Decode, turn upright, cut the centre square and resize it.

    Parameters
    ----------
    data
        An encoded picture: JPEG, PNG, WebP, BMP, GIF or TIFF, of any mode.
    size
        Side of the result in pixels.
    limits
        The largest picture accepted; the header is enough to refuse one.

    Raises
    ------
    UndecodableImage
        The bytes are empty, broken, cut short, or no picture.
    UnsupportedImage
        The format is not on the list.
    ImageTooLarge
        More bytes or pixels than the limits allow.

    Examples
    --------
    >>> buffer = io.BytesIO()
    >>> Image.new("RGB", (40, 20), "red").save(buffer, "PNG")
    >>> picture = load_picture(buffer.getvalue(), size=8)
    >>> picture.pixels.shape, picture.pixels[0, 0].tolist(), picture.width
    ((8, 8, 3), [255, 0, 0], 40)
    """
    image = _open(data, limits)
    width, height = image.size
    remarks = _conversions(image)
    image.draft(None, (2 * size, 2 * size))  # JPEG only: decodes at 1/2, 1/4 or 1/8, never below twice the size
    try:
        image.load()
        upright, turned = _upright(image)
        whole = _to_rgb(upright)
    except Exception as error:  # noqa: BLE001  Pillow's plugins raise over a dozen kinds on broken files
        raise UndecodableImage(f"the picture is broken: {error or type(error).__name__}") from None
    if turned:
        width, height = height, width
    side = min(whole.size)
    left, top = (whole.width - side) / 2, (whole.height - side) / 2
    square = whole.resize(
        (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side), reducing_gap=2.0
    )
    return Picture(np.asarray(square), width, height, remarks + _frames(image, len(data)))


def _open(data: bytes, limits: Limits) -> ImageFile.ImageFile:
    """Read the header and hold it against the limits."""
    if not data:
        raise UndecodableImage("the file is empty")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"the file has {len(data):,} bytes, at most {limits.max_bytes:,} are allowed")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise _unknown_format(data) from None
    except Image.DecompressionBombError:
        raise ImageTooLarge(f"the picture has far more than the {limits.max_pixels:,} pixels allowed") from None
    except Exception as error:  # noqa: BLE001
        raise UndecodableImage(f"the header is broken: {error or type(error).__name__}") from None
    if image.width * image.height > limits.max_pixels:
        raise ImageTooLarge(
            f"the picture has {image.width} x {image.height} pixels, at most {limits.max_pixels:,} are allowed"
        )
    return image


def _unknown_format(data: bytes) -> UndecodableImage | UnsupportedImage:
    start = data[:16].lstrip()
    name = next((name for magic, name in _OTHER_FORMATS.items() if start.startswith(magic)), None)
    if data[4:8] == b"ftyp":
        name = _BRANDS.get(data[8:12], "a video")
    if name:
        return UnsupportedImage(f"{name} is not supported; send one of {', '.join(FORMATS)}")
    return UndecodableImage(f"not a picture, or its header is broken; send one of {', '.join(FORMATS)}")


def _upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """Apply the EXIF orientation; also tell whether width and height changed places."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001  a broken EXIF block does not make the picture unusable
        return image, False
    if orientation not in range(2, 9):
        return image, False
    return ImageOps.exif_transpose(image), orientation >= 5


def _conversions(image: ImageFile.ImageFile) -> tuple[str, ...]:
    """What the header says will be lost on the way to 8-bit RGB."""
    layout = image.tile[0].args if image.tile else ""
    layout = str(layout[0] if isinstance(layout, tuple) else layout)  # how values lie in the file, such as RGB;16B
    if image.mode == "CMYK":
        return ("CMYK, converted to RGB",)
    if image.mode == "F":
        return ("floating-point grey, scaled to 8 bits",)
    if image.mode.startswith("I"):
        return (f"{16 if '16' in layout else 32}-bit grey, scaled to 8 bits",)
    if re.search(r";16[BLN]$", layout):  # while ``BGR;16`` is 16 bits a pixel
        return ("16 bits a channel, scaled to 8",)
    return ()


def _frames(image: ImageFile.ImageFile, size: int) -> tuple[str, ...]:
    """That only the first frame was taken, of how many where that is told cheaply."""
    if image.format not in _COUNTED:
        return ()
    try:
        if not getattr(image, "is_animated", False):
            return ()
        count = getattr(image, "n_frames", None) if size <= _COUNTED[image.format] else None
    except Exception:  # noqa: BLE001  what follows the first frame is broken, and not used
        count = None
    return (f"the first of {count or 'several'} frames",)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        upper = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", upper.size, "white"), upper).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale grey values of 16 or 32 bits or floats to 0..255.

    Integers span 0..65535, the only wide range that the formats define; floats span 0..1, or
    their own minimum to maximum when they leave that range.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    low, high = (0.0, 1.0) if image.mode == "F" else (0.0, 65535.0)
    if image.mode == "F" and (values.min() < 0 or values.max() > 1):
        low, high = values.min(), values.max()
    scaled = (values - low) / max(high - low, 1e-12) * 255
    return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))
