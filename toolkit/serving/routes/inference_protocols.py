"""Addresses that other people's clients know: the Open Inference Protocol, MLflow's scoring server, Prometheus.

The Open Inference Protocol (version 2, REST; KServe, Triton and MLServer speak it) has its own
addresses under ``/v2``; ``/ping``, ``/invocations`` and ``/version`` are those of MLflow's scoring
server, which SageMaker uses too. What they bring goes through the service like any other image.
Neither has room for an error of a single image, so one that cannot be used fails the request.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from importlib.metadata import version as installed
from itertools import chain
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from pydantic import ValidationError

from toolkit.serving import problems
from toolkit.serving.http.openapi import error_responses
from toolkit.serving.http.request_body import (
    JSON,
    ONE_IMAGE,
    VALUES_PER_IMAGE,
    content_length_or,
    from_base64,
    from_pixels,
    from_raw_pixels,
    load_json,
    parse_images,
    pixels_body,
    run_in_json_thread,
    values_of_pixels,
)
from toolkit.serving.inference.result import ImageSource
from toolkit.serving.models.manager import LiveModel
from toolkit.serving.problems import Problem
from toolkit.serving.routes import binary_tensors
from toolkit.serving.schemas import (
    InferInputTensor,
    InferRequest,
    InferResponse,
    ModelMetadata,
    ModelReady,
    Prediction,
    Predictions,
    RequestedOutput,
    ServerLive,
    ServerMetadata,
    ServerReady,
    Tensor,
    TensorMetadata,
)
from toolkit.serving.service import Service

PLATFORM = "pytorch_pt2"  # the protocol's form, project_format
EXTENSION = "base64_images"  # ours: the input may also be BYTES, encoded images in base64
OTHER_VALUES = 1000  # of a request's JSON, besides its images: names, shapes, parameters
ATTEMPTS = 3  # to answer all images of a request by one model while models change
PREDICT_PATHS = ("/invocations", "/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")


def _inlined(part: Any, definitions: dict[str, Any]) -> Any:
    """A schema without references, which would lead nowhere in the description of the service."""
    if isinstance(part, list):
        return [_inlined(one, definitions) for one in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _inlined(definitions[part["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(one, definitions) for name, one in part.items() if name != "$defs"}


routes = APIRouter()
_SCHEMA = InferRequest.model_json_schema()
_EXAMPLE = {"inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": [ONE_IMAGE]}]}
INFER_BODY = {
    "required": True,
    "content": {JSON: {"schema": _inlined(_SCHEMA, _SCHEMA["$defs"]), "example": _EXAMPLE}},
}
UNREADY = error_responses(problems.NOT_READY)
UNKNOWN = error_responses(
    problems.NOT_FOUND, problems.INVALID, problems.NOT_READY
)  # FastAPI has a 422 wherever names are
PREDICTING = error_responses(problems.NOT_FOUND, *problems.PREDICTION_PROBLEMS)


# The Open Inference Protocol


@routes.get("/v2/", include_in_schema=False)
@routes.get("/v2", tags=["open inference protocol"])
async def server_metadata(request: Request) -> ServerMetadata:
    """What this server is."""
    return ServerMetadata(
        name=request.app.title, version=request.app.version, extensions=[EXTENSION, binary_tensors.EXTENSION]
    )


@routes.get("/v2/health/live", tags=["open inference protocol"])
async def server_live() -> ServerLive:
    """Whether the process answers at all."""
    return ServerLive(live=True)


@routes.get("/v2/health/ready", responses=UNREADY, tags=["open inference protocol"])
async def server_ready(request: Request) -> ServerReady:
    """Whether this process should get traffic."""
    _ready(request)
    return ServerReady(live=True, ready=True)


Name = Annotated[str, Path(description="the registered model's name")]
Version = Annotated[str, Path(description="its version's number")]


@routes.get("/v2/models/{name}", responses=UNKNOWN, tags=["open inference protocol"])
async def model_metadata(request: Request, name: Name) -> ModelMetadata:
    """What the served model takes and gives."""
    return _metadata(_require_model(request, name))


@routes.get("/v2/models/{name}/versions/{version}", responses=UNKNOWN, tags=["open inference protocol"])
async def version_metadata(request: Request, name: Name, version: Version) -> ModelMetadata:
    """The same when that version is the one that is served."""
    return _metadata(_require_model(request, name, version))


@routes.get("/v2/models/{name}/ready", responses=UNKNOWN, tags=["open inference protocol"])
async def model_ready(request: Request, name: Name) -> ModelReady:
    """Whether the model of this name answers."""
    return _model_ready(request, name)


@routes.get("/v2/models/{name}/versions/{version}/ready", responses=UNKNOWN, tags=["open inference protocol"])
async def version_ready(request: Request, name: Name, version: Version) -> ModelReady:
    """Whether this version answers."""
    return _model_ready(request, name, version)


@routes.post(
    "/v2/models/{name}/infer",
    responses=PREDICTING,
    response_model=InferResponse,
    response_model_exclude_none=True,
    openapi_extra={"requestBody": INFER_BODY},
    tags=["open inference protocol"],
)
async def model_infer(request: Request, name: Name) -> InferResponse | Response:
    """Classify the images of the tensor `images`: UINT8 pixels of the model's own size, or BYTES in base64.

    With the extension for binary tensor data, pixels and encoded images may follow the JSON as plain bytes.
    """
    return await _infer(request, partial(_require_model, request, name))


@routes.post(
    "/v2/models/{name}/versions/{version}/infer",
    responses=PREDICTING,
    response_model=InferResponse,
    response_model_exclude_none=True,
    openapi_extra={"requestBody": INFER_BODY},
    tags=["open inference protocol"],
)
async def version_infer(request: Request, name: Name, version: Version) -> InferResponse | Response:
    """The same by this version and no other."""
    return await _infer(request, partial(_require_model, request, name, version))


def _require_model(request: Request, name: str, version: str | None = None) -> LiveModel:
    model = _service(request).model()
    if name != model.release.name or version not in (None, model.version):
        raise Problem(problems.NOT_FOUND, f"what is served here is {model.release.name}, version {model.version}")
    return model


def _model_ready(request: Request, name: str, version: str | None = None) -> ModelReady:
    _require_model(request, name, version)
    return ModelReady(name=_ready(request).release.name, ready=True)


def _metadata(model: LiveModel) -> ModelMetadata:
    size = model.bundle.card.image_size
    return ModelMetadata(
        name=model.release.name,
        versions=[model.version],
        platform=PLATFORM,
        inputs=[TensorMetadata(name="images", datatype="UINT8", shape=[-1, size, size, 3])],
        outputs=_outputs(-1, len(model.classes)),
    )


def _outputs(count: int, classes: int) -> list[TensorMetadata]:
    return [
        TensorMetadata(name="probabilities", datatype="FP32", shape=[count, classes]),
        TensorMetadata(name="label", datatype="BYTES", shape=[count]),
        TensorMetadata(name="prediction_id", datatype="BYTES", shape=[count]),
    ]


async def _infer(request: Request, choose: Callable[[], LiveModel]) -> InferResponse | Response:
    size, most = choose().bundle.card.image_size, request.app.state.settings.max_batch
    _service(request).require_ready(None)
    with _arriving(request):
        head, data = binary_tensors.split(await request.body(), request.headers.get(binary_tensors.HEADER))
        asked, reads = await run_in_json_thread(partial(_parse_request, head, data, most, size))
        model, answers = await _predict_all(request, reads, choose)
    values: dict[str, Any] = {
        "probabilities": list(chain.from_iterable(_rows(model, answers))),
        "label": [answer.predicted_class for answer in answers],
        "prediction_id": [answer.prediction_id for answer in answers],
    }
    tensors = {
        output.name: Tensor(**output.model_dump(), data=values[output.name])
        for output in _outputs(len(answers), len(model.classes))
    }
    chosen = asked.outputs or [RequestedOutput.model_validate({"name": name}) for name in tensors]
    answer = InferResponse(
        model_name=model.release.name,
        model_version=model.version,
        id=asked.id,
        outputs=[tensors[output.name] for output in chosen],
    )
    as_bytes = asked.parameters.binary_data_output if asked.parameters else False
    return _in_bytes(answer, [output.is_binary(as_bytes) for output in chosen])


def _in_bytes(answer: InferResponse, wanted: list[bool]) -> InferResponse | Response:
    if not any(wanted):
        return answer
    body, length = binary_tensors.joined(answer.model_dump(exclude_none=True), wanted)
    return Response(body, headers={binary_tensors.HEADER: str(length)}, media_type="application/octet-stream")


def _parse_request(head: bytes, data: bytes, most: int, size: int) -> tuple[InferRequest, list[ImageSource]]:
    """In a thread: the request, and the images in it."""
    value = load_json(head, OTHER_VALUES + most * (VALUES_PER_IMAGE + values_of_pixels(size)))
    try:
        asked = InferRequest.model_validate(value)
    except ValidationError as error:
        findings = error.errors(include_url=False, include_context=False, include_input=False)
        raise problems.from_validation_error(RequestValidationError(findings)) from None
    return asked, _images(asked.inputs[0], data, most, size)


def _images(tensor: InferInputTensor, following: bytes, most: int, size: int) -> list[ImageSource]:
    """The images of a tensor whose data is flat, or nested like its shape, or in the bytes that follow the JSON."""
    count, *rest = tensor.shape
    pixels = tensor.datatype == "UINT8"
    if not 1 <= count <= most or rest not in ([[size, size, 3]] if pixels else [[], [1]]):
        shape = f"[N, {size}, {size}, 3]" if pixels else "[N]"
        raise Problem(
            problems.INVALID, f"inputs.0.shape: must be {shape} for {tensor.datatype}, with N from 1 to {most}"
        )
    length = size * size * 3 if pixels else 1
    if (tensor.binary_size or 0) != len(following) or (tensor.data is None) == (tensor.binary_size is None):
        raise Problem(
            problems.INVALID,
            f"inputs.0: must have either data or parameters.binary_data_size, the number of bytes that follow the JSON"
            f" as {binary_tensors.HEADER} tells its end: {len(following)}",
        )
    if tensor.data is None:
        return _of_bytes(following, pixels, count, size)
    data = tensor.data
    if len(data) == count * length:
        data = [data[start : start + length] for start in range(0, len(data), length)]  # of flat data
    if len(data) != count:
        raise Problem(problems.INVALID, "inputs.0.data: must have as many values as the shape says")
    if pixels:
        return [from_pixels(values, size, index) for index, values in enumerate(data)]
    return [from_base64(_only_text(values)) for values in data]


def _of_bytes(data: bytes, pixels: bool, count: int, size: int) -> list[ImageSource]:
    """The images of a tensor in bytes: pixels, or encoded images as they are, without base64."""
    if not pixels:
        return [partial(bytes, one) for one in binary_tensors.elements(data, count)]
    length = size * size * 3
    if len(data) != count * length:
        raise Problem(problems.INVALID, f"inputs.0: {count * length} bytes are needed for the shape, got {len(data)}")
    return [from_raw_pixels(data[start : start + length], size) for start in range(0, len(data), length)]


def _only_text(values: Any) -> str:
    while isinstance(values, list) and len(values) == 1:
        [values] = values
    if not isinstance(values, str):
        raise Problem(problems.INVALID, "inputs.0.data: must be encoded images in base64 for BYTES")
    return values


# MLflow's scoring server


@routes.get("/ping", responses=UNREADY, tags=["MLflow"])
async def ping(request: Request) -> dict[str, str]:
    """Whether this process should get traffic."""
    return {"status": "ready", "version": _ready(request).version}


@routes.get("/version", response_class=PlainTextResponse, tags=["MLflow"])
async def protocol_version() -> str:
    """The version of MLflow, by which its clients know how to ask."""
    return installed("mlflow")


@routes.post("/invocations", responses=PREDICTING, openapi_extra={"requestBody": pixels_body()}, tags=["MLflow"])
async def invocations(request: Request) -> Predictions:
    """Probabilities of the images of a form or of JSON, base64 or pixels of the model's own size, or of a raw one."""
    service = _service(request)
    service.require_ready(None)
    size = service.model().bundle.card.image_size
    with _arriving(request):
        reads = await parse_images(request, request.app.state.settings.max_batch, size)
        return Predictions(predictions=_rows(*await _predict_all(request, reads, service.model)))


# Prometheus


@routes.get("/metrics/prometheus", response_class=PlainTextResponse, tags=["figures"])
def prometheus(request: Request) -> Response:
    """Figures in the text format of Prometheus, whatever the Accept header prefers."""
    text, media_type = _service(request).metrics.prometheus(request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": media_type, "Vary": "Accept"})


# What they share


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _ready(request: Request) -> LiveModel:
    if request.app.state.leaving:
        raise problems.not_ready("the service is about to end", 1)
    return _service(request).ready()


def _arriving(request: Request) -> AbstractContextManager[None]:
    """Hold the memory of the body while it arrives and is worked on."""
    return _service(request).admission.reserve_bytes(
        content_length_or(request, request.app.state.settings.max_body_bytes)
    )


async def _predict_all(
    request: Request, reads: list[ImageSource], choose: Callable[[], LiveModel]
) -> tuple[LiveModel, list[Prediction]]:
    """All images through one and the same model: they are asked again when another took its place on the way."""
    service = _service(request)
    with service.admission.slots(len(reads)):
        for _ in range(ATTEMPTS):
            model = choose()
            asked = (service.predict(read, len(model.classes)) for read in reads)
            answers = await asyncio.gather(*asked, return_exceptions=True)
            if service.model() is model or all(_requested_dtype(model, answer) for answer in answers):
                request.state.version = model.release.version
                return model, [_raise_if_failed(index, answer) for index, answer in enumerate(answers)]
    raise problems.not_ready("the model changed again and again while this request was answered", 1)


def _requested_dtype(model: LiveModel, answer: Prediction | BaseException) -> bool:
    return isinstance(answer, Prediction) and answer.model.version == model.release.version


def _raise_if_failed(index: int, answer: Prediction | BaseException) -> Prediction:
    if isinstance(answer, Problem):
        raise Problem(answer.problem_type, f"image {index}: {answer.detail}", answer.headers, answer.more)
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _rows(model: LiveModel, answers: list[Prediction]) -> list[list[float]]:
    """(N, K) probabilities in class order, out of answers that rank all classes."""
    tables = ({one.label: one.probability for one in answer.top_k} for answer in answers)
    return [[table[label] for label in model.classes] for table in tables]
