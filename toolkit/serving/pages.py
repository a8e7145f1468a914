"""The dashboard and the page of addresses: a few files from disk, under headers that let nothing else in."""

from pathlib import Path

from fastapi.responses import Response

from toolkit.serving.problems import NOT_FOUND, Problem

FOLDER = Path(__file__).parent / "dashboard"
DASHBOARD, DOCS = "dashboard.html", "docs.html"

# Each file by its name, with its media type: a name that is not here is not looked for on disk.
FILES = {
    DASHBOARD: "text/html; charset=utf-8",
    DOCS: "text/html; charset=utf-8",
    "look.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "parts.js": "text/javascript; charset=utf-8",
    "docs.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
}


def page(name: str) -> Response:
    """One of the files.

    Raises
    ------
    Problem
        404 when there is none of that name.
    """
    if name not in FILES:
        raise Problem(NOT_FOUND, "the pages have no file of that name")
    return Response((FOLDER / name).read_bytes(), media_type=FILES[name], headers=HEADERS)
