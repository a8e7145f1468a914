"""Requests that a browser sends for pages of other origins, also to a service on its user's own machine."""

from collections.abc import Collection, Mapping
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from toolkit.serving.problems import CROSS_ORIGIN, Problem

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
PORTS = {"http": 80, "https": 443}


class CrossOriginMiddleware:
    """ASGI middleware that refuses requests of pages of other origins, except reads.

    A browser sends a form, or a ``fetch`` without extra headers, without a preflight request, whether or not the
    page may read the answer. In a service without keys it would leave predictions and labels in the monitor.

    Parameters
    ----------
    app
        The ASGI application behind it.
    allowed
        Other origins that are accepted, such as ``https://app.example``; ``*`` accepts all.

    Raises
    ------
    Problem
        403.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str] = ()) -> None:
        self.app = app
        self.allowed = frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in SAFE_METHODS:
            headers = Headers(scope=scope)
            if is_cross_origin(headers) and not self.allowed & {"*", headers.get("origin")}:
                raise Problem(CROSS_ORIGIN, "pages of another origin may not send requests here; see --allow-origin")
        await self.app(scope, receive, send)


def is_cross_origin(headers: Mapping[str, str]) -> bool:
    """Whether a browser sent a request for a page of another origin.

    Browsers send ``Sec-Fetch-Site``; over plain http, to other machines, only ``Origin``. Other clients send neither.

    Parameters
    ----------
    headers
        Headers of the request, names in lower case.

    Examples
    --------
    >>> is_cross_origin({"origin": "https://evil.example", "host": "localhost:8000"})
    True
    >>> is_cross_origin({"origin": "http://localhost:8000", "host": "localhost:8000"})
    False
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site not in ("same-origin", "none")
    if origin is None:
        return False
    try:
        page = urlsplit(origin)
        here = urlsplit(f"{page.scheme}://{headers.get('host', '')}")
        return page.scheme not in PORTS or _origin_of(page) != _origin_of(here)
    except ValueError:
        return True


def _origin_of(url: SplitResult) -> tuple[str | None, int | None]:
    return url.hostname, url.port or PORTS.get(url.scheme)
