"""Pages of other origins: a browser sends what they ask for, also to a service on its user's own machine."""

from collections.abc import Collection, Mapping
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from toolkit.serving.problems import CROSS_ORIGIN, Problem

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
PORTS = {"http": 80, "https": 443}


class CrossOriginMiddleware:
    """ASGI middleware that refuses what a page of another origin has a browser send, but for reading.

    A form, or a ``fetch`` without headers of its own, is sent without asking the service first, whether or not
    the page may read the answer. Without keys it would leave predictions and labels in the monitor.

    Parameters
    ----------
    app
        What is protected.
    allowed
        Other origins, such as ``https://app.example``, that may ask; ``*`` is every one.

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
                raise Problem(CROSS_ORIGIN, "pages of another origin may not ask here; see --allow-origin")
        await self.app(scope, receive, send)


def is_cross_origin(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that a page of another origin had it send a request.

    Browsers tell by ``Sec-Fetch-Site``, over plain http from other machines only by ``Origin``. Other clients
    send neither.

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
        theirs = urlsplit(origin)
        here = urlsplit(f"{theirs.scheme}://{headers.get('host', '')}")
        return theirs.scheme not in PORTS or _origin_of(theirs) != _origin_of(here)
    except ValueError:
        return True


def _origin_of(url: SplitResult) -> tuple[str | None, int | None]:
    return url.hostname, url.port or PORTS.get(url.scheme)
