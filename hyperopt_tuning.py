"""Search for the best settings with Hyperopt, each trial judged by stratified cross-validation.

    python hyperopt_tuning.py --preset quick                   # a small space, minutes on a laptop
    python hyperopt_tuning.py --data photos/ --max-trials 50    # the full space
    python hyperopt_tuning.py --data photos/ --timeout 3600    # search for an hour
    python hyperopt_tuning.py --resume                         # go on with what was interrupted
    python hyperopt_tuning.py --status                           # what a study has found so far

A trial's score is its mean validation accuracy over five folds; one that can no longer matter is cut
before its last fold. The best settings are then trained once on everything but the held-out images
and logged as a model, ready for

    python model_registry.py register --experiment-name hyperopt_tuning --metric mean_cv_accuracy

Each result is in studies/NAME/journal.jsonl before the next trial begins, and each epoch in a
checkpoint beside it, so whatever ends the search, --resume loses nothing. In MLflow the study is one
run, its trials are nested runs, their folds are nested in those.
"""

from toolkit.cli.import_interrupt import exit_on_interrupt

if __name__ == "__main__":
    exit_on_interrupt()

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from toolkit.cli.commands import command_line, this_command
from toolkit.cli.data_settings import DataSettings
from toolkit.cli.settings import LAST, Name, environment, parse, read_first, run_script

SECONDS_A_STEP = 1.0  # between two words of a trial about where it is within an epoch
DEFAULT_TRIALS = {"full": 30, "quick": 6}
PARAMS = {"patience": "study_patience"}  # a hyperparameter has that name already
OVERRIDABLE_ON_RESUME = {
    "max_evals",
    "timeout",
    "patience",
    "parallel",
    "study_dir",
    "cache_dir",
    "cache_limit",
    "resume",
}  # of a study


class TuneSettings(DataSettings):
    """The settings of hyperopt_tuning.py."""

    model_config = environment("TUNE_")

    preset: Literal["full", "quick"] = Field("full", description="search space; quick is a small one for a laptop")
    space: Path | None = Field(None, description="YAML file that narrows or changes the preset's space")
    initial_points: Path | None = Field(
        None, description="YAML file with a list of settings to begin with, whole or in part"
    )
    max_trials: int | None = Field(None, ge=1, le=100_000, description="trials; default 30, with --preset quick 6")
    timeout: float | None = Field(None, gt=0, description="search for at most this many seconds, also within a trial")
    study_patience: int | None = Field(None, ge=1, description="stop after this many trials without a better one")
    folds: int = Field(5, ge=2, le=50, description="stratified folds that judge each trial")
    prune: bool = Field(True, description="cut trials that can no longer matter")
    parallel: int = Field(1, ge=1, le=64, description="trials at a time, each in a process with its share of the cores")
    experiment_name: Name = Field("hyperopt_tuning", description="MLflow experiment")
    study_name: str | None = Field(
        None,
        pattern=r"^[\w-][\w.-]{0,99}$",
        description="name of the study; default: the data's, and a number",
    )
    study_dir: Path = Field(Path("studies"), description="folder that keeps studies")
    resume: str | None = Field(
        None,
        description="go on with an interrupted study, with its own settings: last (also when nothing follows) or its"
        " name",
        json_schema_extra={"bare": LAST},
    )
    warm_start: str | None = Field(
        None,
        description="start a study that knows the trials of another one and begins with its best settings",
        json_schema_extra={"bare": LAST},
    )
    status: str | None = Field(
        None, description="print what a study has found so far, and run nothing", json_schema_extra={"bare": LAST}
    )

    @field_validator("study_name")
    @classmethod
    def _last_is_a_word(cls, name: str | None) -> str | None:
        if name == LAST:
            raise ValueError("must be a name, and last is what --resume calls the latest study, got last")
        return name

    @property
    def trials(self) -> int:
        """How many trials are planned."""
        return self.max_trials or DEFAULT_TRIALS[self.preset]


if __name__ == "__main__":  # --help and what is mistyped are answered before the seconds that torch takes to import
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
from toolkit.tuning.progress import StudyProgressBar, all_settings, counts_text, leaderboard
from toolkit.tuning.pruning import prune_after_epoch, prune_after_fold
from toolkit.tuning.search import FoldDone, Result, Search, Step, StopConditions, message_json
from toolkit.tuning.space import PRESETS, Space, contains
from toolkit.tuning.space_file import read_file, read_points, read_space
from toolkit.tuning.study import Proposal, Study, default_startup_trials
from toolkit.tuning.study_storage import (
    FINISHED,
    StudyConfig,
    claimed_name,
    differences,
    journal_of,
    load_logits,
    read_study,
    resolve_study,
    save_logits,
    studies_in,
)
from toolkit.tuning.trial import Fold, Trial
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
    TrainingData,
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
    """A trial as any machine can run it: settings, seed, and where the data is.

    Parameters
    ----------
    proposal
        The hyperparameters, and the trial that it is measured by.
    folds
        How many there are.
    data
        Where the images and the starting weights come from, and the seed.
    networks
        All that the study searches.
    folder
        Where its checkpoint is kept; None: it is not.
    threads
        For torch; None: as many as this process has cores.
    fingerprint
        Of the images that it is meant for; None: any.
    """

    proposal: Proposal
    folds: int
    data: DataSettings
    networks: tuple[str, ...]
    folder: Path | None = None
    threads: int | None = None
    fingerprint: str | None = None


TASK = TypeAdapter(TrialTask)  # as JSON


class TrialPruned(Exception):
    """A trial can no longer matter."""


@dataclass(frozen=True, eq=False)
class StudyOutcome:
    """A finished study and the model that was trained with its best settings."""

    name: str
    study: Study
    model: TrainingResult


@dataclass(frozen=True, eq=False)
class Job:
    """A search under way: its settings and all that follows from them."""

    name: str
    settings: TuneSettings
    space: Space
    data: TrainingData  # at one of the sizes
    study: Study
    journal: Journal

    @property
    def folder(self) -> Path:
        """Where the study is kept."""
        return self.journal.path.parent


def tune(settings: TuneSettings) -> StudyOutcome:
    """Search, then train the best settings on everything and log the bundle in the study's run.

    Raises
    ------
    ToolkitError
        Data, weights or MLflow cannot be used, no trial was completed, or the study to be gone on with
        was another one, in one sentence.

    Examples
    --------
    >>> outcome = tune(TuneSettings(preset="quick", max_evals=2))  # doctest: +SKIP
    >>> outcome.study.best.mean_accuracy  # doctest: +SKIP
    0.98
    """
    client = connect()
    job = resume_study(settings) if settings.resume else start_study(settings)
    with job.journal, resumable(job), study_run(job, client) as run:
        mirror = study_logger(job, run)
        mirror.sync(job.study.trials)
        try:
            search(job, mirror)
        except BaseException:
            with suppress(TrackingError):  # the first error is the one to report
                mirror.flush()
                log_study(run, job.study, job.space, job.journal.path)
            raise
        mirror.flush()
        log_study(run, job.study, job.space, job.journal.path)
        model = train_best(job, run)
        job.journal.append({"finished": job.study.best.number if job.study.best else None})
    return StudyOutcome(job.name, job.study, model)


# --- one trial ----------------------------------------------------------------------------------


def data_for(settings: DataSettings, image_size: int, networks: tuple[str, ...]) -> TrainingData:
    """The data at an image size, with weights for any of the networks."""
    return TrainingData(*load_images(settings, image_size), *starting_weights(settings.weights, networks))


def evaluate(
    task: TrialTask,
    tell: Callable[[Any], None] = lambda _: None,
    data_at: Callable[[DataSettings, int, tuple[str, ...]], TrainingData] = data_for,
) -> Result:
    """Cross-validate one point; a training that fails is a failed trial.

    What comes of a task depends on nothing else, so any process of any machine may run it.

    Parameters
    ----------
    tell
        Called with a ``Step`` after each epoch and a ``FoldDone`` after each fold.
    data_at
        Gives the data; a process with many tasks keeps it.

    Raises
    ------
    ToolkitError
        Data or weights cannot be used, or the images are not those of the task.
    """
    began = time.monotonic()
    number, settings = task.proposal.number, task.proposal.settings
    watch = _Watch(task, tell)

    def ended(state: Literal["complete", "cut", "failed"], reason: str = "") -> Trial:
        seconds = max(time.monotonic() - began, sum(fold.seconds for fold in watch.folds))  # also before a resumption
        return Trial(number, settings, state, tuple(watch.folds), seconds, reason)

    try:
        recipe = Hyperparameters(**settings)
        device = use_machine(task.data, threads=task.threads)
        data = data_at(task.data, recipe.image_size, task.networks)
        if task.fingerprint not in (None, data.images.catalogue.fingerprint):
            raise DataError(f"the images of {task.data.data} have changed since the study began")
        keeper = CheckpointManager(
            _checkpoint(task.folder, _checkpoint_name(number), dict(settings)) if task.folder else None
        )
        cv = cross_validate(
            data, FitConfig(recipe, task.data.seed, device), task.folds, checkpoints=keeper, callback=watch
        )
    except TrialPruned as cut:
        return Result(ended("cut", str(cut)))
    except (TrainingError, RuntimeError, MemoryError) as error:  # diverged, or out of memory
        return Result(ended("failed", first_line(error)))
    except ValidationError as error:  # settings that do not go together
        return Result(ended("failed", error.errors()[0]["msg"].removeprefix("Value error, ")))
    return Result(ended("complete"), cv.logits)


class _Watch(FoldCallback):
    """Looks on while a trial's folds are trained, and cuts it when it can no longer matter."""

    def __init__(self, task: TrialTask, tell: Callable[[Any], None]) -> None:
        self.folds: list[Fold] = []
        self._holder, self._epochs = task.proposal.incumbent, task.proposal.settings["epochs"]
        self._count, self._tell, self._next = task.folds, tell, time.monotonic() + SECONDS_A_STEP

    def on_batch(self, fold: int, done: int, batches: int) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + SECONDS_A_STEP
            self._tell(Step(fold, min(self._epochs, 1 + done * self._epochs // batches), done / batches))

    def on_epoch(self, fold: int, history: Sequence[EpochMetrics], images: int) -> None:
        self._tell(Step(fold, len(history), len(history) / self._epochs))
        curve = [epoch.val_accuracy for epoch in history]
        if fold == 0 and self._holder and (reason := prune_after_epoch(curve, self._epochs, self._holder)):
            seconds = sum(epoch.epoch_duration_s for epoch in history)
            epochs = tuple(asdict(epoch) for epoch in history)
            self.folds = [Fold(epochs, 1 + int(np.argmax(curve)), seconds, images * len(history))]
            raise TrialPruned(reason)

    def on_fold(self, finished: Sequence[FitResult]) -> None:
        self.folds = [_as_fold(fold) for fold in finished]
        self._tell(FoldDone(len(finished) - 1, self.folds[-1]))
        accuracies = [fold.accuracy for fold in self.folds]
        if self._holder and (reason := prune_after_fold(accuracies, self._count, self._holder)):
            raise TrialPruned(reason)


def _as_fold(fitted: FitResult) -> Fold:
    epochs = tuple(asdict(epoch) for epoch in fitted.history)
    return Fold(epochs, fitted.best_epoch, fitted.seconds, fitted.images)


def _fit_result(fold: Fold) -> FitResult:
    history = [EpochMetrics(**dict[str, Any](epoch)) for epoch in fold.epochs]
    return FitResult(
        nn.Identity(), history, fold.best_epoch, fold.accuracy, seconds=fold.seconds, images=fold.images,
        images_per_s=fold.images / fold.seconds if fold.seconds else 0.0,
    )  # fmt: skip


def _checkpoint_name(number: int) -> str:
    return f"trial-{number + 1}"


def _checkpoint(folder: Path, name: str, about: dict[str, Any]) -> Checkpoint:
    """Of this very training, with what an interrupted process left."""
    with suppress(SettingsError, DataError):  # there is none, or it is broken: begin anew
        checkpoint = open_checkpoint(name, folder)
        if checkpoint.metadata == about:
            return checkpoint
    return Checkpoint(folder, name, about)


_kept_data = cache(data_for)


def run_task(task: Any, report: Report) -> Any:
    """Evaluate a task in a worker process, which prints nothing; the arguments and the result are JSON."""
    mute()
    return message_json(evaluate(TASK.validate_python(task), lambda said: report(message_json(said)), _kept_data))


# --- a study begins, or is gone on with ---------------------------------------------------------


def start_study(settings: TuneSettings) -> Job:
    """A study of its own, in a folder of its own."""
    folder = settings.study_dir
    space = space_of(settings)
    first = read_file(settings.initial_points, read_points, space, Hyperparameters) if settings.initial_points else []
    earlier: list[Trial] = []
    if settings.warm_start:
        former, _ = read_study(folder, resolve_study(folder, settings.warm_start, "--warm-start"))
        earlier = [trial for trial in former.trials if contains(space, trial.settings)]
        echo(f"{len(earlier)} of {len(former.trials)} trials of the former study lie in this space and are known here")
        if former.best in earlier:
            first = [dict(former.best.settings), *first]
    data = _data(settings, space)
    name = settings.study_name or claimed_name(folder, data.images.catalogue.name.replace("/", "-"))
    plan = StudyConfig(
        space,
        settings.seed,
        default_startup_trials(settings.trials),
        settings.prune,
        first,
        earlier,
        _data_identity(data),
        settings.model_dump(mode="json"),
    )
    for other in studies_in(folder):
        with suppress(DataError):
            if not read_study(folder, other)[1]:
                echo(f"study {other} is not finished; --resume {shlex.quote(other)} would go on with it")
    journal = Journal(journal_of(folder, name), plan.json())
    return Job(name, settings, space, data, plan.study(record=journal.append), journal)


def resume_study(settings: TuneSettings) -> Job:
    """The study that was interrupted, unless something that its trials depend on has changed."""
    name = resolve_study(settings.study_dir, settings.resume or LAST, "--resume")
    word = shlex.quote(name)
    journal = Journal(journal_of(settings.study_dir, name))
    try:
        plan = StudyConfig.from_json(journal.about)
        if any(FINISHED in entry for entry in journal.entries):
            raise SettingsError(
                f"study {name} is finished; --warm-start {word} starts another one that knows its trials"
            )
        former, changes = _original_settings(settings, plan)
        data = _data(former, plan.space)
        changes += differences(plan.facts, _data_identity(data))
        if changes:
            raise SettingsError(
                f"study {name} cannot be resumed: {'; '.join(changes)}; --warm-start {word} starts another one that"
                " knows its trials"
            )
        study = plan.study(journal.entries, journal.append)
    except BaseException:
        journal.close()
        raise
    echo(f"going on with study {name}: {counts_text(study.trials)}")
    return Job(name, former, plan.space, data, study, journal)


def _original_settings(settings: TuneSettings, plan: StudyConfig) -> tuple[TuneSettings, list[str]]:
    """The settings that a study began with, those that are free as they are now, and what was asked for in vain."""
    try:
        former = TuneSettings(**plan.settings)
    except (ValidationError, TypeError):
        raise DataError("the study was begun by another version of hyperopt_tuning.py") from None
    given = settings.model_fields_set
    names = sorted(given - OVERRIDABLE_ON_RESUME - {"space", "first"})
    changes = differences(
        {name: getattr(former, name) for name in names}, {name: getattr(settings, name) for name in names}
    )
    if settings.space:
        changes += differences(_space_text(plan.space), _space_text(space_of(settings)))
    if (
        settings.initial_points
        and read_file(settings.initial_points, read_points, plan.space, Hyperparameters) != plan.initial_points
    ):
        changes.append("--initial-points names other settings")
    return former.model_copy(update={name: getattr(settings, name) for name in given & OVERRIDABLE_ON_RESUME}), changes


def space_of(settings: TuneSettings) -> Space:
    """The preset's space, as the user's file changes it."""
    preset = PRESETS[settings.preset]
    return read_file(settings.space, read_space, preset, Hyperparameters) if settings.space else preset


def _data_identity(data: TrainingData) -> dict[str, str]:
    """What trials depend on besides the settings."""
    catalogue = data.images.catalogue
    return {"data": catalogue.name, "data_fingerprint": catalogue.fingerprint, "weights": data.weights_note}


def _data(settings: TuneSettings, space: Space) -> TrainingData:
    """The data at one of the sizes that are searched; it is known to be enough for the folds."""
    data = data_for(data_settings(settings), _options(space, "image_size")[0], _networks(space))
    require_enough_for(settings.folds, data)
    return data


def _networks(space: Space) -> tuple[str, ...]:
    return tuple(_options(space, "model_type"))


def _options(space: Space, name: str) -> tuple[Any, ...]:
    """What a choice can be; the default where it is no choice."""
    options: tuple[Any, ...] = getattr(space.get(name), "options", (Hyperparameters.model_fields[name].default,))
    return options


def data_settings(settings: DataSettings) -> DataSettings:
    """Those of the data alone: all that a trial elsewhere needs to know."""
    return DataSettings(**{name: getattr(settings, name) for name in DataSettings.model_fields})


def _space_text(space: Space) -> dict[str, str]:
    return {name: str(dimension) for name, dimension in space.items()}


@contextmanager
def resumable(job: Job) -> Iterator[None]:
    """Tell how to go on after whatever ends the search before the study is finished."""
    folder = shlex.quote(str(job.settings.study_dir))
    where = "" if folder == "studies" else f" --study-dir {folder}"
    command = f"{this_command()} --resume {shlex.quote(job.name)}{where}"
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        echo(f"stopped; go on with: {command}")
        raise
    except TrackingError as error:
        raise TrackingError(
            f"{error}; what was found is kept: go on, when MLflow answers again, with {command}"
        ) from None


def study_run(job: Job, client: MlflowClient) -> Run:
    """The study's run in MLflow, or the one that it had."""
    for entry in job.journal.entries:
        if "run" in entry:
            return Run.reopen(client, entry["run"])
    settings = job.settings
    run = Run(client, settings.experiment_name, role="study", name=job.name, tags=run_tags(job.data, settings.seed))
    run.params({PARAMS.get(name, name): value for name, value in settings.model_dump(mode="json").items()})
    run.json("search_space.json", _space_text(job.space))
    log_data(run, job.data, settings.data)
    job.journal.append({"run": run.id})
    return run


def study_logger(job: Job, run: Run) -> StudyLogger:
    """What shows the trials in MLflow."""
    seed, tags = job.settings.seed, run_tags(job.data, job.settings.seed)

    def log_fold(trial: Run, settings: Mapping[str, Any], number: int, fold: Fold) -> None:
        log_folds(trial, Hyperparameters(**settings), job.data, seed, verbose=False)(number, _fit_result(fold))

    return StudyLogger(run, tags, log_fold)


# --- the search ---------------------------------------------------------------------------------


def search(job: Job, mirror: StudyLogger) -> None:
    """Run trials until they, the time or the patience are used up; those under way when it is interrupted are kept."""
    settings, data, networks = job.settings, data_settings(job.settings), _networks(job.space)
    fingerprint = job.data.images.catalogue.fingerprint
    threads = None if settings.parallel == 1 else max(1, usable_cores() // settings.parallel)

    def task(proposal: Proposal) -> Any:
        one = TrialTask(proposal, settings.folds, data, networks, job.folder, threads, fingerprint)
        return TASK.dump_python(one, mode="json")

    def keep(result: Result) -> None:
        if result.logits is not None and job.study.would_be_best(result.trial):
            former = job.study.best.number if job.study.best else None
            save_logits(job.folder, result.trial.number, result.logits, former)

    def forget(trial: Trial) -> None:
        Checkpoint(job.folder, _checkpoint_name(trial.number), {}).discard()

    echo(f"study {job.name}: {settings.trials} trials of {settings.folds} folds each")
    limits = StopConditions(settings.trials, settings.timeout, settings.study_patience)
    with (
        closing(StudyProgressBar(job.study, limits.trials, settings.folds)) as bar,
        WorkerPool(settings.parallel, "hyperopt_tuning:work") as pool,
    ):
        Search(job.study, limits, pool, task, mirror, bar, keep, forget).run()


# --- what came of it ----------------------------------------------------------------------------


def train_best(job: Job, run: Run) -> TrainingResult:
    """Train the best settings on everything but the held-out images and log the bundle.

    Raises
    ------
    TrainingError
        No trial is complete.
    """
    study, settings = job.study, job.settings
    best = study.best
    if best is None:
        failed = [trial for trial in study.trials if trial.state == "failed"]
        if failed:
            raise TrainingError(f"all {len(study.trials)} trials failed; the first: {failed[0].reason}")
        raise TrainingError(
            f"no trial was complete when the time was up; raise --timeout and --resume {shlex.quote(job.name)}"
        )
    recipe = Hyperparameters(**best.settings)
    run.params({**recipe.model_dump(), "best_trial": best.number + 1})
    device = use_machine(settings)
    data = data_for(data_settings(settings), recipe.image_size, _networks(job.space))
    cv = CrossValidation([_fit_result(fold) for fold in best.folds], load_logits(job.folder, best.number))
    checkpoint = _checkpoint(job.folder, run.id, dict(best.settings))
    model = train_final(run, data, FitConfig(recipe, settings.seed, device), cv, CheckpointManager(checkpoint, run))
    checkpoint.discard()
    return model


def report(outcome: StudyOutcome) -> str:
    """The best five trials, the best settings, and the next command to type."""
    study, model = outcome.study, outcome.model
    table = f"all runs: {model.run.table_url}\n" if model.run.table_url else ""
    return (
        f"\n{leaderboard(study)}\n\nbest settings: {all_settings(study.ranking[0].settings)}\n"
        f"trained on everything for {len(model.fitted.history)} epochs: held-out accuracy"
        f" {model.evaluation.accuracy:.4f} ({model.evaluation.images} images)\n"
        f"MLflow run: {model.run.url or model.run.id}\n{table}\n"
        f"next: {command_line('model_registry')} register --experiment-name {shlex.quote(model.run.experiment)}"
        " --metric mean_cv_accuracy"
    )


def print_status(settings: TuneSettings) -> str:
    """What a study has found so far."""
    name = resolve_study(settings.study_dir, settings.status or LAST, "--status")
    study, finished = read_study(settings.study_dir, name)
    begun = len(study.under_way)
    state = "finished" if finished else f"not finished, {begun} trial{'s' * (begun != 1)} under way"
    best = f"\n\nbest settings: {all_settings(study.best.settings)}" if study.best else ""
    return f"study {name}, {state}\n\n{leaderboard(study)}{best}"


def main() -> None:
    """Run from the command line."""
    settings = parse(TuneSettings, __doc__)
    echo(print_status(settings) if settings.status else report(tune(settings)))


if __name__ == "__main__":
    run_script(main)
