"""JSON schemas of requests and responses."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

MAX_LABELS = 1000  # in one request


class RequestModel(BaseModel):
    """Base of request models; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TopK(RequestModel):
    """Query parameters of a prediction."""

    top_k: int | None = Field(None, ge=1, description="how many classes to list, at most as many as the model has")


def _as_name(label: object) -> object:
    """The name of a class, which may be sent as a number; true and false are none."""
    return str(label) if isinstance(label, int) and not isinstance(label, bool) else label


Label = Annotated[
    str,
    Field(min_length=1, max_length=256, description="the name of a class"),
    BeforeValidator(_as_name),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string", "minLength": 1, "maxLength": 256}, {"type": "integer"}],
            "description": "the name of a class",
        }
    ),
]


class Feedback(RequestModel):
    """The true label of a prediction."""

    prediction_id: str = Field(min_length=1, max_length=64)
    label: Label
    source: str = Field("api", min_length=1, max_length=64, description="origin of the label")


Feedbacks = Annotated[list[Feedback], Field(min_length=1, max_length=MAX_LABELS)]


class ClassScore(BaseModel):
    """A class with its probability."""

    label: str
    probability: float


class ModelName(BaseModel):
    """The model version that predicted."""

    name: str
    version: int
    stage: str


class Timings(BaseModel):
    """Milliseconds from the arrival of the image."""

    decode: float
    queue: float = Field(description="wait for a free thread")
    infer: float
    total: float


class Prediction(BaseModel):
    """The prediction of one image."""

    prediction_id: str = Field(description="for POST /feedback with the true label")
    predicted_class: str
    confidence: float
    top_k: list[ClassScore]
    model: ModelName
    timings_ms: Timings


class ProblemDocument(BaseModel):
    """An error in the form of RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[dict[str, str]] | None = Field(None, description="each invalid parameter and its rule")


class BatchItem(BaseModel):
    """One image of a batch: a prediction or an error."""

    index: int = Field(description="index of the image in the request, from 0")
    prediction: Prediction | None = None
    error: ProblemDocument | None = None


class Batch(BaseModel):
    """One entry for each image, in the order of the request."""

    results: list[BatchItem]


class FeedbackError(BaseModel):
    """A label that was not recorded."""

    index: int
    error: ProblemDocument


class FeedbackResult(BaseModel):
    """Number of recorded labels, and the errors of the others; a repeated label counts as recorded."""

    recorded: int
    errors: list[FeedbackError] = []


# The Open Inference Protocol, version 2, with its own names

OutputName = Literal["probabilities", "label", "prediction_id"]


class StrictRequestModel(RequestModel):
    """Base of the protocol's request models, without type coercion."""

    model_config = ConfigDict(strict=True)


class TensorParameters(BaseModel):
    """Parameters of a tensor; unknown ones are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)

    binary_data_size: int | None = Field(None, ge=0, description="bytes of the tensor after the JSON")
    binary_data: bool | None = Field(None, description="whether an output is bytes after the JSON")


class RequestParameters(BaseModel):
    """Parameters of a request; unknown ones are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)

    binary_data_output: bool = Field(False, description="default of binary_data for all outputs")


class InferInputTensor(StrictRequestModel):
    """The images of a request: pixels of the model's own size, or encoded images in base64."""

    name: Literal["images"]
    shape: list[int] = Field(min_length=1, max_length=4, description="[N, H, W, 3] for UINT8, [N] for BYTES")
    datatype: Literal["UINT8", "BYTES"]
    data: list[Any] | None = Field(
        None, description="flat, or nested like the shape; absent when the data follows the JSON as bytes"
    )
    parameters: TensorParameters | None = None

    @property
    def binary_size(self) -> int | None:
        """Bytes of the tensor after the JSON; None when its data is in it."""
        return self.parameters.binary_data_size if self.parameters else None


class RequestedOutput(StrictRequestModel):
    """An output that the response must have."""

    name: OutputName
    parameters: TensorParameters | None = None

    def is_binary(self, default: bool) -> bool:
        """Whether it is bytes after the JSON."""
        binary = self.parameters.binary_data if self.parameters else None
        return default if binary is None else binary


class InferRequest(StrictRequestModel):
    """The body of an inference request."""

    id: str | None = Field(None, max_length=256, description="returned with the response")
    parameters: RequestParameters | None = None
    inputs: list[InferInputTensor] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] | None = Field(None, max_length=3, description="all when absent or empty")


class TensorMetadata(BaseModel):
    """Description of an input or output tensor; -1 stands for the number of images."""

    name: str
    datatype: str
    shape: list[int]


class Tensor(TensorMetadata):
    """A tensor with its values, flat in row-major order."""

    data: list[float] | list[str]


class InferResponse(BaseModel):
    """The body of an inference response."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Tensor]


class ModelMetadata(BaseModel):
    """Inputs and outputs of the served model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """Name, version and protocol extensions of the server."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    """Liveness of the server."""

    live: bool


class ServerReady(ServerLive):
    """Readiness of the server; the text of the protocol has ``live`` here, its servers have ``ready``."""

    ready: bool


class ModelReady(BaseModel):
    """Readiness of a model."""

    name: str
    ready: bool


# MLflow's scoring server


class Predictions(BaseModel):
    """Probabilities of each image, in class order."""

    predictions: list[list[float]]
