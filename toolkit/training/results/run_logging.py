"""Logging of a training to its MLflow run: tags, metrics, tables, plots, and the bundle."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.bundle.baseline import MAX_SAMPLE, Baseline
from toolkit.bundle.files import DIGEST_TAG, Card, Measurement, library_versions
from toolkit.bundle.program import Program, save_bundle
from toolkit.cli.terminal import echo
from toolkit.images.decoding import STATISTICS
from toolkit.statistics.calibration import CalibrationBins, calibration_bins
from toolkit.tracking.code_version import code_version
from toolkit.tracking.connection import mlflow_call
from toolkit.tracking.run import Run
from toolkit.training.data.dataset import TrainingData
from toolkit.training.data.report import class_balance_plot, data_report, report_lines
from toolkit.training.device import Device
from toolkit.training.hyperparameters import Hyperparameters
from toolkit.training.loop import EpochMetrics, FitConfig, FitResult, predict_logits
from toolkit.training.results.evaluation import Evaluation, evaluate, most_confident_mistakes
from toolkit.training.results.plots import (
    calibration_plot,
    confusion_plot,
    learning_curves,
    mistakes_plot,
    per_class_plot,
)


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """A finished training: its run, its network with the history, and its metrics on the held-out images."""

    run: Run
    fit: FitResult
    evaluation: Evaluation
    metrics: dict[str, float]


def run_tags(data: TrainingData, seed: int) -> dict[str, object]:
    """The tags of every run, by which it can be found and repeated."""
    catalogue = data.images.catalogue
    return {
        "data": catalogue.name,
        "data_fingerprint": catalogue.fingerprint,
        "code_version": code_version(),
        "seed": seed,
        "weights": data.weights_note,
        "skipped_files": catalogue.skipped_files,
    }


def log_data(run: Run, data: TrainingData, source: str, *, cross_validated: bool = True) -> None:
    """Log the data set, which the user named ``source``, and its report, and print a summary.

    Cross-validation trains and validates on all development images.
    """
    catalogue = data.images.catalogue
    everything = replace(data.split, development=data.development, validation=data.development[:0])
    report = data_report(catalogue, everything if cross_validated else data.split)
    profile = {"images": len(catalogue), "classes": len(data.classes), "image_size": data.images.size}
    run.dataset(catalogue.name, catalogue.fingerprint, source, profile=profile, context="training")
    run.json("data_report.json", report)
    run.figure("class_balance.png", class_balance_plot(report))
    for line in report_lines(report):
        echo(line)


def log_folds(
    run: Run, hparams: Hyperparameters, data: TrainingData, seed: int, *, verbose: bool = True
) -> Callable[[int, FitResult], None]:
    """A callback of ``cross_validate`` that logs each fold as a nested run, and prints a line if ``verbose``."""

    def log(number: int, fold: FitResult) -> None:
        if _has_run(run, number):
            return
        tags = {**run_tags(data, seed + number), "fold": number}
        with Run(run.client, run.experiment, role="fold", name=f"fold {number + 1}", parent=run, tags=tags) as nested:
            nested.params(hparams.model_dump())
            for epoch in fold.history:
                nested.metrics(epoch_metrics(epoch), epoch.epoch)
            nested.metrics(fit_metrics(fold))
        if verbose:
            echo(f"fold {number + 1}: validation accuracy {fold.best_val_accuracy:.4f} in epoch {fold.best_epoch}")

    return log


def _has_run(run: Run, fold: int) -> bool:
    """Whether a fold has its nested run; an incomplete one of an interrupted attempt is deleted."""
    query = f"tags.`mlflow.parentRunId` = '{run.id}' AND tags.fold = '{fold}'"
    with mlflow_call(f"find the run of fold {fold + 1}"):
        found = run.client.search_runs([run.experiment_id], query)
        for other in found:
            if other.info.status != "FINISHED":
                run.client.delete_run(other.info.run_id)
    return any(other.info.status == "FINISHED" for other in found)


def epoch_metrics(epoch: EpochMetrics) -> dict[str, float]:
    """The metrics of an epoch, without those that were not measured."""
    values = {item.name: getattr(epoch, item.name) for item in fields(epoch) if item.name != "epoch"}
    return {name: value for name, value in values.items() if np.isfinite(value)}


def fit_metrics(fitted: FitResult) -> dict[str, float]:
    """The metrics of a whole training."""
    metrics = {"best_epoch": float(fitted.best_epoch), "training_time_s": fitted.seconds}
    if fitted.images_per_s:  # not of a fold that was logged only after a resumption
        metrics["images_per_s"] = fitted.images_per_s
    if np.isfinite(fitted.best_val_accuracy):
        metrics["best_val_accuracy"] = fitted.best_val_accuracy
    return metrics


def log_result(
    run: Run,
    data: TrainingData,
    config: FitConfig,
    fitted: FitResult,
    temperature: float,
    measured: Mapping[str, Measurement],
) -> TrainingResult:
    """Evaluate the network on the held-out images, and log metrics, tables, plots and the bundle.

    The temperature divides the network's logits; the card also has the measurements in ``measured``.
    """
    held_out = data.subset(data.split.held_out)
    network = fitted.network.cpu().float()
    logits = predict_logits(network, held_out, Device("cpu", torch.float32), "measuring")
    probabilities = _softmax(logits / temperature)
    evaluation = evaluate(probabilities, held_out.labels, data.classes)
    before = calibration_bins(_softmax(logits), held_out.labels)
    metrics = {
        **fit_metrics(fitted),
        **evaluation.weighted,
        "held_out_accuracy": evaluation.accuracy,
        "calibration_error_before": before.error,
        "calibration_error": evaluation.calibration_error,
        "temperature": temperature,
        "gpu_memory_mb": peak_gpu_memory_mb(config.device),
    }
    scored = {"accuracy": evaluation.accuracy, **evaluation.weighted, "calibration_error": evaluation.calibration_error}
    card = Card(
        classes=data.classes,
        image_size=config.hparams.image_size,
        network=config.hparams.model_type,
        settings=config.hparams.model_dump(),
        data=_data_description(data),
        metrics={name: Measurement(value=value, images=len(held_out)) for name, value in scored.items()}
        | dict(measured),
        temperature=temperature,
        code_version=code_version(),
        versions=library_versions(),
    )
    _log_bundle(run, Program(network, temperature), card, _baseline(data, probabilities))
    _log_tables_and_plots(run, data, fitted, evaluation, probabilities, before)  # when the bundle is safe
    run.metrics(metrics)  # last, because a run that is interrupted before this will measure them again
    return TrainingResult(run, fitted, evaluation, {**metrics, **{name: item.value for name, item in measured.items()}})


def _log_tables_and_plots(
    run: Run,
    data: TrainingData,
    fitted: FitResult,
    evaluation: Evaluation,
    probabilities: NDArray[np.float32],
    before: CalibrationBins,
) -> None:
    """Log tables and plots of the training and of the held-out images' probabilities (N, K)."""
    held_out = data.subset(data.split.held_out)
    run.json("per_class.json", evaluation.per_class)
    run.json("confusion_matrix.json", {"classes": data.classes, "matrix": evaluation.confusion.tolist()})
    run.figure("learning_curves.png", learning_curves(fitted.history, fitted.best_epoch))
    run.figure("confusion_matrix.png", confusion_plot(evaluation.confusion, data.classes))
    run.figure("per_class.png", per_class_plot(evaluation.per_class))
    run.figure("calibration.png", calibration_plot(before, calibration_bins(probabilities, held_out.labels)))
    worst = most_confident_mistakes(probabilities, held_out.labels)
    if len(worst):
        predicted, confidence = probabilities[worst].argmax(axis=1), probabilities[worst].max(axis=1)
        pixels, true = held_out.pixels[held_out.indices[worst]], held_out.labels[worst]
        run.figure(
            "mistakes.png",
            mistakes_plot(pixels, true.tolist(), predicted.tolist(), confidence.tolist(), data.classes),
        )


def _log_bundle(run: Run, program: Program, card: Card, baseline: Baseline) -> None:
    if _has_bundle(run):
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder, model_id = Path(scratch) / "model", run.new_model()
        digest = save_bundle(folder, program, card, baseline, run_id=run.id, model_id=model_id)
        run.model(folder, model_id, {DIGEST_TAG: digest})


def _has_bundle(run: Run) -> bool:
    """Whether the run has its bundle; an incomplete one of an interrupted attempt is deleted."""
    client = run.client
    with mlflow_call("find an earlier bundle"):
        outputs = client.get_run(run.id).outputs
        whole = {output.model_id for output in outputs.model_outputs} if outputs else set()
        for model in client.search_logged_models([run.experiment_id], f"source_run_id = '{run.id}'"):
            if model.model_id in whole:
                run.tag(**{DIGEST_TAG: model.tags[DIGEST_TAG]})  # the only step of the upload that may be missing
            else:
                client.delete_logged_model(model.model_id)
    return bool(whole)


def _baseline(data: TrainingData, probabilities: NDArray[np.float32]) -> Baseline:
    """The held-out images, or an evenly spread sample of them."""
    held_out = data.split.held_out
    chosen = np.linspace(0, len(held_out) - 1, min(len(held_out), MAX_SAMPLE)).round().astype(int)
    indices = held_out[chosen]
    columns = data.images.statistics[indices].T
    return Baseline(
        classes=data.classes,
        probabilities=probabilities[chosen],
        labels=data.images.labels[indices],
        hashes=data.images.catalogue.hashes[indices],
        statistics=dict(zip(STATISTICS, columns, strict=True)),
    )


def _data_description(data: TrainingData) -> dict[str, object]:
    catalogue = data.images.catalogue
    return {
        "name": catalogue.name,
        "fingerprint": catalogue.fingerprint,
        "development": len(data.development),
        "held_out": len(data.split.held_out),
        "held_out_groups": data.split.held_out_groups,
        "skipped": catalogue.skipped_files,
        "unused": len(data.split.unused),
    }


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    probabilities: NDArray[np.float32] = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
    return probabilities


def peak_gpu_memory_mb(device: Device) -> float:
    """Peak GPU memory of this process in MiB; 0 without a GPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if device.name == "cuda" else 0.0
