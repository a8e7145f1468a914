"""A loop that keeps worker processes busy with the proposals of a study and collects their results."""

import base64
import io
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toolkit.cli.terminal import SILENCE_S, echo
from toolkit.errors import ToolkitError
from toolkit.tuning.mlflow_logger import StudyLogger
from toolkit.tuning.progress import StudyProgressBar, trial_line
from toolkit.tuning.study import Proposal, Study
from toolkit.tuning.trial import Fold, Trial
from toolkit.tuning.worker_pool import Event, WorkerPool


class Step(NamedTuple):
    """A worker's report after an epoch, and from time to time within one."""

    fold: int  # from 0
    epoch: int  # from 1
    share: float  # of the fold's batches that are done


class FoldDone(NamedTuple):
    """A worker's report after a fold."""

    fold: int  # from 0
    result: Fold


class Result(NamedTuple):
    """The result of a proposal."""

    trial: Trial
    logits: NDArray[np.float32] | None = None  # (N, K), of all folds' images, when the trial is complete


def message_json(message: Step | FoldDone | Result) -> dict[str, Any]:
    """A message of a worker as plain values, from which ``message_from_json`` makes an equal one."""
    match message:
        case Step():
            return message._asdict()
        case FoldDone(fold, result):
            return {"fold": fold, "result": asdict(result)}
    values: dict[str, Any] = {"trial": message.trial.json()}
    if message.logits is not None:
        buffer = io.BytesIO()
        np.save(buffer, message.logits, allow_pickle=False)
        values["logits"] = base64.b64encode(buffer.getvalue()).decode()
    return values


def message_from_json(values: Mapping[str, Any]) -> Step | FoldDone | Result:
    """Rebuild a message from ``message_json``."""
    match values:
        case {"trial": trial, **rest}:
            logits = np.load(io.BytesIO(base64.b64decode(rest["logits"])), allow_pickle=False) if rest else None
            return Result(Trial.from_json(trial), logits)
        case {"fold": fold, "result": result}:
            return FoldDone(fold, Fold.from_json(result))
    return Step(**values)


class SearchConfig(NamedTuple):
    """Size and stop conditions of a search."""

    trials: int
    folds: int  # of each trial
    seconds: float | None = None  # with the training of the best settings on everything
    study_patience: int | None = None  # trials without a better one


class SearchHooks(NamedTuple):
    """The calls through which a search reaches what it does not know: tasks and files of trials."""

    make_task: Callable[[Proposal], Any]  # the pool's task of a proposal
    on_result: Callable[[Result], None]  # before the result counts
    cleanup: Callable[[Trial], None]  # removes the files of a counted trial, from which it would be resumed
    final_seconds: Callable[[Trial], float] = lambda _: 0.0  # estimate for training its settings on everything


class Search:
    """A search under way: its workers report ``Step`` and ``FoldDone`` and return a ``Result``, as ``message_json``."""

    def __init__(
        self,
        study: Study,
        config: SearchConfig,
        pool: WorkerPool,
        hooks: SearchHooks,
        logger: StudyLogger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study, self._config, self._pool, self._hooks = study, config, pool, hooks
        self._logger, self._clock = logger, clock
        self._deadline = math.inf if config.seconds is None else clock() + config.seconds
        self._to_resume = deque(study.under_way.values())  # started by an interrupted search
        self._running: dict[int, Proposal] = {}
        self._folds: dict[int, list[Fold]] = {}

    def run(self) -> None:
        """Search until a stop condition is met; in any case, trials under way finish their step and are kept.

        A ToolkitError that concerns all trials, such as data that cannot be read, ends it.
        """
        for trial in self._study.trials:  # a killed process had no time to
            self._hooks.cleanup(trial)
        with closing(
            StudyProgressBar(self._study, self._config.trials, self._config.folds, self._pool.size)
        ) as self._bar:
            try:
                while self._submit():
                    for event in self._pool.wait(min(max(0.0, self._seconds_left), SILENCE_S)):
                        self._handle(event)
                    self._bar.tick(self._running, self._seconds_left)
                    if self._running and self._time_is_up:
                        self._stop()
            except BaseException:
                self._stop()
                raise
        done = len(self._study.trials)
        if done < self._config.trials:
            no_better = f"none better than the best in {self._study.since_best} trials,"
            echo(f"{'the time is up' if self._time_is_up else no_better} after {done} of {self._config.trials} trials")

    @property
    def _seconds_left(self) -> float:
        best = self._study.best
        return self._deadline - self._clock() - (self._hooks.final_seconds(best) if best else 0.0)

    @property
    def _time_is_up(self) -> bool:
        return self._seconds_left <= 0

    @property
    def _no_improvement(self) -> bool:
        patience = self._config.study_patience
        return patience is not None and self._study.since_best >= patience

    def _submit(self) -> bool:
        """Give tasks to idle workers; whether any trial is running."""
        while self._pool.n_idle and (proposal := self._next()):
            self._running[proposal.number], self._folds[proposal.number] = proposal, []
            if proposal.outcome:
                self._end(Result(proposal.outcome))
            else:
                self._pool.start(proposal.number, self._hooks.make_task(proposal))
                self._logger.on_trial_start(proposal)
        return bool(self._running)

    def _next(self) -> Proposal | None:
        """The trial to go on with or to begin; None when the time is up, or for now, or when nothing is left."""
        if self._time_is_up or len(self._study.trials) + len(self._running) >= self._config.trials:
            return None
        if self._to_resume:
            return self._to_resume.popleft()
        to_come = 0 if self._no_improvement else max(0, self._config.trials - self._study.n_proposed)
        for trial in self._study.rejected(to_come):
            self._end(Result(trial))
        return self._study.promote(last=not to_come) or (self._study.ask() if to_come else None)

    def _handle(self, event: Event) -> None:
        proposal = self._running[event.key]
        match event.kind, event.value:
            case "progress" | "done", values:
                self._handle_message(proposal, message_from_json(values))
            case "error", ToolkitError() as error:
                raise error
            case "failed", reason:
                self._fail(proposal, reason)
            case _:
                self._fail(proposal, "its process was terminated")

    def _handle_message(self, proposal: Proposal, message: Step | FoldDone | Result) -> None:
        match message:
            case Step(fold, epoch, share):
                self._bar.step(proposal, fold, epoch, share)
            case FoldDone(number, result):
                self._folds[proposal.number].append(result)
                self._logger.on_fold_end(proposal, number, result)
                self._bar.on_fold_end(proposal, number, result)
            case Result():
                self._end(message)

    def _fail(self, proposal: Proposal, reason: str) -> None:
        folds = tuple(self._folds[proposal.number])
        seconds = sum(fold.seconds for fold in folds)
        self._end(Result(Trial(proposal.number, proposal.settings, "failed", folds, seconds, reason)))

    def _end(self, result: Result) -> None:
        trial = result.trial
        self._hooks.on_result(result)
        self._study.tell(trial)
        if trial.state != "paused":
            self._hooks.cleanup(trial)
        self._running.pop(trial.number, None)
        best = self._study.best
        self._logger.on_trial_end(trial, best)
        self._bar.on_trial_end(trial)
        echo(trial_line(trial, self._config.trials, best=best is trial))

    def _stop(self) -> None:
        """Let each trial finish its step and keep its files; one that has just ended counts."""
        try:
            for event in self._pool.stop():
                if event.kind in ("progress", "done"):
                    self._handle(event)
        finally:
            for proposal in self._running.values():
                self._logger.on_trial_interrupted(proposal)
            self._running.clear()
