"""A program converted for OpenVINO, kept on this machine beside what the program itself answers.

With both on the disk, a service that starts or changes models needs the program no more: neither to be
loaded, nor to be run for the comparison that each engine must pass.
"""

import logging
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.export import ExportedProgram

from toolkit.bundle.files import digest_of
from toolkit.bundle.program import Bundle
from toolkit.errors import BundleError, first_line
from toolkit.system.file_locks import try_lock

logger = logging.getLogger(__name__)

MODEL, ANSWERS = "model.xml", "answers.npy"  # the model's weights are beside it, in model.bin
CONVERT_TIMEOUT_S = 900.0  # that others wait for who converts
MAX_CACHED = 8  # converted models in a cache; that of a ResNet-18 has 45 MB

_starting = threading.Lock()  # held by who is the first to use OpenVINO
_converting = threading.Lock()  # OpenVINO changes the root logger's level meanwhile, and puts back what it found


class OpenVINOModelCache:
    """What is needed of a bundle's program to run it in OpenVINO; from the cache, or made when asked for.

    Parameters
    ----------
    bundle
        Verified.
    answer
        What the program itself says of some images, the same at each start: float32 (N, K).
    cache
        Folder that this is kept in; None keeps nothing.
    """

    def __init__(self, bundle: Bundle, answer: Callable[[], NDArray[np.float32]], cache: Path | None) -> None:
        self._bundle = bundle
        self._reference = answer
        self._cache = cache
        self._name = _name(bundle)

    @cached_property
    def reference_outputs(self) -> NDArray[np.float32]:
        """What the program itself says: float32 (N, K)."""
        return self._cached[1] if self._cached else self._reference()

    @cached_property
    def model(self) -> Any:
        """The program as a model of OpenVINO's; to convert one takes seconds."""
        if self._cached:
            return self._cached[0]
        if self._cache is None:
            return self._convert()
        with try_lock(self._cache.with_suffix(".lock"), CONVERT_TIMEOUT_S):
            if kept := self._load():  # another process has converted it meanwhile
                return kept[0]
            model = self._convert()
            self._store(model, self._cache)
        return model

    def _convert(self) -> Any:
        program = exported(self._bundle)
        with _converting:
            model = openvino().convert_model(program)
        size = self._bundle.card.image_size
        model.reshape([-1, size, size, 3])  # the conversion leaves all four free
        return model

    @cached_property
    def _cached(self) -> tuple[Any, NDArray[np.float32]] | None:
        return self._load()

    def _load(self) -> tuple[Any, NDArray[np.float32]] | None:
        """What is in the cache, if it is whole: the end of the folder's name is the digest of what is in it."""
        for folder in self._cache.glob(f"{self._name}*") if self._cache else ():
            try:
                if digest_of(folder) == folder.name.removeprefix(self._name):
                    return core().read_model(folder / MODEL), np.load(folder / ANSWERS, allow_pickle=False)
                reason = "it was altered"
            except Exception as error:  # noqa: BLE001  a cache is never needed
                reason = first_line(error)
            logger.warning("a converted model in the cache cannot be used, so it is made anew: %s", reason)
            shutil.rmtree(folder, ignore_errors=True)
        return None

    def _store(self, model: Any, cache: Path) -> None:
        """Write all aside, and put it in place at once; the oldest of too many go."""
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix="openvino-") as scratch:
                folder = Path(scratch, "whole")
                folder.mkdir()
                openvino().save_model(model, folder / MODEL, compress_to_fp16=False)
                np.save(folder / ANSWERS, self.reference_outputs, allow_pickle=False)
                folder.rename(cache / f"{self._name}{digest_of(folder)}")
            for old in sorted(cache.glob("openvino-*"), key=lambda path: path.stat().st_mtime)[:-MAX_CACHED]:
                shutil.rmtree(old, ignore_errors=True)
        except Exception as error:  # noqa: BLE001  a full disk, another process that was faster
            logger.warning("the converted model is not kept: %s", first_line(error))


def is_cached(bundle: Bundle, cache: Path) -> bool:
    """Whether the cache holds a conversion of the bundle; whether it is whole shows when it is read."""
    return any(cache.glob(f"{_name(bundle)}*"))


def _name(bundle: Bundle) -> str:
    return f"openvino-{version('openvino')}-torch-{version('torch')}-{bundle.digest}-"


def exported(bundle: Bundle) -> ExportedProgram:
    """The program as torch exported it.

    Raises
    ------
    BundleError
        The bundle was not made of an exported program.
    """
    if bundle.export is None:
        raise BundleError("the bundle has no exported program")
    return bundle.export()


def openvino() -> Any:
    """OpenVINO, silenced and ready for several threads. Its import, and each conversion, would tell its makers.

    They would be told through openvino-telemetry. Where that cannot be imported, OpenVINO uses a stub of its own that
    sends nothing.
    """
    with _starting:
        return _library()


def core() -> Any:
    """OpenVINO's runtime: one for the process, and never closed.

    It gives the thread that first uses it a stack for signals, and takes it away when it is closed, by then perhaps in
    another thread: the next signal to the first one would end the process.
    """
    with _starting:
        return _runtime()


@cache
def _library() -> Any:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino as library  # type: ignore[import-untyped]

    # pybind11 looks numpy up at the first use of an array. Of two threads that both use their first one, it happened
    # once in five starts that each waited for what the other held, and with Python's lock, so that all stood still.
    library.Tensor(np.zeros(1, np.uint8))
    return library


@cache
def _runtime() -> Any:
    return _library().Core()
