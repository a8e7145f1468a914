"""Train one network on a folder of pictures, or cross-validate it, and log everything to MLflow.

    python train_cnn.py                                        # scikit-learn's digits, no file needed
    python train_cnn.py --data photos/                         # a folder with one sub-folder a class
    python train_cnn.py --data photos/ --model-type resnet18 --image-size 128 --epochs 15
    python train_cnn.py --data photos/ --folds 5               # stratified 5-fold cross-validation

Some pictures (15 %, chosen by their content, or those in test/) are held out: they neither train
the network nor choose its epoch, and measure it at the end. Runs go to MLFLOW_TRACKING_URI, or to
mlflow.db in this folder; `mlflow server` shows them. The best epoch's weights are also kept in
checkpoints/. Every flag can be given as a variable, such as TRAIN_EPOCHS=20.
"""

import shlex
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor, nn

from toolkit.bundle import Measured
from toolkit.errors import DataError
from toolkit.machine import Machine, usable_cores
from toolkit.settings import ScriptSettings, environment, parse, run_script
from toolkit.terminal import bar, on_terminal, say
from toolkit.tracking import Run, connect
from toolkit.training.checkpoints import save_checkpoint
from toolkit.training.data import Data
from toolkit.training.datasets import (
    Pictures,
    Split,
    decode,
    open_catalogue,
    split,
    stratified,
    stratified_folds,
)
from toolkit.training.evaluate import fit_temperature
from toolkit.training.loop import Device, Epoch, Fitted, Part, fit
from toolkit.training.networks import build_network, load_weights
from toolkit.training.recipe import Recipe
from toolkit.training.record import Outcome, epoch_metrics, gpu_peak_mb, log_folds, log_outcome, log_skipped, tags_of

__all__ = [
    "CrossValidation",
    "Data",
    "DataSettings",
    "Device",
    "Outcome",
    "Recipe",
    "TrainSettings",
    "cross_validate",
    "load_pictures",
    "log_folds",
    "log_skipped",
    "starting_weights",
    "tags_of",
    "train",
    "train_on_everything",
    "use_machine",
]


class DataSettings(ScriptSettings):
    """What training and tuning share: the data, the starting weights, and how exactly to repeat it."""

    data: str = Field("digits", description="folder with one sub-folder a class, or digits")
    weights: str = Field(
        "auto",
        description="where a ResNet starts: imagenet, none (random), auto (imagenet if it can be had), or a file",
    )
    held_out: float = Field(0.15, gt=0, le=0.5, description="share of pictures held out, when there is no test/ folder")
    mirror: bool | None = Field(
        None, description="flip training pictures left to right; when not said, folders are flipped and digits are not"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="of splits, weights, order and augmentation")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of matrix products; auto is bfloat16 where the hardware multiplies it natively"
    )


class TrainSettings(Recipe, DataSettings):
    """The settings of train_cnn.py."""

    model_config = environment("TRAIN_")

    validation: float = Field(0.15, gt=0, le=0.5, description="share of the rest to validate on, without a val/ folder")
    folds: int = Field(0, ge=0, le=50, description="cross-validate with this many stratified folds; 0: do not")
    experiment_name: str = Field("training", min_length=1, description="MLflow experiment")
    run_name: str | None = Field(None, description="MLflow run name")
    checkpoint_dir: Path = Field(Path("checkpoints"), description="folder for the best epoch's weights")

    @field_validator("folds")
    @classmethod
    def _one_fold_is_none(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("must be 0 (no cross-validation) or at least 2, got 1")
        return folds


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """The folds of one recipe."""

    folds: list[Fitted]
    logits: NDArray[np.float32]  # (N, K), of each development picture by the fold that did not train on it

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


def train(settings: TrainSettings) -> Outcome:
    """Train, or cross-validate and train on everything, and log a bundle.

    With ``folds`` the folds judge the recipe, and the logged model is trained on all development
    pictures for the median of the folds' best epochs. Without, it is the best epoch on a stratified
    validation part.

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
    client = connect()
    recipe = recipe_of(settings)
    device = use_machine(settings.precision)
    pictures, divided = load_pictures(settings, recipe.image_size)
    data = Data(pictures, divided, *starting_weights(settings.weights, [recipe.model_type]))
    name = settings.run_name or f"{recipe.model_type}-{data.pictures.catalogue.name.replace('/', '-')}"
    with Run(client, settings.experiment_name, role="final", name=name, tags=tags_of(data, settings.seed)) as run:
        run.params(settings.model_dump(mode="json"))
        log_skipped(run, data)
        if settings.folds:
            cv = cross_validate(
                recipe, data, settings.folds, settings.seed, device, log_folds(run, recipe, data, settings.seed)
            )
            return train_on_everything(run, recipe, data, cv, settings.seed, device, settings.checkpoint_dir)
        training, validation = _validation_split(data, settings)
        fitted = _fit_final(run, recipe, data, training, validation, settings.seed, device, settings.checkpoint_dir)
        temperature = fit_temperature(fitted.val_logits, validation.own_labels)
        measured = {"best_val_accuracy": Measured(value=fitted.best_val_accuracy, pictures=len(validation))}
        return log_outcome(run, recipe, data, fitted, temperature, measured, device)


def cross_validate(
    recipe: Recipe,
    data: Data,
    folds: int,
    seed: int,
    device: Device,
    on_fold: Callable[[int, Fitted], None] = lambda *_: None,
) -> CrossValidation:
    """Train one network a stratified fold and judge each on the fold it has not seen.

    The result depends on recipe, data and seed alone.
    """
    indices = data.development
    labels = data.pictures.labels[indices]
    logits = np.zeros((len(indices), len(data.classes)), np.float32)
    fitted = []
    for number, (training, validation) in enumerate(stratified_folds(labels, folds, seed, data.classes)):
        fold = fit(
            new_network(recipe, data, seed + number),
            data.part(indices[training]),
            data.part(indices[validation]),
            recipe,
            seed=seed + number,
            device=device,
            mirrored=data.pictures.catalogue.mirrored,
            bar=bar(f"fold {number + 1}/{folds}"),
        )
        logits[validation] = fold.val_logits
        fold.network = nn.Identity()  # the weights of a fold serve nobody
        fitted.append(fold)
        on_fold(number, fold)
    return CrossValidation(fitted, logits)


def train_on_everything(
    run: Run,
    recipe: Recipe,
    data: Data,
    cv: CrossValidation,
    seed: int,
    device: Device,
    checkpoints: Path | None = None,
) -> Outcome:
    """Train on all development pictures for as long as the folds found best, and log the bundle.

    The temperature is fitted on the folds' own validation logits, which no network was trained on.
    """
    indices = data.development
    run.metrics(cv.metrics)
    for number, accuracy in enumerate(cv.accuracies):
        run.metrics({"fold_accuracy": accuracy}, step=number)
    final = recipe.model_copy(update={"epochs": cv.epochs})
    fitted = _fit_final(run, final, data, data.part(indices), None, seed, device, checkpoints)
    fitted.best_val_accuracy = cv.metrics["mean_cv_accuracy"]
    temperature = fit_temperature(cv.logits, data.pictures.labels[indices])
    measured = {name: Measured(value=value, pictures=len(indices)) for name, value in cv.metrics.items()}
    return log_outcome(run, final, data, fitted, temperature, measured, device)


def load_pictures(settings: DataSettings, image_size: int) -> tuple[Pictures, Split]:
    """Read, decode and split the pictures."""
    catalogue = open_catalogue(settings.data)
    if settings.mirror is not None:
        catalogue = replace(catalogue, mirrored=settings.mirror)
    pictures = decode(catalogue, image_size, progress=on_terminal())
    return pictures, split(pictures.catalogue, settings.held_out)


def starting_weights(choice: str, model_types: Collection[str]) -> tuple[dict[str, Tensor] | None, str]:
    """The weights that the networks may start from, what they are, and a word to the user when they are random."""
    if not set(model_types) - {"simple_cnn"}:
        return None, "random"
    state, note = load_weights(choice)
    if state is None and choice == "auto":
        say("no ImageNet weights can be had here, so a ResNet starts from random ones; --weights PATH gives it others")
    if state is None and "resnet18_backbone" in model_types:
        say("warning: resnet18_backbone with random weights trains a head on random features; expect low accuracy")
    return state, note


def new_network(recipe: Recipe, data: Data, seed: int) -> nn.Module:
    """The recipe's network, its new weights drawn with the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(recipe.model_type, len(data.classes), recipe.dropout, data.weights)


def recipe_of(settings: Recipe) -> Recipe:
    """The hyperparameters alone."""
    return Recipe(**{name: getattr(settings, name) for name in Recipe.model_fields})


def use_machine(precision: str) -> Device:
    """Choose the device, and as many threads as this process has cores."""
    torch.set_num_threads(usable_cores())
    return Device.choose(precision)


def _validation_split(data: Data, settings: TrainSettings) -> tuple[Part, Part]:
    """The user's own val/ folder, or a stratified share of the development pictures."""
    if len(data.split.validation):
        return data.part(data.split.development), data.part(data.split.validation)
    indices = data.split.development
    training, validation = stratified(data.pictures.labels[indices], settings.validation, settings.seed)
    if not len(validation):
        raise DataError("no class has a second picture to validate on; add pictures or make a val/ folder")
    return data.part(indices[training]), data.part(indices[validation])


def _fit_final(
    run: Run,
    recipe: Recipe,
    data: Data,
    training: Part,
    validation: Part | None,
    seed: int,
    device: Device,
    checkpoints: Path | None,
) -> Fitted:
    """Train the network that will be logged, with everything recorded as it goes."""
    machine = Machine()
    path = None if checkpoints is None else checkpoints / f"{run.id}.pt"

    def on_epoch(epoch: Epoch, network: nn.Module, best: bool) -> None:
        run.metrics({**epoch_metrics(epoch), **machine.read(), "gpu_memory_mb": gpu_peak_mb(device)}, epoch.epoch)
        run.flush()
        if best and path is not None:
            save_checkpoint(
                path, network, {"recipe": recipe.model_dump(), "classes": data.classes, "epoch": epoch.epoch}
            )
        say(_epoch_line(epoch, recipe.epochs, best and validation is not None))

    held = len(data.split.held_out)
    validating = f"validating on {len(validation)}, " if validation else ""
    say(
        f"training {recipe.model_type} on {len(training)} pictures of {len(data.classes)} classes, {validating}"
        f"{held} held out ({device.name}, {str(device.dtype).removeprefix('torch.')})"
    )
    try:
        return fit(
            new_network(recipe, data, seed), training, validation, recipe, seed=seed, device=device,
            mirrored=data.pictures.catalogue.mirrored, on_epoch=on_epoch, bar=bar("training"),
        )  # fmt: skip
    except (KeyboardInterrupt, SystemExit):
        if path is not None and path.exists():
            say(f"stopped; the best epoch so far is in {path}")
        raise


def _epoch_line(epoch: Epoch, epochs: int, best: bool) -> str:
    validated = f"  val loss {epoch.val_loss:.4f}  val accuracy {epoch.val_accuracy:.4f}" if epoch.val_loss >= 0 else ""
    return (
        f"epoch {epoch.epoch:>3}/{epochs}  train loss {epoch.train_loss:.4f}  train accuracy {epoch.train_accuracy:.4f}"
        f"{validated}  {epoch.images_per_s:,.0f} pictures/s{'  best' if best else ''}"
    )


def report(outcome: Outcome, settings: TrainSettings) -> str:
    """What a person wants to see at the end, and the next command to type."""
    metrics, evaluation = outcome.metrics, outcome.evaluation
    judged = "mean_cv_accuracy" if settings.folds else "best_val_accuracy"
    rows = [
        (judged.replace("_", " "), f"{metrics[judged]:.4f}"),
        ("held-out accuracy", f"{evaluation.accuracy:.4f}  ({evaluation.pictures} pictures never seen in training)"),
        ("precision, recall, F1", ", ".join(f"{value:.4f}" for value in evaluation.weighted.values())),
        ("calibration error", f"{evaluation.calibration_error:.4f}  (temperature {metrics['temperature']:.2f})"),
        ("best epoch", f"{outcome.fitted.best_epoch} of {len(outcome.fitted.history)}"),
        ("training time", f"{outcome.fitted.seconds:.1f} s, {outcome.fitted.images_per_s:,.0f} pictures/s"),
        ("MLflow run", outcome.run.url or outcome.run.id),
    ]
    if settings.folds:
        rows.insert(1, ("spread over the folds", f"{metrics['std_cv_accuracy']:.4f}"))
    table = "\n".join(f"  {name:<22} {value}" for name, value in rows)
    experiment = shlex.quote(settings.experiment_name)
    register = f"python model_registry.py register --experiment-name {experiment} --metric {judged}"
    return f"\n{table}\n\nnext: {register}"


def main() -> None:
    """Run from the command line."""
    settings = parse(TrainSettings, __doc__)
    say(report(train(settings), settings))


if __name__ == "__main__":
    run_script(main)
