"""Ctrl-C while a script is still importing, which takes seconds: one line, and status 130.

Each script imports this first, so it imports no slow module; its import does nothing.
"""

import os
import signal
import sys
from types import FrameType

EXIT_INTERRUPTED = 128 + signal.SIGINT


def exit_on_interrupt() -> None:
    """Have Ctrl-C end this process with one line, until ``restore_interrupt``.

    A KeyboardInterrupt would be a traceback through a hundred files, and some libraries catch it when they are
    imported. Where the signal is ignored, as in the background of a shell, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def restore_interrupt() -> None:
    """Have Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(_number: int, _frame: FrameType | None) -> None:
    os.write(2, f"{os.path.basename(sys.argv[0])}: interrupted\n".encode(errors="replace"))  # noqa: PTH119  pathlib takes time
    os._exit(EXIT_INTERRUPTED)
