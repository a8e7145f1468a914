"""The folder of studies: what each depends on, its journal, and which was worked on last."""

import io
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.cli.settings import LAST
from toolkit.errors import DataError, SettingsError, first_line, suggest
from toolkit.tuning.journal import read_journal, write_whole
from toolkit.tuning.space import Space, space_from_json, space_json
from toolkit.tuning.study import Study
from toolkit.tuning.trial import Trial

JOURNAL = "journal.jsonl"
FINISHED = "finished"  # the entry of a journal that nothing is to follow
ANOTHER_VERSION = "the study was begun by another version of hyperopt_tuning.py"

_UNLIKE = (KeyError, TypeError, ValueError, AttributeError)  # what comes of values in another form


@dataclass(frozen=True)
class StudyConfig:
    """What the trials of a study depend on: the first line of its journal.

    Parameters
    ----------
    space, seed, start_up, racing, first, earlier
        As ``Study`` takes them.
    facts
        Of the data and the weights, by name: when one has changed, it would be another study.
    settings
        The script's, to go on with.
    """

    space: Space
    seed: int
    n_startup_trials: int
    prune: bool
    initial_points: list[dict[str, Any]] = field(default_factory=list)
    earlier: list[Trial] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """Plain values, from which ``from_json`` makes an equal plan."""
        return {**vars(self), "space": space_json(self.space), "earlier": [trial.json() for trial in self.earlier]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "StudyConfig":
        """The plan that ``json`` was of.

        Raises
        ------
        DataError
            It is none.
        """
        try:
            earlier = [Trial.from_json(trial) for trial in values["earlier"]]
            return cls(**{**values, "space": space_from_json(values["space"]), "earlier": earlier})
        except _UNLIKE:
            raise DataError(ANOTHER_VERSION) from None

    def study(
        self, entries: Iterable[Mapping[str, Any]] = (), record: Callable[[Mapping[str, Any]], None] = lambda _: None
    ) -> Study:
        """The study, as far as the journal's entries have come.

        Raises
        ------
        DataError
            They are of none.
        """
        try:
            return Study(
                self.space,
                self.seed,
                self.n_startup_trials,
                racing=self.prune,
                first=self.initial_points,
                earlier=self.earlier,
                entries=entries,
                record=record,
            )
        except (SettingsError, StopIteration, *_UNLIKE):
            raise DataError(ANOTHER_VERSION) from None


def read_study(folder: Path, name: str) -> tuple[Study, bool]:
    """A study as it stands, also while another process goes on with it; and whether it is finished."""
    about, entries = read_journal(journal_of(folder, name))
    return StudyConfig.from_json(about).study(entries), any(FINISHED in entry for entry in entries)


def journal_of(folder: Path, name: str) -> Path:
    """Where a study keeps its journal."""
    return folder / name / JOURNAL


def studies_in(folder: Path) -> list[str]:
    """The names of all studies, that which was worked on last at the end."""
    journals = sorted(folder.glob(f"*/{JOURNAL}"), key=lambda path: (path.stat().st_mtime_ns, path))
    return [path.parent.name for path in journals]


def resolve_study(folder: Path, choice: str, flag: str) -> str:
    """The name of a study that is there.

    Parameters
    ----------
    choice
        ``last``, or a name.
    flag
        What asks for it, for the error.

    Raises
    ------
    SettingsError
        There is none of that name, or none at all.
    """
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


def next_name(folder: Path, base: str) -> str:
    """``base`` with the first number that no study has yet.

    Examples
    --------
    >>> next_name(Path("no such folder"), "digits")
    'digits-1'
    """
    number = 1
    while (folder / f"{base}-{number}").exists():
        number += 1
    return f"{base}-{number}"


def claimed_name(folder: Path, base: str) -> str:
    """As ``next_name``, and no other process that asks is given the same: the study's folder is made."""
    while True:
        name = next_name(folder, base)
        try:
            (folder / name).mkdir(parents=True)
        except FileExistsError:
            continue  # another process was faster
        except OSError:
            pass  # writing the journal says why
        return name


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two descriptions, a phrase each.

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


def save_logits(folder: Path, number: int, logits: NDArray[np.float32], former: int | None = None) -> None:
    """Keep the logits (N, K) of a trial that will be the best when it counts.

    Parameters
    ----------
    former
        The trial that is the best until then, whose logits are kept as well; those of others are removed.

    Raises
    ------
    DataError
        They cannot be written.
    """
    path = _logits(folder, number)
    buffer = io.BytesIO()
    np.save(buffer, logits, allow_pickle=False)
    try:
        write_whole(path, buffer.getvalue())
        for other in folder.glob("logits-*.npy"):
            if other != path and (former is None or other != _logits(folder, former)):
                other.unlink()
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or first_line(error)}") from None


def load_logits(folder: Path, number: int) -> NDArray[np.float32]:
    """Those of a trial, float32 (N, K).

    Raises
    ------
    DataError
        They cannot be read.
    """
    path = _logits(folder, number)
    try:
        logits: NDArray[np.float32] = np.load(path, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or first_line(error)}") from None
    except (ValueError, EOFError):
        raise DataError(f"{path} cannot be read: it is broken") from None
    return logits


def _logits(folder: Path, number: int) -> Path:
    return folder / f"logits-{number + 1}.npy"
