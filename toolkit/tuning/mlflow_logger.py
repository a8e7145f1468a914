"""A logger that shows a study in MLflow: a nested run for each trial, and in it one for each fold.

The journal is the record of a study; MLflow only shows it. So an MLflow server that does not answer
stops no search: its calls are repeated later, in order, and those that a killed process left undone are
made when the study is resumed.
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
from toolkit.tuning.plots import cost_plot, history_plot, importance_plot
from toolkit.tuning.space import Space
from toolkit.tuning.study import Proposal, Study
from toolkit.tuning.trial import STATES, Fold, Trial

STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "paused": "SCHEDULED"}
LAST_METRIC = "training_multiply_adds"  # of a trial, sent in one request with the others: all arrive, or none
NEWEST_FIRST = ["attributes.start_time DESC"]  # a repeated request may have made two runs of one trial


class StudyLogger:
    """The runs of a study's trials.

    Parameters
    ----------
    study
        The study's run.
    tags
        Tags of all runs of trials.
    log_fold
        Logs a fold in a trial's run, given the trial's settings and the fold's number from 0, unless it is there.
    clock
        Monotonic seconds.

    Raises
    ------
    TrackingError
        In ``sync`` and ``flush``: MLflow does not answer, or refuses.
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
        self._runs: dict[int, Run] = {}  # of running trials
        self._pending: deque[Callable[[], object]] = deque()  # each can be repeated after a failure
        self._unreachable = False
        self._retry_at = 0.0

    def on_trial_start(self, proposal: Proposal) -> None:
        """Create or reopen the run of a trial."""
        self._do(lambda: self._run_of(proposal))

    def on_fold_end(self, proposal: Proposal, number: int, fold: Fold) -> None:
        """Log a finished fold."""
        self._do(lambda: self._log_fold(self._run_of(proposal), proposal.settings, number, fold))

    def on_trial_interrupted(self, proposal: Proposal) -> None:
        """End the run of an interrupted trial."""
        self._do(lambda: self._close(proposal, "KILLED"))

    def on_trial_end(self, trial: Trial, best: Trial | None) -> None:
        """Log a finished trial and the best accuracy so far; of a paused one, that it waits."""
        self._do(lambda: self._end(trial, best))

    def sync(self, trials: Iterable[Trial]) -> None:
        """Log the trials of a resumed study that MLflow does not show yet, in this order."""
        shown = self._shown()
        best: Trial | None = None
        for trial in trials:
            if trial.state == "complete" and (best is None or trial.mean_accuracy > best.mean_accuracy):
                best = trial
            if shown.get(trial.number) != (trial.state, STATUS[trial.state]):
                self.on_trial_end(trial, best)

    def flush(self) -> None:
        """Make all pending calls."""
        while self._pending:
            if not is_reachable(self._study.client):  # a matter of seconds; a call may take minutes to fail
                raise TrackingError("MLflow does not answer")
            try:
                self._pending[0]()
            except BaseException:
                self._runs.clear()  # their metrics may have arrived: read them again
                raise
            self._pending.popleft()
        if self._unreachable:
            echo("MLflow answers again; all pending data has been sent")
        self._unreachable = False

    def _do(self, action: Callable[[], object]) -> None:
        self._pending.append(action)
        if self._unreachable and self._clock() < self._retry_at:
            return
        try:
            self.flush()
        except TrackingError as error:
            if not self._unreachable:
                echo(f"{error}; the search continues, and pending data is sent later")
            self._unreachable, self._retry_at = True, self._clock() + RETRY_SECONDS

    def _run_of(self, trial: Proposal | Trial) -> Run:
        """The run of a trial: open already, left by another process, or new."""
        study, number = self._study, trial.number
        if number not in self._runs:
            with mlflow_call(f"find the run of trial {number + 1}"):
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
        if trial.state == "paused":
            run.tag(state=trial.state)
            self._close(trial, STATUS[trial.state])
            return
        for number, fold in enumerate(trial.folds):
            self._log_fold(run, trial.settings, number, fold)
        if not _steps(run, LAST_METRIC):
            for number, fold in enumerate(trial.folds):
                run.metrics({"fold_accuracy": fold.accuracy}, step=number)
            if trial.state == "complete":  # the mean of a few folds would look like one of all
                run.metrics({"mean_cv_accuracy": trial.mean_accuracy, "std_cv_accuracy": trial.std_accuracy})
            run.metrics({"training_time_s": trial.seconds, "training_images": trial.images, LAST_METRIC: trial.cost})
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
        with mlflow_call("find the runs of the study's trials"):
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
    """The steps of a metric that the store has of a run."""
    with mlflow_call(f"read {metric}"):
        return {point.step for point in run.client.get_metric_history(run.id, metric)}


def log_study(run: Run, study: Study, space: Space, journal: Path) -> None:
    """Log the trials as a table, the journal, and the plots."""
    trials = study.trials
    run.json("trials.json", [_summary(trial) for trial in sorted(trials, key=lambda trial: trial.number)])
    run.text(journal.name, journal.read_text(encoding="utf-8"))
    run.metrics({"trials": len(trials), **{f"{state}_trials": study.count(state) for state in STATES}})
    run.figure("study_history.png", history_plot(trials))
    run.figure("importance.png", importance_plot(trials, space))
    run.figure("cost.png", cost_plot(trials))


def _summary(trial: Trial) -> dict[str, Any]:
    """A trial without its epochs; missing metrics are null."""
    metrics = {"mean_accuracy": trial.mean_accuracy, "std_accuracy": trial.std_accuracy}
    return {
        "number": trial.number, "state": trial.state, "settings": dict(trial.settings),
        **{name: value if math.isfinite(value) else None for name, value in metrics.items()},
        "fold_accuracies": trial.accuracies, "images": trial.images, "multiply_adds": trial.cost,
        "seconds": trial.seconds, "reason": trial.reason,
    }  # fmt: skip
