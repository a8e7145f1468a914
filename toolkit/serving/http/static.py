"""The static files of the dashboard and of Swagger UI, under a strict Content-Security-Policy."""

import base64
import hashlib
import re
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path

from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import Response

from toolkit.serving.problems import NOT_FOUND, PROBLEM_TYPES, Problem

FOLDER = Path(__file__).parent.parent / "dashboard"
SWAGGER = files("fastapi_swagger") / "resources"  # Swagger UI as published; the package's code is not used
DASHBOARD = "dashboard.html"
HTML, CSS, SCRIPT = "text/html; charset=utf-8", "text/css; charset=utf-8", "text/javascript; charset=utf-8"

# Name to folder and media type: other names are never opened.
FILES = {
    DASHBOARD: (FOLDER, HTML),
    "dashboard.css": (FOLDER, CSS),
    "dashboard.js": (FOLDER, SCRIPT),
    "components.js": (FOLDER, SCRIPT),
    "icon.svg": (FOLDER, "image/svg+xml"),
    "swagger-ui-bundle.js": (SWAGGER, SCRIPT),
    "swagger-ui.css": (SWAGGER, CSS),
}

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
}
INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def static_page(name: str) -> Response:
    """The response with a static file, one of ``FILES``; 404 for any other name."""
    if name not in FILES:
        raise Problem(NOT_FOUND, "there is no page file of that name")
    folder, media_type = FILES[name]
    return _response((folder / name).read_bytes(), media_type, POLICY)


@cache
def swagger_page(title: str) -> Response:
    """The response with FastAPI's Swagger page, followed by an explanation of each problem type."""
    page = get_swagger_ui_html(
        openapi_url="openapi.json",  # relative, like all URLs here: the service may be mounted below a prefix
        title=escape(title),
        swagger_js_url="pages/swagger-ui-bundle.js",
        swagger_css_url="pages/swagger-ui.css",
        swagger_favicon_url="pages/icon.svg",
        swagger_ui_parameters={"deepLinking": False},  # would take #problem-... for an operation
    )
    html = bytes(page.body).decode().replace("</body>", f"{_problems()}</body>")
    hashes = (
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in INLINE_SCRIPT.findall(html)
    )
    policy = POLICY | {
        "script-src": " ".join(("'self'", *hashes)),
        "img-src": "'self' blob: data:",  # Swagger UI's style sheet holds its icons
    }
    return _response(html.encode(), HTML, policy)


def _problems() -> str:
    entries = "".join(
        f'<section id="problem-{one.slug}"><h3>{one.status} {escape(one.title)}</h3>'
        f"<p><code>{one.slug}</code> {escape(one.advice)}</p></section>\n"
        for one in PROBLEM_TYPES
    )
    introduction = (
        "<p>Every error is a document of type <code>application/problem+json</code> (RFC 9457). Its <code>type</code> "
        "leads to one of the entries below, its <code>request_id</code> is in the access log of the service.</p>"
    )
    return (
        '<div class="swagger-ui"><main id="problems" class="wrapper renderedMarkdown">'
        f"<h2>Problems</h2>{introduction}{entries}</main></div>"
    )


def _response(content: bytes, media_type: str, policy: dict[str, str]) -> Response:
    directives = "; ".join(f"{name} {sources}" for name, sources in policy.items())
    return Response(content, media_type=media_type, headers={"Content-Security-Policy": directives} | HEADERS)
