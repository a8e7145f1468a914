"""Keeps a run's trainings on disk as they go and sends their figures; a full disk or a lost server stops neither."""

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import nn

from toolkit.cli.commands import this_command
from toolkit.cli.terminal import echo
from toolkit.errors import DataError, TrackingError
from toolkit.tracking.run import Run
from toolkit.training.checkpointing.checkpoint import Checkpoint
from toolkit.training.loop import FitResult, TrainState


class CheckpointManager:
    """What stands between a training that goes on for hours and all that may happen to it.

    A run consists of trainings with names: its folds, and the final one. After each epoch their
    progress is written to the checkpoint, together with the figures that MLflow has not got yet, and
    then the figures are sent. So whatever is killed in between, nothing is lost and nothing is sent twice.

    Parameters
    ----------
    checkpoint
        What is written; None: nothing is kept.
    run
        Where figures go; None: nowhere.
    writes
        Whether the checkpoint is written, and not only read, by a process that keeps no records.
    """

    def __init__(self, checkpoint: Checkpoint | None = None, run: Run | None = None, *, writes: bool = True) -> None:
        self._checkpoint, self._run, self._writes = checkpoint, run, writes
        self._full = False
        self._waiting: list[tuple[TrainState, Callable[[], None]]] = []

    def progress(self, training: str) -> TrainState | None:
        """How far a training had come when the run was interrupted; None when it had not begun."""
        return self._checkpoint.phases.get(training) if self._checkpoint else None

    def save_callback(self, training: str) -> Callable[[TrainState], None]:
        """A callback for ``fit``."""

        def keep(progress: TrainState) -> None:
            if self._checkpoint is None or not self._writes:
                return
            self._checkpoint.phases[training] = progress
            self._save(self._checkpoint)
            if self._run:
                self._run.try_flush()

        return keep

    def finished(self, training: str) -> FitResult | None:
        """What a training came to, if it was closed."""
        progress = self.progress(training)
        return progress.result(nn.Identity()) if progress and progress.facts.get("closed") else None

    def mark_complete(self, training: str) -> None:
        """A training is done, and its weights serve nobody: keep its figures alone."""
        progress = self.progress(training)
        if self._checkpoint and progress:
            tensors = {"val_logits": progress.tensors["val_logits"]}
            self._checkpoint.phases[training] = TrainState({**progress.facts, "closed": True}, tensors)

    def log_once(self, training: str, log: Callable[[], None]) -> None:
        """Log what came of a training, unless an interrupted run did already; a lost server delays it."""
        progress = self.progress(training)
        if progress is None:  # nothing is kept
            log()
        elif not progress.facts.get("logged"):
            self._waiting.append((progress, log))
            with suppress(TrackingError):
                self.flush_deferred()

    def flush_deferred(self) -> None:
        """Log what had to wait for the server.

        Raises
        ------
        TrackingError
            It is still away.
        """
        while self._waiting:
            progress, log = self._waiting[0]
            log()
            progress.facts["logged"] = True
            self._waiting.pop(0)

    def finish(self, network: nn.Module, description: dict[str, Any]) -> None:
        """The run is complete: leave its weights instead of what is needed to go on."""
        if self._checkpoint is None or not self._writes:
            return
        try:
            self._checkpoint.finish(network.state_dict(), description)
        except DataError as error:  # the model is in MLflow, so this is no loss
            echo(f"warning: {error}")

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """Tell how to go on after whatever ends the run before it is complete."""
        try:
            yield
        except TrackingError as error:
            if command := self._command():
                raise TrackingError(
                    f"{error}; what was trained is kept: go on, when MLflow answers again, with {command}"
                ) from None
            raise
        except (KeyboardInterrupt, SystemExit):
            if command := self._command():
                echo(f"stopped; go on with: {command}")
            raise

    def _save(self, checkpoint: Checkpoint) -> None:
        checkpoint.pending_metrics = self._run.pending if self._run else []
        try:
            checkpoint.save()
        except DataError as error:
            if not self._full:
                echo(f"warning: {error}; training goes on, and could be taken up again only from before")
            self._full = True
        else:
            self._full = False

    def _command(self) -> str | None:
        """What goes on with the run; None when there is nothing to go on with."""
        if self._checkpoint is None or not self._checkpoint.path.exists():
            return None
        folder = str(self._checkpoint.folder)
        where = "" if folder == "checkpoints" else f" --checkpoint-dir {shlex.quote(folder)}"
        start = this_command(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return f"{start} --resume {self._checkpoint.run_id}{where}"
