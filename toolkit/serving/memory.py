"""How memory is shared out among the threads of the service."""

import ctypes
import os

ARENA_MAX = -8  # M_ARENA_MAX of glibc's malloc.h


def share_one_pool() -> bool:
    """Have all threads take memory from one pool, where glibc would give each its own; return whether they do.

    A pool keeps what its threads let go of, and each change of the model runs in other threads than
    the one before: with a pool each, the service grows by megabytes a change, though it holds nothing
    more. Whoever sets MALLOC_ARENA_MAX has decided it already; other C libraries have one pool as it is.

    Examples
    --------
    >>> isinstance(share_one_pool(), bool)
    True
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(ARENA_MAX, 1))
    except (OSError, AttributeError, TypeError):  # no glibc here
        return False
