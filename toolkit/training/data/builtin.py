"""Data sets that are known by name: what each is, where its files lie, and where they are fetched when missing.

A local copy is looked for where torchvision keeps its own, so that what is there is not fetched
twice. What is fetched is compared with the checksum of the published file.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from tqdm import tqdm

from toolkit.cli.terminal import echo, on_terminal
from toolkit.errors import DataError, first_line, suggest
from toolkit.training.data.arrays import ArraySet
from toolkit.training.data.cifar import CIFAR10, CIFAR100, CifarFiles, read_cifar
from toolkit.training.data.idx import read_idx

DIGITS = "digits"
TIMEOUT_S = 15  # of a server that says nothing
TEN_DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class DownloadSpec:
    """A data set that can be downloaded.

    Parameters
    ----------
    files
        File names and their MD5 checksums.
    addresses
        What to put before a file's name to fetch it; the first that answers is used.
    folder
        Where the files lie, below the folder of all data.
    classes
        Class names, where the files do not tell them.
    mirrored
        Whether an image may be flipped without changing its class.
    cifar
        How the one file of a CIFAR set is read; None for a set in IDX files.
    pickled
        Other forms of the same set, next to the folder, that are not read because they are pickles.
    """

    files: Mapping[str, str]
    addresses: tuple[str, ...]
    folder: str = ""
    classes: tuple[str, ...] = ()
    allow_flip: bool = False
    cifar: CifarFiles | None = None
    pickled: tuple[str, ...] = ()


NAMES = (DIGITS, "mnist", "fashion-mnist", "kmnist", "cifar10", "cifar100")


@cache
def catalogue() -> dict[str, DownloadSpec]:
    """The sets that can be downloaded, by name; torchvision knows most of it, and takes seconds to import."""
    from torchvision.datasets import KMNIST, MNIST, FashionMNIST

    def like_mnist(of: type[MNIST], classes: Sequence[str], *, mirrored: bool = False) -> DownloadSpec:
        return DownloadSpec(dict(of.resources), tuple(of.mirrors), f"{of.__name__}/raw", tuple(classes), mirrored)

    return {
        "mnist": like_mnist(MNIST, TEN_DIGITS),
        "fashion-mnist": like_mnist(FashionMNIST, FashionMNIST.classes, mirrored=True),
        "kmnist": like_mnist(KMNIST, KMNIST.classes),
        "cifar10": DownloadSpec(
            {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
            ("https://www.cs.toronto.edu/~kriz/",),
            cifar=CIFAR10,
            pickled=("cifar-10-batches-py", "cifar-10-python.tar.gz"),
        ),
        "cifar100": DownloadSpec(
            {"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"},
            ("https://www.cs.toronto.edu/~kriz/",),
            cifar=CIFAR100,
            pickled=("cifar-100-python", "cifar-100-python.tar.gz"),
        ),
    }


def load_builtin(name: str, root: Path) -> ArraySet:
    """The data set of that name.

    Parameters
    ----------
    name
        One of ``NAMES``.
    root
        The folder of all data: the set is looked for in it, and put there when it must be fetched.

    Raises
    ------
    DataError
        There is no such set, it cannot be fetched, or what lies in the folder cannot be used.

    Examples
    --------
    >>> digits = load_builtin("digits", Path("data"))
    >>> digits.pixels.shape, digits.classes[:3]
    ((1797, 8, 8), ('0', '1', '2'))
    """
    if name == DIGITS:
        return _digits()
    if name not in NAMES:
        raise DataError(f"no data set is called {name!r}; there are: {suggest(NAMES, name)}")
    return load_downloaded(name, catalogue()[name], root)


def load_downloaded(name: str, published: DownloadSpec, root: Path) -> ArraySet:
    """A data set from its files, which are fetched first when they are missing.

    Raises
    ------
    DataError
        The files cannot be fetched or used.
    """
    folder = root / published.folder
    if published.cifar and (root / published.cifar.folder).is_dir():
        return read_cifar(root / published.cifar.folder, published.cifar, name)
    missing = {file: md5 for file, md5 in published.files.items() if not _exists(folder / file)}
    if missing:
        _fetch(name, published, root, missing)
    if published.cifar is None:
        return read_idx(folder, name, published.classes, mirrored=published.allow_flip)
    ((file, md5),) = published.files.items()
    if not _checksum_ok(folder / file, md5):
        raise DataError(f"{folder / file} is not the published file, or only a part of it; remove it to fetch it again")
    return read_cifar(folder / file, published.cifar, name)


def open_idx(folder: Path, name: str) -> ArraySet:
    """IDX files in a folder that the user names; where torchvision would keep a known set, they are that set."""
    if folder.name == "raw":
        for known_as, published in catalogue().items():
            if published.folder and folder.resolve().as_posix().endswith(f"/{published.folder}"):
                return read_idx(folder, known_as, published.classes, mirrored=published.allow_flip)
    return read_idx(folder, name)


def _digits() -> ArraySet:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""
    from sklearn.datasets import load_digits  # a second of import that other data sets can do without

    digits = load_digits()
    pixels = (digits.images / 16 * 255).round().astype(np.uint8)
    return ArraySet(
        DIGITS, TEN_DIGITS, pixels, digits.target.astype(np.int64), np.full(len(pixels), ""), allow_flip=False
    )


def _exists(path: Path) -> bool:
    """Whether a file, or what it unpacks to, is there."""
    return path.is_file() or (path.suffixes == [".gz"] and path.with_suffix("").is_file())


def _checksum_ok(path: Path, md5: str) -> bool:
    """Whether a file is the published one."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest() == md5


def _fetch(name: str, published: DownloadSpec, root: Path, missing: Mapping[str, str]) -> None:
    folder = root / published.folder
    for file, md5 in missing.items():
        reasons = []
        for address in published.addresses:
            try:
                _download(address + file, folder / file, md5)
                break
            except (OSError, HTTPException) as error:
                reasons.append(first_line(error))
        else:
            pickles = [str(root / other) for other in published.pickled if (root / other).exists()]
            raise DataError(
                f"{name} cannot be downloaded ({reasons[-1]}); fetch {', '.join(missing)} from"
                f" {published.addresses[0]} on a machine with internet access and put what you get into {folder}"
                + (f"; {pickles[0]} is not read: it holds pickles, which can run any program" if pickles else "")
            )


def _download(url: str, path: Path, md5: str) -> None:
    """Fetch a file under another name, which it keeps until it is complete and right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    echo(f"fetching {url}")
    incomplete = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with urlopen(url, timeout=TIMEOUT_S) as response, incomplete.open("wb") as file:  # noqa: S310  of the table above
            size = int(response.headers.get("Content-Length", 0)) or None
            options = {"total": size, "desc": path.name, "leave": False, "disable": not on_terminal()}
            with tqdm.wrapattr(response, "read", **options) as body:
                shutil.copyfileobj(body, file)
        if not _checksum_ok(incomplete, md5):
            raise OSError(f"what {url} gives is not the published file")
        incomplete.replace(path)
    finally:
        incomplete.unlink(missing_ok=True)
