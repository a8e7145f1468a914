"""API keys in ``Authorization: Bearer`` or ``X-API-Key``, compared in constant time."""

import hmac
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from toolkit.serving.problems import KEY_MISSING, KEY_WRONG, Problem


class APIKeyMiddleware:
    """ASGI middleware that requires a key at some paths, before anything of the body is read.

    Parameters
    ----------
    app
        The ASGI application behind it.
    protected_paths
        Path to key; a path may be the pattern of a route, such as ``/models/{name}/infer``.

    Raises
    ------
    Problem
        401 without a key, 403 with a wrong one.
    """

    def __init__(self, app: ASGIApp, protected_paths: Mapping[str, str]) -> None:
        self.app = app
        self.protected_paths = [(compile_path(path)[0], key.encode()) for path, key in protected_paths.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = _path(scope)
            for pattern, key in self.protected_paths:
                if pattern.match(path):
                    require_key(Headers(scope=scope), key)
        await self.app(scope, receive, send)


def require_key(headers: Mapping[str, str], key: bytes) -> None:
    """Check that a request carries a key.

    Parameters
    ----------
    headers
        Headers of the request, names in lower case.
    key
        The key that is required.

    Raises
    ------
    Problem
        401 without a key, 403 with a wrong one.

    Examples
    --------
    >>> require_key({"x-api-key": "open sesame"}, b"open sesame")
    >>> require_key({"authorization": "Bearer open barley"}, b"open sesame")
    Traceback (most recent call last):
        ...
    toolkit.serving.problems.Problem: 403: the key is not the one of this path
    """
    given = _presented_key(headers)
    if given is None:
        raise Problem(
            KEY_MISSING,
            "send the key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'",
            {"WWW-Authenticate": 'Bearer realm="image classifier"'},
        )
    if not hmac.compare_digest(given, key):
        raise Problem(KEY_WRONG, "the key is not the one of this path")


def _path(scope: Scope) -> str:
    """The path below the mount point of the application, as routes see it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if root and path.startswith(root + "/") else path


def _presented_key(headers: Mapping[str, str]) -> bytes | None:
    """The key as the bytes that were sent; headers are Latin-1."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not value.strip():
        value = headers.get("x-api-key", "")
    return value.strip().encode("latin-1", "replace") or None
