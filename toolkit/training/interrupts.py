"""Ctrl-C and SIGTERM held back until a step is finished and saved."""

import signal
import sys
import threading
from types import FrameType
from typing import Any

from toolkit.cli.settings import EXIT_TERMINATED

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class DeferredSignals:
    """A context that holds back Ctrl-C and SIGTERM.

    A second Ctrl-C is not held back. Outside the main thread, where Python delivers no signals,
    the context does nothing.

    Examples
    --------
    >>> with DeferredSignals() as signals:
    ...     for step in range(3):
    ...         if signals.received is not None:  # save first, then:
    ...             signals.act()
    """

    def __init__(self) -> None:
        self.received: int | None = None  # the number of the first signal
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "DeferredSignals":
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if kind is None and self.received is not None:  # by a signal after the last check
            self.act()

    def act(self) -> None:
        """Raise what the received signal stands for: SystemExit or KeyboardInterrupt."""
        if self.received == signal.SIGTERM:
            sys.exit(EXIT_TERMINATED)
        raise KeyboardInterrupt

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
