"""Search for the best settings with Hyperopt, each trial judged by stratified cross-validation.

    python hyperopt_tuning.py --preset quick                   # a small space, minutes on a laptop
    python hyperopt_tuning.py --data photos/ --max-evals 50    # the full space
    python hyperopt_tuning.py --data photos/ --timeout 3600    # start no trial after an hour

A trial's score is its mean validation accuracy over five folds. The best settings are then trained
once on everything but the held-out pictures and logged as a model, ready for

    python model_registry.py register --experiment-name hyperopt_tuning --metric mean_cv_accuracy

In MLflow the study is one run, its trials are nested runs, their folds are nested in those. On two
cores a trial of the full space takes from minutes to an hour; Ctrl-C keeps every finished trial.
"""

import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

from pydantic import Field
from tqdm import tqdm

from toolkit.errors import TrainingError, one_line
from toolkit.settings import environment, parse, run_script
from toolkit.terminal import on_terminal, say, table
from toolkit.tracking import Run, connect
from toolkit.tuning.figures import history_picture
from toolkit.tuning.space import PRESETS, Choice, Space
from toolkit.tuning.study import Study, Trial
from train_cnn import (
    CrossValidation,
    Data,
    DataSettings,
    Device,
    Outcome,
    Recipe,
    cross_validate,
    load_pictures,
    log_data,
    log_folds,
    starting_weights,
    tags_of,
    train_on_everything,
    use_machine,
)

DEFAULT_EVALS = {"full": 30, "quick": 6}


class TuneSettings(DataSettings):
    """The settings of hyperopt_tuning.py."""

    model_config = environment("TUNE_")

    preset: Literal["full", "quick"] = Field("full", description="search space; quick is a small one for a laptop")
    max_evals: int | None = Field(None, ge=1, le=100_000, description="trials; default 30, with --preset quick 6")
    timeout: float | None = Field(None, gt=0, description="start no trial after this many seconds")
    folds: int = Field(5, ge=2, le=50, description="stratified folds that judge each trial")
    experiment_name: str = Field("hyperopt_tuning", min_length=1, description="MLflow experiment")
    study_name: str | None = Field(None, description="MLflow run name of the study")

    @property
    def evaluations(self) -> int:
        """How many trials are planned."""
        return self.max_evals or DEFAULT_EVALS[self.preset]


@dataclass(frozen=True, eq=False)
class StudyOutcome:
    """A finished study and the model that was trained with its best settings."""

    study: Study
    model: Outcome


def tune(settings: TuneSettings) -> StudyOutcome:
    """Search, then train the best settings on everything and log the bundle in the study's run.

    Raises
    ------
    ToolkitError
        Data, weights or MLflow cannot be used, or every trial failed, in one sentence.

    Examples
    --------
    >>> outcome = tune(TuneSettings(preset="quick", max_evals=2))  # doctest: +SKIP
    >>> outcome.study.best.mean_accuracy  # doctest: +SKIP
    0.98
    """
    client = connect()
    device = use_machine(settings)
    space = PRESETS[settings.preset]
    data_at = data_shelf(settings, space)
    study = Study(space, settings.seed, settings.evaluations)
    first = data_at(_options(space, "image_size")[0])
    name = settings.study_name or f"study-{first.pictures.catalogue.name.replace('/', '-')}"
    with Run(client, settings.experiment_name, role="study", name=name, tags=tags_of(first, settings.seed)) as run:
        run.params(settings.model_dump(mode="json"))
        run.json("search_space.json", {name: str(dimension) for name, dimension in space.items()})
        log_data(run, first, settings.data)
        try:
            cross_validation = search(study, run, data_at, settings, device)
        finally:  # also when it is interrupted
            _log_study(run, study)
        best = study.best
        if best is None or cross_validation is None:
            raise TrainingError(f"all {len(study.trials)} trials failed; the first: {study.trials[0].reason}")
        recipe = Recipe(**best.settings)
        run.params({**recipe.model_dump(), "best_trial": best.number})
        model = train_on_everything(run, recipe, data_at(recipe.image_size), cross_validation, settings.seed, device)
    return StudyOutcome(study, model)


def search(
    study: Study, run: Run, data_at: Callable[[int], Data], settings: TuneSettings, device: Device
) -> CrossValidation | None:
    """Run trials until they or the time are used up; the folds of the best one."""
    deadline = None if settings.timeout is None else time.monotonic() + settings.timeout
    best = None
    progress = tqdm(total=settings.evaluations, desc="trials", unit="trial", disable=not on_terminal())
    say(f"searching the {settings.preset} space: {settings.evaluations} trials of {settings.folds} folds each")
    with progress:
        while len(study.trials) < settings.evaluations:
            if study.trials and deadline is not None and time.monotonic() > deadline:
                say(f"the time is up after {len(study.trials)} of {settings.evaluations} trials")
                break
            number, point = study.ask()
            trial, folds = run_trial(number, point, run, data_at, settings, device)
            study.tell(trial)
            if study.best is trial:
                best = folds
            progress.update()
            say(_trial_line(trial, settings.evaluations, best=study.best is trial))
    return best


def run_trial(
    number: int,
    point: dict[str, Any],
    study: Run,
    data_at: Callable[[int], Data],
    settings: TuneSettings,
    device: Device,
) -> tuple[Trial, CrossValidation | None]:
    """Cross-validate one point; a training that fails is recorded with its reason and ends nothing."""
    recipe = Recipe(**point)
    data = data_at(recipe.image_size)
    start = time.monotonic()
    tags = {**tags_of(data, settings.seed), "trial": number}
    try:
        with Run(study.client, study.experiment, role="trial", name=f"trial {number}", parent=study, tags=tags) as run:
            run.params(recipe.model_dump())
            log = log_folds(run, recipe, data, settings.seed, aloud=False)
            folds = cross_validate(recipe, data, settings.folds, settings.seed, device, log)
            seconds = time.monotonic() - start
            run.metrics({**folds.metrics, "training_time_s": seconds})
            for fold, accuracy in enumerate(folds.accuracies):
                run.metrics({"fold_accuracy": accuracy}, step=fold)
    except (TrainingError, RuntimeError, MemoryError) as error:  # diverged, or out of memory
        return Trial(number, point, "failed", seconds=time.monotonic() - start, reason=one_line(error)), None
    mean, spread = folds.metrics["mean_cv_accuracy"], folds.metrics["std_cv_accuracy"]
    return Trial(number, point, "complete", mean, spread, seconds), folds


def data_shelf(settings: DataSettings, space: Space) -> Callable[[int], Data]:
    """A function that gives the data at a picture size, decoding it once."""
    weights = starting_weights(settings.weights, _options(space, "model_type"))

    @cache
    def data_at(image_size: int) -> Data:
        return Data(*load_pictures(settings, image_size), *weights)

    return data_at


def _options(space: Space, name: str) -> tuple[Any, ...]:
    dimension = space[name]
    return dimension.options if isinstance(dimension, Choice) else ()


def _log_study(run: Run, study: Study) -> None:
    run.json("trials.json", [asdict(trial) for trial in study.trials])
    run.metrics({"trials": len(study.trials), "failed_trials": len(study.trials) - len(study.ranking)})
    if study.ranking:
        run.figure("study_history.png", history_picture(study.trials))


def _trial_line(trial: Trial, planned: int, *, best: bool) -> str:
    start = f"trial {trial.number + 1:>3}/{planned}"
    if trial.state == "failed":
        return f"{start}  failed after {trial.seconds:.0f} s: {trial.reason}"
    shown = ", ".join(
        str(trial.settings[name]) for name in ("model_type", "image_size", "optimizer", "batch_size", "epochs")
    )
    return (
        f"{start}  mean accuracy {trial.mean_accuracy:.4f} (spread {trial.std_accuracy:.4f})  {trial.seconds:.0f} s"
        f"  {shown}, lr {trial.settings['learning_rate']:.2g}{'  best' if best else ''}"
    )


def report(outcome: StudyOutcome, settings: TuneSettings) -> str:
    """The best five trials, the best settings, and the next command to type."""
    study, model = outcome.study, outcome.model
    headings = ["trial", "mean", "spread", "seconds", "network", "size", "optimizer", "batch", "learning rate"]
    rows = [
        [
            trial.number + 1,
            f"{trial.mean_accuracy:.4f}",
            f"{trial.std_accuracy:.4f}",
            f"{trial.seconds:.0f}",
            trial.settings["model_type"],
            trial.settings["image_size"],
            trial.settings["optimizer"],
            trial.settings["batch_size"],
            f"{trial.settings['learning_rate']:.2g}",
        ]
        for trial in study.ranking[:5]
    ]
    best = study.ranking[0].settings
    settings_line = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in best.items()
    )
    return (
        f"\n{table(headings, rows)}\n\nbest settings: {settings_line}\n"
        f"trained on everything for {len(model.fitted.history)} epochs: held-out accuracy"
        f" {model.evaluation.accuracy:.4f} ({model.evaluation.pictures} pictures)\n"
        f"MLflow run: {model.run.url or model.run.id}\n\n"
        f"next: python model_registry.py register --experiment-name {shlex.quote(settings.experiment_name)}"
        " --metric mean_cv_accuracy"
    )


def main() -> None:
    """Run from the command line."""
    settings = parse(TuneSettings, __doc__)
    say(report(tune(settings), settings))


if __name__ == "__main__":
    run_script(main)
