"""What goes into the registry: program, card, baseline, digest; save, verify, load.

A bundle is an MLflow model folder of the pytorch flavour in ``pt2`` form, plus two files:

    data/model.pt2               the program: uint8 (N, H, W, 3) RGB -> float32 (N, K) probabilities
    extra_files/card.json        what the program is and what it was measured to do
    extra_files/baseline.npz     what it did on pictures it had never seen
    MLmodel, requirements.txt    MLflow's own description

The digest covers every file; it is recorded beside the model and checked at every load. No pickle
is ever loaded, and no code that travels with a model is ever run.
"""

import hashlib
import logging
import platform
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from toolkit.baseline import Baseline
from toolkit.errors import BundleError, one_line
from toolkit.images import DECODER_VERSION, RESIZE_RULE
from toolkit.tracking import mlflow

DIGEST_TAG = "bundle_digest"
CARD, BASELINE, PROGRAM = "extra_files/card.json", "extra_files/baseline.npz", "data/model.pt2"
NOT_DIGESTED = frozenset({"registered_model_meta"})  # MLflow rewrites it at every download
PICKLES = ("*.pkl", "*.pickle", "*.pth", "*.pt", "*.joblib", "pickle_module_info.txt")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as torchvision's weights expect


class Measured(BaseModel):
    """A metric with the number of pictures that it was measured on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    pictures: int = Field(ge=0)


class Card(BaseModel):
    """What a program is, what it was trained on and what it was measured to do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    classes: tuple[str, ...] = Field(min_length=2)  # in the order of the program's outputs
    image_size: int = Field(ge=8)  # side of the square input in pixels
    resize_rule: str = RESIZE_RULE
    decoder: str = DECODER_VERSION
    network: str
    settings: dict[str, Any]
    data: dict[str, Any]  # name, fingerprint and sizes of the parts
    metrics: dict[str, Measured]
    temperature: float = Field(gt=0)
    code_version: str
    versions: dict[str, str]


def library_versions() -> dict[str, str]:
    """The versions that a program was made with."""
    names = ("torch", "torchvision", "mlflow", "numpy", "pillow")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


class Program(nn.Module):
    """A network with everything around it that a consumer could get wrong.

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

    def forward(self, pictures: Tensor) -> Tensor:  # uint8 (N, H, W, 3)
        scaled = pictures.permute(0, 3, 1, 2).float() / 255  # (N, 3, H, W) in [0, 1]
        logits = self.network((scaled - self.mean) / self.std)  # (N, K)
        return torch.softmax(logits / self.temperature, dim=1)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was verified and loaded."""

    card: Card
    baseline: Baseline
    digest: str
    program: nn.Module

    def predict(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class probabilities.

        Parameters
        ----------
        pictures
            uint8 (N, H, W, 3), RGB, H = W = ``card.image_size``.

        Returns
        -------
        float32 (N, K), rows that add up to 1.
        """
        own = np.require(pictures, requirements=("C", "W"))  # torch warns of arrays that may not be written to
        with torch.inference_mode():
            answer: NDArray[np.float32] = self.program(torch.from_numpy(own)).numpy()
        return answer


def save_bundle(
    folder: Path, program: Program, card: Card, baseline: Baseline, *, run_id: str | None = None, model_id: str
) -> str:
    """Write a bundle into a folder that does not exist yet, and return its digest.

    The program is exported in evaluation mode, on the CPU, in float32, with a free batch size.
    """
    program = program.cpu().float().eval().to(memory_format=torch.contiguous_format)
    shape = (-1, card.image_size, card.image_size, 3)
    signature = mlflow.models.ModelSignature(
        inputs=mlflow.types.Schema([mlflow.types.TensorSpec(np.dtype("uint8"), shape)]),
        outputs=mlflow.types.Schema([mlflow.types.TensorSpec(np.dtype("float32"), (-1, len(card.classes)))]),
    )
    with tempfile.TemporaryDirectory() as scratch:
        card_file, baseline_file = Path(scratch, "card.json"), Path(scratch, "baseline.npz")
        card_file.write_text(card.model_dump_json(indent=2))
        baseline_file.write_bytes(baseline.to_bytes())
        with _quiet():
            mlflow.pytorch.save_model(
                program,
                str(folder),
                mlflow_model=mlflow.models.Model(run_id=run_id, model_id=model_id),
                serialization_format="pt2",
                signature=signature,
                input_example=np.zeros((2, *shape[1:]), np.uint8),  # a batch of 1 would freeze the batch size
                extra_files=[str(card_file), str(baseline_file)],
                pip_requirements=[f"{name}=={version(name)}" for name in ("torch", "numpy", "mlflow")],
            )
    return digest_of(folder)


def digest_of(folder: Path) -> str:
    """SHA-256 over the names and contents of every file of a bundle, as hexadecimal digits."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in NOT_DIGESTED:
            with path.open("rb") as file:
                total.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def verify_bundle(folder: Path, digest: str | None) -> tuple[Card, Baseline]:
    """Check everything about a bundle that can be checked without running it.

    Parameters
    ----------
    folder
        The bundle on disk.
    digest
        What the registry or the run recorded.

    Raises
    ------
    BundleError
        The first thing that is wrong, in one sentence.
    """
    for name in (PROGRAM, CARD, BASELINE, "MLmodel"):
        if not (folder / name).is_file():
            raise BundleError(f"the bundle has no {name}")
    if (folder / "code").exists():
        raise BundleError("the bundle brings a code folder, and no code that travels with a model is run")
    for pattern in PICKLES:
        for path in folder.rglob(pattern):
            raise BundleError(f"the bundle holds {path.name}, and no pickle is ever loaded")
    if not digest:
        raise BundleError("no digest was recorded for the bundle, so nothing tells whether it is whole")
    if (found := digest_of(folder)) != digest:
        raise BundleError(f"the bundle was altered: its digest is {found[:12]}..., recorded was {digest[:12]}...")
    _require_own_program(folder)
    try:
        card = Card.model_validate_json((folder / CARD).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = " at " + ".".join(map(str, first["loc"])) if first["loc"] else ""
        raise BundleError(f"the card is wrong{place}: {first['msg']}") from None
    baseline = Baseline.from_bytes((folder / BASELINE).read_bytes())
    if baseline.classes != card.classes:
        raise BundleError("card and baseline name different classes")
    return card, baseline


def _require_own_program(folder: Path) -> None:
    """MLflow's description may name a folder of code under any name, or another program."""
    try:
        flavour = mlflow.models.Model.load(str(folder / "MLmodel")).flavors["pytorch"]
    except Exception as error:  # noqa: BLE001  yaml and MLflow each raise kinds of their own
        raise BundleError(f"the bundle's MLmodel cannot be read: {one_line(error)}") from None
    if flavour.get("code") or flavour.get("model_data") != Path(PROGRAM).parent.name:
        raise BundleError(f"the bundle's MLmodel asks for code, or for another program than {PROGRAM}")


def load_bundle(folder: Path, digest: str | None) -> Bundle:
    """Verify a bundle, load its program and see that the output fits the card.

    Raises
    ------
    BundleError
        As ``verify_bundle``, or the program cannot be loaded or gives something else than the
        probabilities of the card's classes.
    """
    card, baseline = verify_bundle(folder, digest)
    try:
        with _quiet():
            program = mlflow.pytorch.load_model(str(folder))
        bundle = Bundle(card, baseline, digest or "", program)
        answer = bundle.predict(np.zeros((3, card.image_size, card.image_size, 3), np.uint8))
    except Exception as error:  # noqa: BLE001  zipfile, torch and MLflow each raise kinds of their own
        raise BundleError(f"the program cannot be loaded: {one_line(error)}") from None
    if answer.shape != (3, len(card.classes)):
        raise BundleError(f"the program answers {answer.shape} for 3 pictures and {len(card.classes)} classes")
    if not np.allclose(answer.sum(axis=1), 1, atol=1e-3):
        raise BundleError("the program does not answer with probabilities")
    return bundle


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what MLflow and torch.export say at every save and load and no user can act upon."""
    loggers = [(logger, logger.level) for logger in (logging.getLogger("mlflow"), logging.getLogger("torch"))]
    for logger, _ in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in loggers:
            logger.setLevel(level)
