"""The ASGI middleware of the service: all that happens to a request before and after its route."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field

from fastapi import Request, Response
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolkit.serving.http.access_control import require_key, require_own_origin
from toolkit.serving.http.body_stream import DEFAULT_TIMEOUTS, BodyStream, Timeouts
from toolkit.serving.metrics import ServiceMetrics
from toolkit.serving.problems import Problem, handle

CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that has closed the connection; never sent
MAX_PATH_LENGTH = 200  # characters of a path that are logged
METHODS = frozenset({"GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"})
READS = frozenset({"GET", "HEAD", "OPTIONS"})
_VALID_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RequestRules:
    """Requirements that a request meets before its route sees it.

    Parameters
    ----------
    max_body_bytes, timeouts
        Limits of a body.
    keys
        Path to key; a path may be the pattern of a route, such as ``/models/{name}/infer``.
    origins
        Other origins whose pages may send requests that are no reads; None does not check them.
    image_paths
        Paths to which each POST request brings at least one image.
    require_slot
        Raises a problem if no image can be accepted. The routes of images would do so as well, but only after half a
        millisecond of routing, which an overloaded service cannot spare.
    """

    max_body_bytes: int
    timeouts: Timeouts = DEFAULT_TIMEOUTS
    keys: Mapping[str, str] = field(default_factory=dict)
    origins: Collection[str] | None = None
    image_paths: Collection[str] = ()
    require_slot: Callable[[], None] = lambda: None


class ServiceMiddleware:
    """ASGI middleware that checks each request, limits its body, answers its errors, and logs and counts it.

    A request without the right key or from a page of another origin, with too large a body, or with an image when the
    queue is full, is refused by its headers. One whose client disconnects is cancelled. HEAD is answered like GET,
    without the body. Each response has ``X-Request-ID``, the client's own if it sent a valid one. An exception is
    answered with a problem document, and logged with its traceback unless it is a ``Problem``.

    Parameters
    ----------
    app
        The ASGI application behind it.
    metrics
        Counts requests by route, method and status; paths without a route count as ``other``.
    rules
        What is required of requests.
    paths
        Paths that count under their own name also when the request was refused before its route.
    """

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics, rules: RequestRules, paths: Collection[str] = ()) -> None:
        self.app = app
        self.metrics = metrics
        self.rules = rules
        self.paths = frozenset(paths)
        self._keys = [(compile_path(path)[0], key.encode()) for path, key in rules.keys.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request, headers, method = Request(scope), MutableHeaders(scope=scope), scope["method"]
        given = headers.get("x-request-id", "")
        request.state.request_id = given if _VALID_ID.fullmatch(given) else secrets.token_hex(8)
        body = BodyStream(receive, self.rules.max_body_bytes, self.rules.timeouts)
        response = _Response(send, body, request.state.request_id, has_body=method != "HEAD")
        try:
            self._check_access(scope, headers)
            request.state.max_body_bytes = await body.open(headers)
            if method == "POST" and scope["path"] in self.rules.image_paths:
                self.rules.require_slot()
            if method == "HEAD":
                scope["method"] = "GET"
            await self.app(scope, body.receive, response.send)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:
            if not body.cancelled_by_disconnect():
                raise
        except Exception as error:
            if not isinstance(error, Problem):
                logger.exception("request %s failed", request.state.request_id)
            if not body.response_started:
                await handle(request, error)(scope, receive, response.send)
        finally:
            body.close()
            self._record(request, method, response.status, time.perf_counter() - started)

    def _check_access(self, scope: Scope, headers: Mapping[str, str]) -> None:
        if self.rules.origins is not None and scope["method"] not in READS:
            require_own_origin(headers, self.rules.origins)
        path, root = str(scope["path"]), str(scope.get("root_path", ""))
        if root and path.startswith(root + "/"):  # of a mounted application, whose routes see the rest
            path = path.removeprefix(root)
        for pattern, key in self._keys:
            if pattern.match(path):
                require_key(headers, key)

    def _record(self, request: Request, method: str, status: int, seconds: float) -> None:
        path = request.url.path
        route = getattr(request.scope.get("route"), "path", path if path in self.paths else "other")
        method = method if method in METHODS else "other"
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


class DirectEndpoints:
    """ASGI middleware that answers the POST requests to some paths itself, past the layers and the router behind it.

    Parameters
    ----------
    app
        The ASGI application for all other requests.
    endpoints
        Path to function that makes the response, or raises what ``ServiceMiddleware`` answers.
    """

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, Callable[[Request], Awaitable[Response]]]) -> None:
        self.app = app
        self.endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self.endpoints.get(scope["path"]) if scope.get("method") == "POST" else None
        answer: ASGIApp = await endpoint(Request(scope, receive)) if endpoint else self.app
        await answer(scope, receive, send)


class _Response:
    """The response to one request, as it is sent: with the service's headers, and without a body for HEAD."""

    def __init__(self, send: Send, body: BodyStream, request_id: str, *, has_body: bool) -> None:
        self.status = CLIENT_CLOSED_REQUEST  # until it begins
        self._send, self._body, self._request_id, self._has_body = send, body, request_id, has_body

    async def send(self, message: Message) -> None:
        self._body.response_started = True
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._request_id
            headers["X-Content-Type-Options"] = "nosniff"
        elif not self._has_body:
            message = {**message, "body": b""}
        await self._send(message)
