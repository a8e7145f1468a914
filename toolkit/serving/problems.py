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
class ProblemType:
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
NOT_HTTP = ProblemType("not-http", 400, "What was sent is no HTTP request",
    "Send HTTP/1.1 with well-formed headers of a reasonable size.")
MALFORMED = ProblemType("malformed-body", 400, "The body of the request cannot be read",
    "Send valid JSON, or a multipart form whose parts are complete.")
UNDECODABLE = ProblemType("undecodable-image", 400, "The image cannot be decoded",
    "The file is empty, cut off or no image at all; try to open it with a viewer.")
KEY_MISSING = ProblemType("key-missing", 401, "A key is needed",
    "Send the key as the header X-API-Key, or as Authorization: Bearer.")
KEY_WRONG = ProblemType("key-wrong", 403, "The key is not accepted here",
    "Predictions and administration have keys of their own; without one, administration answers nobody.")
CROSS_ORIGIN = ProblemType("cross-origin", 403, "Pages of other origins may not ask here",
    "Ask from a page of the service's own origin, or start the service with --allow-origin.")
NOT_FOUND = ProblemType("not-found", 404, "There is nothing at this address",
    "Compare the address with the list on this page.")
UNKNOWN_PREDICTION = ProblemType("unknown-prediction", 404, "There is no such prediction",
    "Use the prediction_id of an answer; one that the monitor dropped or lost is not known either.")
METHOD_NOT_ALLOWED = ProblemType("method-not-allowed", 405, "The address does not answer this method",
    "Compare the method with the list on this page.")
REQUEST_TIMEOUT = ProblemType("too-slow", 408, "The request did not arrive in time",
    "Send the request in one go; slow uplinks need a service started with larger --body-timeout.")
BODY_TOO_LARGE = ProblemType("body-too-large", 413, "The body of the request is too large",
    "Send a smaller file or fewer images at once, or start the service with a larger --max-body-mb.")
IMAGE_TOO_LARGE = ProblemType("image-too-large", 413, "The image has too many pixels",
    "Scale the image down, or start the service with a larger --max-pixels.")
UNSUPPORTED_MEDIA_TYPE = ProblemType("unsupported-media-type", 415, "The body of the request is of an unknown type",
    "Set Content-Type to one of the types that this page lists for the address.")
UNSUPPORTED_ENCODING = ProblemType("unsupported-encoding", 415, "The request body is compressed in an unknown way",
    "Send the body as it is, or compressed with gzip or deflate.")
UNSUPPORTED_FORMAT = ProblemType("unsupported-image", 415, "The format of the image is not supported",
    "Convert the image to JPEG, PNG, WebP, BMP, GIF or TIFF.")
INVALID = ProblemType("invalid-parameter", 422, "A parameter is wrong",
    "The members detail and errors name each parameter and the rule that it breaks.")
UNKNOWN_LABEL = ProblemType("unknown-label", 422, "The label is no class of the model",
    "Tell a class of the model that made the prediction; GET /model-info lists them.")
INTERNAL = ProblemType("internal-error", 500, "The service failed",
    "The log of the service tells more under the request_id of the answer.")
NON_FINITE = ProblemType("non-finite-output", 500, "The model gave no usable answer",
    "The model gave NaN or infinity. Go back to the version before: model_registry.py rollback.")
NOT_READY = ProblemType("not-ready", 503, "No model is ready",
    "No version is in the stage that is served, or it is being loaded; GET /health tells the reason.")
OVERLOADED = ProblemType("full", 503, "Too many images are waiting",
    "All threads are busy and the queue is full. Ask again after Retry-After seconds.")
TOO_MANY_CONNECTIONS = ProblemType("too-many-connections", 503, "Too many connections are open",
    "Close connections that are no longer used, or start the service with larger --max-connections.")
MONITOR_UNAVAILABLE = ProblemType("monitor-unavailable", 503, "The store of predictions cannot be used",
    "The store is locked, full or away. Predictions are answered all the same; ask again later.")
DEADLINE_EXCEEDED = ProblemType("deadline", 504, "The image could not be answered in time",
    "The service is overloaded. Ask again later, or start it with larger --request-timeout.")
# fmt: on

PREDICTION_PROBLEMS = (  # what may come instead of an answer
    MALFORMED,
    UNDECODABLE,
    REQUEST_TIMEOUT,
    BODY_TOO_LARGE,
    IMAGE_TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    UNSUPPORTED_ENCODING,
    UNSUPPORTED_FORMAT,
    INVALID,
    INTERNAL,
    NON_FINITE,
    NOT_READY,
    OVERLOADED,
    DEADLINE_EXCEEDED,
)

PROBLEM_TYPES = tuple(value for value in list(globals().values()) if isinstance(value, ProblemType))


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
    >>> problem = Problem(FULL, "64 images are waiting", {"Retry-After": "2"})
    >>> problem.document("4f2a")["status"], problem.document("4f2a")["type"]
    (503, '/docs#problem-full')
    """

    def __init__(
        self,
        kind: ProblemType,
        detail: str,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(kind.status, detail, dict(headers or {}))
        self.problem_type = kind
        self.more = dict(more or {})

    def document(self, request_id: str) -> dict[str, Any]:
        """The problem as its JSON members."""
        return {
            "type": self.problem_type.type,
            "title": self.problem_type.title,
            "status": self.problem_type.status,
            "detail": self.detail,
            "request_id": request_id,
            **self.more,
        }


def not_ready(detail: str, seconds: int) -> Problem:
    """A 503 that tells when asking again makes sense."""
    return Problem(NOT_READY, detail, {"Retry-After": str(seconds)})


def from_image_error(error: ToolkitError) -> Problem:
    """The problem that an image which cannot be used is.

    >>> from_image_error(UndecodableImage("the file is empty")).kind.slug
    'undecodable-image'
    """
    for family, kind in {
        UndecodableImage: UNDECODABLE,
        UnsupportedImage: UNSUPPORTED_FORMAT,
        ImageTooLarge: IMAGE_TOO_LARGE,
    }.items():
        if isinstance(error, family):
            return Problem(kind, str(error))
    raise error


def from_http_exception(error: HTTPException) -> Problem:
    """The problem behind what the framework raises: an unknown address, a wrong method."""
    if isinstance(error, Problem):
        return error
    kinds = {
        kind.status: kind
        for kind in (MALFORMED, NOT_FOUND, METHOD_NOT_ALLOWED, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, INTERNAL)
    }
    kind = kinds.get(error.status_code)
    if kind is None:
        phrase = HTTPStatus(error.status_code).phrase
        kind = ProblemType(phrase.lower().replace(" ", "-"), error.status_code, phrase)
    return Problem(kind, f"{kind.title.lower()}; GET /docs lists all addresses", error.headers)


def from_validation_error(error: RequestValidationError) -> Problem:
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
    request.state.problem = problem.problem_type.slug
    document = problem.document(getattr(request.state, "request_id", ""))
    path = str(request.scope.get("path", "")).removeprefix(request.scope.get("root_path", ""))
    if WITH_ERROR.match(path):
        document["error"] = problem.detail
    return JSONResponse(document, problem.problem_type.status, problem.headers, MEDIA_TYPE)


def handle(request: Request, error: Exception) -> JSONResponse:
    """The handler of all exceptions that the framework knows of."""
    if isinstance(error, RequestValidationError):
        return respond(request, from_validation_error(error))
    if isinstance(error, HTTPException):
        return respond(request, from_http_exception(error))
    return respond(request, Problem(INTERNAL, "the service failed; its log tells more under this request id"))
