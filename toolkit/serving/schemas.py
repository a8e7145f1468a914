"""The JSON of requests and answers, from which ``/openapi.json`` is made."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

MAX_LABELS = 1000  # in one request


class RequestModel(BaseModel):
    """Base of what clients send: a misspelt name is an error, not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TopK(RequestModel):
    """The parameters of a prediction."""

    top_k: int | None = Field(None, ge=1, description="how many classes to list, at most as many as the model has")


def _named(label: object) -> object:
    """A class whose name is a number may be told as one; true and false are no numbers."""
    return str(label) if isinstance(label, int) and not isinstance(label, bool) else label


Label = Annotated[
    str,
    Field(min_length=1, max_length=256, description="the name of a class"),
    BeforeValidator(_named),
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
    source: str = Field("api", min_length=1, max_length=64, description="who says so")


Feedbacks = Annotated[list[Feedback], Field(min_length=1, max_length=MAX_LABELS)]


class ClassScore(BaseModel):
    """One class with its probability."""

    label: str
    probability: float


class ModelName(BaseModel):
    """The model version that answered."""

    name: str
    version: int
    stage: str


class Timings(BaseModel):
    """Milliseconds from the moment the image had arrived."""

    decode: float
    queue: float = Field(description="waiting for a free thread")
    infer: float
    total: float


class Prediction(BaseModel):
    """What the model says about one image."""

    prediction_id: str = Field(description="give it back with the true label to POST /feedback")
    predicted_class: str
    confidence: float
    top_k: list[ClassScore]
    model: ModelName
    timings_ms: Timings


class ProblemDocument(BaseModel):
    """An error, as RFC 9457 describes it."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[dict[str, str]] | None = Field(None, description="each parameter that breaks a rule")


class BatchItem(BaseModel):
    """One image of a batch: a prediction or an error."""

    index: int = Field(description="place of the image in the request, from 0")
    prediction: Prediction | None = None
    error: ProblemDocument | None = None


class Batch(BaseModel):
    """One entry for each image, in the order they were sent."""

    results: list[BatchItem]


class FeedbackError(BaseModel):
    """A label that was not recorded."""

    index: int
    error: ProblemDocument


class FeedbackResult(BaseModel):
    """How many labels were taken; telling the same one twice is fine."""

    recorded: int
    errors: list[FeedbackError] = []


# The Open Inference Protocol, version 2: its names, its required members.

OutputName = Literal["probabilities", "label", "prediction_id"]


class StrictRequestModel(RequestModel):
    """Base of what clients of the protocol send: a number is no text, and true is no number."""

    model_config = ConfigDict(strict=True)


class TensorParameters(BaseModel):
    """What else is said of a tensor; what is not known here is passed over."""

    model_config = ConfigDict(strict=True, frozen=True)

    binary_data_size: int | None = Field(None, ge=0, description="bytes of the tensor after the JSON")
    binary_data: bool | None = Field(None, description="whether an output is to be bytes after the JSON")


class RequestParameters(BaseModel):
    """What else is said of a request; what is not known here is passed over."""

    model_config = ConfigDict(strict=True, frozen=True)

    binary_data_output: bool = Field(False, description="whether outputs are bytes after the JSON unless they say so")


class InferInputTensor(StrictRequestModel):
    """The images of a request: pixels of the model's own size, or encoded images in base64."""

    name: Literal["images"]
    shape: list[int] = Field(min_length=1, max_length=4, description="[N, H, W, 3] for UINT8, [N] for BYTES")
    datatype: Literal["UINT8", "BYTES"]
    data: list[Any] | None = Field(None, description="flat, or in lists nested like the shape; or as bytes")
    parameters: TensorParameters | None = None

    @property
    def binary_size(self) -> int | None:
        """Bytes of the tensor after the JSON; None when its data is in it."""
        return self.parameters.binary_data_size if self.parameters else None


class RequestedOutput(StrictRequestModel):
    """A tensor that the answer is to hold."""

    name: OutputName
    parameters: TensorParameters | None = None

    def is_binary(self, otherwise: bool) -> bool:
        """Whether it is to be bytes after the JSON."""
        said = self.parameters.binary_data if self.parameters else None
        return otherwise if said is None else said


class InferRequest(StrictRequestModel):
    """What is sent to an ``infer`` address."""

    id: str | None = Field(None, max_length=256, description="given back with the answer")
    parameters: RequestParameters | None = None
    inputs: list[InferInputTensor] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] | None = Field(None, max_length=3, description="all when none is named")


class TensorMetadata(BaseModel):
    """A tensor that goes in or comes out; -1 is the number of images."""

    name: str
    datatype: str
    shape: list[int]


class Tensor(TensorMetadata):
    """A tensor with its values, flat, the last axis fastest."""

    data: list[float] | list[str]


class InferResponse(BaseModel):
    """What the model says about the images of a request."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Tensor]


class ModelMetadata(BaseModel):
    """What the served model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """What this server is."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    """Whether the server answers."""

    live: bool


class ServerReady(ServerLive):
    """Whether the server answers predictions; the protocol's text says ``live`` here, its servers ``ready``."""

    ready: bool


class ModelReady(BaseModel):
    """Whether a model answers predictions."""

    name: str
    ready: bool


# MLflow's scoring server.


class Predictions(BaseModel):
    """The probabilities of each image, in class order."""

    predictions: list[list[float]]
