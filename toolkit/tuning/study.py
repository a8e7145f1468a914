"""A search by ask and tell, driven by Hyperopt's Tree-structured Parzen Estimator and replayable from a journal.

References
----------
Bergstra, Bardenet, Bengio, Kégl: Algorithms for Hyper-Parameter Optimization, NIPS 2011.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np
from hyperopt import JOB_STATE_DONE, STATUS_FAIL, STATUS_OK, Trials, space_eval, tpe
from hyperopt.base import Domain

from toolkit.errors import DataError, SettingsError
from toolkit.tuning.promotion import RUNGS, is_left_behind, next_promoted, predicted_accuracy, reason_to_end
from toolkit.tuning.pruning import Incumbent
from toolkit.tuning.space import Space, contains, expression, flatten, positions, space_from_json, space_json
from toolkit.tuning.trial import Trial

MIN_LOSS_GAP = 1e-9  # by which the loss of a pruned trial exceeds the best one at least
MAX_STARTUP_TRIALS = 20  # Hyperopt's own default
OTHER_VERSION = "the study was started by another version of hyperopt_tuning.py"

_WRONG_FORM = (KeyError, TypeError, ValueError, AttributeError)  # raised by values of another form


@dataclass(frozen=True)
class StudyConfig:
    """Everything that the trials of a study depend on; the first line of its journal."""

    space: Space
    seed: int = 0  # trial n is proposed with a seed made of this one and n
    n_startup_trials: int = 5  # random ones, before the search learns: see default_startup_trials
    prune: bool = True  # whether trials pause at rungs, and are pruned against the incumbent
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
    rung: int = len(RUNGS)  # from 0, at whose end the trial pauses; the number of all: it runs all folds
    full_cost: float = 0.0  # multiply-adds of all epochs of all folds
    reason: str = ""  # why it is not worth its first epoch; empty if it is

    @property
    def outcome(self) -> Trial | None:
        """The result that is known without running it, at no cost."""
        if self.reason:
            return Trial(self.number, self.settings, "pruned", reason=self.reason, full_cost=self.full_cost)
        if self.known is None:
            return None
        folds = tuple(replace(fold, images=0, multiply_adds=0.0, seconds=0.0) for fold in self.known.folds)
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
    cost_of
        The multiply-adds of all folds of a trial with these settings; of the random points that a search starts
        with, the cheapest comes first.

    Attributes
    ----------
    trials
        Finished trials, in the order in which they ended.
    paused
        Trials that wait for their promotion, by number.
    under_way
        Proposals that are being run, by number.
    n_proposed
        Number of proposals so far.

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
        cost_of: Callable[[Mapping[str, Any]], float] = lambda _: 0.0,
    ) -> None:
        self.config, self._cost_of = config, cost_of
        self.trials: list[Trial] = []
        self.paused: dict[int, Trial] = {}
        self.under_way: dict[int, Proposal] = {}
        self._record, self.n_proposed = record, 0
        self._history = Trials()
        try:
            self._expression = expression(config.space)
            self._domain = Domain(lambda point: point, self._expression)
            self._learn([trial for trial in config.earlier if contains(config.space, trial.settings)])
            for entry in entries:
                if "proposal" in entry:
                    self._propose(entry["proposal"]["settings"])
                elif "promotion" in entry:
                    self._promote(entry["promotion"])
                elif "result" in entry:
                    self._add(Trial.from_json(entry["result"]))
        except (SettingsError, StopIteration, *_WRONG_FORM):
            raise DataError(OTHER_VERSION) from None

    def ask(self) -> Proposal:
        """The next proposal."""
        number, config = self.n_proposed, self.config
        settings = dict(self._first_points[number]) if number < self._n_first else self._suggest(number)
        if number < len(config.initial_points):
            settings |= config.initial_points[number]
            if settings["optimizer"] != "sgd":
                settings.pop("momentum", None)
        self._record({"proposal": {"number": number, "settings": settings}})
        return self._propose(settings)

    @cached_property
    def _first_points(self) -> list[dict[str, Any]]:
        """The random points that the search starts with, the cheapest first: they give it something to compare with."""
        return sorted(map(self._suggest, range(self._n_first)), key=self._cost_of)

    @property
    def _n_first(self) -> int:
        count = min(self.config.n_startup_trials, MAX_STARTUP_TRIALS) - len(self._earlier)
        return max(0, count) if self.config.prune else 0

    def _suggest(self, number: int) -> dict[str, Any]:
        seed = int(np.random.SeedSequence([self.config.seed, number]).generate_state(1)[0] % 2**31)
        (document,) = tpe.suggest(
            [number], self._domain, self._history, seed, n_startup_jobs=self.config.n_startup_trials, verbose=False
        )
        chosen = {name: values[0] for name, values in document["misc"]["vals"].items() if values}
        point = flatten(space_eval(self._expression, chosen))
        return {name: value.item() if isinstance(value, np.generic) else value for name, value in point.items()}

    def promote(self, *, last: bool) -> Proposal | None:
        """The paused trial to go on with; ``last`` when no further proposals are asked for."""
        first = self.best is None and self.n_proposed >= self._n_first and not self.under_way
        paused, reached = [*self.paused.values()], [*self.trials, *self.paused.values()]
        chosen = next_promoted(paused, reached, last=last, first=first)
        if chosen is None:
            return None
        self._record({"promotion": chosen.number})
        return self._promote(chosen.number)

    def rejected(self, to_come: int) -> list[Trial]:
        """Paused trials that do not go on, as pruned ones with the reason.

        Parameters
        ----------
        to_come
            Number of trials that may still reach a rung; with 0 only those stay that are promoted.
        """
        reached, ended = [*self.trials, *self.paused.values()], []
        for trial in self.paused.values():
            reason = self._reason_to_end(trial)
            if not reason and is_left_behind(trial, reached, to_come + len(self.under_way)):
                reason = f"not among the best third at rung {trial.rung} of {len(RUNGS)}"
            if reason:
                ended.append(replace(trial, state="pruned", reason=reason))
        return ended

    def tell(self, trial: Trial) -> None:
        """Record the result of a proposal, or the end of a paused trial."""
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

    def chosen(self, *, one_standard_error: bool) -> Trial | None:
        """The best trial, or the cheapest of those whose mean is within one standard error of the best mean."""
        best = self.best
        if best is None or not one_standard_error:
            return best
        least = best.mean_accuracy - best.standard_error
        return min((trial for trial in self.ranking if trial.mean_accuracy >= least), key=lambda trial: trial.full_cost)

    @property
    def since_best(self) -> int:
        """Number of trials that have ended since the best one."""
        return len(self.trials) - 1 - self.trials.index(self.best) if self.best else 0

    def count(self, state: str) -> int:
        """Number of trials that have ended in a state."""
        return sum(trial.state == state for trial in self.trials)

    def _propose(self, settings: Mapping[str, Any]) -> Proposal:
        number = self.n_proposed
        known = next((trial for trial in self.trials if trial.settings == settings), None)
        rung, cost = 0 if self.config.prune else len(RUNGS), self._cost_of(settings)
        reason = self._reason_to_end(Trial(number, settings, "paused", full_cost=cost)) if not known else ""
        self.under_way[number] = Proposal(number, settings, self._incumbent(), known, rung, cost, reason)
        self._insert(number, settings)
        self.n_proposed += 1
        return self.under_way[number]

    def _promote(self, number: int) -> Proposal:
        trial = self.paused.pop(number)
        self.under_way[number] = Proposal(
            number, trial.settings, self._incumbent(), rung=trial.rung, full_cost=trial.full_cost
        )
        return self.under_way[number]

    def _reason_to_end(self, trial: Trial) -> str:
        """The reason why a trial is not worth its next rung; empty also when costs are not known."""
        if not self.config.prune or not trial.full_cost:
            return ""
        costs = [one.full_cost for one in (*self.trials, *self.paused.values()) if one.full_cost]
        return reason_to_end(trial, self.ranking, median(costs or [trial.full_cost]))

    def _incumbent(self) -> Incumbent | None:
        best = self.best
        if best is None or not self.config.prune:
            return None
        return Incumbent(best.number, tuple(fold.curve for fold in best.folds), best.settings["epochs"], best.noise)

    def _add(self, trial: Trial) -> None:
        if self.paused.pop(trial.number, None) is None:
            del self.under_way[trial.number]
        if trial.state == "paused":
            self.paused[trial.number] = trial
        else:
            self.trials.append(trial)
        self._set_losses()

    def _learn(self, earlier: Sequence[Trial]) -> None:
        """Add results of another study, as if they were trials before the first."""
        self._earlier = [replace(trial, number=number) for number, trial in enumerate(earlier, start=-len(earlier))]
        for trial in self._earlier:
            self._insert(trial.number, trial.settings)
        self._set_losses()

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

    def _set_losses(self) -> None:
        """Give Hyperopt the predicted error of each trial, and of a failed one none; it only compares them.

        Pruned trials come after the best one, and those that were not worth their first epoch after all others.
        """
        documents = {document["tid"]: document for document in self._history.trials}
        for trials in (self._earlier, [*self.trials, *self.paused.values()]):
            complete = [trial for trial in trials if trial.state == "complete"]
            least = min((1 - trial.mean_accuracy for trial in complete), default=0.0) + MIN_LOSS_GAP
            for trial in trials:
                result: dict[str, Any] = {"status": STATUS_FAIL}
                if trial.state != "failed" and trial.folds:
                    loss = 1 - predicted_accuracy(trial, complete)
                    result = {"status": STATUS_OK, "loss": max(loss, least) if trial.state == "pruned" else loss}
                elif trial.state == "pruned":
                    result = {"status": STATUS_OK, "loss": 1.0}
                documents[trial.number] |= {"state": JOB_STATE_DONE, "result": result}
        self._history.refresh()


def default_startup_trials(max_trials: int) -> int:
    """A quarter of the trials, 5 to 20: Hyperopt's own 20 would make a short search purely random."""
    return max(5, min(MAX_STARTUP_TRIALS, max_trials // 4))
