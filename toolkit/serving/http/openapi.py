"""What ``/openapi.json`` says beyond what can be derived from the code of the routes."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from toolkit.serving.http.request_body import PICTURE_BODY, pictures_body
from toolkit.serving.problems import BODY_TOO_LARGE, KEY_MISSING, KEY_WRONG, KINDS, MEDIA_TYPE, Kind

_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_RETRY = {"Retry-After": {"description": "seconds until asking again makes sense", "schema": {"type": "integer"}}}
_REQUEST_ID = {"X-Request-ID": {"description": "names the request in the log", "schema": {"type": "string"}}}


def refusals(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that may answer with these problems."""
    found: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        entry = found.setdefault(
            kind.status,
            {
                "description": "",
                "headers": _REQUEST_ID | (_RETRY if kind.status == 503 else {}),
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
            },
        )
        entry["description"] = "; ".join(filter(None, [entry["description"], kind.title]))
    return found


def describe(app: FastAPI, guarded: Iterable[str], most_pictures: int) -> dict[str, Any]:
    """The whole description.

    Parameters
    ----------
    guarded
        Addresses that ask for a key.
    most_pictures
        Of one batch.
    """
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    paths = schema["paths"]
    paths["/predict"]["post"]["requestBody"] = PICTURE_BODY
    paths["/predict/batch"]["post"]["requestBody"] = pictures_body(most_pictures)
    for path in paths.values():
        for method, operation in path.items():
            if method == "post":
                operation["responses"] |= {str(key): value for key, value in refusals(BODY_TOO_LARGE).items()
                                           if str(key) not in operation["responses"]}  # fmt: skip
    for address in guarded:
        for operation in paths[address].values():
            operation["security"] = [{name: []} for name in _KEYS]
            operation["responses"] |= {str(key): value for key, value in refusals(KEY_MISSING, KEY_WRONG).items()}
    if guarded:
        schema["components"]["securitySchemes"] = _KEYS
    schema["x-problems"] = [{"slug": kind.slug, "status": kind.status, "title": kind.title} for kind in KINDS]
    return schema
