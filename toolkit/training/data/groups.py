"""Groups of images that no split may separate: copies of one photograph, and those named by ``--group-by``."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError
from toolkit.images.decoding import STATISTICS
from toolkit.training.data.cache import CachedImages
from toolkit.training.data.catalogue import Catalogue
from toolkit.training.data.near_duplicates import MIN_SIDE, groups_of, near_duplicates


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups in a data set of N images."""

    keys: NDArray[np.str_] | None = None  # (N,), equal in one group by ``--group-by``, empty for an image in none
    copies: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))  # pairs of one photograph

    @property
    def links(self) -> NDArray[np.int64]:
        """int64 (L, 2), pairs that chain the images of each key."""
        return np.empty((0, 2), np.int64) if self.keys is None else _chains(self.keys)

    def numbers(self, count: int) -> NDArray[np.int64] | None:
        """The group of each of ``count`` images, int64 (N,), keys and copies together; None if there is no group."""
        links = np.concatenate([self.copies, self.links])
        return groups_of(links, count) if len(links) else None


def find_groups(images: CachedImages, data: str, group_by: str | None, *, copies: bool) -> Groups:
    """Find the groups in a data set that was read from the folder ``data``; ``group_by`` is as in ``keys_of``.

    Near-duplicates are searched for among files of at least ``MIN_SIDE`` pixels; data sets of arrays are
    left as their authors made them.
    """
    catalogue = images.catalogue
    keys = None if group_by is None else keys_of(catalogue, Path(data).expanduser(), group_by)
    if not copies or not len(catalogue) or not isinstance(catalogue.sources[0], Path):
        return Groups(keys)
    sides = images.statistics[:, [STATISTICS.index("width"), STATISTICS.index("height")]]
    return Groups(keys, near_duplicates(images.pixels, np.flatnonzero(sides.min(axis=1) >= MIN_SIDE)))


def keys_of(catalogue: Catalogue, folder: Path, group_by: str) -> NDArray[np.str_]:
    r"""The key of each image, str (N,); empty if ``group_by`` does not match.

    A number of levels stands for the name of the folder that deep below the class's. Otherwise it is a
    regular expression that is searched for in the path below ``folder``, with ``/`` on every system: its
    first group is the key, or the whole match if it has none.

    Raises
    ------
    DataError
        The images are no files, or ``group_by`` matches none of them.

    Examples
    --------
    >>> images = [Path("scans/sick/p7/1.png"), Path("scans/well/p7/2.png"), Path("scans/well/3.png")]
    >>> listed = Catalogue("scans", ("sick", "well"), images, np.array([0, 1, 1]), np.array(["a", "b", "c"]),
    ...     np.array(["", "", ""]))
    >>> keys_of(listed, Path("scans"), "1").tolist()
    ['p7', 'p7', '']
    >>> keys_of(listed, Path("scans"), r"(p\d+)/").tolist()
    ['p7', 'p7', '']
    """
    paths = [_below(folder, source) for source in catalogue.sources if isinstance(source, Path)]
    if not paths:
        raise DataError(f"--group-by {group_by} needs the paths of images, and those of {catalogue.name} are no files")
    if group_by.isdecimal():
        levels = int(group_by) + (catalogue.parts != "")  # the class's own folder, maybe below train/
        keys = [_level(path, level) for path, level in zip(paths, levels.tolist(), strict=True)]
    else:
        pattern = re.compile(group_by)
        keys = [_match(pattern, path) for path in paths]
    if not any(keys):
        raise DataError(f"--group-by {group_by} matches none of the {len(keys):,} images, such as {paths[0]}")
    return np.array(keys)


def _below(folder: Path, path: Path) -> str:
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


def _level(path: str, level: int) -> str:
    names = path.split("/")[:-1]
    return names[level] if level < len(names) else ""


def _match(pattern: re.Pattern[str], path: str) -> str:
    found = pattern.search(path)
    return (found[1] if pattern.groups else found[0]) or "" if found else ""


def _chains(keys: NDArray[np.str_]) -> NDArray[np.int64]:
    """Pairs (M, 2) that link the images of each key, one after the other."""
    order = np.argsort(keys, kind="stable")
    linked = (keys[order[1:]] == keys[order[:-1]]) & (keys[order[1:]] != "")
    return np.stack([order[:-1][linked], order[1:][linked]], axis=1)
