"""Locks on the cache's folder, and the removal of entries to stay below its limit."""

import os
import sys
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from shutil import disk_usage

from toolkit.errors import DataError
from toolkit.system.file_locks import wait_for
from toolkit.training.data.cache_files import JOURNAL, PIXELS, discard

if sys.platform != "win32":
    import fcntl


def build_lock(root: Path, key: str) -> AbstractContextManager[None]:
    """A lock for building an entry."""
    root.mkdir(parents=True, exist_ok=True)
    return wait_for(root / f"{key}.lock", "another process is decoding these images; waiting for it")


def eviction_lock(root: Path) -> AbstractContextManager[None]:
    """A lock for eviction and allocation, so that two builders do not count on the same bytes."""
    return wait_for(root / "eviction.lock", "another process is evicting from the image cache; waiting for it")


def entries(root: Path) -> list[tuple[float, int, Path]]:
    """The time of last use, the bytes and the folder of each entry; the least recently used first."""
    found = []
    for journal in root.glob(f"*/{JOURNAL}"):
        folder = journal.parent
        with suppress(OSError):  # another process has just removed it
            size = sum(path.stat().st_size for path in folder.iterdir())
            found.append((folder.stat().st_mtime, size, folder))
    return sorted(found)


def touch(folder: Path) -> None:
    """Mark an entry as used now."""
    with suppress(OSError):  # a cache that others fill may be read-only
        os.utime(folder)


def evict_until_fits(root: Path, limit: int, building: Path, final: int, to_write: int, what: str) -> None:
    """Remove the least recently used entries that no process uses until another one fits.

    Parameters
    ----------
    root, limit
        The cache's folder, and its maximum size in bytes.
    building
        The entry that is to fit.
    final, to_write
        Its final size in bytes, and those of them that are not on disk yet.
    what
        Its images in words, for the error.

    Raises
    ------
    DataError
        The entry does not fit; if removing all others would not help, none was removed.
    """
    others = [(size, folder) for _, size, folder in entries(root) if folder != building]
    used, free = sum(size for size, _ in others), disk_usage(root).free

    def obstacle(used: int, free: int) -> str:
        if used + final > limit:
            in_use = f", of which {format_bytes(used)} are in use" if used else ""
            return f"its limit is {format_bytes(limit)}{in_use}; raise --cache-limit"
        if to_write > free:
            return f"the disk of {root} has {format_bytes(free)} free; choose another --cache-dir"
        return ""

    hopeless = obstacle(0, free + used)
    for size, folder in others:
        if hopeless or not obstacle(used, free):
            break
        if _discard_unused(folder):
            used -= size
            free = disk_usage(root).free
    if found := hopeless or obstacle(used, free):
        raise DataError(f"{what} need {format_bytes(final)} in the image cache, and {found}")


def format_bytes(count: float) -> str:
    """Bytes in the largest unit that fits.

    Examples
    --------
    >>> format_bytes(1536), format_bytes(20 * 2**30)
    ('1.5 KiB', '20.0 GiB')
    """
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.1f} {unit}" if unit != "bytes" else f"{count:.0f} bytes"
        count /= 1024
    return f"{count:.1f} GiB"


def _discard_unused(folder: Path) -> bool:
    """Remove an entry unless a process builds, reads or maps it; whether it was removed."""
    if _in_use(folder):
        return False
    try:
        discard(folder)
    except OSError:
        return False
    return True


def _in_use(folder: Path) -> bool:
    if sys.platform == "win32":  # there, an open file cannot be removed anyway
        return False
    try:
        with (folder / PIXELS).open("rb") as pixels:
            fcntl.flock(pixels, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # no such file, or a file system without locks
        return isinstance(error, BlockingIOError)
    return False
