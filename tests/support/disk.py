"""A disk without space."""

import resource
from contextlib import contextmanager


@contextmanager
def full_disk(max_bytes):
    """Refuse to let a file of this process grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
