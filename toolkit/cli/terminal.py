"""What scripts print: lines that leave a progress bar whole, progress, tables.

Progress is a bar on a terminal. Elsewhere, as in a log, it is a line whenever none was printed for half a minute.
"""

import io
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from toolkit.cli.safe_names import printable

QUIET_S = 30.0  # without a line, before one says how far something has come
REFRESH_S = 1.0  # between two looks at whether that is so
LINE = "{desc}: {n_fmt} of {total_fmt} {unit}, {percentage:.0f} %, {remaining} left{postfix}"

_muted = False
_last_line = 0.0  # when a line was printed, by time.monotonic


def mute() -> None:
    """This process says nothing from now on, and draws no bars: the one that started it speaks for all."""
    global _muted  # noqa: PLW0603  a property of the process, like its environment
    _muted = True


@contextmanager
def muted(wanted: bool = True) -> Iterator[None]:
    """Say nothing, and draw no bars, within the block; nothing changes when it is not wanted."""
    global _muted  # noqa: PLW0603
    before, _muted = _muted, _muted or wanted
    try:
        yield
    finally:
        _muted = before


def echo(text: str) -> None:
    """Print lines at once, without tearing a progress bar; what standard output cannot write is escaped."""
    global _last_line  # noqa: PLW0603
    if _muted:
        return
    tqdm.write(printable(text, sys.stdout.encoding), file=sys.stdout)
    sys.stdout.flush()
    _last_line = time.monotonic()


def on_terminal() -> bool:
    """Whether progress bars, which go to standard error, would be seen by a person."""
    return sys.stderr.isatty() and not _muted


def bar_label(label: str) -> str | None:
    """The label of a progress bar on a terminal, None elsewhere."""
    return label if on_terminal() else None


def muted_since(start: float) -> bool:
    """Whether no line was printed for ``QUIET_S``, nor was it so long since ``start``, by ``time.monotonic``."""
    return time.monotonic() - max(start, _last_line) >= QUIET_S


def progress(label: str | None, total: int, unit: str, *, initial: int = 0) -> "tqdm[Any]":
    """How far something has come, and the time left: a bar on a terminal, elsewhere a line now and then.

    Parameters
    ----------
    label
        What it is; None shows nothing.
    total, initial
        How many steps there are, and how many are done already.
    unit
        What a step is, as a plural.

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
    """Progress as lines, each only when nothing else was printed for a while."""

    def __init__(self, **words: Any) -> None:
        self._start = time.monotonic()
        super().__init__(**words)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:  # noqa: ARG002
        """Print where it is, unless it is to be wiped (an empty ``msg``)."""
        if msg is None and self.n < self.total and muted_since(self._start):
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
    return text.strip("%-+ ").replace(".", "", 1).replace(",", "").replace("e-", "").isdigit() or text in ("", "-")
