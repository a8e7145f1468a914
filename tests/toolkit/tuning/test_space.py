"""The space that is searched: every bound and every option of it."""

import pytest
from hyperopt import pyll

from toolkit.tuning.space import FULL, PRESETS, QUICK, Choice, Integers, LogUniform, Uniform, expression, flatten


def test_the_full_space_is_exactly_this() -> None:
    expected = {
        "learning_rate": LogUniform(1e-5, 1e-3),
        "batch_size": Choice((16, 32, 64, 128)),
        "epochs": Integers(10, 50),
        "image_size": Choice((128, 224, 256)),
        "model_type": Choice(("simple_cnn", "resnet18", "resnet18_backbone")),
        "optimizer": Choice(("adam", "sgd")),
        "weight_decay": Choice((0.0, 1e-4, 1e-3)),
        "momentum": Uniform(0.9, 0.99),
        "dropout": Uniform(0.1, 0.5),
        "augmentation": Uniform(0.1, 0.5),
        "patience": Integers(3, 10),
        "min_delta": Uniform(1e-4, 1e-3),
    }
    assert expected == FULL
    assert PRESETS == {"full": FULL, "quick": QUICK}


def test_the_quick_space_has_the_same_dimensions_and_fewer_or_smaller_values() -> None:
    assert set(QUICK) == set(FULL)
    assert QUICK["model_type"] == Choice(("simple_cnn",))
    assert QUICK["image_size"] == Choice((32,))
    assert QUICK["epochs"] == Integers(3, 6)


@pytest.mark.parametrize(
    ("dimension", "text"),
    [
        (Choice((16, 32)), "one of 16, 32"),
        (Uniform(0.1, 0.5), "0.1 to 0.5"),
        (LogUniform(1e-5, 1e-3), "1e-05 to 0.001, logarithmic"),
        (Integers(3, 10), "3 to 10, whole"),
    ],
)
def test_a_dimension_describes_itself(dimension: Choice | Uniform | LogUniform | Integers, text: str) -> None:
    assert str(dimension) == text


def test_momentum_is_searched_under_sgd_only() -> None:
    searched = expression(FULL)
    assert set(searched) == set(FULL) - {"momentum"}
    options = searched["optimizer"].pos_args[1:]
    names = [dict(option.named_args) for option in options]
    assert [set(option) for option in names] == [{"optimizer"}, {"optimizer", "momentum"}]
    assert all(isinstance(option, pyll.Apply) for option in options)


def test_a_nested_point_becomes_flat() -> None:
    assert flatten({"epochs": 3, "optimizer": {"optimizer": "sgd", "momentum": 0.95}}) == {
        "epochs": 3,
        "optimizer": "sgd",
        "momentum": 0.95,
    }
