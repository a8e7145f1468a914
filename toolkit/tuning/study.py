"""A search by ask and tell, driven by Hyperopt's Tree-structured Parzen Estimator and replayable from a journal.

References
----------
Bergstra, Bardenet, Bengio, Kégl: Algorithms for Hyper-Parameter Optimization, NIPS 2011.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np
from hyperopt import JOB_STATE_DONE, STATUS_FAIL, STATUS_OK, Trials, space_eval, tpe
from hyperopt.base import Domain

from toolkit.errors import DataError, SettingsError
from toolkit.tuning.pruning import Incumbent
from toolkit.tuning.space import Space, contains, expression, flatten, positions, space_from_json, space_json
from toolkit.tuning.trial import Trial

MIN_LOSS_GAP = 1e-9  # by which the loss of a pruned trial exceeds the best one at least
OTHER_VERSION = "the study was started by another version of hyperopt_tuning.py"

_WRONG_FORM = (KeyError, TypeError, ValueError, AttributeError)  # raised by values of another form


@dataclass(frozen=True)
class StudyConfig:
    """Everything that the trials of a study depend on; the first line of its journal."""

    space: Space
    seed: int = 0  # trial n is proposed with a seed made of this one and n
    n_startup_trials: int = 5  # random ones, before the search learns: see default_startup_trials
    prune: bool = True  # whether proposals carry the incumbent that they are pruned against
    initial_points: Sequence[Mapping[str, Any]] = ()  # complete or partial; missing hyperparameters are proposed
    earlier: Sequence[Trial] = ()  # of another study, to learn from; those outside the space are left out
    data_identity: Mapping[str, str] = field(default_factory=dict)  # data and weights, which must stay the same
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the script, needed to resume

    def json(self) -> dict[str, Any]:
        """Plain values, from which ``from_json`` makes an equal configuration."""
        return {**vars(self), "space": space_json(self.space), "earlier": [trial.json() for trial in self.earlier]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "StudyConfig":
        """Rebuild a configuration from ``json``; DataError if another version wrote it."""
        try:
            if values.keys() != cls.__dataclass_fields__.keys():
                raise ValueError("the fields differ")
            earlier = [Trial.from_json(trial) for trial in values["earlier"]]
            return cls(**{**values, "space": space_from_json(values["space"]), "earlier": earlier})
        except _WRONG_FORM:
            raise DataError(OTHER_VERSION) from None


@dataclass(frozen=True)
class Proposal:
    """Settings to try next."""

    number: int  # of the trial, from 0
    settings: Mapping[str, Any]
    incumbent: Incumbent | None = None  # the best trial so far; None without one, or without pruning
    known: Trial | None = None  # a finished trial with the same settings, whose result is reused

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
    """Proposes points of a space and learns from their results.

    A proposal depends on the seed, its number and the results before it, nothing else. A study that is
    resumed from its journal therefore proposes what it would have proposed without the interruption.

    Parameters
    ----------
    config
        Space, seed and everything else that proposals depend on.
    entries
        Entries that ``record`` received before, to resume from; DataError if another version wrote them.
    record
        Stores a JSON-able entry for each proposal and each result, before it counts.

    Attributes
    ----------
    trials
        Finished trials, in the order in which they ended.
    under_way
        Proposals without a result yet, by number.

    Examples
    --------
    >>> from toolkit.tuning.space import QUICK
    >>> from toolkit.tuning.trial import Fold
    >>> study = Study(StudyConfig(QUICK, seed=0))
    >>> proposal = study.ask()
    >>> fold = Fold(({"epoch": 1, "val_accuracy": 0.9},), best_epoch=1, seconds=2.0, images=80)
    >>> study.tell(Trial(0, proposal.settings, "complete", (fold, fold)))
    >>> study.best.mean_accuracy
    0.9
    """

    def __init__(
        self,
        config: StudyConfig,
        entries: Iterable[Mapping[str, Any]] = (),
        record: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ) -> None:
        self.config = config
        self.trials: list[Trial] = []
        self.under_way: dict[int, Proposal] = {}
        self._record, self._n_proposed = record, 0
        self._history = Trials()
        try:
            self._expression = expression(config.space)
            self._domain = Domain(lambda point: point, self._expression)
            self._learn([trial for trial in config.earlier if contains(config.space, trial.settings)])
            for entry in entries:
                if "proposal" in entry:
                    self._propose(entry["proposal"]["settings"])
                elif "result" in entry:
                    self._add(Trial.from_json(entry["result"]))
        except (SettingsError, StopIteration, *_WRONG_FORM):
            raise DataError(OTHER_VERSION) from None

    def ask(self) -> Proposal:
        """The next proposal."""
        number, config = self._n_proposed, self.config
        seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0] % 2**31)
        (document,) = tpe.suggest(
            [number], self._domain, self._history, seed, n_startup_jobs=config.n_startup_trials, verbose=False
        )
        chosen = {name: values[0] for name, values in document["misc"]["vals"].items() if values}
        point = flatten(space_eval(self._expression, chosen))
        settings = {name: value.item() if isinstance(value, np.generic) else value for name, value in point.items()}
        if number < len(config.initial_points):
            settings |= config.initial_points[number]
            if settings["optimizer"] != "sgd":
                settings.pop("momentum", None)
        self._record({"proposal": {"number": number, "settings": settings}})
        return self._propose(settings)

    def tell(self, trial: Trial) -> None:
        """Record the result of a proposal."""
        self._record({"result": trial.json()})
        self._add(trial)

    @property
    def ranking(self) -> list[Trial]:
        """Complete trials, best first; of equals the one that ended first."""
        return sorted((trial for trial in self.trials if trial.state == "complete"), key=lambda t: -t.mean_accuracy)

    @property
    def best(self) -> Trial | None:
        """The complete trial with the highest mean accuracy."""
        return self.ranking[0] if self.ranking else None

    def would_be_best(self, trial: Trial) -> bool:
        """Whether a trial will be the best once it counts."""
        return trial.state == "complete" and (self.best is None or trial.mean_accuracy > self.best.mean_accuracy)

    @property
    def since_best(self) -> int:
        """Number of trials that have ended since the best one."""
        return len(self.trials) - 1 - self.trials.index(self.best) if self.best else 0

    def count(self, state: str) -> int:
        """Number of trials that have ended in a state."""
        return sum(trial.state == state for trial in self.trials)

    def _propose(self, settings: Mapping[str, Any]) -> Proposal:
        number, best = self._n_proposed, self.best
        incumbent = None
        if self.config.prune and best is not None:
            incumbent = Incumbent(best.number, tuple(fold.curve for fold in best.folds), best.settings["epochs"])
        known = next((trial for trial in self.trials if trial.settings == settings), None)
        self.under_way[number] = Proposal(number, settings, incumbent, known)
        self._insert(number, settings)
        self._n_proposed += 1
        return self.under_way[number]

    def _add(self, trial: Trial) -> None:
        self._end(trial.number, trial, self.best)
        self.trials.append(trial)
        del self.under_way[trial.number]

    def _learn(self, earlier: Sequence[Trial]) -> None:
        """Add results of another study, as if they were trials before the first."""
        complete = (trial for trial in earlier if trial.state == "complete")
        best = max(complete, key=lambda trial: trial.mean_accuracy, default=None)
        for number, trial in enumerate(earlier, start=-len(earlier)):
            self._insert(number, trial.settings)
            self._end(number, trial, best)

    def _insert(self, number: int, settings: Mapping[str, Any]) -> None:
        values = positions(self.config.space, settings)
        misc = {
            "tid": number, "cmd": self._domain.cmd, "workdir": self._domain.workdir,
            "idxs": {name: [number] if chosen else [] for name, chosen in values.items()}, "vals": values,
        }  # fmt: skip
        self._history.insert_trial_docs(
            self._history.new_trial_docs([number], [None], [self._domain.new_result()], [misc])
        )
        self._history.refresh()

    def _end(self, number: int, trial: Trial, best: Trial | None) -> None:
        """Give Hyperopt a loss: the worst possible for a failed trial, more than the best one for a pruned trial.

        The difference is the lag in the folds that the pruned trial has: others may be easier or harder.
        """
        document = next(document for document in self._history.trials if document["tid"] == number)
        document["state"], document["result"] = JOB_STATE_DONE, {"status": STATUS_FAIL}
        if trial.state != "failed" and trial.folds:
            accuracy = trial.mean_accuracy
            if trial.state == "pruned" and best:
                lag = fmean(other - own for other, own in zip(best.accuracies, trial.accuracies, strict=False))
                accuracy = best.mean_accuracy - max(lag, MIN_LOSS_GAP)
            document["result"] = {"status": STATUS_OK, "loss": 1 - accuracy}
        self._history.refresh()


def default_startup_trials(max_trials: int) -> int:
    """A quarter of the trials, 5 to 20: Hyperopt's own 20 would make a short search purely random."""
    return max(5, min(20, max_trials // 4))
