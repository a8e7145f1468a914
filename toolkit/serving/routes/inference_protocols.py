"""Routes for existing clients: the Open Inference Protocol, MLflow's scoring server, Prometheus.

The Open Inference Protocol (version 2, REST; of KServe, Triton and MLServer) is below ``/v2``; ``/ping``,
``/invocations`` and ``/version`` are those of MLflow's scoring server, which SageMaker uses too. Images take the same
way through the service as those of ``/predict``. Neither protocol has an error of a single image, so one image that
cannot be used fails the request.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from importlib.metadata import version as installed_version
from itertools import chain
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import PlainTextResponse, Response

from toolkit.serving import problems, schemas
from toolkit.serving.http import request_body
from toolkit.serving.http.openapi import ONE_IMAGE, error_responses, pixels_body
from toolkit.serving.inference.result import ImageSource
from toolkit.serving.models.manager import LiveModel
from toolkit.serving.problems import Problem
from toolkit.serving.routes import binary_tensors
from toolkit.serving.schemas import InferRequest, InferResponse, Prediction
from toolkit.serving.service import Service

PLATFORM = "pytorch_pt2"  # in the protocol's form, project_format
EXTENSION = "base64_images"  # of this service: the input may also be BYTES, encoded images in base64
MAX_OTHER_VALUES = 1000  # in the JSON of a request, besides its images: names, shapes, parameters
MAX_ATTEMPTS = 3  # to answer all images of a request by one model while models change
MODEL_PATH = "/v2/models/{name}"
VERSION_PATH = f"{MODEL_PATH}/versions/{{version}}"
PREDICT_PATHS = ("/invocations", f"{MODEL_PATH}/infer", f"{VERSION_PATH}/infer")


def _inlined(part: Any, definitions: dict[str, Any]) -> Any:
    """A JSON schema without references to its own definitions, which OpenAPI would resolve elsewhere."""
    if isinstance(part, list):
        return [_inlined(one, definitions) for one in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _inlined(definitions[part["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(one, definitions) for name, one in part.items() if name != "$defs"}


_SCHEMA = InferRequest.model_json_schema()
_EXAMPLE = {"inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": [ONE_IMAGE]}]}
INFER_BODY = {
    "required": True,
    "content": {request_body.JSON: {"schema": _inlined(_SCHEMA, _SCHEMA["$defs"]), "example": _EXAMPLE}},
}
NOT_READY = error_responses(problems.NOT_READY)
NOT_FOUND = error_responses(problems.NOT_FOUND, problems.INVALID, problems.NOT_READY)  # FastAPI adds a 422 to names
PREDICTING = error_responses(problems.NOT_FOUND, *problems.PREDICTION_PROBLEMS)
OIP = "open inference protocol"
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

routes = APIRouter()


# The Open Inference Protocol


async def _named(name: Annotated[str, Path(description="name of the registered model")]) -> None:
    """The parameter of the path, for the OpenAPI description; ``_require_model`` reads it."""


async def _versioned(version: Annotated[str, Path(description="number of its version")]) -> None:
    """The second parameter of a path with a version."""


def _model_route(path: str, method: str = "GET", **options: Any) -> Callable[[Endpoint], Endpoint]:
    """A decorator for routes of a model by its name, and by its name and version."""

    def register(endpoint: Endpoint) -> Endpoint:
        for prefix, parameters in ((MODEL_PATH, [_named]), (VERSION_PATH, [_named, _versioned])):
            depends = [Depends(parameter) for parameter in parameters]
            routes.add_api_route(prefix + path, endpoint, methods=[method], dependencies=depends, tags=[OIP], **options)
        return endpoint

    return register


@routes.get("/v2/", include_in_schema=False)
@routes.get("/v2", tags=[OIP])
async def server_metadata(request: Request) -> schemas.ServerMetadata:
    """Name, version and protocol extensions of the server."""
    extensions = [EXTENSION, binary_tensors.EXTENSION]
    return schemas.ServerMetadata(name=request.app.title, version=request.app.version, extensions=extensions)


@routes.get("/v2/health/live", tags=[OIP])
async def server_live() -> schemas.ServerLive:
    """Whether the process answers at all."""
    return schemas.ServerLive(live=True)


@routes.get("/v2/health/ready", responses=NOT_READY, tags=[OIP])
async def server_ready(request: Request) -> schemas.ServerReady:
    """Whether this process should get traffic."""
    _ready(request)
    return schemas.ServerReady(live=True, ready=True)


@_model_route("", responses=NOT_FOUND)
async def model_metadata(request: Request) -> schemas.ModelMetadata:
    """Inputs and outputs of the served model."""
    model = _require_model(request)
    size = model.bundle.card.image_size
    return schemas.ModelMetadata(
        name=model.release.name,
        versions=[model.version],
        platform=PLATFORM,
        inputs=[schemas.TensorMetadata(name="images", datatype="UINT8", shape=[-1, size, size, 3])],
        outputs=_outputs(-1, len(model.classes)),
    )


@_model_route("/ready", responses=NOT_FOUND)
async def model_ready(request: Request) -> schemas.ModelReady:
    """Whether this model answers predictions."""
    _require_model(request)
    return schemas.ModelReady(name=_ready(request).release.name, ready=True)


@_model_route(
    "/infer",
    "POST",
    responses=PREDICTING,
    response_model=InferResponse,
    response_model_exclude_none=True,
    openapi_extra={"requestBody": INFER_BODY},
)
async def model_infer(request: Request) -> InferResponse | Response:
    """Classify the images of the tensor `images`: UINT8 pixels of the model's own size, or BYTES in base64.

    With the extension for binary tensor data, pixels and encoded images may follow the JSON as plain bytes.
    """
    size, max_images = _require_model(request).bundle.card.image_size, request.app.state.settings.max_batch
    _service(request).require_ready(None)
    with _reserved_body(request):
        head, data = binary_tensors.split_body(await request.body(), request.headers.get(binary_tensors.HEADER))
        parsed, images = await request_body.run_in_json_thread(partial(_parse_request, head, data, max_images, size))
        model, predictions = await _predict_all(request, images)
    values: dict[str, Any] = {
        "probabilities": list(chain.from_iterable(_rows(model, predictions))),
        "label": [prediction.predicted_class for prediction in predictions],
        "prediction_id": [prediction.prediction_id for prediction in predictions],
    }
    tensors = {
        output.name: schemas.Tensor(**output.model_dump(), data=values[output.name])
        for output in _outputs(len(predictions), len(model.classes))
    }
    requested = parsed.outputs or [schemas.RequestedOutput.model_validate({"name": name}) for name in tensors]
    response = InferResponse(
        model_name=model.release.name,
        model_version=model.version,
        id=parsed.id,
        outputs=[tensors[output.name] for output in requested],
    )
    all_binary = parsed.parameters.binary_data_output if parsed.parameters else False
    is_binary = [output.is_binary(all_binary) for output in requested]
    if not any(is_binary):
        return response
    body, length = binary_tensors.join_body(response.model_dump(exclude_none=True), is_binary)
    return Response(body, headers={binary_tensors.HEADER: str(length)}, media_type="application/octet-stream")


def _require_model(request: Request) -> LiveModel:
    """The served model, if it is the one in the path; any model where the path names none."""
    model, path = _service(request).model(), request.path_params
    if (
        path.get("name", model.release.name) != model.release.name
        or path.get("version", model.version) != model.version
    ):
        raise Problem(problems.NOT_FOUND, f"what is served here is {model.release.name}, version {model.version}")
    return model


def _outputs(count: int, classes: int) -> list[schemas.TensorMetadata]:
    return [
        schemas.TensorMetadata(name="probabilities", datatype="FP32", shape=[count, classes]),
        schemas.TensorMetadata(name="label", datatype="BYTES", shape=[count]),
        schemas.TensorMetadata(name="prediction_id", datatype="BYTES", shape=[count]),
    ]


def _parse_request(head: bytes, data: bytes, max_images: int, size: int) -> tuple[InferRequest, list[ImageSource]]:
    per_image = request_body.VALUES_PER_IMAGE + request_body.values_of_pixels(size)
    value = request_body.load_json(head, MAX_OTHER_VALUES + max_images * per_image)
    parsed = problems.validated(InferRequest, value)
    return parsed, _images(parsed.inputs[0], data, max_images, size)


def _images(tensor: schemas.InferInputTensor, binary: bytes, max_images: int, size: int) -> list[ImageSource]:
    """The images of a tensor whose data is flat, nested like its shape, or in the bytes after the JSON."""
    count, *rest = tensor.shape
    pixels = tensor.datatype == "UINT8"
    if not 1 <= count <= max_images or rest not in ([[size, size, 3]] if pixels else [[], [1]]):
        shape = f"[N, {size}, {size}, 3]" if pixels else "[N]"
        detail = f"inputs.0.shape: must be {shape} for {tensor.datatype}, with N from 1 to {max_images}"
        raise Problem(problems.INVALID, detail)
    if (tensor.binary_size or 0) != len(binary) or (tensor.data is None) == (tensor.binary_size is None):
        raise Problem(
            problems.INVALID,
            f"inputs.0: must have either data or parameters.binary_data_size, the number of bytes after the JSON, whose"
            f" length {binary_tensors.HEADER} gives: {len(binary)}",
        )
    length = size * size * 3 if pixels else 1
    data = tensor.data
    if data is None and not pixels:  # encoded images as they are, without base64
        return [partial(bytes, image) for image in binary_tensors.split_elements(binary, count)]
    if data is None:
        if len(binary) != count * length:
            detail = f"inputs.0: {count * length} bytes are needed for the shape, got {len(binary)}"
            raise Problem(problems.INVALID, detail)
        starts = range(0, len(binary), length)
        return [partial(request_body.encode_png, binary[start : start + length], size) for start in starts]
    if len(data) == count * length:  # flat
        data = [data[start : start + length] for start in range(0, len(data), length)]
    if len(data) != count:
        raise Problem(problems.INVALID, "inputs.0.data: must have as many values as the shape says")
    if pixels:
        return [request_body.from_pixels(values, size, index) for index, values in enumerate(data)]
    return [partial(request_body.decode_base64, _only_text(values)) for values in data]


def _only_text(values: Any) -> str:
    while isinstance(values, list) and len(values) == 1:
        [values] = values
    if not isinstance(values, str):
        raise Problem(problems.INVALID, "inputs.0.data: must be encoded images in base64 for BYTES")
    return values


# MLflow's scoring server


@routes.get("/ping", responses=NOT_READY, tags=["MLflow"])
async def ping(request: Request) -> dict[str, str]:
    """Whether this process should get traffic."""
    return {"status": "ready", "version": _ready(request).version}


@routes.get("/version", response_class=PlainTextResponse, tags=["MLflow"])
async def protocol_version() -> str:
    """The version of MLflow whose protocol this is."""
    return installed_version("mlflow")


@routes.post("/invocations", responses=PREDICTING, openapi_extra={"requestBody": pixels_body()}, tags=["MLflow"])
async def invocations(request: Request) -> schemas.Predictions:
    """Probabilities of images: a form, a raw image, or JSON with base64 or pixels of the model's own size."""
    service = _service(request)
    service.require_ready(None)
    size = service.model().bundle.card.image_size
    with _reserved_body(request):
        images = await request_body.parse_images(request, request.app.state.settings.max_batch, size)
        return schemas.Predictions(predictions=_rows(*await _predict_all(request, images)))


# Prometheus


@routes.get("/metrics/prometheus", response_class=PlainTextResponse, tags=["metrics"])
def prometheus(request: Request) -> Response:
    """Metrics in the text format of Prometheus, whatever the Accept header prefers."""
    text, media_type = _service(request).metrics.prometheus(request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": media_type, "Vary": "Accept"})


# Shared by the protocols


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _ready(request: Request) -> LiveModel:
    if request.app.state.draining:
        raise problems.not_ready("the service is about to end", 1)
    return _service(request).ready()


def _reserved_body(request: Request) -> AbstractContextManager[None]:
    return _service(request).admission.reserve_bytes(request.state.max_body_bytes)


async def _predict_all(request: Request, images: list[ImageSource]) -> tuple[LiveModel, list[Prediction]]:
    """The predictions of one model for all images; they are repeated if the model changes meanwhile."""
    service = _service(request)
    with service.admission.slots(len(images)):
        for _ in range(MAX_ATTEMPTS):
            model = _require_model(request)
            predictions = await asyncio.gather(
                *(service.predict(image, len(model.classes)) for image in images), return_exceptions=True
            )
            if service.model() is model or all(_predicted_by(model, prediction) for prediction in predictions):
                request.state.version = model.release.version
                return model, [_raise_if_failed(index, prediction) for index, prediction in enumerate(predictions)]
    raise problems.not_ready(f"the model changed {MAX_ATTEMPTS} times while this request was answered", 1)


def _predicted_by(model: LiveModel, prediction: Prediction | BaseException) -> bool:
    return isinstance(prediction, Prediction) and prediction.model.version == model.release.version


def _raise_if_failed(index: int, prediction: Prediction | BaseException) -> Prediction:
    if isinstance(prediction, Problem):
        problem = prediction
        raise Problem(problem.problem_type, f"image {index}: {problem.detail}", problem.headers, problem.more)
    if isinstance(prediction, BaseException):
        raise prediction
    return prediction


def _rows(model: LiveModel, predictions: list[Prediction]) -> list[list[float]]:
    """(N, K) probabilities in class order, from predictions that rank all classes."""
    tables = ({score.label: score.probability for score in prediction.top_k} for prediction in predictions)
    return [[table[label] for label in model.classes] for table in tables]
