"""The folder of studies: names, journals and the logits of complete trials."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.cli.settings import LAST
from toolkit.errors import DataError, SettingsError, first_line, suggest
from toolkit.tuning.journal import read_journal, write_whole
from toolkit.tuning.study import Study, StudyConfig

JOURNAL = "journal.jsonl"
FINISHED = "finished"  # the last entry of a journal


def read_study(folder: Path, name: str) -> tuple[Study, bool]:
    """The present state of a study, also while another process writes to it, and whether it is finished."""
    about, entries = read_journal(journal_of(folder, name))
    return Study(StudyConfig.from_json(about), entries), any(FINISHED in entry for entry in entries)


def journal_of(folder: Path, name: str) -> Path:
    """Path of the journal of a study."""
    return folder / name / JOURNAL


def studies_in(folder: Path) -> list[str]:
    """The names of all studies, the most recently changed one last."""
    journals = sorted(folder.glob(f"*/{JOURNAL}"), key=lambda path: (path.stat().st_mtime_ns, path))
    return [path.parent.name for path in journals]


def resolve_study(folder: Path, choice: str, flag: str) -> str:
    """The name of an existing study by a flag's value, ``last`` or a name; SettingsError if there is none."""
    names = studies_in(folder)
    if not names:
        raise SettingsError(f"there is no study in {folder}{os.sep}, which {flag} needs")
    if choice == LAST:
        return names[-1]
    if choice not in names:
        raise SettingsError(
            f"{flag} must be last or a study in {folder}{os.sep}, got {choice}; there are:"
            f" {suggest(names[::-1], choice)}"
        )
    return choice


def claimed_name(folder: Path, base: str) -> str:
    """``base`` with the first number that no study has yet, reserved by creating its folder."""
    number = 1
    while (folder / f"{base}-{number}").exists():
        number += 1
    try:
        (folder / f"{base}-{number}").mkdir(parents=True)
    except FileExistsError:  # another process was faster
        return claimed_name(folder, base)
    except OSError:
        pass  # writing the journal says why
    return f"{base}-{number}"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two descriptions, a phrase each.

    Examples
    --------
    >>> differences({"folds": 5, "seed": 0, "lr": "1e-05 to 0.001"}, {"folds": 3, "seed": 0, "momentum": 0.9})
    ['folds was 5 and is 3', 'lr was 1e-05 to 0.001 and is gone', 'momentum is 0.9 and was not there']
    """
    phrases = []
    for name in dict.fromkeys([*before, *now]):
        if name not in now:
            phrases.append(f"{name} was {before[name]} and is gone")
        elif name not in before:
            phrases.append(f"{name} is {now[name]} and was not there")
        elif before[name] != now[name]:
            phrases.append(f"{name} was {before[name]} and is {now[name]}")
    return phrases


def save_logits(folder: Path, number: int, logits: NDArray[np.float32]) -> None:
    """Save the logits of a trial, float32 (N, K), before it counts."""
    path = _logits(folder, number)
    buffer = io.BytesIO()
    np.save(buffer, logits, allow_pickle=False)
    try:
        write_whole(path, buffer.getvalue())
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or first_line(error)}") from None


def load_logits(folder: Path, number: int) -> NDArray[np.float32]:
    """The logits of a trial, float32 (N, K); DataError if the file cannot be read."""
    path = _logits(folder, number)
    try:
        logits: NDArray[np.float32] = np.load(path, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or first_line(error)}") from None
    except (ValueError, EOFError):
        raise DataError(f"{path} cannot be read: it is broken") from None
    return logits


def remove_logits(folder: Path) -> None:
    """Remove the logits of all trials of a finished study."""
    for path in folder.glob("logits-*.npy"):
        path.unlink(missing_ok=True)


def _logits(folder: Path, number: int) -> Path:
    return folder / f"logits-{number + 1}.npy"
