"""Cache of programs converted for OpenVINO, with the outputs of the program itself.

With both on the disk, a service that starts or changes models needs not load the program, nor run it for the comparison
that each engine must pass.
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

MODEL, OUTPUTS = "model.xml", "outputs.npy"  # the weights are in model.bin
CONVERT_TIMEOUT_S = 900.0  # for a conversion in another process
MAX_CACHED = 8  # converted models in a cache; a ResNet-18 has 45 MB

_starting = threading.Lock()  # of OpenVINO's first use
_converting = threading.Lock()  # OpenVINO changes the root logger's level during a conversion, and restores it


class OpenVINOModelCache:
    """A bundle's program as an OpenVINO model, and its own outputs; from the cache, or made at first use.

    ``run_program`` returns the program's own outputs for a fixed set of images, float32 (N, K). Without a folder
    ``cache`` nothing is cached.
    """

    def __init__(self, bundle: Bundle, run_program: Callable[[], NDArray[np.float32]], cache: Path | None) -> None:
        self._bundle = bundle
        self._run_program = run_program
        self._cache = cache
        self._name = _name(bundle)

    @cached_property
    def reference_outputs(self) -> NDArray[np.float32]:
        """Outputs of the program itself: float32 (N, K)."""
        return self._cached[1] if self._cached else self._run_program()

    @cached_property
    def model(self) -> Any:
        """The program as an OpenVINO model; a conversion takes seconds."""
        if self._cached:
            return self._cached[0]
        if self._cache is None:
            return self._convert()
        with try_lock(self._cache.with_suffix(".lock"), CONVERT_TIMEOUT_S):
            if cached := self._load():  # converted by another process meanwhile
                return cached[0]
            model = self._convert()
            self._store(model, self._cache)
        return model

    def _convert(self) -> Any:
        program = exported(self._bundle)
        with _converting:
            model = openvino().convert_model(program)
        size = self._bundle.card.image_size
        model.reshape([-1, size, size, 3])  # the conversion leaves all four dimensions free
        return model

    @cached_property
    def _cached(self) -> tuple[Any, NDArray[np.float32]] | None:
        return self._load()

    def _load(self) -> tuple[Any, NDArray[np.float32]] | None:
        """Read the cache if it is intact: the name of a folder ends with the digest of its files."""
        for folder in self._cache.glob(f"{self._name}*") if self._cache else ():
            try:
                if digest_of(folder) == folder.name.removeprefix(self._name):
                    return core().read_model(folder / MODEL), np.load(folder / OUTPUTS, allow_pickle=False)
                reason = "it was altered"
            except Exception as error:  # noqa: BLE001  the model can be converted again
                reason = first_line(error)
            logger.warning("a cached conversion cannot be used and is made again: %s", reason)
            shutil.rmtree(folder, ignore_errors=True)
        return None

    def _store(self, model: Any, cache: Path) -> None:
        """Write a folder and rename it into the cache; the oldest beyond ``MAX_CACHED`` are removed."""
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix="openvino-") as scratch:
                folder = Path(scratch, "whole")
                folder.mkdir()
                openvino().save_model(model, folder / MODEL, compress_to_fp16=False)
                np.save(folder / OUTPUTS, self.reference_outputs, allow_pickle=False)
                folder.rename(cache / f"{self._name}{digest_of(folder)}")
            for old in sorted(cache.glob("openvino-*"), key=lambda path: path.stat().st_mtime)[:-MAX_CACHED]:
                shutil.rmtree(old, ignore_errors=True)
        except Exception as error:  # noqa: BLE001  a full disk, or another process that was faster
            logger.warning("the converted model cannot be cached: %s", first_line(error))


def is_cached(bundle: Bundle, cache: Path) -> bool:
    """Whether the cache has a conversion of the bundle; it is verified when it is read."""
    return any(cache.glob(f"{_name(bundle)}*"))


def _name(bundle: Bundle) -> str:
    return f"openvino-{version('openvino')}-torch-{version('torch')}-{bundle.digest}-"


def exported(bundle: Bundle) -> ExportedProgram:
    """The program as torch exported it; a BundleError if the bundle was not made of an exported program."""
    if bundle.export is None:
        raise BundleError("the bundle has no exported program")
    return bundle.export()


def openvino() -> Any:
    """Import OpenVINO without its telemetry, ready for several threads.

    Its import and each conversion would send data through openvino-telemetry. If that cannot be imported, OpenVINO uses
    a stub of its own that sends nothing.
    """
    with _starting:
        return _start()[0]


def core() -> Any:
    """Return OpenVINO's runtime, one for the process that is never closed.

    It installs a signal stack in the thread that first uses it, and removes it when it is closed, perhaps from another
    thread: the next signal to the first thread would then end the process.
    """
    with _starting:
        return _start()[1]


@cache
def _start() -> tuple[Any, Any]:
    """Import OpenVINO and create its runtime; at one time in one thread."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino as library  # type: ignore[import-untyped]

    # pybind11 imports numpy at the first use of an array. Two threads that did so at once were deadlocked in one of
    # five starts, while holding Python's lock.
    library.Tensor(np.zeros(1, np.uint8))
    return library, library.Core()
