"""A search by ask and tell, driven by Hyperopt's Tree-structured Parzen Estimator, that a journal outlives.

References
----------
Bergstra, Bardenet, Bengio, Kégl: Algorithms for Hyper-Parameter Optimization, NIPS 2011.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from hyperopt import JOB_STATE_DONE, STATUS_FAIL, STATUS_OK, Trials, space_eval, tpe
from hyperopt.base import Domain

from toolkit.errors import SettingsError
from toolkit.tuning.pruning import Incumbent
from toolkit.tuning.space import Space, contains, expression, flatten, positions
from toolkit.tuning.trial import Trial

MIN_STARTUP_TRIALS = 1e-9  # of a loss: what a cut trial is worse than the best


@dataclass(frozen=True)
class Proposal:
    """What is to be tried next.

    Parameters
    ----------
    number
        Of the trial, from 0.
    settings
        The hyperparameters.
    holder
        The best trial when it was proposed; None when there was none yet, or without racing.
    known
        An ended trial with the same settings, which need not be run again.
    """

    number: int
    settings: Mapping[str, Any]
    incumbent: Incumbent | None = None
    known: Trial | None = None

    @property
    def repeated(self) -> Trial | None:
        """The known trial under this number, at no cost."""
        if self.known is None:
            return None
        folds = tuple(replace(fold, images=0, seconds=0.0) for fold in self.known.folds)
        reason = f"as trial {self.known.number + 1}, which had the same settings"
        if self.known.state != "complete":
            reason = f"{reason}: {self.known.reason}"
        return replace(self.known, number=self.number, folds=folds, seconds=0.0, reason=reason)


class Study:
    """Proposes points of a space and learns from what came of them.

    A proposal depends on the seed, its number and what was told before it, nothing else. So a study
    that is taken up from its journal proposes what it would have proposed.

    Parameters
    ----------
    space
        The dimensions.
    seed
        Trial ``n`` is proposed with a seed made of this one and ``n``.
    start_up
        How many trials are random before the search learns, see ``default_startup_trials``.
    racing
        Whether proposals name the trial that they are measured by.
    first
        Settings to begin with, each whole or in part; what one leaves out is proposed.
    earlier
        Trials of another study to learn from; those outside the space are left out.
    entries
        What ``record`` was given before, to go on from.
    record
        Keeps an entry, JSON-able, for each proposal and each result, before it counts.

    Attributes
    ----------
    trials
        Those that have ended, in that order.
    under_way
        Proposals whose trials have not ended, by their numbers.

    Examples
    --------
    >>> from toolkit.tuning.space import QUICK
    >>> from toolkit.tuning.trial import Fold
    >>> study = Study(QUICK, seed=0)
    >>> proposal = study.ask()
    >>> proposal.number, proposal.settings["model_type"], 3 <= proposal.settings["epochs"] <= 6
    (0, 'simple_cnn', True)
    >>> fold = Fold(({"epoch": 1, "val_accuracy": 0.9},), best_epoch=1, seconds=2.0, images=80)
    >>> study.tell(Trial(0, proposal.settings, "complete", (fold, fold)))
    >>> study.best.mean_accuracy
    0.9
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        start_up: int = 5,
        *,
        racing: bool = True,
        first: Sequence[Mapping[str, Any]] = (),
        earlier: Sequence[Trial] = (),
        entries: Iterable[Mapping[str, Any]] = (),
        record: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ) -> None:
        self.trials: list[Trial] = []
        self.under_way: dict[int, Proposal] = {}
        self._space, self._seed, self._n_startup_trials, self._prune = space, seed, start_up, racing
        self._initial_points, self._record, self._asked = first, record, 0
        self._expression = expression(space)
        self._domain = Domain(lambda point: point, self._expression)
        self._history = Trials()
        self._learn([trial for trial in earlier if contains(space, trial.settings)])
        for entry in entries:
            if "asked" in entry:
                self._propose(entry["asked"]["settings"])
            elif "told" in entry:
                self._take(Trial.from_json(entry["told"]))

    def ask(self) -> Proposal:
        """The next proposal."""
        number = self._asked
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0] % 2**31)
        (document,) = tpe.suggest(
            [number], self._domain, self._history, seed, n_startup_jobs=self._n_startup_trials, verbose=False
        )
        chosen = {name: values[0] for name, values in document["misc"]["vals"].items() if values}
        settings = _plain(flatten(space_eval(self._expression, chosen)))
        if number < len(self._initial_points):
            settings = _overlaid(settings, self._initial_points[number])
        if not contains(self._space, settings):
            raise SettingsError(f"the search space does not contain the settings to begin with: {settings}")
        self._record({"asked": {"number": number, "settings": settings}})
        return self._propose(settings)

    def tell(self, trial: Trial) -> None:
        """Record what came of a trial."""
        self._record({"told": trial.json()})
        self._take(trial)

    @property
    def ranking(self) -> list[Trial]:
        """Complete trials, best first; of equals the one that ended first."""
        return sorted((trial for trial in self.trials if trial.state == "complete"), key=lambda t: -t.mean_accuracy)

    @property
    def best(self) -> Trial | None:
        """The complete trial with the highest mean accuracy."""
        return self.ranking[0] if self.ranking else None

    def would_be_best(self, trial: Trial) -> bool:
        """Whether a trial that is about to be told will be the best."""
        return trial.state == "complete" and (self.best is None or trial.mean_accuracy > self.best.mean_accuracy)

    @property
    def since_best(self) -> int:
        """How many trials have ended since the best one."""
        return len(self.trials) - 1 - self.trials.index(self.best) if self.best else 0

    def count(self, state: str) -> int:
        """How many trials have ended in a state."""
        return sum(trial.state == state for trial in self.trials)

    def _propose(self, settings: Mapping[str, Any]) -> Proposal:
        number, best = self._asked, self.best
        holder = None
        if self._prune and best is not None:
            holder = Incumbent(best.number, tuple(fold.curve for fold in best.folds), best.settings["epochs"])
        known = next((trial for trial in self.trials if trial.settings == settings), None)
        self.under_way[number] = Proposal(number, settings, holder, known)
        self._insert(number, settings)
        self._asked += 1
        return self.under_way[number]

    def _take(self, trial: Trial) -> None:
        self._end(trial.number, trial, self.best)
        self.trials.append(trial)
        del self.under_way[trial.number]

    def _learn(self, earlier: Sequence[Trial]) -> None:
        """Take results of another study, as if they were trials before the first."""
        complete = (trial for trial in earlier if trial.state == "complete")
        best = max(complete, key=lambda trial: trial.mean_accuracy, default=None)
        for number, trial in enumerate(earlier, start=-len(earlier)):
            self._insert(number, trial.settings)
            self._end(number, trial, best)

    def _insert(self, number: int, settings: Mapping[str, Any]) -> None:
        values = positions(self._space, settings)
        misc = {
            "tid": number, "cmd": self._domain.cmd, "workdir": self._domain.workdir,
            "idxs": {name: [number] if chosen else [] for name, chosen in values.items()}, "vals": values,
        }  # fmt: skip
        self._history.insert_trial_docs(
            self._history.new_trial_docs([number], [None], [self._domain.new_result()], [misc])
        )
        self._history.refresh()

    def _end(self, number: int, trial: Trial, best: Trial | None) -> None:
        """Tell Hyperopt: a failed trial is the worst possible, a cut one is worse than the best.

        By how much, the folds say that it has: others may be easier or harder.
        """
        document = next(document for document in self._history.trials if document["tid"] == number)
        document["state"], document["result"] = JOB_STATE_DONE, {"status": STATUS_FAIL}
        if trial.state != "failed" and trial.folds:
            accuracy = trial.mean_accuracy
            if trial.state == "cut" and best:
                lag = fmean(theirs - own for theirs, own in zip(best.accuracies, trial.accuracies, strict=False))
                accuracy = best.mean_accuracy - max(lag, MIN_STARTUP_TRIALS)
            document["result"] = {"status": STATUS_OK, "loss": 1 - accuracy}
        self._history.refresh()


def default_startup_trials(max_evals: int) -> int:
    """A quarter of the trials, 5 to 20: Hyperopt's own 20 would make a short search purely random."""
    return max(5, min(20, max_evals // 4))


def _overlaid(proposed: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, and the rest as it was proposed; momentum only with the optimizer that has one."""
    settings = {**proposed, **given}
    if settings["optimizer"] != "sgd":
        settings.pop("momentum", None)
    return settings


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Python numbers instead of numpy's."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}
