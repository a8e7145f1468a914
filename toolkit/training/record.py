"""What a run keeps of a training: tags, figures, pictures, and the bundle."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.baseline import LARGEST_SAMPLE, Baseline
from toolkit.bundle import DIGEST_TAG, Card, Measured, Program, library_versions, save_bundle
from toolkit.images import STATISTICS
from toolkit.terminal import say
from toolkit.tracking import Run, code_version
from toolkit.training.data import Data
from toolkit.training.evaluate import Evaluation, evaluate
from toolkit.training.figures import confusion_picture, learning_curves
from toolkit.training.loop import Device, Epoch, Fitted, predict_logits
from toolkit.training.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Outcome:
    """A finished training."""

    run: Run
    fitted: Fitted
    evaluation: Evaluation
    metrics: dict[str, float]


def tags_of(data: Data, seed: int) -> dict[str, object]:
    """What every run is tagged with, so that it can be found and repeated."""
    catalogue = data.pictures.catalogue
    return {
        "data": catalogue.name,
        "data_fingerprint": catalogue.fingerprint,
        "code_version": code_version(),
        "seed": seed,
        "weights": data.weights_note,
        "skipped_files": len(catalogue.skipped),
    }


def log_skipped(run: Run, data: Data) -> None:
    """Name the files that were left out, in the run and, in short, to the user."""
    skipped = data.pictures.catalogue.skipped
    if not skipped:
        return
    run.json("skipped_files.json", [{"path": item.path, "reason": item.reason} for item in skipped])
    count = f"{len(skipped)} files were" if len(skipped) > 1 else "1 file was"
    say(f"{count} skipped, see the run's skipped_files.json; the first: {skipped[0].path}: {skipped[0].reason}")


def log_folds(run: Run, recipe: Recipe, data: Data, seed: int, *, aloud: bool = True) -> Callable[[int, Fitted], None]:
    """A callback that logs each fold as a nested run, and says so when ``aloud``."""

    def log(number: int, fold: Fitted) -> None:
        tags = {**tags_of(data, seed + number), "fold": number}
        with Run(run.client, run.experiment, role="fold", name=f"fold {number + 1}", parent=run, tags=tags) as nested:
            nested.params(recipe.model_dump())
            for epoch in fold.history:
                nested.metrics(epoch_metrics(epoch), epoch.epoch)
            nested.metrics(fit_metrics(fold))
        if aloud:
            say(f"fold {number + 1}: validation accuracy {fold.best_val_accuracy:.4f} in epoch {fold.best_epoch}")

    return log


def epoch_metrics(epoch: Epoch) -> dict[str, float]:
    """The figures of an epoch, without those that were not measured."""
    values = {item.name: getattr(epoch, item.name) for item in fields(epoch) if item.name != "epoch"}
    return {name: value for name, value in values.items() if np.isfinite(value)}


def fit_metrics(fitted: Fitted) -> dict[str, float]:
    """The figures of a whole training."""
    metrics = {
        "best_epoch": float(fitted.best_epoch),
        "training_time_s": fitted.seconds,
        "images_per_s": fitted.images_per_s,
    }
    if np.isfinite(fitted.best_val_accuracy):
        metrics["best_val_accuracy"] = fitted.best_val_accuracy
    return metrics


def log_outcome(
    run: Run,
    recipe: Recipe,
    data: Data,
    fitted: Fitted,
    temperature: float,
    measured: Mapping[str, Measured],
    device: Device,
) -> Outcome:
    """Measure on the held-out pictures, draw, and log metrics and the bundle."""
    held_out = data.part(data.split.held_out)
    network = fitted.network.cpu().float()
    probabilities = _softmax(predict_logits(network, held_out, Device("cpu", torch.float32)) / temperature)
    evaluation = evaluate(probabilities, held_out.own_labels, data.classes)
    metrics = {
        **fit_metrics(fitted),
        **evaluation.weighted,
        "held_out_accuracy": evaluation.accuracy,
        "calibration_error": evaluation.calibration_error,
        "temperature": temperature,
        "gpu_memory_mb": gpu_peak_mb(device),
    }
    run.metrics(metrics)
    run.json("per_class.json", evaluation.per_class)
    run.json("confusion_matrix.json", {"classes": data.classes, "matrix": evaluation.confusion.tolist()})
    run.figure("confusion_matrix.png", confusion_picture(evaluation.confusion, data.classes))
    run.figure("learning_curves.png", learning_curves(fitted.history, fitted.best_epoch))
    scored = {"accuracy": evaluation.accuracy, **evaluation.weighted, "calibration_error": evaluation.calibration_error}
    card = Card(
        classes=data.classes,
        image_size=recipe.image_size,
        network=recipe.model_type,
        settings=recipe.model_dump(),
        data=_data_description(data),
        metrics={name: Measured(value=value, pictures=len(held_out)) for name, value in scored.items()}
        | dict(measured),
        temperature=temperature,
        code_version=code_version(),
        versions=library_versions(),
    )
    _log_bundle(run, Program(network, temperature), card, _baseline(data, probabilities))
    return Outcome(run, fitted, evaluation, {**metrics, **{name: item.value for name, item in measured.items()}})


def _log_bundle(run: Run, program: Program, card: Card, baseline: Baseline) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder, model_id = Path(scratch) / "model", run.new_model()
        digest = save_bundle(folder, program, card, baseline, run_id=run.id, model_id=model_id)
        run.model(folder, model_id, {DIGEST_TAG: digest})


def _baseline(data: Data, probabilities: NDArray[np.float32]) -> Baseline:
    """The held-out pictures, or an evenly spread sample of them."""
    held_out = data.split.held_out
    chosen = np.linspace(0, len(held_out) - 1, min(len(held_out), LARGEST_SAMPLE)).round().astype(int)
    indices = held_out[chosen]
    columns = data.pictures.statistics[indices].T
    return Baseline(
        classes=data.classes,
        probabilities=probabilities[chosen],
        labels=data.pictures.labels[indices],
        hashes=data.pictures.catalogue.hashes[indices],
        statistics=dict(zip(STATISTICS, columns, strict=True)),
    )


def _data_description(data: Data) -> dict[str, object]:
    catalogue = data.pictures.catalogue
    return {
        "name": catalogue.name,
        "fingerprint": catalogue.fingerprint,
        "development": len(data.development),
        "held_out": len(data.split.held_out),
        "skipped": len(catalogue.skipped),
    }


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    answer: NDArray[np.float32] = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
    return answer


def gpu_peak_mb(device: Device) -> float:
    """Most GPU memory that this process held; 0 without a GPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if device.name == "cuda" else 0.0
