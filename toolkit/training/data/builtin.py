"""Data sets by name: the files of each, and their download.

Files are searched for where torchvision keeps its own, so that they are not downloaded twice.
Downloads are compared with the checksum of the published file.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from http.client import HTTPException
from importlib.metadata import distribution
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
TIMEOUT_S = 15  # of a silent server
TEN_DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class DownloadSpec:
    """A data set that can be downloaded."""

    files: Mapping[str, str]  # names and MD5 checksums
    addresses: tuple[str, ...]  # of folders that hold the files; the first that answers is used
    folder: str = ""  # of the files, below the folder of all data
    classes: tuple[str, ...] = ()  # if they are not in the files
    allow_flip: bool = False
    cifar: CifarFiles | None = None  # the contents of a CIFAR set's one file; None for a set in IDX files
    pickled: tuple[str, ...] = ()  # other forms of the set that are not read, because they are pickles


NAMES = (DIGITS, "mnist", "fashion-mnist", "kmnist", "cifar10", "cifar100")


@cache
def catalogue() -> dict[str, DownloadSpec]:
    """The sets that can be downloaded, by name; most is taken from torchvision, whose import takes seconds."""
    from torchvision.datasets import KMNIST, MNIST, FashionMNIST

    def like_mnist(of: type[MNIST], classes: Sequence[str], *, allow_flip: bool = False) -> DownloadSpec:
        return DownloadSpec(dict(of.resources), tuple(of.mirrors), f"{of.__name__}/raw", tuple(classes), allow_flip)

    return {
        "mnist": like_mnist(MNIST, TEN_DIGITS),
        "fashion-mnist": like_mnist(FashionMNIST, FashionMNIST.classes, allow_flip=True),
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
    """The data set of that name, found in the folder of all data or downloaded into it.

    Raises
    ------
    DataError
        There is no such set, it cannot be downloaded, or its files cannot be used.

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


def load_downloaded(name: str, spec: DownloadSpec, root: Path) -> ArraySet:
    """A data set from its files, downloading those that are missing; a DataError if they cannot be had or used."""
    folder = root / spec.folder
    if spec.cifar and (root / spec.cifar.folder).is_dir():
        return read_cifar(root / spec.cifar.folder, spec.cifar, name)
    missing = {file: md5 for file, md5 in spec.files.items() if not _exists(folder / file)}
    if missing:
        _download_missing(name, spec, root, missing)
    if spec.cifar is None:
        return read_idx(folder, name, spec.classes, allow_flip=spec.allow_flip)
    ((file, md5),) = spec.files.items()
    if not _checksum_ok(folder / file, md5):
        raise DataError(f"{folder / file} is not the published file, or only a part of it; remove it to fetch it again")
    return read_cifar(folder / file, spec.cifar, name)


def open_idx(folder: Path, name: str) -> ArraySet:
    """The set in a folder of IDX files; a known one in a folder where torchvision keeps it."""
    if folder.name == "raw":
        for known_as, spec in catalogue().items():
            if spec.folder and folder.resolve().as_posix().endswith(f"/{spec.folder}"):
                return read_idx(folder, known_as, spec.classes, allow_flip=spec.allow_flip)
    return read_idx(folder, name)


def _digits() -> ArraySet:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""
    # The file itself, because the import of scikit-learn's own reader takes a second.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = np.loadtxt(str(file), np.uint8, delimiter=",")  # (1797, 65): 64 pixels from 0 to 16, and the digit
    pixels = (rows[:, :-1].reshape(-1, 8, 8) / 16 * 255).round().astype(np.uint8)
    return ArraySet(
        DIGITS, TEN_DIGITS, pixels, rows[:, -1].astype(np.int64), np.full(len(pixels), ""), allow_flip=False
    )


def _exists(path: Path) -> bool:
    """Whether a file, or its uncompressed form, exists."""
    return path.is_file() or (path.suffixes == [".gz"] and path.with_suffix("").is_file())


def _checksum_ok(path: Path, md5: str) -> bool:
    """Whether a file has the published checksum."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest() == md5


def _download_missing(name: str, spec: DownloadSpec, root: Path, missing: Mapping[str, str]) -> None:
    folder = root / spec.folder
    for file, md5 in missing.items():
        reasons = []
        for address in spec.addresses:
            try:
                _download(address + file, folder / file, md5)
                break
            except (OSError, HTTPException) as error:
                reasons.append(first_line(error))
        else:
            pickles = [str(root / other) for other in spec.pickled if (root / other).exists()]
            raise DataError(
                f"{name} cannot be downloaded ({reasons[-1]}); fetch {', '.join(missing)} from"
                f" {spec.addresses[0]} on a machine with internet access and put them into {folder}"
                + (f"; {pickles[0]} is not read: it holds pickles, which can run any program" if pickles else "")
            )


def _download(url: str, path: Path, md5: str) -> None:
    """Download a file under a temporary name until it is complete and its checksum right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    echo(f"downloading {url}")
    incomplete = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with urlopen(url, timeout=TIMEOUT_S) as response, incomplete.open("wb") as file:  # noqa: S310  of the table above
            size = int(response.headers.get("Content-Length", 0)) or None
            options = {"total": size, "desc": path.name, "leave": False, "disable": not on_terminal()}
            with tqdm.wrapattr(response, "read", **options) as body:
                shutil.copyfileobj(body, file)
        if not _checksum_ok(incomplete, md5):
            raise OSError(f"{url} does not give the published file")
        incomplete.replace(path)
    finally:
        incomplete.unlink(missing_ok=True)
