"""The JSON of requests and answers, from which ``/openapi.json`` is made."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MOST_LABELS = 1000  # in one request


class Asked(BaseModel):
    """Base of what clients send: a misspelt name is an error, not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TopK(Asked):
    """The parameters of a prediction."""

    top_k: int | None = Field(None, ge=1, description="how many classes to list, at most as many as the model has")


class Feedback(Asked):
    """The true label of a prediction."""

    prediction_id: str = Field(min_length=1, max_length=64)
    label: str = Field(min_length=1, max_length=256, description="the name of a class")
    source: str = Field("api", min_length=1, max_length=64, description="who says so")


Feedbacks = Annotated[list[Feedback], Field(min_length=1, max_length=MOST_LABELS)]


class Ranked(BaseModel):
    """One class with its probability."""

    label: str
    probability: float


class ModelName(BaseModel):
    """The model version that answered."""

    name: str
    version: int
    stage: str


class Timings(BaseModel):
    """Milliseconds from the moment the picture had arrived."""

    decode: float
    queue: float = Field(description="waiting for a free thread")
    infer: float
    total: float


class Prediction(BaseModel):
    """What the model says about one picture."""

    prediction_id: str = Field(description="give it back with the true label to POST /feedback")
    predicted_class: str
    confidence: float
    top_k: list[Ranked]
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
    """One picture of a batch: a prediction or an error."""

    index: int = Field(description="place of the picture in the request, from 0")
    prediction: Prediction | None = None
    error: ProblemDocument | None = None


class Batch(BaseModel):
    """One entry for each picture, in the order they were sent."""

    results: list[BatchItem]


class FeedbackError(BaseModel):
    """A label that was not recorded."""

    index: int
    error: ProblemDocument


class Recorded(BaseModel):
    """How many labels were taken; telling the same one twice is fine."""

    recorded: int
    errors: list[FeedbackError] = []
