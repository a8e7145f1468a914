"""What runs a bundle's program: the fastest engine of this machine that gives the program's own numbers.

A program was registered in torch and float32. The same program is several times faster in OpenVINO, and
in bfloat16 faster still; but that it is the same program is a claim, which is checked for each bundle
on this very machine before an engine serves. An engine that fails is passed over for the next one.
"""

import copy
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

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

# How far a probability may be from the program's own. Float32 differs in the order of its sums: by 2e-7 for a
# ResNet-18. Numbers of 16 bits keep two or three digits: 0.002 for a ResNet-18 in bfloat16. Ten times that is let
# pass, and is far from what a wrongly converted operation does.
PARITY_BOUNDS: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 0.02, "float16": 0.02}
HINTS = {"float32": "f32", "bfloat16": "bf16"}  # OpenVINO's words
BATCHES = (1, 2, 4, 8, 1)  # images in the runs that compare engines: 16, with a single one again after a batch
SOURCES = re.compile(r"(Caught exception: )?(Exception from |Check '|FrontEnd API failed)")


class Engine(Protocol):
    """Images in, probabilities out; called from several threads at once."""

    @property
    def name(self) -> str:
        """Library, precision and device in a few words."""

    @property
    def concurrency(self) -> int:
        """How many runs at once are worth it."""

    @property
    def report(self) -> dict[str, Any]:
        """What ``/model-info`` shows: what runs the program, and what was found when it was prepared."""

    def infer(self, images: Images) -> Probabilities:
        """uint8 (N, H, W, 3) RGB -> float32 (N, K) probabilities."""

    def close(self) -> None:
        """Give back the memory that can be given back now; a call that comes late is still answered."""


class TorchEngine:
    """The program as it was registered: float32 on the CPU, the very numbers that ``Bundle.predict`` gives.

    Parameters
    ----------
    bundle
        Verified and loaded.
    threads
        Runs at once; one a core when None.
    """

    name = "torch float32 on the CPU"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self._bundle = bundle
        self.concurrency = threads or usable_cores()
        self.report: dict[str, Any] = _description(self.name, "float32", "cpu", self.concurrency)

    def infer(self, images: Images) -> Probabilities:
        return self._bundle.predict(images)

    def close(self) -> None: ...


class GPUEngine:
    """The program in torch on a GPU, its matrix products and convolutions in 16 bits.

    Parameters
    ----------
    bundle
        Verified and loaded. Its program stays where it is: a copy is moved.
    precision
        float16 is the nearer one, bfloat16 has the range of float32.
    device
        In torch's words.
    """

    concurrency = 1  # a GPU runs one thing after the other, and large batches best

    def __init__(self, bundle: Bundle, precision: Precision, device: str = "cuda") -> None:
        self.name = f"torch {precision} on the GPU"
        self._program = move_to_device_pass(copy.deepcopy(exported(bundle)), device).module()
        self._device = torch.device(device)
        self._type: torch.dtype = getattr(torch, precision)
        self.report: dict[str, Any] = _description(self.name, precision, device, self.concurrency)

    def infer(self, images: Images) -> Probabilities:
        own = np.require(images, requirements=("C", "W"))  # torch warns of arrays that may not be written to
        with torch.inference_mode(), torch.autocast(self._device.type, self._type):
            answer: Probabilities = self._program(torch.from_numpy(own).to(self._device)).float().cpu().numpy()
        return answer

    def close(self) -> None: ...


class OpenVINOEngine:
    """The program in OpenVINO on the CPU: as many streams as runs at once, each with its share of the cores.

    Parameters
    ----------
    model
        What ``openvino.convert_model`` made of the program.
    precision
        float32, or bfloat16 where the processor has it.
    threads
        Streams; one a core when None, and never more than cores.
    cores
        How many it may use; all that this process may when None.

    Raises
    ------
    BundleError
        The processor does not have the precision.
    """

    def __init__(self, model: Any, precision: Precision, threads: int | None = None, cores: int | None = None) -> None:
        self.name = f"OpenVINO {precision} on the CPU"
        runtime, cores = core(), cores or usable_cores()
        if precision == "bfloat16" and "BF16" not in runtime.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BundleError("the processor has no bfloat16")
        wanted = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": cores,
            "NUM_STREAMS": threads or cores,
            # Pinned, the streams of each process and container of a machine would sit on the same first cores.
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = runtime.compile_model(model, "CPU", wanted)
        self._idle: deque[Any] = deque()  # infer requests, each with memory of its own; at most one a caller
        self.concurrency: int = self._compiled.get_property("NUM_STREAMS")
        self.report: dict[str, Any] = _description(self.name, precision, "cpu", self.concurrency)

    def infer(self, images: Images) -> Probabilities:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        request.start_async({0: images})
        request.wait()  # infer() would do both, but on a single core it hides errors and gives the answer before
        answer: Probabilities = request.get_output_tensor().data.copy()  # the next run writes there again
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
    """The fastest engine that gives the program's own numbers, warmed up.

    Engines are tried in this order: torch on a GPU, if there is one; OpenVINO in bfloat16; OpenVINO in float32;
    torch. Each must answer for 1, 2, 4 and 8 images, in all lanes at once, twice the same, as the program does.

    Parameters
    ----------
    bundle
        Verified and loaded.
    choice
        Library; ``auto`` tries both.
    threads
        Runs at once on the CPU; one a core when None.
    cores
        Of the CPU, how many may be used; all that this process may when None.
    cache
        Folder for converted models and what their programs answer: read faster than made, and the program itself
        is then not loaded at all. None keeps none.

    Returns
    -------
    Engine
        Its ``report`` has ``engine``, ``precision``, ``device``, ``lanes``; ``images`` compared and the
        ``largest_difference`` of their probabilities; ``passed_over``, each with ``engine`` and ``reason``; and the
        ``seconds`` that all this took.

    Raises
    ------
    BundleError
        The program itself does not give finite probabilities, or no engine passes; says which fails at what.
    """
    started = time.perf_counter()
    batches = np.split(synthetic_images(bundle.card.image_size), np.cumsum(BATCHES)[:-1])
    conversion = OpenVINOModelCache(bundle, partial(_reference_outputs, bundle, batches), cache)
    expected = conversion.reference_outputs
    passed_over: list[dict[str, str]] = []
    for name, build in _candidates(bundle, choice, threads, cores, conversion):
        try:
            engine = build()
            difference = largest_difference(engine, batches, np.split(expected, np.cumsum(BATCHES)[:-1]))
        except Exception as error:  # noqa: BLE001  whatever a library raises, the next engine may do
            reason = _reason(error)
            passed_over.append({"engine": name, "reason": redact_paths(reason)})
            logger.warning("%s is passed over: %s", name, reason)
            continue
        seconds = time.perf_counter() - started
        engine.report.update(
            images=sum(BATCHES), largest_difference=difference, passed_over=passed_over, seconds=round(seconds, 2)
        )
        logger.info("%s, %d at once, differs by %.1g, ready in %.1f s", name, engine.concurrency, difference, seconds)
        return engine
    reasons = (f"{failed['engine']}: {failed['reason']}" for failed in passed_over)
    raise BundleError(f"no engine runs the program; {'; '.join(reasons)}")


def _reference_outputs(bundle: Bundle, batches: Sequence[Images]) -> Probabilities:
    """What the program itself says of synthetic images."""
    answers = np.concatenate(_run(bundle.predict, batches, usable_cores()))
    if not np.isfinite(answers).all():
        raise BundleError("the program gives NaN or infinity for a synthetic image")
    return answers


def _candidates(
    bundle: Bundle, choice: Choice, threads: int | None, cores: int | None, conversion: OpenVINOModelCache
) -> Iterator[tuple[str, Callable[[], Engine]]]:
    """Names of engines and what builds them, the fastest first."""

    def in_openvino(precision: Precision) -> Engine:
        return OpenVINOEngine(conversion.model, precision, threads, cores)

    precision: Precision
    if choice != "openvino" and torch.cuda.is_available():
        for precision in ("float16", "bfloat16"):
            yield f"torch {precision} on the GPU", partial(GPUEngine, bundle, precision)
    if choice != "torch":
        for precision in ("bfloat16", "float32"):
            yield f"OpenVINO {precision} on the CPU", partial(in_openvino, precision)
    if choice != "openvino":
        yield TorchEngine.name, partial(TorchEngine, bundle, threads or cores)


def largest_difference(engine: Engine, batches: Sequence[Images], expected: Sequence[Probabilities]) -> float:
    """Run all lanes of an engine at once, and compare what it answers with what is expected.

    Parameters
    ----------
    engine
        Built; its ``report`` names its precision.
    batches
        uint8 (N, H, W, 3) each.
    expected
        float32 (N, K) each, finite.

    Returns
    -------
    float
        The largest difference of two probabilities.

    Raises
    ------
    BundleError
        What is wrong: the shape, NaN, another answer to the same question, probabilities further off than the
        precision excuses, or another class although the best two are not nearly equal.
    """
    answers = _run(engine.infer, [*batches, *batches], engine.concurrency)
    for answer, again, wanted in zip(answers, answers[len(batches) :], expected, strict=False):
        if answer.shape != wanted.shape or answer.dtype != np.float32:
            raise BundleError(f"it answers {answer.dtype} {answer.shape}, where float32 {wanted.shape} is right")
        if not np.isfinite(answer).all():
            raise BundleError("it gives NaN or infinity")
        if not np.array_equal(answer, again):
            raise BundleError("it answers otherwise when it is asked again")
    return _require_parity(
        np.concatenate(answers[: len(batches)]), np.concatenate(expected), PARITY_BOUNDS[engine.report["precision"]]
    )


def _run(infer: Callable[[Images], Probabilities], batches: Sequence[Images], lanes: int) -> list[Probabilities]:
    """Answers from so many threads at once; torch's own threads in each would only fight on a busy machine."""
    threads = torch_threads(lanes, usable_cores())
    with ThreadPoolExecutor(lanes, initializer=set_torch_threads, initargs=(threads,)) as pool:
        return list(pool.map(infer, batches))


def _require_parity(found: Probabilities, wanted: Probabilities, bound: float) -> float:
    """Two float32 (N, K) must be nearly the same, and name the same classes but where two are nearly equal."""
    difference = float(np.abs(found - wanted).max())
    if difference > bound:
        raise BundleError(f"its probabilities are up to {difference:.2g} from the program's, allowed is {bound:g}")
    second, best = np.sort(wanted, axis=1)[:, -2:].T  # (N,) each
    other = (found.argmax(axis=1) != wanted.argmax(axis=1)) & (best - second >= bound)
    if other.any():
        raise BundleError(f"it names another class than the program for {other.sum()} of {len(other)} images")
    return difference


def synthetic_images(size: int) -> Images:
    """Images to compare engines on: soft fields of colour with and without noise, and plain greys.

    A bundle brings no images. On plain noise most networks give one answer; on these they do not.

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
    """Threads inside one run of the program, so that all workers together use the cores and no more.

    >>> torch_threads(workers=2, cores=8), torch_threads(workers=8, cores=2)
    (4, 1)
    """
    return max(1, cores // workers)


def set_torch_threads(count: int) -> None:
    """To be called in each thread that runs a program: OpenMP keeps the number by thread."""
    torch.set_num_threads(count)


def _reason(error: Exception) -> str:
    """What went wrong, in one line; OpenVINO begins with where that is in its sources.

    >>> _reason(RuntimeError("Exception from src/core.cpp:84:\\nCheck 'x' failed at src/x.h:9:\\nNo such file\\n"))
    'No such file'
    """
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line and not SOURCES.match(line)), first_line(error))


def _description(name: str, precision: Precision, device: str, lanes: int) -> dict[str, Any]:
    return {"engine": name, "precision": precision, "device": device, "lanes": lanes}
