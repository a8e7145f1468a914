"""Engines that run a bundle's program, and the choice of the fastest one that agrees with the program.

A program is registered in torch and float32. It is several times faster in OpenVINO, and faster still in bfloat16. That
the outputs are the same is checked for each bundle on this machine before an engine serves; an engine that fails the
check is skipped for the next one.
"""

import copy
import logging
import re
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.export.passes import move_to_device_pass

from toolkit.bundle.program import Bundle
from toolkit.errors import BundleError, first_line
from toolkit.redaction import redact_paths
from toolkit.serving.models.openvino_cache import OpenVINOModelCache, core, exported
from toolkit.system.metrics import usable_cores

logger = logging.getLogger(__name__)

Choice = Literal["auto", "openvino", "torch"]
Precision = Literal["float32", "bfloat16", "float16"]
Images = NDArray[np.uint8]  # (N, H, W, 3) RGB
Probabilities = NDArray[np.float32]  # (N, K)

# Largest difference of a probability from the program's own. Float32 differs in the order of sums: by 2e-7 for a
# ResNet-18. Numbers of 16 bits have two or three digits: 0.002 for a ResNet-18 in bfloat16. Ten times that is allowed,
# which is far less than the effect of a wrongly converted operation.
PARITY_BOUNDS: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 0.02, "float16": 0.02}
HINTS = {"float32": "f32", "bfloat16": "bf16"}  # OpenVINO's names of precisions
BATCHES = (1, 2, 4, 8, 1)  # images in the runs that compare engines, 16 in all
SOURCES = re.compile(r"(Caught exception: )?(Exception from |Check '|FrontEnd API failed)")


class Engine(ABC):
    """Runs a program; called from several threads at once.

    ``concurrency`` is the number of runs at once that are worthwhile. ``report`` has facts for ``/model-info``:
    library, precision, device, and the results of ``select_engine``.
    """

    def __init__(self, name: str, precision: Precision, device: str, concurrency: int) -> None:
        self.name = name
        self.concurrency = concurrency
        self.report: dict[str, Any] = {
            "engine": name, "precision": precision, "device": device, "concurrency": concurrency
        }  # fmt: skip

    @abstractmethod
    def infer(self, images: Images) -> Probabilities:
        """uint8 (N, H, W, 3) RGB -> float32 (N, K) probabilities."""

    def close(self) -> None:  # noqa: B027  most have nothing to free
        """Free memory; ``infer`` still works afterwards."""


class TorchEngine(Engine):
    """The program as it was registered, in float32 on the CPU: its outputs are those of ``Bundle.predict``."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        super().__init__("torch float32 on the CPU", "float32", "cpu", threads or usable_cores())
        self._bundle = bundle

    def infer(self, images: Images) -> Probabilities:
        return self._bundle.predict(images)


class GPUEngine(Engine):
    """A copy of the program in torch on a GPU, its matrix products and convolutions in 16 bits.

    float16 is more exact, bfloat16 has the range of float32. A GPU runs one batch after the other, and is most
    efficient with large ones.
    """

    def __init__(self, bundle: Bundle, precision: Precision, device: str = "cuda") -> None:
        super().__init__(f"torch {precision} on the GPU", precision, device, concurrency=1)
        # Operations that name their device are compared with that of the tensors, which has a number.
        self._device = torch.device(f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device)
        self._program = move_to_device_pass(copy.deepcopy(exported(bundle)), self._device).module()
        self._type: torch.dtype = getattr(torch, precision)

    def infer(self, images: Images) -> Probabilities:
        own = np.require(images, requirements=("C", "W"))  # torch warns of read-only arrays
        with torch.inference_mode(), torch.autocast(self._device.type, self._type):
            answer: Probabilities = self._program(torch.from_numpy(own).to(self._device)).float().cpu().numpy()
        return answer


class OpenVINOEngine(Engine):
    """The program in OpenVINO on the CPU, with one stream for each run at once.

    Parameters
    ----------
    model
        Result of ``openvino.convert_model``.
    precision
        float32, or bfloat16 if the processor supports it; else a BundleError is raised.
    threads
        Streams; one per core if None, and never more than cores.
    cores
        Cores to use; all that this process may use if None.
    """

    def __init__(self, model: Any, precision: Precision, threads: int | None = None, cores: int | None = None) -> None:
        runtime, cores = core(), cores or usable_cores()
        if precision == "bfloat16" and "BF16" not in runtime.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BundleError("the processor has no bfloat16")
        options = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": cores,
            "NUM_STREAMS": threads or cores,
            # With pinning, all processes and containers of a machine would use the same first cores.
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = runtime.compile_model(model, "CPU", options)
        self._idle: deque[Any] = deque()  # infer requests, each with memory of its own; at most one per caller
        streams: int = self._compiled.get_property("NUM_STREAMS")
        super().__init__(f"OpenVINO {precision} on the CPU", precision, "cpu", streams)

    def infer(self, images: Images) -> Probabilities:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        request.start_async({0: images})
        request.wait()  # infer() does both, but on a single core it hides errors and returns the previous output
        answer: Probabilities = request.get_output_tensor().data.copy()  # the next run overwrites it
        self._idle.append(request)
        return answer

    def close(self) -> None:
        self._idle.clear()


def select_engine(
    bundle: Bundle,
    choice: Choice = "auto",
    *,
    threads: int | None = None,
    cores: int | None = None,
    cache: Path | None = None,
) -> Engine:
    """Select the fastest engine that agrees with the program, and warm it up.

    Engines are tried in this order: torch on a GPU, if there is one; OpenVINO in bfloat16; OpenVINO in float32; torch.
    Each must predict 1, 2, 4 and 8 images, at its full concurrency, twice with the same result, as the program does.

    Parameters
    ----------
    bundle
        Verified and loaded.
    choice
        Library; ``auto`` tries both.
    threads
        Runs at once on the CPU; one per core if None.
    cores
        Cores of the CPU to use; all that this process may use if None.
    cache
        Folder for converted models and the outputs of their programs: faster to read than to make, and the program
        is not loaded then. None caches nothing.

    Returns
    -------
    Engine
        Its ``report`` also has the number of ``images`` compared and the ``largest_difference`` of their
        probabilities; ``failed_engines``, each with ``engine`` and ``reason``; and the ``seconds`` of the selection.

    Raises
    ------
    BundleError
        The program's own outputs are not finite, or no engine passes; names each engine and its reason.
    """
    started = time.perf_counter()
    batches = np.split(synthetic_images(bundle.card.image_size), np.cumsum(BATCHES)[:-1])
    model_cache = OpenVINOModelCache(bundle, partial(_reference_outputs, bundle, batches), cache)
    expected = model_cache.reference_outputs
    failed_engines: list[dict[str, str]] = []
    for name, build in _candidates(bundle, choice, threads, cores, model_cache):
        try:
            engine = build()
            difference = largest_difference(engine, batches, np.split(expected, np.cumsum(BATCHES)[:-1]))
        except Exception as error:  # noqa: BLE001  the next engine may work
            reason = _reason(error)
            failed_engines.append({"engine": name, "reason": redact_paths(reason)})
            logger.warning("%s is skipped: %s", name, reason)
            continue
        seconds = time.perf_counter() - started
        engine.report.update(
            images=sum(BATCHES), largest_difference=difference, failed_engines=failed_engines, seconds=round(seconds, 2)
        )
        logger.info("%s, %d at once, differs by %.1g, ready in %.1f s", name, engine.concurrency, difference, seconds)
        return engine
    reasons = (f"{failed['engine']}: {failed['reason']}" for failed in failed_engines)
    raise BundleError(f"no engine runs the program; {'; '.join(reasons)}")


def _reference_outputs(bundle: Bundle, batches: Sequence[Images]) -> Probabilities:
    """Outputs of the program itself for synthetic images."""
    answers = np.concatenate(_run(bundle.predict, batches, usable_cores()))
    if not np.isfinite(answers).all():
        raise BundleError("the program returns NaN or infinity for a synthetic image")
    return answers


def _candidates(
    bundle: Bundle, choice: Choice, threads: int | None, cores: int | None, model_cache: OpenVINOModelCache
) -> Iterator[tuple[str, Callable[[], Engine]]]:
    """Yield names of engines and functions that build them, the fastest first."""

    def in_openvino(precision: Precision) -> Engine:
        return OpenVINOEngine(model_cache.model, precision, threads, cores)

    precision: Precision
    if choice != "openvino" and torch.cuda.is_available():
        for precision in ("float16", "bfloat16"):
            yield f"torch {precision} on the GPU", partial(GPUEngine, bundle, precision)
    if choice != "torch":
        for precision in ("bfloat16", "float32"):
            yield f"OpenVINO {precision} on the CPU", partial(in_openvino, precision)
    if choice != "openvino":
        yield "torch float32 on the CPU", partial(TorchEngine, bundle, threads or cores)


def largest_difference(engine: Engine, batches: Sequence[Images], expected: Sequence[Probabilities]) -> float:
    """Run an engine at its full concurrency on uint8 (N, H, W, 3) batches, and return the largest difference of two
    probabilities from the expected float32 (N, K).

    Raises
    ------
    BundleError
        The shape is wrong, an output is not finite or not reproducible, a probability differs by more than
        ``PARITY_BOUNDS``, or another class is predicted although the best two are not nearly equal.
    """
    answers = _run(engine.infer, [*batches, *batches], engine.concurrency)
    for answer, again, wanted in zip(answers, answers[len(batches) :], expected, strict=False):
        if answer.shape != wanted.shape or answer.dtype != np.float32:
            raise BundleError(f"it returns {answer.dtype} {answer.shape} instead of float32 {wanted.shape}")
        if not np.isfinite(answer).all():
            raise BundleError("it returns NaN or infinity")
        if not np.array_equal(answer, again):
            raise BundleError("it returns different results for the same images")
    return _require_parity(
        np.concatenate(answers[: len(batches)]), np.concatenate(expected), PARITY_BOUNDS[engine.report["precision"]]
    )


def _run(infer: Callable[[Images], Probabilities], batches: Sequence[Images], concurrency: int) -> list[Probabilities]:
    """Run batches in ``concurrency`` threads that share the cores."""
    threads = torch_threads(concurrency, usable_cores())
    with ThreadPoolExecutor(concurrency, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        return list(pool.map(infer, batches))


def _require_parity(found: Probabilities, wanted: Probabilities, bound: float) -> float:
    """Require two float32 (N, K) to be nearly equal, with the same best classes except for near ties."""
    difference = float(np.abs(found - wanted).max())
    if difference > bound:
        raise BundleError(f"its probabilities are up to {difference:.2g} from the program's, allowed is {bound:g}")
    second, best = np.sort(wanted, axis=1)[:, -2:].T  # (N,) each
    other = (found.argmax(axis=1) != wanted.argmax(axis=1)) & (best - second >= bound)
    if other.any():
        raise BundleError(f"it predicts another class than the program for {other.sum()} of {len(other)} images")
    return difference


def synthetic_images(size: int) -> Images:
    """Images to compare engines on: soft fields of colour with and without noise, and plain greys.

    A bundle has no images. For plain noise most networks predict one class; for these they do not.
    They are uint8 (16, size, size, 3) RGB, always the same.

    >>> images = synthetic_images(32)
    >>> images.shape, str(images.dtype), images[-3:].mean(axis=(1, 2, 3)).tolist()
    ((16, 32, 32, 3), 'uint8', [0.0, 127.0, 255.0])
    """
    generator = np.random.default_rng(0)
    greys = [np.full((size, size, 3), level, np.uint8) for level in (0, 127, 255)]
    fields = []
    for index in range(sum(BATCHES) - len(greys)):
        patches, noise = (2, 4, 8, 16)[index % 4], (0, 8, 32)[index % 3]  # a side, and standard deviation of 255
        colours = Image.fromarray(generator.integers(0, 256, (patches, patches, 3), np.uint8))
        soft = np.asarray(colours.resize((size, size), Image.Resampling.BICUBIC), np.float32)
        soft = soft + noise * generator.standard_normal((size, size, 3), np.float32)
        fields.append(soft.clip(0, 255).astype(np.uint8))
    return np.stack(fields + greys)


def torch_threads(workers: int, cores: int) -> int:
    """Threads for one run of the program, so that all workers together do not use more than the cores.

    >>> torch_threads(workers=3, cores=8), torch_threads(workers=8, cores=2)
    (2, 1)
    """
    return max(1, cores // workers)


def _reason(error: Exception) -> str:
    """Message of an error in one line, without the source locations that OpenVINO puts first.

    >>> _reason(RuntimeError("Exception from src/core.cpp:84:\\nCheck 'x' failed at src/x.h:9:\\nNo such file\\n"))
    'No such file'
    """
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line and not SOURCES.match(line)), first_line(error))
