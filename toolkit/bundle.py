"""What goes into the registry: program, card, baseline, digest; save, verify, load.

A bundle is an MLflow model folder of the pytorch flavour in ``pt2`` form, plus two files:

    data/model.pt2               the program: uint8 (N, H, W, 3) RGB -> float32 (N, K) probabilities
    extra_files/card.json        what the program is and what it was measured to do
    extra_files/baseline.npz     what it did on pictures it had never seen
    MLmodel, requirements.txt    MLflow's own description

The digest covers every file; it is recorded beside the model and checked at every load. No pickle
is ever loaded, and no code that travels with a model is ever run: whoever can write a bundle can
often write its digest too, so a bundle with the right digest is searched for both all the same.
"""

import hashlib
import platform
import tempfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor, nn
from torch.export import ExportedProgram

from toolkit.archive import PICKLE_NAME, is_pickle, load_program, quiet, reading, require_plain_program
from toolkit.baseline import LARGEST_SAMPLE, Baseline
from toolkit.errors import BundleError, one_line
from toolkit.images import DECODER_VERSION, RESIZE_RULE
from toolkit.tracking import mlflow

DIGEST_TAG = "bundle_digest"
CARD, BASELINE, PROGRAM = "extra_files/card.json", "extra_files/baseline.npz", "data/model.pt2"
DESCRIPTION = "MLmodel"
NOT_DIGESTED = frozenset({"registered_model_meta"})  # MLflow rewrites it at every download
LARGEST_SIDE = 4096  # pixels of an input picture
LARGEST_CARD = 4 * 2**20  # bytes; a thousand classes take about 30,000
LARGEST_DESCRIPTION = 64 * 2**10  # bytes; MLflow writes about 1,000, and its YAML is slow to read
LARGEST_ROW = 1024  # bytes of a picture in a baseline besides its probabilities; 288 are in use

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as torchvision's weights expect


class Measured(BaseModel):
    """A metric with the number of pictures that it was measured on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float = Field(ge=0, le=1 + 1e-6)  # a share, within the rounding of a weighted mean
    pictures: int = Field(ge=0)


class Card(BaseModel):
    """What a program is, what it was trained on and what it was measured to do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    classes: tuple[str, ...] = Field(min_length=2)  # in the order of the program's outputs
    image_size: int = Field(ge=8, le=LARGEST_SIDE)  # side of the square input in pixels
    resize_rule: str = RESIZE_RULE
    decoder: str = DECODER_VERSION
    network: str
    settings: dict[str, Any]
    data: dict[str, Any]  # name, fingerprint and sizes of the parts
    metrics: dict[str, Measured]
    temperature: float = Field(gt=0, allow_inf_nan=False)
    code_version: str
    versions: dict[str, str]

    @field_validator("classes")
    @classmethod
    def _each_once(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        name, times = Counter(classes).most_common(1)[0]
        if times > 1:
            raise ValueError(f"{name!r} is there {times} times")
        return classes


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
    """A bundle that was verified and loaded.

    Parameters
    ----------
    card, baseline, digest
        As verified.
    program
        uint8 (N, H, W, 3) -> float32 (N, K).
    export
        Gives the same program as torch exported it, for engines of other makers.
    folder
        Where it is kept; None when it may be gone by now.
    """

    card: Card
    baseline: Baseline
    digest: str
    program: Callable[[Tensor], Tensor]
    export: Callable[[], ExportedProgram] | None = None
    folder: Path | None = None

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
    with tempfile.TemporaryDirectory() as scratch:
        card_file, baseline_file = Path(scratch, "card.json"), Path(scratch, "baseline.npz")
        card_file.write_text(card.model_dump_json(indent=2))
        baseline_file.write_bytes(baseline.to_bytes())
        with quiet():
            mlflow.pytorch.save_model(
                program,
                str(folder),
                mlflow_model=mlflow.models.Model(run_id=run_id, model_id=model_id),
                serialization_format="pt2",
                signature=_signature(card),
                # A batch of 1 would freeze the batch size.
                input_example=np.zeros((2, card.image_size, card.image_size, 3), np.uint8),
                extra_files=[str(card_file), str(baseline_file)],
                pip_requirements=[f"{name}=={version(name)}" for name in ("torch", "numpy", "mlflow")],
            )
    return digest_of(folder)


def _signature(card: Card) -> mlflow.models.ModelSignature:
    """What MLflow's own tools are to send, and what they get."""
    pictures = mlflow.types.TensorSpec(np.dtype("uint8"), (-1, card.image_size, card.image_size, 3))
    probabilities = mlflow.types.TensorSpec(np.dtype("float32"), (-1, len(card.classes)))
    return mlflow.models.ModelSignature(mlflow.types.Schema([pictures]), mlflow.types.Schema([probabilities]))


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
    with reading("the bundle"):
        _require_files_alone(folder)
        _require_parts(folder)
        _require_digest(folder, digest)
        _require_no_code(folder)
        _require_no_pickle(folder)
        require_plain_program(folder / PROGRAM)
        description = _read_description(folder / DESCRIPTION)
        card = _read_card(folder / CARD)
        if description.signature != _signature(card):
            size, classes = card.image_size, len(card.classes)
            raise BundleError(f"the card is of {size} x {size} pixels and {classes} classes, the {DESCRIPTION} is not")
        baseline = _read_baseline(folder / BASELINE, card)
        _require_agreement(card, baseline)
    return card, baseline


def _require_files_alone(folder: Path) -> None:
    """The digest does not follow links to folders, and nothing ends the reading of a pipe."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BundleError(f"the bundle holds {path.name!r}, which is no file of its own")


def _require_parts(folder: Path) -> None:
    for name in (PROGRAM, CARD, BASELINE, DESCRIPTION):
        if not (folder / name).is_file():
            raise BundleError(f"the bundle has no {name}")


def _require_digest(folder: Path, digest: str | None) -> None:
    if not digest:
        raise BundleError("no digest was recorded for the bundle, so nothing tells whether it is whole")
    if (found := digest_of(folder)) != digest:
        raise BundleError(f"the bundle was altered: its digest is {found[:12]}..., recorded was {digest[:12]}...")


def _require_no_code(folder: Path) -> None:
    if (folder / "code").exists():
        raise BundleError("the bundle brings a code folder, and no code that travels with a model is run")


def _require_no_pickle(folder: Path) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if PICKLE_NAME.search(path.name.lower()) or (path != folder / PROGRAM and is_pickle(path)):
            raise BundleError(f"the bundle holds {path.name!r}, and no pickle is ever loaded")


def _read_description(path: Path) -> mlflow.models.Model:
    """MLflow's description may name a folder of code under any name, or another program."""
    _require_size(path, LARGEST_DESCRIPTION)
    with reading(f"the bundle's {DESCRIPTION}"):
        description = mlflow.models.Model.load(str(path))
        ours, generic = description.flavors["pytorch"], description.flavors["python_function"]
        program = (ours["model_data"], generic["data"], generic["loader_module"])
    if ours.get("code") or generic.get("code") or program != ("data", "data", "mlflow.pytorch"):
        raise BundleError(f"the bundle's {DESCRIPTION} asks for code, or for another program than {PROGRAM}")
    return description


def _read_card(path: Path) -> Card:
    _require_size(path, LARGEST_CARD)
    try:
        return Card.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
    if first["loc"] == ("format",):
        raise BundleError(f"the card has format {first['input']!r:.20}, made by a newer version; this one reads 1")
    place = " at " + ".".join(map(str, first["loc"])) if first["loc"] else ""
    raise BundleError(f"the card is wrong{place}: {first['msg'].removeprefix('Value error, ')}")


def _read_baseline(path: Path, card: Card) -> Baseline:
    """Read a baseline, unless it unpacks into more than the largest sample of the card's classes needs."""
    classes = len(card.classes)
    most = LARGEST_SAMPLE * (LARGEST_ROW + 2 * classes) + 4 * classes * max(map(len, card.classes))
    with reading("the baseline"):
        with zipfile.ZipFile(path) as archive:
            names, unpacked = archive.namelist(), sum(member.file_size for member in archive.infolist())
        if max(unpacked, path.stat().st_size) > most:
            raise BundleError(f"the baseline has {unpacked:,} bytes, and {classes} classes need at most {most:,}")
        if len(set(names)) < len(names):
            raise BundleError("the baseline holds two arrays of one name")
        return Baseline.from_bytes(path.read_bytes())


def _require_agreement(card: Card, baseline: Baseline) -> None:
    """The baseline is what the card says, and what a program can answer."""
    if baseline.classes != card.classes:
        raise BundleError("card and baseline name different classes")
    if not 1 <= baseline.size <= LARGEST_SAMPLE:
        raise BundleError(f"a baseline must hold 1 to {LARGEST_SAMPLE:,} pictures, this one holds {baseline.size:,}")
    sums = baseline.probabilities.sum(axis=1, dtype=np.float32)
    if baseline.probabilities.min() < 0 or not np.allclose(sums, 1, atol=1e-2):  # float16 rounds by 0.0005
        raise BundleError("the baseline does not hold probabilities")
    if len(set(baseline.hashes.tolist())) < len(baseline.hashes):
        raise BundleError("the baseline holds a picture twice")
    for name, column in baseline.statistics.items():
        if not np.isfinite(column).all():
            raise BundleError(f"the baseline's {name} is not finite for every picture")
    stated = card.metrics.get("accuracy")
    if stated and stated.pictures == baseline.size and not _may_be(stated.value, baseline):
        raise BundleError(f"the card's accuracy is {stated.value:.4g}, the baseline's {baseline.accuracy:.4g}")


def _may_be(accuracy: float, baseline: Baseline) -> bool:
    """Whether an accuracy is that of a baseline before float16 made the best classes of some pictures equal."""
    best = baseline.probabilities == baseline.probabilities.max(axis=1, keepdims=True)  # (N, K)
    right = best[np.arange(baseline.size), baseline.labels]  # (N,), perhaps where others are as good
    surely = right & (best.sum(axis=1) == 1)
    return bool(surely.sum() - 1e-3 <= accuracy * baseline.size <= right.sum() + 1e-3)


def _require_size(path: Path, most: int) -> None:
    if (found := path.stat().st_size) > most:
        raise BundleError(f"the bundle's {path.name} has {found:,} bytes, and at most {most:,} are read")


def load_bundle(folder: Path, digest: str | None) -> Bundle:
    """Verify a bundle, load its program and see that it answers as the card says.

    Raises
    ------
    BundleError
        As ``verify_bundle``, or the program cannot be loaded, or gives something else than the
        probabilities of the card's classes, the same for the same picture.
    """
    card, baseline = verify_bundle(folder, digest)
    try:
        exported = load_program(folder / PROGRAM)
    except Exception as error:  # noqa: BLE001  zipfile and torch each raise kinds of their own
        raise BundleError(f"the program cannot be loaded: {one_line(error)}") from None
    bundle = Bundle(card, baseline, digest or "", exported.module(), lambda: exported)
    _require_probabilities(bundle)
    return bundle


def shelve_bundle(folder: Path, digest: str) -> Bundle:
    """Verify a bundle that stays in its folder, and load its program when somebody first runs it.

    An engine that was made of the program before does not need it again, and loading it takes longer
    than all the rest.

    Raises
    ------
    BundleError
        As ``verify_bundle``; and as ``load_bundle`` from the first use of the program.
    """
    card, baseline = verify_bundle(folder, digest)
    loading, loaded = threading.Lock(), cache(partial(load_bundle, folder, digest))

    def whole() -> Bundle:
        with loading, torch.inference_mode(False):  # torch loads no program while it only infers
            return loaded()

    def export() -> ExportedProgram:
        give = whole().export
        assert give is not None  # noqa: S101  load_bundle always says
        return give()

    return Bundle(card, baseline, digest, lambda pictures: whole().program(pictures), export, folder)


def _require_probabilities(bundle: Bundle) -> None:
    """Run a program on pictures of noise: three, the same three again, and the first alone."""
    size, classes = bundle.card.image_size, len(bundle.card.classes)
    pictures = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    given = pictures.copy()
    try:
        answer, again, alone = (bundle.predict(batch) for batch in (given, given, given[:1]))
    except Exception as error:  # noqa: BLE001  whatever torch raises
        raise BundleError(f"the program cannot be run on 3 pictures and on 1: {one_line(error)}") from None
    if not np.array_equal(given, pictures):
        raise BundleError("the program changes the pictures that it is given")
    if answer.shape != (3, classes) or alone.shape != (1, classes):
        raise BundleError(f"the program answers {answer.shape} for 3 pictures and {classes} classes")
    if answer.dtype != np.float32:
        raise BundleError(f"the program answers in {answer.dtype}, and must in float32")
    if not (answer.min() >= 0 and np.allclose(answer.sum(axis=1), 1, atol=1e-3)):  # NaN is not at least 0
        raise BundleError("the program does not answer with probabilities")
    if not np.allclose(answer, again, atol=1e-5):
        raise BundleError("the program answers otherwise when it is asked again: dropout, say, is at work in it")
    if not np.allclose(answer[:1], alone, atol=1e-3):
        raise BundleError("the program's answer for a picture depends on the others that come with it")
