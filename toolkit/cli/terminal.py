"""Output of scripts: lines that do not tear a progress bar, progress, tables.

Progress is a bar on a terminal. Elsewhere, as in a log, it is a line after half a minute without one.
"""

import io
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from toolkit.cli.safe_names import printable

SILENCE_S = 30.0  # without a line, before one shows progress
REFRESH_S = 1.0  # between two checks of that
LINE = "{desc}: {n_fmt} of {total_fmt} {unit}, {percentage:.0f} %, {remaining} left{postfix}"

_muted = False
_last_line = 0.0  # when a line was printed, by time.monotonic


def mute() -> None:
    """Print nothing and draw no bars from now on: the parent process prints for all."""
    global _muted  # noqa: PLW0603  a property of the process, like its environment
    _muted = True


@contextmanager
def muted(wanted: bool = True) -> Iterator[None]:
    """Print nothing and draw no bars within the block, if ``wanted``."""
    global _muted  # noqa: PLW0603
    before, _muted = _muted, _muted or wanted
    try:
        yield
    finally:
        _muted = before


def echo(text: str) -> None:
    """Print lines at once, without tearing a progress bar; characters that standard output cannot write are escaped."""
    global _last_line  # noqa: PLW0603
    if _muted:
        return
    tqdm.write(printable(text, sys.stdout.encoding), file=sys.stdout)
    sys.stdout.flush()
    _last_line = time.monotonic()


def on_terminal() -> bool:
    """Whether progress bars, which go to standard error, are visible."""
    return sys.stderr.isatty() and not _muted


def bar_label(label: str) -> str | None:
    """The label of a progress bar on a terminal, None elsewhere."""
    return label if on_terminal() else None


def silent_since(start: float) -> bool:
    """Whether no line was printed for ``SILENCE_S``, nor was it so long since ``start``, by ``time.monotonic``."""
    return time.monotonic() - max(start, _last_line) >= SILENCE_S


def progress(label: str | None, total: int, unit: str, *, initial: int = 0) -> "tqdm[Any]":
    """Progress and the time left: a bar on a terminal, elsewhere a line now and then.

    Parameters
    ----------
    label
        Text before it; None shows nothing.
    total, initial
        Number of steps, and of those done already.
    unit
        Name of the steps, in the plural.

    Examples
    --------
    >>> with progress(None, 10, "batches") as shown:
    ...     shown.update(3)
    """
    if label is None or _muted:
        return tqdm(total=total, disable=True)
    if on_terminal():
        return tqdm(desc=label, total=total, initial=initial, unit=f" {unit}", leave=False, dynamic_ncols=True)
    return _Lines(
        desc=label, total=total, initial=initial, unit=unit, leave=False, bar_format=LINE, file=io.StringIO(),
        mininterval=REFRESH_S, miniters=1, delay=REFRESH_S,
    )  # fmt: skip


class _Lines(tqdm):  # type: ignore[misc]  # tqdm has no types
    """Progress as lines, each after a while without other lines."""

    def __init__(self, **words: Any) -> None:
        self._start = time.monotonic()
        super().__init__(**words)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:  # noqa: ARG002
        """Print the state, unless it is to be erased (an empty ``msg``)."""
        if msg is None and self.n < self.total and silent_since(self._start):
            echo(str(self))


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns under headings, numbers to the right.

    Examples
    --------
    >>> print(table(["network", "accuracy"], [["simple_cnn", "0.9"], ["resnet18", "0.95"]]))
    network     accuracy
    simple_cnn       0.9
    resnet18        0.95
    """
    cells = [list(headings), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [bool(rows) and all(_is_number(row[index]) for row in cells[1:]) for index in range(len(headings))]
    lines = (
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    )
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    digits = text.strip("%-+ ").replace(".", "", 1)
    return re.sub(r",|e[-+]", "", digits).isdigit() or text in ("", "-")
