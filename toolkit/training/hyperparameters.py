"""The hyperparameters of one training: what tuning searches and a run records."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Hyperparameters(BaseModel):
    """The hyperparameters of one training; the ranges are the sensible ones, tuning searches narrower ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_type: Literal["simple_cnn", "resnet18", "resnet18_backbone"] = Field(
        "simple_cnn", description="network; resnet18_backbone trains only a new head on frozen features"
    )
    image_size: int = Field(64, ge=16, le=1024, description="side of the square images in pixels")
    epochs: int = Field(15, ge=1, le=10_000, description="maximum number of passes over the training images")
    batch_size: int = Field(32, ge=2, le=65_536, description="images per step")
    learning_rate: float = Field(
        1e-3, gt=0, le=1, description="largest step size, after a warm-up and before a cosine decay"
    )
    optimizer: Literal["adam", "sgd"] = Field("adam", description="adam with decoupled weight decay, or sgd")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="pull of the weights towards zero")
    momentum: float = Field(0.9, ge=0, lt=1, description="share of the last step that is kept (sgd only)")
    dropout: float = Field(0.2, ge=0, lt=1, description="share of features dropped before the last layer")
    augmentation: float = Field(0.1, ge=0, le=1, description="strength of random changes to training images")
    patience: int = Field(5, ge=1, description="epochs without improvement before training stops")
    min_delta: float = Field(1e-3, ge=0, le=1, description="smallest change that counts as an improvement")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: errors on rare classes cost as much in all as those on frequent ones"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    mixup: float = Field(0.0, ge=0, le=10, description="alpha of mixup, which blends pairs of images; 0: off")
    cutmix: float = Field(0.0, ge=0, le=10, description="alpha of cutmix, which pastes one into another; 0: off")
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="decay per step of the average of the weights, such as 0.99; 0: off"
    )
    progressive_resize: float = Field(
        1.0,
        ge=0.25,
        le=1,
        description="share of the image side in the first epoch; it grows over two thirds of the epochs",
    )
    feature_views: int = Field(
        4, ge=1, le=64, description="versions of each image, the unchanged one included, that a frozen backbone runs on"
    )

    @model_validator(mode="after")
    def _features_cannot_be_mixed(self) -> "Hyperparameters":
        if self.model_type == "resnet18_backbone" and (self.mixup or self.cutmix):
            raise ValueError(
                "--mixup and --cutmix change images, and resnet18_backbone is trained on features that were computed"
                " before; leave them at 0 or choose resnet18"
            )
        return self
