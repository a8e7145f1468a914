"""Shows a study in MLflow as it goes: a nested run for each trial, and in it one for each fold.

The journal is what counts; MLflow shows it. So nothing here stops a search: what MLflow does not take
now is done later, in order, and what a killed process had not done is done when the study is taken up.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from toolkit.cli.terminal import echo
from toolkit.errors import TrackingError
from toolkit.tracking.connection import RETRY_SECONDS, is_reachable, mlflow_call
from toolkit.tracking.run import Run
from toolkit.tuning.importance_plots import importance_plot
from toolkit.tuning.plots import cost_plot, history_plot
from toolkit.tuning.space import Space
from toolkit.tuning.study import Proposal, Study
from toolkit.tuning.trial import Fold, Trial

STATUS = {"complete": "FINISHED", "cut": "KILLED", "failed": "FAILED"}
LAST_FIGURE = "training_images"  # of those that are sent at the end of a trial, in one request: all arrive, or none
NEWEST_FIRST = ["attributes.start_time DESC"]  # a request that MLflow sent again may have made two runs of one trial


class StudyLogger:
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
        In ``catch_up`` and ``flush``: MLflow does not answer, or refuses.
    """

    def __init__(
        self,
        study: Run,
        tags: Mapping[str, object],
        log_fold: Callable[[Run, Mapping[str, Any], int, Fold], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study, self._tags, self._log_fold, self._clock = study, tags, log_fold, clock
        self._query = f"tags.`mlflow.parentRunId` = '{study.id}' AND tags.role = 'trial'"
        self._runs: dict[int, Run] = {}  # of the trials that are under way
        self._waiting: deque[Callable[[], object]] = deque()  # each can be done again when it was broken off
        self._unreachable = False
        self._next = 0.0  # when to try again, while MLflow is away

    def on_trial_start(self, proposal: Proposal) -> None:
        """A trial is under way."""
        self._do(lambda: self._run_of(proposal))

    def on_fold_end(self, proposal: Proposal, number: int, fold: Fold) -> None:
        """A fold of it is done."""
        self._do(lambda: self._log_fold(self._run_of(proposal), proposal.settings, number, fold))

    def on_trial_interrupted(self, proposal: Proposal) -> None:
        """It is interrupted."""
        self._do(lambda: self._close(proposal, "KILLED"))

    def on_trial_end(self, trial: Trial, best: Trial | None) -> None:
        """A trial has ended, and which is the best now."""
        self._do(lambda: self._end(trial, best))

    def sync(self, trials: Iterable[Trial]) -> None:
        """Show trials that ended before the study was taken up, in this order, unless they are shown already."""
        shown = self._shown()
        best: Trial | None = None
        for trial in trials:
            if trial.state == "complete" and (best is None or trial.mean_accuracy > best.mean_accuracy):
                best = trial
            if shown.get(trial.number) != (trial.state, STATUS[trial.state]):
                self.on_trial_end(trial, best)

    def flush(self) -> None:
        """Do all that had to wait."""
        while self._waiting:
            if not is_reachable(self._study.client):  # found out in seconds; a call itself may take minutes to fail
                raise TrackingError("MLflow does not answer")
            try:
                self._waiting[0]()
            except BaseException:
                self._runs.clear()  # what they hold may have arrived: look it up again
                raise
            self._waiting.popleft()
        if self._unreachable:
            echo("MLflow answers again; what was kept for it has been sent")
        self._unreachable = False

    def _do(self, action: Callable[[], object]) -> None:
        self._waiting.append(action)
        if self._unreachable and self._clock() < self._next:
            return
        try:
            self.flush()
        except TrackingError as error:
            if not self._unreachable:
                echo(f"{error}; the search goes on, and what MLflow has not got yet is kept for later")
            self._unreachable, self._next = True, self._clock() + RETRY_SECONDS

    def _run_of(self, trial: Proposal | Trial) -> Run:
        """The run of a trial: that which is open, or was left by another process, or a new one."""
        study, number = self._study, trial.number
        if number not in self._runs:
            with mlflow_call(f"look for the run of trial {number + 1}"):
                found = study.client.search_runs(
                    [study.experiment_id], f"{self._query} AND tags.trial = '{number + 1}'", max_results=1,
                    order_by=NEWEST_FIRST,
                )  # fmt: skip
            if found:
                run = Run.reopen(study.client, found[0].info.run_id)
            else:
                tags = {**self._tags, "trial": number + 1, "state": "running"}
                run = Run(
                    study.client, study.experiment, role="trial", name=f"trial {number + 1}", parent=study, tags=tags
                )
            run.params(trial.settings)
            self._runs[number] = run
        return self._runs[number]

    def _end(self, trial: Trial, best: Trial | None) -> None:
        run = self._run_of(trial)
        for number, fold in enumerate(trial.folds):
            self._log_fold(run, trial.settings, number, fold)
        if not _steps(run, LAST_FIGURE):
            for number, fold in enumerate(trial.folds):
                run.metrics({"fold_accuracy": fold.accuracy}, step=number)
            if trial.state == "complete":  # the mean of a few folds would look like one of all
                run.metrics({"mean_cv_accuracy": trial.mean_accuracy, "std_cv_accuracy": trial.std_accuracy})
            run.metrics({"training_time_s": trial.seconds, LAST_FIGURE: trial.images})
            run.flush()
        if best and trial.number not in _steps(self._study, "best_so_far"):
            with mlflow_call("log the best accuracy so far"):
                self._study.client.log_metric(self._study.id, "best_so_far", best.mean_accuracy, step=trial.number)
        reason = {"failure" if trial.state == "failed" else "reason": trial.reason} if trial.reason else {}
        run.tag(state=trial.state, **reason)
        self._close(trial, STATUS[trial.state])

    def _close(self, trial: Proposal | Trial, status: str) -> None:
        self._run_of(trial).end(status)
        del self._runs[trial.number]

    def _shown(self) -> dict[int, tuple[str, str]]:
        """The state and the status of each trial's run, by the trial's number."""
        study, shown = self._study, dict[int, tuple[str, str]]()
        with mlflow_call("look for the runs of the study's trials"):
            token: str | None = ""
            while token is not None:
                page = study.client.search_runs(
                    [study.experiment_id], self._query, order_by=NEWEST_FIRST, page_token=token or None
                )
                for run in page:
                    tags = run.data.tags
                    shown.setdefault(int(tags["trial"]) - 1, (tags["state"], run.info.status))
                token = page.token or None
        return shown


def _steps(run: Run, metric: str) -> set[int]:
    """The steps that a run has in the store of a metric."""
    with mlflow_call(f"look for {metric}"):
        return {point.step for point in run.client.get_metric_history(run.id, metric)}


def log_study(run: Run, study: Study, space: Space, journal: Path) -> None:
    """The trials as a table, the journal, and the images."""
    trials = study.trials
    run.json("trials.json", [_summary(trial) for trial in trials])
    run.text(journal.name, journal.read_text(encoding="utf-8"))
    run.metrics({"trials": len(trials), **{f"{state}_trials": study.count(state) for state in STATUS}})
    run.figure("study_history.png", history_plot(trials))
    run.figure("importance.png", importance_plot(trials, space))
    run.figure("cost.png", cost_plot(trials))


def _summary(trial: Trial) -> dict[str, Any]:
    """A trial without its epochs; the figures that it has not are null."""
    figures = {"mean_accuracy": trial.mean_accuracy, "std_accuracy": trial.std_accuracy}
    return {
        "number": trial.number, "state": trial.state, "settings": dict(trial.settings),
        **{name: value if math.isfinite(value) else None for name, value in figures.items()},
        "fold_accuracies": trial.accuracies, "images": trial.images, "seconds": trial.seconds,
        "reason": trial.reason,
    }  # fmt: skip
