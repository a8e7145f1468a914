"""The program of a bundle: export, save, load, run."""

import io
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from toolkit.bundle.archive_check import EXAMPLES, without_warnings
from toolkit.bundle.baseline import Baseline
from toolkit.bundle.files import PROGRAM, Card, digest_of, signature_of, verify_bundle
from toolkit.errors import BundleError, first_line
from toolkit.tracking.connection import mlflow

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as torchvision's weights expect


class Program(nn.Module):
    """A network with scaling, normalisation, temperature and softmax.

    Parameters
    ----------
    network
        Takes float32 (N, 3, H, W), normalised; gives logits (N, K).
    temperature
        The logits are divided by it before softmax, which calibrates the probabilities
        (Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:  # uint8 (N, H, W, 3)
        scaled = images.permute(0, 3, 1, 2).float() / 255  # (N, 3, H, W) in [0, 1]
        logits = self.network((scaled - self.mean) / self.std)  # (N, K)
        return torch.softmax(logits / self.temperature, dim=1)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was verified and loaded."""

    card: Card
    baseline: Baseline
    digest: str
    program: Callable[[Tensor], Tensor]  # uint8 (N, H, W, 3) -> float32 (N, K)
    export: Callable[[], ExportedProgram] | None = None  # the same program as torch exported it, for other engines
    folder: Path | None = None  # its files; None when they may be deleted

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (N, H, W, 3) RGB, H = W = ``card.image_size`` -> float32 (N, K) probabilities; rows add up to 1."""
        own = np.require(images, requirements=("C", "W"))  # torch warns of arrays that may not be written to
        with torch.inference_mode():
            answer: NDArray[np.float32] = self.program(torch.from_numpy(own)).numpy()
        return answer


def save_bundle(
    folder: Path, program: Program, card: Card, baseline: Baseline, *, run_id: str | None = None, model_id: str
) -> str:
    """Write a bundle into a new folder, and return its digest.

    The program is exported in evaluation mode, on the CPU, in float32, with a free batch size. ``run_id`` and
    ``model_id`` are the MLflow run and the logged model that the bundle belongs to.
    """
    program = program.cpu().float().eval().to(memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory() as scratch:
        card_file, baseline_file = Path(scratch, "card.json"), Path(scratch, "baseline.npz")
        card_file.write_text(card.model_dump_json(indent=2), encoding="utf-8")
        baseline_file.write_bytes(baseline.to_bytes())
        with without_warnings(), _requirements_trusted():
            mlflow.pytorch.save_model(
                program,
                str(folder),
                mlflow_model=mlflow.models.Model(run_id=run_id, model_id=model_id),
                serialization_format="pt2",
                signature=signature_of(card),
                # A batch of 1 would freeze the batch size.
                input_example=np.zeros((2, card.image_size, card.image_size, 3), np.uint8),
                extra_files=[str(card_file), str(baseline_file)],
                pip_requirements=[f"{name}=={version(name)}" for name in ("torch", "numpy", "mlflow")],
            )
    return digest_of(folder)


@contextmanager
def _requirements_trusted() -> Iterator[None]:
    """A context in which MLflow does not compare requirements with what is installed, from which ours are made.

    It would look for every file of every installed package, which takes half of the time of saving a bundle.
    """
    environment: Any = mlflow.utils.environment
    check = environment.warn_dependency_requirement_mismatches  # private: MLflow has no setting for it
    environment.warn_dependency_requirement_mismatches = lambda _: None
    try:
        yield
    finally:
        environment.warn_dependency_requirement_mismatches = check


def load_bundle(folder: Path, digest: str | None) -> Bundle:
    """Verify a bundle, load its program and test it on images of noise.

    A BundleError is raised as by ``verify_bundle``; or if the program cannot be loaded; or if its output is not the
    probabilities of the card's classes, the same for the same image.
    """
    card, baseline = verify_bundle(folder, digest)
    try:
        exported = _load_program(folder / PROGRAM)
    except Exception as error:  # noqa: BLE001  zipfile and torch each raise kinds of their own
        raise BundleError(f"the program cannot be loaded: {first_line(error)}") from None
    bundle = Bundle(card, baseline, digest or "", exported.module(), lambda: exported)
    _require_probabilities(bundle)
    return bundle


def open_bundle_lazily(folder: Path, digest: str) -> Bundle:
    """Verify a bundle that stays in its folder, and load its program at its first use.

    A cached engine does not need the program, whose loading takes longer than all the rest. Its errors are raised at
    the first use of the program.
    """
    card, baseline = verify_bundle(folder, digest)
    loading, loaded = threading.Lock(), cache(partial(load_bundle, folder, digest))

    def load() -> Bundle:
        with loading, torch.inference_mode(False):  # torch loads no program while it only infers
            return loaded()

    def export() -> ExportedProgram:
        exporter = load().export
        assert exporter is not None  # noqa: S101  load_bundle always gives one
        return exporter()

    return Bundle(card, baseline, digest, lambda images: load().program(images), export, folder)


def _load_program(path: Path) -> ExportedProgram:
    """Load a copy of an archive without its pickled example input."""
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as target:
        for name in archive.namelist():
            target.writestr(name, b"" if name == EXAMPLES else archive.read(name))
    copy.seek(0)
    with without_warnings():
        return torch.export.load(copy)


def _require_probabilities(bundle: Bundle) -> None:
    """Test a program on images of noise: three, the same three again, and the first alone."""
    size, classes = bundle.card.image_size, len(bundle.card.classes)
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    given = images.copy()
    try:
        answer, again, alone = (bundle.predict(batch) for batch in (given, given, given[:1]))
    except Exception as error:  # noqa: BLE001  whatever torch raises
        raise BundleError(f"the program cannot be run on 3 images and on 1: {first_line(error)}") from None
    if not np.array_equal(given, images):
        raise BundleError("the program changes its input images")
    if answer.shape != (3, classes) or alone.shape != (1, classes):
        raise BundleError(f"the program gives shape {answer.shape} for 3 images of {classes} classes")
    if answer.dtype != np.float32:
        raise BundleError(f"the program's output must be float32, got {answer.dtype}")
    if not (answer.min() >= 0 and np.allclose(answer.sum(axis=1), 1, atol=1e-3)):  # NaN is not at least 0
        raise BundleError("the program's output is not probabilities")
    if not np.allclose(answer, again, atol=1e-5):
        raise BundleError("the program gives another output for the same images: dropout may be active in it")
    if not np.allclose(answer[:1], alone, atol=1e-3):
        raise BundleError("the program's output for an image depends on the others in the batch")
