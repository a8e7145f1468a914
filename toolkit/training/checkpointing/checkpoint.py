"""A file that a run can be resumed from, and the finished weights that replace it."""

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.cli.settings import LAST
from toolkit.errors import DataError, SettingsError, first_line
from toolkit.system.file_locks import hold, is_free
from toolkit.training.loop import TrainState

UNFINISHED = ".resume.pt"


@dataclass(eq=False)
class Checkpoint:
    """A run that can be resumed, from the file ``RUN.resume.pt``; the finished weights are ``RUN.pt``."""

    folder: Path
    run_id: str  # of MLflow
    metadata: dict[str, Any]  # the caller's own values that JSON can hold: settings, fingerprints
    phases: dict[str, TrainState] = field(default_factory=dict)  # each training, such as ``fold 1`` or ``final``
    pending_metrics: list[Any] = field(default_factory=list)  # that MLflow does not have yet

    @property
    def path(self) -> Path:
        """The file to resume from."""
        return self.folder / f"{self.run_id}{UNFINISHED}"

    def lock(self) -> AbstractContextManager[None]:
        """A lock on the run, which ends with this process; a SettingsError if another process trains the run."""
        return _lock(self.path)

    def save(self) -> None:
        """Write the file, or raise a DataError; readers see the old one or the new one, never a part of it."""
        description = {
            "run_id": self.run_id,
            "metadata": self.metadata,
            "phases": {name: state.values for name, state in self.phases.items()},
            "pending_metrics": self.pending_metrics,
        }
        tensors = {name: state.tensors for name, state in self.phases.items()}
        _write(self.path, {"phases": tensors, "description": json.dumps(description)})

    def finish(self, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> Path:
        """Replace the file by one of the finished weights and a description that JSON can hold; its path."""
        path = self.folder / f"{self.run_id}.pt"
        _write(path, {"weights": dict(weights), "description": json.dumps(dict(description))})
        self.discard()
        return path

    def discard(self) -> None:
        """Remove the file, and incomplete ones of processes that were killed while writing."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
            for incomplete in self.folder.glob(f".{self.run_id}.*"):
                incomplete.unlink(missing_ok=True)


def open_checkpoint(choice: str, folder: Path, locks: ExitStack | None = None) -> Checkpoint:
    """The checkpoint of an interrupted run: the ``last`` in a folder that no process trains, a run's id, or a file.

    ``locks`` takes a lock on the run, so that no other process resumes it.

    Raises
    ------
    SettingsError
        There is none, or another process trains it.
    DataError
        It cannot be read.
    """
    path = _find(choice, folder)
    if locks is not None:
        locks.enter_context(_lock(path))  # before reading: another process might write meanwhile
    content = _read(path)
    try:
        description = json.loads(content["description"])
        phases = {name: TrainState(values, content["phases"][name]) for name, values in description["phases"].items()}
        return Checkpoint(
            path.parent, description["run_id"], description["metadata"], phases, description["pending_metrics"]
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataError(f"the checkpoint {path} cannot be read: it is not of an interrupted training") from None


def _lock(path: Path) -> AbstractContextManager[None]:
    return hold(_lock_file(path), f"run {path.name.removesuffix(UNFINISHED)} is being trained")


def _lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _find(choice: str, folder: Path) -> Path:
    if choice == LAST:
        found = sorted(folder.glob(f"*{UNFINISHED}"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise SettingsError(f"there is no interrupted training in {folder}{os.sep}; --resume has nothing to resume")
        return next((path for path in reversed(found) if is_free(_lock_file(path))), found[-1])
    named = folder / f"{choice}{UNFINISHED}"
    path = named if named.is_file() else Path(choice)
    if not path.is_file():
        ids = ", ".join(sorted(found.name.removesuffix(UNFINISHED) for found in folder.glob(f"*{UNFINISHED}")))
        raise SettingsError(
            f"--resume must be last, a run's id or a checkpoint file, got {choice}; in {folder}{os.sep} there are:"
            f" {ids or 'none'}"
        )
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except OSError as error:
        raise DataError(f"the checkpoint {path} cannot be read: {first_line(error)}") from None
    except Exception:  # noqa: BLE001  pickle, zipfile and torch each raise kinds of their own, and torch's advise to trust
        raise DataError(
            f"the checkpoint {path} cannot be read: it is broken, or holds more than weights and text"
        ) from None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write under a temporary name, then rename; a file that a killed process left under it is overwritten."""
    scratch = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())  # or a power cut might keep the new name and lose the content
        scratch.replace(path)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else None  # torch's own only says "unexpected pos"
        raise DataError(f"the checkpoint {path} cannot be written: {first_line(cause or error)}") from None
    finally:
        with suppress(OSError):
            scratch.unlink()
