"""The OpenAPI description, with what FastAPI cannot derive from the routes: bodies, errors and keys."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from toolkit.serving.http.request_body import IMAGE_BODY, images_body
from toolkit.serving.problems import BODY_TOO_LARGE, KEY_MISSING, KEY_WRONG, MEDIA_TYPE, PROBLEM_TYPES, ProblemType

_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_RETRY = {"Retry-After": {"description": "seconds after which to try again", "schema": {"type": "integer"}}}
_REQUEST_ID = {"X-Request-ID": {"description": "names the request in the log", "schema": {"type": "string"}}}


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
