"""An append-only journal on disk, whose entries survive a crash, a kill or a power cut."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from toolkit.errors import DataError, SettingsError, first_line
from toolkit.system.file_locks import acquire

FORMAT = 1


class Journal:
    """JSON lines, each on disk before ``append`` returns; open in one process at a time.

    The first line describes the journal. An unfinished last line of a killed process is removed when the
    journal is opened; any other unreadable line is an error, since a study resumed from half its trials
    would not be the same study.

    Parameters
    ----------
    path
        The file; its folder is created when missing.
    about
        Description of a new journal; None opens an existing one.

    Raises
    ------
    SettingsError
        The new journal exists, the existing one does not, or another process has it open.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Journal(Path(folder, "journal.jsonl"), {"seed": 0}) as journal:
    ...         journal.append({"trial": 0})
    ...     with Journal(Path(folder, "journal.jsonl")) as journal:
    ...         journal.about, journal.entries
    ({'seed': 0}, [{'trial': 0}])
    """

    def __init__(self, path: Path, about: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        try:
            if about is None and not path.is_file():
                raise SettingsError(f"there is no journal {path}")
            self._lock = acquire(path.with_suffix(".lock"), f"the journal {path} is being written")
        except OSError as error:
            raise _failed(self.path, "written", error) from None
        try:
            self._open(about)
        except BaseException:
            self._lock.release()
            raise

    def append(self, entry: Mapping[str, Any]) -> None:
        """Append an entry and flush it to disk; DataError if that fails, and nothing of it is written."""
        rest = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(end)  # or the next entry would follow half a line
            raise _failed(self.path, "written", error) from None
        self.entries.append(dict(entry))

    def close(self) -> None:
        """Release the file for other processes."""
        self._file.close()
        self._lock.release()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, about: Mapping[str, Any] | None) -> None:
        try:
            if about is not None:
                if self.path.exists():
                    raise SettingsError(f"there is a journal {self.path} already")
                write_whole(self.path, json.dumps({"format": FORMAT, "about": dict(about)}).encode() + b"\n")
            self.about, self.entries, length = _content(self.path)
            self._file = self.path.open("ab", buffering=0)  # closing does not retry what a full disk refused
            self._file.truncate(length)
        except OSError as error:
            raise _failed(self.path, "written", error) from None


def read_journal(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The description of a journal and its entries so far, also while another process writes to it."""
    about, entries, _ = _content(path)
    return about, entries


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name, then rename it: after a power cut it is either complete or unchanged."""
    scratch = path.with_suffix(".partial")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        with suppress(OSError):  # where the system can, its name as well
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        with suppress(OSError):
            scratch.unlink()


def _content(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """The description, the entries, and the number of bytes of complete lines."""
    try:
        content = path.read_bytes()
        *lines, unfinished = content.split(b"\n")
        first, *entries = [_entry(number, line) for number, line in enumerate(lines, start=1)] or [{}]
        about = first.get("about")
        if first.get("format") != FORMAT or not isinstance(about, dict):
            raise ValueError("it is not a journal of this version")
        return about, entries, len(content) - len(unfinished)
    except (OSError, ValueError) as error:
        raise _failed(path, "read", error) from None


def _entry(number: int, line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        raise ValueError(f"line {number} is broken")
    return entry


def _failed(path: Path, action: str, error: Exception) -> DataError:
    reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
    return DataError(f"the journal {path} cannot be {action}: {reason}")
