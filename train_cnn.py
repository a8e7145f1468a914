"""Train one network on a folder of images, or cross-validate it, and log everything to MLflow.

    python train_cnn.py                                        # scikit-learn's digits, no file needed
    python train_cnn.py --data photos/                         # a folder with one sub-folder a class
    python train_cnn.py --data photos/ --model-type resnet18 --image-size 128 --epochs 15
    python train_cnn.py --data photos/ --folds 5               # stratified 5-fold cross-validation
    python train_cnn.py --data photos/ --register              # and register the model as a version
    python train_cnn.py --resume                               # resume the run that was interrupted last
    torchrun --nproc-per-node 2 train_cnn.py --data photos/    # several processes, one a GPU

Some images (15 %, chosen by their content, or those in test/) are held out: they neither train
the network nor choose its epoch, and measure it at the end. Runs go to MLFLOW_TRACKING_URI, or to
mlflow.db in this folder; `mlflow server` shows them. Until a run is complete, checkpoints/ holds the
state to resume it from, and then its weights. Every flag can be given as a variable, such as
TRAIN_EPOCHS=20.
"""

from toolkit.cli.startup import begin_imports

if __name__ == "__main__":
    begin_imports()

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import SettingsConfigDict

from toolkit.cli.data_settings import DataSettings
from toolkit.cli.script_commands import command_line, process_command
from toolkit.cli.settings import LAST, MODEL, MODEL_NAME, Name, environment, parse, read_first, run_script
from toolkit.training.hyperparameters import Hyperparameters


class TrainSettings(Hyperparameters, DataSettings):
    """The settings of train_cnn.py."""

    model_config = environment("TRAIN_") | SettingsConfigDict(cli_shortcuts={"register-as": "register"})

    val_fraction: float = Field(
        0.15, gt=0, le=0.5, description="share of the other images to validate on, when there is no val/ folder"
    )
    folds: int = Field(0, ge=0, le=50, description="cross-validate with this many stratified folds; 0: do not")
    experiment_name: Name = Field("training", description="MLflow experiment")
    run_name: Name | None = Field(None, description="MLflow run name")
    checkpoint_dir: Path = Field(Path("checkpoints"), description="folder for unfinished runs and finished weights")
    resume: str | None = Field(
        None,
        description="resume an interrupted run with its own settings: last (also when nothing follows), its id,"
        " or a checkpoint",
        json_schema_extra={"bare": LAST},
    )
    register_as: str | None = Field(
        None,
        description=f"register the model when it is done: as a version of {MODEL} (when nothing follows), or of"
        " another name",
        json_schema_extra={"bare": MODEL},
    )

    @field_validator("register_as")
    @classmethod
    def _model_name(cls, name: str | None) -> str | None:
        if name is not None and not MODEL_NAME.fullmatch(name):
            raise ValueError(f"must be letters, digits, spaces and any of . _ - only, got {name!r}")
        return name

    @field_validator("folds")
    @classmethod
    def _not_one_fold(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("must be 0 (no cross-validation) or at least 2, got 1")
        return folds


if __name__ == "__main__":  # --help and what is mistyped are answered before the seconds that torch takes to import
    read_first(lambda: parse(TrainSettings, __doc__))

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from toolkit.bundle.files import Measurement
from toolkit.cli.terminal import echo
from toolkit.errors import DataError, SettingsError
from toolkit.system.metrics import SystemMetrics
from toolkit.tracking.connection import MlflowClient, connect
from toolkit.tracking.run import Run
from toolkit.training import gpu
from toolkit.training.checkpointing.checkpoint import Checkpoint, open_checkpoint
from toolkit.training.checkpointing.manager import CheckpointManager
from toolkit.training.cost import TrainingCost
from toolkit.training.data.cache import Cache, CachedImages, decode
from toolkit.training.data.catalogue import open_catalogue
from toolkit.training.data.dataset import Subset, TrainingData
from toolkit.training.data.groups import find_groups
from toolkit.training.data.splits import Split, require_folds, split, stratified, stratified_folds
from toolkit.training.device import SINGLE_PROCESS, Device, World, configure_torch, init_distributed
from toolkit.training.features import Features
from toolkit.training.loop import (
    EpochMetrics,
    FitCallbacks,
    FitConfig,
    FitResult,
    TrainingPaused,
    TrainState,
    fit,
    ignore,
)
from toolkit.training.networks import build_network, starting_weights
from toolkit.training.results.evaluation import fit_temperature
from toolkit.training.results.run_logging import (
    TrainingResult,
    epoch_metrics,
    log_data,
    log_folds,
    log_result,
    peak_gpu_memory_mb,
    run_tags,
)

__all__ = [
    "Checkpoint", "CheckpointManager", "CrossValidation", "DataSettings", "Device", "EpochMetrics", "FitConfig",
    "FitResult", "FoldCallback", "Hyperparameters", "TrainSettings", "TrainingCost", "TrainingData", "TrainingPaused",
    "TrainingResult", "cross_validate", "load_images", "log_data", "log_folds", "open_checkpoint",
    "require_enough_for", "run_tags", "starting_weights", "train", "train_final", "use_machine",
]  # fmt: skip

CHECKPOINT_SHARE = 0.01  # of the training time that checkpoints and sending metrics may take
FINAL_PHASE = "final"  # the training whose network is logged; the other phases are the folds


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """The folds of one set of hyperparameters."""

    folds: list[FitResult]  # without their networks
    logits: NDArray[np.float32]  # (N, K), of each development image by the fold that did not train on it
    features: Features | None = None  # of all development images, if the backbone is frozen

    @property
    def accuracies(self) -> list[float]:
        """The best validation accuracy of each fold."""
        return [fold.best_val_accuracy for fold in self.folds]

    @property
    def metrics(self) -> dict[str, float]:
        """Mean and standard deviation over the folds."""
        return {
            "mean_cv_accuracy": float(np.mean(self.accuracies)),
            "std_cv_accuracy": float(np.std(self.accuracies, ddof=1)),
        }

    @property
    def epochs(self) -> int:
        """The epochs of the final training: the median of the folds' best epochs."""
        return max(1, round(float(np.median([fold.best_epoch for fold in self.folds]))))

    def final_config(self, config: FitConfig) -> FitConfig:
        """The configuration of the final training, given that of the folds."""
        hparams = config.hparams.model_copy(update={"epochs": self.epochs})
        return replace(config, hparams=hparams, features=self.features)


class FoldCallback:
    """Methods that ``cross_validate`` calls; they do nothing here, and may end it by raising."""

    def on_batch(self, fold: int, done: int, batches: int) -> None:
        """After each batch of a fold, counted from 0: the batches done, and those of all its epochs."""

    def on_epoch(self, fold: int, history: Sequence[EpochMetrics], images: int) -> None:
        """After each epoch of a fold, and before it is resumed: its epochs so far, and the training images of each."""

    def on_fold(self, finished: Sequence[FitResult]) -> None:
        """After each fold, also one finished before an interruption: all finished folds."""


@dataclass(frozen=True, eq=False)
class TrainingContext:
    """The settings of a run, those of the interrupted one if it is resumed, and everything that follows from them."""

    settings: TrainSettings
    checkpoint: Checkpoint | None  # of the run to resume
    config: FitConfig
    data: TrainingData
    locks: ExitStack  # on the run, so that no other process resumes it


def train(settings: TrainSettings, world: World = SINGLE_PROCESS) -> TrainingResult:
    """Train, or cross-validate and train on all development images, and log a bundle.

    With ``folds`` the hyperparameters are cross-validated, and the logged model is trained on all
    development images for the median of the folds' best epochs. Otherwise it is the best epoch on a
    stratified validation part. With ``resume`` an interrupted run continues to the same result.

    Parameters
    ----------
    settings
        The data, the hyperparameters, and the run to log to or to resume.
    world
        The processes of torchrun that share the training.

    Returns
    -------
    TrainingResult
        The MLflow run, the network with its history, and its metrics on the held-out images.

    Raises
    ------
    ToolkitError
        Data, weights or MLflow cannot be used, in one sentence.

    Examples
    --------
    >>> result = train(TrainSettings(epochs=1, image_size=16))  # doctest: +SKIP
    >>> result.evaluation.accuracy  # doctest: +SKIP
    0.87
    """
    client = connect()
    with open_context(settings, world) as context:
        return _train(client, context)


def _train(client: MlflowClient, context: TrainingContext) -> TrainingResult:
    settings, hparams, data = context.settings, context.config.hparams, context.data
    if context.checkpoint:
        run = Run.reopen(client, context.checkpoint.run_id)
        run.load_pending(context.checkpoint.pending_metrics)
        echo(f"resuming run {run.id}")
    else:
        name = settings.run_name or f"{hparams.model_type}-{data.images.catalogue.name.replace('/', '-')}"
        run = Run(client, settings.experiment_name, role="final", name=name, tags=run_tags(data, settings.seed))
    metadata: dict[str, Any] = {
        "settings": settings.model_dump(mode="json"),
        "data_fingerprint": data.images.catalogue.fingerprint,
        "weights": data.weights_note,
    }
    checkpoint = context.checkpoint or Checkpoint(settings.checkpoint_dir, run.id, metadata)
    if not context.checkpoint:
        context.locks.enter_context(checkpoint.lock())
    checkpoints = CheckpointManager(checkpoint, run)
    with checkpoints.resumable():
        with run:
            if not context.checkpoint:
                run.params(metadata["settings"])
                log_data(run, data, settings.data, cross_validated=settings.folds > 0)
            result = _train_phases(run, context, checkpoints)
        checkpoints.finish(result.fit.network, {"hparams": hparams.model_dump(), "classes": data.classes})
    return result


def _train_phases(run: Run, context: TrainingContext, checkpoints: CheckpointManager) -> TrainingResult:
    """Train the folds, if any, and the final network, and log the result."""
    settings, config, data = context.settings, context.config, context.data
    if settings.folds:
        log_fold = log_folds(run, config.hparams, data, config.seed)
        cv = cross_validate(data, config, settings.folds, log_fold, checkpoints)
        return train_final(run, data, config, cv, checkpoints)
    validation = data.subset(data.split.validation)
    fitted = _fit_final(run, data, config, data.subset(data.split.development), validation, checkpoints)
    temperature = fit_temperature(fitted.val_logits, validation.labels)
    measured = {"best_val_accuracy": Measurement(value=fitted.best_val_accuracy, images=len(validation))}
    return log_result(run, data, config, fitted, temperature, measured)


def run_worker_rank(context: TrainingContext) -> None:
    """Do the part of every process of torchrun but the first: its share of the work, without logging."""
    settings, config, data = context.settings, context.config, context.data
    checkpoints = CheckpointManager(context.checkpoint, read_only=True)
    if settings.folds:
        config = cross_validate(data, config, settings.folds, checkpoints=checkpoints).final_config(config)
        training, validation = data.subset(data.development), None
    else:
        training, validation = data.subset(data.split.development), data.subset(data.split.validation)
    callbacks = FitCallbacks(checkpoint_share=CHECKPOINT_SHARE)
    fit(build_seeded_network(data, config), training, validation, config, callbacks, checkpoints.state(FINAL_PHASE))


def cross_validate(
    data: TrainingData,
    config: FitConfig,
    folds: int,
    log_fold: Callable[[int, FitResult], None] = ignore,
    checkpoints: CheckpointManager | None = None,
    callback: FoldCallback | None = None,
) -> CrossValidation:
    """Train a network on each stratified fold's training part and validate it on the rest.

    The result depends on data, hyperparameters and seed alone. A frozen backbone sees each image once
    for all folds.

    Parameters
    ----------
    data
        Its development images are divided into ``folds``, at least 2.
    config
        Hyperparameters, seed and device of all folds.
    log_fold
        Called once with the number and the result of each fold, also if the run is resumed in between.
    checkpoints
        Saves each fold as a phase, and resumes it.
    callback
        Called after each batch, epoch and fold.

    Raises
    ------
    DataError
        A class has fewer images, or groups of them, than there are folds.
    """
    checkpoints, callback = checkpoints or CheckpointManager(), callback or FoldCallback()
    indices = data.development
    labels, groups = data.images.labels[indices], data.groups(indices)
    logits = np.zeros((len(indices), len(data.classes)), np.float32)
    config = replace(config, features=_features(data, config))
    finished: list[FitResult] = []
    for number, (training, validation) in enumerate(stratified_folds(labels, folds, config.seed, data.classes, groups)):
        phase = f"fold {number + 1}"
        fold = checkpoints.finished(phase)
        if fold is None:
            fold_config, state = replace(config, seed=config.seed + number), checkpoints.state(phase)
            callbacks = FitCallbacks(
                on_epoch=_epoch_callback(callback, number, state, len(training)),
                on_batch=partial(callback.on_batch, number),
                on_checkpoint=checkpoints.save_callback(phase),
                checkpoint_share=CHECKPOINT_SHARE,
                bar=f"{phase}/{folds}",
            )
            if state and (history := state.result(nn.Identity()).history):
                callback.on_epoch(number, history, len(training))
            subsets = data.subset(indices[training]), data.subset(indices[validation])
            fold = fit(build_seeded_network(data, fold_config), *subsets, fold_config, callbacks, state)
            fold.network = nn.Identity()  # its weights are not needed
            checkpoints.mark_complete(phase)
        logits[validation] = fold.val_logits
        finished.append(fold)
        checkpoints.log_once(phase, partial(log_fold, number, fold))
        callback.on_fold(finished)
    return CrossValidation(finished, logits, config.features)


def _epoch_callback(
    callback: FoldCallback, fold: int, state: TrainState | None, images: int
) -> Callable[[EpochMetrics, nn.Module, bool], None]:
    """``FitCallbacks.on_epoch`` that passes on all epochs of the fold, those before an interruption included."""
    history = state.result(nn.Identity()).history if state else []

    def on_epoch(epoch: EpochMetrics, *_: object) -> None:
        history.append(epoch)
        callback.on_epoch(fold, history, images)

    return on_epoch


def train_final(
    run: Run, data: TrainingData, config: FitConfig, cv: CrossValidation, checkpoints: CheckpointManager | None = None
) -> TrainingResult:
    """Train on all development images for the folds' median best epoch, and log the bundle.

    Parameters
    ----------
    run
        The MLflow run that gets the metrics and the bundle.
    data, config
        Images and configuration of the folds.
    cv
        Result of the folds. The temperature is fitted on its validation logits, each of a network that had not seen
        the image.
    checkpoints
        Saves the training as a phase, and resumes it.
    """
    checkpoints = checkpoints or CheckpointManager()
    indices = data.development
    final = cv.final_config(config)
    fitted = _fit_final(run, data, final, data.subset(indices), None, checkpoints)
    fitted.best_val_accuracy = cv.metrics["mean_cv_accuracy"]
    temperature = fit_temperature(cv.logits, data.images.labels[indices])
    measured = {name: Measurement(value=value, images=len(indices)) for name, value in cv.metrics.items()}
    checkpoints.flush_deferred()
    result = log_result(run, data, final, fitted, temperature, measured)
    run.metrics(cv.metrics)
    for number, accuracy in enumerate(cv.accuracies):
        run.metrics({"fold_accuracy": accuracy}, step=number)
    return result


def load_images(settings: DataSettings, image_size: int) -> tuple[CachedImages, Split]:
    """Read, decode and split the images.

    Parameters
    ----------
    settings
        The folder or the name of the data, how to split it, and the cache of decoded images.
    image_size
        Side in pixels.

    Raises
    ------
    DataError
        The data cannot be read, or have fewer than two classes.
    """
    catalogue = open_catalogue(settings.data, settings.data_root.expanduser())
    if settings.flip is not None:
        catalogue = replace(catalogue, allow_flip=settings.flip)
    limit = int(settings.cache_limit * 2**30)
    cache = Cache(settings.cache_dir.expanduser(), limit) if limit else None
    images = decode(catalogue, image_size, cache=cache)
    groups = find_groups(images, settings.data, settings.group_by, copies=settings.near_duplicates)
    return images, split(images.catalogue, settings.test_fraction, groups)


def require_enough_for(folds: int, data: TrainingData) -> None:
    """Raise a DataError if a class has fewer development images, or groups of them, than there are folds."""
    indices = data.development
    require_folds(data.images.labels[indices], folds, data.classes, data.groups(indices))


def build_seeded_network(data: TrainingData, config: FitConfig) -> nn.Module:
    """A network with seeded new weights."""
    hparams = config.hparams
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_network(hparams.model_type, len(data.classes), hparams.dropout, data.weights)


def hyperparameters_of(settings: Hyperparameters) -> Hyperparameters:
    """The hyperparameters among the settings."""
    return Hyperparameters(**{name: getattr(settings, name) for name in Hyperparameters.model_fields})


def use_machine(settings: DataSettings, world: World = SINGLE_PROCESS, threads: int | None = None) -> Device:
    """Configure torch and choose the device; ``threads`` of None are as many as this process has cores."""
    configure_torch(deterministic=settings.deterministic, threads=threads)
    device = Device.choose(settings.precision, compiled=settings.compile, world=world)
    if device.name == "cuda":
        torch.cuda.reset_peak_memory_stats()  # this process may have trained before
    return device


@contextmanager
def open_context(settings: TrainSettings, world: World) -> Iterator[TrainingContext]:
    """Check and read everything that a run needs before it begins; at the end the run's lock is released."""
    with ExitStack() as locks:
        checkpoint = None
        if settings.resume:
            checkpoint = open_checkpoint(settings.resume, settings.checkpoint_dir, None if world.rank else locks)
            settings = _resumed_settings(settings, checkpoint)
        hparams = hyperparameters_of(settings)
        device = use_machine(settings, world)
        images, divided = load_images(settings, hparams.image_size)
        if checkpoint and images.catalogue.fingerprint != checkpoint.metadata["data_fingerprint"]:
            raise DataError(
                f"the images of {settings.data} have changed since run {checkpoint.run_id} was interrupted, so it"
                " cannot be resumed; start a run without --resume"
            )
        weights = starting_weights(settings.weights, [hparams.model_type])
        if checkpoint and weights[1] != checkpoint.metadata["weights"]:
            raise SettingsError(
                f"run {checkpoint.run_id} began with {checkpoint.metadata['weights']} weights, and here --weights"
                f" {settings.weights} gives {weights[1]} ones, so it cannot be resumed"
            )
        data = TrainingData(images, divided, *weights)
        if settings.folds:
            require_enough_for(settings.folds, data)
        elif not len(divided.validation):
            data = replace(data, split=_with_validation(data, settings))
        yield TrainingContext(settings, checkpoint, FitConfig(hparams, settings.seed, device), data, locks)


def _with_validation(data: TrainingData, settings: TrainSettings) -> Split:
    """The split with a stratified share of the development images to validate on."""
    indices = data.split.development
    labels, groups = data.images.labels[indices], data.groups(indices)
    training, validation = stratified(labels, settings.val_fraction, settings.seed, groups)
    if not len(validation):
        raise DataError("no class has a second image to validate on; add images or make a val/ folder")
    return replace(data.split, development=indices[training], validation=indices[validation])


def _resumed_settings(settings: TrainSettings, checkpoint: Checkpoint) -> TrainSettings:
    """The settings of the interrupted run; those given now must agree, but for folders and registration."""
    try:
        original = TrainSettings(**checkpoint.metadata["settings"])
    except (ValidationError, KeyError, TypeError):
        raise DataError(f"run {checkpoint.run_id} was started by another version of train_cnn.py") from None
    changeable = settings.model_fields_set & {"checkpoint_dir", "cache_dir", "cache_limit", "register_as"}
    for name in sorted(settings.model_fields_set - changeable - {"resume"}):
        before, now = getattr(original, name), getattr(settings, name)
        if before != now:
            raise SettingsError(
                f"--{name.replace('_', '-')} was {before} when run {checkpoint.run_id} began and cannot become {now};"
                " leave it out, or start a run without --resume"
            )
    return original.model_copy(update={name: getattr(settings, name) for name in changeable})


def _features(data: TrainingData, config: FitConfig) -> Features | None:
    """A frozen backbone's features of all development images; None for networks that are trained as a whole."""
    if config.hparams.model_type != "resnet18_backbone":
        return None
    backbone, subset = build_seeded_network(data, config).get_submodule("backbone"), data.subset(data.development)
    return Features.of(backbone, subset, config.hparams, config.seed, config.device, cache=data.feature_views)


def _fit_final(
    run: Run,
    data: TrainingData,
    config: FitConfig,
    training: Subset,
    validation: Subset | None,
    checkpoints: CheckpointManager,
) -> FitResult:
    """Train the network that will be logged, and log each epoch."""
    hparams, device = config.hparams, config.device
    system_metrics = SystemMetrics(gpu.uuid() if device.name == "cuda" else None)

    def on_epoch(epoch: EpochMetrics, _: nn.Module, best: bool) -> None:
        readings = {**system_metrics.read(), "gpu_memory_mb": peak_gpu_memory_mb(device)}
        on_page = {f"system/{name}": value for name, value in readings.items()}  # MLflow's page of system metrics
        run.metrics({**epoch_metrics(epoch), **readings, **on_page}, epoch.epoch)
        echo(_epoch_line(epoch, hparams.epochs, best and validation is not None))

    validating = f"validating on {len(validation)}, " if validation else ""
    echo(
        f"training {hparams.model_type} on {len(training)} images of {len(data.classes)} classes, {validating}"
        f"{len(data.split.held_out)} held out ({device})"
    )
    callbacks = FitCallbacks(
        on_epoch=on_epoch,
        on_checkpoint=checkpoints.save_callback(FINAL_PHASE),
        checkpoint_share=CHECKPOINT_SHARE,
        bar="training",
    )
    state = checkpoints.state(FINAL_PHASE)
    fitted = fit(build_seeded_network(data, config), training, validation, config, callbacks, state)
    device.world.leave()
    return fitted


def _epoch_line(epoch: EpochMetrics, epochs: int, best: bool) -> str:
    validated = f"  val loss {epoch.val_loss:.4f}  val accuracy {epoch.val_accuracy:.4f}" if epoch.val_loss >= 0 else ""
    return (
        f"epoch {epoch.epoch:>3}/{epochs}  train loss {epoch.train_loss:.4f}  train accuracy {epoch.train_accuracy:.4f}"
        f"{validated}  {epoch.images_per_s:,.0f} images/s{'  best' if best else ''}"
    )


def report(result: TrainingResult) -> str:
    """The table that ends a run on the terminal."""
    metrics, evaluation, fitted = result.metrics, result.evaluation, result.fit
    accuracy = "mean_cv_accuracy" if "mean_cv_accuracy" in metrics else "best_val_accuracy"
    before = f"{metrics['calibration_error_before']:.4f} before temperature {metrics['temperature']:.2f}"
    rows = [
        (accuracy.replace("_", " "), f"{metrics[accuracy]:.4f}"),
        ("held-out accuracy", f"{evaluation.accuracy:.4f}  ({evaluation.images} images never seen in training)"),
        ("precision, recall, F1", ", ".join(f"{value:.4f}" for value in evaluation.weighted.values())),
        ("calibration error", f"{evaluation.calibration_error:.4f}  ({before})"),
        ("best epoch", f"{fitted.best_epoch} of {len(fitted.history)}"),
        ("training time", f"{fitted.seconds:.1f} s, {fitted.images_per_s:,.0f} images/s"),
        ("MLflow run", result.run.url or result.run.id),
    ]
    if result.run.table_url:
        rows.append(("all runs", result.run.table_url))
    if "std_cv_accuracy" in metrics:
        rows.insert(1, ("spread over the folds", f"{metrics['std_cv_accuracy']:.4f}"))
    table = "\n".join(f"  {name:<22} {value}" for name, value in rows)
    return f"\n{table}"


def main() -> int:
    """Run from the command line."""
    settings = parse(TrainSettings, __doc__)
    with init_distributed() as world:
        client = None if world.rank else connect()
        with open_context(settings, world) as context:
            if client is None:
                run_worker_rank(context)
                return 0
            result = _train(client, context)
            echo(report(result))
    run, name = result.run.id, context.settings.register_as
    if name:
        words = ["--model-name", name, "register", "--run", run]
        return subprocess.run([*process_command("model_registry"), *words], check=False).returncode
    echo(f"\nnext: {command_line('model_registry', f'register --run {run}')}")
    return 0


if __name__ == "__main__":
    run_script(main)
