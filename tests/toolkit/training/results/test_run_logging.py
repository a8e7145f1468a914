"""Logs of a training in its run, also when logging was interrupted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from support.colours import COLOURS
from support.image_folders import fill_colours
from toolkit.bundle.files import DIGEST_TAG, Measurement
from toolkit.bundle.program import load_bundle
from toolkit.errors import TrackingError
from toolkit.tracking.run import Run
from toolkit.training.data.cache import decode
from toolkit.training.data.catalogue import open_catalogue
from toolkit.training.data.dataset import TrainingData
from toolkit.training.data.splits import split
from toolkit.training.device import Device
from toolkit.training.hyperparameters import Hyperparameters
from toolkit.training.loop import EpochMetrics, FitConfig, FitResult
from toolkit.training.networks import build_network
from toolkit.training.results.run_logging import epoch_metrics, fit_metrics, log_folds, log_result, peak_gpu_memory_mb

EPOCH = EpochMetrics(1, 0.5, 0.75, 0.625, 0.875, 1e-3, 20.0, 30.0, 2.0, 100.0)
CPU = Device("cpu", torch.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for part in ("train", "test"):
        fill_colours(folder / part, 4, size=16)
    images = decode(open_catalogue(str(folder)), 16, progress=False)
    return TrainingData(images, split(images.catalogue, 0.15), None, "random")


def fitted():
    network = build_network("simple_cnn", len(COLOURS), 0.0, None).eval()
    return FitResult(network, [EPOCH], 1, 0.875, np.zeros((3, 3), np.float32), False, 2.0, 100.0)


def test_what_was_not_measured_is_no_figure():
    assert epoch_metrics(EPOCH)["val_accuracy"] == 0.875
    unjudged = epoch_metrics(replace(EPOCH, val_loss=float("nan"), val_accuracy=float("nan")))
    assert unjudged.keys() == epoch_metrics(EPOCH).keys() - {"val_loss", "val_accuracy"}
    whole = fit_metrics(fitted())
    assert whole == {"best_epoch": 1.0, "training_time_s": 2.0, "images_per_s": 100.0, "best_val_accuracy": 0.875}
    assert fit_metrics(FitResult(fitted().network, [EPOCH], 1, seconds=2.0)).keys() == {"best_epoch", "training_time_s"}
    assert peak_gpu_memory_mb(CPU) == 0.0


def test_a_fold_has_one_run_however_often_it_was_begun(run, data, capsys):
    tags = {"fold": 1}
    half = Run(run.client, run.experiment, role="fold", name="fold 2", parent=run, tags=tags)
    other = Run(run.client, run.experiment, role="final", name="another")
    foreign = Run(run.client, run.experiment, role="fold", name="fold 2", parent=other, tags=tags)
    for _ in range(2):
        log_folds(run, Hyperparameters(), data, seed=5)(1, fitted())
    of_run = f"tags.`mlflow.parentRunId` = '{run.id}'"
    (nested,) = run.client.search_runs([run.experiment_id], of_run)
    assert nested.info.run_id != half.id
    assert (nested.info.status, nested.info.run_name, nested.data.tags["seed"]) == ("FINISHED", "fold 2", "6")
    assert nested.data.params["model_type"] == "simple_cnn"
    assert nested.data.metrics["val_accuracy"] == nested.data.metrics["best_val_accuracy"] == 0.875
    assert capsys.readouterr().out == "fold 2: validation accuracy 0.8750 in epoch 1\n"
    assert run.client.get_run(foreign.id).info.lifecycle_stage == "active"


def test_a_run_has_one_whole_bundle_however_often_it_was_begun(run, data):
    half = run.new_model()  # reserved, and killed before it was uploaded
    trained = fitted()

    def log():
        measured = {"best_val_accuracy": Measurement(value=0.875, images=12)}
        log_result(run, data, FitConfig(Hyperparameters(image_size=16), 0, CPU), trained, 1.5, measured)
        query = f"source_run_id = '{run.id}'"
        (model,) = run.client.search_logged_models([run.experiment_id], query)
        logged = run.client.get_run(run.id)
        assert [output.model_id for output in logged.outputs.model_outputs] == [model.model_id]
        load_bundle(Path(model.artifact_location), logged.data.tags[DIGEST_TAG])
        return str(model.model_id)

    first = log()
    assert first != half
    run.client.delete_tag(run.id, DIGEST_TAG)  # killed just before this was set
    assert log() == first


def test_figures_of_the_end_wait_until_all_else_is_there(run, data):
    """A run interrupted before has logged none, so that they are there once after a resumption."""
    run.client.delete_run(run.id)
    with pytest.raises(TrackingError, match=r"^cannot log the model: .* must be in the 'active' state"):
        log_result(run, data, FitConfig(Hyperparameters(image_size=16), 0, CPU), fitted(), 1.5, {})
    assert run.pending == []
