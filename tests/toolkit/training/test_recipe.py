"""The hyperparameters: what tuning proposes is always a recipe, and nonsense never is."""

import pytest
from pydantic import ValidationError

from toolkit.training.recipe import Recipe


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
        ("min_delta", [-1e-9], [0]),
        ("optimizer", ["adamw", "SGD"], ["adam", "sgd"]),
        ("model_type", ["vgg"], ["simple_cnn", "resnet18", "resnet18_backbone"]),
    ],
)
def test_ranges(name: str, outside: list[object], inside: list[object]) -> None:
    for value in outside:
        with pytest.raises(ValidationError):
            Recipe(**{name: value})
    for value in inside:
        assert getattr(Recipe(**{name: value}), name) == value


def test_a_misspelt_hyperparameter_is_refused_and_none_can_be_changed() -> None:
    with pytest.raises(ValidationError, match="learning_rat"):
        Recipe(learning_rat=0.1)
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().epochs = 3
