"""Bytes to an RGB uint8 array, under limits: the one decoder of training and serving.

What happens to each kind of picture is defined here, once: EXIF orientation is applied, alpha is
laid over white, 16-bit values are scaled to 8, the first frame of an animation is taken, and the
centre square is resized to what the network wants.
"""

import io
from dataclasses import dataclass

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from toolkit.errors import ImageTooLarge, UndecodableImage, UnsupportedImage

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
DECODER_VERSION = f"1 (pillow {PIL.__version__})"  # raise the first number when equal bytes give other pixels
RESIZE_RULE = "centre square, bilinear"
STATISTICS = ("brightness", "contrast", "sharpness", "width", "height", "aspect")

# First bytes of formats people do send, so that the message can name what arrived.
_OTHER_FORMATS = {b"%PDF": "PDF", b"8BPS": "PSD", b"<svg": "SVG", b"<?xml": "XML or SVG", b"\0\0\1\0": "ICO"}
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"avif": "AVIF"}
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow's mode L


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
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int

    def statistics(self) -> dict[str, float]:
        """Figures that tell what changed when pictures change; their names are ``STATISTICS``.

        Brightness and contrast are mean and standard deviation of luma in 0..1; sharpness is the
        standard deviation of luma's Laplacian; aspect is width over height.
        """
        luma = self.pixels @ _LUMA / 255  # (size, size) in 0..1
        inner = luma[1:-1, 1:-1]
        laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * inner
        return {
            "brightness": float(luma.mean()),
            "contrast": float(luma.std()),
            "sharpness": float(laplacian.std()),
            "width": float(self.width),
            "height": float(self.height),
            "aspect": self.width / self.height,
        }


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
    image.draft(None, (2 * size, 2 * size))  # JPEG only: decodes at 1/2, 1/4 or 1/8, never below twice the size
    try:
        image.load()
        image, turned = _upright(image)
        image = _to_rgb(image)
    except Exception as error:  # noqa: BLE001  Pillow's plugins raise over a dozen kinds on broken files
        raise UndecodableImage(f"the picture is broken: {error or type(error).__name__}") from None
    if turned:
        width, height = height, width
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    square = image.resize(
        (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side), reducing_gap=2.0
    )
    return Picture(np.asarray(square), width, height)


def _open(data: bytes, limits: Limits) -> Image.Image:
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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        upper = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", upper.size, "white"), upper).convert("RGB")
    return image.convert("RGB")


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
