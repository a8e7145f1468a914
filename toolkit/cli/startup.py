"""A script's imports, which take seconds: Ctrl-C is one line and status 130, and no garbage is collected.

Each script imports this first, so it imports no slow module; its import does nothing.
"""

import gc
import os
import signal
import sys
from types import FrameType

EXIT_INTERRUPTED = 128 + signal.SIGINT


def begin_imports() -> None:
    """Have Ctrl-C end this process with one line, and keep all objects, until ``end_imports``.

    A KeyboardInterrupt would be a traceback through a hundred files, and some libraries catch it when they are
    imported. Where the signal is ignored, as in the background of a shell, it stays ignored. Modules leave next to no
    garbage, and to look for it takes a quarter of the time of importing them.
    """
    gc.disable()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def end_imports() -> None:
    """Have Ctrl-C raise KeyboardInterrupt again, and garbage collected, but for what was imported."""
    gc.freeze()  # each collection, and the one at the exit, would spend a quarter of a second on it
    gc.enable()
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(_number: int, _frame: FrameType | None) -> None:
    os.write(2, f"{os.path.basename(sys.argv[0])}: interrupted\n".encode(errors="replace"))  # noqa: PTH119  pathlib takes time
    os._exit(EXIT_INTERRUPTED)
