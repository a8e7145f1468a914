"""The space that is searched: every bound and every option of it, its forms, and the file that changes it."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import yaml
from hyperopt import JOB_STATE_DONE, STATUS_OK, Trials, rand, space_eval, tpe
from hyperopt.base import Domain
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from support.trials import POINT
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
    positions,
    space_from_json,
    space_json,
)
from toolkit.tuning.space_file import read_space

Document = Mapping[str, Any]


def domain_of(space):
    return Domain(lambda point: point, expression(space))


def sampled(space, count, seed=0):
    """Random points, as Hyperopt keeps them."""
    return [document["misc"]["vals"] for document in rand.suggest(list(range(count)), domain_of(space), Trials(), seed)]


def point_of(space, vals):
    """The plain hyperparameters that a document stands for."""
    chosen = {name: values[0] for name, values in vals.items() if values}
    point = flatten(space_eval(expression(space), chosen))
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in point.items()}


@pytest.fixture(scope="module")
def documents():
    return sampled(FULL, 500)


@pytest.fixture(scope="module")
def points(documents):
    return [point_of(FULL, document) for document in documents]


# --- what is searched ---------------------------------------------------------------------------


def test_the_full_space_and_the_quick_one():
    assert {name: str(dimension) for name, dimension in FULL.items()} == {
        "learning_rate": "1e-05 to 0.001, logarithmic", "batch_size": "one of 16, 32, 64, 128",
        "epochs": "10 to 50, whole", "image_size": "one of 128, 224, 256",
        "model_type": "one of simple_cnn, resnet18, resnet18_backbone", "optimizer": "one of adam, sgd",
        "weight_decay": "one of 0.0, 0.0001, 0.001", "momentum": "0.9 to 0.99", "dropout": "0.1 to 0.5",
        "augmentation": "0.1 to 0.5", "patience": "3 to 10, whole", "min_delta": "0.0001 to 0.001",
    }  # fmt: skip
    smaller = {"model_type": "one of simple_cnn", "image_size": "one of 32", "epochs": "3 to 6, whole"}
    assert QUICK.keys() == FULL.keys()
    assert {name: str(QUICK[name]) for name in smaller} == smaller


@pytest.mark.parametrize("name", FULL)
def test_a_dimension_is_sampled_from_end_to_end(name, points):
    """Every option and every whole number; of other intervals the outer fiftieth at either end."""
    values, dimension = [point[name] for point in points if name in point], FULL[name]
    if isinstance(dimension, Choice):
        assert min(values.count(option) for option in dimension.options) > 0.8 * len(values) / len(dimension.options)
        assert {type(value) for value in values} == {type(dimension.options[0])}
    elif isinstance(dimension, Integers):
        assert set(values) == set(range(dimension.low, dimension.high + 1))
        assert {type(value) for value in values} == {int}
    else:
        change = math.log if isinstance(dimension, LogUniform) else float
        low, high = change(dimension.low), change(dimension.high)
        shares = [(change(value) - low) / (high - low) for value in values]
        assert -1e-9 <= min(shares) < 0.02
        assert 0.98 < max(shares) <= 1 + 1e-9
        assert abs(np.mean(shares) - 0.5) < 0.08  # as many in one half as in the other, on the dimension's own scale


def test_a_point_has_every_name_and_momentum_under_sgd_only(points):
    for point in points:
        assert set(point) == set(FULL) - (set() if point["optimizer"] == "sgd" else {"momentum"})
        assert Hyperparameters(**point).model_dump(include=set(point)) == point


def test_kinds_of_intervals_differ_with_equal_bounds():
    assert len({Uniform(1, 2), LogUniform(1, 2), Integers(1, 2), Uniform(1.0, 2.0)}) == 3


# --- inside and outside -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dimension", "inside", "outside"),
    [
        (Choice((16, 32)), [16, 32], [17, 0, "16", None]),
        (Choice(("adam", "sgd")), ["adam"], ["Adam", "", 0]),
        (Uniform(0.0, 1.0), [0, 0.0, 0.5, 1], [-1e-9, 1.0000001, "0.5", None, True, math.nan, math.inf]),
        (LogUniform(1e-5, 1e-3), [1e-5, 1e-4, 1e-3], [0.99e-5, 1.01e-3, 0, -1e-4, True, "x", math.nan]),
        (Integers(3, 10), [3, 10, 5.0], [2, 11, 3.5, True, "3", math.nan, math.inf]),
    ],
)
def test_what_a_dimension_contains(dimension, inside, outside):
    assert [value for value in [*inside, *outside] if dimension.contains(value)] == inside


def test_a_logarithmic_interval_contains_its_rounded_bounds():
    """exp(log(0.003)) is a little less than 0.003, and Hyperopt may propose it."""
    drawn = math.exp(math.log(0.003))
    assert drawn < 0.003
    assert LogUniform(0.003, 0.1).contains(drawn)
    assert not LogUniform(0.003, 0.1).contains(0.002999999)


SGD = {**POINT, "optimizer": "sgd", "momentum": 0.9}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {**POINT, "momentum": 0.95},
        {name: value for name, value in SGD.items() if name != "momentum"},
        {name: value for name, value in POINT.items() if name != "optimizer"},
        {**POINT, "label_smoothing": 0.1},
        {**POINT, "optimizer": "lion"},
        {**POINT, "learning_rate": 2e-3},
        {**SGD, "momentum": 0.5},
    ],
)
def test_points_outside_the_space(settings):
    assert contains(FULL, POINT)
    assert contains(FULL, SGD)
    assert not contains(FULL, settings)
    with pytest.raises(SettingsError, match=r"^the search space does not contain the point \{"):
        positions(FULL, settings)


def test_positions_match_hyperopt(documents, points):
    for document, point in zip(documents, points, strict=True):
        assert contains(FULL, point)
        assert positions(FULL, point) == document
        assert positions(FULL, json.loads(json.dumps(point))) == document
        assert type(positions(FULL, point)["epochs"][0]) is float  # as Hyperopt's own


def test_positions_match_hyperopt_after_learning():
    domain, history = domain_of(FULL), Trials()
    for number in range(40):
        history.insert_trial_docs(tpe.suggest([number], domain, history, seed=number, n_startup_jobs=5))
        history.refresh()
        document = history.trials[-1]
        vals = document["misc"]["vals"]
        point = point_of(FULL, vals)
        assert positions(FULL, point) == vals
        document["state"] = JOB_STATE_DONE
        document["result"] = {"status": STATUS_OK, "loss": abs(point["dropout"] - 0.2) + (point["optimizer"] == "adam")}
        history.refresh()


@pytest.mark.parametrize("optimizers", [("adam",), ("sgd",), ("sgd", "adam")])
def test_momentum_has_a_label_when_sgd_is_searched(optimizers):
    space = {**QUICK, "optimizer": Choice(optimizers)}
    for vals in sampled(space, 20):
        assert ("momentum" in vals) == ("sgd" in optimizers)
        assert positions(space, point_of(space, vals)) == vals


# --- as JSON ------------------------------------------------------------------------------------


def intervals(low, high):
    ends = st.tuples(*2 * [st.floats(low, high, allow_subnormal=False)]).filter(lambda pair: pair[0] != pair[1])
    pairs = ends.map(sorted)
    logarithmic = pairs.filter(lambda pair: pair[0] > 0 and math.log(pair[0]) < math.log(pair[1]))
    return pairs.map(lambda pair: Uniform(*pair)) | logarithmic.map(lambda pair: LogUniform(*pair))


def choices(values):
    return st.lists(values, min_size=1, max_size=5, unique=True).map(tuple).map(Choice)


def numbers(low, high):
    return intervals(low, high) | choices(st.floats(low, high))


def wholes(low, high):
    pairs = st.lists(st.integers(low, high), min_size=2, max_size=2, unique=True).map(sorted)
    return pairs.map(lambda pair: Integers(*pair)) | choices(st.integers(low, high))


def words(*options):
    return choices(st.sampled_from(options))


SPACES = st.fixed_dictionaries(
    {"optimizer": words("adam", "sgd"), "momentum": numbers(0, 0.999)},
    optional={
        "learning_rate": numbers(1e-300, 1),
        "dropout": numbers(0, 0.999),
        "weight_decay": numbers(0, 1),
        "epochs": wholes(1, 10_000),
        "batch_size": wholes(2, 65_536),
        "patience": wholes(1, 10**9),
        "class_weights": words("none", "balanced"),
    },
)


@given(SPACES)
def test_json_and_yaml_round_trips(space):
    values = space_json(space)
    for again in (
        space_from_json(values),
        space_from_json(json.loads(json.dumps(values))),
        read_space(json.dumps(values), {}, Hyperparameters),
        read_space(yaml.safe_dump(values, sort_keys=False), {}, Hyperparameters),
    ):
        assert list(again.items()) == list(space.items())
        assert repr(again) == repr(dict(space))  # in which 1 and 1.0 differ


@budget(max_examples=40)
@given(SPACES, st.integers(0, 2**31))
def test_positions_match_hyperopt_in_any_space(space, seed):
    for vals in sampled(space, 3, seed):
        point = point_of(space, vals)
        assert contains(space, point)
        assert positions(space, point) == vals
