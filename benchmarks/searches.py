"""The searches that benchmarks/tuning.py compares, and where their trials are run."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
from hyperopt import STATUS_FAIL, STATUS_OK, fmin, rand, tpe

from hyperopt_tuning import TrialPruned, TrialTask, data_for, evaluate
from toolkit.tuning.pruning import Incumbent, prune_after_epoch, prune_after_fold
from toolkit.tuning.search import FoldDone
from toolkit.tuning.space import FULL, Choice, Integers, LogUniform, Space, active, expression, flatten
from toolkit.tuning.study import Proposal, Study, StudyConfig, default_startup_trials
from toolkit.tuning.trial import Fold, Trial
from train_cnn import DataSettings, Hyperparameters

FOLDS = 5
NETWORKS = ("simple_cnn",)
SPACE: Space = {
    **FULL, "epochs": Integers(5, 20), "image_size": Choice((16, 24)), "model_type": Choice(NETWORKS)
}  # fmt: skip
PLAIN, RANDOM, WILCOXON, MEDIAN, WHOLE, OURS = (
    "plain", "random", "Optuna, Wilcoxon", "Optuna, median", "ours, all folds", "ours"
)  # fmt: skip


class Arena:
    """Runs trials on one data set with one seed; a point that was run in full is not trained again."""

    def __init__(self, data: DataSettings) -> None:
        self.seed = data.seed
        self._data, self._open, self._known = data, cache(data_for), dict[Hyperparameters, Trial]()

    def run(
        self,
        number: int,
        settings: Mapping[str, Any],
        judge: Callable[[int, Fold], None] = lambda *_: None,
        incumbent: Incumbent | None = None,
    ) -> Trial:
        """A trial; ``judge`` may prune it after a fold by raising ``TrialPruned``, and the incumbent may prune it."""
        hyperparameters = Hyperparameters(**settings)
        if known := self._known.get(hyperparameters):
            return pruned_by_incumbent(pruned_by_judge(replace(known, number=number), judge), incumbent)

        def report(event: object) -> None:
            if isinstance(event, FoldDone):
                judge(event.fold, event.result)

        proposal = Proposal(number, hyperparameters.model_dump(exclude_unset=True), incumbent)
        task = TrialTask(proposal, FOLDS, self._data, NETWORKS, threads=1)
        trial = evaluate(task, report, self._open).trial
        if trial.state == "complete":
            self._known[hyperparameters] = trial
        return trial


def pruned_by_judge(trial: Trial, judge: Callable[[int, Fold], None]) -> Trial:
    """Prune a known trial by a judge."""
    for number, fold in enumerate(trial.folds):
        try:
            judge(number, fold)
        except TrialPruned as pruned:
            return replace(trial, state="pruned", folds=trial.folds[: number + 1], reason=str(pruned))
    return trial


def pruned_by_incumbent(trial: Trial, incumbent: Incumbent | None) -> Trial:
    """Prune a known trial by the incumbent."""
    if incumbent is None:
        return trial
    first, length = trial.folds[0], len(trial.folds[0].epochs)
    for done in range(1, length + 1):
        if reason := prune_after_epoch(first.curve[:done], trial.settings["epochs"], incumbent):
            best = 1 + int(np.argmax(first.curve[:done]))
            begun = Fold(first.epochs[:done], best, first.seconds * done / length, first.images * done // length)
            return replace(trial, state="pruned", folds=(begun,), reason=reason)
    for done in range(1, FOLDS):
        if reason := prune_after_fold(trial.accuracies[:done], FOLDS, incumbent):
            return replace(trial, state="pruned", folds=trial.folds[:done], reason=reason)
    return trial


def by_hyperopt(suggest: Any, arena: Arena, count: int) -> list[Trial]:
    """``fmin`` as its manual shows it."""
    trials: list[Trial] = []

    def objective(point: Mapping[str, Any]) -> dict[str, Any]:
        trials.append(trial := arena.run(len(trials), flatten(point)))
        if trial.state == "failed":
            return {"status": STATUS_FAIL}
        return {"status": STATUS_OK, "loss": 1 - trial.mean_accuracy}

    generator = np.random.default_rng(arena.seed)
    fmin(objective, expression(SPACE), suggest, count, rstate=generator, show_progressbar=False, return_argmin=False)
    return trials


def by_optuna(pruner: str, arena: Arena, count: int) -> list[Trial]:
    """A study of Optuna that gets each fold; with WilcoxonPruner a value is the mean of folds, as in its manual."""
    import optuna  # of the peers only

    trials: list[Trial] = []

    def objective(asked: Any) -> float:
        def judge(number: int, fold: Fold) -> None:
            asked.report(fold.accuracy, number)
            if number < FOLDS - 1 and asked.should_prune():
                raise TrialPruned(f"after fold {number + 1}")

        trials.append(trial := arena.run(asked.number, _suggested(asked), judge))
        if trial.state == "pruned" and pruner == MEDIAN:
            raise optuna.TrialPruned
        return trial.mean_accuracy  # not a number when it failed

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    pruners = {WILCOXON: optuna.pruners.WilcoxonPruner, MEDIAN: optuna.pruners.MedianPruner}
    sampler = optuna.samplers.TPESampler(seed=arena.seed)
    optuna.create_study(direction="maximize", sampler=sampler, pruner=pruners[pruner]()).optimize(objective, count)
    return trials


def _suggested(asked: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, dimension in SPACE.items():
        if name not in active(SPACE, settings):
            continue
        if isinstance(dimension, Choice):
            settings[name] = asked.suggest_categorical(name, dimension.options)
        elif isinstance(dimension, Integers):
            settings[name] = asked.suggest_int(name, dimension.low, dimension.high)
        else:
            logarithmic = isinstance(dimension, LogUniform)
            settings[name] = asked.suggest_float(name, dimension.low, dimension.high, log=logarithmic)
    return settings


def by_ours(prune: bool, arena: Arena, count: int) -> list[Trial]:
    """The project's study."""
    study = Study(StudyConfig(SPACE, arena.seed, default_startup_trials(count), prune=prune))
    for _ in range(count):
        proposal = study.ask()
        study.tell(proposal.repeated or arena.run(proposal.number, proposal.settings, incumbent=proposal.incumbent))
    return study.trials


CONTESTANTS: Mapping[str, Callable[[Arena, int], list[Trial]]] = {
    PLAIN: partial(by_hyperopt, tpe.suggest),
    RANDOM: partial(by_hyperopt, rand.suggest),
    WILCOXON: partial(by_optuna, WILCOXON),
    MEDIAN: partial(by_optuna, MEDIAN),
    WHOLE: partial(by_ours, False),
    OURS: partial(by_ours, True),
}
