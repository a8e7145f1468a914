"""A trial's metrics follow from its folds, and all of it survives a round through text."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from support.trials import fold
from toolkit.tuning.trial import Fold, Trial

SETTINGS = {"model_type": "resnet18", "learning_rate": 3.0000000000000004e-05, "epochs": 12, "optimizer": "adam"}


# --- metrics ------------------------------------------------------------------------------------


def test_a_trial_is_the_mean_of_its_folds():
    """0.5, 0.75 and 1 are a quarter from their mean: a sample standard deviation of sqrt(0.125 / 2)."""
    trial = Trial(0, SETTINGS, "complete", (fold(0.25, 0.5), fold(0.75, 0.0), fold(1.0)), seconds=7.5)
    assert trial.folds[0].curve == (0.25, 0.5)
    assert trial.accuracies == (0.5, 0.75, 1.0)
    assert trial.mean_accuracy == 0.75
    assert trial.std_accuracy == 0.25
    assert trial.images == 240


def test_the_noise_of_a_fold_is_at_least_one_image():
    alike, apart = (
        Trial(0, SETTINGS, "complete", tuple(replace(fold(accuracy), validation_images=10) for accuracy in accuracies))
        for accuracies in ((0.9, 0.9), (0.9, 0.7))
    )
    assert alike.noise == 0.1
    assert apart.noise == apart.std_accuracy > 0.1
    assert alike.standard_error == 0.1 / math.sqrt(2)


def test_a_trial_with_few_folds():
    begun = Trial(0, SETTINGS, "pruned", (fold(0.25, 0.5),))
    assert begun.mean_accuracy == 0.5
    assert math.isnan(begun.std_accuracy)
    none = Trial(0, SETTINGS, "failed")
    assert (none.accuracies, none.images, none.seconds, none.reason) == ((), 0, 0.0, "")
    assert math.isnan(none.mean_accuracy)
    assert math.isnan(none.std_accuracy)


# --- text ---------------------------------------------------------------------------------------

PLOTS = ("train_loss", "train_accuracy", "val_loss", "learning_rate", "batch_time_ms", "images_per_s")
numbers = st.floats(allow_nan=False, allow_infinity=False)
epochs = st.fixed_dictionaries(
    {"epoch": st.integers(1, 50), "val_accuracy": st.floats(0, 1), **dict.fromkeys(PLOTS, numbers)}
)
folds = st.builds(
    Fold, st.lists(epochs, min_size=1, max_size=4).map(tuple), st.integers(1, 4), st.floats(0, 1e6), st.integers(0)
)
trials = st.builds(
    Trial,
    st.integers(0),
    st.dictionaries(st.text(), st.text() | st.integers() | numbers, max_size=4),
    st.sampled_from(["complete", "pruned", "failed"]),
    st.lists(folds, max_size=3).map(tuple),
    st.floats(0, 1e6),
    st.text(),
)


@budget(max_examples=50)
@given(trials)
def test_json_round_trip(trial):
    """To the last digit, and with the kinds of its numbers: 3 is not 3.0."""
    values = trial.json()
    assert repr(Trial.from_json(values)) == repr(trial)
    again = Trial.from_json(json.loads(json.dumps(values)))
    assert again == trial
    assert repr(again) == repr(trial)
    assert again.accuracies == trial.accuracies


@pytest.mark.parametrize("wrong", [{"state": "pruned"}, {"folds": [{"epochs": []}]}, {"folds": None}, {"mean": 0.5}])
def test_other_values_are_no_trial(wrong):
    values = wrong if "state" in wrong else {**Trial(0, {}, "complete").json(), **wrong}
    with pytest.raises((KeyError, TypeError, ValueError)):
        Trial.from_json(values)
