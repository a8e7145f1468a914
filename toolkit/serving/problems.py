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
    """One thing that can go wrong: its name in addresses and figures, its status, its title, what to do about it."""

    slug: str
    status: int
    title: str
    advice: str = ""

    @property
    def type(self) -> str:
        """The address that tells what it means."""
        return f"/docs#problem-{self.slug}"


# fmt: off
NOT_HTTP = Kind("not-http", 400, "What was sent is no HTTP request",
    "Send HTTP/1.1 with well-formed headers of a reasonable size.")
MALFORMED = Kind("malformed-body", 400, "The body of the request cannot be read",
    "Send valid JSON, or a multipart form whose parts are complete.")
UNDECODABLE = Kind("undecodable-picture", 400, "The picture cannot be decoded",
    "The file is empty, cut off or no picture at all; try to open it with a viewer.")
KEY_MISSING = Kind("key-missing", 401, "A key is needed",
    "Send the key as the header X-API-Key, or as Authorization: Bearer.")
KEY_WRONG = Kind("key-wrong", 403, "The key is not accepted here",
    "Predictions and administration have keys of their own; without one, administration answers nobody.")
CROSS_ORIGIN = Kind("cross-origin", 403, "Pages of other origins may not ask here",
    "Ask from a page of the service's own origin, or start the service with --allow-origin.")
NOT_FOUND = Kind("not-found", 404, "There is nothing at this address",
    "Compare the address with the list on this page.")
UNKNOWN_PREDICTION = Kind("unknown-prediction", 404, "There is no such prediction",
    "Use the prediction_id of an answer; one that the monitor dropped or lost is not known either.")
METHOD = Kind("method-not-allowed", 405, "The address does not answer this method",
    "Compare the method with the list on this page.")
TOO_SLOW = Kind("too-slow", 408, "The request did not arrive in time",
    "Send the request in one go; slow uplinks need a service started with larger --body-seconds.")
BODY_TOO_LARGE = Kind("body-too-large", 413, "The body of the request is too large",
    "Send a smaller file or fewer pictures at once, or start the service with a larger --max-body-mb.")
PICTURE_TOO_LARGE = Kind("picture-too-large", 413, "The picture has too many pixels",
    "Scale the picture down, or start the service with a larger --max-pixels.")
MEDIA = Kind("unsupported-media-type", 415, "The body of the request is of an unknown type",
    "Set Content-Type to one of the types that this page lists for the address.")
CODING = Kind("unsupported-encoding", 415, "The body of the request is compressed in an unknown way",
    "Send the body as it is, or compressed with gzip or deflate.")
FORMAT = Kind("unsupported-picture", 415, "The format of the picture is not supported",
    "Convert the picture to JPEG, PNG, WebP, BMP, GIF or TIFF.")
INVALID = Kind("invalid-parameter", 422, "A parameter is wrong",
    "The members detail and errors name each parameter and the rule that it breaks.")
UNKNOWN_LABEL = Kind("unknown-label", 422, "The label is no class of the model",
    "Tell a class of the model that made the prediction; GET /model-info lists them.")
INTERNAL = Kind("internal-error", 500, "The service failed",
    "The log of the service tells more under the request_id of the answer.")
NON_FINITE = Kind("non-finite-output", 500, "The model gave no usable answer",
    "The model gave NaN or infinity. Go back to the version before: model_registry.py rollback.")
NOT_READY = Kind("not-ready", 503, "No model is ready",
    "No version is in the stage that is served, or it is being loaded; GET /health tells the reason.")
FULL = Kind("full", 503, "Too many pictures are waiting",
    "All threads are busy and the queue is full. Ask again after Retry-After seconds.")
CONNECTIONS = Kind("too-many-connections", 503, "Too many connections are open",
    "Close connections that are no longer used, or start the service with larger --most-connections.")
MONITOR = Kind("monitor-unavailable", 503, "The store of predictions cannot be used",
    "The store is locked, full or away. Predictions are answered all the same; ask again later.")
DEADLINE = Kind("deadline", 504, "The picture could not be answered in time",
    "The service is overloaded. Ask again later, or start it with larger --answer-seconds.")
# fmt: on

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
