"""The access log: an id, a line and a count for each request, and a problem document for each error."""

import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolkit.serving.metrics import ServiceMetrics
from toolkit.serving.problems import Problem, handle

CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that has closed the connection; never sent
MAX_PATH_LENGTH = 200  # characters of a path that are logged
METHODS = frozenset({"GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"})
_VALID_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

logger = logging.getLogger(__name__)


class AccessLogMiddleware:
    """The outermost ASGI middleware: logs and counts each request, and answers what is raised further inside.

    Each response has ``X-Request-ID``, the client's own if it sent a valid one. An exception is answered with a
    problem document, and logged with its traceback unless it is a ``Problem``.

    Parameters
    ----------
    app
        The ASGI application behind it.
    metrics
        Counts requests by route, method and status; paths without a route count as ``other``.
    paths
        Paths that count under their own name also when another middleware refused the request before its route.
    """

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics, paths: Collection[str] = ()) -> None:
        self.app = app
        self.metrics = metrics
        self.paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        request_id = request.state.request_id = _request_id(request.headers)
        started = time.perf_counter()
        status = CLIENT_CLOSED_REQUEST  # until a response begins

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass
        except Exception as error:
            if not isinstance(error, Problem):
                logger.exception("request %s failed", request_id)
            if status == CLIENT_CLOSED_REQUEST:
                await handle(request, error)(scope, receive, send_with_headers)
        finally:
            self._record(request, status, time.perf_counter() - started)

    def _record(self, request: Request, status: int, seconds: float) -> None:
        path = request.url.path
        route = getattr(request.scope.get("route"), "path", path if path in self.paths else "other")
        method = request.method if request.method in METHODS else "other"
        problem = getattr(request.state, "problem", None)
        self.metrics.request(route, method, status, seconds, problem)
        facts = {
            "request_id": request.state.request_id,
            "method": method,
            "path": path[:MAX_PATH_LENGTH],
            "status": status,
            "ms": round(seconds * 1000, 1),
            "version": getattr(request.state, "version", None),
            "problem": problem,
            "client": request.client.host if request.client else None,
        }
        logger.info("request", extra={"request": {name: value for name, value in facts.items() if value is not None}})


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _VALID_ID.fullmatch(given) else secrets.token_hex(8)


class JsonOrTextFormatter(logging.Formatter):
    """Formatter of log records as JSON lines, or as text for a terminal.

    Parameters
    ----------
    as_json
        True for JSON.
    """

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = getattr(record, "request", {})
        moment = datetime.fromtimestamp(record.created, UTC)
        traceback = self.formatException(record.exc_info) if record.exc_info else None
        if self.as_json:
            values = {"time": moment.isoformat(timespec="milliseconds"), "level": record.levelname.lower()}
            values |= {"message": record.getMessage(), **facts} | ({"traceback": traceback} if traceback else {})
            return json.dumps(values)
        text = _readable(facts) if facts else f"{record.levelname.lower()}: {record.getMessage()}"
        return f"{moment.astimezone():%H:%M:%S} {text}" + (f"\n{traceback}" if traceback else "")


def _readable(facts: dict[str, Any]) -> str:
    path = facts["path"].encode("unicode_escape").decode()  # no control characters on a terminal
    extras = [f"v{facts['version']}"] if "version" in facts else []
    extras += [facts["problem"]] if "problem" in facts else []
    return " ".join([facts["method"], path, str(facts["status"]), f"{facts['ms']} ms", *extras, facts["request_id"]])


def log_to_stderr() -> None:
    """Set up the logging of a process that only serves; called by ``main``, never by an import."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonOrTextFormatter(as_json=not sys.stderr.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("toolkit.serving", "serve_model"):
        logging.getLogger(name).setLevel(logging.INFO)
