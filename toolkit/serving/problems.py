"""Every error of the service as one shape, a problem document (RFC 9457), out of one list of kinds.

The ``type`` of a document is a relative address, ``/docs#problem-...``, where a person finds the
kind explained. No document holds a traceback, a path of this machine or what the client sent.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from toolkit.errors import ImageTooLarge, ToolkitError, UndecodableImage, UnsupportedImage

MEDIA_TYPE = "application/problem+json"
WITH_ERROR = re.compile(r"/(v2|ping|invocations|version)(/|$)")  # addresses of other protocols


@dataclass(frozen=True)
class Kind:
    """One thing that can go wrong: its name in addresses and figures, its status, its title."""

    slug: str
    status: int
    title: str

    @property
    def type(self) -> str:
        """The address that tells what it means."""
        return f"/docs#problem-{self.slug}"


NOT_HTTP = Kind("not-http", 400, "What was sent is no HTTP request")
MALFORMED = Kind("malformed-body", 400, "The body of the request cannot be read")
UNDECODABLE = Kind("undecodable-picture", 400, "The picture cannot be decoded")
KEY_MISSING = Kind("key-missing", 401, "A key is needed")
KEY_WRONG = Kind("key-wrong", 403, "The key is not accepted here")
CROSS_ORIGIN = Kind("cross-origin", 403, "Pages of other origins may not ask here")
NOT_FOUND = Kind("not-found", 404, "There is nothing at this address")
UNKNOWN_PREDICTION = Kind("unknown-prediction", 404, "There is no such prediction")
METHOD = Kind("method-not-allowed", 405, "The address does not answer this method")
TOO_SLOW = Kind("too-slow", 408, "The request did not arrive in time")
BODY_TOO_LARGE = Kind("body-too-large", 413, "The body of the request is too large")
PICTURE_TOO_LARGE = Kind("picture-too-large", 413, "The picture has too many pixels")
MEDIA = Kind("unsupported-media-type", 415, "The body of the request is of an unknown type")
CODING = Kind("unsupported-encoding", 415, "The body of the request is compressed in an unknown way")
FORMAT = Kind("unsupported-picture", 415, "The format of the picture is not supported")
INVALID = Kind("invalid-parameter", 422, "A parameter is wrong")
UNKNOWN_LABEL = Kind("unknown-label", 422, "The label is no class of the model")
INTERNAL = Kind("internal-error", 500, "The service failed")
NON_FINITE = Kind("non-finite-output", 500, "The model gave no usable answer")
NOT_READY = Kind("not-ready", 503, "No model is ready")
FULL = Kind("full", 503, "Too many pictures are waiting")
CONNECTIONS = Kind("too-many-connections", 503, "Too many connections are open")
MONITOR = Kind("monitor-unavailable", 503, "The store of predictions cannot be used")
DEADLINE = Kind("deadline", 504, "The picture could not be answered in time")

OF_PREDICTIONS = (  # what may come instead of an answer
    MALFORMED, UNDECODABLE, TOO_SLOW, BODY_TOO_LARGE, PICTURE_TOO_LARGE, MEDIA, CODING, FORMAT, INVALID, INTERNAL,
    NON_FINITE, NOT_READY, FULL, DEADLINE,
)  # fmt: skip

KINDS = tuple(value for value in list(globals().values()) if isinstance(value, Kind))


class Problem(HTTPException):
    """An error that a client is told about.

    Parameters
    ----------
    kind
        What went wrong.
    detail
        One sentence about this very case.
    headers
        Headers of the response, ``Retry-After`` for instance.
    more
        Further members of the document.

    Examples
    --------
    >>> problem = Problem(FULL, "64 pictures are waiting", {"Retry-After": "2"})
    >>> problem.document("4f2a")["status"], problem.document("4f2a")["type"]
    (503, '/docs#problem-full')
    """

    def __init__(
        self, kind: Kind, detail: str, headers: Mapping[str, str] | None = None, more: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(kind.status, detail, dict(headers or {}))
        self.kind = kind
        self.more = dict(more or {})

    def document(self, request_id: str) -> dict[str, Any]:
        """The problem as its JSON members."""
        return {
            "type": self.kind.type,
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
            "request_id": request_id,
            **self.more,
        }


def not_ready(detail: str, seconds: int) -> Problem:
    """A 503 that tells when asking again makes sense."""
    return Problem(NOT_READY, detail, {"Retry-After": str(seconds)})


def of_picture(error: ToolkitError) -> Problem:
    """The problem that a picture which cannot be used is.

    >>> of_picture(UndecodableImage("the file is empty")).kind.slug
    'undecodable-picture'
    """
    for family, kind in {
        UndecodableImage: UNDECODABLE,
        UnsupportedImage: FORMAT,
        ImageTooLarge: PICTURE_TOO_LARGE,
    }.items():
        if isinstance(error, family):
            return Problem(kind, str(error))
    raise error


def of_http(error: HTTPException) -> Problem:
    """The problem behind what the framework raises: an unknown address, a wrong method."""
    if isinstance(error, Problem):
        return error
    kinds = {kind.status: kind for kind in (MALFORMED, NOT_FOUND, METHOD, BODY_TOO_LARGE, MEDIA, INTERNAL)}
    kind = kinds.get(error.status_code)
    if kind is None:
        phrase = HTTPStatus(error.status_code).phrase
        kind = Kind(phrase.lower().replace(" ", "-"), error.status_code, phrase)
    return Problem(kind, f"{kind.title.lower()}; GET /docs lists all addresses", error.headers)


def of_validation(error: RequestValidationError) -> Problem:
    """The problem behind parameters or JSON that break a rule; the rule is told, the input is not."""
    findings = [_finding(entry) for entry in error.errors()]
    if any(entry["type"] == "json_invalid" for entry in error.errors()):
        return Problem(MALFORMED, "the body is not valid JSON")
    detail = "; ".join(f"{finding['where']}: {finding['rule']}" for finding in findings[:3])
    return Problem(INVALID, detail, more={"errors": findings[:20]})


def _finding(entry: Mapping[str, Any]) -> dict[str, str]:
    place: Sequence[int | str] = entry["loc"]
    if entry["type"] == "extra_forbidden":  # the last part is a name that the client made up
        return {"where": ".".join(map(str, place[:-1])), "rule": "has a field or parameter that is not known here"}
    return {"where": ".".join(map(str, place)), "rule": entry["msg"].removeprefix("Value error, ")}


def respond(request: Request, problem: Problem) -> JSONResponse:
    """The response that carries a problem; its kind is noted for the figures and the log.

    At the addresses of other protocols it has the member ``error`` too, where their clients look.
    """
    request.state.problem = problem.kind.slug
    document = problem.document(getattr(request.state, "request_id", ""))
    path = str(request.scope.get("path", "")).removeprefix(request.scope.get("root_path", ""))
    if WITH_ERROR.match(path):
        document["error"] = problem.detail
    return JSONResponse(document, problem.kind.status, problem.headers, MEDIA_TYPE)


def handle(request: Request, error: Exception) -> JSONResponse:
    """The handler of all exceptions that the framework knows of."""
    if isinstance(error, RequestValidationError):
        return respond(request, of_validation(error))
    if isinstance(error, HTTPException):
        return respond(request, of_http(error))
    return respond(request, Problem(INTERNAL, "the service failed; its log tells more under this request id"))


def without_places(text: str) -> str:
    """A reason that may be shown to clients: no passwords, no folders.

    >>> without_places("MLflow at postgresql://me:secret@db/x does not answer; see /home/me/mlflow.db")
    'MLflow at postgresql://db does not answer; see .../mlflow.db'
    >>> without_places("MLflow at sqlite:////home/me/mlflow.db is locked")
    'MLflow at sqlite://... is locked'
    """
    text = re.sub(r"([\w+.-]+)://(?:[^@/\s]*@)?([\w.:\[\]-]*)[^\s;,'\"]*", _address, text)
    return re.sub(r"(?<![\w/:.])(?:[A-Za-z]:)?(?:[/\\][^/\\\s'\";:]+)*[/\\]([^/\\\s'\";:]+)", r".../\1", text)


def _address(match: re.Match[str]) -> str:
    return f"{match[1]}://{match[2].rstrip('.:') or '...'}"
