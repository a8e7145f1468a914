"""The searches that benchmarks/tuning.py compares, and where their trials are run."""

import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hyperopt import STATUS_FAIL, STATUS_OK, fmin, tpe

from hyperopt_tuning import TrialPruned, TrialTask, data_for, evaluate
from toolkit.tuning.search import FoldDone
from toolkit.tuning.space import FULL, Choice, Integers, LogUniform, Space, active, expression, flatten
from toolkit.tuning.study import Proposal, Study, StudyConfig, default_startup_trials
from toolkit.tuning.trial import Fold, Trial
from train_cnn import DataSettings, Hyperparameters, TrainingCost

FOLDS = 5
NETWORKS = ("simple_cnn", "resnet18", "resnet18_backbone")
IMAGE_SIZES = (16, 24)
SPACE: Space = {**FULL, "epochs": Integers(4, 16), "image_size": Choice(IMAGE_SIZES)}
PLAIN, WILCOXON, HYPERBAND, OURS = "plain", "Optuna, Wilcoxon", "Optuna, Hyperband", "ours"


class SearchResult(NamedTuple):
    """The trials of a search in the order in which they ended."""

    trials: list[Trial]
    spent: list[float]  # multiply-adds of the whole search, at the end of each

    @classmethod
    def of_sequence(cls, trials: list[Trial]) -> "SearchResult":
        """The result of trials that were run one after another."""
        return cls(trials, list(accumulate(trial.cost for trial in trials)))


class Arena:
    """Runs trials on one data set with one seed; a point that was run in full is not trained again."""

    def __init__(self, data: DataSettings) -> None:
        self.seed = data.seed
        self._data, self._open, self._known = data, cache(data_for), dict[Hyperparameters, Trial]()

    def run(
        self, number: int, settings: Mapping[str, Any], judge: Callable[[int, Fold], None] = lambda *_: None
    ) -> Trial:
        """A trial of all folds; ``judge`` may prune it after a fold by raising ``TrialPruned``."""
        hyperparameters = Hyperparameters(**settings)
        if known := self._known.get(hyperparameters):
            return pruned_by_judge(replace(known, number=number), judge)

        def report(event: object) -> None:
            if isinstance(event, FoldDone):
                judge(event.fold, event.result)

        trial = self.evaluate(Proposal(number, hyperparameters.model_dump(exclude_unset=True)), report)
        if trial.state == "complete":
            self._known[hyperparameters] = trial
        return trial

    def cost_of(self, settings: Mapping[str, Any]) -> float:
        """Multiply-adds of all folds of these settings."""
        images = len(self._open(self._data, IMAGE_SIZES[0], NETWORKS).development)
        return TrainingCost.of(Hyperparameters(**settings), images, FOLDS).full

    def evaluate(
        self, proposal: Proposal, report: Callable[[object], None] = lambda _: None, folder: Path | None = None
    ) -> Trial:
        """A trial as the project runs it; in a folder one that paused goes on where it was."""
        return evaluate(TrialTask(proposal, FOLDS, self._data, NETWORKS, folder, threads=1), report, self._open).trial


def pruned_by_judge(trial: Trial, judge: Callable[[int, Fold], None]) -> Trial:
    """Prune a known trial by a judge."""
    for number, fold in enumerate(trial.folds):
        try:
            judge(number, fold)
        except TrialPruned as pruned:
            return replace(trial, state="pruned", folds=trial.folds[: number + 1], reason=str(pruned))
    return trial


def by_hyperopt(arena: Arena, count: int) -> SearchResult:
    """``fmin`` with its TPE as its manual shows it."""
    trials: list[Trial] = []

    def objective(point: Mapping[str, Any]) -> dict[str, Any]:
        trials.append(trial := arena.run(len(trials), flatten(point)))
        if trial.state == "failed":
            return {"status": STATUS_FAIL}
        return {"status": STATUS_OK, "loss": 1 - trial.mean_accuracy}

    generator = np.random.default_rng(arena.seed)
    fmin(
        objective, expression(SPACE), tpe.suggest, count, rstate=generator, show_progressbar=False, return_argmin=False
    )
    return SearchResult.of_sequence(trials)


def by_optuna(pruner: str, arena: Arena, count: int) -> SearchResult:
    """A study of Optuna that gets each fold; with WilcoxonPruner a value is the mean of folds, as in its manual."""
    import optuna  # of the peers only

    trials: list[Trial] = []

    def objective(asked: Any) -> float:
        def judge(number: int, fold: Fold) -> None:
            asked.report(fold.accuracy, number)
            if number < FOLDS - 1 and asked.should_prune():
                raise TrialPruned(f"after fold {number + 1}")

        trials.append(trial := arena.run(asked.number, _suggested(asked), judge))
        if trial.state == "pruned" and pruner == HYPERBAND:
            raise optuna.TrialPruned
        return trial.mean_accuracy  # not a number when it failed

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    pruners = {
        WILCOXON: optuna.pruners.WilcoxonPruner(),
        HYPERBAND: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=FOLDS),
    }
    sampler = optuna.samplers.TPESampler(seed=arena.seed)
    optuna.create_study(direction="maximize", sampler=sampler, pruner=pruners[pruner]).optimize(objective, count)
    return SearchResult.of_sequence(trials)


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


def by_ours(arena: Arena, count: int) -> SearchResult:
    """The project's study, with the steps of ``toolkit.tuning.search`` one after another."""
    study = Study(StudyConfig(SPACE, arena.seed, default_startup_trials(count)), cost_of=arena.cost_of)
    result = SearchResult(study.trials, [])

    def tell(trial: Trial) -> None:
        study.tell(trial)
        if trial.state != "paused":
            result.spent.append(sum(one.cost for one in (*study.trials, *study.paused.values())))

    with tempfile.TemporaryDirectory() as folder:
        while True:
            to_come = count - study.n_proposed
            for trial in study.rejected(to_come):
                tell(trial)
            proposal = study.promote(last=not to_come) or (study.ask() if to_come else None)
            if proposal is None:
                break
            tell(proposal.outcome or arena.evaluate(proposal, folder=Path(folder)))
    return result


CONTESTANTS: Mapping[str, Callable[[Arena, int], SearchResult]] = {
    PLAIN: by_hyperopt,
    WILCOXON: partial(by_optuna, WILCOXON),
    HYPERBAND: partial(by_optuna, HYPERBAND),
    OURS: by_ours,
}
