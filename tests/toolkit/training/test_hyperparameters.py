"""The hyperparameters: proposals of tuning are always valid, and nonsense is refused."""

import pytest
from pydantic import ValidationError

from toolkit.training.hyperparameters import Hyperparameters


@pytest.mark.parametrize(
    ("name", "outside", "inside"),
    [
        ("image_size", [15, 1025], [16, 1024]),
        ("epochs", [0], [1]),
        ("batch_size", [1], [2]),
        ("learning_rate", [0, 1.01, float("nan")], [1e-9, 1]),
        ("momentum", [-0.1, 1], [0, 0.999]),
        ("dropout", [-0.1, 1], [0, 0.99]),
        ("augmentation", [-0.1, 1.1], [0, 1]),
        ("weight_decay", [-1e-9, 1.1], [0, 1]),
        ("patience", [0], [1]),
        ("min_delta", [-1e-9, 1.1], [0, 1]),
        ("class_weights", ["Balanced", ""], ["none", "balanced"]),
        ("label_smoothing", [-0.1, 1], [0, 0.99]),
        ("mixup", [-0.1, 11], [0, 10]),
        ("cutmix", [-0.1, 11], [0, 10]),
        ("ema_decay", [-0.1, 1], [0, 0.9999]),
        ("progressive_resize", [0.2, 1.1], [0.25, 1]),
        ("feature_views", [0, 65], [1, 64]),
        ("optimizer", ["adamw", "SGD"], ["adam", "sgd"]),
        ("model_type", ["vgg"], ["simple_cnn", "resnet18", "resnet18_backbone"]),
    ],
)
def test_ranges(name, outside, inside):
    for value in outside:
        with pytest.raises(ValidationError):
            Hyperparameters(**{name: value})
    for value in inside:
        assert getattr(Hyperparameters(**{name: value}), name) == value


def test_a_misspelt_hyperparameter_is_refused_and_none_can_be_changed():
    with pytest.raises(ValidationError, match="learning_rat"):
        Hyperparameters(learning_rat=0.1)
    with pytest.raises(ValidationError, match="frozen"):
        Hyperparameters().epochs = 3


def test_what_is_optional_is_off_until_it_is_asked_for():
    hparams = Hyperparameters()
    assert (hparams.class_weights, hparams.progressive_resize) == ("none", 1.0)
    assert hparams.label_smoothing == hparams.mixup == hparams.cutmix == hparams.ema_decay == 0


@pytest.mark.parametrize("switch", ["mixup", "cutmix"])
def test_features_that_were_computed_before_cannot_be_mixed(switch):
    message = (
        "--mixup and --cutmix change images, and resnet18_backbone is trained on features that were computed before;"
        " leave them at 0 or choose resnet18"
    )
    with pytest.raises(ValidationError, match=message):
        Hyperparameters(model_type="resnet18_backbone", **{switch: 0.2})
    for model_type in ("simple_cnn", "resnet18"):
        assert getattr(Hyperparameters(model_type=model_type, **{switch: 0.2}), switch) == 0.2
