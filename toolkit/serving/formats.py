"""The pictures in a request: a multipart form, a raw body, or JSON with base64.

What a client declares about a picture (its file name, its part's type) is never used: the content
decides. Base64 is undone by the returned function, which runs where pictures are decoded too.
"""

import base64
import binascii
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from typing import Any

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from toolkit.serving.problems import INVALID, MALFORMED, MEDIA, UNDECODABLE, Problem

Read = Callable[[], bytes]  # gives the bytes of one encoded picture, or raises a Problem

FORM, JSON = "multipart/form-data", "application/json"
RAW = ("application/octet-stream", "")  # besides image/*; no type at all is taken for a raw picture
MOST_FIELDS = 16  # of a form, besides its files
LARGEST_FIELD = 4096  # bytes
KEPT_IN_MEMORY = 2**40  # bytes of a file part: always, since the body's limit already holds

_PICTURE_JSON = {
    "type": "object",
    "required": ["image"],
    "additionalProperties": False,
    "properties": {"image": {"type": "string", "format": "byte", "description": "the encoded picture in base64"}},
}


def _form(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"schema": {"type": "object", "required": [name], "properties": {name: schema}}}


_FILE = {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, BMP, GIF or TIFF"}

# How the two functions below look in the OpenAPI description, which cannot be derived from their code.
PICTURE_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        FORM: _form("file", _FILE),
        "image/*": {"schema": _FILE},
        "application/octet-stream": {"schema": _FILE},
        JSON: {"schema": _PICTURE_JSON},
    },
}


def pictures_body(most: int) -> dict[str, Any]:
    """The body of a batch of at most ``most`` pictures."""
    files = {"type": "array", "items": _FILE, "minItems": 1, "maxItems": most}
    return {"required": True, "content": {FORM: _form("files", files)}}


async def read_picture(request: Request) -> Read:
    """The one picture of a request.

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
        return partial(_from_json, body)
    if media.startswith("image/") or media in RAW:
        return partial(bytes, body)
    raise Problem(
        MEDIA, "send a multipart form with the field 'file', a raw picture as image/*, or JSON with the field 'image'"
    )


async def read_pictures(request: Request, most: int) -> list[Read]:
    """The pictures of a multipart request, at most so many, in the order they were sent."""
    if _media_type(request) != FORM:
        raise Problem(MEDIA, "send a multipart form with the field 'files', once for each picture")
    return await _files(request, "files", most)


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


async def _files(request: Request, field: str, most: int) -> list[Read]:
    form = await _parse(request, most)
    try:
        contents = [value.file.read() for value in form.getlist(field) if isinstance(value, UploadFile)]
    finally:
        await form.close()
    if not contents:
        raise Problem(INVALID, f"the form has no file in the field '{field}'")
    return [partial(bytes, content) for content in contents]


async def _parse(request: Request, most: int) -> FormData:
    try:
        return await _Parser(request, most).parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise Problem(INVALID, f"a request may hold at most {most} file{'s' * (most > 1)}") from None
        raise Problem(MALFORMED, f"the form cannot be read: {error.message}") from None


class _Parser(MultiPartParser):
    """Starlette's, within our limits, and not content with a form that was cut short."""

    spool_max_size = KEPT_IN_MEMORY

    def __init__(self, request: Request, most: int) -> None:
        stream = self._whole(request.stream())
        super().__init__(request.headers, stream, max_files=most, max_fields=MOST_FIELDS, max_part_size=LARGEST_FIELD)
        self._ended = False

    def on_end(self) -> None:
        self._ended = True

    async def _whole(self, stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self._ended:
            raise MultiPartException("it ends before its last boundary.")


def _from_json(body: bytes) -> bytes:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(MALFORMED, "the body is not valid JSON") from None
    if not isinstance(value, dict) or set(value) != {"image"} or not isinstance(value["image"], str):
        raise Problem(INVALID, 'the JSON body must be {"image": "..."} with the encoded picture in base64')
    try:
        return base64.b64decode("".join(value["image"].split()), validate=True)
    except (binascii.Error, ValueError):
        raise Problem(UNDECODABLE, "the field 'image' is not valid base64") from None
