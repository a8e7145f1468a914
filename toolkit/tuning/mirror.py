"""Shows a study in MLflow as it goes: a nested run for each trial, and in it one for each fold.

The journal is what counts; MLflow shows it. So nothing here stops a search: what MLflow does not take
now is done later, in order, and what a killed process had not done is done when the study is taken up.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from toolkit.errors import TrackingError
from toolkit.terminal import say
from toolkit.tracking import RETRY_SECONDS, Run, answers, explained
from toolkit.tuning.figures import cost_picture, history_picture
from toolkit.tuning.importance import importance_picture, parallel_coordinates_picture, slices_picture
from toolkit.tuning.space import Space
from toolkit.tuning.study import Proposal, Study
from toolkit.tuning.trial import Fold, Trial

STATUS = {"complete": "FINISHED", "cut": "KILLED", "failed": "FAILED"}


class Mirror:
    """The runs of a study's trials.

    Parameters
    ----------
    study
        The study's run.
    tags
        Of the runs of trials.
    log_fold
        Logs a fold, by its number from 0, of a trial with these settings as a run nested in the trial's;
        does nothing when it is there.
    clock
        Seconds that never run backwards.

    Raises
    ------
    TrackingError
        Here and in ``flush``: MLflow does not answer.
    """

    def __init__(
        self,
        study: Run,
        tags: Mapping[str, object],
        log_fold: Callable[[Run, Mapping[str, Any], int, Fold], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study, self._tags, self._log_fold, self._clock = study, tags, log_fold, clock
        self._waiting: deque[Callable[[], None]] = deque()
        self._next = 0.0  # when to try again
        self._away = False
        self._runs: dict[int, Run] = {}
        self._statuses: dict[int, str] = {}  # of the runs that were there before
        self._ids: dict[int, str] = {}
        with explained("look for the runs of the study's trials"):
            query = f"tags.`mlflow.parentRunId` = '{study.id}' AND tags.role = 'trial'"
            token = None
            while token != "":
                page = study.client.search_runs([study.experiment_id], query, page_token=token)
                for run in page:
                    number = int(run.data.tags["trial"]) - 1
                    self._ids[number], self._statuses[number] = run.info.run_id, run.info.status
                token = page.token or ""

    def begun(self, proposal: Proposal) -> None:
        """A trial is under way."""
        self._do(partial(self._open, proposal.number, proposal.settings))

    def fold(self, proposal: Proposal, number: int, fold: Fold) -> None:
        """A fold of it is done."""
        self._do(lambda: self._log_fold(self._runs[proposal.number], proposal.settings, number, fold))

    def ended(self, trial: Trial, best: Trial | None) -> None:
        """A trial has ended, and which is the best now."""
        self._do(partial(self._end, trial))
        if best:
            self._study.metrics({"best_so_far": best.mean_accuracy}, step=trial.number)
            self._study.send()

    def catch_up(self, trials: Iterable[Trial]) -> None:
        """Show trials that ended before the study was taken up, unless they are shown already."""
        for trial in trials:
            if self._statuses.get(trial.number) != STATUS[trial.state]:
                self._do(partial(self._end, trial))

    def stopped(self) -> None:
        """The search is interrupted: so are the trials that are under way."""
        for run in self._runs.values():
            self._do(partial(run.end, "KILLED"))
        self._runs = {}

    def flush(self) -> None:
        """Do all that had to wait."""
        self._next = 0.0
        while self._waiting:
            self._waiting[0]()
            self._waiting.popleft()

    def _do(self, action: Callable[[], None]) -> None:
        self._waiting.append(action)
        if self._clock() < self._next or (self._away and not answers(self._study.client)):
            return
        try:
            self.flush()
        except TrackingError as error:
            if not self._away:
                say(f"{error}; the search goes on, and what MLflow has not got yet is kept for later")
            self._next, self._away = self._clock() + RETRY_SECONDS, True
        else:
            if self._away:
                say("MLflow answers again; what was kept for it has been sent")
            self._away = False

    def _open(self, number: int, settings: Mapping[str, Any]) -> None:
        if number in self._runs:
            return
        if number in self._ids:
            self._runs[number] = Run.reopen(self._study.client, self._ids[number])
            return
        tags = {**self._tags, "trial": number + 1, "state": "running"}
        run = Run(
            self._study.client,
            self._study.experiment,
            role="trial",
            name=f"trial {number + 1}",
            parent=self._study,
            tags=tags,
        )
        self._ids[number] = run.id
        run.params(settings)
        self._runs[number] = run

    def _end(self, trial: Trial) -> None:
        self._open(trial.number, trial.settings)
        run = self._runs[trial.number]
        for number, fold in enumerate(trial.folds):
            self._log_fold(run, trial.settings, number, fold)
            run.metrics({"fold_accuracy": fold.accuracy}, step=number)
        if trial.state == "complete":  # the mean of a few folds would look like one of all
            run.metrics({"mean_cv_accuracy": trial.mean_accuracy, "std_cv_accuracy": trial.std_accuracy})
        run.metrics({"training_time_s": trial.seconds, "training_pictures": trial.pictures})
        reason = (
            {"failure": trial.reason} if trial.state == "failed" else {"reason": trial.reason} if trial.reason else {}
        )
        run.tag(state=trial.state, **reason)
        run.end(STATUS[trial.state])
        self._statuses[trial.number] = STATUS[trial.state]
        del self._runs[trial.number]


def log_study(run: Run, study: Study, space: Space, journal: Path) -> None:
    """The trials as a table, the journal, and the pictures."""
    trials = study.trials
    run.json("trials.json", [_summary(trial) for trial in trials])
    run.text(journal.name, journal.read_text())
    run.metrics({"trials": len(trials), **{f"{state}_trials": study.count(state) for state in STATUS}})
    run.figure("study_history.png", history_picture(trials))
    run.figure("parallel_coordinates.png", parallel_coordinates_picture(trials, space))
    run.figure("importance.png", importance_picture(trials, space))
    run.figure("slices.png", slices_picture(trials, space))
    run.figure("cost.png", cost_picture(trials))


def _summary(trial: Trial) -> dict[str, Any]:
    """A trial without its epochs; the figures that it has not are null."""
    figures = {"mean_accuracy": trial.mean_accuracy, "std_accuracy": trial.std_accuracy}
    return {
        "number": trial.number, "state": trial.state, "settings": dict(trial.settings),
        **{name: value if math.isfinite(value) else None for name, value in figures.items()},
        "fold_accuracies": trial.accuracies, "pictures": trial.pictures, "seconds": trial.seconds,
        "reason": trial.reason,
    }  # fmt: skip
