"""The images in a request: a multipart form, a raw body, or JSON with base64 or pixels.

What a client declares about an image (its file name, its part's type) decides nothing: the content
does. The file name of an upload is handed on as a text. Base64 is undone by the returned function, which
runs where images are decoded too.
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
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from toolkit.serving.inference.result import ImageSource, Upload
from toolkit.serving.problems import INVALID, MALFORMED, UNDECODABLE, UNSUPPORTED_MEDIA_TYPE, Problem

T = TypeVar("T")

FORM, JSON = "multipart/form-data", "application/json"
# Besides image/*: SageMaker's clients say x-image; no type at all is taken for a raw image.
RAW = ("application/octet-stream", "application/x-image", "")
MAX_FIELDS = 16  # of a form, besides its files
MAX_FIELD_BYTES = 4096  # bytes
MEMORY_BYTES = 2**40  # bytes of a file part: always, since the body's limit already holds
ONE_IMAGE = "(base64)"  # its place in an example
VALUES_PER_IMAGE = 8  # of JSON, at most: braces, brackets and commas around the base64 of one image
VALUES_OVERHEAD = 16  # of all images, at most: those of a data frame
# What Python makes of JSON takes up to 30 times the text's size, and it makes one at a time however many threads ask.
_JSON_THREAD = ThreadPoolExecutor(1, "unpack")
_URLSAFE = str.maketrans("-_", "+/")
_CHARSET = re.compile(r""";\s*charset\s*=\s*("[^"]*"|[^;]*)""", re.IGNORECASE)
_EXTENDED = re.compile(rb""";\s*filename\*[0-9*]*\s*=""", re.IGNORECASE)
_DATA_URL = re.compile(r"\s*data:[^,]{0,200};base64,", re.IGNORECASE)


def _with(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": [name], "properties": {name: schema}}


def _list(schema: dict[str, Any], most: int | None = None) -> dict[str, Any]:
    return {"type": "array", "items": schema, "minItems": 1} | ({"maxItems": most} if most else {})


_FILE = {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, BMP, GIF or TIFF"}
_BASE64 = {"type": "string", "format": "byte", "description": "the encoded image in base64, or a data URL of it"}
_B64 = _with("b64", _BASE64)
_ENTRY = {"anyOf": [_BASE64, _B64, _with("image", {"anyOf": [_BASE64, _B64]})]}
_PIXELS = _list(_list(_list({"type": "integer", "minimum": 0, "maximum": 255}))) | {
    "description": "the rows of an RGB image of the model's own size"
}


def _json(entry: dict[str, Any], most: int | None) -> dict[str, Any]:
    several = _list(entry, most)
    shapes = [_with("image", _BASE64), _with("inputs", {"anyOf": [several, entry]}), _with("instances", several)]
    return {"schema": {"anyOf": shapes}, "example": {"image": ONE_IMAGE} if most == 1 else {"inputs": [ONE_IMAGE]}}


# How the functions below look in the OpenAPI description, which cannot be derived from their code.
IMAGE_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        FORM: {"schema": _with("file", _FILE)},
        "image/*": {"schema": _FILE},
        "application/octet-stream": {"schema": _FILE},
        JSON: _json(_ENTRY, 1),
    },
}


def images_body(most: int | None = None) -> dict[str, Any]:
    """The body of a batch, of at most ``most`` images where that is known."""
    form = {"schema": _with("files", _list(_FILE, most))}
    return {"required": True, "content": {FORM: form, JSON: _json(_ENTRY, most)}}


def pixels_body() -> dict[str, Any]:
    """The body of a batch where pixels, and one raw image, are taken as well."""
    body = images_body()
    content = body["content"] | {"image/*": {"schema": _FILE}, JSON: _json({"anyOf": [_ENTRY, _PIXELS]}, None)}
    return body | {"content": content}


async def parse_image(request: Request) -> ImageSource:
    """The one image of a request.

    Raises
    ------
    Problem
        400 for a broken body, 415 for one of an unknown type, 422 when the field is missing.
    """
    media = _media_type(request)
    if media == FORM:
        return (await _files(request, "file", most=1))[0]
    body = await request.body()
    if media == JSON:
        return partial(_one_of_json, body)
    if _is_raw(media):
        return partial(bytes, body)
    raise Problem(
        UNSUPPORTED_MEDIA_TYPE,
        "send a multipart form with the field 'file', a raw image as image/*, or JSON with the field 'image'",
    )


async def parse_images(request: Request, most: int, size: int | None = None) -> list[ImageSource]:
    """The images of a request, at most so many, in the order they were sent.

    Parameters
    ----------
    request
        A form, or JSON with a list.
    most
        Images that are taken.
    size
        Given where one raw image, and JSON with pixels of this height and width, are taken as well.

    Raises
    ------
    Problem
        400 for a broken body, 415 for one of an unknown type, 422 when it holds no or too many images, or a list
        that is none.
    """
    media = _media_type(request)
    if media == FORM:
        return await _files(request, "files", most)
    if media == JSON:
        return await run_in_json_thread(partial(_many_of_json, await request.body(), most, size))
    if size is not None and _is_raw(media):
        return [partial(bytes, await request.body())]
    raise Problem(
        UNSUPPORTED_MEDIA_TYPE,
        "send a multipart form with the field 'files', once for each image, or JSON with a list in 'inputs'",
    )


def content_length_or(request: Request, most: int) -> int:
    """Bytes of a request's body: as its head says, or as many as are allowed."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() else most


def values_of_pixels(size: int) -> int:
    """Values that one image of this height and width has in JSON, at most: a list and three numbers a pixel."""
    return 4 * size * (size + 1)


async def run_in_json_thread(work: Callable[[], T]) -> T:
    """Run what loads a large JSON in a thread, one such work at a time, so that one is in memory."""
    return await asyncio.get_running_loop().run_in_executor(_JSON_THREAD, work)


def load_json(body: bytes, most: int) -> Any:
    """JSON with at most so many values, lists and objects; with more, the text is refused unread.

    Raises
    ------
    Problem
        400 when it is no JSON, or holds too much.

    Examples
    --------
    >>> load_json(b'{"inputs": [1, 2]}', 3)
    {'inputs': [1, 2]}
    >>> load_json(b'{"inputs": [1, 2, []]}', 3)
    Traceback (most recent call last):
        ...
    toolkit.serving.problems.Problem: 400: the JSON holds more values than the images of a request can have
    """
    if body.count(b"[") + body.count(b"{") + body.count(b",") > most:
        raise Problem(MALFORMED, "the JSON holds more values than the images of a request can have")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(MALFORMED, "the body is not valid JSON") from None


def from_base64(text: str) -> ImageSource:
    """The image in base64 or in a data URL, which is undone when the image is read."""
    return partial(_decoded, text)


def from_pixels(values: object, size: int, index: int = 0) -> ImageSource:
    """An image of the size that the model wants, from its pixels.

    It becomes a file without loss, a stored PNG, so that it takes the same way as any other image.

    Parameters
    ----------
    values
        Whole numbers from 0 to 255, floats among them: (size, size, 3) as nested lists, or flat in the same order.
    size
        Height and width in pixels.
    index
        Place of the image in the request, for the message.

    Raises
    ------
    Problem
        422 for any other list.

    Examples
    --------
    >>> from_pixels([255, 0, 0] * 4, size=2)()[:4]
    b'\\x89PNG'
    """
    try:
        return partial(_as_png, _bytes_of(values, (size, size, 3)), size)
    except ValueError:
        detail = f"image {index} must be {size} x {size} x 3 whole numbers from 0 to 255, in nested lists or in one"
        raise Problem(INVALID, detail) from None


def from_raw_pixels(pixels: bytes, size: int) -> ImageSource:
    """An image of the size that the model wants, from the ``size * size * 3`` bytes of its pixels."""
    return partial(_as_png, pixels, size)


def _bytes_of(values: object, shape: tuple[int, ...]) -> bytes:
    """What is in nested lists of this shape, or in a flat one; ``bytes`` itself holds the numbers against 0..255."""
    if not isinstance(values, list):
        raise ValueError
    if len(values) == shape[0]:
        for length in shape[1:]:
            if set(map(type, values)) != {list} or set(map(len, values)) != {length}:
                raise ValueError
            values = list(chain.from_iterable(values))
    kinds = set(map(type, values))  # not bool, which bytes would take
    if len(values) != math.prod(shape) or not kinds or not kinds <= {int, float}:
        raise ValueError
    if kinds == {int}:
        return bytes(values)
    if not all(0 <= value <= 255 and value == int(value) for value in values):  # NaN is in no range
        raise ValueError
    return bytes(map(int, values))


def _as_png(pixels: bytes, size: int) -> bytes:
    file = io.BytesIO()
    Image.frombytes("RGB", (size, size), pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def _is_raw(media: str) -> bool:
    return media.startswith("image/") or media in RAW


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


async def _files(request: Request, field: str, most: int) -> list[ImageSource]:
    form = await _parse(request, most)
    try:
        uploads: list[ImageSource] = [
            Upload(value.file.read(), value.filename) for value in form.getlist(field) if isinstance(value, UploadFile)
        ]
    finally:
        await form.close()
    if not uploads:
        raise Problem(INVALID, f"the form has no file in the field '{field}'")
    return uploads


async def _parse(request: Request, most: int) -> FormData:
    try:
        return await _Parser(request, most).parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise Problem(INVALID, f"a request may hold at most {most} file{'s' * (most > 1)}") from None
        raise Problem(MALFORMED, f"the form cannot be read: {error.message}") from None


class _Parser(MultiPartParser):
    """Starlette's, within our limits, and not content with a form that was cut short."""

    spool_max_size = MEMORY_BYTES

    def __init__(self, request: Request, most: int) -> None:
        stream = self._whole(request.stream())
        # Names are UTF-8 by the rules of forms, whatever charset is named: it may be one that decodes nothing.
        headers = Headers({"Content-Type": _CHARSET.sub("", request.headers["Content-Type"])})
        super().__init__(headers, stream, max_files=most, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
        self._ended = False

    def on_headers_finished(self) -> None:
        part = self._current_part
        if part.content_disposition is not None:  # some clients send no other name of the file
            part.content_disposition = _EXTENDED.sub(b"; filename=", part.content_disposition)
        super().on_headers_finished()

    def on_end(self) -> None:
        self._ended = True

    async def _whole(self, stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self._ended:
            raise MultiPartException("it ends before its last boundary.")


def _one_of_json(body: bytes) -> bytes:
    reads = _many_of_json(body, 1, None)
    return reads[0]()


def _many_of_json(body: bytes, most: int, size: int | None) -> list[ImageSource]:
    a_image = VALUES_PER_IMAGE + (values_of_pixels(size) if size is not None else 0)
    entries = _entries(load_json(body, VALUES_OVERHEAD + most * a_image))
    if not 1 <= len(entries) <= most:
        allowed = "one image" if most == 1 else f"from 1 to {most} images"
        raise Problem(INVALID, f"the JSON body must hold {allowed}")
    return [_image(entry, size, index) for index, entry in enumerate(entries)]


def _entries(value: object) -> list[Any]:
    """The images of a JSON body as they stand there: one in ``image``, or a list as other servers take it."""
    if isinstance(value, dict) and not value.get("params"):  # MLflow's clients send an empty one
        named = [(name, found) for name, found in value.items() if name != "params"]
        if len(named) == 1:
            [(name, found)] = named
            if name in ("inputs", "instances", "dataframe_records") and isinstance(found, list):
                return found
            if name == "dataframe_split":
                return _of_table(found)
            if name in ("image", "inputs"):
                return [found]
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
    return from_base64(entry)


def _bad_json_shape() -> Problem:
    shapes = '{"image": "..."}, {"inputs": ["..."]} or {"instances": [{"b64": "..."}]}'
    return Problem(INVALID, f"the JSON body must be {shapes} with encoded images in base64")


def _decoded(text: str) -> bytes:
    head = _DATA_URL.match(text)
    plain = "".join(text[head.end() if head else 0 :].split()).translate(_URLSAFE).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Problem(UNDECODABLE, "the text of the image is not valid base64") from None
