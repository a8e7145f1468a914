"""Cross-validation, and training by several processes."""

import math
import os
import re
import shlex
import signal
from contextlib import chdir
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import nn
from torchvision.models import ResNet

from model_registry import ModelRegistry
from support import MAX_WAIT_S, ROOT, wait_until
from support.forked_processes import Ended
from support.paused_training import pause_at_step
from support.servers import free_port
from support.training_runs import FOLDS, REPEATABLE, STORY, last_line, require_same
from toolkit.training.checkpointing.checkpoint import open_checkpoint
from toolkit.training.device import Device
from train_cnn import FitConfig, Hyperparameters, TrainingData, TrainSettings, cross_validate, load_images, train


@pytest.fixture(scope="module")
def folds(place):
    """An uninterrupted cross-validation, by a process that begins with nothing imported."""
    process = place.typed(
        f"python {ROOT}/train_cnn.py {shlex.join(FOLDS)} --experiment-name folds --register from-folds"
    )
    out, err = process.communicate(timeout=MAX_WAIT_S)
    return Ended(out, err, process.returncode)


def test_cross_validation_logs_folds_and_a_final_model(place, folds):
    assert (folds.status, folds.err) == (0, "")
    assert re.findall(r"^fold (\d): validation accuracy ", folds.out, re.MULTILINE) == ["1", "2", "3"]
    run, nested = place.run_of("folds"), place.runs("folds", "fold")
    accuracies = [fold.data.metrics["best_val_accuracy"] for fold in nested]
    assert [fold.data.tags["fold"] for fold in nested] == ["0", "1", "2"]
    assert {fold.data.tags["mlflow.parentRunId"] for fold in nested} == {run.info.run_id}
    assert {fold.info.status for fold in nested} == {"FINISHED"}
    assert all(place.steps(fold, "val_loss") == [1, 2, 3, 4] for fold in nested)
    metrics = run.data.metrics
    assert metrics["mean_cv_accuracy"] == pytest.approx(sum(accuracies) / 3)
    squares = sum((accuracy - sum(accuracies) / 3) ** 2 for accuracy in accuracies)
    assert metrics["std_cv_accuracy"] == pytest.approx(math.sqrt(squares / 2))
    assert place.history(run, "fold_accuracy") == list(enumerate(accuracies))
    epochs = round(float(np.median([fold.data.metrics["best_epoch"] for fold in nested])))
    assert place.steps(run, "train_loss") == list(range(1, epochs + 1))
    assert "val_loss" not in metrics
    card = place.bundle(run).card
    assert card.metrics["mean_cv_accuracy"].value == metrics["mean_cv_accuracy"]
    assert card.metrics["mean_cv_accuracy"].images == card.data["development"]
    assert f"mean cv accuracy       {metrics['mean_cv_accuracy']:.4f}" in folds.out
    assert f"spread over the folds  {metrics['std_cv_accuracy']:.4f}" in folds.out


def test_register_flag_registers_the_model(place, folds):
    run = place.run_of("folds")
    version = ModelRegistry(place.uri, "from-folds").get(1)
    assert (version.run_id, version.tags["selected_by"]) == (run.info.run_id, "by hand")
    assert folds.out.splitlines()[-2:] == [
        f"v1 of from-folds registered from run {run.info.run_id}",
        "next: python model_registry.py --model-name 'from-folds' promote 1 Production",
    ]


def test_resumed_cross_validation_comes_to_the_same_result(place, folds, forked):
    def started(*words, prepare=None):
        return forked.start("train_cnn.py", *words, folder=place.folder, prepare=prepare, **place.variables)

    pause = partial(pause_at_step, (4 + 1) * 33 + 10)  # in the second epoch of the second fold
    first = started(*FOLDS, "--experiment-name", "folds again", "--register", "resumed folds", prepare=pause)
    first.wait_for_pause()
    (run,) = place.runs("folds again")
    refused = started("--resume", run.info.run_id).end()
    reason = f"run {run.info.run_id} is being trained by process {first.pid}; wait for it or stop it"
    assert (refused.status, refused.err) == (2, f"train_cnn.py: error: {reason}\n")
    os.kill(first.pid, signal.SIGTERM)
    first.go_on()
    assert first.end().status == 143
    phases = open_checkpoint(run.info.run_id, place.folder / "checkpoints").phases
    assert list(phases) == ["fold 1", "fold 2"]
    assert (len(phases["fold 2"].values["history"]), phases["fold 2"].values["step"]) == (1, 10)
    pause = partial(pause_at_step, 33 - 10 + (2 + 4) * 33 + 40)  # in the first epoch of the final training
    second = started("--resume", run.info.run_id, prepare=pause)
    second.wait_for_pause()
    said = second.out
    os.kill(second.pid, signal.SIGKILL)
    assert second.end().status == -signal.SIGKILL
    assert re.findall(r"^fold (\d): ", said, re.MULTILINE) == ["2", "3"]
    last = started("--resume", run.info.run_id, "--cache-dir", "other cache").end()
    assert (last.status, last.err) == (0, "")
    assert any((place.folder / "other cache").iterdir())
    assert not re.findall(r"^fold (\d): ", last.out, re.MULTILINE)
    assert ModelRegistry(place.uri, "resumed folds").get(1).run_id == run.info.run_id  # as the first command said
    run, nested = place.run_of("folds again"), place.runs("folds again", "fold")
    require_same(place, run, place.folder / "checkpoints" / f"{run.info.run_id}.pt", place, "folds")
    for fold, other in zip(nested, place.runs("folds", "fold"), strict=True):
        for name in REPEATABLE & set(other.data.metrics):
            assert place.history(fold, name) == place.history(other, name), name


def test_cross_validation_depends_on_hparams_data_and_seed_alone(place):
    with chdir(place.folder):
        data = TrainingData(*load_images(TrainSettings(data="colours"), 16), None, "random")
    hparams, cpu = Hyperparameters(image_size=16, epochs=1, batch_size=16), Device("cpu", torch.float32)
    torch.manual_seed(1)
    first = cross_validate(data, FitConfig(hparams, 7, cpu), 2)
    torch.manual_seed(2)
    second = cross_validate(data, FitConfig(hparams, 7, cpu), 2)
    assert np.array_equal(first.logits, second.logits)
    assert first.metrics == second.metrics
    assert not np.array_equal(first.logits, cross_validate(data, FitConfig(hparams, 8, cpu), 2).logits)
    assert first.logits.shape == (len(data.development), 3)
    assert (first.logits != 0).any(axis=1).all()  # every development image was judged


def test_a_frozen_backbone_sees_each_image_once(store):
    seen = []

    def count_images(module, inputs):
        if isinstance(module, ResNet):
            seen.append(len(inputs[0]))

    settings = TrainSettings(
        data=str(store.folder / "colours"), model_type="resnet18_backbone", weights="none", image_size=32, folds=2,
        epochs=2, feature_views=3, experiment_name="frozen",
    )  # fmt: skip
    _, divided = load_images(settings, 32)
    hook = nn.modules.module.register_module_forward_pre_hook(count_images)
    outcome = train(settings)
    hook.remove()
    once = 3 * len(divided.development)
    # Then come the held-out images, and examples of a few images when the program is made.
    assert once + len(divided.held_out) <= sum(seen) < once + len(divided.held_out) + 20
    assert len(outcome.fit.history) >= 1


# --- several processes --------------------------------------------------------------------------


def all_paused(processes):
    """Whether all of two are paused; an error when one has ended instead."""
    return len(processes) == 2 and {one.status() for one in processes} == {psutil.STATUS_STOPPED}


def is_to_end(process):
    """Whether a paused process has been sent SIGTERM."""
    (pending,) = re.findall(r"^ShdPnd:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    return int(pending, 16) >> (signal.SIGTERM - 1) & 1


@pytest.fixture(scope="module")
def several(place, forked):
    """A training by two processes of torchrun that is stopped by SIGTERM, and two processes that resume it."""
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    words = shlex.join([*STORY, "--batch-size", "4", "--epochs", "5", "--experiment-name", "several"])
    script = f"{ROOT}/tests/support/paused_training.py 50 {ROOT}/train_cnn.py"  # in the third epoch
    line = f"torchrun --nproc-per-node 2 --master-port {world['MASTER_PORT']} {script} {words}"
    with place.typed(line) as process:
        workers = wait_until(lambda: (found := psutil.Process(process.pid).children()) and all_paused(found) and found)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: all(is_to_end(worker) for worker in workers))
        for worker in workers:
            worker.resume()
        out, err = process.communicate(timeout=MAX_WAIT_S)
    resumed = [
        forked.start(
            "train_cnn.py", "--resume", folder=place.folder, **place.variables, **world, RANK=rank, LOCAL_RANK=rank
        )
        for rank in ("0", "1")
    ]
    return Ended(out, err, process.returncode), [script.end() for script in resumed]


def test_torchrun_logs_one_run(place, several):
    stopped, (first, second) = several
    assert stopped.status != 0
    assert [(ended.status, ended.err) for ended in (first, second)] == [(0, ""), (0, "")]
    assert second.out == ""
    run = place.run_of("several")
    torchrun = f"torchrun --nproc-per-node 2 {ROOT}/train_cnn.py"
    assert last_line(stopped.out) == f"stopped; resume with: {torchrun} --resume {run.info.run_id}"
    assert re.findall(r"^epoch +(\d+)/", stopped.out + first.out, re.MULTILINE) == ["1", "2", "3", "4", "5"]
    assert stopped.out.count(", 2 processes)\n") == first.out.count(", 2 processes)\n") == 1
    assert first.out.count("\nnext: ") == 1
    assert run.info.status == "FINISHED"
    assert place.steps(run, "val_accuracy") == [1, 2, 3, 4, 5]
    assert run.data.metrics["best_val_accuracy"] > 0.8
    assert place.bundle(run).card.metrics["accuracy"].value > 0.8
    assert (place.folder / "checkpoints" / f"{run.info.run_id}.pt").is_file()
