"""What of a training is on disk: its weights when it is done, and until then all it takes to go on."""

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
    """A run that can be taken up again: its settings, the trainings it consists of, and what was not sent yet.

    Parameters
    ----------
    folder
        Where it is kept, as ``RUN.resume.pt``; the finished weights are ``RUN.pt``.
    run_id
        The MLflow run.
    about
        Plain values that the caller wants back: settings, fingerprints.
    stages
        The progress of each training by its name, such as ``fold 1`` or ``final``.
    unsent
        Figures that MLflow has not got yet.
    """

    folder: Path
    run_id: str
    metadata: dict[str, Any]
    phases: dict[str, TrainState] = field(default_factory=dict)
    pending_metrics: list[Any] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The file that an interrupted run is taken up from."""
        return self.folder / f"{self.run_id}{UNFINISHED}"

    def held(self) -> AbstractContextManager[None]:
        """Keep all other processes from going on with the run; the end of this one, whatever it is, frees it.

        Raises
        ------
        SettingsError
            Another process trains it.
        """
        return _held(self.path)

    def save(self) -> None:
        """Write everything; a reader sees the old file or the new one, never half of one.

        Raises
        ------
        DataError
            The folder cannot be made or written to.
        """
        description = {
            "run_id": self.run_id,
            "about": self.metadata,
            "stages": {name: progress.facts for name, progress in self.phases.items()},
            "unsent": self.pending_metrics,
        }
        tensors = {name: progress.tensors for name, progress in self.phases.items()}
        _write(self.path, {"stages": tensors, "description": json.dumps(description)})

    def finish(self, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> Path:
        """Leave the finished weights instead, with a JSON-able description; their file."""
        path = self.folder / f"{self.run_id}.pt"
        save_weights(path, weights, description)
        self.discard()
        return path

    def discard(self) -> None:
        """Remove what is needed to go on, and what processes left that were killed while they wrote."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
            for half in self.folder.glob(f".{self.run_id}.*"):
                half.unlink(missing_ok=True)


def open_checkpoint(choice: str, folder: Path, hold: ExitStack | None = None) -> Checkpoint:
    """The checkpoint of an interrupted run.

    Parameters
    ----------
    choice
        ``last`` for the one written last in the folder that no process goes on with, a run's id, or a file.
    folder
        Where checkpoints are kept.
    hold
        Until it is closed, no other process may go on with the run; None: others may.

    Raises
    ------
    SettingsError
        There is none, or another process goes on with it.
    DataError
        It cannot be read.
    """
    path = _find(choice, folder)
    if hold is not None:
        hold.enter_context(_held(path))  # before it is read: another process might write it meanwhile
    content = _read(path)
    try:
        description = json.loads(content["description"])
        stages = {name: TrainState(facts, content["stages"][name]) for name, facts in description["stages"].items()}
        return Checkpoint(path.parent, description["run_id"], description["about"], stages, description["unsent"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataError(f"the checkpoint {path} cannot be read: it is not of an interrupted training") from None


def save_weights(path: Path, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write weights and a JSON-able description, all or nothing.

    Raises
    ------
    DataError
        The folder cannot be made or written to.
    """
    _write(path, {"weights": dict(weights), "description": json.dumps(dict(description))})


def load_weights_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the description; nothing but tensors and text is unpickled.

    Raises
    ------
    DataError
        The file is missing, broken, or holds no weights.
    """
    content = _read(path)
    try:
        return dict(content["weights"]), dict(json.loads(content["description"]))
    except (KeyError, TypeError, ValueError):
        raise DataError(f"the checkpoint {path} cannot be read: it holds no weights with a description") from None


def _held(path: Path) -> AbstractContextManager[None]:
    return hold(_lock(path), f"run {path.name.removesuffix(UNFINISHED)} is being trained")


def _lock(path: Path) -> Path:
    """The lock of a checkpoint: a file beside it."""
    return path.with_name(f".{path.name}.lock")


def _find(choice: str, folder: Path) -> Path:
    if choice == LAST:
        found = sorted(folder.glob(f"*{UNFINISHED}"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise SettingsError(
                f"there is no interrupted training in {folder}{os.sep}; --resume has nothing to go on from"
            )
        return next((path for path in reversed(found) if is_free(_lock(path))), found[-1])
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
    """To a temporary name, then renamed; what a killed process left under that name is overwritten."""
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
