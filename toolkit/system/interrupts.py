"""Ctrl-C and SIGTERM held back until a step or a transaction is finished."""

import signal
import sys
import threading
from types import FrameType
from typing import Any

from toolkit.cli.settings import EXIT_TERMINATED

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class DeferredSignals:
    """A context that holds back Ctrl-C and SIGTERM.

    A second Ctrl-C is not held back. When the context ends, also by an error, the handler that was there
    before gets the signal, unless ``act`` has raised it. Outside the main thread, where Python delivers no
    signals, the context does nothing.

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

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.received is not None and not issubclass(kind or Exception, KeyboardInterrupt | SystemExit):
            signal.raise_signal(self.received)

    def act(self) -> None:
        """Raise what the received signal stands for: SystemExit or KeyboardInterrupt."""
        if self.received == signal.SIGTERM:
            sys.exit(EXIT_TERMINATED)
        raise KeyboardInterrupt

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
