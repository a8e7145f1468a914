"""Ctrl-C at a moment that a test chooses."""

import os
import signal
from contextlib import contextmanager

import sqlalchemy as sa


@contextmanager
def ctrl_c_at(statement):
    """Have this process interrupted by each SQL statement that begins so, before its transaction ends."""

    def interrupt(_connection, _cursor, text, *_):
        if text.startswith(statement):
            os.kill(os.getpid(), signal.SIGINT)

    sa.event.listen(sa.Engine, "after_cursor_execute", interrupt)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, "after_cursor_execute", interrupt)
