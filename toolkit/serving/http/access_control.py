"""Access to the service: API keys, and requests that a browser sends for pages of other origins."""

import hmac
from collections.abc import Collection, Mapping
from urllib.parse import SplitResult, urlsplit

from toolkit.serving.problems import CROSS_ORIGIN, KEY_MISSING, KEY_WRONG, Problem

PORTS = {"http": 80, "https": 443}


def require_key(headers: Mapping[str, str], key: bytes) -> None:
    """Raise a 401 unless ``Authorization: Bearer`` or ``X-API-Key`` has a key, and a 403 unless it is this one.

    >>> require_key({"x-api-key": "open sesame"}, b"open sesame")
    >>> require_key({"authorization": "Bearer open barley"}, b"open sesame")
    Traceback (most recent call last):
        ...
    toolkit.serving.problems.Problem: 403: the key is not the one of this path
    """
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not value.strip():
        value = headers.get("x-api-key", "")
    given = value.strip().encode("latin-1", "replace")  # the bytes that were sent: headers are Latin-1
    if not given:
        raise Problem(
            KEY_MISSING,
            "send the key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'",
            {"WWW-Authenticate": 'Bearer realm="image classifier"'},
        )
    if not hmac.compare_digest(given, key):
        raise Problem(KEY_WRONG, "the key is not the one of this path")


def require_own_origin(headers: Mapping[str, str], allowed: Collection[str]) -> None:
    """Raise a 403 for a request of a page of another origin that is not allowed; ``*`` allows all.

    A browser sends a form, or a ``fetch`` without extra headers, without a preflight request, whether or not the
    page may read the answer. In a service without keys it would leave predictions and labels in the monitor.

    Browsers send ``Sec-Fetch-Site``; over plain http, to other machines, only ``Origin``. Other clients send neither.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site in ("same-origin", "none") or (site is None and (origin is None or _is_own(origin, headers))):
        return
    if not {"*", origin} & {*allowed}:
        raise Problem(CROSS_ORIGIN, "pages of another origin may not send requests here; see --allow-origin")


def _is_own(origin: str, headers: Mapping[str, str]) -> bool:
    try:
        page = urlsplit(origin)
        here = urlsplit(f"{page.scheme}://{headers.get('host', '')}")
        return page.scheme in PORTS and _host_and_port(page) == _host_and_port(here)
    except ValueError:
        return False


def _host_and_port(url: SplitResult) -> tuple[str | None, int | None]:
    return url.hostname, url.port or PORTS.get(url.scheme)
