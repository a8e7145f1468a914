"""Train one network on a folder of images, or cross-validate it, and log everything to MLflow.

    python train_cnn.py                                        # scikit-learn's digits, no file needed
    python train_cnn.py --data photos/                         # a folder with one sub-folder a class
    python train_cnn.py --data photos/ --model-type resnet18 --image-size 128 --epochs 15
    python train_cnn.py --data photos/ --folds 5               # stratified 5-fold cross-validation
    python train_cnn.py --data photos/ --register              # and register the model as a version
    python train_cnn.py --resume                               # go on with what was interrupted
    torchrun --nproc-per-node 2 train_cnn.py --data photos/    # several processes, one a GPU

Some images (15 %, chosen by their content, or those in test/) are held out: they neither train
the network nor choose its epoch, and measure it at the end. Runs go to MLFLOW_TRACKING_URI, or to
mlflow.db in this folder; `mlflow server` shows them. Until a run is complete, checkpoints/ holds all
it takes to go on with it, and then its weights. Every flag can be given as a variable, such as
TRAIN_EPOCHS=20.
"""

from toolkit.cli.import_interrupt import exit_on_interrupt

if __name__ == "__main__":
    exit_on_interrupt()

import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import SettingsConfigDict

from toolkit.cli.commands import command_line, process_command
from toolkit.cli.data_settings import DataSettings
from toolkit.cli.settings import LAST, MODEL, MODEL_NAME, Name, environment, parse, read_first, run_script
from toolkit.training.hyperparameters import Hyperparameters


class TrainSettings(Hyperparameters, DataSettings):
    """The settings of train_cnn.py."""

    model_config = environment("TRAIN_") | SettingsConfigDict(cli_shortcuts={"register-as": "register"})

    val_fraction: float = Field(
        0.15, gt=0, le=0.5, description="share of the rest to validate on, without a val/ folder"
    )
    folds: int = Field(0, ge=0, le=50, description="cross-validate with this many stratified folds; 0: do not")
    experiment_name: Name = Field("training", description="MLflow experiment")
    run_name: Name | None = Field(None, description="MLflow run name")
    checkpoint_dir: Path = Field(Path("checkpoints"), description="folder for unfinished runs and finished weights")
    resume: str | None = Field(
        None,
        description="go on with an interrupted run, with its own settings: last (also when nothing follows), its id,"
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
    def _a_name_of_a_model(cls, name: str | None) -> str | None:
        if name is not None and not MODEL_NAME.fullmatch(name):
            raise ValueError(f"must be letters, digits, spaces and any of . _ - only, got {name!r}")
        return name

    @field_validator("folds")
    @classmethod
    def _one_fold_is_none(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("must be 0 (no cross-validation) or at least 2, got 1")
        return folds


if __name__ == "__main__":  # --help and what is mistyped are answered before the seconds that torch takes to import
    read_first(lambda: parse(TrainSettings, __doc__))

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from toolkit.bundle.files import Measurement
from toolkit.cli.terminal import echo
from toolkit.errors import DataError, SettingsError
from toolkit.system.metrics import SystemMetrics
from toolkit.tracking.connection import ANSWER_SECONDS, connect, mlflow_call
from toolkit.tracking.run import Run
from toolkit.training.checkpointing.checkpoint import Checkpoint, open_checkpoint
from toolkit.training.checkpointing.manager import CheckpointManager
from toolkit.training.data.cache import Cache, CachedImages, decode
from toolkit.training.data.catalogue import open_catalogue
from toolkit.training.data.dataset import Subset, TrainingData
from toolkit.training.data.groups import find_groups
from toolkit.training.data.splits import Split, require_folds, split, stratified, stratified_folds
from toolkit.training.device import SINGLE_PROCESS, Device, World, configure_torch, init_distributed
from toolkit.training.features import Features
from toolkit.training.loop import EpochMetrics, FitCallbacks, FitConfig, FitResult, TrainState, fit
from toolkit.training.networks import build_network, load_weights
from toolkit.training.results.evaluation import fit_temperature
from toolkit.training.results.run_logging import (
    TrainingResult,
    epoch_metrics,
    gpu_peak_mb,
    log_data,
    log_folds,
    log_result,
    run_tags,
)

__all__ = [
    "Checkpoint",
    "CheckpointManager",
    "CrossValidation",
    "DataSettings",
    "Device",
    "EpochMetrics",
    "FitConfig",
    "FitResult",
    "FoldCallback",
    "Hyperparameters",
    "TrainSettings",
    "TrainingData",
    "TrainingResult",
    "cross_validate",
    "load_images",
    "log_data",
    "log_folds",
    "open_checkpoint",
    "require_enough_for",
    "run_tags",
    "starting_weights",
    "train",
    "train_final",
    "use_machine",
]

KEEP_SHARE = 0.01  # of the time that checkpoints and sending figures may take
FINAL_PHASE = "final"  # the training whose network is logged, beside those of the folds


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """The folds of one recipe."""

    folds: list[FitResult]
    logits: NDArray[np.float32]  # (N, K), of each development image by the fold that did not train on it
    features: Features | None = None  # of all development images, when the backbone is frozen

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
        """How long to train on everything: the median of the folds' best epochs."""
        return max(1, round(float(np.median([fold.best_epoch for fold in self.folds]))))

    def final(self, config: FitConfig) -> FitConfig:
        """How to train on everything."""
        recipe = config.recipe.model_copy(update={"epochs": self.epochs})
        return replace(config, recipe=recipe, features=self.features)


class FoldCallback(Protocol):
    """Who looks on while folds are trained, and may end it by raising."""

    def epoch(self, fold: int, history: Sequence[EpochMetrics], images: int) -> None:
        """After each epoch of a fold, from 0: its epochs so far, and the training images of each."""

    def batch(self, fold: int, done: int, batches: int) -> None:
        """After each batch of a fold, from 0: how many are done, of how many in all its epochs."""

    def fold(self, finished: Sequence[FitResult]) -> None:
        """After each fold, also one that an interrupted run had finished: those that are done."""


@dataclass(frozen=True, eq=False)
class TrainingContext:
    """What a run is about: its settings and all that follows from them."""

    settings: TrainSettings
    checkpoint: Checkpoint | None  # of the interrupted run that it goes on with
    config: FitConfig
    data: TrainingData


def train(settings: TrainSettings, world: World = SINGLE_PROCESS) -> TrainingResult:
    """Train, or cross-validate and train on everything, and log a bundle.

    With ``folds`` the folds judge the recipe, and the logged model is trained on all development
    images for the median of the folds' best epochs. Without, it is the best epoch on a stratified
    validation part. With ``resume`` an interrupted run is gone on with, to the same result.

    Raises
    ------
    ToolkitError
        Data, weights or MLflow cannot be used, in one sentence.

    Examples
    --------
    >>> outcome = train(TrainSettings(epochs=1, image_size=16))  # doctest: +SKIP
    >>> outcome.evaluation.accuracy  # doctest: +SKIP
    0.87
    """
    with ExitStack() as hold:
        return _train(settings, world, hold)


def _train(settings: TrainSettings, world: World, hold: ExitStack) -> TrainingResult:
    """As ``train``; until ``hold`` is closed, no other process may go on with the run."""
    client = connect()
    job = _job(settings, world, hold)
    settings, recipe, data = job.settings, job.config.recipe, job.data
    if job.checkpoint:
        run = Run.reopen(client, job.checkpoint.run_id)
        run.load_pending(job.checkpoint.pending_metrics)
        echo(f"going on with run {run.id}")
    else:
        name = settings.run_name or f"{recipe.model_type}-{data.images.catalogue.name.replace('/', '-')}"
        run = Run(client, settings.experiment_name, role="final", name=name, tags=run_tags(data, settings.seed))
    about: dict[str, Any] = {
        "settings": settings.model_dump(mode="json"),
        "data_fingerprint": data.images.catalogue.fingerprint,
        "weights": data.weights_note,
    }
    checkpoint = job.checkpoint or Checkpoint(settings.checkpoint_dir, run.id, about)
    if not job.checkpoint:
        hold.enter_context(checkpoint.held())
    keeper = CheckpointManager(checkpoint, run)
    with keeper.resumable():
        with run:
            if not job.checkpoint:
                run.params(about["settings"])
                log_data(run, data, settings.data, None if settings.folds else _divided(data, settings))
            outcome = _trained(run, job, keeper)
        keeper.finish(outcome.fitted.network, {"recipe": recipe.model_dump(), "classes": data.classes})
    return outcome


def _trained(run: Run, job: TrainingContext, keeper: CheckpointManager) -> TrainingResult:
    """The folds, if any, the final training, and what came of it."""
    settings, config, data = job.settings, job.config, job.data
    if settings.folds:
        log = log_folds(run, config.recipe, data, config.seed)
        cv = cross_validate(data, config, settings.folds, log, keeper)
        return train_final(run, data, config, cv, keeper)
    training, validation = _validation_split(data, settings)
    fitted = _fit_final(run, data, config, training, validation, keeper)
    temperature = fit_temperature(fitted.val_logits, validation.own_labels)
    measured = {"best_val_accuracy": Measurement(value=fitted.best_val_accuracy, images=len(validation))}
    return log_result(run, data, config, fitted, temperature, measured)


def run_worker_rank(settings: TrainSettings, world: World) -> None:
    """What every process of torchrun but the first does: its share of the sums, without a record."""
    job = _job(settings, world)
    settings, config, data = job.settings, job.config, job.data
    keeper = CheckpointManager(job.checkpoint, writes=False)
    if settings.folds:
        config = cross_validate(data, config, settings.folds, keeper=keeper).final(config)
        training, validation = data.part(data.development), None
    else:
        training, validation = _validation_split(data, settings)
    callbacks = FitCallbacks(checkpoint_share=KEEP_SHARE)
    fit(build_seeded_network(data, config), training, validation, config, callbacks, keeper.progress(FINAL_PHASE))


def cross_validate(
    data: TrainingData,
    config: FitConfig,
    folds: int,
    on_fold: Callable[[int, FitResult], None] = lambda *_: None,
    keeper: CheckpointManager | None = None,
    watch: FoldCallback | None = None,
) -> CrossValidation:
    """Train one network a stratified fold and judge each on the fold it has not seen.

    The result depends on data, recipe and seed alone. A frozen backbone sees each image once for
    all folds. ``on_fold`` is called once a fold, also when the run is interrupted and taken up again.
    """
    keeper = keeper or CheckpointManager()
    indices = data.development
    labels, groups = data.images.labels[indices], data.together(indices)
    logits = np.zeros((len(indices), len(data.classes)), np.float32)
    config = replace(config, features=_features(data, config))
    fitted = []
    divided = stratified_folds(labels, folds, config.seed, data.classes, groups)
    for number, (training, validation) in enumerate(divided):
        name = f"fold {number + 1}"
        fold = keeper.finished(name)
        if fold is None:
            own = replace(config, seed=config.seed + number)
            callbacks = FitCallbacks(
                on_epoch=_fold_callback(watch, number, keeper.progress(name), len(training)),
                on_batch=partial(watch.batch, number) if watch else lambda *_: None,
                on_checkpoint=keeper.save_callback(name),
                checkpoint_share=KEEP_SHARE,
                bar=f"{name}/{folds}",
            )
            fold = fit(
                build_seeded_network(data, own),
                data.part(indices[training]),
                data.part(indices[validation]),
                own,
                callbacks,
                keeper.progress(name),
            )
            fold.network = nn.Identity()  # the weights of a fold serve nobody
            keeper.mark_complete(name)
        logits[validation] = fold.val_logits
        fitted.append(fold)
        keeper.log_once(name, partial(on_fold, number, fold))
        if watch:
            watch.fold(fitted)
    return CrossValidation(fitted, logits, config.features)


def _fold_callback(
    watch: FoldCallback | None, fold: int, progress: TrainState | None, images: int
) -> Callable[[EpochMetrics, nn.Module, bool], None]:
    """What ``fit`` calls after each epoch, so that the watch sees all of them, earlier ones too."""
    history = progress.result(nn.Identity()).history if progress else []

    def on_epoch(epoch: EpochMetrics, *_: object) -> None:
        history.append(epoch)
        if watch:
            watch.epoch(fold, history, images)

    return on_epoch


def train_final(
    run: Run, data: TrainingData, config: FitConfig, cv: CrossValidation, keeper: CheckpointManager | None = None
) -> TrainingResult:
    """Train on all development images for as long as the folds found best, and log the bundle.

    The temperature is fitted on the folds' own validation logits, which no network was trained on.
    """
    keeper = keeper or CheckpointManager()
    indices = data.development
    final = cv.final(config)
    fitted = _fit_final(run, data, final, data.part(indices), None, keeper)
    fitted.best_val_accuracy = cv.metrics["mean_cv_accuracy"]
    temperature = fit_temperature(cv.logits, data.images.labels[indices])
    measured = {name: Measurement(value=value, images=len(indices)) for name, value in cv.metrics.items()}
    keeper.flush_deferred()
    outcome = log_result(run, data, final, fitted, temperature, measured)
    run.metrics(cv.metrics)
    for number, accuracy in enumerate(cv.accuracies):
        run.metrics({"fold_accuracy": accuracy}, step=number)
    return outcome


def load_images(settings: DataSettings, image_size: int) -> tuple[CachedImages, Split]:
    """Read, decode and split the images."""
    catalogue = open_catalogue(settings.data, settings.data_root.expanduser())
    if settings.flip is not None:
        catalogue = replace(catalogue, allow_flip=settings.flip)
    limit = int(settings.cache_limit * 2**30)
    cache = Cache(settings.cache_dir.expanduser(), limit) if limit else None
    images = decode(catalogue, image_size, cache=cache)
    belonging = find_groups(images, settings.data, settings.group_by, copies=settings.near_duplicates)
    return images, split(images.catalogue, settings.test_fraction, belonging)


def require_enough_for(folds: int, data: TrainingData) -> None:
    """Refuse more folds than a class can fill.

    Raises
    ------
    DataError
        A class has fewer images to train on, or groups of them, than there are folds.
    """
    indices = data.development
    require_folds(data.images.labels[indices], folds, data.classes, data.together(indices))


def starting_weights(choice: str, model_types: Collection[str]) -> tuple[dict[str, Tensor] | None, str]:
    """The weights that the networks may start from, what they are, and a word to the user when they are random."""
    if not set(model_types) - {"simple_cnn"}:
        return None, "random"
    state, note = load_weights(choice)
    if state is None and choice == "auto":
        echo("no ImageNet weights can be had here, so a ResNet starts from random ones; --weights PATH gives it others")
    if state is None and "resnet18_backbone" in model_types:
        echo("warning: resnet18_backbone with random weights trains a head on random features; expect low accuracy")
    return state, note


def build_seeded_network(data: TrainingData, config: FitConfig) -> nn.Module:
    """The recipe's network, its new weights drawn with the seed."""
    recipe = config.recipe
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_network(recipe.model_type, len(data.classes), recipe.dropout, data.weights)


def hyperparameters_of(settings: Hyperparameters) -> Hyperparameters:
    """The hyperparameters alone."""
    return Hyperparameters(**{name: getattr(settings, name) for name in Hyperparameters.model_fields})


def use_machine(settings: DataSettings, world: World = SINGLE_PROCESS, threads: int | None = None) -> Device:
    """Choose the device, and how many threads to use: as many as this process has cores when None."""
    configure_torch(deterministic=settings.deterministic, threads=threads)
    return Device.choose(settings.precision, compiled=settings.compile, world=world)


def _job(settings: TrainSettings, world: World, hold: ExitStack | None = None) -> TrainingContext:
    """Everything that has to be right before a run begins."""
    checkpoint = None
    if settings.resume:
        checkpoint = open_checkpoint(settings.resume, settings.checkpoint_dir, hold)
        settings = _resumed_settings(settings, checkpoint)
    recipe = hyperparameters_of(settings)
    device = use_machine(settings, world)
    images, divided = load_images(settings, recipe.image_size)
    if checkpoint and images.catalogue.fingerprint != checkpoint.metadata["data_fingerprint"]:
        raise DataError(
            f"the images of {settings.data} have changed since run {checkpoint.run_id} was interrupted, so it cannot"
            " be gone on with; start a run without --resume"
        )
    weights = starting_weights(settings.weights, [recipe.model_type])
    if checkpoint and weights[1] != checkpoint.metadata["weights"]:
        raise SettingsError(
            f"run {checkpoint.run_id} began with {checkpoint.metadata['weights']} weights, and here --weights"
            f" {settings.weights} gives {weights[1]} ones, so it cannot be gone on with"
        )
    data = TrainingData(images, divided, *weights)
    if settings.folds:
        require_enough_for(settings.folds, data)
    return TrainingContext(settings, checkpoint, FitConfig(recipe, settings.seed, device), data)


def _resumed_settings(settings: TrainSettings, checkpoint: Checkpoint) -> TrainSettings:
    """The settings of the interrupted run; none that was given now may say otherwise, but where things are kept."""
    try:
        former = TrainSettings(**checkpoint.metadata["settings"])
    except (ValidationError, KeyError, TypeError):
        raise DataError(f"run {checkpoint.run_id} was begun by another version of train_cnn.py") from None
    places = settings.model_fields_set & {"checkpoint_dir", "cache_dir", "cache_limit", "register_as"}
    for name in sorted(settings.model_fields_set - places - {"resume"}):
        before, now = getattr(former, name), getattr(settings, name)
        if before != now:
            raise SettingsError(
                f"--{name.replace('_', '-')} was {before} when run {checkpoint.run_id} began and cannot become {now};"
                " leave it out, or start a run without --resume"
            )
    return former.model_copy(update={name: getattr(settings, name) for name in places})


def _features(data: TrainingData, config: FitConfig) -> Features | None:
    """What a frozen backbone sees of all development images; None for networks that learn as a whole."""
    if config.recipe.model_type != "resnet18_backbone":
        return None
    backbone = build_seeded_network(data, config).get_submodule("backbone")
    return Features.of(
        backbone, data.part(data.development), config.recipe, config.seed, config.device, known=data.feature_views
    )


def _validation_split(data: TrainingData, settings: TrainSettings) -> tuple[Subset, Subset]:
    """The user's own val/ folder, or a stratified share of the development images."""
    if len(data.split.validation):
        return data.part(data.split.development), data.part(data.split.validation)
    indices = data.split.development
    labels, groups = data.images.labels[indices], data.together(indices)
    training, validation = stratified(labels, settings.val_fraction, settings.seed, groups)
    if not len(validation):
        raise DataError("no class has a second image to validate on; add images or make a val/ folder")
    return data.part(indices[training]), data.part(indices[validation])


def _divided(data: TrainingData, settings: TrainSettings) -> Split:
    """Which images a training without folds trains, and which it validates on."""
    training, validation = _validation_split(data, settings)
    return replace(data.split, development=training.indices, validation=validation.indices)


def _fit_final(
    run: Run,
    data: TrainingData,
    config: FitConfig,
    training: Subset,
    validation: Subset | None,
    keeper: CheckpointManager,
) -> FitResult:
    """Train the network that will be logged, with everything recorded as it goes."""
    machine, recipe, device = SystemMetrics(), config.recipe, config.device

    def on_epoch(epoch: EpochMetrics, _: nn.Module, best: bool) -> None:
        readings = {**machine.read(), "gpu_memory_mb": gpu_peak_mb(device)}
        system = {f"system/{name}": value for name, value in readings.items()}  # where MLflow's page looks for them
        run.metrics({**epoch_metrics(epoch), **readings, **system}, epoch.epoch)
        echo(_epoch_line(epoch, recipe.epochs, best and validation is not None))

    validating = f"validating on {len(validation)}, " if validation else ""
    echo(
        f"training {recipe.model_type} on {len(training)} images of {len(data.classes)} classes, {validating}"
        f"{len(data.split.held_out)} held out ({device})"
    )
    callbacks = FitCallbacks(
        on_epoch=on_epoch, on_checkpoint=keeper.save_callback(FINAL_PHASE), checkpoint_share=KEEP_SHARE, bar="training"
    )
    return fit(
        build_seeded_network(data, config), training, validation, config, callbacks, keeper.progress(FINAL_PHASE)
    )


def _epoch_line(epoch: EpochMetrics, epochs: int, best: bool) -> str:
    validated = f"  val loss {epoch.val_loss:.4f}  val accuracy {epoch.val_accuracy:.4f}" if epoch.val_loss >= 0 else ""
    return (
        f"epoch {epoch.epoch:>3}/{epochs}  train loss {epoch.train_loss:.4f}  train accuracy {epoch.train_accuracy:.4f}"
        f"{validated}  {epoch.images_per_s:,.0f} images/s{'  best' if best else ''}"
    )


def report(outcome: TrainingResult) -> str:
    """What a person wants to see at the end, and the next command to type."""
    metrics, evaluation = outcome.metrics, outcome.evaluation
    judged = "mean_cv_accuracy" if "mean_cv_accuracy" in metrics else "best_val_accuracy"
    rows = [
        (judged.replace("_", " "), f"{metrics[judged]:.4f}"),
        ("held-out accuracy", f"{evaluation.accuracy:.4f}  ({evaluation.images} images never seen in training)"),
        ("precision, recall, F1", ", ".join(f"{value:.4f}" for value in evaluation.weighted.values())),
        ("calibration error", f"{evaluation.calibration_error:.4f}  ({_uncalibrated(metrics)})"),
        ("best epoch", f"{outcome.fitted.best_epoch} of {len(outcome.fitted.history)}"),
        ("training time", f"{outcome.fitted.seconds:.1f} s, {outcome.fitted.images_per_s:,.0f} images/s"),
        ("MLflow run", outcome.run.url or outcome.run.id),
    ]
    if outcome.run.table_url:
        rows.append(("all runs", outcome.run.table_url))
    if "std_cv_accuracy" in metrics:
        rows.insert(1, ("spread over the folds", f"{metrics['std_cv_accuracy']:.4f}"))
    table = "\n".join(f"  {name:<22} {value}" for name, value in rows)
    return f"\n{table}"


def register(run: Run, name: str) -> int:
    """Register a run's model as a version, by the script that knows the registry; its exit status."""
    words = ["--model-name", name, "register", "--run", run.id]
    return subprocess.run([*process_command("model_registry"), *words], check=False).returncode


def _requested_device(run: Run) -> str | None:
    """What a run that was gone on with is to be registered as, by the settings that it was begun with."""
    with mlflow_call("read the run", timeout=ANSWER_SECONDS):
        name = run.client.get_run(run.id).data.params.get("register_as", str(None))
    return None if name == str(None) else name


def _uncalibrated(metrics: Mapping[str, float]) -> str:
    return f"{metrics['calibration_error_before']:.4f} before temperature {metrics['temperature']:.2f}"


def main() -> int:
    """Run from the command line."""
    settings = parse(TrainSettings, __doc__)
    with init_distributed() as world:
        if world.rank:
            run_worker_rank(settings, world)
            return 0
        outcome = train(settings, world)
        echo(report(outcome))
    if name := settings.register_as or (_requested_device(outcome.run) if settings.resume else None):
        return register(outcome.run, name)
    echo(f"\nnext: {command_line('model_registry', f'register --run {outcome.run.id}')}")
    return 0


if __name__ == "__main__":
    run_script(main)
