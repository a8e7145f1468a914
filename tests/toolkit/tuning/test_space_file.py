"""Files about a search say what they mean, or one line says what is wrong with them."""

import re

import numpy as np
import pytest
from hyperopt.base import Domain
from hyperopt.pyll.stochastic import sample
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from pydantic import BaseModel, Field, model_validator

from support import ROOT
from toolkit.errors import SettingsError
from toolkit.training.hyperparameters import Hyperparameters
from toolkit.tuning.space import (
    FULL,
    QUICK,
    Choice,
    Integers,
    LogUniform,
    Uniform,
    contains,
    expression,
    flatten,
)
from toolkit.tuning.space_file import read_points, read_space

FILE = """
learning_rate: {low: 1e-5, high: 1e-1, log: true}
batch_size: [16, 32]
epochs: {low: 5, high: 20}
image_size: 128            # fixed
model_type: [simple_cnn, resnet18]
label_smoothing: {low: 0, high: 0.2}
"""


def test_a_file_changes_only_what_it_names():
    space = read_space(FILE, FULL, Hyperparameters)
    assert space == {
        **FULL,
        "learning_rate": LogUniform(1e-5, 1e-1),
        "batch_size": Choice((16, 32)),
        "epochs": Integers(5, 20),
        "image_size": Choice((128,)),
        "model_type": Choice(("simple_cnn", "resnet18")),
        "label_smoothing": Uniform(0.0, 0.2),
    }
    assert list(space) == [*FULL, "label_smoothing"]
    generator = np.random.default_rng(0)
    for _ in range(30):
        point = flatten(sample(expression(space), generator))
        assert contains(space, point)
        assert 0 <= Hyperparameters(**point).label_smoothing <= 0.2


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("learning_rate: 1e-5", Choice((1e-5,))),  # a word in YAML 1.1
        ('learning_rate: {"low": "1e-5", "high": 1.0e-3}', Uniform(1e-5, 1e-3)),
        ("learning_rate:\n  low: 0.00001\n  high: 1E-3\n  log: True", LogUniform(1e-5, 1e-3)),
        ("learning_rate: {low: 0.1, high: 0.2, log: false}", Uniform(0.1, 0.2)),
        ("weight_decay: [0, 1e-4, .001]", Choice((0.0, 1e-4, 1e-3))),
        ("weight_decay:\n- 0\n- 1", Choice((0.0, 1.0))),
        ("batch_size: [16.0, 1_000, 010]", Choice((16, 1000, 10))),  # 010 would be eight
        ("batch_size: &some [16, 32]\nimage_size: *some", Choice((16, 32))),
        ("class_weights: none", Choice(("none",))),
        ("optimizer: [sgd]", Choice(("sgd",))),
        ("\ufeffepochs: {high: 6, low: 2}", Integers(2, 6)),
        ("momentum: 0.5\noptimizer: adam", Choice((0.5,))),  # of no use, and no harm
    ],
)
def test_values_of_a_space(text, dimension):
    (name,) = re.findall(r"^\W?(\w+)", text)
    space = read_space(text, QUICK, Hyperparameters)
    assert repr(space[name]) == repr(dimension)
    Domain(lambda point: point, expression(space))  # Hyperopt takes it


NETWORKS = "simple_cnn, resnet18, resnet18_backbone"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # the text as a whole
        ("epochs: [5, 6", "line 1: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'"),
        ("epochs: 5\nbatch_size: 16: 32\n", "line 2: mapping values are not allowed here"),
        ("epochs: 5\n---\nepochs: 6", "line 2: expected a single document in the stream, but found another document"),
        ("epochs: *some", "line 1: found undefined alias 'some'"),
        ("epochs: \x00", "is not YAML: unacceptable character #x0000: special characters are not allowed"),
        ('epochs: "\\UFFFFFFFF"', "is not YAML: ..."),
        ("", "must give hyperparameters by name, such as epochs: {low: 5, high: 20}"),
        ("[epochs]", "must give hyperparameters by name, such as epochs: {low: 5, high: 20}"),
        # names
        ("learning_rat: 1", "learning_rat: is not a hyperparameter; there are: learning_rate, ..."),
        ('"a\\e[2J": 2', "'a\\x1b[2J': is not a hyperparameter; there are: ..."),
        ("<<: {epochs: 5}", "<<: is not a hyperparameter; there are: ..."),
        ("epochs: 5\n[a]: 2", "line 2: while constructing a mapping, found unhashable key"),
        ("epochs: 5\npatience: 3\nepochs: 5", "line 3: epochs is given twice"),
        ("epochs: {low: 5, high: 6,\n low: 5}", "line 2: low is given twice"),
        # lists and single values
        ("batch_size: []", "batch_size: must have 1 to 100 options, got 0"),
        (f"patience: {list(range(1, 102))}", "patience: must have 1 to 100 options, got 101"),
        ("weight_decay: [0, 1e-4, 0.0001]", "weight_decay: 0.0001 is listed twice"),
        ("batch_size: [16, [32]]", "batch_size: must be a whole number, got a list"),
        ("batch_size: [16, {low: 1}]", "batch_size: must be a whole number, got a mapping"),
        ("batch_size: &a [*a]", "line 1: found unconstructable recursive node"),
        ("epochs: many", "epochs: must be a whole number, got many"),
        ("epochs:", "epochs: must be a whole number, got nothing"),
        ("epochs: 1:30", "epochs: must be a whole number, got 1:30"),
        ("epochs: 5.5", "epochs: must be a whole number, got 5.5"),
        ("dropout: .nan", "dropout: must be a number, got .nan"),
        ("dropout: [0.1, 1e999]", "dropout: must be less than 1, got 1e999"),
        (f"epochs: {'9' * 70}e", f"epochs: must be a whole number, got {'9' * 57}..."),
        # what the model refuses
        ("learning_rate: {low: 1e-5, high: 5, log: true}", "learning_rate: high must be at most 1, got 5"),
        ("learning_rate: {low: 0, high: 1}", "learning_rate: low must be more than 0, got 0"),
        ("batch_size: [1, 16]", "batch_size: must be at least 2, got 1"),
        ("dropout: {low: 0.1, high: 1}", "dropout: high must be less than 1, got 1"),
        ("model_type: resnet81", f"model_type: must be one of {NETWORKS}, got resnet81"),
        ("optimizer:", "optimizer: must be one of adam, sgd, got nothing"),
        ('optimizer: "a\\nb"', "optimizer: must be one of adam, sgd, got 'a\\nb'"),
        # intervals
        ("epochs: {low: 5}", "epochs: high is required"),
        ("epochs: {low: 5, hihg: 9}", "epochs: hihg is not a setting, got 9"),
        ("epochs: {low: 9, high: 5}", "epochs: low must be less than high, got 9 and 5"),
        ("epochs: {low: 1, high: 2.5}", "epochs: high must be a whole number, got 2.5"),
        ("dropout: {low: 0, high: 0.5, log: true}", "dropout: low must be more than 0 with log, got 0"),
        (
            "dropout: {low: 0.1, high: 0.10000000000000002, log: true}",  # their logarithms are equal
            "dropout: low must be less than high, got 0.1 and 0.10000000000000002",
        ),
        ("dropout: {low: 0.1, high: 0.5, log: maybe}", "dropout: log must be true or false, got maybe"),
        (
            "batch_size: {low: 16, high: 64, log: true}",
            "batch_size: log is not for whole numbers; list some, such as [16, 32, 64]",
        ),
        ("optimizer: {low: 1, high: 2}", "optimizer: must be a word or a list of words; low and high are for numbers"),
    ],
)
def test_errors_of_a_space_are_one_line(text, message):
    with pytest.raises(SettingsError) as caught:
        read_space(text, FULL, Hyperparameters)
    said = str(caught.value)
    assert re.fullmatch(re.escape(message).replace(re.escape("..."), ".*"), said)
    assert said.isprintable()  # and so in one line


def test_incompatible_hyperparameters_are_refused():
    for mixup, shown in (("{low: 0, high: 0.4}", "0.4"), ("[0, 0.2]", "0.2"), ("1", "1")):
        message = rf"^mixup: {shown} does not go with model_type resnet18_backbone: --mixup and .* choose resnet18$"
        with pytest.raises(SettingsError, match=message):
            read_space(f"mixup: {mixup}", FULL, Hyperparameters)
    with pytest.raises(SettingsError, match=r"^model_type: resnet18_backbone does not go with cutmix 1: "):
        read_space("model_type: [resnet18, resnet18_backbone]", {**FULL, "cutmix": Choice((0.0, 1.0))}, Hyperparameters)
    allowed = read_space("mixup: {low: 0, high: 0.4}\nmodel_type: [simple_cnn, resnet18]", FULL, Hyperparameters)
    assert allowed["mixup"] == Uniform(0.0, 0.4)
    assert read_space("mixup: 0", FULL, Hyperparameters)["mixup"] == Choice((0.0,))


class Exclusive(BaseModel):
    """Rules about several hyperparameters."""

    red: int = Field(0, ge=0)
    green: int = Field(0, ge=0)
    blue: int = Field(0, ge=0)
    alpha: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _no_mixtures(self) -> "Exclusive":
        if self.red and self.green and not self.blue:
            raise ValueError("red and green need blue")
        if self.alpha > 9 and not self.blue:
            raise ValueError("much alpha needs blue")
        return self


def test_only_points_of_the_space_are_checked():
    """With the model's own default of blue, red and green would be refused."""
    text = "red: [0, 1]\ngreen: [0, 1]\nalpha: [5, 6]"
    assert read_space(f"{text}\nblue: [1, 2]", {}, Exclusive)["red"] == Choice((0, 1))
    for blue in ("", "\nblue: [0, 1]"):
        with pytest.raises(SettingsError, match=r"^red: 1 does not go with green 1: red and green need blue$"):
            read_space(text + blue, {}, Exclusive)
    with pytest.raises(SettingsError, match=r"^alpha: 10 does not go with the defaults of the others: much alpha"):
        read_space("alpha: [5, 10]", {}, Exclusive)
    with pytest.raises(SettingsError, match=r"^blue: must be at least 0, got -1$"):
        read_space("blue: -1", {}, Exclusive)


def test_nested_aliases_do_not_grow():
    assert read_space("epochs: 5\n" + "#" * 65_526, FULL, Hyperparameters)["epochs"] == Choice((5,))
    with pytest.raises(SettingsError, match=r"^has 65,537 characters; at most 65,536 are read$"):
        read_space("epochs: 5\n" + "#" * 65_527, FULL, Hyperparameters)
    for deep in ("[" * 65_000, "{a: " * 16_000, "? " * 32_000, "- " * 32_000):
        with pytest.raises(SettingsError, match=r"^is nested too deeply$"):
            read_space(deep, FULL, Hyperparameters)
    bomb = ", ".join(f"&a{n} [{', '.join(9 * [f'*a{n - 1}'])}]" for n in range(1, 30))  # 9**29 ones
    with pytest.raises(SettingsError, match=r"^patience: must be a whole number, got a list$"):
        read_space(f"patience: [&a0 [1], {bomb}]", FULL, Hyperparameters)


FRAGMENTS = (
    *("epochs: ", "dropout: ", "optimizer: ", "low: ", "high: ", "log: ", "adam", "true", "null", "1e-3", "0.5", "7"),
    *(*"[]{},:\n'\"#!%~@=|>?-*&\t\r", "\n  ", "\n- ", "&a ", "*a", "!!int ", "---\n", "<<", "\\U", ".nan", "\x85", "é"),
)


@budget(max_examples=200)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join) | st.text(max_size=30))
def test_any_text_is_a_space_or_one_line(text):
    try:
        space = read_space(text, QUICK, Hyperparameters)
    except SettingsError as error:
        said = str(error)
    else:
        said = "".join(map(str, space.values()))
    assert said.isprintable()


# --- what is tried first ------------------------------------------------------------------------


def test_values_of_points():
    text = """
    - {learning_rate: 1e-4, epochs: 20}
    - optimizer: sgd
      momentum: 0.95
      model_type: resnet18
    """
    assert read_points(text, FULL, Hyperparameters) == [
        {"learning_rate": 1e-4, "epochs": 20},
        {"optimizer": "sgd", "momentum": 0.95, "model_type": "resnet18"},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a list of 1 to 100 entries, such as - {epochs: 20, dropout: 0.2}"),
        ("epochs: 20", "must be a list of 1 to 100 entries, such as - {epochs: 20, dropout: 0.2}"),
        ("- 3", "entry 1: must give hyperparameters by name, such as {epochs: 20, dropout: 0.2}"),
        ("- epochs: 20\n- epoch: 20", "entry 2: epoch: is not searched; there are: epochs, learning_rate, "),
        ("- epochs: 9", "entry 1: epochs: must be 10 to 50, whole, got 9"),
        ("- epochs: [10, 20]", "entry 1: epochs: must be a whole number, got a list"),
        ("- batch_size: 48", "entry 1: batch_size: must be one of 16, 32, 64, 128, got 48"),
        ("- optimizer: sgd", "entry 1: momentum: must be given where the optimizer is sgd, and only there"),
        ("- momentum: 0.95", "entry 1: momentum: must be given where the optimizer is sgd, and only there"),
        ("- epochs: 20\n  epochs: 30", "line 2: epochs is given twice"),
        ("- [", "line 1: while parsing a flow node"),
        ("- " + "a" * 70_000, "has 70,002 characters; at most 65,536 are read"),
    ],
)
def test_errors_of_points_are_one_line(text, message):
    with pytest.raises(SettingsError) as error:
        read_points(text, FULL, Hyperparameters)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_examples_of_the_documentation():
    space, points = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/tuning.md").read_text(), re.DOTALL)
    wider = read_space(space, FULL, Hyperparameters)
    assert wider["label_smoothing"] == Uniform(0.0, 0.2)
    assert len(read_points(points, {**FULL, "image_size": Choice((128,))}, Hyperparameters)) == 2


def test_table_of_the_documentation():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", (ROOT / "docs/tuning.md").read_text(), re.MULTILINE)
    assert rows == [(name, *(str(preset[name]).removeprefix("one of ") for preset in (FULL, QUICK))) for name in FULL]
