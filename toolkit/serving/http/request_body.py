"""The images of a request: a multipart form, a raw body, or JSON with base64 or pixels.

The content of an image decides its format, not its file name or declared type. The file name of an upload is passed on
as text. Base64 is decoded by the returned ``ImageSource``, in the thread that decodes the image.
"""

import asyncio
import base64
import binascii
import io
import json
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any, TypeVar

from fastapi import Request
from PIL import Image
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from toolkit.serving.inference.result import ImageSource, Upload
from toolkit.serving.problems import INVALID, MALFORMED, UNDECODABLE, UNSUPPORTED_MEDIA_TYPE, Problem

T = TypeVar("T")

FORM, JSON = "multipart/form-data", "application/json"
# Besides image/*: SageMaker's clients send x-image; a body without a type is a raw image.
RAW = "application/octet-stream"
RAW_TYPES = (RAW, "application/x-image", "")
MAX_FIELDS = 16  # of a form, besides its files
MAX_FIELD_BYTES = 4096  # bytes
SPOOL_BYTES = 2**40  # of a file part, before it goes to disk: never, since the body is limited already
VALUES_PER_IMAGE = 8  # JSON values at most: braces, brackets and commas around the base64 of one image
VALUES_OVERHEAD = 16  # JSON values at most around all images, such as those of a data frame
# Parsed JSON takes up to 30 times the size of its text, and parsing holds Python's lock: one at a time.
_JSON_THREAD = ThreadPoolExecutor(1, "json")
_URLSAFE = str.maketrans("-_", "+/")
_CHARSET = re.compile(r""";\s*charset\s*=\s*("[^"]*"|[^;]*)""", re.IGNORECASE)
_EXTENDED = re.compile(rb""";\s*filename\*[0-9*]*\s*=""", re.IGNORECASE)
_DATA_URL = re.compile(r"\s*data:[^,]{0,200};base64,", re.IGNORECASE)


async def parse_image(request: Request) -> ImageSource:
    """The one image of a request: a form with the field ``file``, a raw image, or JSON.

    Raises
    ------
    Problem
        400 for a broken body, 415 for one of an unknown type, 422 when the field is missing.
    """
    media = _media_type(request)
    if media == FORM:
        return (await _files(request, "file", max_images=1))[0]
    body = await request.body()
    if media == JSON:
        return partial(_one_of_json, body)
    if media == RAW:
        return partial(bytes, body)
    raise Problem(
        UNSUPPORTED_MEDIA_TYPE,
        "send a multipart form with the field 'file', a raw image as image/*, or JSON with the field 'image'",
    )


async def parse_images(request: Request, max_images: int, size: int | None = None) -> list[ImageSource]:
    """The images of a request, in its order.

    Parameters
    ----------
    request
        A form with the field ``files``, or JSON with a list.
    max_images
        Largest number of images.
    size
        Height and width of the model's images, where JSON with their pixels, and one raw image, are accepted as well.

    Raises
    ------
    Problem
        400 for a broken body, 415 for one of an unknown type, 422 for no images, too many, or ones of another form.
    """
    media = _media_type(request)
    if media == FORM:
        return await _files(request, "files", max_images)
    if media == JSON:
        return await run_in_json_thread(partial(_many_of_json, await request.body(), max_images, size))
    if size is not None and media == RAW:
        return [partial(bytes, await request.body())]
    raise Problem(
        UNSUPPORTED_MEDIA_TYPE,
        "send a multipart form with the field 'files', once for each image, or JSON with a list in 'inputs'",
    )


def values_of_pixels(size: int) -> int:
    """JSON values of one image of this height and width, at most: a list and three numbers for each pixel."""
    return 4 * size * (size + 1)


async def run_in_json_thread(load: Callable[[], T]) -> T:
    """Run a function that loads JSON in a thread, one at a time, so that one parsed document is in memory."""
    return await asyncio.get_running_loop().run_in_executor(_JSON_THREAD, load)


def load_json(body: bytes, max_values: int) -> Any:
    """Parse JSON with a limited number of values, lists and objects; a longer text is refused before it is parsed.

    >>> load_json(b'{"inputs": [1, 2]}', 3)
    {'inputs': [1, 2]}
    >>> load_json(b'{"inputs": [1, 2, []]}', 3)
    Traceback (most recent call last):
        ...
    toolkit.serving.problems.Problem: 400: the JSON holds more values than the images of a request can have
    """
    if body.count(b"[") + body.count(b"{") + body.count(b",") > max_values:
        raise Problem(MALFORMED, "the JSON holds more values than the images of a request can have")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(MALFORMED, "the body is not valid JSON") from None


def from_pixels(values: object, size: int, index: int = 0) -> ImageSource:
    """The source of an image from the numbers of its pixels.

    Parameters
    ----------
    values
        Whole numbers from 0 to 255, floats among them: (size, size, 3) as nested lists, or flat in the same order.
    size
        Height and width in pixels.
    index
        Index of the image in the request, for the problem that any other list raises.

    Examples
    --------
    >>> from_pixels([255, 0, 0] * 4, size=2)()[:4]
    b'\\x89PNG'
    """
    try:
        return partial(encode_png, _bytes_of(values, (size, size, 3)), size)
    except ValueError:
        detail = f"image {index} must be {size} x {size} x 3 whole numbers from 0 to 255, in nested lists or in one"
        raise Problem(INVALID, detail) from None


def encode_png(pixels: bytes, size: int) -> bytes:
    """An uncompressed PNG of ``size * size * 3`` bytes, so that pixels take the same way as any other image."""
    file = io.BytesIO()
    Image.frombytes("RGB", (size, size), pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def _bytes_of(values: object, shape: tuple[int, ...]) -> bytes:
    """The values of nested lists of a shape, or of a flat one, as bytes; ValueError for anything else."""
    if not isinstance(values, list):
        raise ValueError
    if len(values) == shape[0]:
        for length in shape[1:]:
            if set(map(type, values)) != {list} or set(map(len, values)) != {length}:
                raise ValueError
            values = list(chain.from_iterable(values))
    types = set(map(type, values))  # bool is none of them, though bytes() accepts it
    if len(values) != math.prod(shape) or not types or not types <= {int, float}:
        raise ValueError
    if types == {int}:
        return bytes(values)  # checks the range
    if not all(0 <= value <= 255 and value == int(value) for value in values):  # False for NaN
        raise ValueError
    return bytes(map(int, values))


def _media_type(request: Request) -> str:
    """The type of the body; ``RAW`` for any image as it is."""
    media = request.headers.get("content-type", "").split(";")[0].strip().lower()
    return RAW if media.startswith("image/") or media in RAW_TYPES else media


async def _files(request: Request, field: str, max_images: int) -> list[ImageSource]:
    try:
        form = await _Parser(request, max_images).parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise Problem(INVALID, f"a request may hold at most {max_images} file{'s' * (max_images > 1)}") from None
        raise Problem(MALFORMED, f"the form cannot be read: {error.message}") from None
    try:
        uploads: list[ImageSource] = [
            Upload(value.file.read(), value.filename) for value in form.getlist(field) if isinstance(value, UploadFile)
        ]
    finally:
        await form.close()
    if not uploads:
        raise Problem(INVALID, f"the form has no file in the field '{field}'")
    return uploads


class _Parser(MultiPartParser):
    """Starlette's parser within the limits above; a form that is cut short is an error."""

    spool_max_size = SPOOL_BYTES

    def __init__(self, request: Request, max_files: int) -> None:
        stream = self._checked(request.stream())
        # Names in forms are UTF-8; a declared charset may be one that Python does not know.
        headers = Headers({"Content-Type": _CHARSET.sub("", request.headers["Content-Type"])})
        super().__init__(headers, stream, max_files=max_files, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
        self._ended = False

    def on_headers_finished(self) -> None:
        part = self._current_part
        if part.content_disposition is not None:  # the only file name of some clients
            part.content_disposition = _EXTENDED.sub(b"; filename=", part.content_disposition)
        super().on_headers_finished()

    def on_end(self) -> None:
        self._ended = True

    async def _checked(self, stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self._ended:
            raise MultiPartException("it ends before its last boundary.")


def _one_of_json(body: bytes) -> bytes:
    return _many_of_json(body, 1, None)[0]()


def _many_of_json(body: bytes, max_images: int, size: int | None) -> list[ImageSource]:
    per_image = VALUES_PER_IMAGE + (values_of_pixels(size) if size is not None else 0)
    entries = _entries(load_json(body, VALUES_OVERHEAD + max_images * per_image))
    if not 1 <= len(entries) <= max_images:
        allowed = "one image" if max_images == 1 else f"from 1 to {max_images} images"
        raise Problem(INVALID, f"the JSON body must hold {allowed}")
    return [_image(entry, size, index) for index, entry in enumerate(entries)]


def _entries(value: object) -> list[Any]:
    """The images of a JSON body, not decoded: the one in ``image``, or a list in the form of other servers."""
    if isinstance(value, dict) and not value.get("params"):  # MLflow's clients send empty params
        members = [(name, member) for name, member in value.items() if name != "params"]
        if len(members) == 1:
            [(name, member)] = members
            if name in ("inputs", "instances", "dataframe_records") and isinstance(member, list):
                return member
            if name == "dataframe_split":
                return _of_table(member)
            if name in ("image", "inputs"):
                return [member]
    raise _bad_json_shape()


def _of_table(table: object) -> list[Any]:
    """The entries of a data frame of one column, as ``DataFrame.to_dict(orient="split")`` gives it."""
    rows = table.get("data") if isinstance(table, dict) else None
    if not isinstance(rows, list) or any(not isinstance(row, list) or len(row) != 1 for row in rows):
        raise Problem(INVALID, "dataframe_split must have one column of encoded images in base64, a row for each")
    return [entry for [entry] in rows]


def _image(entry: Any, size: int | None, index: int) -> ImageSource:
    if size is not None and isinstance(entry, list):
        return from_pixels(entry, size, index)
    for name in ("image", "b64"):
        if isinstance(entry, dict) and set(entry) == {name}:
            entry = entry[name]
    if not isinstance(entry, str):
        raise _bad_json_shape()
    return partial(decode_base64, entry)


def _bad_json_shape() -> Problem:
    shapes = '{"image": "..."}, {"inputs": ["..."]} or {"instances": [{"b64": "..."}]}'
    return Problem(INVALID, f"the JSON body must be {shapes} with encoded images in base64")


def decode_base64(text: str) -> bytes:
    """The bytes of a text in base64, or of a data URL."""
    head = _DATA_URL.match(text)
    plain = "".join(text[head.end() if head else 0 :].split()).translate(_URLSAFE).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Problem(UNDECODABLE, "the text of the image is not valid base64") from None
