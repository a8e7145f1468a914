"""What tests share; the package itself needs nothing of the project."""

from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import psutil

ROOT = Path(__file__).parent.parent.parent
MAX_WAIT_S = 600.0  # what a test waits for comes sooner on the busiest machine, or never


def wait_until(condition, seconds=MAX_WAIT_S):
    """Poll a condition until it is true, and return its value."""
    deadline, pause = monotonic() + seconds, 0.01
    while not (value := condition()):
        assert monotonic() < deadline, f"not true within {seconds} s"
        sleep(pause)
        pause = min(2 * pause, 0.1)
    return value


def children_that_run(module):
    """The children of this process that run a module; others, perhaps just ending, are left out."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            found += [child] if module in child.cmdline() else []
    return found
