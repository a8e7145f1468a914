"""What scripts print: lines that leave a progress bar whole, bars on a terminal only, tables.

Of the processes that torchrun starts, only the first one speaks.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from toolkit.names import printable

_silent = False


def silence() -> None:
    """This process says nothing from now on, and draws no bars: the one that started it speaks for all."""
    global _silent  # noqa: PLW0603  a property of the process, like its environment
    _silent = True


@contextmanager
def silent(wanted: bool = True) -> Iterator[None]:
    """Say nothing, and draw no bars, within the block; nothing changes when it is not wanted."""
    global _silent  # noqa: PLW0603
    before, _silent = _silent, _silent or wanted
    try:
        yield
    finally:
        _silent = before


def say(text: str) -> None:
    """Print lines at once, without tearing a progress bar; what standard output cannot write is escaped."""
    if not _speaks():
        return
    tqdm.write(printable(text, sys.stdout.encoding), file=sys.stdout)
    sys.stdout.flush()


def on_terminal() -> bool:
    """Whether progress bars, which go to standard error, would be seen by a person."""
    return sys.stderr.isatty() and _speaks()


def bar(label: str) -> str | None:
    """The label of a progress bar on a terminal, None elsewhere."""
    return label if on_terminal() else None


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


def _speaks() -> bool:
    return not _silent and os.environ.get("RANK", "0") == "0"


def _is_number(text: str) -> bool:
    return text.strip("%-+ ").replace(".", "", 1).replace(",", "").replace("e-", "").isdigit() or text in ("", "-")
