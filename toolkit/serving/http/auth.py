"""Who may ask: keys in ``Authorization: Bearer`` or ``X-API-Key``, compared in constant time."""

import hmac
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from toolkit.serving.problems import KEY_MISSING, KEY_WRONG, Problem


class APIKeyMiddleware:
    """ASGI middleware that asks for a key at some addresses, before anything of the body is read.

    Parameters
    ----------
    app
        What is protected.
    guarded
        Address to key; an address may be a pattern of a route, such as ``/models/{name}/infer``.
    """

    def __init__(self, app: ASGIApp, guarded: Mapping[str, str]) -> None:
        self.app = app
        self.protected_paths = [(compile_path(path)[0], key.encode()) for path, key in guarded.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = _path(scope)
            for pattern, key in self.protected_paths:
                if pattern.match(path):
                    require_key(Headers(scope=scope), key)
        await self.app(scope, receive, send)


def require_key(headers: Mapping[str, str], key: bytes) -> None:
    """Let a request pass that carries ``key``.

    Raises
    ------
    Problem
        401 when the request carries no key, 403 when it carries another.

    Examples
    --------
    >>> require_key({"x-api-key": "open sesame"}, b"open sesame")
    >>> require_key({"authorization": "Bearer open barley"}, b"open sesame")
    Traceback (most recent call last):
        ...
    toolkit.serving.problems.Problem: 403: the key is not the one that this address asks for
    """
    given = _presented_key(headers)
    if given is None:
        raise Problem(
            KEY_MISSING,
            "send the key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'",
            {"WWW-Authenticate": 'Bearer realm="image classifier"'},
        )
    if not hmac.compare_digest(given, key):
        raise Problem(KEY_WRONG, "the key is not the one that this address asks for")


def _path(scope: Scope) -> str:
    """The address below the place where the application is mounted, as the routes see it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if root and path.startswith(root + "/") else path


def _presented_key(headers: Mapping[str, str]) -> bytes | None:
    """The key as the bytes that were sent: headers are text in Latin-1 by definition."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not value.strip():
        value = headers.get("x-api-key", "")
    return value.strip().encode("latin-1", "replace") or None
