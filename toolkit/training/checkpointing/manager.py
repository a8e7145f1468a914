"""Saves checkpoints and sends metrics as a run trains; neither a full disk nor a lost server stops it."""

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import nn

from toolkit.cli.script_commands import this_command
from toolkit.cli.terminal import echo
from toolkit.errors import DataError, TrackingError
from toolkit.tracking.run import Run
from toolkit.training.checkpointing.checkpoint import Checkpoint
from toolkit.training.loop import FitResult, TrainState


class CheckpointManager:
    """Saves the phases of a run to its checkpoint and sends its metrics.

    The phases of a run are its folds and the final training. After each epoch their state is written
    to the checkpoint, together with the metrics that MLflow does not have yet, and then the metrics
    are sent: a kill in between loses nothing, and nothing is sent twice.

    All ranks of torchrun but the first only read the checkpoint.
    """

    def __init__(
        self, checkpoint: Checkpoint | None = None, run: Run | None = None, *, read_only: bool = False
    ) -> None:
        self._checkpoint, self._run, self._read_only = checkpoint, run, read_only
        self._disk_full = False
        self._deferred: list[tuple[TrainState, Callable[[], None]]] = []

    def state(self, phase: str) -> TrainState | None:
        """The state to resume a phase from; None if it had not begun."""
        return self._checkpoint.phases.get(phase) if self._checkpoint else None

    def save_callback(self, phase: str) -> Callable[[TrainState], None]:
        """``FitCallbacks.on_checkpoint`` for a phase."""

        def save(state: TrainState) -> None:
            if self._checkpoint is None or self._read_only:
                return
            self._checkpoint.phases[phase] = state
            self._save(self._checkpoint)
            if self._run:
                self._run.try_flush()

        return save

    def finished(self, phase: str) -> FitResult | None:
        """The result of a phase that was marked complete, without its network; None of any other."""
        state = self.state(phase)
        return state.result(nn.Identity()) if state and state.values.get("complete") else None

    def mark_complete(self, phase: str) -> None:
        """Mark a phase complete, and drop its weights from the checkpoint."""
        state = self.state(phase)
        if self._checkpoint and state:
            tensors = {"val_logits": state.tensors["val_logits"]}
            self._checkpoint.phases[phase] = TrainState({**state.values, "complete": True}, tensors)

    def log_once(self, phase: str, log: Callable[[], None]) -> None:
        """Log the result of a phase, unless the run did so before it was interrupted; a lost server defers it."""
        state = self.state(phase)
        if state is None:  # there is no checkpoint
            log()
        elif not state.values.get("logged"):
            self._deferred.append((state, log))
            with suppress(TrackingError):
                self.flush_deferred()

    def flush_deferred(self) -> None:
        """Log the results that a lost server deferred; a TrackingError if it is still unreachable."""
        while self._deferred:
            state, log = self._deferred[0]
            log()
            state.values["logged"] = True
            self._deferred.pop(0)

    def finish(self, network: nn.Module, description: dict[str, Any]) -> None:
        """Replace the checkpoint of a complete run by its weights."""
        if self._checkpoint is None or self._read_only:
            return
        try:
            self._checkpoint.finish(network.state_dict(), description)
        except DataError as error:  # the model is in MLflow, so this is no loss
            echo(f"warning: {error}")

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """A context that says how to resume the run if it ends before it is complete."""
        try:
            yield
        except TrackingError as error:
            if command := self._command():
                raise TrackingError(
                    f"{error}; the training is saved: resume it when MLflow answers again: {command}"
                ) from None
            raise
        except (KeyboardInterrupt, SystemExit):
            if command := self._command():
                echo(f"stopped; resume with: {command}")
            raise

    def _save(self, checkpoint: Checkpoint) -> None:
        checkpoint.pending_metrics = self._run.pending if self._run else []
        try:
            checkpoint.save()
        except DataError as error:
            if not self._disk_full:
                echo(f"warning: {error}; training goes on, and could only be resumed from an earlier epoch")
            self._disk_full = True
        else:
            self._disk_full = False

    def _command(self) -> str | None:
        """The command that resumes the run; None if there is no checkpoint."""
        if self._checkpoint is None or not self._checkpoint.path.exists():
            return None
        folder = str(self._checkpoint.folder)
        where = "" if folder == "checkpoints" else f" --checkpoint-dir {shlex.quote(folder)}"
        start = this_command(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return f"{start} --resume {self._checkpoint.run_id}{where}"
