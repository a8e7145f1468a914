"""A trial follows from its task alone, is pruned or fails, and the settings that trials are made of."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchvision.models import resnet18

import hyperopt_tuning
from hyperopt_tuning import TrialTask, TuneSettings, data_for, evaluate
from support.tuning_studies import settings, timeless
from toolkit.errors import DataError
from toolkit.tuning.pruning import Incumbent
from toolkit.tuning.search import FoldDone, Step
from toolkit.tuning.study import Proposal


def task_of(place, incumbent=None, **more):
    point = {"image_size": 16, "epochs": 4, "batch_size": 8, "learning_rate": 1e-3, "patience": 4, **more}
    return TrialTask(Proposal(0, point, incumbent), 3, settings(place, "task"), ("simple_cnn",))


def test_a_trial_depends_on_its_task_alone(quickest, tmp_path, monkeypatch):
    monkeypatch.setattr(hyperopt_tuning, "STEP_INTERVAL_S", 0.0)
    reports = []
    torch.manual_seed(1)
    one = evaluate(task_of(quickest), reports.append)
    torch.manual_seed(2)
    other = evaluate(task_of(quickest)._replace(folder=tmp_path))
    assert timeless(one.trial.json()) == timeless(other.trial.json())
    assert one.logits is not None
    assert np.array_equal(one.logits, other.logits)
    data = data_for(task_of(quickest).data, 16, ("simple_cnn",))
    assert one.logits.shape == (len(data.development), 3)
    steps = [step for step in reports if isinstance(step, Step)]
    assert list(dict.fromkeys(step for step in steps if 4 * step.share == step.epoch)) == [
        Step(fold, epoch, epoch / 4) for fold in range(3) for epoch in range(1, 1 + len(one.trial.folds[fold].epochs))
    ]
    shares = [step.fold + step.share for step in steps]
    assert shares == sorted(shares)
    assert len(shares) > 2 * 3 * 4, "also within the epochs"
    assert [done for done in reports if isinstance(done, FoldDone)] == [
        FoldDone(number, fold) for number, fold in enumerate(one.trial.folds)
    ]
    third = len(data.development) - len(data.development) // 3
    for fold in one.trial.folds:
        assert abs(fold.images / len(fold.epochs) - third) <= 3


@pytest.mark.parametrize(
    ("curve", "folds", "reason"),
    [
        ((0.1, 1.0, 1.0, 1.0), 1, "in fold 1 after epoch "),
        ((0.0, 0.0, 0.0, 0.999), 1, "after fold 1 of 3: "),
        ((0.0, 0.0, 0.0, 0.1), 3, ""),
    ],
)
def test_a_trial_is_pruned(quickest, curve, folds, reason):
    task = task_of(quickest, Incumbent(6, (curve,) * 3, epochs=4), learning_rate=1e-6)
    result = evaluate(task)
    assert result.trial.state == ("pruned" if reason else "complete")
    assert result.trial.reason.startswith(reason)
    assert len(result.trial.folds) == folds
    assert (result.logits is None) == bool(reason)
    assert result.trial.images == sum(fold.images for fold in result.trial.folds) > 0


def test_a_diverging_trial_fails(quickest, tmp_path):
    """Weights of NaN have the first loss diverge."""
    state = resnet18(weights=None).state_dict()
    state["bn1.weight"].fill_(float("nan"))
    torch.save(state, tmp_path / "nan.pth")
    task = task_of(quickest, image_size=32, model_type="resnet18_backbone")
    data = task.data.model_copy(update={"weights": str(tmp_path / "nan.pth")})
    trial = evaluate(task._replace(data=data, networks=("resnet18_backbone",))).trial
    assert (trial.state, trial.folds) == ("failed", ())
    assert trial.reason.startswith("the loss became nan in epoch 1; try a ")


def test_changed_images_are_refused(quickest):
    task = task_of(quickest)._replace(fingerprint="of others")
    with pytest.raises(DataError, match=r"^the images of .*colours have changed since the study began$"):
        evaluate(task)


def test_incompatible_settings_are_a_failed_trial(quickest):
    trial = evaluate(task_of(quickest, model_type="resnet18_backbone", mixup=0.4)).trial
    assert (trial.state, trial.folds) == ("failed", ())
    assert trial.reason.startswith("--mixup and --cutmix change images")


# --- settings -----------------------------------------------------------------------------------


def test_default_number_of_trials():
    assert TuneSettings().trials == 30
    assert TuneSettings(preset="quick").trials == 6
    assert TuneSettings(preset="quick", max_trials=2).trials == 2
    assert (TuneSettings().folds, TuneSettings().prune) == (5, True)


@pytest.mark.parametrize("name", ["last", "", "..", "a/b", ".hidden", "x" * 101])
def test_study_names(name):
    with pytest.raises(ValidationError):
        TuneSettings(study_name=name)
    assert TuneSettings(study_name="flowers_2.1-b").study_name == "flowers_2.1-b"
