"""Keeps worker processes busy with a study's proposals, and takes what comes of them."""

import base64
import io
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
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
    """What a worker reports after an epoch, and now and then within one."""

    fold: int  # from 0
    epoch: int  # from 1
    share: float  # of the fold's batches that are done


class FoldDone(NamedTuple):
    """What a worker reports after a fold."""

    fold: int  # from 0
    result: Fold


class Result(NamedTuple):
    """What comes of a proposal."""

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
    """The message that ``message_json`` was of, also after a round through text."""
    match values:
        case {"trial": trial, **rest}:
            logits = np.load(io.BytesIO(base64.b64decode(rest["logits"])), allow_pickle=False) if rest else None
            return Result(Trial.from_json(trial), logits)
        case {"fold": fold, "result": result}:
            return FoldDone(fold, Fold.from_json(result))
    return Step(**values)


class StopConditions(NamedTuple):
    """When a search ends."""

    trials: int
    timeout: float | None = None  # seconds
    study_patience: int | None = None  # trials without a better one


class Search:
    """A search under way.

    Parameters
    ----------
    study, limits
        What is searched, and for how long.
    pool, task
        The workers, and what they are given for a proposal. They report ``Step`` and ``FoldDone`` and return a
        ``Result``, each as ``message_json``.
    mirror, bar
        Who shows it in MLflow and on the terminal.
    keep
        Called with each result before it counts.
    forget
        Called with each trial when it counts, to remove what was kept to go on with it; and with those
        that count already.
    clock
        Seconds that never run backwards.
    """

    def __init__(
        self,
        study: Study,
        limits: StopConditions,
        pool: WorkerPool,
        task: Callable[[Proposal], Any],
        mirror: StudyLogger,
        bar: StudyProgressBar,
        keep: Callable[[Result], None],
        forget: Callable[[Trial], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study, self._stop_conditions, self._pool, self._task = study, limits, pool, task
        self._logger, self._bar, self._on_result, self._cleanup, self._clock = mirror, bar, keep, forget, clock
        self._deadline = math.inf if limits.timeout is None else clock() + limits.timeout
        self._again = deque(study.under_way.values())  # what an interrupted search had begun
        self._running: dict[int, Proposal] = {}
        self._folds: dict[int, list[Fold]] = {}

    def run(self) -> None:
        """Search until a limit is reached; whatever ends it, trials under way finish their step and are kept.

        Raises
        ------
        ToolkitError
            A worker met an error that concerns all trials: data that cannot be read, say.
        """
        for trial in self._study.trials:  # a process that was killed had no time to
            self._cleanup(trial)
        try:
            while self._submit():
                left = self._deadline - self._clock()
                for event in self._pool.wait(min(max(0.0, left), SILENCE_S)):
                    self._take(event)
                self._bar.tick(self._running)
                if self._running and self._time_is_up:
                    self._stop()
        except BaseException:
            self._stop()
            raise
        if why := self._why():
            echo(f"{why} after {len(self._study.trials)} of {self._stop_conditions.trials} trials")

    @property
    def _time_is_up(self) -> bool:
        return self._clock() >= self._deadline

    @property
    def _no_improvement(self) -> bool:
        return (
            self._stop_conditions.study_patience is not None
            and self._study.since_best >= self._stop_conditions.study_patience
        )

    def _why(self) -> str:
        """Why no further trial was begun; empty when all are done."""
        if len(self._study.trials) >= self._stop_conditions.trials:
            return ""
        return (
            "the time is up" if self._time_is_up else f"none better than the best in {self._study.since_best} trials,"
        )

    def _submit(self) -> bool:
        """Give the idle something to do; whether anything is being done."""
        while self._pool.n_idle and (proposal := self._next()):
            self._running[proposal.number], self._folds[proposal.number] = proposal, []
            if proposal.repeated:
                self._end(Result(proposal.repeated))
            else:
                self._pool.start(proposal.number, self._task(proposal))
                self._logger.on_trial_start(proposal)
        return bool(self._running)

    def _next(self) -> Proposal | None:
        if self._time_is_up or len(self._study.trials) + len(self._running) >= self._stop_conditions.trials:
            return None
        if self._again:
            return self._again.popleft()
        return None if self._no_improvement else self._study.ask()

    def _take(self, event: Event) -> None:
        proposal = self._running[event.key]
        match event.kind, event.value:
            case "progress" | "done", values:
                self._take_message(proposal, message_from_json(values))
            case "error", ToolkitError() as error:
                raise error
            case "failed", reason:
                self._fail(proposal, reason)
            case _:
                self._fail(proposal, "its process was told to stop")

    def _take_message(self, proposal: Proposal, message: Step | FoldDone | Result) -> None:
        match message:
            case Step(fold, epoch, share):
                self._bar.step(proposal, fold, epoch, share)
            case FoldDone(number, result):
                self._folds[proposal.number].append(result)
                self._logger.on_fold_end(proposal, number, result)
                self._bar.fold(proposal, number, result)
            case Result():
                self._end(message)

    def _fail(self, proposal: Proposal, reason: str) -> None:
        folds = tuple(self._folds[proposal.number])
        seconds = sum(fold.seconds for fold in folds)
        self._end(Result(Trial(proposal.number, proposal.settings, "failed", folds, seconds, reason)))

    def _end(self, result: Result) -> None:
        trial = result.trial
        self._on_result(result)
        self._study.tell(trial)
        self._cleanup(trial)
        del self._running[trial.number]
        best = self._study.best
        self._logger.on_trial_end(trial, best)
        self._bar.ended(trial)
        echo(trial_line(trial, self._stop_conditions.trials, best=best is trial))

    def _stop(self) -> None:
        """Have each trial finish its step and keep what it has; one that has just ended counts."""
        try:
            for event in self._pool.stop():
                if event.kind in ("progress", "done"):
                    self._take(event)
        finally:
            for proposal in self._running.values():
                self._logger.on_trial_interrupted(proposal)
            self._running.clear()
