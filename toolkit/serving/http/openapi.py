"""The OpenAPI description, with what FastAPI cannot derive from the routes: bodies, errors and keys."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from toolkit.serving.http.request_body import FORM, JSON, RAW
from toolkit.serving.problems import BODY_TOO_LARGE, KEY_MISSING, KEY_WRONG, MEDIA_TYPE, PROBLEM_TYPES, ProblemType

ONE_IMAGE = "(base64)"  # placeholder in examples
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_RETRY = {"Retry-After": {"description": "seconds after which to try again", "schema": {"type": "integer"}}}
_REQUEST_ID = {"X-Request-ID": {"description": "names the request in the log", "schema": {"type": "string"}}}


def _object(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": [name], "properties": {name: schema}}


def _list(schema: dict[str, Any], max_items: int | None = None) -> dict[str, Any]:
    return {"type": "array", "items": schema, "minItems": 1} | ({"maxItems": max_items} if max_items else {})


_FILE = {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, BMP, GIF or TIFF"}
_BASE64 = {"type": "string", "format": "byte", "description": "the encoded image in base64, or a data URL of it"}
_B64 = _object("b64", _BASE64)
_ENTRY = {"anyOf": [_BASE64, _B64, _object("image", {"anyOf": [_BASE64, _B64]})]}
_PIXELS = _list(_list(_list({"type": "integer", "minimum": 0, "maximum": 255}))) | {
    "description": "the rows of an RGB image of the model's own size"
}


def _json(entry: dict[str, Any], max_images: int | None) -> dict[str, Any]:
    several = _list(entry, max_images)
    shapes = [_object("image", _BASE64), _object("inputs", {"anyOf": [several, entry]}), _object("instances", several)]
    return {
        "schema": {"anyOf": shapes},
        "example": {"image": ONE_IMAGE} if max_images == 1 else {"inputs": [ONE_IMAGE]},
    }


# What parse_image and parse_images accept, for the OpenAPI description.
IMAGE_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        FORM: {"schema": _object("file", _FILE)},
        "image/*": {"schema": _FILE},
        RAW: {"schema": _FILE},
        JSON: _json(_ENTRY, 1),
    },
}


def images_body(max_images: int | None = None) -> dict[str, Any]:
    """The body of a batch, for the OpenAPI description; ``max_images`` where it is known."""
    form = {"schema": _object("files", _list(_FILE, max_images))}
    return {"required": True, "content": {FORM: form, JSON: _json(_ENTRY, max_images)}}


def pixels_body() -> dict[str, Any]:
    """The body of a batch that may also be pixels or one raw image, for the OpenAPI description."""
    body = images_body()
    content = body["content"] | {"image/*": {"schema": _FILE}, JSON: _json({"anyOf": [_ENTRY, _PIXELS]}, None)}
    return body | {"content": content}


def error_responses(*types: ProblemType) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that may raise these problems, for FastAPI."""
    found: dict[int | str, dict[str, Any]] = {}
    for problem_type in types:
        entry = found.setdefault(
            str(problem_type.status),
            {
                "description": "",
                "headers": _REQUEST_ID | (_RETRY if problem_type.status == 503 else {}),
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
            },
        )
        entry["description"] = "; ".join(filter(None, [entry["description"], problem_type.title]))
    return found


def build_openapi(app: FastAPI, protected_paths: Iterable[str], max_images: int) -> dict[str, Any]:
    """The OpenAPI description of the application; ``protected_paths`` require a key, ``max_images`` limits a batch."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    paths = schema["paths"]
    paths["/predict"]["post"]["requestBody"] = IMAGE_BODY
    paths["/predict/batch"]["post"]["requestBody"] = images_body(max_images)
    for path in paths.values():
        for method, operation in path.items():
            if method == "post":
                operation["responses"] = error_responses(BODY_TOO_LARGE) | operation["responses"]
    for path in protected_paths:
        for operation in paths[path].values():
            operation["security"] = [{name: []} for name in _KEYS]
            operation["responses"] |= error_responses(KEY_MISSING, KEY_WRONG)
    if protected_paths:
        schema["components"]["securitySchemes"] = _KEYS
    schema["x-problems"] = [
        {"slug": problem_type.slug, "status": problem_type.status, "title": problem_type.title}
        for problem_type in PROBLEM_TYPES
    ]
    return schema
