"""Problem documents (RFC 9457), the one form of all errors of the service, and their types.

The ``type`` of a document is a relative URL, ``/docs#problem-...``, which explains the problem type. No document
holds a traceback, a path of this machine or the client's input.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from toolkit.errors import ImageTooLarge, ToolkitError, UndecodableImage, UnsupportedImage

MEDIA_TYPE = "application/problem+json"
ERROR_MEMBER_PATHS = re.compile(r"/(v2|ping|invocations|version)(/|$)")  # of other protocols

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class ProblemType:
    """Kind of error: its name in URLs and metrics, its status, its title, and what to do about it."""

    slug: str
    status: int
    title: str
    advice: str = ""

    @property
    def type(self) -> str:
        """The relative URL of its explanation."""
        return f"/docs#problem-{self.slug}"


# fmt: off
NOT_HTTP = ProblemType("not-http", 400, "The request is not valid HTTP",
    "Send HTTP/1.1 with well-formed headers of a reasonable size.")
MALFORMED = ProblemType("malformed-body", 400, "The body of the request cannot be read",
    "Send valid JSON, or a multipart form whose parts are complete.")
UNDECODABLE = ProblemType("undecodable-image", 400, "The image cannot be decoded",
    "The file is empty, cut off or no image at all; try to open it with a viewer.")
KEY_MISSING = ProblemType("key-missing", 401, "A key is needed",
    "Send the key as the header X-API-Key, or as Authorization: Bearer.")
KEY_WRONG = ProblemType("key-wrong", 403, "The key is not accepted here",
    "Predictions and administration have keys of their own; without one, administration is closed.")
CROSS_ORIGIN = ProblemType("cross-origin", 403, "Pages of other origins may not send requests",
    "Use a page of the service's own origin, or start the service with --allow-origin.")
NOT_FOUND = ProblemType("not-found", 404, "There is nothing at this path",
    "Compare the path with the list on this page.")
UNKNOWN_PREDICTION = ProblemType("unknown-prediction", 404, "There is no such prediction",
    "Use the prediction_id of a prediction; one that the monitor dropped or lost is unknown as well.")
METHOD_NOT_ALLOWED = ProblemType("method-not-allowed", 405, "The path does not have this method",
    "Compare the method with the list on this page.")
REQUEST_TIMEOUT = ProblemType("request-timeout", 408, "The request did not arrive in time",
    "Send the request in one go; slow uplinks need a service with a larger --body-timeout.")
BODY_TOO_LARGE = ProblemType("body-too-large", 413, "The body of the request is too large",
    "Send a smaller file or fewer images at once, or start the service with a larger --max-body-mb.")
IMAGE_TOO_LARGE = ProblemType("image-too-large", 413, "The image has too many pixels",
    "Scale the image down, or start the service with a larger --max-pixels.")
UNSUPPORTED_MEDIA_TYPE = ProblemType("unsupported-media-type", 415, "The body of the request is of an unknown type",
    "Set Content-Type to one of the types that this page lists for the path.")
UNSUPPORTED_ENCODING = ProblemType("unsupported-encoding", 415, "The request body is compressed in an unknown way",
    "Send the body uncompressed, or compressed with gzip or deflate.")
UNSUPPORTED_FORMAT = ProblemType("unsupported-image", 415, "The format of the image is not supported",
    "Convert the image to JPEG, PNG, WebP, BMP, GIF or TIFF.")
INVALID = ProblemType("invalid-parameter", 422, "A parameter is wrong",
    "The members detail and errors name each parameter and the rule that it breaks.")
UNKNOWN_LABEL = ProblemType("unknown-label", 422, "The label is no class of the model",
    "Send a class of the model that made the prediction; GET /model-info lists them.")
INTERNAL = ProblemType("internal-error", 500, "The service failed",
    "The log of the service has the details under the request_id.")
NON_FINITE = ProblemType("non-finite-output", 500, "The model gave no usable output",
    "The model gave NaN or infinity. Return to the previous version: model_registry.py rollback.")
NOT_READY = ProblemType("not-ready", 503, "No model is ready",
    "No version is in the stage that is served, or it is being loaded; GET /health has the reason.")
OVERLOADED = ProblemType("overloaded", 503, "Too many images are waiting",
    "All threads are busy and the queue is full. Try again after Retry-After seconds.")
TOO_MANY_CONNECTIONS = ProblemType("too-many-connections", 503, "Too many connections are open",
    "Close connections that are no longer used, or start the service with a larger --max-connections.")
MONITOR_UNAVAILABLE = ProblemType("monitor-unavailable", 503, "The store of predictions cannot be used",
    "The store is locked, full or unreachable. Predictions still work; try again later.")
DEADLINE_EXCEEDED = ProblemType("deadline-exceeded", 504, "The image could not be answered in time",
    "The service is overloaded. Try again later, or start it with a larger --request-timeout.")

PREDICTION_PROBLEMS = (  # of POST /predict
    MALFORMED, UNDECODABLE, REQUEST_TIMEOUT, BODY_TOO_LARGE, IMAGE_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE,
    UNSUPPORTED_ENCODING, UNSUPPORTED_FORMAT, INVALID, INTERNAL, NON_FINITE, NOT_READY, OVERLOADED,
    DEADLINE_EXCEEDED,
)
# fmt: on


IMAGE_ERRORS = (
    (UndecodableImage, UNDECODABLE), (UnsupportedImage, UNSUPPORTED_FORMAT), (ImageTooLarge, IMAGE_TOO_LARGE),
)  # fmt: skip
PROBLEM_TYPES = tuple(value for value in list(globals().values()) if isinstance(value, ProblemType))


class Problem(HTTPException):
    """Exception that is answered with a problem document: ``detail`` is a sentence, ``more`` further members.

    >>> problem = Problem(OVERLOADED, "64 images are waiting", {"Retry-After": "2"})
    >>> problem.document("4f2a")["status"], problem.document("4f2a")["type"]
    (503, '/docs#problem-overloaded')
    """

    def __init__(
        self,
        problem_type: ProblemType,
        detail: str,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(problem_type.status, detail, dict(headers or {}))
        self.problem_type = problem_type
        self.more = dict(more or {})

    def document(self, request_id: str) -> dict[str, Any]:
        """The members of the problem document."""
        return {
            "type": self.problem_type.type,
            "title": self.problem_type.title,
            "status": self.problem_type.status,
            "detail": self.detail,
            "request_id": request_id,
            **self.more,
        }


def not_ready(detail: str, seconds: int) -> Problem:
    """A 503 with ``Retry-After``, for a service without a model or one that is about to end."""
    return Problem(NOT_READY, detail, {"Retry-After": str(seconds)})


def from_image_error(error: ToolkitError) -> Problem:
    """The problem for an image that cannot be used; other errors are raised.

    >>> from_image_error(UndecodableImage("the file is empty")).problem_type.slug
    'undecodable-image'
    """
    for family, problem_type in IMAGE_ERRORS:
        if isinstance(error, family):
            return Problem(problem_type, str(error))
    raise error


def from_http_exception(error: HTTPException) -> Problem:
    """The problem for an exception of the framework, such as an unknown path or a wrong method."""
    if isinstance(error, Problem):
        return error
    phrase = HTTPStatus(error.status_code).phrase
    other = ProblemType(phrase.lower().replace(" ", "-"), error.status_code, phrase)
    framework = (MALFORMED, NOT_FOUND, METHOD_NOT_ALLOWED, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, INTERNAL)
    problem_type = next((one for one in framework if one.status == error.status_code), other)
    return Problem(problem_type, f"{problem_type.title.lower()}; GET /docs lists all paths", error.headers)


def from_validation_error(error: RequestValidationError) -> Problem:
    """The problem for invalid parameters or JSON; it names the rules, and never the input."""
    errors = [_error_entry(entry) for entry in error.errors()]
    if any(entry["type"] == "json_invalid" for entry in error.errors()):
        return Problem(MALFORMED, "the body is not valid JSON")
    detail = "; ".join(f"{one['where']}: {one['rule']}" for one in errors[:3])
    return Problem(INVALID, detail, more={"errors": errors[:20]})


def validated(model: type[ModelT], value: object, *place: str) -> ModelT:
    """A value of a request, found at a ``place`` of it, as a model; the problem that FastAPI would raise otherwise.

    >>> class Size(BaseModel):
    ...     width: int
    >>> validated(Size, {}, "query")
    Traceback (most recent call last):
        ...
    toolkit.serving.problems.Problem: 422: query.width: Field required
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
    raise from_validation_error(RequestValidationError([{**one, "loc": (*place, *one["loc"])} for one in errors]))


def _error_entry(entry: Mapping[str, Any]) -> dict[str, str]:
    location: Sequence[int | str] = entry["loc"]
    if entry["type"] == "extra_forbidden":  # the last part is the client's own name
        return {"where": ".".join(map(str, location[:-1])), "rule": "has a field or parameter that is not known here"}
    return {"where": ".".join(map(str, location)), "rule": entry["msg"].removeprefix("Value error, ")}


def respond(request: Request, problem: Problem) -> JSONResponse:
    """The response with a problem document; its type is kept for metrics and the access log.

    At the paths of other protocols the document has the member ``error`` as well, which their clients read.
    """
    request.state.problem = problem.problem_type.slug
    document = problem.document(getattr(request.state, "request_id", ""))
    path = str(request.scope.get("path", "")).removeprefix(request.scope.get("root_path", ""))
    if ERROR_MEMBER_PATHS.match(path):
        document["error"] = problem.detail
    return JSONResponse(document, problem.problem_type.status, problem.headers, MEDIA_TYPE)


def handle(request: Request, error: Exception) -> JSONResponse:
    """The exception handler of the application."""
    if isinstance(error, RequestValidationError):
        return respond(request, from_validation_error(error))
    if isinstance(error, HTTPException):
        return respond(request, from_http_exception(error))
    return respond(request, Problem(INTERNAL, "the service failed; its log has the details under this request id"))
