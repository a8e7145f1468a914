"""The folder that entries share: one builder for each, and room for all of them below a limit."""

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
    """A lock for making room and taking it, so that two builders do not count on the same bytes."""
    return wait_for(root / "room.lock", "another process makes room in the image cache; waiting for it")


def entries(root: Path) -> list[tuple[float, int, Path]]:
    """When each entry was last used, its bytes and its folder; the least recently used first."""
    found = []
    for journal in root.glob(f"*/{JOURNAL}"):
        folder = journal.parent
        with suppress(OSError):  # another process has just removed it
            size = sum(path.stat().st_size for path in folder.iterdir())
            found.append((folder.stat().st_mtime, size, folder))
    return sorted(found)


def touch(folder: Path) -> None:
    """An entry is used now; those used long ago are the first to go."""
    with suppress(OSError):  # a cache that others fill may be read-only
        os.utime(folder)


def evict_until_fits(root: Path, limit: int, building: Path, final: int, to_write: int, what: str) -> None:
    """Remove the least recently used entries that nobody uses until another one fits.

    Parameters
    ----------
    root, limit
        The folder, and the bytes that all entries may have.
    building
        The entry that is to fit.
    final, to_write
        The bytes it will have, and those of them that are not on disk yet.
    what
        Its images in words, for the error.

    Raises
    ------
    DataError
        It does not fit; when removing everything could not help, nothing was removed.
    """
    others = [(size, folder) for _, size, folder in entries(root) if folder != building]
    used, free = sum(size for size, _ in others), disk_usage(root).free

    def obstacle(used: int, free: int) -> str:
        if used + final > limit:
            in_use = f", of which {amount(used)} are in use" if used else ""
            return f"its limit is {amount(limit)}{in_use}; raise --cache-limit"
        if to_write > free:
            return f"the disk of {root} has room for {amount(free)}; choose another --cache-dir"
        return ""

    hopeless = obstacle(0, free + used)
    for size, folder in others:
        if hopeless or not obstacle(used, free):
            break
        if _discard_unused(folder):
            used -= size
            free = disk_usage(root).free
    if found := hopeless or obstacle(used, free):
        raise DataError(f"{what} need {amount(final)} in the image cache, and {found}")


def amount(count: float) -> str:
    """Bytes as people read them.

    Examples
    --------
    >>> amount(1536), amount(20 * 2**30)
    ('1.5 KiB', '20.0 GiB')
    """
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.1f} {unit}" if unit != "bytes" else f"{count:.0f} bytes"
        count /= 1024
    return f"{count:.1f} GiB"


def _discard_unused(folder: Path) -> bool:
    """Remove an entry unless some process builds, reads or maps it; tells whether it was removed."""
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
    except OSError as error:  # no such file, or a file system without locks: nothing keeps it
        return isinstance(error, BlockingIOError)
    return False
