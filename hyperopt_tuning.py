"""Search for the best settings with Hyperopt, each trial judged by stratified cross-validation.

    python hyperopt_tuning.py --preset quick                   # a small space, minutes on a laptop
    python hyperopt_tuning.py --data photos/ --max-trials 50   # the full space
    python hyperopt_tuning.py --data photos/ --time-budget 1h  # the best answer after an hour
    python hyperopt_tuning.py --resume                         # continue an interrupted study
    python hyperopt_tuning.py --status                         # print the results of a study so far

A trial's score is its mean validation accuracy over five folds. It pauses after parts of its first fold,
and goes on only when what it has shown may beat the best trial for what it costs. The best settings are
then trained once on everything but the held-out images and logged as a model, ready for

    python model_registry.py register --experiment-name hyperopt_tuning --metric mean_cv_accuracy

Each result is in studies/NAME/journal.jsonl before the next trial starts, and each epoch in a
checkpoint in the same folder, so --resume loses nothing whatever ended the search. In MLflow the study
is one run, its trials are nested runs, and their folds are nested in those.
"""

from toolkit.cli.startup import begin_imports

if __name__ == "__main__":
    begin_imports()

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from toolkit.cli.data_settings import DataSettings
from toolkit.cli.script_commands import command_line, this_command
from toolkit.cli.settings import LAST, Duration, Name, environment, parse, read_first, run_script

STEP_INTERVAL_S = 1.0  # between reports of a trial within an epoch
BUNDLE_S = 30.0  # kept of a time budget for the bundle of the final model: evaluation, export, plots
DEFAULT_TRIALS = {"full": 30, "quick": 6}
OVERRIDABLE_ON_RESUME = {
    "max_trials", "time_budget", "study_patience", "one_standard_error", "parallel", "study_dir", "cache_dir",
    "cache_limit", "resume",
}  # fmt: skip


class TuneSettings(DataSettings):
    """The settings of hyperopt_tuning.py."""

    model_config = environment("TUNE_")

    preset: Literal["full", "quick"] = Field("full", description="search space; quick is a small one for a laptop")
    space: Path | None = Field(None, description="YAML file that narrows or changes the preset's space")
    initial_points: Path | None = Field(
        None, description="YAML file with a list of settings to begin with, complete or partial"
    )
    max_trials: int | None = Field(None, ge=1, le=100_000, description="trials; default 30, with --preset quick 6")
    time_budget: Duration | None = Field(
        None, description="time for search and final training, such as 1h30m, 20m or 3600 (seconds)"
    )
    study_patience: int | None = Field(None, ge=1, description="stop after this many trials without a better one")
    folds: int = Field(5, ge=2, le=50, description="stratified folds of each trial")
    prune: bool = Field(True, description="train only promising trials on all folds, and end the others early")
    one_standard_error: bool = Field(
        False, description="choose the cheapest trial within one standard error of the best mean accuracy"
    )
    parallel: int = Field(
        1, ge=1, le=64, description="concurrent trials, each in a process with its share of the cores"
    )
    experiment_name: Name = Field("hyperopt_tuning", description="MLflow experiment")
    study_name: str | None = Field(
        None,
        pattern=r"^[\w-][\w.-]{0,99}$",
        description="name of the study; default: name of the data and a number",
    )
    study_dir: Path = Field(Path("studies"), description="folder of studies")
    resume: str | None = Field(
        None,
        description="continue an interrupted study with its own settings: last (also when nothing follows) or its name",
        json_schema_extra={"bare": LAST},
    )
    warm_start: str | None = Field(
        None,
        description="start a study that knows the trials of another one and begins with its best settings",
        json_schema_extra={"bare": LAST},
    )
    status: str | None = Field(
        None, description="print the results of a study so far, and run nothing", json_schema_extra={"bare": LAST}
    )

    @field_validator("study_name")
    @classmethod
    def _last_is_a_word(cls, name: str | None) -> str | None:
        if name == LAST:
            raise ValueError("must not be last, which stands for the latest study, got last")
        return name

    @property
    def trials(self) -> int:
        """Number of trials."""
        return self.max_trials or DEFAULT_TRIALS[self.preset]


if __name__ == "__main__":  # answers --help and wrong flags before the slow import of torch
    read_first(lambda: parse(TuneSettings, __doc__))

import numpy as np
from torch import nn

from toolkit.cli.terminal import echo, mute
from toolkit.errors import DataError, SettingsError, TrackingError, TrainingError, first_line
from toolkit.system.metrics import usable_cores
from toolkit.tracking.connection import MlflowClient, connect
from toolkit.tracking.run import Run
from toolkit.tuning.journal import Journal
from toolkit.tuning.mlflow_logger import StudyLogger, log_study
from toolkit.tuning.progress import all_settings, counts_text, leaderboard
from toolkit.tuning.promotion import RUNGS, rung_of
from toolkit.tuning.pruning import prune_after_epoch, prune_after_fold
from toolkit.tuning.search import FoldDone, Result, Search, SearchConfig, SearchHooks, Step, message_json
from toolkit.tuning.space import PRESETS, Space, contains
from toolkit.tuning.space_file import read_file, read_points, read_space
from toolkit.tuning.study import OTHER_VERSION, Proposal, Study, StudyConfig, default_startup_trials
from toolkit.tuning.study_storage import (
    FINISHED,
    claimed_name,
    differences,
    journal_of,
    load_logits,
    read_study,
    remove_logits,
    resolve_study,
    save_logits,
    studies_in,
)
from toolkit.tuning.trial import Fold, State, Trial
from toolkit.tuning.worker_pool import Report, WorkerPool
from train_cnn import (
    Checkpoint,
    CheckpointManager,
    CrossValidation,
    EpochMetrics,
    FitConfig,
    FitResult,
    FoldCallback,
    Hyperparameters,
    TrainingCost,
    TrainingData,
    TrainingPaused,
    TrainingResult,
    cross_validate,
    load_images,
    log_data,
    log_folds,
    open_checkpoint,
    require_enough_for,
    run_tags,
    starting_weights,
    train_final,
    use_machine,
)


class TrialTask(NamedTuple):
    """A trial that any machine can run: settings, seed and the place of the data."""

    proposal: Proposal  # the hyperparameters, and the incumbent to prune against
    folds: int
    data: DataSettings  # where images and starting weights are, and the seed
    networks: tuple[str, ...]  # all of the search space
    folder: Path | None = None  # of its checkpoint; None: no checkpoint
    threads: int | None = None  # of torch; None: one for each core of this process
    fingerprint: str | None = None  # expected of the images; None: any


TASK = TypeAdapter(TrialTask)  # to and from JSON


class TrialPruned(Exception):
    """A trial can no longer become the best."""


class TrialPaused(TrainingPaused):
    """A trial has finished the rung at which it pauses."""


@dataclass(frozen=True, eq=False)
class StudyOutcome:
    """A finished study and the model that was trained with its best settings."""

    name: str
    study: Study
    chosen: Trial  # the best, unless the cheapest of those as good was asked for
    model: TrainingResult


@dataclass(frozen=True, eq=False)
class StudyContext:
    """A search under way: its settings, space, data, study and journal."""

    name: str
    settings: TuneSettings
    space: Space
    data: TrainingData  # at one of the image sizes
    study: Study
    journal: Journal

    @property
    def folder(self) -> Path:
        """Folder of the study."""
        return self.journal.path.parent

    @property
    def data_settings(self) -> TuneSettings:
        """The settings with the weights that the study found, so that no trial finds others."""
        weights = {"random": "none", "imagenet": "imagenet"}.get(self.data.weights_note, self.settings.weights)
        return self.settings.model_copy(update={"weights": weights})


def tune(settings: TuneSettings) -> StudyOutcome:
    """Search, then train the best settings on everything and log the bundle in the study's run.

    Parameters
    ----------
    settings
        The settings; ``resume`` continues a study instead of starting one.

    Raises
    ------
    ToolkitError
        Data, weights or MLflow cannot be used, no trial was completed, or the study to resume depends on
        something that has changed.

    Examples
    --------
    >>> outcome = tune(TuneSettings(preset="quick", max_trials=2))  # doctest: +SKIP
    >>> outcome.study.best.mean_accuracy  # doctest: +SKIP
    0.98
    """
    began = time.monotonic()
    client = connect()
    context = resume_study(settings) if settings.resume else start_study(settings)
    with context.journal, resumable(context), study_run(context, client) as run:
        logger = study_logger(context, run)
        logger.sync([*context.study.trials, *context.study.paused.values()])
        try:
            search(context, logger, began)
            logger.flush()
        except BaseException:
            with suppress(TrackingError):  # the first error is the one to report
                logger.flush()
                log_study(run, context.study, context.space, context.journal.path)
            raise
        log_study(run, context.study, context.space, context.journal.path)
        model = train_best(context, run)
        chosen = chosen_trial(context)
        context.journal.append({"finished": chosen.number})
        remove_logits(context.folder)
        for number in (*context.study.paused, *context.study.under_way):
            Checkpoint(context.folder, _checkpoint_name(number), {}).discard()
    return StudyOutcome(context.name, context.study, chosen, model)


# --- one trial ----------------------------------------------------------------------------------


def data_for(settings: DataSettings, image_size: int, networks: tuple[str, ...]) -> TrainingData:
    """The data at an image size, with weights for any of the networks."""
    return TrainingData(*load_images(settings, image_size), *starting_weights(settings.weights, networks))


def evaluate(
    task: TrialTask,
    report: Callable[[Step | FoldDone], None] = lambda _: None,
    data_at: Callable[[DataSettings, int, tuple[str, ...]], TrainingData] = data_for,
) -> Result:
    """Cross-validate one point; a training that fails is a failed trial.

    The result depends on the task alone, so any process of any machine may run it.

    Parameters
    ----------
    task
        The trial.
    report
        Called with a ``Step`` after each epoch and a ``FoldDone`` after each fold.
    data_at
        Loads the data; a process with many tasks caches it.

    Raises
    ------
    ToolkitError
        Data or weights cannot be used, or the images are not those of the task.
    """
    start = time.monotonic()
    number, settings = task.proposal.number, task.proposal.settings
    callback = _PruningCallback(task, report)

    def trial(state: State, reason: str = "") -> Trial:
        seconds = max(time.monotonic() - start, sum(fold.seconds for fold in callback.folds))  # a resumed one's too
        rung, full_cost = callback.rung, callback.cost.full if callback.cost else 0.0
        return Trial(number, settings, state, tuple(callback.folds), seconds, reason, rung, full_cost)

    try:
        params = Hyperparameters(**settings)
        device = use_machine(task.data, threads=task.threads)
        data = data_at(task.data, params.image_size, task.networks)
        callback.cost = TrainingCost.of(params, len(data.development), task.folds)
        callback.validation_images = len(data.development) // task.folds
        if task.fingerprint not in (None, data.images.catalogue.fingerprint):
            raise DataError(f"the images of {task.data.data} have changed since the study began")
        checkpoint = _checkpoint(task.folder, _checkpoint_name(number), dict(settings)) if task.folder else None
        checkpoints, config = CheckpointManager(checkpoint), FitConfig(params, task.data.seed, device)
        cv = cross_validate(data, config, task.folds, checkpoints=checkpoints, callback=callback)
    except TrialPruned as pruned:
        return Result(trial("pruned", str(pruned)))
    except TrialPaused:
        return Result(trial("paused"))
    except (TrainingError, RuntimeError, MemoryError) as error:  # diverged, or out of memory
        return Result(trial("failed", first_line(error)))
    except ValidationError as error:  # incompatible settings
        return Result(trial("failed", error.errors()[0]["msg"].removeprefix("Value error, ")))
    return Result(trial("complete"), cv.logits)


class _PruningCallback(FoldCallback):
    """Reports the progress of a trial's folds, and ends it by raising ``TrialPruned`` or ``TrialPaused``."""

    def __init__(self, task: TrialTask, report: Callable[[Step | FoldDone], None]) -> None:
        self.folds: list[Fold] = []
        self.rung = 0  # number of rungs that the trial has finished
        self.cost: TrainingCost | None = None
        self.validation_images = 0  # of a fold
        self._incumbent, self._epochs = task.proposal.incumbent, task.proposal.settings["epochs"]
        self._n_folds, self._pause_at = task.folds, task.proposal.rung
        self._report, self._next = report, time.monotonic() + STEP_INTERVAL_S

    def on_batch(self, fold: int, done: int, batches: int) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + STEP_INTERVAL_S
            self._report(Step(fold, min(self._epochs, 1 + done * self._epochs // batches), done / batches))

    def on_epoch(self, fold: int, history: Sequence[EpochMetrics], images: int) -> None:
        self._report(Step(fold, len(history), len(history) / self._epochs))
        if fold:
            return
        curve = [epoch.val_accuracy for epoch in history]
        self.rung = rung_of(len(history), self._epochs)
        reason = self._incumbent and prune_after_epoch(curve, self._epochs, self._incumbent)
        if reason or self.rung > self._pause_at:
            seconds = sum(epoch.epoch_duration_s for epoch in history)
            self.folds = [self._fold(history, 1 + int(np.argmax(curve)), seconds, images * len(history))]
            raise TrialPruned(reason) if reason else TrialPaused

    def on_fold(self, finished: Sequence[FitResult]) -> None:
        self.folds = [self._fold(fold.history, fold.best_epoch, fold.seconds, fold.images) for fold in finished]
        self.rung = len(RUNGS)
        self._report(FoldDone(len(finished) - 1, self.folds[-1]))
        accuracies = [fold.accuracy for fold in self.folds]
        if self._incumbent and (reason := prune_after_fold(accuracies, self._n_folds, self._incumbent)):
            raise TrialPruned(reason)
        if self.rung > self._pause_at:
            raise TrialPaused

    def _fold(self, history: Sequence[EpochMetrics], best_epoch: int, seconds: float, images: int) -> Fold:
        multiply_adds = self.cost.of_images(images) if self.cost else 0.0
        return Fold(tuple(map(asdict, history)), best_epoch, seconds, images, multiply_adds, self.validation_images)


def _fit_result(fold: Fold) -> FitResult:
    history = [EpochMetrics(**dict[str, Any](epoch)) for epoch in fold.epochs]
    return FitResult(
        nn.Identity(), history, fold.best_epoch, fold.accuracy, seconds=fold.seconds, images=fold.images,
        images_per_s=fold.images / fold.seconds if fold.seconds else 0.0,
    )  # fmt: skip


def _checkpoint_name(number: int) -> str:
    return f"trial-{number + 1}"


def _checkpoint(folder: Path, name: str, metadata: dict[str, Any]) -> Checkpoint:
    """The checkpoint of this training, with the state that an interrupted process saved."""
    with suppress(SettingsError, DataError):  # missing or broken: start from the beginning
        checkpoint = open_checkpoint(name, folder)
        if checkpoint.metadata == metadata:
            return checkpoint
    return Checkpoint(folder, name, metadata)


_cached_data = cache(data_for)


def run_task(task: Any, report: Report) -> Any:
    """Evaluate a task in a worker process, which prints nothing; the arguments and the result are JSON."""
    mute()
    return message_json(
        evaluate(TASK.validate_python(task), lambda message: report(message_json(message)), _cached_data)
    )


# --- a study is started or resumed --------------------------------------------------------------


def start_study(settings: TuneSettings) -> StudyContext:
    """Start a study in a folder of its own."""
    folder = settings.study_dir
    space = space_of(settings)
    first = _initial_points(settings, space)
    earlier: list[Trial] = []
    if settings.warm_start:
        former, _ = read_study(folder, resolve_study(folder, settings.warm_start, "--warm-start"))
        earlier = [trial for trial in former.trials if contains(space, trial.settings)]
        echo(f"{len(earlier)} of {len(former.trials)} trials of the former study lie in this space and are known here")
        if former.best in earlier:
            first = [dict(former.best.settings), *first]
    data = _data(settings, space)
    name = settings.study_name or claimed_name(folder, data.images.catalogue.name.replace("/", "-"))
    config = StudyConfig(
        space, settings.seed, default_startup_trials(settings.trials), settings.prune, first, earlier,
        _data_identity(data), settings.model_dump(mode="json"),
    )  # fmt: skip
    for other in studies_in(folder):
        with suppress(DataError):
            if not read_study(folder, other)[1]:
                echo(f"study {other} is not finished; --resume {shlex.quote(other)} would continue it")
    journal = Journal(journal_of(folder, name), config.json())
    study = Study(config, record=journal.append, cost_of=cost_function(data, settings.folds))
    return StudyContext(name, settings, space, data, study, journal)


def resume_study(settings: TuneSettings) -> StudyContext:
    """Resume an interrupted study, unless something that its trials depend on has changed."""
    name = resolve_study(settings.study_dir, settings.resume or LAST, "--resume")
    word = shlex.quote(name)
    journal = Journal(journal_of(settings.study_dir, name))
    try:
        config = StudyConfig.from_json(journal.about)
        if any(FINISHED in entry for entry in journal.entries):
            raise SettingsError(
                f"study {name} is finished; --warm-start {word} starts another one that knows its trials"
            )
        former, changes = _original_settings(settings, config)
        data = _data(former, config.space)
        changes += differences(config.data_identity, _data_identity(data))
        if changes:
            raise SettingsError(
                f"study {name} cannot be resumed: {'; '.join(changes)}; --warm-start {word} starts another one that"
                " knows its trials"
            )
        study = Study(config, journal.entries, journal.append, cost_function(data, former.folds))
    except BaseException:
        journal.close()
        raise
    echo(f"resuming study {name}: {counts_text(study.trials)}")
    return StudyContext(name, former, config.space, data, study, journal)


def _original_settings(settings: TuneSettings, config: StudyConfig) -> tuple[TuneSettings, list[str]]:
    """The original settings of a study with the present values of overridable ones, and the refused changes."""
    try:
        former = TuneSettings(**config.settings)
    except (ValidationError, TypeError):
        raise DataError(OTHER_VERSION) from None
    given = settings.model_fields_set
    names = sorted(given - OVERRIDABLE_ON_RESUME - {"space", "initial_points"})
    changes = differences(
        {name: getattr(former, name) for name in names}, {name: getattr(settings, name) for name in names}
    )
    if settings.space:
        changes += differences(_space_text(config.space), _space_text(space_of(settings)))
    if settings.initial_points and _initial_points(settings, config.space) != config.initial_points:
        changes.append("--initial-points names other settings")
    return former.model_copy(update={name: getattr(settings, name) for name in given & OVERRIDABLE_ON_RESUME}), changes


def space_of(settings: TuneSettings) -> Space:
    """The preset's space with the changes of the user's file."""
    preset = PRESETS[settings.preset]
    return read_file(settings.space, read_space, preset, Hyperparameters) if settings.space else preset


def _initial_points(settings: TuneSettings, space: Space) -> list[dict[str, Any]]:
    return read_file(settings.initial_points, read_points, space, Hyperparameters) if settings.initial_points else []


def _data_identity(data: TrainingData) -> dict[str, str]:
    """Data and weights, on which trials depend besides the settings."""
    catalogue = data.images.catalogue
    return {"data": catalogue.name, "data_fingerprint": catalogue.fingerprint, "weights": data.weights_note}


def _data(settings: TuneSettings, space: Space) -> TrainingData:
    """The data at one of the image sizes, checked to be enough for the folds."""
    data = data_for(settings, _options(space, "image_size")[0], _options(space, "model_type"))
    require_enough_for(settings.folds, data)
    return data


def cost_function(data: TrainingData, folds: int) -> Callable[[Mapping[str, Any]], float]:
    """The multiply-adds of cross-validating any settings on the data; 0 for settings that cannot be trained with."""

    def cost_of(settings: Mapping[str, Any]) -> float:
        try:
            return TrainingCost.of(Hyperparameters(**settings), len(data.development), folds).full
        except ValidationError:
            return 0.0

    return cost_of


def _options(space: Space, name: str) -> tuple[Any, ...]:
    """The options of a choice; the default of another dimension."""
    options: tuple[Any, ...] = getattr(space.get(name), "options", (Hyperparameters.model_fields[name].default,))
    return options


def _space_text(space: Space) -> dict[str, str]:
    return {name: str(dimension) for name, dimension in space.items()}


@contextmanager
def resumable(context: StudyContext) -> Iterator[None]:
    """Print the command that resumes the study when the search ends early."""
    folder = shlex.quote(str(context.settings.study_dir))
    where = "" if folder == "studies" else f" --study-dir {folder}"
    command = f"{this_command()} --resume {shlex.quote(context.name)}{where}"
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        echo(f"stopped; resume with: {command}")
        raise
    except TrackingError as error:
        raise TrackingError(
            f"{error}; all results are kept: resume, when MLflow answers again, with {command}"
        ) from None


def study_run(context: StudyContext, client: MlflowClient) -> Run:
    """The study's run in MLflow, created or reopened."""
    for entry in context.journal.entries:
        if "run" in entry:
            return Run.reopen(client, entry["run"])
    settings = context.settings
    run = Run(
        client, settings.experiment_name, role="study", name=context.name, tags=run_tags(context.data, settings.seed)
    )
    run.params(settings.model_dump(mode="json"))
    run.json("search_space.json", _space_text(context.space))
    log_data(run, context.data, settings.data)
    context.journal.append({"run": run.id})
    return run


def study_logger(context: StudyContext, run: Run) -> StudyLogger:
    """The logger that shows trials in MLflow."""
    seed, tags = context.settings.seed, run_tags(context.data, context.settings.seed)

    def log_fold(trial: Run, settings: Mapping[str, Any], number: int, fold: Fold) -> None:
        log_folds(trial, Hyperparameters(**settings), context.data, seed, verbose=False)(number, _fit_result(fold))

    return StudyLogger(run, tags, log_fold)


# --- the search ---------------------------------------------------------------------------------


def search(context: StudyContext, logger: StudyLogger, began: float | None = None) -> None:
    """Run trials until a stop condition is met; those under way when it is interrupted can be resumed.

    Parameters
    ----------
    context, logger
        The study, and what shows it in MLflow.
    began
        Monotonic seconds from which the time budget counts; now when None.
    """
    settings, networks = context.settings, _options(context.space, "model_type")
    fingerprint = context.data.images.catalogue.fingerprint
    threads = None if settings.parallel == 1 else max(1, usable_cores() // settings.parallel)

    def make_task(proposal: Proposal) -> Any:
        task = TrialTask(
            proposal, settings.folds, context.data_settings, networks, context.folder, threads, fingerprint
        )
        return TASK.dump_python(task, mode="json")  # of the settings, those of the data alone

    def on_result(result: Result) -> None:
        if result.logits is not None:
            save_logits(context.folder, result.trial.number, result.logits)

    def cleanup(trial: Trial) -> None:
        Checkpoint(context.folder, _checkpoint_name(trial.number), {}).discard()

    echo(f"study {context.name}: {settings.trials} trials of {settings.folds} folds each")
    seconds = settings.time_budget
    if seconds is not None and began is not None:
        seconds -= time.monotonic() - began
    config = SearchConfig(settings.trials, settings.folds, seconds, settings.study_patience)
    with WorkerPool(settings.parallel, "hyperopt_tuning:run_task") as pool:
        Search(context.study, config, pool, SearchHooks(make_task, on_result, cleanup, final_seconds), logger).run()


def final_seconds(trial: Trial) -> float:
    """An estimate of the seconds for training a complete trial's settings on everything, at the pace of its folds."""
    n = len(trial.folds)
    return max(fold.seconds for fold in trial.folds) * n / (n - 1) + BUNDLE_S


# --- the best settings --------------------------------------------------------------------------


def chosen_trial(context: StudyContext) -> Trial:
    """The trial whose settings are trained on everything; TrainingError if none is complete."""
    study = context.study
    chosen = study.chosen(one_standard_error=context.settings.one_standard_error)
    if chosen is None:
        failed = [trial for trial in study.trials if trial.state == "failed"]
        if failed:
            raise TrainingError(f"all {len(study.trials)} trials failed; the first: {failed[0].reason}")
        raise TrainingError(
            f"no trial was complete when the time was up; raise --time-budget and --resume {shlex.quote(context.name)}"
        )
    return chosen


def train_best(context: StudyContext, run: Run) -> TrainingResult:
    """Train the chosen settings on everything but the held-out images and log the bundle."""
    settings, best = context.settings, chosen_trial(context)
    params = Hyperparameters(**best.settings)
    run.params({**params.model_dump(), "best_trial": best.number + 1})
    device = use_machine(settings)
    data = data_for(context.data_settings, params.image_size, _options(context.space, "model_type"))
    cv = CrossValidation([_fit_result(fold) for fold in best.folds], load_logits(context.folder, best.number))
    checkpoint = _checkpoint(context.folder, run.id, dict(best.settings))
    model = train_final(run, data, FitConfig(params, settings.seed, device), cv, CheckpointManager(checkpoint, run))
    checkpoint.discard()
    return model


def report(outcome: StudyOutcome) -> str:
    """The best five trials, the chosen settings, and the next command."""
    study, model, chosen = outcome.study, outcome.model, outcome.chosen
    best = study.ranking[0]
    name = "best settings"
    if chosen != best:
        name = (
            f"trial {chosen.number + 1}, within one standard error of trial {best.number + 1} at"
            f" {chosen.full_cost / best.full_cost:.2g} of its cost"
        )
    table = f"all runs: {model.run.table_url}\n" if model.run.table_url else ""
    return (
        f"\n{leaderboard(study)}\n\n{name}: {all_settings(chosen.settings)}\n"
        f"trained on everything for {len(model.fit.history)} epochs: held-out accuracy"
        f" {model.evaluation.accuracy:.4f} ({model.evaluation.images} images)\n"
        f"MLflow run: {model.run.url or model.run.id}\n{table}\n"
        f"next: {command_line('model_registry')} register --experiment-name {shlex.quote(model.run.experiment)}"
        " --metric mean_cv_accuracy"
    )


def print_status(settings: TuneSettings) -> str:
    """The results of a study so far."""
    name = resolve_study(settings.study_dir, settings.status or LAST, "--status")
    study, finished = read_study(settings.study_dir, name)
    n, waiting = len(study.under_way), f", {len(study.paused)} paused" if study.paused else ""
    state = "finished" if finished else f"not finished, {n} trial{'s' * (n != 1)} under way{waiting}"
    best = f"\n\nbest settings: {all_settings(study.best.settings)}" if study.best else ""
    return f"study {name}, {state}\n\n{leaderboard(study)}{best}"


def main() -> None:
    """Run from the command line."""
    settings = parse(TuneSettings, __doc__)
    echo(print_status(settings) if settings.status else report(tune(settings)))


if __name__ == "__main__":
    run_script(main)
